"""helpers.shared_rows: responses behind one prompt are read as each alone, whatever the model."""

import warnings

import pytest
import torch
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from helpers.logprobs import pad_prompt_and_response, response_log_probs
from helpers.models import RewardModel, load_reward_model
from helpers.reward_models import score
from helpers.training.shared_prompt import SharedRow, shared_batch

PROMPT, RESPONSES = [11, 12, 13, 14], [[40, 41], [50, 51, 52]]
SMALL = {
    "vocab_size": 100, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0,
}


def shared_scores(model):
    batch = shared_batch([SharedRow.of(PROMPT, RESPONSES)], pad=0)
    return response_log_probs(model, **batch)["log_probs"][batch["response_mask"]]


def single_scores(model):
    batch = pad_prompt_and_response([PROMPT] * 2, RESPONSES, pad_token_id=0)
    return response_log_probs(model, **batch)["log_probs"][batch["response_mask"]]


def mistral(window: int):
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=window)).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_responses_in_one_row_score_as_each_alone(tiny_random_model, attention):
    model, _ = tiny_random_model
    model.set_attn_implementation(attention)
    torch.testing.assert_close(shared_scores(model), single_scores(model))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_reward_model_reads_shared_rows_as_each_alone(tiny_folder, attention):
    model, tokenizer = load_reward_model(tiny_folder, device="cpu")
    assert isinstance(model, RewardModel)
    model.model.set_attn_implementation(attention)
    texts = [" 12 apples", " 30", " more apples now"]
    together = score(model, tokenizer, ["Nora has"] * 3, texts)
    alone = [score(model, tokenizer, ["Nora has"], [text])[0] for text in texts]
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_window_that_holds_the_row_changes_nothing():
    model = mistral(window=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(shared_scores(model), single_scores(model))


@pytest.mark.parametrize("window", [4, 7])
def test_beyond_a_window_each_response_is_read_alone(window):
    model = mistral(window)
    with pytest.warns(UserWarning, match=f"its window of {window} tokens .* in a row of its own"):
        found = shared_scores(model)
    torch.testing.assert_close(found, single_scores(model))


def test_with_layers_that_carry_a_state_along_the_row_each_response_is_read_alone():
    config = Qwen3NextConfig(**SMALL, layer_types=["linear_attention", "full_attention"],
                             num_experts=0, linear_num_value_heads=2, linear_num_key_heads=1)
    model = Qwen3NextForCausalLM(config).eval()
    with pytest.warns(UserWarning, match="Qwen3NextForCausalLM responses that share"):
        found = shared_scores(model)
    torch.testing.assert_close(found, single_scores(model))

"""What an architecture does is tried: every score is that of one plain pass over one sequence.

The right values come from transformers alone: one sequence, no padding, no mask, no positions.
"""

import math
import warnings
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
)

from helpers import probes
from helpers.decoding import may_cache, next_tokens, window_of
from helpers.logprobs import pad_prompt_and_response, response_log_probs
from helpers.models import LoraSettings, RewardModel, _with_new_lora, load_reward_model
from helpers.reward_models import score
from helpers.rollout import SamplingSettings, generate
from helpers.training.ppo import scores_and_values, value_head
from helpers.training.sft import Row, _packed
from helpers.training.shared_prompt import SharedRow, shared_batch

BASE = Path(__file__).parents[2] / "workbook" / "assets" / "base"
PROMPT, RESPONSES = [12, 13, 14, 15, 16], [[20, 21, 22], [30, 31, 32, 33]]
LLAMA = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
MODELS = {
    "llama": LLAMA,
    "mistral": LLAMA | {"sliding_window": 4},
    "gemma3_text": LLAMA | {"sliding_window": 4},
    "gpt_oss": LLAMA | {"num_local_experts": 2, "num_experts_per_tok": 1},
    "llama4_text": LLAMA | {"attention_chunk_size": 4, "num_local_experts": 2},
    "gpt2": GPT2,
    "gpt_neo": {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 128,
        "window_size": 3, "attention_types": [[["global", "local"], 1]],
    },
    "opt": {
        "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 128, "word_embed_proj_dim": 16,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "logit_scale": 0.5},
    "falcon": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True,
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "recurrent_gemma": LLAMA | {
        "num_hidden_layers": 3, "attention_window_size": 8, "lru_width": 32, "logits_soft_cap": 2.0,
    },
    "lfm2": LLAMA | {"layer_types": ["conv", "full_attention"]},
}  # fmt: skip


def made(kind: str, tokenizer, auto=AutoModelForCausalLM, **options):
    """A tiny random model, with weights so large that every mistake shows."""
    ends = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), **{**MODELS[kind], **ends, **options}
    )
    torch.manual_seed(0)
    model = auto.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model


@torch.no_grad()
def plain(model, prompt, response):
    """log p of each response token, by one pass over the sequence alone."""
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
    scores = logits.float().log_softmax(-1)
    return torch.stack([scores[len(prompt) - 1 + k, t] for k, t in enumerate(response)])


def close(found, right):
    torch.testing.assert_close(found, right, atol=1e-4, rtol=0)


@pytest.fixture(params=MODELS)
def model(request, tiny_tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield made(request.param, tiny_tokenizer)


def test_responses_that_share_a_prompt_score_as_each_alone(model):
    rows = [SharedRow.of(PROMPT, RESPONSES), SharedRow.of(PROMPT[:2], RESPONSES[:1])]
    batch = shared_batch(rows, pad=0)
    with torch.no_grad():
        found = response_log_probs(model, **batch)["log_probs"]
    right = [plain(model, PROMPT, response) for response in RESPONSES]
    right.append(plain(model, PROMPT[:2], RESPONSES[0]))
    close(found[batch["response_mask"]], torch.cat(right))
    assert not found[~batch["response_mask"]].any()


def test_packed_rows_score_as_each_alone(model):
    texts = [PROMPT + RESPONSES[0], [40, 41, 42], RESPONSES[1]]
    rows = [
        Row(torch.tensor(t[:-1]), torch.tensor(t[1:]), torch.ones(len(t) - 1, dtype=torch.bool))
        for t in texts
    ]
    with torch.no_grad():
        found = response_log_probs(model, **_packed(rows))["log_probs"][0]
    close(found, torch.cat([plain(model, text[:1], text[1:]) for text in texts]))


def test_padding_on_either_side_moves_nothing(model):
    batch = pad_prompt_and_response([PROMPT, [40]], [RESPONSES[0], [41, 42]], pad_token_id=0)
    right = [plain(model, PROMPT, RESPONSES[0]), plain(model, [40], [41, 42])]
    gap = 4  # padding of the second row, at its end; then at its start
    left = {name: torch.stack([t[0], t[1].roll(gap)]) for name, t in batch.items()}
    for some in (batch, left):
        with torch.no_grad():
            found = response_log_probs(model, **some)["log_probs"][some["response_mask"]]
        close(found, torch.cat(right))


def test_what_is_sampled_has_the_log_probabilities_of_a_plain_pass(model, tiny_tokenizer):
    model.generation_config = GenerationConfig(eos_token_id=None)
    prompts = [PROMPT, [40, 41]]
    sampling = SamplingSettings(max_new_tokens=6, seed=1)
    done = generate(model, tiny_tokenizer, prompts, n=2, sampling=sampling)
    assert [c.prompt_token_ids for c in done] == [p for p in prompts for _ in range(2)]
    for completion in done:
        right = plain(model, completion.prompt_token_ids, completion.token_ids)
        close(torch.tensor(completion.log_probs), right)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bloom", "mpt", "falcon", "mistral"])
def test_a_reward_model_scores_responses_as_each_alone(kind, tiny_tokenizer):
    reward = RewardModel(made(kind, tiny_tokenizer, AutoModelForSequenceClassification,
                              num_labels=1))
    texts = [" 12 apples", " 30", " more apples now"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = score(reward, tiny_tokenizer, ["Nora has"] * 3, texts)
    for text, found in zip(texts, together, strict=True):
        ids = [token for part in ("Nora has", text) for token in tiny_tokenizer(part)["input_ids"]]
        body = getattr(reward.model, reward.model.base_model_prefix)
        with torch.no_grad():
            hidden = body(input_ids=torch.tensor([[*ids, 0]]), use_cache=False).last_hidden_state
            right = float(reward.model.score(hidden[0, -1]))
        assert found == pytest.approx(right, abs=1e-4)


def test_values_are_read_where_the_output_layer_reads(tiny_tokenizer):
    """OPT-350m's output layer reads 16 numbers of a model that is 32 wide."""
    model = made("opt", tiny_tokenizer)
    batch = shared_batch([SharedRow.of(PROMPT, RESPONSES[:1])], pad=0)
    with value_head(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.nn.init.normal_(model.value_head.weight)
        _, values = scores_and_values(model, batch)
        ids = torch.tensor([PROMPT + RESPONSES[0][:-1]])
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state  # (1, T, 16)
        right = model.value_head(hidden)[0, len(PROMPT) - 1 :, 0]
    torch.testing.assert_close(values[batch["response_mask"]], right, atol=1e-5, rtol=1e-5)


def test_the_window_of_a_text_model_inside_a_larger_one():
    text = dict(LLAMA, vocab_size=100, max_position_embeddings=64)
    config = AutoConfig.for_model("gemma3", text_config=text)
    assert window_of(type("Model", (), {"config": config})) == 64
    mpt = AutoConfig.for_model("mpt", max_seq_len=96)
    assert window_of(type("Model", (), {"config": mpt})) == 96


# --- the probe itself -----------------------------------------------------------------------------


def test_a_qwen_model_keeps_every_fast_way(tiny_random_model):
    model, tokenizer = tiny_random_model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(model, tokenizer, ["Nora"], n=2, sampling=SamplingSettings(max_new_tokens=2))
        for responses in (RESPONSES, RESPONSES[:1]):
            row = SharedRow.of(PROMPT, responses)
            response_log_probs(model, **shared_batch([row], pad=0))
        response_log_probs(model, **pad_prompt_and_response([PROMPT], RESPONSES[:1], 0))
    found = probes._verdicts[model]
    assert {way for way, _ in found} == {"cached", "shared", "packed", "padded", "scaling"}
    assert all(found.values())


def test_a_cache_of_convolutions_and_keys_is_repeated_and_chosen_from(tiny_tokenizer):
    assert may_cache(made("lfm2", tiny_tokenizer))


def test_the_rounding_of_int8_is_no_other_reading():
    """Its layers round what they read to 1/127 of the largest number: some percent of a score."""
    model, tokenizer = load_reward_model(BASE, quantization="int8", device="cpu")
    responses = [" 3 apples", " one of them is blue", " no"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score(model, tokenizer, ["Nora has 3 apples."] * 3, responses)
    alone = [score(model, tokenizer, ["Nora has 3 apples."], [text])[0] for text in responses]
    assert torch.tensor(found).sub(torch.tensor(alone)).abs().max() < 0.2


def test_a_way_is_tried_once_and_said_once(tiny_tokenizer):
    model, passes = made("bloom", tiny_tokenizer), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    batch = shared_batch([SharedRow.of(PROMPT, RESPONSES)], pad=0)
    with pytest.warns(UserWarning, match="BloomForCausalLM responses that share") as said:
        response_log_probs(model, **batch)
    assert len(said) == 1 and "\n" not in str(said[0].message)
    before = len(passes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        response_log_probs(model, **batch)
    assert len(passes) == before + 1


def test_a_trial_leaves_the_model_and_the_random_states_as_they_were(tiny_random_model):
    model = _with_new_lora(tiny_random_model[0], LoraSettings(rank=2, dropout=0.5)).train()
    model.base_model.model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state, weights = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    response_log_probs(model, **shared_batch([SharedRow.of(PROMPT, RESPONSES)], pad=0))
    drawn = torch.get_rng_state()
    torch.set_rng_state(state)
    response_log_probs(model, **shared_batch([SharedRow.of(PROMPT, RESPONSES)], pad=0))
    assert torch.equal(torch.get_rng_state(), drawn)  # the first call drew no more than the second
    assert [module.training for module in model.modules()] == modes
    assert all(map(torch.equal, model.parameters(), weights))
    assert all(p.grad is None for p in model.parameters())


def test_a_trial_without_finite_scores_says_nothing(tiny_random_model):
    model, _ = tiny_random_model
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        response_log_probs(model, **shared_batch([SharedRow.of(PROMPT, RESPONSES)], pad=0))
    assert not probes._verdicts[model]


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324])
def test_a_tiny_temperature_takes_the_most_probable_token(temperature):
    logits = torch.tensor([[1.0, 9.0, 8.999], [-3.0, -1.0, -2.0]])
    tokens, log_probs = next_tokens(logits, torch.tensor([0.0, 0.999]), temperature)
    assert tokens.tolist() == [1, 1]
    assert log_probs.tolist() == [0.0, 0.0]

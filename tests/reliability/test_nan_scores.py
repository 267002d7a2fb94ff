"""Scores that are no numbers are never sampled from: a sentence names the prompt and the token."""

import math

import pytest
import torch

from helpers.decoding import next_tokens
from helpers.rollout import Completion, Row, SamplingSettings, StopRules, generate
from helpers.streaming import stream


def breaks_at(model, token_id):
    """The model gives nan wherever it reads this token."""
    def spoil(_, inputs, output):
        return output.masked_fill((inputs[0] == token_id)[..., None], math.nan)

    model.get_input_embeddings().register_forward_hook(spoil)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[math.nan, 0.0, 1.0], [math.inf, 0.0, 1.0], [-math.inf] * 3])
def test_the_row_is_named(bad, temperature):
    logits = torch.tensor([[0.0, 1.0, -math.inf], bad])
    with pytest.raises(ValueError, match="no numbers .nan or inf. at row 1, so no token"):
        next_tokens(logits, torch.tensor([0.5, 0.5]), temperature, top_p=0.9, top_k=2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_masked_vocabulary_is_sampled_from(temperature):
    logits = torch.tensor([[-math.inf, 2.0, -math.inf, 1.0]]).expand(64, -1)
    tokens, log_probs = next_tokens(logits, torch.rand(64), temperature)
    assert set(tokens.tolist()) <= {1, 3}
    assert log_probs[tokens == 1][0].item() == pytest.approx(-math.log(1 + math.exp(-1)))


def test_the_prompt_and_the_token_are_named(tiny_random_model):
    model, tokenizer = tiny_random_model
    greedy = SamplingSettings(temperature=0, max_new_tokens=6)
    prompts = ["1 + 1 =", "Nora has 12 apples"]
    done = generate(model, tokenizer, prompts, sampling=greedy)[1]
    breaks_at(model, done.token_ids[0])
    with pytest.raises(ValueError, match="at token 2 of the response to 'Nora has 12 apples'"):
        generate(model, tokenizer, prompts[1:], sampling=greedy)
    with pytest.raises(ValueError, match="at token 2 of the response to 'Nora has 12 apples'"):
        list(stream(model, tokenizer, prompts[1], sampling=greedy))


def test_another_engine_s_nan_is_not_kept(tiny_random_model):
    rules = StopRules(*tiny_random_model, SamplingSettings())
    with pytest.raises(ValueError, match="at token 1 of the response to"):
        rules.append(Row(Completion([5]), 4), 7, math.nan)

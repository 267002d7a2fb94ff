"""helpers.prompt_cache: the same logits as reading every row in full, and only where it may."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.decoding import next_logits, prefill
from helpers.prompt_cache import SharedPromptLayer
from helpers.rollout import SamplingSettings, generate

PROMPTS = ["Nora has 12 apples and buys 30 more.", "Where", "How many apples? <think>"]


def read_prompts(model, tokenizer, n=4, steps=6):
    prompt_ids = tokenizer(PROMPTS)["input_ids"]
    with torch.no_grad():
        return prompt_ids, prefill(model, prompt_ids, n, steps, pad_token_id=0)


def test_logits_are_those_of_each_row_read_in_full(tiny_random_model):
    model, tokenizer = tiny_random_model
    prompt_ids, (cache, mask, logits) = read_prompts(model, tokenizer)
    rows = [list(ids) for ids in prompt_ids for _ in range(4)]
    random = torch.Generator().manual_seed(0)
    for step in range(6):
        if step in (2, 4):  # rows that have ended are dropped: three, then a whole prompt
            kept = torch.tensor([k for k in range(len(rows)) if k % 4 or (step == 4 and k > 2)])
            cache.reorder_cache(kept)
            mask, rows = mask[kept], [rows[k] for k in kept]
        tokens = torch.randint(len(tokenizer), (len(rows),), generator=random)
        rows = [[*row, int(token)] for row, token in zip(rows, tokens, strict=True)]
        with torch.no_grad():
            logits = next_logits(model, cache, tokens, mask[:, : cache.get_seq_length() + 1])
            alone = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in rows])
        torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)


def test_a_prompt_is_kept_once_and_the_model_as_it_was(tiny_random_model):
    model, tokenizer = tiny_random_model
    before = model.config._attn_implementation
    prompt_ids, (cache, mask, logits) = read_prompts(model, tokenizer)
    width = max(map(len, prompt_ids))
    assert all(layer.prompt_keys.shape[::2] == (3, width) for layer in cache.layers)
    assert all(layer.keys.shape[::2] == (12, 6) for layer in cache.layers)
    with pytest.raises(RuntimeError):  # logits of another number of rows than the cache has
        next_logits(model, cache, torch.zeros(5, dtype=torch.long), mask[:5, : width + 1])
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("other", ["llama", "bfloat16", "eager"])
def test_other_models_decode_without_it(tiny_random_model, other):
    model, tokenizer = tiny_random_model
    if other == "llama":
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, eos_token_id=0,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
    elif other == "bfloat16":
        model = model.to(torch.bfloat16)
    else:
        model.set_attn_implementation("eager")
    _, (cache, _, _) = read_prompts(model, tokenizer)
    assert not any(isinstance(layer, SharedPromptLayer) for layer in cache.layers)
    sampling = SamplingSettings(temperature=0.8, max_new_tokens=8, seed=1)
    drawn = generate(model, tokenizer, PROMPTS, n=4, sampling=sampling)
    assert [len(completion.token_ids) > 0 for completion in drawn] == [True] * 12

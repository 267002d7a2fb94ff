"""Miniatures keep what the true architectures differ in, and a profile runs on them."""

import json

import pytest
import torch
from transformers import AutoConfig

from helpers.layers import AwqLinear
from helpers.models import load_model
from helpers.rollout import SamplingSettings, generate
from workbook.profiles import load_profile
from workbook.rehearse import SHAPES, miniature, rehearsal

BASE = "workbook/assets/base"


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path / "the runs"))


@pytest.mark.parametrize("profile", ["small", "full"])
def test_every_model_of_the_profiles_has_a_shape_and_the_overrides_are_valid(profile):
    loaded = load_profile(profile, "smoke")
    overrides = rehearsal(loaded)
    small = load_profile(profile, "smoke", overrides)
    assert "rehearsal" in small.models.maths and " " in small.models.qa
    assert small.data.maths_test.endswith("maths_test.jsonl")


def test_a_plain_miniature_has_biases_heads_and_a_wide_output_layer():
    folder = miniature("Qwen/Qwen2.5-Math-1.5B", BASE)
    config = AutoConfig.from_pretrained(folder)
    true = SHAPES["Qwen/Qwen2.5-Math-1.5B"]
    assert (config.num_attention_heads, config.num_key_value_heads) == (true.heads, true.key_heads)
    model, tokenizer = load_model(folder)
    assert model.model.layers[0].self_attn.q_proj.bias is not None
    assert model.config.vocab_size > len(tokenizer)


def test_an_awq_miniature_is_stored_in_four_bits_and_has_no_biases():
    model, _ = load_model(miniature("Qwen/Qwen3-8B-AWQ", BASE))
    query = model.model.layers[0].self_attn.q_proj
    assert isinstance(query, AwqLinear) and query.bias is None
    assert hasattr(model.model.layers[0].self_attn, "q_norm")


def test_rollouts_ignore_the_defaults_that_a_miniature_carries():
    folder = miniature("Qwen/Qwen2.5-7B-Instruct", BASE)
    assert json.loads((folder / "generation_config.json").read_text())["top_k"] == 20
    model, tokenizer = load_model(folder)
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    greedy = SamplingSettings(temperature=0.0, max_new_tokens=4)
    twice = [generate(model, tokenizer, ["One."], sampling=greedy)[0].token_ids for _ in range(2)]
    assert twice[0] == twice[1]


def test_a_model_without_a_shape_is_named():
    profile = load_profile("small", "smoke", ["models.maths=some/other"])
    with pytest.raises(ValueError, match="small: some/other cannot be rehearsed; known: Qwen"):
        rehearsal(profile)

"""The shipped base model and tokenizer: format, sizes, and measurements of these weights."""

import functools
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from helpers.evaluation import file_digest
from helpers.models import load_model
from helpers.prompts import load_template, render
from helpers.rewards import r1_zero_reward
from helpers.rollout import SamplingSettings, generate
from workbook.world.card import MEASURED, card_text
from workbook.world.maths import sample_problems
from workbook.world.tokenizer import train_tokenizer

ASSETS = Path(__file__).parents[2] / "workbook" / "assets"
BASE = ASSETS / "base"


@functools.cache
def shipped_tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture
def tokenizer():
    return shipped_tokenizer()


def test_loads_with_plain_transformers():
    model = AutoModelForCausalLM.from_pretrained(BASE)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert 2e6 <= sum(p.numel() for p in model.parameters()) <= 5e6


def test_weights_are_small_bf16_safetensors_in_multiples_of_64():
    assert sum(f.stat().st_size for f in BASE.iterdir()) <= 12_000_000
    with safe_open(BASE / "model.safetensors", "pt") as weights:
        assert {str(weights.get_slice(name).get_dtype()) for name in weights.keys()} == {"BF16"}
    config = AutoConfig.from_pretrained(BASE)
    for width in (config.hidden_size, config.intermediate_size, config.vocab_size):
        assert width % 64 == 0
    assert config.model_type == "qwen2" and config.tie_word_embeddings


def test_assets_fit_in_25_megabytes():
    assert sum(f.stat().st_size for f in ASSETS.rglob("*") if f.is_file()) <= 25_000_000


def test_end_is_padding_and_the_chat_template_works(tokenizer):
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    chat = [{"role": "user", "content": "2 + 2?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    whole = tokenizer.apply_chat_template(
        [*chat, {"role": "assistant", "content": "4"}], tokenize=False
    )
    assert whole.startswith(text)


def test_every_digit_is_one_token(tokenizer):
    tokens = tokenizer.tokenize("In rows: 12*9=108. 1,234.5 and x2")
    assert not [token for token in tokens if sum(c.isdigit() for c in token) and len(token) > 1]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
@example("\uf900")  # a character that has another canonical form
@example("数学 Ünïcode \U0001f600 1,234")
def test_any_text_round_trips_in_its_canonical_form(text):
    tokenizer = shipped_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_a_tokenizer_follows_from_its_seed(tokenizer):
    first, second = (train_tokenizer(seed=4, document_count=2000) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert len(first) == len(tokenizer)
    assert first.all_special_tokens == tokenizer.all_special_tokens


def test_measurements_are_of_these_weights():
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    assert measured["weights"] == file_digest(BASE / "model.safetensors")
    assert len(measured["chain"]) >= 2
    assert (BASE / "README.md").read_text(encoding="utf-8") == card_text(measured)


def test_the_tuned_adapter_answers_in_the_format():
    problems = sample_problems(48, "test", seed=77)
    prompts = [render(load_template("r1_zero"), question=p.question) for p in problems]
    rates = []
    for adapter in (None, ASSETS / "adapters" / "sft"):
        model, tokenizer = load_model(BASE, adapter=adapter)
        texts = generate(
            model,
            tokenizer,
            prompts,
            sampling=SamplingSettings(temperature=0, max_new_tokens=96),
        )
        parts = [
            r1_zero_reward(c.text, str(p.final)) for c, p in zip(texts, problems, strict=True)
        ]
        rates.append(sum(part["format_reward"] for part in parts) / len(parts))
    assert rates[0] < 0.3 and rates[1] > 0.9

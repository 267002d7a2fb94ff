"""Fixtures shared by all tests: one thread, and models small enough to run at once."""

import os

# Before torch is imported: two threads on busy cores are many times slower than one.
# WORKBOOK_TEST_THREADS=2 runs the tests with two all the same: no test may depend on the number.
os.environ["OMP_NUM_THREADS"] = os.environ.get("WORKBOOK_TEST_THREADS", "1")

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

# A learner's run explores new examples; CI must not fail today on what passed yesterday. Neither
# has a deadline: on busy cores an example may take any time.
settings.register_profile("explore", deadline=None)
settings.register_profile("ci", derandomize=True, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "explore")

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

BASE_MODEL = Path(__file__).parent.parent / "workbook" / "assets" / "base"

TEXTS = [
    "Nora has 12 apples and buys 30 more. How many apples does she have now?",
    "<think> 12 + 30 = 42 </think> <answer> 42 </answer>",
    "Where did Luben study? Luben studied at the school of Nelgarton.",
    "Ein Preis von 18,50 €; 价格是十八元。",
]


def random_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on a few sentences; eos = pad, as in Qwen base models."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def random_qwen2(tokenizer, seed: int = 0) -> Qwen2ForCausalLM:
    """A Qwen2 with random weights, scaled so that its next-token distribution is not flat."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny_tokenizer():
    return random_tokenizer()


@pytest.fixture
def tiny_random_model(tiny_tokenizer):
    """(model, tokenizer): a fresh copy for each test, so that a test may train it."""
    return random_qwen2(tiny_tokenizer), tiny_tokenizer


@pytest.fixture(scope="session")
def tiny_folder(tiny_tokenizer, tmp_path_factory):
    """The folder of a saved random model with its tokenizer, to load from; do not write there."""
    folder = tmp_path_factory.mktemp("tiny") / "base"
    random_qwen2(tiny_tokenizer).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base_model():
    """(model, tokenizer): the course's own base model. Do not train it: it is shared."""
    from helpers.models import load_model

    return load_model(BASE_MODEL, device="cpu")

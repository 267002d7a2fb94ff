"""vLLM, in process on a CPU, reads the shipped checkpoints and continues as transformers does.

Run by `python3 -m workbook test --engines`, in an environment of its own.
"""

import os
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.engines
# Before vLLM is imported: one process, a small cache, nothing sent to anyone.
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
vllm = pytest.importorskip("vllm", reason="vLLM is not in this environment")

from helpers.models import load_model  # noqa: E402

ASSETS = Path(__file__).parents[2] / "workbook" / "assets"
PROMPTS = [
    "Question: Nora has 12 apples and buys 30 more. How many apples does she have now?\nAnswer:",
    "Question: A pen costs 3 euros. How much do 4 pens cost?\nAnswer:",
]


def vllm_tokens(folder: Path, prompts: list[list[int]], count: int, dtype) -> list[list[int]]:
    engine = vllm.LLM(str(folder), dtype=dtype, enforce_eager=True, max_model_len=256, seed=0)
    settings = vllm.SamplingParams(temperature=0.0, max_tokens=count)
    inputs = [{"prompt_token_ids": ids} for ids in prompts]
    return [list(out.outputs[0].token_ids) for out in engine.generate(inputs, settings)]


def transformers_tokens(folder: Path, prompts: list[list[int]], count: int) -> list[list[int]]:
    model, _ = load_model(folder, device="cpu", dtype="float32")
    results = []
    for ids in prompts:
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=count, do_sample=False, repetition_penalty=1.0
        )
        results.append(out[0, len(ids) :].tolist())
    return results


@pytest.fixture(scope="module")
def prompts():
    _, tokenizer = load_model(ASSETS / "base", device="cpu")
    return [tokenizer(text)["input_ids"] for text in PROMPTS]


def test_greedy_tokens_are_equal(prompts):
    found = vllm_tokens(ASSETS / "base", prompts, 48, "float32")
    assert found == transformers_tokens(ASSETS / "base", prompts, 48)


def test_awq_checkpoint_is_read(prompts):
    """Its kernel computes in half precision, so only the first tokens must be the same."""
    found = vllm_tokens(ASSETS / "base-awq", prompts, 48, "bfloat16")
    expected = transformers_tokens(ASSETS / "base-awq", prompts, 48)
    print(found, expected)
    assert [ids[:8] for ids in found] == [ids[:8] for ids in expected]

"""GRPO with vLLM as the sampler: it learns, and the sampler keeps up with the policy.

Run by `python3 -m workbook test --engines`, in an environment of its own.
"""

from pathlib import Path

import pytest

from helpers.models import LoraSettings, load_model
from helpers.rollout import SamplingSettings, generate
from helpers.training import GRPOSettings, PPOSettings, train_grpo, train_ppo

pytestmark = pytest.mark.engines
pytest.importorskip("vllm", reason="vLLM is not in this environment")

ASSETS = Path(__file__).parents[2] / "workbook" / "assets"
BASE = ASSETS / "base"
PROMPTS = [f"Question: What is {a} plus {b}?\nAnswer:" for a in range(2, 6) for b in (3, 7)]
DATA = [{"prompt": prompt, "gold_answer": ""} for prompt in PROMPTS]
STEPS = 6


def short_answer(response: str, gold: str) -> dict[str, float]:
    """Pays for a short answer: something that a few steps can teach."""
    short = float(len(response) < 12)
    return {"format_reward": short, "answer_reward": short, "reward": short}


def train(engine: str, base=BASE, dtype="auto", **changes):
    model, tokenizer = load_model(base, lora=LoraSettings(rank=8), device="cpu", dtype=dtype)
    settings = GRPOSettings(max_steps=STEPS, prompts_per_step=8, samples_per_prompt=8,
                            max_new_tokens=24, lr=2e-3, seed=1, progress=False, **changes)
    run = train_grpo(model, DATA, settings, tokenizer=tokenizer, reward_fn=short_answer,
                     engine=engine)
    return model, tokenizer, run.metrics


@pytest.mark.parametrize("cap", [None, 2.0], ids=["its log-probs", "corrected"])
def test_it_learns_and_the_sampler_follows(cap):
    model, tokenizer, metrics = train("vllm", importance_cap=cap)
    rewards = [record["reward_mean"] for record in metrics]
    assert max(rewards[-2:]) > rewards[0] + 0.15, rewards
    # A sampler that still had the weights of the step before would be off by far more.
    assert max(record["ratio_gap"] for record in metrics) < 1e-3
    if cap:
        assert all(record["importance_weight"] == pytest.approx(1, abs=1e-4) for record in metrics)
    greedy = SamplingSettings(temperature=0, max_new_tokens=24)
    ours, theirs = (
        [c.token_ids for c in generate(model, tokenizer, PROMPTS, sampling=greedy, engine=engine)]
        for engine in ("transformers", "vllm")
    )
    assert ours == theirs


def test_ppo_takes_its_samples_too():
    """One step is many updates here, so a sampler that did not follow would be far off."""
    model, tokenizer = load_model(BASE, lora=LoraSettings(rank=8), device="cpu")
    settings = PPOSettings(max_steps=STEPS, prompts_per_step=8, samples_per_prompt=8,
                           max_new_tokens=24, lr=2e-3, seed=1, progress=False)
    run = train_ppo(model, DATA, settings, tokenizer=tokenizer, reward_fn=short_answer,
                    engine="vllm")
    rewards = [record["reward_mean"] for record in run.metrics]
    assert max(rewards[-2:]) > rewards[0] + 0.15, rewards
    assert max(record["ratio_gap"] for record in run.metrics) < 1e-3


def test_half_precision_is_sampled_in_half_precision():
    _, _, metrics = train("vllm", precision="bfloat16", importance_cap=2.0)
    weights = [record["importance_weight"] for record in metrics]
    assert weights == pytest.approx([1.0] * STEPS, abs=0.05) and set(weights) != {1.0}
    rewards = [record["reward_mean"] for record in metrics]
    assert max(rewards[-2:]) > rewards[0] + 0.15, rewards


def test_adapters_over_an_awq_base_learn_from_its_samples():
    """As lesson 07 trains on the full profile: the packed base is vLLM's, the adapter is pushed."""
    model, tokenizer, metrics = train("vllm", ASSETS / "base-awq", "bfloat16", importance_cap=2.0)
    rewards = [record["reward_mean"] for record in metrics]
    assert max(rewards[-2:]) > rewards[0] + 0.15, rewards
    weights = [record["importance_weight"] for record in metrics]
    assert weights == pytest.approx([1.0] * STEPS, abs=0.05) and set(weights) != {1.0}
    greedy = SamplingSettings(temperature=0, max_new_tokens=24)
    lengths = [
        sum(len(c.text) for c in generate(model, tokenizer, PROMPTS, sampling=greedy, engine=e))
        for e in ("transformers", "vllm")
    ]
    with model.disable_adapter():
        before = generate(model, tokenizer, PROMPTS, sampling=greedy)
    # Half precision may tell two greedy texts apart, but not the policy from what it was.
    assert lengths[1] < 0.8 * sum(len(c.text) for c in before), (lengths, before)
    assert lengths[1] == pytest.approx(lengths[0], rel=0.25)


def test_a_run_is_repeated_exactly():
    first, second = (train("vllm")[2] for _ in range(2))
    assert [r["loss"] for r in first] == [r["loss"] for r in second]
    assert [r["reward_mean"] for r in first] == [r["reward_mean"] for r in second]


def test_a_sampler_that_is_behind_would_be_seen(monkeypatch):
    """The same run with updates that never arrive: the ratio leaves 1."""
    from helpers.vllm_engine import VLLMEngine

    model, tokenizer = load_model(BASE, lora=LoraSettings(rank=8), device="cpu")
    engine = VLLMEngine(model, tokenizer)
    monkeypatch.setattr(engine, "update", lambda model: None)
    settings = GRPOSettings(max_steps=3, prompts_per_step=8, samples_per_prompt=8,
                            max_new_tokens=24, lr=2e-3, seed=1, progress=False)
    run = train_grpo(model, DATA, settings, tokenizer=tokenizer, reward_fn=short_answer,
                     engine=engine)
    assert run.metrics[0]["ratio_gap"] < 1e-3 < 0.05 < run.metrics[-1]["ratio_gap"]
    engine.close()

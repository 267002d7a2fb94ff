"""What sampled and what is trained are one policy, or a sentence says how far they are apart."""

import copy
import math
import warnings

import pytest
import torch

from helpers.diagnose import diagnose
from helpers.diagnose_rl import rollout_symptoms
from helpers.models import LoraSettings, load_model
from helpers.training import GRPOSettings, train_grpo
from helpers.training.engines import TransformersEngine
from tests.helpers.grpo_world import DATA, settings, train, train_by_ppo, vowels

MOVED = 0.25  # nats, a number that float32 holds exactly


class Shifted(TransformersEngine):
    """A sampler that is unlike the trainer: its log-probability of every second token is off."""

    def sample(self, prompts, n, sampling, *, first=0):
        found = super().sample(prompts, n, sampling, first=first)
        for completion in found:
            completion.log_probs[::2] = [value + MOVED for value in completion.log_probs[::2]]
        return found


class Float32(TransformersEngine):
    """Samples in float32, whatever the model is trained in."""

    def update(self, model):
        self.model = copy.deepcopy(model).float()


def shifted_run(folder, **changes):
    model, tokenizer = load_model(folder, lora=LoraSettings(rank=4), device="cpu")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = train_grpo(model, DATA, settings(**changes), tokenizer=tokenizer, reward_fn=vowels,
                         engine=Shifted(model, tokenizer))
    return run, [str(one.message) for one in said if "off the sampler's" in str(one.message)]


def test_the_gap_is_said_once_with_its_size_and_the_cures(tiny_folder):
    run, (said,) = shifted_run(tiny_folder)
    assert "first update of step 1 " in said and "up to 0.25 nats" in said
    assert "float32" in said and "importance_cap=2.0" in said and "\n" not in said
    gaps = [record["sampler_gap"] for record in run.metrics]
    assert gaps == pytest.approx([MOVED] * 3, abs=1e-3)
    assert diagnose(run) != []


def test_importance_weights_are_the_cure_on_the_transformers_engine(tiny_folder):
    run, said = shifted_run(tiny_folder, importance_cap=2.0)
    assert said == []
    for record in run.metrics:
        assert record["ratio_gap"] < 1e-4  # the old log-probabilities are the trainer's own
        assert record["sampler_gap"] == pytest.approx(MOVED, abs=1e-3)
        assert math.exp(-MOVED) < record["importance_weight"] < 1


def test_a_weighted_step_is_the_plain_loss_times_the_ratios(tiny_folder):
    """The losses that reach `aggregate`, against exp(-0.25) at every second token by hand."""
    seen = []

    def spy(losses, mask, how="sequence_mean", constant=None, normalizer=None):
        seen.append((losses.detach(), mask))
        return (losses * mask).sum() / mask.sum()

    model, tokenizer = load_model(tiny_folder, lora=LoraSettings(rank=4), device="cpu")
    chosen = settings(max_steps=1, importance_cap=2.0, micro_batch_tokens=10_000)
    run = train_grpo(model, DATA, chosen, tokenizer=tokenizer, reward_fn=vowels,
                     functions={"aggregate": spy}, engine=Shifted(model, tokenizer))
    (losses, mask), = seen
    # Before an update the ratio is 1, so a token's loss is minus its advantage times its weight.
    advantages = {round(-a, 4) for group in run.rollouts for a in group["advantages"] if a}
    assert mask[:, 1].sum() > 4 and {round(float(x), 4) for x in losses[:, 1]} <= advantages
    weights = (losses[:, 0] / losses[:, 1])[mask[:, 1]]
    assert weights.tolist() == pytest.approx([math.exp(-MOVED)] * len(weights), rel=1e-4)


@pytest.mark.parametrize("trainer", [train, train_by_ppo])
def test_one_arithmetic_is_not_warned_of(tiny_folder, trainer, recwarn):
    record = trainer(tiny_folder, max_steps=1).metrics[0]
    assert record["sampler_gap"] < 0.001
    assert not [one for one in recwarn if "off the sampler's" in str(one.message)]


def test_half_precision_is_named(tiny_folder, recwarn):
    """A model with sharp logits in bfloat16, and a sampler that computes in float32."""
    model, tokenizer = load_model(tiny_folder, lora=LoraSettings(rank=4), device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" not in name and parameter.dim() > 1:
                parameter.mul_(4)
    model.to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    runs = {}
    for cap in (None, 2.0):
        chosen = settings(importance_cap=cap, lr=1e-6)
        own = copy.deepcopy(model)
        runs[cap] = train_grpo(own, DATA, chosen, tokenizer=tokenizer, reward_fn=vowels,
                               engine=Float32(own, tokenizer))
    assert min(record["sampler_gap"] for record in runs[None].metrics) > 0.05
    named = {cap: [symptom.name for symptom in diagnose(run)] for cap, run in runs.items()}
    assert "sampler and trainer disagree" in named[None]
    assert "stale old log-probs" not in named[None]
    assert "sampler and trainer disagree" not in named[2.0]
    assert len([one for one in recwarn if "off the sampler's" in str(one.message)]) == 1


def test_a_gap_that_grows_is_not_one_of_precision():
    record = {"groups_with_signal": 1.0, "ratio_gap": 2.0, "sampler_gap": 0.01}
    metrics = [record, *[record | {"sampler_gap": 1.1}] * 4]
    half = vars(GRPOSettings(precision="bfloat16"))
    assert [name for name, *_ in rollout_symptoms(metrics, half)] == ["stale old log-probs"]
    metrics = [record | {"sampler_gap": 1.1}] * 5
    named = rollout_symptoms(metrics, half)
    assert [name for name, *_ in named] == ["sampler and trainer disagree"]
    assert "1.1 nats" in named[0][1] and "importance_cap=2.0" in named[0][2]

"""Diagnosis of runs whose metrics are missing, None or nan: a name, and never a traceback."""

import math

import pytest

from helpers.diagnose import diagnose
from helpers.strategies import tree_of_thought
from helpers.strategies.tree import Step
from helpers.training import (
    GRPOSettings,
    PreferenceSettings,
    RewardSettings,
    SFTSettings,
    train_preference,
    train_reward_model,
    train_sft,
)
from helpers.training.loop import without_nan
from helpers.training.rollout_loop import mean_if_finite
from tests.helpers.grpo_world import parts, train
from tests.helpers.test_diagnose import PAIRS, ROWS

PREFERENCES = PreferenceSettings(max_steps=3, batch_size=4, progress=False)


class Run:
    def __init__(self, metrics, settings, method):
        examples = {"used": 4, "cut": {}}
        self.metrics, self.settings = metrics, settings
        self.summary = {"method": method, "examples": examples}


def names(run):
    return [symptom.name for symptom in diagnose(run)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_run_of_losses_that_are_no_numbers_is_named(tiny_random_model, tmp_path, bad):
    def broken(*logps, **options):
        losses = logps[0] * bad
        return losses, losses.detach(), losses.detach()

    model, tokenizer = tiny_random_model
    with pytest.warns(UserWarning, match="was skipped"):
        run = train_preference(model, PAIRS, PREFERENCES, tokenizer=tokenizer,
                               functions={"dpo_loss": broken}, out_dir=tmp_path)
    assert names(run) == names(tmp_path) == ["loss is not a number"]
    (symptom,) = diagnose(run)
    assert "3 of 3 steps were skipped, the first at step 1" in symptom.evidence
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert "Infinity" not in (tmp_path / "metrics.jsonl").read_text()


def test_one_skipped_step_is_no_broken_run(tiny_random_model):
    model, tokenizer = tiny_random_model
    calls = []

    def broken_once(log_probs, mask, **options):
        from helpers.losses import sft_loss

        calls.append(1)
        return sft_loss(log_probs, mask, **options) * (math.nan if len(calls) == 2 else 1)

    chosen = SFTSettings(max_steps=8, batch_size=4, lr=1e-2, progress=False)
    with pytest.warns(UserWarning, match="Step 2 was skipped"):
        run = train_sft(model, ROWS, chosen, tokenizer=tokenizer,
                        functions={"sft_loss": broken_once})
    assert "loss is not a number" not in names(run)


def test_a_run_whose_rewards_are_no_numbers_is_named(tiny_folder):
    with pytest.warns(UserWarning, match="has the reward nan"):
        run = train(tiny_folder, reward_fn=lambda response, gold: parts(math.nan), max_steps=3)
    assert names(run) == ["rewards are no numbers"]


RECORD = {"step": 1, "loss": 0.1, "grad_norm": 1.0, "groups_with_signal": 1.0, "reward_mean": 0.5,
          "format_rate": 0.5, "accuracy": 0.5, "truncated": 0.0, "entropy": 1.0, "kl": 0.1,
          "ratio_gap": 0.0, "sampler_gap": 0.0, "bad_rewards": 0}


@pytest.mark.parametrize("gap", [None, math.nan])
@pytest.mark.parametrize("name", [name for name in RECORD if name not in ("step", "loss")])
def test_any_metric_may_be_missing(name, gap):
    settings = GRPOSettings()
    whole = [RECORD | {"step": k} for k in range(1, 7)]
    some = [row | ({name: gap} if k % 2 else {}) for k, row in enumerate(whole)]
    assert names(Run(some, settings, "grpo")) == []
    assert names(Run([row | {name: gap} for row in whole], settings, "grpo")) == []
    lacking = [{key: value for key, value in row.items() if key != name} for row in whole]
    if name != "groups_with_signal":  # which tells reinforcement from the rest
        assert names(Run(lacking, settings, "grpo")) == []


@pytest.mark.parametrize("name", ["loss", "chosen_reward", "rejected_logps", "grad_norm"])
def test_a_preference_run_with_gaps(name):
    record = {"loss": math.log(2), "grad_norm": 1.0, "chosen_reward": 0.0, "rejected_reward": 0.0,
              "chosen_logps": -9.0, "rejected_logps": -9.0, "pairs": 4}
    rows = [record | {"step": k, "epoch": k / 4, "loss": math.log(2) / k} for k in range(1, 13)]
    gaps = [row | ({name: None} if k in (0, 5) else {}) for k, row in enumerate(rows)]
    assert names(Run(gaps, PreferenceSettings(), "dpo")) == []


def test_metrics_hold_none_for_what_is_no_number():
    record = {"step": 3, "loss": math.nan, "kl": math.inf, "why": "x", "ok": 0.5, "none": None}
    assert without_nan(record) == record | {"loss": None, "kl": None}
    assert mean_if_finite([math.inf, -math.inf]) is None and mean_if_finite([1.0, 2.0]) == 1.5


def test_a_solution_without_a_rank_is_not_the_best():
    def steps(texts):
        return [[Step("a", 1, True), Step("b", 1, True)] for _ in texts]

    with pytest.raises(ValueError, match="score gave nan for a solution at level 1"):
        tree_of_thought(steps, lambda texts: [0.5, math.nan][: len(texts)])


@pytest.mark.parametrize("margin", [math.nan, math.inf, "wide"])
def test_a_margin_that_is_no_number_is_named_by_its_row(tiny_random_model, margin):
    model, tokenizer = tiny_random_model
    with pytest.raises(ValueError, match="Row 1 of the data: margin must be a finite number"):
        train_reward_model(model, [PAIRS[0], PAIRS[1] | {"margin": margin}],
                           RewardSettings(progress=False), tokenizer=tokenizer)

"""What the lessons claim is true of the recorded run: the keys are there, the numbers in range."""

import numpy as np
import pytest

from workbook.recorded import read_recorded

KEYS = {
    "01": "strict_format_rate strict_accuracy lenient_accuracy failure_categories pass_at_8",
    "02": "train_accuracy test_accuracy test_accuracy_clean noise_ceiling length_only_accuracy "
    "untrained_accuracy reward_mean reward_std better_data_mean worse_data_mean response_sets "
    "worse_better_than_better_count worse_worse_than_better_count length_correlation_before "
    "length_correlation_after best_of_n",
    "03": "format_rate_before format_rate_after accuracy_before accuracy_after lenient_before "
    "lenient_after methods sweep",
    "04": "accuracy_start accuracy_dpo win_rate_overtrained win_rate_fixed dpo_data_mean "
    "no_dpo_data_mean no_dpo_better_than_dpo_count no_dpo_worse_than_dpo_count beta_sweep methods",
    "05": "accuracy_start accuracy_grpo ablations reward_model_run qa_table seconds_per_step",
    "06": "strategies cot_lead",
    "07": "methods cot",
}


@pytest.mark.parametrize("lesson", KEYS)
def test_a_recorded_lesson_has_its_findings(lesson):
    found = read_recorded(lesson)
    assert set(KEYS[lesson].split()) <= set(found)
    assert (found["profile"], found["depth"]) == ("tiny", "full")


def test_the_reward_model_learns_its_pairs_by_heart():
    found = read_recorded("02")
    assert found["train_accuracy"] > 0.95
    assert 0.62 < found["test_accuracy"] < 0.85 < found["noise_ceiling"]
    assert found["test_accuracy"] > found["untrained_accuracy"]
    assert abs(found["length_correlation_after"]) < found["length_correlation_before"] / 2


def test_sft_teaches_the_format():
    found = read_recorded("03")
    assert found["format_rate_before"] < 0.1 and found["format_rate_after"] > 0.95
    gains = [rate - found["accuracy_before"] for rate in found["accuracy_of_seeds"]]
    assert len(gains) >= 2 and min(gains) > 0.25
    assert set(found["methods"]) == {"full", "lora", "nf4", "awq"}


def test_dpo_helps_on_its_own_pairs_and_harms_on_another_policys():
    found = read_recorded("04")
    starts = found["start_of_each_seed"]
    assert len(starts) >= 3
    assert all(rate > start for rate, start in zip(found["accuracy_dpo"], starts, strict=True))
    own, theirs = found["at_large"]["arms"].values()
    for judge in ("model", "gold"):
        assert theirs["all"][judge]["share"][2] < 0.5 < own["all"][judge]["share"][1]
    curve = found["at_large"]["curves"]["another policy's (off-policy)"]
    assert curve[-1]["accuracy"] >= max(point["accuracy"] for point in curve) - 0.02
    assert curve[-1]["margin"] == max(point["margin"] for point in curve)


def test_grpo_gains_and_a_learned_reward_is_over_optimised():
    found = read_recorded("05")
    gains = [rate - found["accuracy_start"] for rate in found["accuracy_grpo"]]
    assert len(gains) >= 2 and np.mean(gains) > 0.2
    assert any(found["ablations"]["off-policy, no clip"]["collapsed"])
    assert not any(found["ablations"]["off-policy, clip"]["collapsed"])
    free, held = found["reward_model_run"].values()
    assert free["proxy"][-1] > free["proxy"][0]
    assert np.mean(free["gold"][-5:]) < np.mean(free["gold"][:5]) - 0.1  # it peaked before
    assert max(np.convolve(free["gold"], np.ones(5) / 5, "valid")) > np.mean(free["gold"][:5]) + 0.1
    assert np.mean(held["gold"][-5:]) > np.mean(held["gold"][:5])


def test_reasoning_helps_the_base_model_and_f1_rises_in_lesson_07():
    strategies = read_recorded("06")["strategies"]
    lead = strategies["cot"]["base"]["accuracy"] - strategies["zero_shot"]["base"]["accuracy"]
    assert len(strategies) == 7 and lead > 0.15
    methods = read_recorded("07")["methods"]
    assert set(methods) == {"base", "sft", "dpo", "grpo", "orpo", "kto"}
    assert all(
        methods["base"]["f1"] < found["f1"] for name, found in methods.items() if name != "base"
    )

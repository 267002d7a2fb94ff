"""helpers.training: settings, learning rates, and which examples make a step."""

import dataclasses

import pytest

from helpers.training import RewardSettings, SFTSettings
from helpers.training.batches import StepPlan, micro_batches
from helpers.training.loop import schedule_factor


@pytest.mark.parametrize("change, sentence", [
    ({"lr": -1}, "Setting lr must be above 0, but it is -1."),
    ({"lr": "fast"}, "Setting lr must be a number, but it is 'fast'."),
    ({"batch_size": 0}, "Setting batch_size must be 1 or more, but it is 0."),
    ({"batch_size": 2.5}, "Setting batch_size must be a whole number, but it is 2.5."),
    ({"batch_size": True}, "Setting batch_size must be a whole number, but it is True."),
    ({"num_epochs": None}, "Setting num_epochs must be a number, but it is None."),
    ({"schedule": "step"}, "one of linear, cosine, constant, but it is 'step'."),
    ({"warmup_ratio": 1.5}, "Setting warmup_ratio must be 1 or less, but it is 1.5."),
    ({"progress": "yes"}, "Setting progress must be true or false, but it is 'yes'."),
])
def test_a_wrong_value_is_named_in_one_sentence(change, sentence):
    with pytest.raises(ValueError) as error:
        SFTSettings(**change)
    assert sentence in str(error.value)


def test_a_value_that_is_no_yaml_is_answered_in_one_sentence(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 0.1")
    with pytest.raises(ValueError, match=r"^'lr=\[1' has a value that cannot be read: [^\n]*$"):
        SFTSettings.from_yaml(tmp_path / "a.yaml", "lr=[1")


def test_settings_load_from_yaml_and_overrides(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("model: {name: x}\nlr: 2e-4\nnum_epochs: 3\nbatch_size: 4\n")
    settings = SFTSettings.from_yaml(path, "lr=1e-3", "max_length=null", "batching=packed")
    assert (settings.lr, settings.num_epochs, settings.batch_size) == (1e-3, 3.0, 4)
    assert settings.batching == "packed" and settings.max_length is None
    assert dataclasses.replace(settings, lr=1).lr == 1.0
    with pytest.raises(ValueError, match="no setting 'num_epoch'; did you mean num_epochs"):
        SFTSettings.from_yaml(path, "num_epoch=1")
    with pytest.raises(ValueError, match="write it like lr=1e-4"):
        SFTSettings.from_yaml(path, "lr")
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match=str(path)):
        RewardSettings.from_yaml(path)


def test_packed_batches_are_for_sft_only():
    with pytest.raises(ValueError, match="batching must be one of length_grouped, random"):
        RewardSettings(batching="packed")


@pytest.mark.parametrize("schedule, expected", [
    ("linear", [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
    ("cosine", [0.5, 1, 1, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]),
    ("constant", [0.5] + [1] * 9),
])
def test_learning_rate_rises_and_falls(schedule, expected):
    settings = SFTSettings(schedule=schedule, warmup_ratio=0.2)
    found = [schedule_factor(step, 10, settings) for step in range(10)]
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("grouped", [False, True])
def test_each_epoch_visits_every_example_once_in_a_new_order(grouped):
    lengths = [(7 * i) % 31 + 1 for i in range(50)]
    plan = StepPlan(lengths, batch_size=8, seed=1, grouped=grouped)
    again = StepPlan(lengths, batch_size=8, seed=1, grouped=grouped)
    epochs = [[plan.rows(e * 7 + step) for step in range(7)] for e in range(2)]
    for steps in epochs:
        assert sorted(sum(steps, [])) == list(range(50))
        assert sorted(map(len, steps)) == [2] + [8] * 6
    assert epochs[0] != epochs[1]
    assert again.rows(9) == epochs[1][2]  # the plan needs no history
    other = StepPlan(lengths, batch_size=8, seed=2, grouped=grouped)
    assert [other.rows(step) for step in range(7)] != epochs[0]


def test_grouped_steps_hold_examples_of_like_length():
    lengths = [(37 * i) % 101 for i in range(320)]

    def padding(grouped):
        plan = StepPlan(lengths, batch_size=8, seed=0, grouped=grouped)
        rows = [[lengths[row] for row in plan.rows(step)] for step in range(40)]
        return sum(8 * max(row) - sum(row) for row in rows)

    assert padding(True) < padding(False) / 3


@pytest.mark.parametrize("count, size, processes", [(8, None, 2), (7, 2, 3), (1, 4, 2), (5, 1, 2)])
def test_micro_batches_share_out_a_step(count, size, processes):
    lengths = list(range(count, 0, -1))
    shares = [
        micro_batches(range(count), lengths, size=size, process=p, num_processes=processes)
        for p in range(processes)
    ]
    rows = [row for pieces in shares for piece in pieces for row in piece]
    assert sorted(rows) == list(range(count))
    assert max(len(piece) for pieces in shares for piece in pieces) <= (size or count)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1

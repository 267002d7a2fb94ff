"""S3's reading list: well formed, and every function that it names exists."""

import importlib

import pytest

import helpers.losses
import helpers.policy_losses
from workbook.build import sources
from workbook.reading_list import reading_list, reading_table


@pytest.mark.parametrize("entry", reading_list(), ids=lambda entry: entry.method)
def test_every_function_that_it_names_is_one_of_helpers(entry):
    for name in entry.functions:
        module, function = name.split(".")
        assert callable(getattr(importlib.import_module(f"helpers.{module}"), function))


def test_every_method_names_its_loss_where_helpers_has_one():
    losses = {name for name in vars(helpers.losses) if name.endswith("_loss")}
    losses |= {name for name in vars(helpers.policy_losses) if name.endswith("_loss")}
    for entry in reading_list():
        own = {name for name in losses if name.startswith(entry.method.lower())}
        assert entry.method == "PPO" or own  # PPO's two losses have names of their own
        named = {name.rpartition(".")[2] for name in entry.functions}
        assert named & losses and own <= named, entry.method


def test_it_holds_the_seven_methods_and_the_true_date_of_grpo():
    assert [entry.method for entry in reading_list()] == [
        "DPO", "IPO", "KTO", "ORPO", "SimPO", "PPO", "GRPO"]  # fmt: skip
    assert {entry.method: entry.release for entry in reading_list()}["GRPO"] == "2024/02"


def test_the_table_says_where_our_losses_stand():
    table = reading_table()
    assert table.loc["IPO", "our loss"] == "helpers.losses.ipo_loss"
    assert table.loc["DPO", "our loss"].startswith("helpers.losses.dpo_loss, ")
    assert set(table.loc[["PPO", "GRPO"], "lesson"]) == {"05"}
    assert table.loc["GRPO", "our loss"] == "helpers.losses.group_advantages, grpo_clip_loss"
    ppo = "helpers.policy_losses.gae, value_loss, helpers.losses.grpo_clip_loss"
    assert table.loc["PPO", "our loss"] == ppo


def test_lesson_04_shows_it():
    text = next(p for p in sources() if p.stem.startswith("04")).read_text(encoding="utf-8")
    assert "reading_table()" in text

"""Figures, monitors and widgets take rows with missing values, and show every name."""

import math
from types import SimpleNamespace

import matplotlib

matplotlib.use("agg")

import numpy as np
import pytest
import torch

from helpers import plotting, plotting_differences, plotting_rl
from workbook import monitor
from workbook.reward_explorer import explain, explanation_html
from workbook.rollout_browser import RolloutBrowser, group_html, has_signal

NAN = math.nan
RECORDS = [{"step": 1, "loss": None}, {"step": 2, "loss": 2.0, "eval_loss": NAN},
           {"step": 3, "loss": NAN}, {"step": 4, "loss": 1.0, "eval_loss": 0.5}, {"step": 5}]
GAP = (NAN, None, None)


def drawn(figure, tmp_path):
    figure.savefig(tmp_path / "figure.png", dpi=40)
    return figure.axes[0]


def legend(figure):
    return [text.get_text() for box in figure.legends for text in box.get_texts()]


@pytest.mark.parametrize("draw", [plotting.training_curves, plotting_rl.metric_grid])
def test_a_metric_of_some_steps_is_drawn_at_those(draw, tmp_path):
    figure = draw({"_a": RECORDS, "b": []}, ["loss", "eval_loss", "never"], title="t")
    drawn(figure, tmp_path)
    lines = [[line.get_xydata().tolist() for line in axes.lines if len(line.get_xydata())]
             for axes in figure.axes[:3]]
    assert lines == [[[[2, 2], [4, 1]]], [[[4, 0.5]]], []]
    assert figure.axes[1].lines[0].get_marker() != "None"  # one point has no line
    assert legend(figure) == ["_a", "b"]


FIGURES = {
    "rates": lambda: plotting.rates_with_intervals(
        {"r": {"_x": (0.5, 0.4, 0.6), "y": (0.5, None, None)}, "s": {"_x": GAP, "y": GAP}},
        title="t"),
    "rewards, bars": lambda: plotting.reward_distributions(
        {"_x": [0, 1, None], "y": [None, NAN]}, title="t"),
    "rewards, outlines": lambda: plotting.reward_distributions(
        {"_x": [*range(9), NAN, math.inf], "y": [None]}, title="t"),
    "categories": lambda: plotting.failure_categories({"r": {"_x": 1, "y": 2}}, title="t"),
    "sweep": lambda: plotting.sweep_curves(
        {"_x": {1: (0.5, 0.4, 0.6), 2: GAP}, "y": {1: (0.5, None, NAN), 2: (0.2, 0.1, 0.3)}},
        title="t", xlabel="n"),
    "best of n": lambda: plotting.best_of_n_curves(
        {"_x": {1: (0, 0, 0), 2: GAP}, "y": {1: (0, None, None), 2: (1, 0, 2)}}, title="t"),
    "peaks": lambda: plotting_rl.over_optimisation(
        {"_x": [[{"kl": 0.0, "gold": None}, {"kl": 0.1, "gold": 1.0}, {"gold": 2.0}]],
         "y": [[{"kl": None}]]}, title="t", keys=("gold",)),
    "tokens": lambda: plotting_rl.by_tokens({"_x": [{0: None, 9: 0.5}], "y": [{0: NAN}]},
                                            title="t"),
    "differences": lambda: plotting_differences.difference_forest(
        {"r": {"_x": GAP, "y": (0.1, None, None)}, "s": {"_x": (0.1, 0.0, 0.2)}}, title="t",
        xlabel="points"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_missing_values_and_underscores(name, tmp_path):
    figure = FIGURES[name]()
    drawn(figure, tmp_path)
    texts = legend(figure)
    assert [text.split(" (")[0] for text in texts] in (["_x", "y"], ["y", "_x"])


def test_what_has_no_names_in_its_legend(tmp_path):
    drawn(plotting.frontier({"a": (1, (0.5, 0.4, 0.6)), "b": (None, GAP), "c": (2, (0.1, None, 1))},
                            title="t", xlabel="x"), tmp_path)
    drawn(plotting.score_changes({"a": (NAN, None), "b": (0.1, 0.2)}, title="t"), tmp_path)
    drawn(plotting_rl.ablation_marks({"a": {"final": [None, 0.5], "best": [0.1, NAN]}}, title="t"),
          tmp_path)


def test_missing_cells_are_dashes_and_never_the_best():
    rows = {"a": {"m": NAN}, "b": {"m": 0.5}, "c": {"m": None}, "d": {"m": (0.2, None, NAN)}}
    table = plotting.method_table(rows, title="t").axes[0].tables[0]
    texts = [table[row, 0].get_text() for row in range(1, 5)]
    assert [text.get_text() for text in texts] == ["–", "0.500", "–", "0.200"]
    assert [text.get_fontweight() for text in texts] == ["normal", "bold", "normal", "normal"]


def test_counts_of_what_is_missing_stand_in_the_legend(tmp_path):
    figure = plotting.reward_distributions({"a": torch.tensor([0.0, 1.0, NAN])}, title="t")
    assert legend(figure) == ["a (mean 0.5, n = 2, 1 without a number)"]
    figure = plotting.better_worse_scatter([1.0, NAN, 2.0], [0.0, 1.0, None], title="t")
    drawn(figure, tmp_path)
    assert legend(figure)[0].startswith("labelled better scores higher (1 pairs, 100 %)")
    assert "without a score: 2 pairs" in legend(figure)
    with pytest.raises(ValueError, match="No pair has two scores"):
        plotting.better_worse_scatter([NAN], [1.0], title="t")


def test_a_group_left_out_of_its_step_is_left_out_of_the_figure(tmp_path):
    figure = plotting_rl.rewards_by_step(
        {1: [[1.0, None], [0.0, 1.0]], 2: [[NAN, 3.0]], 3: [[0.0, 0.0]]}, title="t")
    drawn(figure, tmp_path)
    shares = np.asarray(figure.axes[0].collections[0].get_array())
    assert shares.T.tolist() == [[0.5, 0.5], [0, 0], [1, 0]]
    points = np.concatenate([c.get_offsets()[:, 1] for c in figure.axes[1].collections])
    assert sorted(points.tolist()) == [0.0, 0.5]
    with pytest.raises(ValueError, match="No group has rewards"):
        plotting_rl.rewards_by_step({1: [[None, 1.0]]}, title="t")


def test_the_monitor_waits_for_a_metric_of_later_steps(monkeypatch):
    shown = []
    monkeypatch.setattr(monitor, "get_ipython", lambda: object())
    monkeypatch.setattr(monitor, "display", lambda figure, **_: shown.append(figure))
    run = SimpleNamespace(metrics=RECORDS[:1], summary={"total_steps": 5})
    monitor.live_monitor("eval_loss", "loss")(run, RECORDS[0])
    run.metrics = RECORDS
    monitor.live_monitor("eval_loss", "loss")(run, RECORDS[-1])
    titles = [figure.get_suptitle() for figure in shown]
    assert titles == ["Step 1 of 5", "Step 5 of 5: eval loss from 0.5 to 0.5"]


def group(**changes):
    return {"step": 1, "prompt": "2 + 2?", "gold": "4", "completions": ["4", "5"],
            "rewards": [None, 1.0], "advantages": [0.0, 0.0], "finish_reasons": ["eos", "eos"],
            "parts": [{"reward": None, "answer_reward": None}, {"reward": 1.0}],
            "tokens": [1, 1]} | changes


def test_the_browser_says_why_a_group_is_not_trained():
    page = group_html(group())
    assert "a reward is not a number, so the group is left out of the step" in page
    assert "all samples agree" not in page and "not a number<br>" in page
    assert not has_signal(group(advantages=[None, 0.0, NAN]))
    assert "0 of 2 right" in RolloutBrowser([group()]).prompt.options[0][0]


def test_a_score_that_is_no_number_is_explained_without_a_bar():
    found = explain("p", " 4. Or 5.", "4", score=lambda p, r: [NAN, *[1.0] * (len(r) - 1)],
                    gold=lambda *_: 0.5)
    assert "width:nan" not in explanation_html(found, "p", "4")


def test_a_name_with_dollars_is_no_formula(tmp_path):
    name = "from $5 to $10_000, $\\frac$"
    figures = [
        plotting.training_curves({name: RECORDS, "b": []}, ["loss"], title=name),
        plotting.score_changes({name: (0.4, 0.05)}, title=name),
        plotting.counts_grid({name: {name: (6, 6)}}, title=name),
        plotting.method_table({name: {name: 0.5}, "b": {name: 0.1}}, title=name),
        plotting.frontier({name: (1, (0.5, 0.4, 0.6))}, title=name, xlabel=name),
        plotting.failure_categories({name: {name: 1}}, title=name),
        plotting_rl.by_tokens({name: [{0: 0.4, 20_000: 0.6}]}, title=name, ylabel=name),
    ]
    for figure in figures:
        drawn(figure, tmp_path)
        assert figure.get_suptitle().replace("\n", " ") == name
        assert not figure._suptitle.get_parse_math()

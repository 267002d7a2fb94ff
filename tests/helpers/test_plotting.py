"""Figures: what is drawn, labelled and coloured, read from the figure itself."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pytest

from helpers import plotting

RATES = {
    "sampled": {"format": (0.03, 0.02, 0.05), "strict": (0.01, 0.0, 0.02)},
    "greedy": {"format": (0.06, 0.04, 0.08), "strict": (0.02, 0.01, 0.04)},
}


def draw(figure, tmp_path):
    """Render it, which is where layout errors show, and return its first axes."""
    figure.savefig(tmp_path / "figure.png", dpi=50)
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert plt.get_fignums() == []  # a notebook shows a figure once
    return figure.axes[0]


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_intervals_are_drawn_with_their_ends(tmp_path):
    figure = plotting.rates_with_intervals(RATES, title="Format is rare")
    axes = draw(figure, tmp_path)
    ends = {tuple(round(float(x), 6) for x, _ in segment)
            for lines in axes.collections for segment in lines.get_segments()}
    assert ends == {(0.02, 0.05), (0.0, 0.02), (0.04, 0.08), (0.01, 0.04)}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sampled", "greedy"]
    assert "95 %" in axes.get_xlabel() and figure.get_suptitle() == "Format is rare"


def test_a_published_value_is_a_dashed_line_with_its_source(tmp_path):
    figure = plotting.rates_with_intervals(
        RATES, title="t", published={"format": (0.025, "S0, row 11")}
    )
    axes = draw(figure, tmp_path)
    line = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert list(line.get_xdata()) == [0.025, 0.025]
    assert line.get_color() == plotting.METHOD_COLOURS["format"]
    assert "published format: 2.5 % (S0, row 11)" in legend_texts(figure)


def test_a_method_keeps_its_colour_in_every_figure():
    alone, among = plotting.colours(["DPO"]), plotting.colours(["base", "mine", "DPO", "other"])
    assert alone["DPO"] == among["DPO"] == plotting.METHOD_COLOURS["dpo"]
    assert len(set(among.values())) == 4


def test_stacked_bars_fill_the_whole_width(tmp_path):
    counts = {"base": {"correct": 1, "no format": 3}, "sft": {"correct": 6}}
    axes = draw(plotting.failure_categories(counts, title="t"), tmp_path)
    widths = [bar.get_width() for bar in axes.patches]
    assert sum(widths) == pytest.approx(2.0) and widths[:2] == [0.25, 0.75]
    assert axes.get_yticklabels()[1].get_text() == "sft\nn = 6"


def test_rewards_of_few_values_are_bars_and_continuous_ones_outlines(tmp_path):
    few = plotting.reward_distributions({"format": [0, 0, 0, 1.0]}, title="t")
    assert [bar.get_height() for bar in draw(few, tmp_path).patches] == [0.75, 0.25]
    assert legend_texts(few) == ["format (mean 0.25, n = 4)"]
    scores = {"better": [i / 7 for i in range(50)], "worse": [i / 9 for i in range(50)]}
    many = plotting.reward_distributions(scores, {"better": (3.1, "S4, row 67")}, title="t")
    axes = draw(many, tmp_path)
    assert any(line.get_linestyle() == "--" and line.get_xdata()[0] == 3.1 for line in axes.lines)
    assert any("S4, row 67" in text for text in legend_texts(many))


def test_curves_take_records_that_lack_a_metric(tmp_path):
    runs = {"grpo": [{"step": 0, "reward": 0.1}, {"step": 1}, {"step": 2, "reward": 0.3}]}
    figure = plotting.training_curves(runs, ["reward", "kl"], title="t")
    axes = draw(figure, tmp_path)
    assert list(axes.lines[0].get_xdata()) == [0, 2]
    assert figure.axes[-1].get_xlabel() == "optimiser step"


def test_the_best_of_a_column_is_bold_and_counts_are_not(tmp_path):
    # Where all are equal none is bold, and where two are best both are; lengths have no best.
    rows = {"base": {"F1": 0.41, "n": 500, "tag": 0.0, "length": 30.0},
            "DPO": {"F1": (0.515, 0.5, 0.53), "n": 500, "tag": 0.0, "length": 40.0},
            "KTO": {"F1": 0.515, "n": 500, "tag": 0.0, "length": 50.0}}
    axes = draw(plotting.method_table(rows, title="t"), tmp_path)
    cells = axes.tables[0].get_celld()
    bold = {place for place, cell in cells.items()
            if cell.get_text().get_fontweight() == "bold" and place[0] > 0 and place[1] >= 0}
    assert bold == {(2, 0), (3, 0)}
    assert cells[2, 0].get_text().get_text() == "0.515 [0.500, 0.530]"


def test_the_frontier_holds_only_what_nothing_cheaper_beats(tmp_path):
    points = {"a": (10, (0.2, 0.1, 0.3)), "b": (20, (0.5, 0.4, 0.6)), "c": (30, (0.4, 0.3, 0.5))}
    axes = draw(plotting.frontier(points, title="t", xlabel="tokens"), tmp_path)
    line = next(line for line in axes.lines if line.get_linestyle() == ":")
    assert list(line.get_ydata()) == [0.2, 0.5]


def test_a_long_title_is_wrapped_inside_the_figure(tmp_path):
    figure = plotting.rates_with_intervals(RATES, title="a long finding " * 12)
    draw(figure, tmp_path)
    assert "\n" in figure.get_suptitle()


def test_a_grid_of_counts_shows_each_count_and_shades_by_share(tmp_path):
    counts = {"hedging": {"weak": (3, 4), "strict": (0, 4)}, "echo": {"weak": (2, 2)}}
    axes = draw(plotting.counts_grid(counts, title="t"), tmp_path)
    assert [text.get_text() for text in axes.texts] == ["3 of 4", "0 of 4", "2 of 2", "–"]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.0], [1.0, 0.0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["weak", "strict"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["hedging", "echo"]


def test_the_scatter_counts_each_side_of_the_diagonal(tmp_path):
    figure = plotting.better_worse_scatter([3.0, 2.0, 1.0, 1.0], [1.0, 1.0, 2.0, 1.0], title="t")
    axes = draw(figure, tmp_path)
    texts = legend_texts(figure)
    assert "labelled better scores higher (2 pairs, 50 %)" in texts
    assert "labelled worse scores higher (1 pairs, 25 %)" in texts
    assert "tie (1 pairs, 25 %)" in texts
    above = axes.collections[1].get_offsets()
    assert [tuple(map(float, point)) for point in above] == [(1.0, 2.0)]
    (line,) = axes.lines
    assert list(line.get_xdata()) == list(line.get_ydata())


def test_best_of_n_has_a_line_and_a_band_for_each_reward(tmp_path):
    curves = {"reward model": {1: (0, 0, 0), 2: (0.5, 0.4, 0.6), 16: (1.5, 1.3, 1.7)},
              "gold reward": {1: (0, 0, 0), 2: (0.2, 0.1, 0.3), 16: (0.1, -0.2, 0.3)}}
    axes = draw(plotting.best_of_n_curves(curves, title="t"), tmp_path)
    assert [list(line.get_ydata()) for line in axes.lines] == [[0, 0.5, 1.5], [0, 0.2, 0.1]]
    assert axes.lines[0].get_color() == plotting.METHOD_COLOURS["reward model"]
    assert len(axes.collections) == 2 and axes.get_xscale() == "log"


def test_score_changes_has_two_bars_an_edit(tmp_path):
    changes = {"+ courtesy": (0.4, 0.05), "without 1": (-0.2, -1.0)}
    figure = plotting.score_changes(changes, title="t")
    axes = draw(figure, tmp_path)
    assert [bar.get_width() for bar in axes.patches] == [0.4, -0.2, 0.05, -1.0]
    assert legend_texts(figure) == ["reward model", "gold reward"]

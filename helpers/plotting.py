"""Every figure of the course: each function returns a matplotlib Figure and shows nothing itself.

Common to all: a palette that colour-blind readers can tell apart, the same colour for the same
method everywhere, intervals drawn, published values as dashed lines with their source, the finding
in the title (the caller writes it from the numbers).

An *interval* is a triple `(value, low, high)`; shares are between 0 and 1 and shown in percent.
What is missing (None, nan, a metric that a record lacks) is left out of a figure, never drawn as 0.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

Interval = tuple[float, float, float]
Records = Sequence[Mapping[str, float | None]]

# Okabe and Ito's palette, with the yellow left out: it cannot be read on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#6B7280"
METHOD_COLOURS = {
    "base": GREY,
    "sft": "#E69F00",
    "dpo": "#0072B2",
    "grpo": "#009E73",
    "kto": "#CC79A7",
    "orpo": "#56B4E9",
    "ppo": "#000000",
    "reward model": "#D55E00",
    "format": "#56B4E9",
    "strict": "#0072B2",
    "lenient": "#009E73",
}
WIDTH = 7.5  # inches: the width of a notebook's text column


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name: the fixed one of a method, else the next free one of the palette.

    Example: `colours(["base", "mine"])` gives base its grey and mine the palette's first colour.
    """
    fixed = {name: METHOD_COLOURS[name.lower()] for name in names if name.lower() in METHOD_COLOURS}
    free = [colour for colour in PALETTE if colour not in fixed.values()] or list(PALETTE)
    others = [name for name in names if name not in fixed]
    return fixed | {name: free[i % len(free)] for i, name in enumerate(others)}


def is_number(value) -> bool:
    """Whether there is a finite number: not None, nan or inf."""
    try:
        return math.isfinite(value)
    except TypeError:  # None, a text
        return False


def series(records: Records, key: str, along: str = "step") -> tuple[list[float], list[float]]:
    """The records that have both numbers, as two lists: a later metric, None and nan are left out.

    >>> series([{"step": 1, "eval_loss": None}, {"step": 2}, {"step": 3, "eval_loss": 0.5}],
    ...        "eval_loss")
    ([3], [0.5])
    """
    kept = [row for row in records if is_number(row.get(along)) and is_number(row.get(key))]
    return [row[along] for row in kept], [row[key] for row in kept]


def _numbers(values) -> np.ndarray:
    """As an array of floats; what is missing or infinite is nan."""
    found = np.array(list(values), dtype=float)
    return np.where(np.isfinite(found), found, np.nan)


def _known(values) -> np.ndarray:
    """The numbers among the values."""
    found = _numbers(values)
    return found[np.isfinite(found)]


_HIDDEN = "\u2060"  # a sign without width, which `_finish` takes off again


def _label(name) -> str:
    """matplotlib leaves names with a leading underscore out of a legend."""
    return f"{_HIDDEN}{name}" if str(name).startswith("_") else str(name)


def _spread(value: float, low, high):
    """What errorbar draws to both sides; nothing where there is no interval."""
    if not (is_number(low) and is_number(high)):
        return None
    return [[max(value - low, 0)], [max(high - value, 0)]]


def rates_with_intervals(
    rates: Mapping[str, Interval | Mapping[str, Interval]],
    *,
    title: str,
    published: Mapping[str, tuple[float, str]] | None = None,
    xlabel: str = "share of problems",
) -> Figure:
    """Rates with their intervals, one row a rate; a mapping of mappings makes a row of each group.

    published: series name -> (value, source), drawn as a dashed line in the colour of the series.

    Example: `rates_with_intervals({"greedy": {"format": (.03, .02, .05)}}, title="Format is rare",
    published={"format": (0.025, "S0, row 11")})`
    """
    grouped = {name: r if isinstance(r, Mapping) else {name: r} for name, r in rates.items()}
    nested = any(isinstance(rate, Mapping) for rate in rates.values())
    series = list(dict.fromkeys(name for group in grouped.values() for name in group))
    shade = colours(series) if nested else dict.fromkeys(series, PALETTE[0])
    rows = sum(len(group) for group in grouped.values())
    figure, axes = plt.subplots(figsize=(WIDTH, 1.5 + 0.3 * rows))
    for place, group in enumerate(grouped.values()):
        for slot, (name, (value, low, high)) in enumerate(group.items()):
            y = place + 0.6 * ((slot + 0.5) / len(group) - 0.5)
            label = _label(name) if nested and place == _first_group(grouped, name) else None
            value = value if is_number(value) else np.nan
            axes.errorbar(value, y, xerr=_spread(value, low, high), fmt="o", color=shade[name],
                          capsize=3, label=label)
            if is_number(value):
                end = max(value, high) if is_number(high) else value
                axes.annotate(f" {_percent(value)}", (end, y), va="center", fontsize=9,
                              color="#222")
    _published_lines(axes, published, lambda name: shade.get(name, GREY))
    axes.set_yticks(range(len(grouped)), list(grouped))
    axes.set_ylim(len(grouped) - 0.5, -0.5)
    axes.set_xlabel(f"{xlabel}, with 95 % intervals")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _percent(value)))
    axes.set_xlim(*_room(axes))
    return _finish(figure, axes, title, legend=nested or bool(published))


def failure_categories(counts: Mapping[str, Mapping[str, int]], *, title: str) -> Figure:
    """Shares of the categories of each run, as one stacked bar a run.

    Example: `failure_categories({"base": {"correct": 3, "no format": 97}}, title="...")`
    """
    names = list(dict.fromkeys(name for run in counts.values() for name in run))
    figure, axes = plt.subplots(figsize=(WIDTH, 1.6 + 0.6 * len(counts)))
    for place, run in enumerate(counts.values()):
        total, left = max(sum(run.values()), 1), 0.0
        for slot, name in enumerate(names):
            share = run.get(name, 0) / total
            label = _label(name) if place == 0 else None
            shade, ink = _category_colour(slot)
            axes.barh(place, share, 0.6, left, color=shade, edgecolor="white", label=label)
            if share >= 0.05:
                x = left + share / 2
                axes.text(x, place, f"{100 * share:.0f} %", ha="center", va="center", color=ink)
            left += share
    labels = [f"{name}\nn = {sum(run.values())}" for name, run in counts.items()]
    axes.set_yticks(range(len(counts)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of samples")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _percent(value)))
    return _finish(figure, axes, title)


def reward_distributions(
    scores: Mapping[str, Sequence[float]],
    published: Mapping[str, tuple[float, str]] | None = None,
    *,
    title: str,
    xlabel: str = "reward",
) -> Figure:
    """How rewards are spread: bars for rewards of a few values, outlines for continuous ones.

    The mean of each is in the legend. published: name -> (mean, source), dashed lines among the
    outlines; beside bars it stands in the legend only.

    Example: `reward_distributions({"format": [0, 1, 0]}, title="Format is rare")`
    """
    arrays = {name: _known(values) for name, values in scores.items()}
    labels = {name: _with_mean(name, values, len(scores[name])) for name, values in arrays.items()}
    every = np.concatenate(list(arrays.values()))
    levels = np.unique(every)
    figure, axes = plt.subplots(figsize=(WIDTH, 3.6))
    shade = colours(list(arrays))
    if len(levels) <= 6:
        _level_bars(axes, arrays, levels, shade, labels)
        for name, (mean, source) in (published or {}).items():
            axes.plot([], [], " ", label=f"published {name}: mean {mean:.3g} ({source})")
    else:
        bins = np.histogram_bin_edges(every, bins="fd" if len(every) > 40 else 10)
        for name, values in arrays.items():
            style = {"histtype": "stepfilled", "alpha": 0.25, "color": shade[name]}
            weights = np.full(len(values), 1 / max(len(values), 1))
            axes.hist(values, bins, weights=weights, **style)
            axes.hist(values, bins, weights=weights, histtype="step", color=shade[name], lw=2,
                      label=labels[name])
        _published_lines(axes, published, lambda name: shade.get(name, GREY), percent=False)
    axes.set_xlabel(xlabel)
    axes.set_ylabel("share of samples")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _percent(value)))
    return _finish(figure, axes, title)


def _level_bars(axes, arrays: dict[str, np.ndarray], levels, shade: dict, labels: dict) -> None:
    width = 0.8 / len(arrays)
    for slot, (name, values) in enumerate(arrays.items()):
        shares = [float(np.sum(values == level)) / max(len(values), 1) for level in levels]
        x = np.arange(len(levels)) + (slot - (len(arrays) - 1) / 2) * width
        bars = axes.bar(x, shares, width * 0.92, color=shade[name], label=labels[name])
        axes.bar_label(bars, [_percent(share) for share in shares], fontsize=9, padding=2)
    axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    axes.margins(y=0.12)


def training_curves(
    runs: Mapping[str, Records], keys: Sequence[str], *, title: str
) -> Figure:
    """One panel a metric, one line a run; a run is the records of its metrics.jsonl.

    Example: `training_curves({"grpo": [{"step": 0, "reward": .1}, ...]}, ["reward"], title="...")`
    """
    shade = colours(list(runs))
    figure, panels = plt.subplots(
        len(keys), 1, figsize=(WIDTH, 0.8 + 1.9 * len(keys)), sharex=True, squeeze=False
    )
    for axes, key in zip(panels[:, 0], keys, strict=True):
        for name, records in runs.items():
            steps, values = series(records, key)
            axes.plot(steps, values, color=shade[name], lw=1.8, label=_label(name),
                      marker="o" if len(steps) == 1 else None)
        axes.set_ylabel(key.replace("_", " "))
        _plain(axes)
    panels[-1, 0].set_xlabel("optimiser step")
    return _finish(figure, panels[0, 0], title, legend=len(runs) > 1)


def sweep_curves(
    curves: Mapping[str, Mapping[float, Interval]],
    *,
    title: str,
    xlabel: str,
    published: Mapping[str, Mapping[float, float]] | None = None,
    ylabel: str = "share of problems",
) -> Figure:
    """A rate with its interval at each size, one line a curve; sizes on a logarithmic axis.

    published: label -> {size: value}, drawn dashed and grey.

    Example: `sweep_curves({"strict": {128: (.5, .4, .6), 256: (.6, .5, .7)}}, title="...",
    xlabel="training examples")`
    """
    shade = colours(list(curves))
    figure, axes = plt.subplots(figsize=(WIDTH, 3.8))
    for name, points in curves.items():
        sizes = sorted(points)
        rates, lows, highs = map(_numbers, zip(*(points[size] for size in sizes), strict=True))
        axes.plot(sizes, rates, marker="o", color=shade[name], label=_label(name))
        axes.fill_between(sizes, lows, highs, color=shade[name], alpha=0.15, lw=0)
    for label, points in (published or {}).items():
        axes.plot(points.keys(), _numbers(points.values()), ls="--", marker=".", color=GREY,
                  label=_label(label))
    axes.set_xscale("log", base=2)
    ticks = sorted({size for curve in [*curves.values(), *(published or {}).values()]
                    for size in curve})
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks], fontsize=9)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _percent(value)))
    return _finish(figure, axes, title)


def method_table(rows: Mapping[str, Mapping[str, float | str | Interval]], *, title: str) -> Figure:
    """A table of methods and measures; the highest share of a column is bold, twice if two have it.

    Numbers above 1 (counts, lengths) are not ranked.

    Example: `method_table({"base": {"SubEM": .44}, "DPO": {"SubEM": .51}}, title="...")`
    """
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    figure, axes = plt.subplots(figsize=(WIDTH, 0.5 + 0.26 * (len(rows) + 1)))
    axes.axis("off")
    texts = [[_cell(row.get(column, "–")) for column in columns] for row in rows.values()]
    table = axes.table(texts, rowLabels=list(rows), colLabels=columns, loc="upper center",
                       cellLoc="right", edges="horizontal")
    _without_maths([cell.get_text() for cell in table.get_celld().values()])
    table.auto_set_font_size(False)
    table.set_fontsize(10)
    table.scale(1, 1.35)
    for place, column in enumerate(columns):
        values = [_number(row.get(column)) for row in rows.values()]
        known = [value for value in values if value is not None]
        if known and min(known) < max(known) <= 1:
            for row, value in enumerate(values, 1):
                if value == max(known):
                    table[row, place].set_text_props(fontweight="bold")
    return _finish(figure, axes, title, legend=False)


def better_worse_scatter(
    better_scores: Sequence[float],
    worse_scores: Sequence[float],
    *,
    title: str,
    names: tuple[str, str] = ("labelled better", "labelled worse"),
) -> Figure:
    """Each pair as a point: the score of its better response, and of its worse one.

    names: of the two sides, for pairs of another kind, such as ("before DPO", "after DPO").

    The line is y = x: above it the worse response scored higher. The counts stand in the legend;
    pairs on the line are ties.

    Example: `better_worse_scatter([2.0, 1.0], [1.0, 1.5], title="One of two pairs in order")`
    """
    pairs = np.stack([_numbers(better_scores), _numbers(worse_scores)])  # (2, N)
    better, worse = pairs[:, np.isfinite(pairs).all(axis=0)]
    if not len(better):
        raise ValueError("No pair has two scores that are numbers: there is nothing to draw.")
    sides = {f"{names[0]} scores higher": (better > worse, PALETTE[0], "o"),
             f"{names[1]} scores higher": (better < worse, PALETTE[1], "^"),
             "tie": (better == worse, PALETTE[6], "s")}
    figure, axes = plt.subplots(figsize=(WIDTH, 4.8))
    for name, (kept, colour, marker) in sides.items():
        if kept.any():
            share = f"{kept.sum()} pairs, {_percent(kept.mean())}"
            axes.scatter(better[kept], worse[kept], s=14, alpha=0.5, color=colour, marker=marker,
                         linewidths=0, label=f"{name} ({share})")
    if missing := pairs.shape[1] - len(better):
        axes.plot([], [], " ", label=f"without a score: {missing} pairs")
    low, high = min(better.min(), worse.min()), max(better.max(), worse.max())
    room = 0.04 * (high - low or 1.0)
    ends = (low - room, high + room)
    axes.plot(ends, ends, color=GREY, ls="--", lw=1.4, zorder=1, label="equal scores (y = x)")
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.set_xlabel(f"score of the response {names[0]}")
    axes.set_ylabel(f"score of the one {names[1]}")
    return _finish(figure, axes, title)


def best_of_n_curves(
    curves: Mapping[str, Mapping[int, Interval]], *, title: str, ylabel: str = "reward gained"
) -> Figure:
    """Rewards of the best of n samples against n, one line a reward, with a band of its interval.

    Example: `best_of_n_curves({"proxy": {1: (0, 0, 0), 2: (.5, .4, .6)}}, title="...")`
    """
    shade = colours(list(curves))
    figure, axes = plt.subplots(figsize=(WIDTH, 3.8))
    for name, points in curves.items():
        values, low, high = map(_numbers, zip(*points.values(), strict=True))
        axes.plot(list(points), values, marker="o", ms=4, color=shade[name], lw=1.8,
                  label=_label(name))
        axes.fill_between(list(points), low, high, color=shade[name], alpha=0.15, lw=0)
    counts = sorted({n for points in curves.values() for n in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks([n for n in counts if n & (n - 1) == 0])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("n: samples to choose from (logarithmic), with 95 % intervals")
    axes.set_ylabel(ylabel)
    return _finish(figure, axes, title)


def score_changes(changes: Mapping[str, tuple[float, float]], *, title: str) -> Figure:
    """How edits of one response move its learned score and its gold reward, two bars an edit.

    Example: `score_changes({"+ courtesy": (0.4, 0.05)}, title="Courtesy pays more than it should")`
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 1.4 + 0.36 * len(changes)))
    places = np.arange(len(changes))
    for slot, (name, shade) in enumerate(colours(("reward model", "gold reward")).items()):
        widths = _numbers(pair[slot] for pair in changes.values())
        axes.barh(places + 0.36 * (slot - 0.5), widths, 0.36, label=name, color=shade)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(places, list(changes))
    axes.invert_yaxis()
    axes.set_xlabel("change against the response as it is")
    return _finish(figure, axes, title)


def counts_grid(counts: Mapping[str, Mapping[str, tuple[int, int]]], *, title: str) -> Figure:
    """A cell for each row and column, "3 of 4", darker for a larger share; a dash where none is.

    Example: `counts_grid({"hedging": {"weak": (6, 6), "strict": (0, 6)}}, title="...")`
    """
    columns = list(dict.fromkeys(name for row in counts.values() for name in row))
    shares = np.array([[_share(row.get(name)) for name in columns] for row in counts.values()])
    figure, axes = plt.subplots(figsize=(WIDTH, 1.0 + 0.32 * len(counts)))
    axes.imshow(shares, cmap="Oranges", vmin=0, vmax=2, aspect="auto")
    for y, row in enumerate(counts.values()):
        for x, name in enumerate(columns):
            text = "{} of {}".format(*row[name]) if name in row else "–"
            axes.text(x, y, text, ha="center", va="center", fontsize=10, color="#1c1f24")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(counts)), list(counts))
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    _finish(figure, axes, title, legend=False)
    axes.grid(visible=False)
    axes.hlines(np.arange(len(counts) - 1) + 0.5, -0.5, len(columns) - 0.5, color="white")
    axes.vlines(np.arange(len(columns) - 1) + 0.5, -0.5, len(counts) - 0.5, color="white", lw=4)
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def _share(count: tuple[int, int] | None) -> float:
    return count[0] / max(count[1], 1) if count else 0.0


def frontier(
    points: Mapping[str, tuple[float, Interval]],
    *,
    title: str,
    xlabel: str,
    ylabel: str = "accuracy",
) -> Figure:
    """Quality against cost, with intervals and the line of the best method at each cost.

    Example: `frontier({"direct": (12, (.2, .17, .23))}, title="...", xlabel="tokens per problem")`
    """
    points = {name: (cost, rate) for name, (cost, rate) in points.items()
              if is_number(cost) and is_number(rate[0])}
    if not points:
        raise ValueError("No method has a cost and a value: there is nothing to draw.")
    figure, axes = plt.subplots(figsize=(WIDTH, 3.8))
    shade = colours(list(points))
    for name, (cost, (value, low, high)) in points.items():
        axes.errorbar(cost, value, yerr=_spread(value, low, high), fmt="o", color=shade[name],
                      capsize=3)
    best, line = -np.inf, []
    for cost, (value, *_) in sorted(points.values(), key=lambda point: (point[0], -point[1][0])):
        if value > best:
            best = value
            line.append((cost, value))
    axes.step(*zip(*line, strict=True), where="post", color=GREY, ls=":", lw=1.5, zorder=0,
              label="best at this cost")
    axes.set_xlim(0, 1.2 * max(cost for cost, _ in points.values()))
    _label_points(axes, {name: (cost, value) for name, (cost, (value, *_)) in points.items()})
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _percent(value)))
    return _finish(figure, axes, title)


def _label_points(axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Names beside their points; where two would overlap, that of the lower point moves down."""
    width, height = np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())
    taken: list[tuple[float, float]] = []
    for name, (x, y) in sorted(points.items(), key=lambda item: -item[1][1]):
        place = y + 0.015 * height
        while any(abs(x - x0) < 0.25 * width and abs(place - y0) < 0.055 * height
                  for x0, y0 in taken):
            place -= 0.02 * height
        taken.append((x, place))
        axes.annotate(name, (x, place), xytext=(7, 0), textcoords="offset points", fontsize=10)


def _plain(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="both", color="#E5E7EB", lw=0.8)
    axes.set_axisbelow(True)


def _finish(figure: Figure, axes, title: str, legend: bool = True) -> Figure:
    """Title over the whole width, legend below; closed, so that a notebook shows it once."""
    _plain(axes)
    figure.suptitle(textwrap.fill(title, 78), x=0.01, ha="left", fontweight="bold", fontsize=11.5)
    handles, labels = axes.get_legend_handles_labels()
    if legend and labels:
        columns = max(1, min(4, 96 // (max(map(len, labels)) + 7), len(labels)))
        place = {"loc": "outside lower center", "ncols": columns}
        shown = figure.legend(handles, labels, frameon=False, fontsize=9, **place)
        for text in shown.get_texts():
            text.set_text(text.get_text().removeprefix(_HIDDEN))
    _without_maths(figure.findobj(Text))
    figure.set_layout_engine("constrained")
    plt.close(figure)
    return figure


def _without_maths(texts: Sequence[Text]) -> None:
    """A name such as "$5 or $10" is no formula; a formatter's own labels (10^2) stay formulas."""
    for text in texts:
        if "\\mathdefault" not in text.get_text():
            text.set_parse_math(False)


def _published_lines(axes, published, colour, percent: bool = True) -> None:
    for name, (value, source) in (published or {}).items():
        shown = _percent(value) if percent else f"{value:.3g}"
        label = f"published {name}: {shown} ({source})"
        axes.axvline(value, color=colour(name), ls="--", lw=1.4, label=label, zorder=1)


def _room(axes) -> tuple[float, float]:
    """From 0 to a little beyond the data, so that the value labels stay inside."""
    high = axes.get_xlim()[1]
    return 0.0 if high <= 1.2 else axes.get_xlim()[0], high * 1.12


def _first_group(grouped: Mapping[str, Mapping], name: str) -> int:
    return next(place for place, group in enumerate(grouped.values()) if name in group)


def _category_colour(slot: int) -> tuple[str, str]:
    """(fill, ink) of the slot-th category."""
    fill = (*PALETTE[:6], GREY)[slot % 7]
    return fill, "black" if fill in ("#E69F00", "#56B4E9", "#CC79A7") else "white"


def _percent(value: float) -> str:
    number = 100 * value
    return f"{number:.0f} %" if number == 0 or number >= 9.95 else f"{number:.2g} %"


def _with_mean(name: str, values: np.ndarray, given: int) -> str:
    mean = f"mean {values.mean():.3g}" if len(values) else "no mean"
    missing = f", {given - len(values)} without a number" if given > len(values) else ""
    return f"{_label(name)} ({mean}, n = {len(values)}{missing})"


def _cell(value) -> str:
    if isinstance(value, tuple):
        first, low, high = map(_cell, value)
        return first if "–" in (low, high) else f"{first} [{low}, {high}]"
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _number(value) -> float | None:
    first = value[0] if isinstance(value, tuple) else value
    return first if isinstance(first, float) and math.isfinite(first) else None

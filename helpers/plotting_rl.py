"""Figures of reinforcement learning; `helpers.plotting` says what all figures have in common."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from helpers.plotting import (
    GREY,
    PALETTE,
    WIDTH,
    Records,
    _finish,
    _label,
    _numbers,
    _percent,
    _plain,
    colours,
    is_number,
    series,
)

SHARES = ("reward_mean", "format_rate", "accuracy", "truncated", "clip_fraction",
          "groups_with_signal")
SEED_STYLES = ("-", "--", ":")  # of the lines of one name, a seed each
SMALL = 0.15  # of a panel: a share that never gets above it has a scale of its own


def metric_grid(
    runs: Mapping[str, Records], keys: Sequence[str], *, title: str
) -> Figure:
    """Small panels, three in a row, one a metric; a run is the records of its metrics.jsonl.

    Example: `metric_grid({"grpo": [{"step": 1, "kl": .1}, ...]}, ["kl"], title="...")`
    """
    shade = colours(list(runs))
    rows = -(-len(keys) // 3)
    figure, panels = plt.subplots(rows, 3, figsize=(WIDTH, 0.8 + 1.5 * rows), sharex=True,
                                  squeeze=False)
    for axes in panels.flat[len(keys):]:
        axes.axis("off")
    for axes, key in zip(panels.flat, keys, strict=False):
        for name, records in runs.items():
            steps, values = series(records, key)
            axes.plot(steps, values, color=shade[name], lw=1.5, label=_label(name),
                      marker="." if len(steps) < 3 else None)
        axes.set_title(key.replace("_", " "), fontsize=9, loc="left", pad=3)
        axes.tick_params(labelsize=8)
        if key in SHARES:
            low, high = axes.get_ylim()
            axes.set_ylim(min(0, low), max(1, high) if high > SMALL else max(high, 0.01))
        _plain(axes)
    panels[-1, 0].set_xlabel("step", fontsize=9)
    return _finish(figure, panels[0, 0], title, legend=len(runs) > 1)


def surrogate_shapes(
    ratios: Sequence[float], objectives: Mapping[str, Mapping[str, Sequence[float]]], *, title: str
) -> Figure:
    """The objective against the probability ratio: one panel a sign of the advantage.

    objectives: panel title -> {curve: one value a ratio}.
    """
    figure, panels = plt.subplots(1, len(objectives), figsize=(WIDTH, 3.0), squeeze=False)
    for axes, (name, curves) in zip(panels[0], objectives.items(), strict=True):
        shade = colours(list(curves))
        for place, (label, values) in enumerate(curves.items()):
            style = {"ls": "--", "lw": 1.3} if place else {"lw": 2.4}
            axes.plot(ratios, values, color=shade[label], label=_label(label), **style)
        axes.axvline(1, color=GREY, lw=0.8)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("probability ratio, new / old")
        _plain(axes)
    panels[0, 0].set_ylabel("what is maximised")
    return _finish(figure, panels[0, 0], title)


def rewards_by_step(steps: Mapping[int, Sequence[Sequence[float]]], *, title: str) -> Figure:
    """How rewards are spread at each step, and where the groups stand.

    steps: step -> the rewards of each group. Above: the share of samples at each reward, dark is
    many. Below: the mean of each group; grey ones agree on one reward and teach nothing.
    A group with a reward that is no number was left out of its step, and is left out here.

    Raises ValueError where no group is left.
    """
    steps = {step: [group for group in groups if all(map(is_number, group))]
             for step, groups in steps.items()}
    if not any(len(group) for groups in steps.values() for group in groups):
        raise ValueError("No group has rewards that are all numbers: there is nothing to draw.")
    every = np.array([r for groups in steps.values() for group in groups for r in group])
    levels = np.unique(every)
    few = len(levels) <= 6
    edges = _edges(levels) if few else np.linspace(every.min(), every.max() + 1e-9, 21)
    counts = np.array([np.histogram([r for group in groups for r in group], edges)[0]
                       for groups in steps.values()])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(WIDTH, 5.0), sharex=True)
    places = [*steps]
    width = np.append(np.array(places) - 0.5, places[-1] + 0.5)
    image = top.pcolormesh(width, np.arange(len(edges)) if few else edges, shares.T,
                           cmap="Blues", vmin=0, vmax=1 if few else None)
    if few:
        top.set_yticks(np.arange(len(levels)) + 0.5, [f"{level:g}" for level in levels])
    figure.colorbar(image, ax=[top, bottom], label="share of samples", shrink=0.5, anchor=(0, 1),
                    format=FuncFormatter(lambda value, _: _percent(value)))
    top.set_ylabel("reward of a sample")
    generator = np.random.default_rng(0)
    for kind, colour in (("without a signal", GREY), ("with a signal", PALETTE[0])):
        points = [(step + generator.uniform(-0.25, 0.25), np.mean(group))
                  for step, groups in steps.items() for group in groups
                  if (len(set(group)) > 1) == (kind == "with a signal")]
        x, y = zip(*points, strict=True) if points else ((), ())
        bottom.scatter(x, y, s=14, color=colour, alpha=0.7, label=f"group {kind}", lw=0)
    bottom.set_ylabel("mean reward of a group")
    bottom.set_xlabel("step")
    return _finish(figure, bottom, title)


def _edges(levels: np.ndarray) -> np.ndarray:
    """Edges between a few levels."""
    middle = (levels[1:] + levels[:-1]) / 2
    return np.concatenate([[levels[0] - 0.5], middle, [levels[-1] + 0.5]])


def ablation_marks(
    found: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    title: str,
    published: Mapping[str, tuple[float, float]] | None = None,
    source: str = "",
) -> Figure:
    """Final and best accuracy of each run, one mark per seed; published pairs as dashed bars.

    found: name -> {"final": one value a seed, "best": one value a seed}.
    published: name -> (final, best).
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 1.4 + 0.5 * len(found)))
    for place, (name, values) in enumerate(found.items()):
        values = {kind: _numbers(values[kind]) for kind in ("final", "best")}
        for final, best in zip(values["final"], values["best"], strict=True):
            axes.plot([final, best], [place - 0.12] * 2, color=PALETTE[0], lw=1, zorder=2)
        first = place == 0
        axes.scatter(values["final"], [place - 0.12] * len(values["final"]), color=PALETTE[0],
                     s=42, zorder=3, label="here: final, one mark per seed" if first else None)
        axes.scatter(values["best"], [place - 0.12] * len(values["best"]), facecolor="white",
                     edgecolor=PALETTE[0], s=42, zorder=3, label="here: best" if first else None)
        if published and name in published:
            axes.plot(published[name], [place + 0.18] * 2, color=PALETTE[1], ls="--", lw=1.4)
            for value, mark in zip(published[name], ("D", "d"), strict=True):
                axes.scatter([value], [place + 0.18], marker=mark, color=PALETTE[1], s=26)
    if published:
        axes.plot([], [], color=PALETTE[1], ls="--", marker="D", ms=5,
                  label=f"published: final to best ({source})")
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("held-out accuracy")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _percent(value)))
    return _finish(figure, axes, title)


def over_optimisation(
    runs: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], *, title: str,
    keys: Sequence[str] = ("proxy", "gold", "accuracy"), peak: str = "gold",
) -> Figure:
    """Proxy, gold reward and accuracy against the distance from the start, one panel each.

    runs: name -> one run a seed: its records with `kl` and the keys, a step each. The axis is that
    of Gao et al. 2023 (arXiv 2210.10760, Figure 1): the square root of the KL, which grows about
    evenly with the steps. Lines are means of up to five steps; a dot ends each, a star marks its
    `peak`.
    """
    figure, panels = plt.subplots(1, len(keys), figsize=(WIDTH, 3.2), squeeze=False)
    shade = colours(list(runs))
    for axes, key in zip(panels[0], keys, strict=True):
        for name, seeds in runs.items():
            for number, records in enumerate(seeds):
                kl, value = map(_smooth, series(records, key, along="kl"))
                label = _label(name) if number == 0 else None
                axes.plot(kl, value, color=shade[name], lw=1.6, label=label,
                          ls=SEED_STYLES[number % len(SEED_STYLES)])
                axes.scatter(kl[-1:], value[-1:], color=shade[name], s=24, zorder=3)
                if key == peak and len(value):
                    axes.scatter(kl[value.argmax()], value.max(), color=shade[name], s=110,
                                 marker="*", edgecolor="black", lw=0.6, zorder=4)
        axes.set_title(f"{key} (star: its peak)" if key == peak else key, fontsize=10)
        axes.set_xscale("function", functions=(lambda kl: np.sqrt(np.maximum(kl, 0)), np.square))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("KL per token, root scale (nats)", fontsize=9)
        _plain(axes)
    return _finish(figure, panels[0, 0], title)


def by_tokens(
    runs: Mapping[str, Sequence[Mapping[int, float]]], *, title: str,
    ylabel: str = "held-out accuracy",
) -> Figure:
    """What each run reached, against the tokens that it had generated until then.

    runs: name -> one run a seed, {tokens: accuracy}.

    Example: `by_tokens({"GRPO": [{0: .4, 20_000: .6}]}, title="...")`
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 3.6))
    shade = colours(list(runs))
    for name, seeds in runs.items():
        for number, points in enumerate(seeds):
            axes.plot([tokens / 1000 for tokens in points], _numbers(points.values()), marker="o",
                      ms=4, color=shade[name], ls=SEED_STYLES[number % len(SEED_STYLES)],
                      label=_label(name) if number == 0 else None)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("thousand generated tokens")
    axes.set_ylabel(ylabel)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _percent(value)))
    return _finish(figure, axes, title)


def _smooth(values: Sequence[float], width: int = 5) -> np.ndarray:
    """Means over up to `width` steps that end at each step."""
    values = np.asarray(values, dtype=float)
    return np.array([values[max(0, k + 1 - width) : k + 1].mean() for k in range(len(values))])

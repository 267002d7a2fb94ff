"""The figure of comparisons: differences of two methods with their intervals."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from helpers.plotting import WIDTH, Interval, _finish, _label, _spread, colours, is_number


def difference_forest(
    rows: Mapping[str, Mapping[str, Interval]],
    *,
    title: str,
    xlabel: str,
) -> Figure:
    """Differences with their intervals, one row a comparison, in points around a line at zero.

    A hollow mark has an interval that holds zero: the two methods cannot be told apart.

    Example: `difference_forest({"DPO - base": {"SubEM": (.06, .04, .09)}}, title="...",
    xlabel="points")`
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    shade, named = colours(names), set()
    figure, axes = plt.subplots(figsize=(WIDTH, 1.4 + 0.2 * sum(map(len, rows.values()))))
    for place, row in enumerate(rows.values()):
        for slot, (name, (value, low, high)) in enumerate(row.items()):
            if not is_number(value):
                continue
            y = place + 0.6 * ((slot + 0.5) / len(row) - 0.5)
            spread = _spread(value, low, high)
            fill = "white" if spread is None or low <= 0 <= high else shade[name]
            axes.errorbar(
                value,
                y,
                xerr=spread,
                fmt="o",
                color=shade[name],
                markerfacecolor=fill,
                capsize=3,
                label=None if name in named else _label(name),
            )
            named.add(name)
    axes.axvline(0, color="black", lw=1)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.0f}"))
    axes.set_xlabel(f"{xlabel}, with 95 % intervals; hollow: zero lies inside")
    return _finish(figure, axes, title)

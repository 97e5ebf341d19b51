"""Plots of scenarios: lines along a varied number, or a bar per combination."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streaminfer._internal.display.figures import BAD, COLORS, GOOD, legend_above, new_axes, shown_name
from streaminfer._internal.loading.extras import require

__all__ = ["plot_bars", "plot_lines"]

_PURPOSE = "ScenarioTable.plot"
_MARKERS = "oDs^vX"
_BAR_IN = 0.26
_LABEL_WIDTH = 36
_LONGEST = 88


def plot_lines(ax: Any, name: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> Any:
    """Draw the share on time along a number.

    Args:
        ax: a matplotlib ``Axes``, or ``None`` for a new figure.
        name: name of the number.
        lines: for each label, points of the number and the share; at most one line for each marker.
    """
    ticker = require("matplotlib.ticker", extra="plot", purpose=_PURPOSE)
    ax = new_axes(ax, _PURPOSE)
    for (label, points), marker, color in zip(lines.items(), _MARKERS, COLORS, strict=False):
        ax.plot(
            *zip(*sorted(points), strict=True),
            marker=marker,
            markersize=5,
            color=color,
            label=shown_name(label, _LONGEST) or None,
        )
    ax.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
    ax.set_ylim(0.0, 1.02)
    if all(value == int(value) for points in lines.values() for value, _ in points):
        ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))  # no 1.5 workers
    ax.set_xlabel(name)
    ax.set_ylabel("on time")
    legend_above(ax)
    return ax


def plot_bars(ax: Any, names: Sequence[str], shares: Mapping[str, Sequence[float]], count: int, of: str) -> Any:
    """Draw a bar per combination, divided into shares.

    Args:
        ax: a matplotlib ``Axes``, or ``None`` for a new figure.
        names: names of the combinations, the first one on top.
        shares: for each label, from left to right, a share of each combination.
        count: number of all combinations, including those without a bar.
        of: the settings that the names list, if the names do not include them.
    """
    ticker = require("matplotlib.ticker", extra="plot", purpose=_PURPOSE)
    ax = new_axes(ax, _PURPOSE, height_in=1.2 + _BAR_IN * len(names))
    rows, left = np.arange(len(names)), np.zeros(len(names))
    for (label, widths), color in zip(shares.items(), (GOOD, COLORS[1], BAD), strict=True):
        ax.barh(rows, widths, left=left, color=color, label=label)
        left += widths
    ax.set_yticks(rows, names, fontsize="small")
    ax.set_ylabel(textwrap.fill(of, _LABEL_WIDTH), fontsize="small")
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(0.0, 1.0)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
    ax.set_xlabel("requests" if count == len(names) else f"requests; the best {len(names)} of {count}")
    legend_above(ax)
    return ax

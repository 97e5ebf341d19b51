"""Plot of an error budget: the remaining budget over the period, and the burn rate."""

from typing import Any

import numpy as np

from streaminfer._internal.display.figures import BAD, COLORS, draw_placeholder, new_axes, shown_name, time_unit
from streaminfer._internal.loading.extras import require
from streaminfer._internal.units import format_duration

__all__ = ["plot_budget"]

_BLUE, _RED = COLORS[0], BAD
_LONGEST_TITLE = 60  # characters
_LOWEST_SHOWN = -1.0
"""Lowest value of the axis, as a share of the budget."""


def plot_budget(ax: Any, name: str, points: list[tuple[int, int, int]], width_ns: int, allowed: float) -> Any:
    """Draw the remaining budget, and the burn rate on a twin axis.

    Args:
        ax: a matplotlib ``Axes``, or ``None`` for a new figure.
        name: name of the objective.
        points: instants in nanoseconds, ascending, each with the totals of all and of bad events up to it.
        width_ns: nanoseconds between two instants, except before the last one.
        allowed: share of events that may be bad.

    Returns:
        The axes of the budget. Its line is 1 less a quotient: the bad events of the period up to an instant, divided by
        the bad events that all events of the period allow. It ends at ``budget_remaining()``. The burn rate has one
        step per bucket.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    ticker = require("matplotlib.ticker", extra="plot", purpose="SLO.plot")
    ax = new_axes(ax, "SLO.plot")
    at_ns, totals, bad = np.array(points, np.float64).T
    ago_s = (at_ns - at_ns[-1]) / 1e9
    size_s, unit = time_unit(-ago_s[0])
    spent = (bad - bad[0]) / max(allowed * (totals[-1] - totals[0]), np.finfo(np.float64).tiny)
    events = np.diff(totals)
    rate = np.divide(np.diff(bad), events, out=np.zeros_like(events), where=events > 0) / allowed
    rate_axes = ax.twinx()
    rate_axes.spines[["top"]].set_visible(False)
    rate_axes.stairs(rate, ago_s / size_s, fill=True, alpha=0.25, color=_RED)
    rate_axes.set_ylim(0.0, max(1.0, 1.05 * rate.max(initial=0.0)))
    rate_axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
    rate_axes.set_ylabel(f"burn rate over {format_duration(width_ns / 1e9, 2)}", color=_RED)
    remaining = 1.0 - spent
    ax.plot(ago_s / size_s, remaining, color=_BLUE)
    ax.axhline(0.0, color="black", linewidth=0.8)
    ax.set_ylim(max(_LOWEST_SHOWN, min(0.0, 1.1 * remaining.min())), 1.05)
    if remaining.min() < _LOWEST_SHOWN:  # a scale down to -5,000 % would flatten the line above 0
        # a line that falls early leaves the upper right corner free, one that falls late the lower left
        is_early = ago_s[np.argmax(remaining < _LOWEST_SHOWN)] < ago_s[0] / 2
        ax.text(
            0.98 if is_early else 0.02, 0.86 if is_early else 0.04, f"{spent.max():,.0f} times the budget spent",
            transform=ax.transAxes, color=_BLUE, ha="right" if is_early else "left",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
        )  # fmt: skip
    if totals[-1] == totals[0]:
        draw_placeholder(ax, "no events yet")
    ax.set_xlim(ago_s[0] / size_s if ago_s[0] < 0 else -1.0, 0.0)
    ax.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
    ax.set_xlabel(f"{unit} from now")
    ax.set_ylabel("budget left", color=_BLUE)
    ax.set_title(shown_name(name, _LONGEST_TITLE))
    return ax

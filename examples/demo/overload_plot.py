"""The figure of the overload: ages of results, frames by outcome, and the results of each camera."""

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from demo.drawing import BATCHED, GOOD, INK, MUTED, SHARED_COLOR, UNBATCHED_COLOR, Size, legend_above, new
from demo.overload import GREED, Overload

__all__ = ["make_overload_figure"]

BIN_S = 0.25
REASONS = {"stale": UNBATCHED_COLOR, "closed": INK}
"""Colors of some reasons; all other reasons share one color."""


def make_overload_figure(found: Overload, size: Size) -> Figure:
    """Make one form of the figure; the overload is shaded."""
    figure, (ages, outcomes, shares) = new(size, 2.5, columns=3)
    _draw_ages(ages, found)
    _draw_outcomes(outcomes, found)
    for axes in (ages, outcomes):
        axes.axvspan(found.seconds / 3, 2 * found.seconds / 3, color=MUTED, alpha=0.12, linewidth=0)
        axes.set_xlim(0, found.seconds)
        axes.set_xlabel("time, s")
    _draw_shares(shares, found)
    return figure


def _draw_ages(axes: Axes, found: Overload) -> None:
    axes.plot(found.captured_s, 1e3 * found.age_s, ".", color=BATCHED, markersize=2, alpha=0.4)
    bins = (found.captured_s / BIN_S).astype(int)
    present = np.unique(bins)
    p99_ms = [1e3 * np.quantile(found.age_s[bins == number], 0.99) for number in present]
    axes.plot((present + 0.5) * BIN_S, p99_ms, color=BATCHED, linewidth=1.5, label="p99 of each quarter second")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("age of a result, ms")
    legend_above(axes)


def _draw_outcomes(axes: Axes, found: Overload) -> None:
    edges = np.array([0.0, *(look.at_s for look in found.looks)])
    below = np.zeros(len(found.looks))
    reasons = sorted(found.total.dropped)
    counted = {
        "answered": (GOOD, [look.counters.delivered for look in found.looks]),
        **{
            reason.replace("_", " "): (
                REASONS.get(reason, SHARED_COLOR),
                [look.counters.dropped.get(reason, 0) for look in found.looks],
            )
            for reason in reasons
        },
    }
    for name, (color, totals) in counted.items():
        rate = np.array([after - before for before, after in itertools.pairwise([0, *totals])]) / np.diff(edges)
        axes.stairs(below + rate, edges, baseline=below, fill=True, color=color, label=name)
        below += rate
    axes.set_ylim(bottom=0)
    axes.set_ylabel("frames a second")
    legend_above(axes, columns=3)


def _draw_shares(axes: Axes, found: Overload) -> None:
    axes.bar(range(1, found.most), found.shares[:-1], color=BATCHED, width=0.8)
    axes.bar([found.most], found.shares[-1:], color=UNBATCHED_COLOR, width=0.8, label=f"sends {GREED}× the frames")
    axes.grid(visible=False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("camera, in the overload")
    axes.set_ylabel("results a second")
    legend_above(axes)

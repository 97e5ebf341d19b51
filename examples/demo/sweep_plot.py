"""The first figure of the report: share of chunks on time and p99 against offered load, with their spread."""

import math
import statistics

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from demo.audio import CHUNK_S
from demo.comparison import Comparison, Limit
from demo.drawing import BATCHED, MUTED, UNBATCHED_COLOR, Size, legend_above, new
from demo.findings import ENOUGH, Sweep

__all__ = ["make_sweep_figure"]

LABELED_LOADS = (0.25, 0.5, 1.0, 2.0, 4.0)
LATENCY_TICKS_MS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
FLOOR_MS = 0.8
"""Start of the latency axis, unless the lowest p99 is lower."""
LOST_MS = 46.0
"""Position of an infinite p99, above the deadline."""


def make_sweep_figure(sweep: Sweep, comparison: Comparison, size: Size) -> Figure:
    """Make one form of the figure; bands reach from the smallest to the largest repeat, lines are medians."""
    figure, (upper, lower) = new(size, 2.5 if size.narrow else 2.3, rows=2, sharex=True)
    for curve, limits, middle, color in (
        (sweep.batched, comparison.batched, comparison.batched_median, BATCHED),
        (sweep.unbatched, comparison.unbatched, comparison.unbatched_median, UNBATCHED_COLOR),
    ):
        name = "batched" if curve is sweep.batched else "unbatched"
        loads = [points[0].load for points in curve.by_load()]
        shares = np.array([[100 * point.share_on_time for point in points] for points in curve.by_load()])
        p99_ms = np.array([[_bounded_ms(point.p99_s) for point in points] for points in curve.by_load()])
        _draw_band(upper, loads, shares, color, _label(name, limits, middle, sweep, narrow=size.narrow))
        _draw_band(lower, loads, p99_ms, color, name)
        _mark_limit(upper, limits, middle, loads, color)
    upper.axhline(100 * ENOUGH, color=MUTED, linestyle="--", linewidth=0.8)
    upper.set_ylim(-3, 103)
    upper.set_ylabel("chunks on time, %")
    upper.set_yticks([0, 25, 50, 75, 99])
    legend_above(upper)
    lower.axhline(1e3 * CHUNK_S, color=MUTED, linestyle="--", linewidth=0.8)
    lower.set_yscale("log")
    lowest_s = min(point.p99_s for curve in sweep.curves for points in curve.repeats for point in points)
    floor_ms = max(LATENCY_TICKS_MS[0], min(FLOOR_MS, 0.8e3 * lowest_s))
    ticks_ms = [tick for tick in LATENCY_TICKS_MS if tick >= floor_ms]
    lower.set_ylim(floor_ms, 58)
    lower.yaxis.set_major_locator(FixedLocator([*ticks_ms, 1e3 * CHUNK_S, LOST_MS]))
    lower.yaxis.set_minor_locator(NullLocator())
    lower.set_yticklabels([*map(str, ticks_ms), f"{1e3 * CHUNK_S:.0f}", "lost"])
    lower.set_ylabel("p99 latency, ms")
    _label_loads(lower, sweep, narrow=size.narrow)
    return figure


def _label(name: str, limits: tuple[Limit, ...], middle: Limit, sweep: Sweep, *, narrow: bool) -> str:
    per_load = sweep.rate * CHUNK_S
    low, high = min(limit.low for limit in limits), max(limit.high for limit in limits)
    unit = "" if narrow else " microphones"
    if middle.high == math.inf:
        return f"{name}: 99% beyond {middle.low * per_load:,.0f}{unit}"
    if middle.low == 0:
        return f"{name}: 99% nowhere"
    said = f"{name}: 99% up to {middle.low * per_load:,.0f}{unit}"
    if low == 0 or high == math.inf:
        return said
    return f"{said} ({low * per_load:,.0f} to {high * per_load:,.0f})"


def _bounded_ms(latency_s: float) -> float:
    return min(1e3 * latency_s, LOST_MS)


def _draw_band(axes: Axes, loads: list[float], values: np.ndarray, color: str, label: str) -> None:
    axes.fill_between(loads, values.min(axis=1), values.max(axis=1), color=color, alpha=0.18, linewidth=0)
    axes.plot(loads, [statistics.median(row) for row in values.tolist()], color=color, linewidth=1.8, label=label)
    axes.plot(loads, values, ".", color=color, markersize=3.5, alpha=0.7)


def _mark_limit(axes: Axes, limits: tuple[Limit, ...], middle: Limit, loads: list[float], color: str) -> None:
    if middle.exact:
        axes.plot([middle.low], [100 * ENOUGH], "o", color=color, markersize=7, markerfacecolor="none", clip_on=False)
    ends = [max(min(limit.low for limit in limits), loads[0]), min(max(limit.high for limit in limits), loads[-1])]
    axes.plot(ends, [100 * ENOUGH] * 2, color=color, linewidth=4, alpha=0.5, solid_capstyle="butt")


def _label_loads(axes: Axes, sweep: Sweep, *, narrow: bool) -> None:
    points = [points[0] for points in sweep.batched.by_load()]
    shown = [point for point in points if point.load in LABELED_LOADS] or points
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([point.load for point in shown]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{point.microphones:,}\n{point.load:g}×" for point in shown])
    axes.set_xlabel(
        "live microphones, and load"
        if narrow
        else f"offered load: live microphones, and times the {sweep.rate:,.0f} chunks/s of the best unbatched way"
    )

"""Pictures of a report: latency by percentile, over time, and by label or stage."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from streaminfer._internal.display.figures import (
    BAD,
    COLORS,
    GOOD,
    GREY,
    draw_placeholder,
    in_decades,
    legend_above,
    new_axes,
    shown_name,
)
from streaminfer.loadtest.capacity.search import Capacity
from streaminfer.loadtest.quantiles import quantile_of
from streaminfer.loadtest.report.report import Report, Tail

__all__ = ["plot_capacity", "plot_over_time", "plot_percentiles", "plot_tails"]

_PURPOSE = "a picture of a load test"
_WINDOWS = 60
_MARKS = (("p50", GOOD, "o"), ("p99", COLORS[0], "D"), ("p99.9", BAD, "s"))
_LOWEST_S = 1e-6


def plot_percentiles(ax: Any, report: Report) -> Any:
    """Draw latency by percentile, on an axis of nines; the line ends at the share of requests with a response."""
    ax = new_axes(ax, _PURPOSE)
    nines = max(1, math.floor(math.log10(report.requests)))
    shares = 1 - np.logspace(0, -nines, 40 * nines + 1)
    values = np.maximum(report.quantiles(shares), _LOWEST_S)
    answered = np.isfinite(values)
    if not answered.any():
        draw_placeholder(ax, "no response")
        return ax
    ax.plot(1 / (1 - shares[answered]), values[answered], color=COLORS[0], label="latency")
    ax.axhline(report.slo_s, color=BAD, linewidth=1, linestyle="--", label="SLO")
    ax.set_xscale("log")
    ticks = 10.0 ** np.arange(nines + 1)
    ax.set_xticks(ticks, [f"{100 * (1 - 1 / tick):.10g} %" for tick in ticks])
    ax.minorticks_off()
    finite = values[answered]
    in_decades(ax.yaxis, min(float(finite[0]), report.slo_s), max(float(finite[-1]), report.slo_s))
    ax.set_xlabel("percentile of all requests that were due")
    legend_above(ax)
    return ax


def plot_over_time(ax: Any, report: Report) -> Any:
    """Draw median, p99 and maximum latency in 60 windows by due time; a cross marks windows with lost requests."""
    ax = new_axes(ax, _PURPOSE)
    windows = [(begin_s, latencies) for begin_s, latencies in report.windows(_WINDOWS) if latencies.size]
    times = np.array([begin_s for begin_s, _ in windows])
    highest = _LOWEST_S
    for label, q, color in (("p50", 0.5, GOOD), ("p99", 0.99, COLORS[0]), ("max", 1.0, GREY)):
        values = np.array([quantile_of(latencies, q) for _, latencies in windows])
        values = np.maximum(values, _LOWEST_S)
        values[np.isinf(values)] = np.nan
        ax.plot(times, values, color=color, label=label, linewidth=1.4)
        highest = max(highest, float(np.nanmax(values, initial=_LOWEST_S)))
    incomplete = [begin_s for begin_s, latencies in windows if np.isinf(latencies).any()]
    if incomplete:
        ax.plot(incomplete, [highest] * len(incomplete), "x", color=BAD, label="requests without a response")
    ax.axhline(report.slo_s, color=BAD, linewidth=1, linestyle="--", label="SLO")
    finite = report.latencies_s[np.isfinite(report.latencies_s)]
    lowest = max(float(finite.min(initial=report.slo_s)), _LOWEST_S)
    in_decades(ax.yaxis, min(lowest, report.slo_s), max(highest, report.slo_s))
    ax.set_xlabel("due, seconds since the start")
    legend_above(ax)
    return ax


def plot_capacity(ax: Any, capacity: Capacity) -> Any:
    """Draw the late share of each step over its rate, the allowed share, and the interval of the capacity."""
    ax = new_axes(ax, _PURPOSE)
    rates = [step.rate for step in capacity.steps]
    ax.plot(rates, [100 * step.late_share for step in capacity.steps], "o", color=COLORS[0], markersize=4, label="step")
    ax.axhline(100 * (1 - capacity.objective), color=BAD, linewidth=1, linestyle="--", label="allowed")
    low, high = (min(max(end, min(rates)), max(rates)) for end in capacity.interval)
    ax.axvspan(low, high, color=GOOD, alpha=0.3, label=f"capacity, {capacity.confidence:.0%} interval")
    ax.set_yscale("symlog", linthresh=0.1)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    ax.set_xlabel("requests per second")
    ax.set_ylabel("late")
    legend_above(ax)
    return ax


def plot_tails(ax: Any, tails: Sequence[Tail]) -> Any:
    """Draw a row for each tail with its median, p99 and p99.9; infinite values are left out."""
    ax = new_axes(ax, _PURPOSE)
    ends = []
    for name, color, marker in _MARKS:
        values = [max(tail.quantiles_s[name], _LOWEST_S) for tail in tails]
        finite = [(value, row) for row, value in enumerate(values) if math.isfinite(value)]
        ends += [value for value, _ in finite]
        ax.plot([value for value, _ in finite], [row for _, row in finite], marker, color=color, label=name)
    ax.set_yticks(range(len(tails)), [shown_name(tail.name) for tail in tails], fontsize="small")
    ax.set_ylim(len(tails) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    if ends:
        in_decades(ax.xaxis, min(ends), max(ends))
    legend_above(ax)
    return ax

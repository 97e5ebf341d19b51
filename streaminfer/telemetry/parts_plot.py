"""Plot of the parts of a latency: a row per part, from its median to its maximum, on a logarithmic scale.

The percentiles of the parts do not add up to the percentile of the whole, so the rows are not stacked.
"""

from collections.abc import Mapping
from typing import Any

from streaminfer._internal.display.figures import (
    BAD,
    COLORS,
    GOOD,
    draw_placeholder,
    in_decades,
    legend_above,
    new_axes,
)
from streaminfer._internal.units import format_duration
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram

__all__ = ["plot_parts"]

_MARKS = (("p50", 0.5, GOOD, "o"), ("p99", 0.99, COLORS[0], "D"), ("p99.9", 0.999, BAD, "s"))
_LOWEST_S = 1e-6


def plot_parts(ax: Any, parts: Mapping[str, LatencyHistogram]) -> Any:
    """Draw the median, the 99th and the 99.9th percentile of each part, and a line to its maximum.

    Args:
        ax: a matplotlib ``Axes``, or ``None`` for a new figure.
        parts: histograms by the name of the part, with the first on top.

    Returns:
        The axes; seconds are on the x axis.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    ax = new_axes(ax, "TelemetryStatistics.plot", height_in=2.8)
    recorded = {name: histogram for name, histogram in parts.items() if histogram.count}
    if not recorded:
        draw_placeholder(ax, "no response yet")
        ax.set(xticks=[], yticks=[])
        return ax
    rows = range(len(recorded))
    lows = [max(histogram.quantile(0.5), _LOWEST_S) for histogram in recorded.values()]
    highs = [max(histogram.max, _LOWEST_S) for histogram in recorded.values()]
    ax.hlines(rows, lows, highs, color=COLORS[4], linewidth=5, alpha=0.5)
    for label, q, color, marker in _MARKS:
        values = [max(histogram.quantile(q), _LOWEST_S) for histogram in recorded.values()]
        ax.plot(values, rows, marker, color=color, label=label, clip_on=False)
    ax.plot(highs, rows, "|", color="black", markersize=10, label="max", clip_on=False)
    names = [f"{name}\np99 {format_duration(histogram.quantile(0.99))}" for name, histogram in recorded.items()]
    ax.set_yticks(rows, names, fontsize="small")
    ax.set_ylim(len(recorded) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    in_decades(ax.xaxis, min(lows), max(highs))
    legend_above(ax)
    return ax

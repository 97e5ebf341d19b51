"""`LatencyHeatMap`: latency over time, for recorded requests or for a series of histograms.

A percentile over an hour hides a bad minute, and a line of percentiles hides the number of requests in a tail. The map
has a column per interval of time and a row per band of latency, on a logarithmic scale; cells with more responses are
darker. The numbers of columns and rows are bounded, so a million requests are drawn as fast as a thousand.
"""

import datetime as dt
import functools
from collections.abc import Iterable
from typing import Any, Self

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from streaminfer._internal.display.figures import (
    BAD,
    COLORS,
    draw_placeholder,
    in_decades,
    inline_svg,
    legend_above,
    new_axes,
    time_unit,
)
from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.distributions.real_arrays import real_array
from streaminfer._internal.loading.extras import require
from streaminfer._internal.units import format_duration
from streaminfer._internal.validation import check_instance, expected
from streaminfer.telemetry.interval_log.interval_log import Interval, merge_widened

__all__ = ["LatencyHeatMap"]

_COLUMNS = 120
_ROWS_PER_DECADE = 10
_LOWEST_S = 1e-6
_EPOCH_S = (1e8, 1e11)
"""Instants in this range are seconds since the epoch, from 1973 on; smaller ones count from a simulation's start."""
_SHADES = ("#b5d3ea", "#08306b")  # a single response is not white
_QUANTILES = (0.5, 0.99)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class LatencyHeatMap:
    """Latency over time.

    Attributes:
        edges_s: shape (columns + 1,), float64, ascending: start of each interval in seconds, and end of the last one.
        latency_edges_s: shape (rows + 1,), float64, ascending: bounds of the bands of latency.
        counts: shape (rows, columns), int64: responses.
        quantiles_s: shape (2, columns), float64: median and 99th percentile of each interval; NaN without responses.
    """

    edges_s: NDArray[np.float64]
    latency_edges_s: NDArray[np.float64]
    counts: NDArray[np.int64]
    quantiles_s: NDArray[np.float64]

    @classmethod
    def of_requests(cls, at_s: ArrayLike, latencies_s: ArrayLike) -> Self:
        """Return the map of recorded requests.

        Args:
            at_s: shape (n,), arrival or response time of each request, in seconds.
            latencies_s: shape (n,), seconds; NaN without a response.

        Raises:
            ValueError: the shapes differ.
        """
        at, latencies = real_array("at_s", at_s), real_array("latencies_s", latencies_s)
        if at.ndim != 1 or at.shape != latencies.shape:
            raise ValueError(expected("latencies_s", f"an array of the shape of at_s, {at.shape}", latencies.shape))
        finite = np.isfinite(at) & np.isfinite(latencies)
        at, latencies = at[finite], np.maximum(latencies[finite], _LOWEST_S)
        first_s, last_s = (at.min(), at.max()) if at.size else (0.5, 0.5)
        around_s = 0.0 if last_s > first_s else 0.5
        edges_s = np.linspace(first_s - around_s, last_s + around_s, _COLUMNS + 1)
        latency_edges_s = _bands(latencies)
        columns = np.clip(np.searchsorted(edges_s, at, "right") - 1, 0, _COLUMNS - 1)
        counts = np.zeros((latency_edges_s.size - 1, _COLUMNS), np.int64)
        # clipped, because a rounded bound may be just below the longest latency
        rows = np.clip(np.searchsorted(latency_edges_s, latencies, "right") - 1, 0, counts.shape[0] - 1)
        np.add.at(counts, (rows, columns), 1)
        order = np.lexsort((latencies, columns))
        parts = np.split(latencies[order], np.searchsorted(columns[order], np.arange(1, _COLUMNS)))
        quantiles_s = np.array([np.quantile(part, _QUANTILES) if part.size else (np.nan, np.nan) for part in parts]).T
        return cls(edges_s=edges_s, latency_edges_s=latency_edges_s, counts=counts, quantiles_s=quantiles_s)

    @classmethod
    def of_intervals(cls, intervals: Iterable[Interval]) -> Self:
        """Return the map of an interval log, for example from `read_interval_log`.

        Args:
            intervals: intervals in order of time; a gap between two counts as part of the later one.

        Raises:
            ValueError: the ends of the intervals do not ascend.
        """
        check_instance("intervals", intervals, Iterable, "Intervals")
        ordered = list(intervals)
        for interval in ordered:
            check_instance("intervals", interval, Interval, "Intervals")
        ends_s = [interval.end_s for interval in ordered]
        if (np.diff(ends_s) <= 0).any():
            raise ValueError(expected("intervals", "intervals in order of time", ends_s))
        merged = -(-len(ordered) // _COLUMNS) or 1  # neighbors share a column if there are too many
        groups = [ordered[at : at + merged] for at in range(0, len(ordered), merged)]
        histograms = [
            functools.reduce(merge_widened, [it.histogram for it in rest], first.histogram.copy())
            for first, *rest in groups
        ]
        edges_s = np.array([ordered[0].start_s, *(group[-1].end_s for group in groups)] if ordered else [0.0, 1.0])
        recorded = [histogram for histogram in histograms if histogram.count]
        latency_edges_s = _bands(np.array([bound for it in recorded for bound in (it.min, it.max)]))
        counts = np.zeros((latency_edges_s.size - 1, edges_s.size - 1), np.int64)
        quantiles_s = np.full((2, edges_s.size - 1), np.nan)
        for column, histogram in enumerate(histograms):
            if histogram.count:
                shares = [histogram.share_within(float(bound)) for bound in latency_edges_s[1:]]
                counts[:, column] = np.diff(np.rint(np.array([0.0, *shares]) * histogram.count))
                quantiles_s[:, column] = histogram.quantiles(_QUANTILES)
        return cls(edges_s=edges_s, latency_edges_s=latency_edges_s, counts=counts, quantiles_s=quantiles_s)

    def plot(self, ax: Any = None) -> Any:
        """Draw the map, and the median and the 99th percentile over it; darker cells have more responses.

        Args:
            ax: a matplotlib ``Axes`` to draw on; ``None``: a new figure.

        Returns:
            The axes: x = seconds, as in ``edges_s``, with labels in the unit of the axis.

        Raises:
            MissingExtra: matplotlib is not installed (``pip install 'streaminfer[plot]'``).
        """
        colors = require("matplotlib.colors", extra="plot", purpose="LatencyHeatMap.plot")
        ax = new_axes(ax, "LatencyHeatMap.plot")
        ax.grid(visible=False)
        in_decades(ax.yaxis, self.latency_edges_s[0], self.latency_edges_s[-1])
        ax.set_xlim(self.edges_s[0], self.edges_s[-1])
        _label_time(ax.xaxis, self.edges_s[0], self.edges_s[-1])
        ax.set_ylabel("latency")
        if not self.counts.any():
            draw_placeholder(ax, "no responses yet")
            return ax
        masked = np.ma.masked_equal(self.counts, 0)
        max_count = int(self.counts.max())
        scale = colors.LogNorm(1, max(2, max_count))
        shades = colors.LinearSegmentedColormap.from_list("responses", _SHADES)
        drawn = ax.pcolormesh(
            self.edges_s, self.latency_edges_s, masked, norm=scale, cmap=shades, rasterized=True, shading="flat"
        )
        ticks = [*(10**n for n in range(12) if 2 * 10**n <= max_count), max_count]
        bar = ax.figure.colorbar(drawn, ax=ax, label="responses per cell", pad=0.02, ticks=ticks, format="{x:,.0f}")
        bar.minorticks_off()
        bar.outline.set_visible(False)
        for quantile_s, label, color in zip(self.quantiles_s, ("p50", "p99"), (COLORS[1], BAD), strict=True):
            ax.stairs(quantile_s, self.edges_s, baseline=None, color=color, linewidth=1.2, label=label)
        legend_above(ax)
        return ax

    def __repr__(self) -> str:
        seconds = self.edges_s[-1] - self.edges_s[0]
        return f"<LatencyHeatMap of {self.counts.sum():,} responses in {seconds:.4g} s>"

    def _repr_html_(self) -> str:
        rows = [("responses", f"{self.counts.sum():,}"), ("time", format_duration(self.edges_s[-1] - self.edges_s[0]))]
        return inline_svg(self.plot, f"Latency over time: {self!r}") or html_table(rows, caption="latency over time")


def _label_time(axis: Any, begin_s: float, end_s: float) -> None:
    """Label a time axis in a suitable unit; for seconds since the epoch, count from the start of the axis."""
    ticker = require("matplotlib.ticker", extra="plot", purpose="LatencyHeatMap.plot")
    size_s, unit = time_unit(end_s - begin_s)
    zero_s, label = 0.0, f"time, {unit}"
    if begin_s >= _EPOCH_S[0]:
        date = begin_s < _EPOCH_S[1] and dt.datetime.fromtimestamp(begin_s, dt.UTC)
        zero_s, label = begin_s, f"{unit} since {date:%Y-%m-%d %H:%M:%S} UTC" if date else f"{unit} from the start"
    ticks = zero_s + size_s * ticker.MaxNLocator(6).tick_values((begin_s - zero_s) / size_s, (end_s - zero_s) / size_s)
    axis.set_major_locator(ticker.FixedLocator(ticks[(ticks >= begin_s) & (ticks <= end_s)]))
    axis.set_major_formatter(ticker.FuncFormatter(lambda at_s, _: f"{round((at_s - zero_s) / size_s, 6):,g}"))
    axis.set_label_text(label)


def _bands(latencies_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the bounds of the bands, over whole decades around the latencies."""
    low_s, high_s = (latencies_s.min(), latencies_s.max()) if latencies_s.size else (1e-3, 1.0)
    low = int(np.floor(np.log10(max(low_s, _LOWEST_S))))
    high = max(int(np.ceil(np.log10(max(high_s, _LOWEST_S)))), low + 1)
    return np.logspace(low, high, (high - low) * _ROWS_PER_DECADE + 1)

"""Plot of latency by percentile.

The percentile axis is logarithmic in ``1 / (1 - q)``: each decade adds a nine, so the tail gets as much room as the
body. The line is the exact quantile function of the counts, with a step per non-empty part.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.display.figures import COLORS, draw_placeholder, in_seconds, legend_above, new_axes
from streaminfer._internal.loading.extras import require

__all__ = ["plot_percentiles"]


def plot_percentiles(ax: Any, values_s: NDArray[np.float64], counts: NDArray[np.int64], label: str = "") -> Any:
    """Draw latency by percentile.

    Args:
        ax: a matplotlib ``Axes``, or ``None`` for a new figure. Several histograms may share one.
        values_s: shape (n,), float64, ascending: the duration of each non-empty part.
        counts: shape (n,), int64: number of durations in each part.
        label: label of the line in the legend; empty: no label.

    Returns:
        The axes. The line has x = ``1 / (1 - q)`` and y = seconds. It ends at x = the number of durations, which is the
        finest percentile that they support.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    ticker = require("matplotlib.ticker", extra="plot", purpose="LatencyHistogram.plot")
    ax = new_axes(ax, "LatencyHistogram.plot")
    # each step goes from the share of durations below a part to the share below the next part
    at_or_above = counts[::-1].cumsum()[::-1]
    total = at_or_above[:1]
    x = np.append(total / at_or_above, total)
    y = np.append(values_s, values_s[-1:])
    color = COLORS[len(ax.lines) % len(COLORS)]
    mark = {"marker": ".", "markevery": [-1] if y.size else []}
    ax.plot(x, y, drawstyle="steps-post", label=label or None, color=color, **mark)
    ax.lines[-1].set_clip_on(False)  # the mark of a single duration is on the axis
    ax.set_xscale("log")
    # a single duration has no percentiles, and the logarithmic axis would have no width
    ax.set_xlim(1.0, max([10.0, *(line.get_xdata()[-1] for line in ax.lines if len(line.get_xdata()))]))
    longest_s = max((line.get_ydata()[-1] for line in ax.lines if len(line.get_ydata())), default=0.0)
    ax.set_ylim(0.0, 1.05 * longest_s or 1.0)
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(_percentile))
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    in_seconds(ax.yaxis)
    ax.set_xlabel("percentile")
    ax.set_ylabel("latency")
    if not counts.size and len(ax.lines) == 1:
        draw_placeholder(ax, "no latency recorded yet")
    legend_above(ax)
    return ax


def _percentile(x: float, _position: int | None = None) -> str:
    """Return the label for ``1 / (1 - q)``: 1000 is 99.9 %."""
    return f"{100.0 - 100.0 / x:.10g} %" if x > 0 else ""

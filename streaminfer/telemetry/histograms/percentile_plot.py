"""Plot of latency by percentile.

The percentile axis is logarithmic in ``1 / (1 - q)``: each decade is one more nine, so the tail, where latency is lost,
takes as much room as the body. The line is the exact quantile function of the counts, a step per part that is not
empty.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.extras import require

__all__ = ["plot_percentiles"]


def plot_percentiles(ax: Any, values_s: NDArray[np.float64], counts: NDArray[np.int64]) -> Any:
    """Draws latency by percentile.

    Args:
        ax: a matplotlib ``Axes``, or ``None`` for a new figure. Several histograms may share one.
        values_s: shape (n,), float64, ascending: the duration of each part that is not empty.
        counts: shape (n,), int64: how many durations each part holds.

    Returns:
        The axes. The line has x = ``1 / (1 - q)`` and y = seconds; it ends at x = the number of durations, the
        finest percentile that they can tell.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    ticker = require("matplotlib.ticker", extra="plot", purpose="LatencyHistogram.plot")
    if ax is None:
        pyplot = require("matplotlib.pyplot", extra="plot", purpose="LatencyHistogram.plot")
        ax = pyplot.subplots()[1]
    # a part's duration holds from the share of durations below it up to that of the next part
    at_or_above = counts[::-1].cumsum()[::-1]
    everything = at_or_above[:1]
    ax.plot(np.append(everything / at_or_above, everything), np.append(values_s, values_s[-1:]), drawstyle="steps-post")
    ax.set_xscale("log")
    ax.margins(x=0.0)
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(_percentile))
    ax.yaxis.set_major_formatter(ticker.EngFormatter(unit="s"))
    ax.set_xlabel("percentile")
    ax.set_ylabel("latency")
    ax.grid(visible=True, alpha=0.3)
    return ax


def _percentile(x: float, _position: int | None = None) -> str:
    """The label of ``1 / (1 - q)``: 1000 is 99.9 %."""
    return f"{100.0 - 100.0 / x:.10g} %" if x > 0 else ""

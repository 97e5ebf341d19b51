"""Percentiles of the last seconds, from a histogram that counts since its start."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram

__all__ = ["RecentTail"]


class RecentTail:
    """Differences between successive looks at a histogram, kept for a window; nothing is added to its recorders.

    A look costs a copy of the counts, about 50 µs; what it keeps is as small as what was recorded since the last one.
    Not thread-safe.

    Args:
        histogram: the one to look at.
        window_s: seconds that count.
    """

    def __init__(self, histogram: LatencyHistogram, window_s: float) -> None:
        self._histogram = histogram
        self._window_ns = round(window_s * 1e9)
        self._seen = 0
        self._before: NDArray[np.int64] = np.zeros(histogram.counts_length, np.int64)
        self._recent = np.zeros_like(self._before)
        self._added: deque[tuple[int, NDArray[Any], NDArray[np.int64]]] = deque()

    def quantiles(self, shares: Sequence[float], now_ns: int) -> list[float]:
        """Return percentiles of what was recorded within the window, in seconds; NaN where that is nothing.

        Args:
            shares: from 0 to 1.
            now_ns: monotonic; never less than at the last call.
        """
        count = self._histogram.count
        if count != self._seen:
            if count < self._seen:  # it was reset
                self._before[:] = 0
            self._seen = count
            counts = np.frombuffer(self._histogram.snapshot()[0], np.int64)
            parts = np.flatnonzero(counts != self._before)
            added = np.maximum(counts[parts] - self._before[parts], 0)
            self._before = counts
            self._recent[parts] += added
            self._added.append((now_ns, parts, added))
        while self._added and self._added[0][0] <= now_ns - self._window_ns:
            _, parts, added = self._added.popleft()
            self._recent[parts] -= added
        if not self._added:
            return [float("nan")] * len(shares)
        parts = np.flatnonzero(self._recent != 0)  # of booleans, which is five times as fast as of integers
        upto = self._recent[parts].cumsum()
        if not upto.size:
            return [float("nan")] * len(shares)
        at = np.searchsorted(upto, np.maximum(np.ceil(np.array(shares) * upto[-1]), 1.0))
        seconds: list[float] = ((self._histogram._lowest_at(parts[at] + 1) - 1) / 1e9).tolist()
        return seconds

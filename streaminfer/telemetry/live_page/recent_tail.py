"""Percentiles of the last seconds, from a histogram that counts since its start."""

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram

__all__ = ["RecentTail"]


_MAGNITUDE = 7
"""Neighboring parts are one group, so that an octave has 128: a percentile is too high by at most 0.8 %, or 4 µs below
0.5 ms."""


class RecentTail:
    """What a histogram has more than at the first of the looks of a window; nothing is added to its recorders.

    A look costs some microseconds and, as long as the window lasts, 32 KiB. What was recorded before the first look, or
    since one that is longer ago than the window, may be old and is left out. Not thread-safe.

    Args:
        histogram: the one to look at.
        window_s: seconds that count.
    """

    def __init__(self, histogram: LatencyHistogram, window_s: float) -> None:
        self._histogram = histogram
        self._window_ns = round(window_s * 1e9)
        self._shift = max(0, histogram.half_magnitude - _MAGNITUDE)
        self._looks: deque[tuple[int, NDArray[np.int64]]] = deque()  # instants, and the counts of groups then
        following = np.arange(1, (histogram.counts_length >> self._shift) + 1) << self._shift
        self._highest_s = (histogram._lowest_at(following) - 1) / 1e9

    def quantiles(self, shares: Sequence[float], now_ns: int) -> list[float]:
        """Return percentiles of what was recorded within the window, in seconds; NaN where that is nothing.

        Args:
            shares: from 0 to 1.
            now_ns: monotonic; never less than at the last call.
        """
        looks, counts = self._looks, np.frombuffer(self._histogram.grouped(self._shift), np.int64)
        if looks and now_ns - looks[-1][0] > self._window_ns:
            looks.clear()
        elif looks and (counts < looks[-1][1]).any():  # it was reset
            looks.clear()
            looks.append((now_ns, np.zeros_like(counts)))
        looks.append((now_ns, counts))
        while len(looks) > 1 and looks[1][0] <= now_ns - self._window_ns:
            looks.popleft()
        upto = (counts - looks[0][1]).cumsum()
        total = upto.item(-1)
        if not total:
            return [float("nan")] * len(shares)
        ranks = [max(1, math.ceil(share * total)) for share in shares]
        seconds: list[float] = self._highest_s[upto.searchsorted(ranks)].tolist()
        return seconds

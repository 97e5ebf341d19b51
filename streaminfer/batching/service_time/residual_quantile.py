"""Scatter of batch durations around their prediction.

*Design.* The last 64 log-ratios observed/predicted, in a ring and sorted. The standard deviation comes from the
distance between their 15 % and 85 % quantiles, the upper margin from an order statistic, so three outliers of 64 move
neither. The mean factor is the mean ratio of actual to predicted cost, with each ratio cut at 3.5: outliers count, a
single stall does not. Until there are eight ratios, normally distributed ones with a deviation of 5 % replace those
that are missing.

*Complexity.* A bisection and a shift within 64 numbers per ratio.

*References.* Blom (1958), Statistical Estimates and Transformed Beta-Variables (plotting positions).
"""

import math
from bisect import bisect_left, insort
from collections import deque

from streaminfer._internal.distributions.quantiles import normal_quantile

__all__ = ["ResidualQuantile"]

_ASSUMED_DEVIATION = 0.05
_ASSUMED = 8
_WINDOW = 64
_COVERAGE = 0.95
_SMALLEST = 0.001  # scatter of clocks and rounding
_LARGEST_RATIO = 3.5


class ResidualQuantile:
    """Window of the last 64 log-ratios observed/predicted.

    Not thread-safe.

    Attributes:
        deviation: standard deviation of the ratios, at least 0.001.
        margin: 95 % quantile of the ratios, at least 0.001.
        mean_factor: mean of observed/predicted, each ratio at most 3.5.
    """

    def __init__(self) -> None:
        assumed = [_ASSUMED_DEVIATION * normal_quantile((at + 0.5) / _ASSUMED) for at in range(_ASSUMED)]
        assumed.sort(key=abs)
        self._assumed = len(assumed)
        self._recent = deque(assumed)
        self._sorted = sorted(assumed)
        self._sum = sum(map(_ratio, assumed))
        self._measure()

    def add(self, residual: float) -> None:
        """Add a log-ratio, in place of the oldest of 64, or of an assumed one."""
        if self._assumed or len(self._sorted) == _WINDOW:
            self._assumed -= self._assumed > 0
            oldest = self._recent.popleft()
            self._sum -= _ratio(oldest)
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._recent.append(residual)
        self._sum += _ratio(residual)
        insort(self._sorted, residual)
        self._measure()

    def _measure(self) -> None:
        ordered = self._sorted
        low, high, per_width, upper, stretch = _RANKS[len(ordered)]
        self.deviation = max((ordered[high] - ordered[low]) * per_width, _SMALLEST)
        self.margin = max(ordered[upper] * stretch, _SMALLEST)
        self.mean_factor = self._sum / len(ordered)


def _ratio(residual: float) -> float:
    return min(math.exp(residual), _LARGEST_RATIO)


def _ranks(count: int) -> tuple[int, int, float, int, float]:
    """Return the ranks of the two quantiles and of the margin, and the factors that stretch them."""
    low, upper = count * 15 // 100, count - 1 - max(1, round(count * (1.0 - _COVERAGE)))
    high = count - 1 - low
    score = {rank: normal_quantile((rank + 0.625) / (count + 0.25)) for rank in (low, high, upper)}
    return low, high, 1.0 / (score[high] - score[low]), upper, normal_quantile(_COVERAGE) / score[upper]


_RANKS = {count: _ranks(count) for count in range(_ASSUMED, _WINDOW + 1)}

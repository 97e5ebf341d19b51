"""How far times scatter about what was predicted.

*Idea.* The scale is the distance between the 15 % and the 85 % quantile of the last 64 log-ratios, the upper quantile
an order statistic that three outliers of 64 cannot move. Both are stretched as for a normal distribution: the scale to
a standard deviation, the quantile from its plotting position, which is lower in small samples, to 95 %. Until eight
ratios have come, normal ones of 5 % stand in for those that are missing, the widest until the last.

*Cost.* A bisection and a shift within 64 numbers per ratio.

*Source.* Blom (1958), Statistical Estimates and Transformed Beta-Variables (plotting positions).
"""

from bisect import bisect_left, insort
from collections import deque
from statistics import NormalDist

__all__ = ["ASSUMED_NOISE", "RecentNoise"]

ASSUMED_NOISE = 0.05
_WINDOW = 64
_COVERAGE = 0.95
_LEAST = 0.001
_NORMAL = NormalDist()


class RecentNoise:
    """The last 64 log-ratios observed/predicted.

    Attributes:
        deviation: their standard deviation, at least 0.1 %: clocks and rounding have as much.
        upper: their 95 % quantile, at least 0.1 %.
    """

    def __init__(self) -> None:
        assumed = sorted((ASSUMED_NOISE * _NORMAL.inv_cdf((at + 0.5) / 8) for at in range(8)), key=abs)
        self._assumed = len(assumed)
        self._recent = deque(assumed)
        self._ordered = sorted(assumed)
        self._measure()

    def add(self, ratio: float) -> None:
        """Takes in one more, in place of the oldest once there are 64, or of one that was only assumed."""
        ordered = self._ordered
        if self._assumed or len(ordered) == _WINDOW:
            self._assumed -= self._assumed > 0
            del ordered[bisect_left(ordered, self._recent.popleft())]
        self._recent.append(ratio)
        insort(ordered, ratio)
        self._measure()

    def _measure(self) -> None:
        ordered = self._ordered
        low, high, per_width, upper, stretch = _RANKS[len(ordered)]
        self.deviation = max((ordered[high] - ordered[low]) * per_width, _LEAST)
        self.upper = max(ordered[upper] * stretch, _LEAST)


def _ranks(count: int) -> tuple[int, int, float, int, float]:
    """Which order statistics of ``count`` tell the standard deviation and the upper quantile, and their factors."""
    low, upper = count * 15 // 100, count - 1 - max(1, round(count * (1.0 - _COVERAGE)))
    high = count - 1 - low
    score = [_NORMAL.inv_cdf((rank + 0.625) / (count + 0.25)) for rank in range(count)]
    return low, high, 1.0 / (score[high] - score[low]), upper, _NORMAL.inv_cdf(_COVERAGE) / score[upper]


_RANKS = {count: _ranks(count) for count in range(8, _WINDOW + 1)}

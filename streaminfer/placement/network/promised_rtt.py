"""Round-trip times that can be promised, from few measurements of a network that changes.

Design:
    A promise is about the future: a share of the requests will take at most a given time. The quantile of past
    measurements promises too much for two reasons. First, measurements are few, and neighbors in time are alike.
    Second, the network changes: a route moves, a host becomes busy. No formula for independent samples covers the
    second reason, which is the larger one: of 9,702 pairs of personal devices, 38 % moved their median by over 20 ms
    from one half of 344 rounds to the other.

    `Backtest` measures both at once. The earlier half of each pair's measurements is the past, the later half the
    future. For each level it fits a line to the logarithms of past and future quantiles. The slope is 1 if pairs do not
    change, and less if slow pairs recover and fast pairs do not stay fast. Pairs are sorted by their past into bins.
    The bound of a bin is the distance from the line that the wanted part of its pairs stayed below, with the rank of
    split conformal prediction; bounds are interpolated between bins. Bins are small where the past was fast, because a
    busy host changes these pairs most and plans choose among them. The choice of the best of many sites does no harm,
    because a bound comes from pairs with a similar past.

    With fewer than `MIN_PAIRS` pairs there is no backtest. The bound is then an order statistic, for the number of
    independent measurements that are worth as much. A share that they cannot support is unpromisable.

Invariants:
    Promised values ascend with the level, and are never below the measured quantile.

References:
    Lei, G'Sell, Rinaldo, Tibshirani, Wasserman, "Distribution-free predictive inference for regression", JASA 2018.
"""

import itertools
import math
from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.validation import check_share
from streaminfer.placement.distribution import Distribution

__all__ = ["CONFIDENCE", "LEVELS", "UNPROMISABLE_S", "Backtest", "independent_samples"]

CONFIDENCE = 0.97
"""A little over the 95 % of pairs that must keep their promise, because pairs change together: 0.95 kept 93 to 95 %."""

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985, 0.99, 0.995, 0.999)
"""Shares of requests for which round-trip times are promised; an SLO asks about the upper ones."""

UNPROMISABLE_S = 86_400.0
"""Round-trip time of requests for which nothing can be promised: a day, which exceeds every SLO."""

MIN_PAIRS = 40
_BIN_GROWTH = 1.6
"""Number of pairs of a bin relative to the previous bin; the first has `MIN_PAIRS`."""
_MOST_BINS = 9
_MIN_SAMPLES = 20
_RESOLUTION_S = 0.001
"""Added before logarithms are taken: a round-trip time may be measured as 0."""

Floats = NDArray[np.float64]


@attrs.frozen(eq=False)
class Backtest:
    """Bounds on future quantiles of pairs, by level and by the quantile of their past.

    Attributes:
        confidence: the part of similar pairs that stayed below the bound.
        past: shape (levels, bins), logarithms of seconds; mean past of each bin. No bins: there were too few pairs.
        future: shape (levels, bins), logarithms of seconds; bound on the future of each bin.
        slope: shape (levels,), slope of the line through past and future, 0 to 1.
    """

    confidence: float
    past: Floats
    future: Floats
    slope: Floats

    @classmethod
    def of(cls, columns: Sequence[Floats], confidence: float) -> "Backtest":
        """Compare the later half of measurements with the earlier.

        Args:
            columns: measurements of each pair, in seconds and in the order of measurement.
            confidence: between 0 and 1.

        Raises:
            TypeError, ValueError: ``confidence`` is not such a number.
        """
        confidence = check_share("confidence", confidence)
        usable = [column for column in columns if column.size >= _MIN_SAMPLES]
        pairs = len(usable)
        if pairs < MIN_PAIRS or _rank(pairs, confidence) > pairs:
            empty = np.empty((len(LEVELS), 0))
            return cls(confidence, empty, empty, np.empty(len(LEVELS)))
        past = _logs(np.array([_quantiles(column[: column.size // 2]) for column in usable]).T)
        future = _logs(np.array([_quantiles(column[column.size // 2 :]) for column in usable]).T)
        slope = _slopes(past, future)
        order = np.argsort(past, axis=1, kind="stable")
        past, future = np.take_along_axis(past, order, 1), np.take_along_axis(future, order, 1)
        distance = future - slope[:, None] * past
        parts = _bins(pairs)
        center = np.array([past[:, part].mean(axis=1) for part in parts]).T
        bound = slope[:, None] * center + np.array([_upper(distance[:, part], confidence) for part in parts]).T
        return cls(confidence, center, bound, slope)

    def promised(self, samples_s: Floats) -> Distribution:
        """Return the round-trip times of a pair that can be promised.

        Each share of the requests has the value of the level above it; those without a promise have `UNPROMISABLE_S`.

        Args:
            samples_s: its measurements, in the order of measurement.
        """
        measured = _quantiles(samples_s)
        if self.past.size:
            rows = zip(_logs(measured), self.past, self.future, self.slope, strict=True)
            bounds = np.exp([_bound(*row) for row in rows]) - _RESOLUTION_S
        else:
            bounds = _order_statistics(samples_s, self.confidence)
        values = np.minimum(np.maximum.accumulate(np.maximum(bounds, measured)), UNPROMISABLE_S)
        return Distribution.of([*values.tolist(), UNPROMISABLE_S], np.diff([0.0, *LEVELS, 1.0]).tolist())


def independent_samples(samples_s: Floats) -> float:
    """Return the equivalent number of independent samples, from the correlation of neighbors' ranks (AR(1))."""
    if np.ptp(samples_s) == 0:
        return 1.0
    _, codes, counts = np.unique(samples_s, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[codes]
    ranks -= ranks.mean()
    correlation = min(max(float(ranks[1:] @ ranks[:-1] / (ranks @ ranks)), 0.0), 1.0)
    return max(samples_s.size * (1 - correlation) / (1 + correlation), 1.0)


def _quantiles(samples_s: Floats) -> Floats:
    return np.quantile(samples_s, LEVELS, method="higher")


def _rank(pairs: int, confidence: float) -> int:
    """Return the rank of the bound among the futures of ``pairs``; a rank above their number means no bound."""
    return math.ceil((pairs + 1) * confidence)


def _upper(distance: Floats, confidence: float) -> Floats:
    """Return the bound on the distances of one bin for all levels; the pairs are the second axis."""
    at = min(_rank(distance.shape[1], confidence), distance.shape[1]) - 1
    return np.asarray(np.partition(distance, at, axis=1)[:, at])


def _bins(pairs: int) -> list[NDArray[np.int64]]:
    """Return the indexes of the pairs of each bin; the last bin gets the rest."""
    ends, size = [0], float(MIN_PAIRS)
    while ends[-1] + 2 * size <= pairs and len(ends) < _MOST_BINS:
        ends.append(ends[-1] + int(size))
        size *= _BIN_GROWTH
    return [np.arange(start, end) for start, end in itertools.pairwise([*ends, pairs])]


def _logs(values_s: Floats) -> Floats:
    return np.asarray(np.log(values_s + _RESOLUTION_S))


def _slopes(past: Floats, future: Floats) -> Floats:
    """Return the slopes of the lines through the pairs of each level, by least squares."""
    centered = past - past.mean(axis=1, keepdims=True)
    squares = (centered**2).sum(axis=1)
    products = (centered * future).sum(axis=1)
    slopes = np.divide(products, squares, out=np.ones_like(squares), where=squares > 0)
    return np.asarray(np.clip(slopes, 0.0, 1.0))


def _bound(value: float, past: Floats, future: Floats, slope: float) -> float:
    """Interpolate between bins; beyond them, extend the line, upward with a slope of 1."""
    if value < past[0]:
        return float(future[0] - slope * (past[0] - value))
    if value > past[-1]:
        return float(future[-1] + value - past[-1])
    return float(np.interp(value, past, future))


def _order_statistics(samples_s: Floats, confidence: float) -> Floats:
    """Return upper confidence bounds of the quantiles at `LEVELS`, from the equivalent independent samples."""
    count = int(independent_samples(samples_s))
    ascending = np.sort(samples_s)
    bounds = []
    for level in LEVELS:
        below = _binomial_cdf(count, level)
        at = int(np.searchsorted(below, confidence))
        bounds.append(math.inf if at >= count else float(np.quantile(ascending, (at + 1) / count, method="higher")))
    return np.array(bounds)


def _binomial_cdf(count: int, share: float) -> Floats:
    """Return the probability that at most 0, 1, … count - 1 of the samples lie below the quantile."""
    k = np.arange(count)
    logs = np.array([math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in k.tolist()])
    return np.cumsum(np.exp(logs + k * math.log(share) + (count - k) * math.log1p(-share)))

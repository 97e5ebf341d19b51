"""Round-trip times that can be promised, from few measurements of a network that changes.

Design:
    A promise is about the future: a share of the requests will need at most so long. The quantile of past measurements
    promises too much for two reasons. There are few of them, and neighbors in time are alike. And the network moves:
    a route changes, a host becomes busy. No formula for independent samples knows the second reason, which is the
    larger one: of 9,702 pairs of personal devices, 38 % moved their median by over 20 ms from one half of 344 rounds to
    the other.

    `Backtest` measures both at once. The earlier half of each pair's measurements plays the past, the later half the
    future. For each level, pairs are sorted by the quantile of their past into bins of equal size, and of each bin the
    quantile of the future is taken that the wanted part of its pairs stayed below, with the rank of split conformal
    prediction. This is made monotone, so a pair that was slower is never promised more; between bins it is
    interpolated. Conditioning on the past makes the choice of the best of many sites harmless: the best of the past are
    compared with the best of the past.

    With less than `MIN_PAIRS` pairs there is no backtest. The bound is then an order statistic, with as many
    measurements as independent ones would be worth, and the share that no measurement can vouch for is unpromisable.

Invariants:
    Promised values ascend with the level and with the confidence, and are never below the measured quantile.

References:
    Lei, G'Sell, Rinaldo, Tibshirani, Wasserman, "Distribution-free predictive inference for regression", JASA 2018.
"""

import math
from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.validation import check_number
from streaminfer.placement.distribution import Distribution

__all__ = ["CONFIDENCE", "LEVELS", "UNPROMISABLE_S", "Backtest", "PromisedRtt", "independent_samples", "promised_rtt"]

CONFIDENCE = 0.97
"""Pairs of a network move together, so a little over the 95 % that shall keep their promise: 0.95 kept 93 to 95 %."""

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985, 0.99, 0.995, 0.999)
"""Shares of requests for which round-trip times are promised; an SLO asks about the upper ones."""

UNPROMISABLE_S = 86_400.0
"""Round-trip time of the requests that no measurement vouches for: a day, which is within no SLO."""

MIN_PAIRS = 40
_PAIRS_PER_BIN = 400
_MOST_BINS = 12
_MIN_SAMPLES = 20
_RESOLUTION_S = 0.001
"""Added before ratios are taken: a round-trip time may be measured as 0."""

Floats = NDArray[np.float64]


@attrs.frozen(eq=False)
class PromisedRtt:
    """Round-trip times of one pair that can be promised.

    Attributes:
        values_s: for each of `LEVELS`, ascending; infinity: nothing can be promised.
    """

    values_s: Floats

    def quantile(self, share: float) -> float:
        """Return the promised round-trip time of a share of the requests, in seconds; infinity: there is none."""
        at = int(np.searchsorted(LEVELS, share - 1e-12))
        return float(self.values_s[at]) if at < len(LEVELS) else math.inf

    def distribution(self) -> Distribution:
        """Return it for a `Problem`: each share has the value of the level above, the rest `UNPROMISABLE_S`."""
        shares = np.diff([0.0, *LEVELS, 1.0])
        values = np.append(np.where(np.isfinite(self.values_s), self.values_s, UNPROMISABLE_S), UNPROMISABLE_S)
        return Distribution.of(values.tolist(), shares.tolist())


@attrs.frozen(eq=False)
class Backtest:
    """Bounds on future quantiles of pairs, by level and by the quantile of their past.

    Attributes:
        confidence: the part of alike pairs that stayed below.
        past_s: shape (levels, bins), seconds; mean past of each bin. No bins: there were too few pairs.
        future_s: likewise the bound.
    """

    confidence: float
    past_s: Floats
    future_s: Floats

    @classmethod
    def of(cls, columns: Sequence[Floats], confidence: float) -> "Backtest":
        """Compare the later half of measurements with the earlier.

        Args:
            columns: measurements of each pair, in seconds and in the order of measurement.
            confidence: between 0 and 1.

        Raises:
            TypeError, ValueError: no such confidence.
        """
        check_number("confidence", confidence, "a number between 0 and 1", lambda it: 0 < it < 1)
        enough = [column for column in columns if column.size >= _MIN_SAMPLES]
        pairs = len(enough)
        if pairs < MIN_PAIRS or _rank(pairs, confidence) > pairs:
            return cls(confidence, np.empty((len(LEVELS), 0)), np.empty((len(LEVELS), 0)))
        past = np.array([_quantiles(column[: column.size // 2]) for column in enough]).T
        future = np.array([_quantiles(column[column.size // 2 :]) for column in enough]).T
        bins = min(max(pairs // max(_PAIRS_PER_BIN, math.ceil(1 / (1 - confidence))), 1), _MOST_BINS)
        order = np.argsort(past, axis=1, kind="stable")
        past, future = np.take_along_axis(past, order, 1), np.take_along_axis(future, order, 1)
        parts = np.array_split(np.arange(pairs), bins)
        bound = np.array([_upper(future[:, part], confidence) for part in parts]).T
        return cls(
            confidence,
            np.array([past[:, part].mean(axis=1) for part in parts]).T,
            np.maximum.accumulate(bound, axis=1),
        )

    def bounds(self, past_s: Floats) -> Floats:
        """Return the bound on the future of a pair, for its quantiles at `LEVELS`."""
        pairs = zip(past_s, self.past_s, self.future_s, strict=True)
        return np.array([_bound(value, past, future) for value, past, future in pairs])


def promised_rtt(samples_s: Floats, backtest: Backtest) -> PromisedRtt:
    """Return what can be promised about a pair.

    Args:
        samples_s: its measurements, in the order of measurement.
        backtest: of all pairs.
    """
    measured = _quantiles(samples_s)
    bounds = backtest.bounds(measured) if backtest.past_s.size else _order_statistics(samples_s, backtest.confidence)
    return PromisedRtt(np.maximum.accumulate(np.maximum(bounds, measured)))


def independent_samples(samples_s: Floats) -> float:
    """Return how many independent samples are worth as much, by the correlation of neighbors' ranks (AR(1))."""
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
    """Rank of the bound among so many futures; above their number, there is none."""
    return math.ceil((pairs + 1) * confidence)


def _upper(future_s: Floats, confidence: float) -> Floats:
    """The bound of one bin for all levels; the pairs are the second axis."""
    at = min(_rank(future_s.shape[1], confidence), future_s.shape[1]) - 1
    return np.partition(future_s, at, axis=1)[:, at]


def _bound(value_s: float, past_s: Floats, future_s: Floats) -> float:
    """Interpolate between bins; a past slower than that of all bins scales the bound of the last."""
    if value_s > past_s[-1]:
        return float(future_s[-1] * (value_s + _RESOLUTION_S) / (past_s[-1] + _RESOLUTION_S))
    return float(np.interp(value_s, past_s, future_s))


def _order_statistics(samples_s: Floats, confidence: float) -> Floats:
    """Upper confidence bounds of the quantiles at `LEVELS`, as if the independent samples were all there were."""
    count = int(independent_samples(samples_s))
    ascending = np.sort(samples_s)
    bounds = []
    for level in LEVELS:
        below = _binomial_cdf(count, level)
        at = int(np.searchsorted(below, confidence))
        bounds.append(math.inf if at >= count else float(np.quantile(ascending, (at + 1) / count, method="higher")))
    return np.array(bounds)


def _binomial_cdf(count: int, share: float) -> Floats:
    """Probability that at most 0, 1, … count - 1 of the samples lie below the quantile."""
    k = np.arange(count)
    logs = np.array([math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in k.tolist()])
    return np.cumsum(np.exp(logs + k * math.log(share) + (count - k) * math.log1p(-share)))

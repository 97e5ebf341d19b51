"""A nondecreasing curve through noisy times of a batch at some sizes.

*Idea.* Pool-adjacent-violators replaces each run of estimates that fall by its weighted mean, which gives the
nondecreasing sequence nearest to them in weighted squares; straight lines join the sizes. Outside them the slope at
the last (first) size goes on. It is fitted by least squares over the sizes from half the last (up to twice the first),
since neighbours alone say little under noise or padding, and drawn towards one half of the proportional cost: one size
alone continues as ``t(n) = t(m)·(0.5 + 0.5·n/m)``, and two clean ones say nearly all.

*Invariants.* The curve is positive and nondecreasing, and passes through the pooled estimates. Below the first size it
stays between proportional and constant.

*Cost.* Linear in the number of sizes.

*Source.* Barlow, Bartholomew, Bremner, Brunk (1972), Statistical Inference under Order Restrictions.
"""

import math
from bisect import bisect_left

import numpy as np

from streaminfer.batching.service_time import ServiceTime

__all__ = ["monotone_curve"]

_SLOPE = 0.5  # of the proportional cost, where nothing is known of it
_SLOPE_PRECISION = 16.0  # known to a quarter of the proportional cost
_STEEPEST = 1.5


def monotone_curve(
    sizes: list[int], log_times: list[float], variances: list[float], prior: ServiceTime | None
) -> tuple[ServiceTime, list[float]]:
    """Fits the curve.

    Args:
        sizes: ascending, at least one.
        log_times: natural logarithm of the estimated time of each, in any unit.
        variances: of these logarithms, > 0.
        prior: the shape between and outside the sizes; ``None``: straight lines.

    Returns:
        The curve, and the logarithms of its times at the sizes.
    """
    weights = [1.0 / variance for variance in variances]
    pooled = _pooled(log_times, weights)
    times = [math.exp(log_time) for log_time in pooled]
    if prior is not None:
        return _bent(prior, sizes, times), pooled
    places, first, last = list(sizes), sizes[0], sizes[-1]
    start = max(min(bisect_left(sizes, (last + 1) // 2), len(sizes) - 2), 0)
    slope = times[-1] / last * _slope(sizes[start:], times[start:], weights[start:])
    if first > 1:
        stop = max(bisect_left(sizes, 2 * first + 1), 2)
        share = _slope(sizes[:stop][::-1], times[:stop][::-1], weights[:stop][::-1])
        times.insert(0, times[0] * (1.0 - min(share, 1.0) * (1.0 - 1.0 / first)))
        places.insert(0, 1)
    return ServiceTime(tuple(places), tuple(times), slope), pooled


def _pooled(values: list[float], weights: list[float]) -> list[float]:
    """Pool-adjacent-violators: the nondecreasing sequence nearest in weighted squares."""
    means: list[float] = []
    totals: list[float] = []
    counts: list[int] = []
    for mean, total in zip(values, weights, strict=True):
        count = 1
        while means and means[-1] > mean:
            weight = totals.pop()
            mean = (mean * total + means.pop() * weight) / (total + weight)  # noqa: PLW2901 - the block grows
            total += weight  # noqa: PLW2901 - the same
            count += counts.pop()
        means.append(mean)
        totals.append(total)
        counts.append(count)
    if len(means) == len(values):
        return means
    return [mean for mean, count in zip(means, counts, strict=True) for _ in range(count)]


def _slope(sizes: list[int], times: list[float], weights: list[float]) -> float:
    """The slope of the time at the last of the sizes, in units of the proportional cost there, 0 … 1.5.

    Weighted least squares, drawn towards one half by ``_SLOPE_PRECISION``.
    """
    last, last_time = sizes[-1], times[-1]
    sum_w = sum_x = sum_y = sum_xx = sum_xy = 0.0
    for size, time, weight in zip(sizes, times, weights, strict=True):
        x, y = size / last - 1.0, time / last_time - 1.0
        weighted = weight * x
        sum_w += weight
        sum_x += weighted
        sum_y += weight * y
        sum_xx += weighted * x
        sum_xy += weighted * y
    spread = sum_xx - sum_x * sum_x / sum_w
    slope = (sum_xy - sum_x * sum_y / sum_w + _SLOPE * _SLOPE_PRECISION) / (spread + _SLOPE_PRECISION)
    return min(max(slope, 0.0), _STEEPEST)


def _bent(prior: ServiceTime, sizes: list[int], times: list[float]) -> ServiceTime:
    """The prior's curve, multiplied so that it passes through the times; between and outside it keeps its shape."""
    places = sorted({1, *sizes, *prior.sizes} - {0})
    ratios = [time / prior.at(size) for size, time in zip(sizes, times, strict=True)]
    bent = np.interp(places, sizes, ratios) * [prior.at(place) for place in places]
    return ServiceTime(tuple(places), tuple(np.maximum.accumulate(bent).tolist()), prior.per_item_s * ratios[-1])

"""Isotonic regression: the nondecreasing sequence nearest to noisy estimates.

*Design.* Pool adjacent violators replaces each run of values that fall by its weighted mean.

*Complexity.* Linear in the number of values.

*References.* Barlow, Bartholomew, Bremner, Brunk (1972), Statistical Inference under Order Restrictions.
"""

from collections.abc import Sequence

__all__ = ["isotonic_curve"]


def isotonic_curve(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the nondecreasing sequence with the least weighted squared distance.

    Args:
        values: any numbers.
        weights: as many, > 0.
    """
    means: list[float] = []
    totals: list[float] = []
    counts: list[int] = []
    for value, weight in zip(values, weights, strict=True):
        mean, total, count = value, weight, 1
        while means and means[-1] > mean:
            earlier = totals.pop()
            mean = (mean * total + means.pop() * earlier) / (total + earlier)
            total += earlier
            count += counts.pop()
        means.append(mean)
        totals.append(total)
        counts.append(count)
    return [mean for mean, count in zip(means, counts, strict=True) for _ in range(count)]

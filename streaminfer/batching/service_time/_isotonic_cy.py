"""Isotonic regression: the nondecreasing sequence nearest to noisy estimates.

*Design.* Pool adjacent violators: each run of falling values is replaced by its weighted mean.

*Complexity.* Linear in the number of values. Compiled with the C types of ``_isotonic_cy.pxd`` or run uncompiled.

*References.* Barlow, Bartholomew, Bremner, Brunk (1972), Statistical Inference under Order Restrictions.
"""

from __future__ import annotations

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
    for at in range(len(values)):
        mean = values[at]
        total = weights[at]
        count = 1
        while means:
            before = means[-1]
            if before <= mean:
                break
            means.pop()
            earlier = totals.pop()
            mean = (mean * total + before * earlier) / (total + earlier)
            total += earlier
            count += counts.pop()
        means.append(mean)
        totals.append(total)
        counts.append(count)
    curve: list[float] = []
    for at in range(len(means)):
        curve.extend([means[at]] * counts[at])
    return curve

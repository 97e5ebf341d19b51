"""Relative costs of batch sizes: measured for each size, and regularized by a line over all sizes.

*Design.* A size that was first measured at a slow moment would be wrong for long. So its cost is that of the line plus
a correction. The weight of the correction grows with the number of batches of that size, and falls with the device's
noise. The result never falls as batches grow, because a batch can be padded to a larger one. It does not grow faster
than for any model that pads batches to a power of two.

*Complexity.* Linear in the sizes, about ten; runs each time that the curve is published. Compiled with the C types of
``_relative_costs_cy.pxd`` or run uncompiled.

*References.* Barlow et al. (1972), Statistical Inference under Order Restrictions.
"""

from __future__ import annotations

import math

from streaminfer.batching.service_time._isotonic_cy import isotonic_curve

__all__ = ["STEEPEST", "smoothed_costs"]

exp = math.exp
power = math.pow

_OFF_LINE = 0.15  # standard deviation of the costs about the line, as a log-ratio
_LINE_VISITS = 0.5  # smallest number of visits at which a size's own cost counts as much as the line
_PRIOR_WEIGHT = 0.02  # visits
STEEPEST = 1.35
"""Largest power of the size with which costs grow; convolutions that exceed the cache reach 1.3."""
_STEEPEST = STEEPEST  # a C variable in the compiled module
_SINGULAR = 1e-12


def smoothed_costs(
    sizes: list[int], logarithms: list[float], visits: list[int], deviation: float
) -> tuple[list[float], float, float]:
    """Return regularized costs of some sizes, and the line to which they are drawn.

    Args:
        sizes: ascending.
        logarithms: logarithm of the measured cost of each size.
        visits: number of batches of each size, at least 1.
        deviation: standard deviation of the logarithm of durations.

    Returns:
        As many costs, nondecreasing; the line's cost of a batch of no rows; the line's cost per row.
    """
    own = []
    for logarithm in logarithms:
        own.append(exp(logarithm))  # noqa: PERF401 - a comprehension has types of its own
    line = _line(sizes, own, visits)
    setup = line[0]
    per_row = line[1]
    prior_visits = deviation / _OFF_LINE
    prior_visits *= prior_visits
    if prior_visits < _LINE_VISITS:
        prior_visits = _LINE_VISITS
    costs = []
    count = len(sizes)
    for at in range(count):
        cost = own[at]
        size = sizes[at]
        own_visits = visits[at]
        on_line = setup + per_row * size
        costs.append(on_line * power(cost / on_line, own_visits / (own_visits + prior_visits)))
    costs = isotonic_curve(costs, visits)
    for at in range(1, count):
        size = sizes[at]
        below = sizes[at - 1]
        full = 1.0  # a power of two to which a model may pad the batch
        while full < size:
            full *= 2.0
        costs[at] = min(costs[at], costs[at - 1] * power(full / below, _STEEPEST))
    return costs, setup, per_row


def _line(sizes: list[int], costs: list[float], weights: list[int]) -> tuple[float, float]:
    """Return set-up and cost per row of the line with the smallest relative squared distance, neither negative.

    It is drawn towards a constant cost by ``_PRIOR_WEIGHT``, so larger batches are tried until they prove slower.
    """
    mean_size = mean_cost = 0.0
    # rows of the least-squares problem: setup * x + per_row * y = 1
    xx = yy = xy = x1 = y1 = 0.0
    for at in range(len(sizes)):
        size = sizes[at]
        cost = costs[at]
        weight = weights[at]
        mean_size += size * weight
        mean_cost += cost * weight
        x = 1.0 / cost
        y = size / cost
        xx += weight * x * x
        yy += weight * y * y
        xy += weight * x * y
        x1 += weight * x
        y1 += weight * y
    prior = mean_size / mean_cost
    yy += _PRIOR_WEIGHT * prior * prior
    determinant = xx * yy - xy * xy
    if determinant < _SINGULAR * xx * yy:  # costs differ so much that rounding errors hide the line
        return x1 / xx, 0.0
    setup = (x1 * yy - y1 * xy) / determinant
    per_row = (y1 * xx - x1 * xy) / determinant
    if setup < 0.0:
        return 0.0, y1 / yy
    if per_row < 0.0:
        return x1 / xx, 0.0
    return setup, per_row

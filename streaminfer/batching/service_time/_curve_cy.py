"""Loops over the durations of all batch sizes, which a planner runs whenever its model has learned.

For a few dozen sizes each takes less than a microsecond; NumPy would need several calls of two or three. Compiled with
the C types of ``_curve_cy.pxd`` or run uncompiled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["WORTH_GROWING", "best_size", "fill_planned", "fill_times", "fill_whole_ns", "largest_as_good"]

power = math.pow

_LONGEST_NS = 1e17  # three years: sums of a few such instants still fit into int64
_NEAR_BEST = 0.98
WORTH_GROWING = 0.95
_WORTH_GROWING = WORTH_GROWING  # a C variable in the compiled module


def fill_times(sizes: tuple[int, ...], times_s: tuple[float, ...], slope_s: float, table: NDArray[np.float64]) -> None:
    """Write the times of all sizes: straight lines between known ones, and the slope after the last.

    Below the first known size its slope continues, but a smaller batch takes at least its proportional share of the
    time of that size.

    Args:
        sizes: sizes with known times, ascending.
        times_s: as many.
        slope_s: seconds for each further item after the last size.
        table: shape (n + 1,), float64, written to: seconds by size; entry 0 is 0.
    """
    count = len(sizes)
    length = len(table)
    above = sizes[0]
    above_s = times_s[0]
    rise_s = slope_s if count == 1 else (times_s[1] - above_s) / (sizes[1] - above)
    size = 1
    while size < above and size < length:
        on_line_s = above_s - rise_s * (above - size)
        share_s = above_s * size / above
        table[size] = on_line_s if on_line_s > share_s else share_s
        size += 1
    for at in range(1, count):
        below = above
        below_s = above_s
        above = sizes[at]
        above_s = times_s[at]
        rise_s = (above_s - below_s) / (above - below)
        while size < above and size < length:
            table[size] = below_s + rise_s * (size - below)
            size += 1
    while size < length:
        table[size] = above_s + slope_s * (size - above)
        size += 1
    table[0] = 0.0


def fill_whole_ns(table: NDArray[np.float64], unit_ns: float, rounded: NDArray[np.int64]) -> None:
    """Write times as whole nanoseconds that a planner can add up.

    Args:
        table: shape (n + 1,), float64, nondecreasing; entry 0 is not read.
        unit_ns: nanoseconds of the table's unit.
        rounded: the same shape, int64, written to: entry 0 is 0, the others are within 1 … 10**17.
    """
    longest = _LONGEST_NS / unit_ns
    for size in range(len(table)):
        time = table[size]
        time_ns = _LONGEST_NS if time > longest else time * unit_ns
        rounded_ns = int(time_ns + 0.5)
        rounded[size] = rounded_ns if rounded_ns > 0 else 1
    rounded[0] = 0


def fill_planned(
    mean: NDArray[np.int64],
    upper: NDArray[np.int64],
    safety: float,
    stretch: float,
    planned: NDArray[np.int64],
    capped: NDArray[np.int64],
    slow: NDArray[np.int64],
) -> None:
    """Write the planner's tables up to a size.

    Args:
        mean: int64, at least as many as the others: nanoseconds by size.
        upper: the same: nanoseconds that 19 of 20 batches do not exceed.
        safety: share by which planned durations exceed the mean.
        stretch: ratio of a slow batch's duration to the planned one.
        planned: shape (n + 1,), int64, written to: the mean plus the share.
        capped: the same shape, written to: ``upper``.
        slow: the same shape, written to: planned times ``stretch``, at most ``upper``.
    """
    planned[0] = capped[0] = slow[0] = 0
    for size in range(1, len(planned)):
        duration = int(mean[size] * safety)
        duration += mean[size]
        longest = upper[size]
        stretched = duration * stretch
        planned[size] = duration
        capped[size] = longest
        if stretched < longest:
            longest = int(stretched)
        slow[size] = longest


def best_size(table: NDArray[np.float64]) -> int:
    """Return the batch size that `ServiceTime.best_batch_size` describes.

    Args:
        table: shape (n + 1,), float64, times by size in any unit; entry 0 is not read, the others are positive.
    """
    highest = 0.0
    for size in range(1, len(table)):
        throughput = size / table[size]
        if throughput > highest:
            highest = throughput
    best = 1
    best_worth = -1.0
    for size in range(1, len(table)):
        throughput = size / table[size]
        if throughput >= _NEAR_BEST * highest:
            worth = throughput * power(size, _WORTH_GROWING - 1.0)
            if worth > best_worth:
                best = size
                best_worth = worth
    return best


def largest_as_good(table: NDArray[np.float64], best: int, below: int, limit: int, tolerance: float) -> int:
    """Return the largest size whose throughput falls short of the best size's by no more than a share.

    Args:
        table: as for :func:`best_size`.
        best: the size with the best throughput.
        below: result if there is no such size above it, at least ``best``.
        limit: the largest size to consider, at least ``below``.
        tolerance: the share.
    """
    least = best / table[best] * (1.0 - tolerance)
    size = limit
    while size > below and size / table[size] < least:
        size -= 1
    return size

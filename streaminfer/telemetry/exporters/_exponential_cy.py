# cython: boundscheck=False, wraparound=False
"""Exponential buckets of Prometheus and OpenTelemetry, and classic ones, from running totals of counts.

One source, compiled with the C types of ``_exponential_cy.pxd`` or run as it is.
"""

from __future__ import annotations

from typing import Any

__all__ = ["fill_bounds", "fill_buckets"]


def fill_buckets(
    totals: Any, first: int, end: int, edges: Any, middles: Any, numbers: Any, limit: int, indexes: Any, counts: Any
) -> tuple[int, int]:
    """Write the exponential buckets that hold something.

    Args:
        totals: shape (parts + 1,), int64, as of `HistogramState.cumulate_into`.
        first: the first part that can hold something.
        end: behind the last one.
        edges: shape (buckets + 1,), int32, ascending: the first part of each bucket, and the end of the last.
        middles: shape (buckets,), int32: the first part of the upper one of the two buckets of the next finer schema
            that each consists of.
        numbers: shape (buckets,), int32, ascending: what the buckets are called.
        limit: the most buckets.
        indexes: shape (limit,), int32: gets the numbers.
        counts: shape (limit,), int64: gets their counts.

    Returns:
        How many buckets hold something, and how many of the next finer schema do; ``limit + 1`` twice if the former are
        more than the limit.
    """
    low = 0
    high = len(numbers)
    while high - low > 1:  # to the bucket of the first part
        middle = (low + high) // 2
        if edges[middle] <= first:
            low = middle
        else:
            high = middle
    filled = finer = 0
    below = totals[max(first, edges[low])]
    while low < len(numbers) and edges[low] < end:
        total = totals[min(end, edges[low + 1])]
        if total > below:
            if filled == limit:
                return limit + 1, limit + 1
            indexes[filled] = numbers[low]
            counts[filled] = total - below
            filled += 1
            between = totals[min(end, max(first, middles[low]))]
            finer += 2 if below < between < total else 1
            below = total
        low += 1
    return filled, finer


def fill_bounds(totals: Any, first: int, end: int, edges: Any, cumulative: Any) -> None:
    """Write the count up to each bound.

    Args:
        totals: as of `fill_buckets`.
        first: as there.
        end: as there.
        edges: shape (bounds,), int32, ascending: the first part above each bound.
        cumulative: shape (bounds,), int64: the result.
    """
    for bound in range(len(edges)):
        cumulative[bound] = totals[max(first, min(end, edges[bound]))]

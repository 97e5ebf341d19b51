# cython: boundscheck=False, wraparound=False
"""Exponential buckets of Prometheus and OpenTelemetry, and classic ones, from running totals of counts.

One source, compiled with the C types of ``_exponential_cy.pxd`` or run as it is.
"""

from __future__ import annotations

from typing import Any

__all__ = ["MAX_GAP", "fill_bounds", "fill_buckets"]

MAX_GAP = 5
"""Empty buckets between two others that are written, in a byte each: a new span takes more bytes."""

# a C variable in the compiled module, not visible from Python
_SPAN = MAX_GAP + 1  # bytes that begin a new span


def fill_buckets(
    totals: Any, first: int, end: int, edges: Any, middles: Any, numbers: Any, limit: int, indexes: Any, counts: Any
) -> tuple[int, int, int]:
    """Write the exponential buckets that hold something.

    The size of buckets is about that of their counts and gaps in protobuf. It never shrinks while durations are added:
    a schema that became finer again would look like a restart of the server.

    Args:
        totals: shape (parts + 1,), int64, as of `HistogramState.cumulate_into`.
        first: the first part that can hold something.
        end: behind the last one.
        edges: shape (buckets + 1,), int32, ascending: the first part of each bucket, and the end of the last.
        middles: shape (buckets,), int32: the first part of the upper one of the two buckets of the next finer schema
            that each consists of.
        numbers: shape (buckets,), int32, ascending: what the buckets are called.
        limit: the largest size.
        indexes: shape (limit,), int32: gets the numbers.
        counts: shape (limit,), int64: gets their counts.

    Returns:
        How many buckets hold something, their size, and how many buckets of the next finer schema do, which is the
        least that these take; 0 and ``limit + 1`` twice if they are larger than the limit.
    """
    low = _bucket_of(first, edges)
    filled = size = finer = 0
    below = totals[max(first, edges[low])]
    last = numbers[low] - 1
    while low < len(numbers) and edges[low] < end:
        total = totals[min(end, edges[low + 1])]
        if total > below:
            size += _size(total - below, numbers[low] - last - 1 if filled > 0 else 0)
            if size > limit:
                return 0, limit + 1, limit + 1
            last = numbers[low]
            indexes[filled] = last
            counts[filled] = total - below
            filled += 1
            between = totals[min(end, max(first, middles[low]))]
            finer += 2 if below < between < total else 1
            below = total
        low += 1
    return filled, size, finer


def _bucket_of(part: int, edges: Any) -> int:
    """Return the place of the bucket that a part is in; the first one, if it is in none."""
    low = 0
    high = len(edges) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if edges[middle] <= part:
            low = middle
        else:
            high = middle
    return low


def _size(count: int, gap: int) -> int:
    """Return about the bytes of a bucket and of the gap before it.

    What is written is the difference to the count of the neighbour: about the root of the count, by chance alone.
    """
    return 1 + (count >> 9 > 0) + (count >> 23 > 0) + (count >> 37 > 0) + (count >> 51 > 0) + min(gap, _SPAN)


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

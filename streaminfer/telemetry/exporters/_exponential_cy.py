# cython: boundscheck=False, wraparound=False
"""Exponential buckets of Prometheus and OpenTelemetry, and classic buckets, from running totals of counts.

The same source is compiled with the C types of ``_exponential_cy.pxd`` or runs uncompiled.
"""

from __future__ import annotations

import bisect
from typing import Any

__all__ = ["MAX_GAP", "fill_bounds", "fill_buckets"]

MAX_GAP = 5
"""Longest gap that is written as empty buckets, one byte each; for longer gaps a new span takes fewer bytes."""

# a C variable in the compiled module, not visible from Python
_SPAN = MAX_GAP + 1  # bytes that begin a new span


def fill_buckets(
    totals: Any, first: int, end: int, edges: Any, middles: Any, numbers: Any, limit: int, indexes: Any, counts: Any
) -> tuple[int, int, int]:
    """Write the non-empty exponential buckets.

    Their size approximates the bytes of their counts and gaps in protobuf. The size never shrinks while durations are
    added: if the schema became finer again, it would look like a restart of the server.

    Args:
        totals: shape (parts + 1,), int64, from `HistogramState.cumulate_into`.
        first: first part that can be non-empty.
        end: one after the last part that can be non-empty.
        edges: shape (buckets + 1,), int32, ascending: the first part of each bucket, and the end of the last bucket.
        middles: shape (buckets,), int32: each bucket consists of two buckets of the next finer schema; this is the
            first part of the upper one.
        numbers: shape (buckets,), int32, ascending: numbers of the buckets.
        limit: the largest size.
        indexes: shape (limit,), int32: output, numbers of the non-empty buckets.
        counts: shape (limit,), int64: output, their counts.

    Returns:
        The number of non-empty buckets; their size; and the number of non-empty buckets of the next finer schema, which
        is a lower bound of their size there. If the size exceeds the limit: 0, ``limit + 1`` and ``limit + 1``.
    """
    low = max(bisect.bisect_right(edges, first) - 1, 0)  # parts below the first edge are in no bucket
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


def _size(count: int, gap: int) -> int:
    """Return the approximate bytes of a bucket and of the gap before it.

    Protobuf has the difference to the neighbor's count; by chance alone it is about the square root of the count.
    """
    return 1 + (count >> 9 > 0) + (count >> 23 > 0) + (count >> 37 > 0) + (count >> 51 > 0) + min(gap, _SPAN)


def fill_bounds(totals: Any, first: int, end: int, edges: Any, cumulative: Any) -> None:
    """Write the count up to each bound.

    Args:
        totals: as for `fill_buckets`.
        first: as for `fill_buckets`.
        end: as for `fill_buckets`.
        edges: shape (bounds,), int32, ascending: the first part above each bound.
        cumulative: shape (bounds,), int64: output, the counts.
    """
    for bound in range(len(edges)):
        cumulative[bound] = totals[max(first, min(end, edges[bound]))]

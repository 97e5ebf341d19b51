# cython: boundscheck=False, wraparound=False
"""Exponential buckets of Prometheus and OpenTelemetry, merged until there are few enough.

One source, compiled with the C types of ``_exponential_cy.pxd`` or run as it is.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ZERO", "compact"]

ZERO = -(2**31)
_ZERO = ZERO


def compact(
    sums: Any,
    first: int,
    last: int,
    natives: Any,
    classics: Any,
    limit: int,
    indexes: Any,
    counts: Any,
    cumulative: Any,
) -> tuple[int, int, int]:
    """Turn sums of groups into sparse exponential buckets and cumulative classic ones; clear the sums.

    Two neighbors become one, everywhere, until at most ``limit`` buckets hold something: each such step halves the
    resolution, so that buckets of another histogram, or process, still add up without an error.

    Args:
        sums: shape (groups,), int64; zeroed from ``first`` to ``last``.
        first: the first group that can hold something.
        last: the last one; below ``first``: nothing was counted.
        natives: shape (groups,), int32, ascending: exponential bucket of each group; `ZERO`: the zero bucket.
        classics: shape (groups,), int32, ascending: number of the first classic bound that it does not exceed; that
            of the last one, infinity, where it exceeds all others.
        limit: the most buckets, at least 8: those on either side of 1 s never merge.
        indexes: shape (groups,), int32: gets the numbers of the buckets, ascending.
        counts: shape (groups,), int64: gets their counts.
        cumulative: shape (classic bounds,), int64, zeros: gets the count up to each bound.

    Returns:
        How many buckets there are; how often the resolution was halved; the count of the zero bucket.
    """
    zeros = 0
    populated = 0
    for group in range(first, last + 1):
        count = sums[group]
        if count == 0:
            continue
        sums[group] = 0
        cumulative[classics[group]] += count
        native = natives[group]
        if native == _ZERO:
            zeros += count
        elif populated > 0 and indexes[populated - 1] == native:
            counts[populated - 1] += count
        else:
            indexes[populated] = native
            counts[populated] = count
            populated += 1
    shift = 0
    while populated > limit:
        populated = _halve(indexes, counts, populated)
        shift += 1
    for group in range(1, len(cumulative)):
        cumulative[group] += cumulative[group - 1]
    return populated, shift, zeros


def _halve(indexes: Any, counts: Any, populated: int) -> int:
    """Merge buckets ``2 i - 1`` and ``2 i`` into ``i``; return how many there are."""
    merged = 0
    for position in range(populated):
        native = (indexes[position] + 1) >> 1
        if merged > 0 and indexes[merged - 1] == native:
            counts[merged - 1] += counts[position]
        else:
            indexes[merged] = native
            counts[merged] = counts[position]
            merged += 1
    return merged

# cython: boundscheck=False, wraparound=False
"""Exponential buckets of Prometheus and OpenTelemetry, merged until there are few enough.

One source, compiled with the C types of ``_exponential_cy.pxd`` or run as it is.
"""

from __future__ import annotations

from array import array
from typing import Any

from streaminfer.telemetry.histograms import _histogram_cy

__all__ = ["ZERO", "compact"]

ZERO = -(2**31)
_ZERO = ZERO
_BITS = 32


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
    """Turn counts of groups into sparse exponential buckets and cumulative classic ones.

    Two neighbors become one, everywhere, until at most ``limit`` buckets hold something: each such step halves the
    resolution, so that buckets of another histogram, or process, still add up without an error.

    Args:
        sums: shape (groups,), int64.
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
    total = 0
    zeros = 0
    populated = 0
    latest = _ZERO
    # neighbors by the halvings that make them one, so that the buckets are merged once
    halvings = array("q", bytes(8 * (_BITS + 1)))
    neighbors = halvings
    for group in range(first, last + 1):
        count = sums[group]
        if count == 0:
            continue
        total += count
        cumulative[classics[group]] = total
        native = natives[group]
        if native != latest:
            if populated > 0:
                neighbors[_histogram_cy.bit_length((native - 1 - _ZERO) ^ (latest - 1 - _ZERO))] += 1
            latest = indexes[populated] = native
            counts[populated] = count
            populated += 1
        elif populated > 0:
            counts[populated - 1] += count
        else:
            zeros += count
    shift = 0
    merged = populated
    while merged > limit:
        shift += 1
        merged -= neighbors[shift]
    if shift > 0:
        _merge(indexes, counts, populated, shift)
    for group in range(1, len(cumulative)):
        cumulative[group] = max(cumulative[group], cumulative[group - 1])
    return merged, shift, zeros


def _merge(indexes: Any, counts: Any, populated: int, shift: int) -> None:
    """Merge buckets that are one after ``shift`` halvings, of which each makes ``i`` of ``2 i - 1`` and ``2 i``."""
    merged = -1
    latest = _ZERO
    for position in range(populated):
        native = ((indexes[position] - 1) >> shift) + 1
        if native != latest:
            merged += 1
            latest = indexes[merged] = native
            counts[merged] = counts[position]
        else:
            counts[merged] += counts[position]

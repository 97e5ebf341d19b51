# cython: boundscheck=False, wraparound=False
"""Exponential buckets of Prometheus and OpenTelemetry, merged until there are few enough, and their encoding.

One source, compiled with the C types of ``_exponential_cy.pxd`` or run as it is.
"""

from __future__ import annotations

from array import array
from typing import Any

__all__ = ["ZERO", "compact", "spans_and_deltas"]

ZERO = -(2**31)
_ZERO = ZERO
_MAX_GAP = 2  # a span costs about three bytes more than two empty buckets


def compact(
    sums: Any, first: int, last: int, natives: Any, classics: Any, limit: int, bounds: int
) -> tuple[int, int, Any, Any, Any]:
    """Turn sums of groups into sparse exponential buckets and cumulative classic ones; clear the sums.

    Two neighbors become one, everywhere, until at most ``limit`` buckets hold something: each such step halves the
    resolution, so that buckets of another histogram, or process, still add up without an error.

    Args:
        sums: shape (groups,), int64; zeroed from ``first`` to ``last``.
        first: the first group that can hold something.
        last: the last one; below ``first``: nothing was counted.
        natives: shape (groups,), int32, ascending: exponential bucket of each group; `ZERO`: the zero bucket.
        classics: shape (groups,), int32, ascending: number of the first classic bound that it does not exceed;
            ``bounds`` where it exceeds all.
        limit: the most buckets, at least 1.
        bounds: how many classic bounds.

    Returns:
        How often the resolution was halved; the count of the zero bucket; ``array("i")`` of bucket numbers, ascending,
        and ``array("q")`` of their counts; ``array("q")`` of the cumulative counts of the classic bounds, and of all.
    """
    shift = 0
    while _populated(sums, first, last, natives, shift) > limit:
        shift += 1
    populated = _populated(sums, first, last, natives, shift)
    indexes_out = array("i", [0]) * populated
    counts_out = array("q", [0]) * populated
    cumulative_out = array("q", [0]) * (bounds + 1)
    indexes = indexes_out
    counts = counts_out
    cumulative = cumulative_out
    zeros = 0
    at = -1
    present = _ZERO
    for group in range(first, last + 1):
        count = sums[group]
        if count == 0:
            continue
        sums[group] = 0
        cumulative[classics[group]] += count
        if natives[group] == _ZERO:
            zeros += count
            continue
        native = (natives[group] + (1 << shift) - 1) >> shift
        if native != present:
            present = native
            at += 1
            indexes[at] = native
        counts[at] += count
    for group in range(1, bounds + 1):
        cumulative[group] += cumulative[group - 1]
    return shift, zeros, indexes_out, counts_out, cumulative_out


def spans_and_deltas(indexes: Any, counts: Any) -> tuple[Any, bytes]:
    """Encode buckets as Prometheus' native histograms do.

    Args:
        indexes: shape (n,), int32: bucket numbers, ascending.
        counts: shape (n,), int64: their counts.

    Returns:
        ``array("i")`` of pairs, one for each span of buckets: how many buckets it leaves out, and how many it has; and
        the difference of each count to the one before, as zigzag varints of protobuf.
    """
    encoded = bytearray(len(indexes) * (_MAX_GAP + 10))
    out = encoded
    spans = array("i")
    size = 0
    before = 0
    expected = 0
    length = 0
    for position in range(len(indexes)):
        gap = indexes[position] - expected
        if position > 0 and gap <= _MAX_GAP:
            while gap > 0:  # an empty bucket: its count is 0
                size = _put_zigzag(out, size, -before)
                before = 0
                length += 1
                gap -= 1
        else:
            if position > 0:
                spans.append(length)
            spans.append(gap)
            length = 0
        size = _put_zigzag(out, size, counts[position] - before)
        before = counts[position]
        length += 1
        expected = indexes[position] + 1
    if length:
        spans.append(length)
    return spans, bytes(encoded[:size])


def _populated(sums: Any, first: int, last: int, natives: Any, shift: int) -> int:
    found = 0
    present = _ZERO
    for group in range(first, last + 1):
        if sums[group] and natives[group] != _ZERO:
            native = (natives[group] + (1 << shift) - 1) >> shift
            if native != present:
                present = native
                found += 1
    return found


def _put_zigzag(out: Any, size: int, number: int) -> int:
    rest = 2 * number if number >= 0 else -2 * number - 1
    while rest > 127:
        out[size] = (rest & 127) | 128
        size += 1
        rest >>= 7
    out[size] = rest
    return size + 1

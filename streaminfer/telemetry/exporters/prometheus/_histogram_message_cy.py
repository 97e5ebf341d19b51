# cython: boundscheck=False, wraparound=False
"""Buckets of one histogram in Prometheus' protobuf format, classic and native.

One source, compiled with the C types of ``_histogram_message_cy.pxd`` or run as it is.
"""

from __future__ import annotations

from typing import Any

from streaminfer._internal import _protobuf_cy

__all__ = ["write_classic", "write_native"]

_MAX_GAP = 2  # a span takes more bytes than two empty buckets
_MAX_VARINT = 10  # bytes


def write_classic(message: Any, bounds: tuple[bytes, ...], cumulative: Any, exemplars: dict[int, bytes]) -> None:
    """Write the classic buckets.

    Args:
        message: the writer of a ``Histogram``.
        bounds: the encoded field ``upper_bound`` of each bucket.
        cumulative: int64: the count up to each bound.
        exemplars: the encoded field ``exemplar`` by the number of the bucket.
    """
    buffer = message._buffer
    bucket = bytearray()
    for number in range(len(bounds)):
        bucket.clear()
        bucket.append(0x08)  # field 1, a varint
        _protobuf_cy._append_varint(bucket, cumulative[number])
        bucket += bounds[number]
        if exemplars and number in exemplars:
            bucket += exemplars[number]
        buffer.append(0x1A)  # field 3, a message
        _protobuf_cy._append_varint(buffer, len(bucket))
        buffer += bucket


def write_native(message: Any, span: Any, indexes: Any, counts: Any) -> None:
    """Write the exponential buckets: spans of numbers, and the difference of each count to the one before.

    Args:
        message: the writer of a ``Histogram``.
        span: a writer, used for each span.
        indexes: int32: bucket numbers, ascending.
        counts: int64: their counts.
    """
    deltas = bytearray(len(indexes) * (_MAX_GAP + 1) * _MAX_VARINT)
    out = deltas  # written as C bytes: an append per byte took most of the time of a scrape
    size = 0
    before = 0
    expected = 0
    length = 0
    offset = 0
    for position in range(len(indexes)):
        gap = indexes[position] - expected
        if position > 0 and gap <= _MAX_GAP:
            while gap > 0:
                size = _put_varint(out, size, _protobuf_cy._zigzag(-before))
                before = 0
                length += 1
                gap -= 1
        else:
            if position > 0:
                _write_span(message, span, offset, length)
            offset = gap
            length = 0
        size = _put_varint(out, size, _protobuf_cy._zigzag(counts[position] - before))
        before = counts[position]
        length += 1
        expected = indexes[position] + 1
    _write_span(message, span, offset, length)
    message.data(13, deltas[:size])


def _write_span(message: Any, span: Any, offset: int, length: int) -> None:
    span.clear()
    span.zigzag(1, offset)
    span.varint(2, length)
    message.message(12, span)


def _put_varint(out: Any, size: int, value: int) -> int:
    while value > 127:
        out[size] = (value & 127) | 128
        size += 1
        value >>= 7
    out[size] = value
    return size + 1

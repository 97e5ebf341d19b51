# cython: boundscheck=False, wraparound=False
"""Histograms in Prometheus' protobuf format: messages ``Metric`` with classic and native buckets.

Buckets are written as C bytes: an append to a ``bytearray`` per byte took most of the time of a scrape.

One source, compiled with the C types of ``_histogram_message_cy.pxd`` or run as it is.
"""

from __future__ import annotations

from typing import Any

from streaminfer._internal._protobuf_cy import ProtobufWriter

__all__ = ["write_histogram"]

_METRIC = 4  # the field of a family
_BOUND_SIZE = 9  # bytes of an encoded bound: the tag and a double
_MAX_CLASSIC = 2 + 2 * 10 + _BOUND_SIZE  # bytes of a bucket: two tags, two varints, the bound
_MAX_SPAN = 4 + 2 * 5
_MAX_GAP = 2  # a span takes more bytes than two empty buckets
_MAX_VARINT = 10  # bytes


def write_histogram(
    family: Any, labels: bytes, field: int, point: Any, bounds: bytes, exemplars: dict[int, bytes], created: bytes
) -> None:
    """Write a histogram with its classic and native buckets.

    Args:
        family: the writer of its ``MetricFamily``.
        labels: the encoded fields ``label``.
        field: number of the field for its kind.
        point: a `HistogramPoint`.
        bounds: the encoded fields ``upper_bound`` of all classic buckets, 9 bytes each.
        exemplars: the encoded field ``exemplar`` by the number of the bucket.
        created: the encoded field ``created_timestamp``.
    """
    message = ProtobufWriter()
    message.varint(1, point.total)
    message.float64(2, point.sum_s)
    _write_classic(message, bounds, point.cumulative, exemplars)
    message._buffer += created
    message.zigzag(5, point.schema)
    message.float64(6, point.zero_threshold_s)
    message.varint(7, point.zeros)
    _write_native(message, point.indexes, point.counts)
    metric = ProtobufWriter()
    metric._buffer += labels
    metric.message(field, message)
    family.message(_METRIC, metric)


def _write_classic(message: Any, bounds: bytes, cumulative: Any, exemplars: dict[int, bytes]) -> None:
    written = bytearray(len(cumulative) * _MAX_CLASSIC)
    out = written
    size = 0
    for number in range(len(cumulative)):
        exemplar = exemplars.get(number, b"") if exemplars else b""
        out[size] = 0x1A  # field 3, a message
        size = _put_varint(out, size + 1, 1 + _varint_size(cumulative[number]) + _BOUND_SIZE + len(exemplar))
        out[size] = 0x08  # field 1, a varint
        size = _put_varint(out, size + 1, cumulative[number])
        for position in range(number * _BOUND_SIZE, (number + 1) * _BOUND_SIZE):
            out[size] = bounds[position]
            size += 1
        if exemplar:
            message._buffer += written[:size]
            message._buffer += exemplar
            size = 0
    message._buffer += written[:size]


def _write_native(message: Any, indexes: Any, counts: Any) -> None:
    """Write spans of numbers of buckets, and the difference of each count to the one before."""
    deltas = bytearray(len(indexes) * (_MAX_GAP + 1) * _MAX_VARINT)
    spans = bytearray((len(indexes) + 1) * _MAX_SPAN)
    out = deltas
    out_spans = spans
    size = spans_size = 0
    before = 0
    expected = 0
    length = 0
    offset = 0
    for position in range(len(indexes)):
        gap = indexes[position] - expected
        if position > 0 and gap <= _MAX_GAP:
            while gap > 0:
                size = _put_zigzag(out, size, -before)
                before = 0
                length += 1
                gap -= 1
        else:
            if position > 0:
                spans_size = _put_span(out_spans, spans_size, offset, length)
            offset = gap
            length = 0
        size = _put_zigzag(out, size, counts[position] - before)
        before = counts[position]
        length += 1
        expected = indexes[position] + 1
    spans_size = _put_span(out_spans, spans_size, offset, length)
    message._buffer += spans[:spans_size]
    message.data(13, deltas[:size])


def _put_span(out: Any, size: int, offset: int, length: int) -> int:
    out[size] = 0x62  # field 12, a message
    end = _put_zigzag(out, size + 3, offset)
    out[end] = 0x10  # field 2, a varint
    end = _put_varint(out, end + 1, length)
    out[size + 1] = end - size - 2
    out[size + 2] = 0x08  # field 1, a zigzag varint
    return end


def _put_zigzag(out: Any, size: int, value: int) -> int:
    return _put_varint(out, size, value << 1 ^ value >> 63)


def _put_varint(out: Any, size: int, value: int) -> int:
    while value > 127:
        out[size] = (value & 127) | 128
        size += 1
        value >>= 7
    out[size] = value
    return size + 1


def _varint_size(value: int) -> int:
    size = 1
    while value > 127:
        value >>= 7
        size += 1
    return size

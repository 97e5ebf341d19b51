# cython: boundscheck=False, wraparound=False
"""Histograms in Prometheus' protobuf format: messages ``Metric`` with classic and native buckets.

The same source is compiled with the C types of ``_histogram_message_cy.pxd`` or runs uncompiled.
"""

from __future__ import annotations

from typing import Any

from streaminfer._internal import _protobuf_cy
from streaminfer._internal._protobuf_cy import ProtobufWriter
from streaminfer.telemetry.exporters._exponential_cy import MAX_GAP

__all__ = ["write_histogram"]

_LONGEST = 10  # bytes of a varint


def write_histogram(
    family: ProtobufWriter,
    labels: bytes,
    field: int,
    point: Any,
    bounds: tuple[bytes, ...],
    exemplars: dict[int, bytes],
    created: bytes,
) -> None:
    """Write a histogram with its classic and native buckets.

    Args:
        family: writer of the histogram's ``MetricFamily``.
        labels: the encoded fields ``label``.
        field: number of the field for histograms.
        point: a `HistogramPoint`.
        bounds: the encoded field ``upper_bound`` of each classic bucket.
        exemplars: the encoded field ``exemplar`` by the index of the classic bucket.
        created: the encoded field ``created_timestamp``.
    """
    message = ProtobufWriter()
    message.varint(1, point.total)
    message.float64(2, point.sum_s)
    _write_classic(message, point.cumulative, bounds, exemplars)
    message._buffer += created
    message.varint(5, _zigzag(point.schema))
    message.float64(6, point.zero_threshold_s)
    message.varint(7, point.zeros)
    _write_native(message, point.indexes, point.counts)
    metric = ProtobufWriter()
    metric._buffer += labels
    metric.message(field, message)
    family.message(4, metric)


def _write_classic(
    message: ProtobufWriter, cumulative: Any, bounds: tuple[bytes, ...], exemplars: dict[int, bytes]
) -> None:
    buffer = message._buffer
    for number in range(len(cumulative)):
        tail = bounds[number] + exemplars.get(number, b"") if exemplars else bounds[number]
        size = 1
        while cumulative[number] >> 7 * size:
            size += 1
        _protobuf_cy._append_varint(buffer, 0x1A)  # field 3, a message: no object of its own, there are many
        _protobuf_cy._append_varint(buffer, 1 + size + len(tail))
        _protobuf_cy._append_varint(buffer, 0x08)  # its field 1, a varint
        _protobuf_cy._append_varint(buffer, cumulative[number])
        buffer += tail


def _write_native(message: ProtobufWriter, indexes: Any, counts: Any) -> None:
    """Write the spans of native buckets, and the differences of their counts.

    Without buckets it writes an empty span, which shows Prometheus that this is a native histogram.
    """
    deltas = out = bytearray((MAX_GAP + 1) * _LONGEST * len(indexes))  # filled without a call for each byte
    before = expected = length = offset = size = 0
    for position in range(len(indexes)):
        gap = indexes[position] - expected
        if position > 0 and gap <= MAX_GAP:
            length += gap
            for _ in range(gap):
                size = _put_varint(out, size, _zigzag(-before))
                before = 0
        else:
            if position > 0:
                _write_span(message, offset, length)
            offset = gap
            length = 0
        size = _put_varint(out, size, _zigzag(counts[position] - before))
        before = counts[position]
        length += 1
        expected = indexes[position] + 1
    _write_span(message, offset, length)
    message.data(13, deltas[:size])


def _write_span(message: ProtobufWriter, offset: int, length: int) -> None:
    span = ProtobufWriter()
    span.varint(1, _zigzag(offset))
    span.varint(2, length)
    message.message(12, span)


def _put_varint(out: Any, size: int, value: int) -> int:
    while value > 0x7F:
        out[size] = value & 0x7F | 0x80
        value >>= 7
        size += 1
    out[size] = value
    return size + 1


def _zigzag(value: int) -> int:
    return value << 1 ^ value >> 63

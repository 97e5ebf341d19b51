# cython: boundscheck=False, wraparound=False
"""Histograms in Prometheus' protobuf format: messages ``Metric`` with classic and native buckets.

The module writes buckets as C bytes into a scratch buffer that all histograms share: objects for nested messages and
one append per byte took most of the time of a scrape.

The same source is compiled with the C types of ``_histogram_message_cy.pxd`` or runs uncompiled.
"""

from __future__ import annotations

import struct
from typing import Any

from streaminfer.telemetry.exporters._exponential_cy import MAX_GAP

__all__ = ["write_histogram"]

_METRIC = 0x22  # the tag of a metric in its family
_DELTAS = 0x6A  # the tag of the counts of native buckets
_BOUND_SIZE = 9  # bytes of an encoded bound: the tag and a double
_MAX_CLASSIC = 2 + 2 * 10 + _BOUND_SIZE  # bytes of a bucket: two tags, two varints, the bound
_MAX_SPAN = 4 + 2 * 5
_MAX_VARINT = 10  # bytes
_MAX_NUMBERS = 5 * (1 + _MAX_VARINT)  # bytes of the fields with one number


def write_histogram(
    family: Any,
    labels: bytes,
    field: int,
    point: Any,
    bounds: bytes,
    exemplars: dict[int, bytes],
    created: bytes,
    scratch: bytearray,
) -> None:
    """Write a histogram with its classic and native buckets.

    Args:
        family: writer of the histogram's ``MetricFamily``.
        labels: the encoded fields ``label``.
        field: number of the field for histograms, at most 15.
        point: a `HistogramPoint`.
        bounds: the encoded fields ``upper_bound`` of all classic buckets, 9 bytes each.
        exemplars: the encoded field ``exemplar`` by the index of the classic bucket.
        created: the encoded field ``created_timestamp``.
        scratch: buffer that is overwritten; it grows as needed.
    """
    indexes, cumulative = point.indexes, point.cumulative
    begin = 2 * (1 + _MAX_VARINT)  # after the headers of both messages
    deltas = begin + _MAX_NUMBERS + len(cumulative) * _MAX_CLASSIC + len(created) + (len(indexes) + 1) * _MAX_SPAN
    for exemplar in exemplars.values():
        deltas += len(exemplar)
    needed = deltas + len(indexes) * (MAX_GAP + 1) * _MAX_VARINT
    if len(scratch) < needed:
        scratch += bytes(needed - len(scratch))
    out = scratch
    size = _put_number(out, begin, 0x08, point.total)
    size = _put_bytes(out, size, b"\x11" + struct.pack("<d", point.sum_s))
    size = _put_classic(out, size, bounds, cumulative, exemplars)
    size = _put_bytes(out, size, created)
    size = _put_number(out, size, 0x28, point.schema << 1 ^ point.schema >> 63)
    size = _put_bytes(out, size, b"\x31" + struct.pack("<d", point.zero_threshold_s))
    size = _put_number(out, size, 0x38, point.zeros)
    size, end = _put_native(out, size, deltas, indexes, point.counts)
    size = _put_number(out, size, _DELTAS, end - deltas)
    length = size - begin + end - deltas
    metric = _put_number(out, 0, _METRIC, len(labels) + 1 + _varint_size(length) + length)
    message = _put_number(out, metric, field << 3 | 2, length)
    buffer = family._buffer
    buffer += scratch[:metric]
    buffer += labels
    buffer += scratch[metric:message]
    buffer += scratch[begin:size]
    buffer += scratch[deltas:end]


def _put_classic(out: Any, size: int, bounds: bytes, cumulative: Any, exemplars: dict[int, bytes]) -> int:
    for number in range(len(cumulative)):
        exemplar = exemplars.get(number, b"") if exemplars else b""
        length = 1 + _varint_size(cumulative[number]) + _BOUND_SIZE + len(exemplar)
        size = _put_number(out, size, 0x1A, length)  # field 3, a message
        size = _put_number(out, size, 0x08, cumulative[number])
        for position in range(number * _BOUND_SIZE, (number + 1) * _BOUND_SIZE):
            out[size] = bounds[position]
            size += 1
        if exemplar:
            size = _put_bytes(out, size, exemplar)
    return size


def _put_native(out: Any, size: int, end: int, indexes: Any, counts: Any) -> tuple[int, int]:
    """Write the spans of bucket numbers at ``size``, and the differences between successive counts at ``end``."""
    before = 0
    expected = 0
    length = 0
    offset = 0
    for position in range(len(indexes)):
        gap = indexes[position] - expected
        if position > 0 and gap <= MAX_GAP:
            while gap > 0:
                end = _put_zigzag(out, end, -before)
                before = 0
                length += 1
                gap -= 1
        else:
            if position > 0:
                size = _put_span(out, size, offset, length)
            offset = gap
            length = 0
        end = _put_zigzag(out, end, counts[position] - before)
        before = counts[position]
        length += 1
        expected = indexes[position] + 1
    return _put_span(out, size, offset, length), end


def _put_span(out: Any, size: int, offset: int, length: int) -> int:
    out[size] = 0x62  # field 12, a message
    end = _put_zigzag(out, size + 3, offset)
    out[end] = 0x10  # field 2, a varint
    end = _put_varint(out, end + 1, length)
    out[size + 1] = end - size - 2
    out[size + 2] = 0x08  # field 1, a zigzag varint
    return end


def _put_bytes(out: Any, size: int, data: bytes) -> int:
    for position in range(len(data)):
        out[size] = data[position]
        size += 1
    return size


def _put_number(out: Any, size: int, tag: int, value: int) -> int:
    out[size] = tag
    return _put_varint(out, size + 1, value)


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

"""HdrHistogram's number encoding: ZigZag, then LEB128 of at most nine bytes; a ninth byte carries 8 bits.

The same source is compiled with the C types of ``_leb128_cy.pxd`` or runs uncompiled.
"""

from __future__ import annotations

from array import array
from typing import Any

__all__ = ["read_numbers", "write_counts"]

_LONGEST = 9  # bytes of a number


def write_counts(gaps: Any, counts: Any) -> bytes:
    """Return the encoded payload of counts, with each run of zeros as one negative number.

    Args:
        gaps: number of zeros before each count, int64.
        counts: the counts that are not zero, int64.
    """
    payload = bytearray(2 * _LONGEST * len(counts))
    out = payload
    size = 0
    for index in range(len(counts)):
        if gaps[index]:
            size = _put(out, size, 2 * gaps[index] - 1)
        number = counts[index]
        size = _put(out, size, number << 1)
    return bytes(payload[:size])


def _put(out: Any, size: int, coded: int) -> int:
    last = size + _LONGEST - 1
    while coded > 0x7F and size < last:
        out[size] = coded & 0x7F | 0x80
        coded >>= 7
        size += 1
    out[size] = coded
    return size + 1


def read_numbers(payload: bytes) -> array[int]:
    """Return the numbers of a payload, int64.

    Raises:
        ValueError: the payload ends within a number.
    """
    numbers = array("q", bytes(8 * len(payload)))
    out = numbers
    count = coded = position = 0
    for byte in payload:
        if byte & 0x80 and position < _LONGEST - 1:
            coded |= (byte & 0x7F) << 7 * position
            position += 1
        else:
            coded |= byte << 7 * position
            out[count] = (coded >> 1) ^ -(coded & 1)
            count += 1
            coded = position = 0
    if position:
        raise ValueError("text: its last number is cut off")
    return numbers[:count]

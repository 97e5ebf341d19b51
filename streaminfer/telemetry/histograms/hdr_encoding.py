"""HdrHistogram's compressed wire format V2, which all its libraries and tools read; V1 and V0 can be read only.

::

    base64( cookie 0x1c849314, length │ zlib( header │ payload ) )            integers are big-endian
    header  cookie 0x1c849313, payload length, normalizing index offset, digits: 32 bits each;
            lowest, highest: 64 bits each; ratio of integer to double: a float of 64 bits
    payload counts from index 0 to the last that is not zero; n zeros in a row stand as -n

Each number of the payload is ZigZag coded (0, -1, 1, -2, … → 0, 1, 2, 3, …) and then LEB128: 7 bits per byte, lowest
first, with the high bit set if more bytes follow; a ninth byte carries 8 bits and ends the number. The format does not
contain the exact extremes and the number of clamped values. Source: ``AbstractHistogram.encodeIntoByteBuffer`` and
``ZigZagEncoding`` of HdrHistogram. The text equals that of the ``hdrhistogram`` package byte for byte. Java writes a
single zero as 0 instead of -1; every reader accepts both.

V1 and V0, which Java wrote until 2015, have other cookies, and a payload of counts of 2, 4 or 8 bytes; the header's
cookie contains this size. V0 has a different header, without a length: cookie, digits; lowest, highest, total.

Complexity: O(counts) to encode, O(payload) to decode.
"""

import binascii
import struct
import zlib
from base64 import b64decode, b64encode

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer.telemetry.histograms._leb128_cy import read_numbers, write_counts

__all__ = ["Header", "decode_counts", "decode_header", "encode"]

_HEADER_COOKIE = 0x1C849303 | 0x10
_COMPRESSED_COOKIE = 0x1C849304 | 0x10
_COOKIE_MASK = 0xFFFFFF0F  # without the bits for the word size of older formats
_VERSIONS = {0x1C849304: 0x1C849303, 0x1C849302: 0x1C849301, 0x1C849309: 0x1C849308}
"""Cookie of the envelope to cookie of the header: V2, V1, V0."""
_V0_HEADER_COOKIE = 0x1C849308
_ENVELOPE = struct.Struct(">II")
_HEADER = struct.Struct(">IIIIqqd")
_V0_HEADER = struct.Struct(">IIqqq")
_LONGEST_NUMBER = 9
_WORD_SIZES = (2, 4, 8)
_COUNT_LIMIT = 2**63


@attrs.frozen
class Header:
    """The layout of an encoded histogram.

    Attributes:
        lowest_ns: shortest duration that differs from zero.
        highest_ns: longest duration.
        significant_digits: decimal digits of a duration.
        compressed: header and payload, still compressed.
        size: bytes of the header.
        word_size: bytes of each count in an older format; 0 for the numbers of V2.
        payload_length: bytes of the payload; ``None`` for V0, which does not contain it.
    """

    lowest_ns: int
    highest_ns: int
    significant_digits: int
    compressed: bytes = attrs.field(repr=False)
    size: int
    word_size: int
    payload_length: int | None


def encode(lowest_ns: int, highest_ns: int, significant_digits: int, counts: NDArray[np.int64]) -> str:
    """Return the encoded text of a histogram.

    Args:
        lowest_ns: shortest duration that differs from zero.
        highest_ns: longest duration.
        significant_digits: decimal digits of a duration.
        counts: shape (n,), int64, none negative.
    """
    nonzero = np.flatnonzero(counts)
    gaps = np.diff(nonzero, prepend=-1) - 1
    payload = write_counts(gaps.data, counts[nonzero].data)  # elements of a memoryview are Python integers
    header = _HEADER.pack(_HEADER_COOKIE, len(payload), 0, significant_digits, lowest_ns, highest_ns, 1.0)
    compressed = zlib.compress(header + payload)
    return b64encode(_ENVELOPE.pack(_COMPRESSED_COOKIE, len(compressed)) + compressed).decode("ascii")


def decode_header(text: str | bytes) -> Header:
    """Read the layout; the counts stay compressed until their number is checked.

    Raises:
        TypeError: ``text`` is neither a string nor bytes.
        ValueError: ``text`` is not an encoded histogram.
    """
    if not isinstance(text, (str, bytes)):
        raise TypeError(f"text: expected str or bytes, got {type(text).__name__}")
    try:
        envelope = b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"text: expected base64: {error}") from error
    if len(envelope) < _ENVELOPE.size:
        raise ValueError("text: too short for an encoded histogram")
    cookie, length = _ENVELOPE.unpack_from(envelope)
    header_cookie = _VERSIONS.get(cookie & _COOKIE_MASK)
    if header_cookie is None:
        raise ValueError(f"text: expected a compressed histogram, got cookie {cookie:#x}")
    compressed = envelope[_ENVELOPE.size :]
    if len(compressed) != length:
        raise ValueError(f"text: expected {length} compressed bytes, got {len(compressed)}")
    layout = _V0_HEADER if header_cookie == _V0_HEADER_COOKIE else _HEADER
    raw = _decompressed(compressed, layout.size)
    if len(raw) < layout.size:
        raise ValueError("text: too short for the header of a histogram")
    # ignored: the offset describes the writer's memory, the ratio its floating-point scale; neither affects the numbers
    # that follow, and HdrHistogramJS writes other values than 0 and 1.0
    cookie, *lengths, significant_digits, lowest_ns, highest_ns, _ = layout.unpack(raw)
    payload_length = lengths[0] if lengths else None
    if cookie & _COOKIE_MASK != header_cookie:
        raise ValueError(f"text: expected the header {header_cookie:#x} of a histogram, got cookie {cookie:#x}")
    word_size = 0 if header_cookie == _HEADER_COOKIE & _COOKIE_MASK else cookie >> 4 & 0xE
    if word_size and word_size not in _WORD_SIZES:
        raise ValueError(f"text: expected counts of 2, 4 or 8 bytes, got {word_size}")
    return Header(lowest_ns, highest_ns, significant_digits, compressed, layout.size, word_size, payload_length)


def decode_counts(header: Header, counts_length: int) -> NDArray[np.int64]:
    """Return the counts of an encoded histogram.

    Args:
        header: result of :func:`decode_header`.
        counts_length: number of parts of the layout.

    Returns:
        Shape (counts_length,), int64.

    Raises:
        ValueError: the payload is truncated or too long.
    """
    # inflate no more than the layout can need, as protection against hostile streams
    bytes_per_count = header.word_size or _LONGEST_NUMBER
    payload = _decompressed(header.compressed, header.size + bytes_per_count * counts_length + 1)[header.size :]
    if header.payload_length not in {None, len(payload)}:
        raise ValueError(f"text: expected a payload of {header.payload_length} bytes, got {len(payload)}")
    numbers = (
        _fixed_width_counts(payload, header.word_size)
        if header.word_size
        else np.frombuffer(read_numbers(payload), np.int64)
    )
    overlong = numbers < -counts_length  # checked first, because the sum of such runs could overflow
    index_after = np.cumsum(np.where(numbers < 0, -numbers, 1))
    if overlong.any() or (index_after.size and index_after[-1] > counts_length):
        raise ValueError(f"text: more counts than the {counts_length} of its layout")
    positive = numbers > 0
    counts = np.zeros(counts_length, np.int64)
    counts[index_after[positive] - 1] = numbers[positive]
    if (int((counts >> 32).sum()) << 32) + int((counts & 0xFFFFFFFF).sum()) >= _COUNT_LIMIT:
        raise ValueError("text: its counts pass 2^63")
    return counts


def _fixed_width_counts(payload: bytes, size: int) -> NDArray[np.int64]:
    """Return the counts of an older format."""
    if len(payload) % size:
        raise ValueError("text: its last number is cut off")
    counts = np.frombuffer(payload, f">i{size}").astype(np.int64)
    if (counts < 0).any():
        raise ValueError("text: expected counts ≥ 0")
    return counts


def _decompressed(compressed: bytes, at_most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(compressed, at_most)
    except zlib.error as error:
        raise ValueError(f"text: cannot decompress: {error}") from error

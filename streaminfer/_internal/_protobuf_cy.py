"""Writer of protobuf messages, and a function that cuts fields out of a message; without generated classes.

One source, compiled with the C types of ``_protobuf_cy.pxd`` or run uncompiled. A message is a sequence of fields; a
field is a tag, ``number << 3 | wire type``, and its value. Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct

__all__ = ["ProtobufWriter", "split_fields"]

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT = 2**64 - 1  # a variable, because C has no literal of this size and would compute with Python integers


class ProtobufWriter:
    """Message under construction, field by field; ``bytes(writer)`` is the message.

    A nested message is written with a separate writer, which :meth:`message` copies. :meth:`clear` resets a writer for
    reuse. Callers may omit fields of protobuf 3 that hold their default (0, "").
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def varint(self, field: int, value: int) -> None:
        """Write an unsigned integer, a boolean or an enum value.

        Args:
            field: number of the field.
            value: from 0 to 2^64 - 1.
        """
        _append_varint(self._buffer, field << 3 | _VARINT)
        _append_varint(self._buffer, value)

    def fixed64(self, field: int, value: int) -> None:
        """Write an unsigned integer as 8 bytes."""
        _append_varint(self._buffer, field << 3 | _FIXED64)
        self._buffer += value.to_bytes(8, "little")

    def float64(self, field: int, value: float) -> None:
        """Write a floating-point number."""
        _append_varint(self._buffer, field << 3 | _FIXED64)
        self._buffer += struct.pack("<d", value)

    def text(self, field: int, value: str) -> None:
        """Write a string."""
        self.data(field, value.encode())

    def data(self, field: int, value: bytes | bytearray) -> None:
        """Write bytes, or an encoded message."""
        _append_varint(self._buffer, field << 3 | _LENGTH)
        _append_varint(self._buffer, len(value))
        self._buffer += value

    def message(self, field: int, nested: ProtobufWriter) -> None:
        """Write a nested message."""
        self.data(field, nested._buffer)

    def delimited(self, message: ProtobufWriter) -> None:
        """Write a whole message after its length, without a tag: an element of a delimited stream."""
        _append_varint(self._buffer, len(message._buffer))
        self._buffer += message._buffer

    def clear(self) -> None:
        """Reset the writer for the next message."""
        self._buffer.clear()

    def __len__(self) -> int:
        return len(self._buffer)

    def __bytes__(self) -> bytes:
        return bytes(self._buffer)


class _FieldReader:
    """Reader of a message, from its start to its end."""

    def __init__(self, view: bytes | memoryview) -> None:
        self._view = view
        self._size = len(view)
        self.position = 0

    def varint(self) -> int:
        value = shift = 0
        while shift < 64:
            if self.position >= self._size:
                raise ValueError("cut short within a number")
            byte = self._view[self.position]
            self.position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ValueError(f"the number before byte {self.position} has more than 64 bits")

    def length(self, kind: int, begin: int) -> int:
        """Return the length in bytes of a field's contents, after its tag; reads the number of a numeric field."""
        value = 0
        if kind == _LENGTH:
            value = self.varint()
        elif kind == _VARINT:
            self.varint()
        elif kind == _FIXED64:
            value = 8
        elif kind == _FIXED32:
            value = 4
        else:
            raise ValueError(f"byte {begin} is no field of a protobuf message")
        remaining = self._size - self.position
        if value > remaining:
            raise ValueError(f"cut short: the field at byte {begin} ends past the end")
        return value


def split_fields(
    view: bytes | memoryview, tag: int, max_fields: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Split a message at the fields with a tag.

    Args:
        view: the message.
        tag: the tag of the fields.
        max_fields: the most such fields that it may have; negative: any number.

    Returns:
        The pieces of the message without these fields, and where the contents of each field begin and end.

    Raises:
        ValueError: the message is malformed, is cut short, or has too many fields.
    """
    pieces: list[tuple[int, int]] = []
    contents: list[tuple[int, int]] = []
    reader = _FieldReader(view)
    piece = fields = 0
    size = len(view)
    while reader.position < size:
        if fields == max_fields:
            raise ValueError(f"it has more than {max_fields} fields")
        fields += 1
        begin = reader.position
        field_tag = reader.varint()
        length = reader.length(field_tag & 7, begin)
        end = reader.position + length
        if field_tag == tag:
            if piece < begin:
                pieces.append((piece, begin))
            contents.append((reader.position, end))
            piece = end
        reader.position = end
    if piece < size:
        pieces.append((piece, size))
    return pieces, contents


def _append_varint(buffer: bytearray, value: int) -> None:
    if not 0 <= value <= _MAX_VARINT:
        raise OverflowError(f"value: expected an integer from 0 to 2^64 - 1, got {value!r}")
    while value > 0x7F:  # seven bits a byte
        buffer.append(value & 0x7F | 0x80)
        value >>= 7
    buffer.append(value)

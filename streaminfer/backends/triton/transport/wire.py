"""Messages of the inference protocol over gRPC, with each tensor copied once on its way out and read where it lies.

Idea: in protobuf, messages of one type that follow each other *are* one message, its fields merged. So the small part
of a request (names, shapes, parameters) is a protobuf message like any other, and the tensors are appended by hand,
each behind its tag and length: one ``b"".join`` is the only copy. The other way round, tensors are cut out of the
response as views, and protobuf reads the rest. Through ``tritonclient`` a tensor is copied four times out (``tobytes``,
into the message, out of it, and in gRPC) and three times in.

The tags come from the descriptors of ``tritonclient``'s messages; the encoding is that of the protobuf documentation.
"""

from collections.abc import Sequence
from typing import Any

__all__ = ["append_contents", "split_contents", "tag_of"]

_LENGTH_DELIMITED = 2
_SKIP = {1: 8, 5: 4}  # fixed64, fixed32: no field of ours, but a later server may have one


def tag_of(message: Any, field: str) -> int:
    """The tag of a field of bytes or of messages."""
    return int(message.DESCRIPTOR.fields_by_name[field].number) << 3 | _LENGTH_DELIMITED


def append_contents(head: bytes, tag: int, contents: Sequence[Any]) -> bytes:
    """A message with more fields of bytes at its end.

    Args:
        head: the message without them.
        tag: of the field, below 128.
        contents: contiguous buffers.
    """
    parts: list[Any] = [head]
    for content in contents:
        parts.append(bytes((tag, *_varint(memoryview(content).nbytes))))
        parts.append(content)
    return b"".join(parts)


def split_contents(
    message: bytes | memoryview, tag: int, *, max_fields: int | None = None
) -> tuple[bytes, list[memoryview]]:
    """Takes the fields of bytes with a tag out of a message.

    Args:
        message: the whole.
        tag: of the fields.
        max_fields: the most fields that it may have.

    Returns:
        The message without them, and views of their contents, in order.

    Raises:
        ValueError: it is no such message, is cut short, or has too many fields.
    """
    view = memoryview(message)
    rest: list[memoryview] = []
    contents: list[memoryview] = []
    for begin, found, start, end in _fields(view, max_fields):
        if found == tag:
            contents.append(view[start:end])
        else:
            rest.append(view[begin:end])
    return b"".join(rest), contents


def _fields(view: memoryview, max_fields: int | None) -> list[tuple[int, int, int, int]]:
    """Of each field where it begins, its tag, and where its contents start and end."""
    fields: list[tuple[int, int, int, int]] = []
    position, size = 0, len(view)
    while position < size:
        if len(fields) == max_fields:
            raise ValueError(f"it has more than {max_fields} fields")
        begin = position
        tag, position = _read_varint(view, position)
        kind = tag & 7
        start = position
        if kind == _LENGTH_DELIMITED:
            length, start = _read_varint(view, position)
            position = start + length
        elif kind == 0:
            _, position = _read_varint(view, position)
        elif kind in _SKIP:
            position += _SKIP[kind]
        else:
            raise ValueError(f"byte {begin} is no field of a protobuf message")
        if position > size:
            raise ValueError(f"cut short: the field at byte {begin} ends {position - size} bytes past the end")
        fields.append((begin, tag, start, position))
    return fields


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        if position >= len(view):
            raise ValueError("cut short within a number")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"the number before byte {position} has more than 64 bits")

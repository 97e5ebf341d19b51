"""Messages of the inference protocol over gRPC; each tensor is copied once when sent, and not when received.

Idea: in protobuf, consecutive messages of one type *are* one message with merged fields. The small part of a request
(names, shapes, parameters) is therefore an ordinary protobuf message, and this module appends the tensors, each after
its tag and length: one ``b"".join`` is the only copy. In a response, the tensors are views of the message, and protobuf
reads the rest. ``tritonclient`` copies a tensor four times when it sends it (``tobytes``, into the message, out of it,
and in gRPC), and three times when it receives it.

The tags come from the descriptors of ``tritonclient``'s messages; the encoding is that of the protobuf documentation.
"""

from collections.abc import Sequence
from typing import Any

from streaminfer._internal._protobuf_cy import split_fields

__all__ = ["append_contents", "parts_of_contents", "split_contents", "tag_of"]

_LENGTH_DELIMITED = 2


def tag_of(message: Any, field: str) -> int:
    """Return the tag of a field that holds bytes or messages."""
    return int(message.DESCRIPTOR.fields_by_name[field].number) << 3 | _LENGTH_DELIMITED


def append_contents(head: bytes, tag: int, contents: Sequence[Any]) -> bytes:
    """Append fields of bytes to a message.

    Args:
        head: the message without these fields.
        tag: the tag of the field, below 128.
        contents: contiguous buffers.
    """
    return b"".join(parts_of_contents(head, tag, contents))


def parts_of_contents(head: bytes, tag: int, contents: Sequence[Any]) -> list[Any]:
    """Return the parts of such a message: the head, then tag and length, and bytes, of each field."""
    parts: list[Any] = [head]
    for content in contents:
        parts.append(bytes((tag, *_varint(memoryview(content).nbytes))))
        parts.append(content)
    return parts


def split_contents(
    message: bytes | memoryview, tag: int, *, max_fields: int | None = None
) -> tuple[bytes, list[memoryview]]:
    """Split the fields of bytes with a tag off a message.

    Args:
        message: the whole message.
        tag: the tag of the fields.
        max_fields: the most fields that the message may have.

    Returns:
        The message without these fields, and views of their contents, in order.

    Raises:
        ValueError: the message is not valid, is cut short, or has too many fields.
    """
    view = memoryview(message)
    pieces, contents = split_fields(view, tag, -1 if max_fields is None else max_fields)
    return b"".join([view[start:end] for start, end in pieces]), [view[start:end] for start, end in contents]


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)

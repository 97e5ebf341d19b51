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

from streaminfer._internal._protobuf_cy import split_fields

__all__ = ["append_contents", "parts_of_contents", "split_contents", "tag_of"]

_LENGTH_DELIMITED = 2


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
    return b"".join(parts_of_contents(head, tag, contents))


def parts_of_contents(head: bytes, tag: int, contents: Sequence[Any]) -> list[Any]:
    """The parts of such a message: the head, then tag and length in front of each content."""
    parts: list[Any] = [head]
    for content in contents:
        parts.append(bytes((tag, *_varint(memoryview(content).nbytes))))
        parts.append(content)
    return parts


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
    pieces, contents = split_fields(view, tag, -1 if max_fields is None else max_fields)
    return b"".join([view[start:end] for start, end in pieces]), [view[start:end] for start, end in contents]


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)

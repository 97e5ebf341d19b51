"""Protobuf messages from their fields."""

from streaminfer._internal._protobuf_cy import ProtobufWriter

__all__ = ["message"]


def message(*fields: tuple[int, float | str | bytes | ProtobufWriter]) -> ProtobufWriter:
    """Return a message with fields of the given numbers, in this order; an integer becomes a varint."""
    writer = ProtobufWriter()
    for number, value in fields:
        if isinstance(value, int):
            writer.varint(number, value)
        elif isinstance(value, float):
            writer.float64(number, value)
        elif isinstance(value, str):
            writer.text(number, value)
        elif isinstance(value, bytes):
            writer.data(number, value)
        else:
            writer.message(number, value)
    return writer

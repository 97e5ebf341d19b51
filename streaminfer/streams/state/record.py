"""State of one stream as bytes, and back, without pickle.

A record is::

    bytes 0-7  "si-state"    8-9  version, 1    10-13  CRC-32 of all that follows    14-17  length of the header
    header     JSON: {"fingerprint": text or null, "states": [[name, dtype, shape], ...]}
    data       the states in that order, C-contiguous, in the byte order that the dtype says

All numbers are little-endian. The reader builds only arrays with the names, types and shapes of the model, so a record
from another program can do no harm. The checksum finds accidental changes, not forgeries.
"""

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer.errors import InvalidInput
from streaminfer.streams.state.layout import StateTensor

__all__ = ["read_record", "write_record"]

Array = NDArray[Any]

_MAGIC = b"si-state"
_VERSION = 1
_HEAD = struct.Struct("<8sHII")


def write_record(states: Mapping[str, Array], fingerprint: str | None) -> bytes:
    """Return states by name as a record."""
    entries = [[name, array.dtype.str, array.shape] for name, array in states.items()]
    header = json.dumps({"fingerprint": fingerprint, "states": entries}).encode()
    body = b"".join((header, *(array.tobytes() for array in states.values())))
    return _HEAD.pack(_MAGIC, _VERSION, zlib.crc32(body), len(header)) + body


def read_record(record: object, tensors: Sequence[StateTensor], fingerprint: str | None) -> dict[str, Array]:
    """Return the states of a record.

    Args:
        record: result of :func:`write_record`.
        tensors: the states of the model.
        fingerprint: fingerprint of the model.

    Raises:
        InvalidInput: ``record`` is not a record, was altered, or comes from another version or another model.
    """
    if not isinstance(record, (bytes, bytearray, memoryview)):
        raise InvalidInput(f"state: expected the bytes that export_state returned, got {type(record).__name__}")
    record = bytes(record)
    if len(record) < _HEAD.size or not record.startswith(_MAGIC):
        raise InvalidInput(f"state: expected the bytes that export_state returned, got {len(record)} others")
    _, version, checksum, size = _HEAD.unpack_from(record)
    if version != _VERSION:
        raise InvalidInput(f"state: expected version {_VERSION} of the format, got {version}")
    body = record[_HEAD.size :]
    if zlib.crc32(body) != checksum:
        raise InvalidInput("state: the checksum differs: the record was cut short or altered")
    try:
        header = json.loads(body[:size])
        recorded = header["fingerprint"]
        entries = [(name, dtype, tuple(map(_as_size, shape))) for name, dtype, shape in header["states"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidInput(f"state: the header of the record is malformed ({error!r})") from error
    if recorded != fingerprint:
        raise InvalidInput(
            f"state: expected one of this model (fingerprint {fingerprint}), got one of another ({recorded}): "
            "a state means nothing to another model"
        )
    expected = [(tensor.name, tensor.dtype.str, tensor.shape) for tensor in tensors]
    if [entry[:2] for entry in entries] != [entry[:2] for entry in expected] or not all(
        tensor.fits_row(shape) for tensor, (_, _, shape) in zip(tensors, entries, strict=True)
    ):
        raise InvalidInput(f"state: expected the states {expected}, got {entries}")
    counts = [int(np.prod(shape, dtype=int)) for _, _, shape in entries]
    needed = sum(count * tensor.dtype.itemsize for tensor, count in zip(tensors, counts, strict=True))
    if len(body) != size + needed:
        raise InvalidInput(f"state: expected {needed} bytes, got {len(body) - size}")
    states: dict[str, Array] = {}
    offset = size
    for tensor, count, (_, _, shape) in zip(tensors, counts, entries, strict=True):
        states[tensor.name] = np.frombuffer(body, tensor.dtype, count, offset).reshape(shape)
        offset += count * tensor.dtype.itemsize
    return states


def _as_size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value

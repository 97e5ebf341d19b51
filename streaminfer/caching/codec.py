"""Encoding of values as bytes, and decoding, without pickle: for media that are shared or outlive the process.

A record may be corrupt, or written by another program. Decoding therefore builds only data: ``None``, booleans,
numbers, strings, bytes, lists, tuples, dictionaries, NumPy arrays and scalars. A value comes back with its exact types,
or not at all:

* :func:`encode` raises ``TypeError`` for values that would come back as something else: subclasses (masked arrays,
  named tuples, enumerations), arrays of objects, data types that NumPy cannot name. The message gives the position.
* :func:`decode` raises :class:`CorruptRecord` for data with a wrong checksum, and for short or malformed data.

A record is a header, a head and buffers::

    bytes 0-5  "si-ser"    6-7  version    8-15  length of the rest    16-23  XXH3-64 of the rest, seeded by the version
    24-31  length of the head

The head has a line of JSON for each value. A type that JSON lacks is an object with one item: a tag, such as ``"t"``
for a tuple, and the data of the type. The contents of bytes and arrays lie in the buffers, each at a multiple of 16, so
that views on the record are aligned. Reading an array copies nothing: the array is a read-only view that keeps the
record alive. Time and memory are linear in the size. XXH3 runs at the speed of memory. It detects accidents, not
forgeries; :mod:`~streaminfer.caching.tiers.encryption` detects those.
"""

import functools
import json
import math
import struct
import warnings
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from streaminfer._internal.loading.extras import require
from streaminfer.errors import StreamInferError

__all__ = ["HEAD_AT", "RECORD_MARK", "CorruptRecord", "decode", "encode", "first_value"]

_MAGIC = b"si-ser"
_VERSION = 2
_HEADER = struct.Struct("<6sHQQ")
_LENGTH = struct.Struct("<Q")
RECORD_MARK = _HEADER.pack(_MAGIC, _VERSION, 0, 0)[:8]
"""First bytes of every record."""
HEAD_AT = _HEADER.size + _LENGTH.size
"""Offset of the head of a record; the first line of the head has the first value."""
_ALIGNED = 16
_MAX_DEPTH = 64
_PLAIN_INTS = 2**63  # JSON reads larger ones slowly, or not at all
_FLOAT = struct.Struct("<d")
_to_json = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode

Buffer = bytes | bytearray | memoryview


class CorruptRecord(StreamInferError, ValueError):  # noqa: N818 - says what the data are
    """Raised when data are a record that is cut short, altered or of an unknown version, or are no record."""


def encode(*values: Any) -> bytes:
    """Return values as one self-contained record.

    Args:
        values: each ``None``, bool, int, float, complex, str, bytes, list, tuple, dict, a NumPy array or scalar of any
            data type without objects, nested up to 64 deep. A ``MappingProxyType`` is written as a dict.

    Returns:
        The record.

    Raises:
        TypeError: a value contains another type; the message says where.
        ValueError: a value is nested deeper, or contains itself.

    Thread-safe if the values do not change meanwhile.
    """
    encoder = _Encoder()
    lines = [_to_json(encoder.plain(value, "value", 0)) for value in values]
    head = "\n".join(lines).encode("utf-8", "surrogatepass")
    parts = (_LENGTH.pack(len(head)), head, bytes(-len(head) % _ALIGNED), *encoder.buffers)
    checksum = _xxhash().xxh3_64(seed=_VERSION)
    for part in parts:
        checksum.update(part)
    header = _HEADER.pack(_MAGIC, _VERSION, sum(map(len, parts)), checksum.intdigest())
    return b"".join((header, *parts))


def decode(data: Buffer) -> list[Any]:
    """Return the values of a record.

    Args:
        data: what :func:`encode` returned. Arrays are read-only views on it, so a buffer must not change while they
            live.

    Raises:
        CorruptRecord: the data are not an unaltered record.

    Thread-safe.
    """
    view = memoryview(data).toreadonly().cast("B")
    if len(view) < _HEADER.size:
        raise CorruptRecord(f"cut short: {len(view)} bytes are no record")
    magic, version, size, checksum = _HEADER.unpack_from(view)
    if magic != _MAGIC:
        raise CorruptRecord("not a record")
    if version != _VERSION:
        raise CorruptRecord(f"version {version} is not known; this is version {_VERSION}")
    if size != len(view) - _HEADER.size:
        raise CorruptRecord(f"expected {size} bytes behind the header, got {len(view) - _HEADER.size}")
    body = view[_HEADER.size :]
    if _xxhash().xxh3_64_intdigest(body, seed=_VERSION) != checksum:
        raise CorruptRecord("altered: the checksum is another")
    try:
        end = _LENGTH.size + _LENGTH.unpack_from(body)[0]
        lines = str(body[_LENGTH.size : end], "utf-8", "surrogatepass").split("\n")
        build = functools.partial(_build, body[end + (_LENGTH.size - end) % _ALIGNED :])
        return [json.loads(line, object_hook=build) for line in lines]
    except Exception as error:  # a forged body can raise anything
        raise CorruptRecord(f"not well formed: {error}") from error


def first_value(data: Buffer) -> Any:
    """Return the first value of a record from its beginning, if that value has no buffers.

    Args:
        data: the first bytes of a record, or all of it; the checksum is not verified.

    Returns:
        The value; ``None`` if these bytes do not contain it.
    """
    line, end, _ = bytes(data[HEAD_AT:]).partition(b"\n")
    try:
        return json.loads(str(line, "utf-8", "surrogatepass")) if end and data[:8] == RECORD_MARK else None
    except (ValueError, RecursionError):  # not a record, or too few bytes of it
        return None


@functools.cache
def _xxhash() -> ModuleType:
    return require("xxhash", extra="cache", purpose="a cache tier")


class _Encoder:
    def __init__(self) -> None:
        self.buffers: list[bytes | memoryview] = []
        self._size = 0

    def plain(self, value: Any, where: str, depth: int) -> Any:  # noqa: PLR0911 - one for each kind
        """Return the JSON form of a value; bytes and arrays go to the buffers."""
        if depth > _MAX_DEPTH:
            raise ValueError(f"{where[:200]}: nested deeper than {_MAX_DEPTH}, or within itself")
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if -_PLAIN_INTS <= value < _PLAIN_INTS else {"i": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"f": _FLOAT.pack(value).hex()}
        if kind is complex:
            return {"c": [self.plain(part, where, depth) for part in (value.real, value.imag)]}
        if kind is bytes:
            return {"b": (self._add(value), len(value))}
        if kind is list or kind is tuple:
            items = [self.plain(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
            return items if kind is list else {"t": items}
        if kind is dict or kind is MappingProxyType:
            keys = [self.plain(key, f"{where}: key {key!r:.40}", depth + 1) for key in value]
            items = [self.plain(item, f"{where}[{key!r:.40}]", depth + 1) for key, item in value.items()]
            return {"d": (keys, items)}
        if kind is np.ndarray or (isinstance(value, np.generic) and kind is value.dtype.type):
            return {"a" if kind is np.ndarray else "g": self._array(value, where)}
        raise TypeError(_rejection(where, value))

    def _array(self, value: Any, where: str) -> tuple[Any, ...]:
        described = None if _has_metadata(value.dtype) else _described(value.dtype)
        if described is None or _has_trailing_zeros(value):
            raise TypeError(_rejection(where, value))
        fortran = value.ndim > 1 and value.flags.f_contiguous and not value.flags.c_contiguous
        start = 0
        if value.nbytes:
            flat = np.ascontiguousarray(value.T if fortran else value)
            start = self._add(flat.reshape(-1).view(np.uint8).data)
        return described, value.shape, fortran, start

    def _add(self, part: bytes | memoryview) -> int:
        """Add a buffer and return its offset."""
        start = self._size
        padding = bytes(-len(part) % _ALIGNED)
        self.buffers += (part, padding)
        self._size += len(part) + len(padding)
        return start


def _build(buffers: memoryview, tagged: dict[str, Any]) -> Any:  # noqa: PLR0911 - one for each kind
    """Return the value of a tagged object: a type that JSON lacks."""
    ((tag, content),) = tagged.items()
    match tag:
        case "t":
            return tuple(content)
        case "d":
            return dict(zip(*content, strict=True))
        case "i":
            return int(content, 16)
        case "f":
            return _FLOAT.unpack(bytes.fromhex(content))[0]
        case "c":
            return complex(*content)
        case "b":
            start, size = content
            return bytes(buffers[start : start + size])
    described, shape, fortran, start = content
    array = np.ndarray(shape, _dtype(described), buffers[start:], order="F" if fortran else "C")
    return {"a": array, "g": array[()]}[tag]


@functools.lru_cache(maxsize=256)
def _described(dtype: np.dtype[Any]) -> str | None:
    """Return the literal that names a data type in ``.npy`` files; ``None`` if it has no such name."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy warns of a type that ``.npy`` files would pickle
        try:
            described = repr(np.lib.format.dtype_to_descr(dtype))
            return described if _dtype(described) == dtype else None
        except (UserWarning, CorruptRecord):
            return None


def _has_metadata(dtype: np.dtype[Any]) -> bool:
    """Return whether a data type has more than its name tells: metadata, or ``np.record`` attributes."""
    inner = [field[0] for field in (dtype.fields or {}).values()]
    if dtype.subdtype is not None:
        inner.append(dtype.base)
    return bool(dtype.metadata) or dtype.type is np.record or any(map(_has_metadata, inner))


def _has_trailing_zeros(value: Any) -> bool:
    """Return whether this is a text scalar with trailing zeros, which an array would drop."""
    is_cut: bool = isinstance(value, np.bytes_) and value.endswith(b"\0")
    return is_cut or (isinstance(value, np.str_) and value.endswith("\0"))


@functools.lru_cache(maxsize=256)
def _dtype(described: str) -> np.dtype[Any]:
    import ast  # noqa: PLC0415 - loaded with the first array

    dtype = np.lib.format.descr_to_dtype(ast.literal_eval(described))
    if dtype.hasobject:
        raise CorruptRecord("an array of objects")
    return dtype


def _rejection(where: str, value: Any) -> str:
    kind = type(value).__qualname__
    if isinstance(value, (np.ndarray, np.generic)) and type(value).__module__ == "numpy":
        kind += f" of {value.dtype}"
    return (
        f"{where[:200]}: expected None, bool, int, float, complex, str, bytes, list, tuple, dict or a NumPy array or"
        f" scalar without objects, got {kind}, which would come back changed"
    )

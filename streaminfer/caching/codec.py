"""Values as bytes, and back, without pickle: for media that outlive the process or are shared.

A record may be corrupt, or written by another program, so decoding builds nothing but data: ``None``, booleans,
numbers, strings, bytes, lists, tuples, dictionaries, NumPy arrays and scalars. A value comes back with its exact types,
or not at all:

* :func:`encode` rejects with ``TypeError`` what would come back as something else: subclasses (masked arrays, named
  tuples, enumerations), arrays of objects, data types that NumPy cannot name. The message says where in the value.
* :func:`decode` rejects with :class:`CorruptRecord` what does not have the checksum, is cut short, or is malformed.

A record is a header and a body::

    bytes 0-5  "si-ser"    6-7  version    8-15  length of the body    16-23  XXH3-64 of the body, seeded by the version

All numbers are little-endian. The body is one node: a byte that names the type, then what the type needs; containers
hold nodes. The data of arrays begins at a multiple of 16, so that views on the record are aligned. Reading an
array copies nothing: it is a read-only view that keeps the record alive. Each node is written once and read once: time
and memory are linear in the size. XXH3 runs at the speed of memory; it finds accidents and not forgeries, which is what
:mod:`~streaminfer.caching.tiers.encryption` is for.
"""

from __future__ import annotations

import functools
import struct
import warnings
from collections.abc import Callable
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from streaminfer._internal.loading.extras import require
from streaminfer.errors import StreamInferError

__all__ = ["RECORD_MARK", "CorruptRecord", "decode", "encode", "first_items"]

_MAGIC = b"si-ser"
_VERSION = 1
_HEADER = struct.Struct("<6sHQQ")
RECORD_MARK = _HEADER.pack(_MAGIC, _VERSION, 0, 0)[:8]
"""The bytes that each record begins with."""
_COUNT = struct.Struct("<Q")
_INT = struct.Struct("<q")
_FLOAT = struct.Struct("<d")
_COMPLEX = struct.Struct("<dd")
_ALIGNED = 16
_DEEPEST = 64

Buffer = bytes | bytearray | memoryview


class CorruptRecord(StreamInferError, ValueError):  # noqa: N818 - says what the data are
    """Raised when a record is cut short, altered, of an unknown version, or never was one."""


def encode(value: Any) -> bytes:
    """Return a value as one self-contained record.

    Args:
        value: ``None``, bool, int, float, complex, str, bytes, list, tuple, dict, a NumPy array or scalar of any data
            type without objects, nested up to 64 deep. A ``MappingProxyType`` is written as the dict that it shows.

    Returns:
        The record.

    Raises:
        TypeError: something in it is of another type; the message says where.
        ValueError: nested deeper, or within itself.

    Thread-safe, on values that do not change meanwhile.
    """
    writer = _Writer()
    writer.write(value, "value", 0)
    checksum = _xxhash().xxh3_64(seed=_VERSION)
    for part in writer.parts:
        checksum.update(part)
    header = _HEADER.pack(_MAGIC, _VERSION, writer.size, checksum.intdigest())
    return b"".join((header, *writer.parts))


def decode(data: Buffer) -> Any:
    """Return the value of a record.

    Args:
        data: what :func:`encode` returned. Arrays are read-only views on it; a buffer must not
            change while they live.

    Returns:
        The value.

    Raises:
        CorruptRecord: this is not, byte for byte, a record.

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
    reader = _Reader(body)
    try:
        value = reader.read(0)
    except CorruptRecord:
        raise
    except Exception as error:  # a forged body can raise anything
        raise CorruptRecord(f"not well formed: {error}") from error
    if reader.at != len(body):
        raise CorruptRecord("not well formed: something follows the value")
    return value


def first_items(data: Buffer, count: int) -> list[Any] | None:
    """Return the first items of the tuple in a record, of which the rest may be missing; the checksum is not looked at.

    Args:
        data: bytes that begin with a record.
        count: how many items.

    Returns:
        The items; ``None``: these bytes do not hold them.
    """
    view = memoryview(data).toreadonly().cast("B")
    if bytes(view[: len(RECORD_MARK)]) != RECORD_MARK:
        return None
    reader = _Reader(view[_HEADER.size :])
    try:
        if bytes(reader._take(1)) != b"t" or reader._count() < count:
            return None
        return [reader.read(1) for _ in range(count)]
    except Exception:  # noqa: BLE001 - whatever bytes lead to that are no record, or not all of its beginning
        return None


@functools.cache
def _xxhash() -> ModuleType:
    return require("xxhash", extra="cache", purpose="a cache tier")


class _Writer:
    def __init__(self) -> None:
        self.parts: list[bytes | memoryview] = []
        self.size = 0

    def _put(self, part: bytes | memoryview) -> None:
        self.parts.append(part)
        self.size += len(part)

    def _put_sized(self, tag: bytes, data: bytes) -> None:
        self._put(tag + _COUNT.pack(len(data)))
        self._put(data)

    def write(self, value: Any, where: str, depth: int) -> None:  # noqa: C901, PLR0912 - a branch for each type
        if depth > _DEEPEST:
            raise ValueError(f"{where[:200]}: nested deeper than {_DEEPEST}, or within itself")
        kind = type(value)
        if value is None:
            self._put(b"N")
        elif kind is bool:
            self._put(b"T" if value else b"F")
        elif kind is int and -(2**63) <= value < 2**63:
            self._put(b"i" + _INT.pack(value))
        elif kind is int:
            self._put_sized(b"I", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
        elif kind is float:
            self._put(b"f" + _FLOAT.pack(value))
        elif kind is complex:
            self._put(b"c" + _COMPLEX.pack(value.real, value.imag))
        elif kind is str:
            self._put_sized(b"s", value.encode("utf-8", "surrogatepass"))
        elif kind is bytes:
            self._put_sized(b"b", value)
        elif kind is list or kind is tuple:
            self._put((b"l" if kind is list else b"t") + _COUNT.pack(len(value)))
            for index, item in enumerate(value):
                self.write(item, f"{where}[{index}]", depth + 1)
        elif kind is dict or kind is MappingProxyType:
            self._put(b"d" + _COUNT.pack(len(value)))
            for key, item in value.items():
                self.write(key, f"{where}: key {key!r:.40}", depth + 1)
                self.write(item, f"{where}[{key!r:.40}]", depth + 1)
        elif kind is np.ndarray or isinstance(value, np.generic):
            self._array(value, b"a" if kind is np.ndarray else b"g", where)
        else:
            raise TypeError(_refusal(where, value))

    def _array(self, value: Any, tag: bytes, where: str) -> None:
        described = _descriptor(value.dtype, where, value).encode()
        shape = value.shape
        fortran = value.ndim > 1 and value.flags.f_contiguous and not value.flags.c_contiguous
        head = struct.pack(f"<BHB{len(shape)}Q", fortran, len(described), len(shape), *shape)
        self._put(tag + head + described)
        self._put(b"\0" * (-(_HEADER.size + self.size) % _ALIGNED))
        if value.nbytes:
            flat = np.ascontiguousarray(value.T if fortran else value)
            self._put(flat.reshape(-1).view(np.uint8).data)


class _Reader:
    def __init__(self, body: memoryview) -> None:
        self.body = body
        self.at = 0

    def _take(self, count: int) -> memoryview:
        end = self.at + count
        if end > len(self.body):
            raise CorruptRecord(f"not well formed: {count} bytes are said to follow, {len(self.body) - self.at} do")
        taken = self.body[self.at : end]
        self.at = end
        return taken

    def _count(self) -> int:
        count: int = _COUNT.unpack(self._take(8))[0]
        return count

    def _sized(self) -> memoryview:
        return self._take(_COUNT.unpack(self._take(8))[0])

    def _items(self, depth: int) -> list[Any]:
        return [self.read(depth + 1) for _ in range(self._count())]

    def read(self, depth: int) -> Any:
        if depth > _DEEPEST:
            raise CorruptRecord(f"not well formed: nested deeper than {_DEEPEST}")
        tag = self._take(1)[0]
        read = _READERS.get(tag)
        if read is None:
            raise CorruptRecord(f"not well formed: no type is called {tag}")
        return read(self, depth)

    def _array(self) -> np.ndarray[Any, Any]:
        fortran, described, ndim = struct.unpack("<BHB", self._take(4))
        shape = struct.unpack(f"<{ndim}Q", self._take(8 * ndim))
        dtype = _dtype(bytes(self._take(described)).decode())
        self._take(-(_HEADER.size + self.at) % _ALIGNED)
        size = dtype.itemsize
        for extent in shape:
            size *= extent
        return np.ndarray(shape, dtype, buffer=self._take(size), order="F" if fortran else "C")


_READERS: dict[int, Callable[[_Reader, int], Any]] = {
    ord("N"): lambda _reader, _depth: None,
    ord("T"): lambda _reader, _depth: True,
    ord("F"): lambda _reader, _depth: False,
    ord("i"): lambda reader, _depth: _INT.unpack(reader._take(8))[0],
    ord("I"): lambda reader, _depth: int.from_bytes(reader._sized(), "little", signed=True),
    ord("f"): lambda reader, _depth: _FLOAT.unpack(reader._take(8))[0],
    ord("c"): lambda reader, _depth: complex(*_COMPLEX.unpack(reader._take(16))),
    ord("s"): lambda reader, _depth: str(reader._sized(), "utf-8", "surrogatepass"),
    ord("b"): lambda reader, _depth: bytes(reader._sized()),
    ord("l"): lambda reader, depth: reader._items(depth),
    ord("t"): lambda reader, depth: tuple(reader._items(depth)),
    ord("d"): lambda reader, depth: {reader.read(depth + 1): reader.read(depth + 1) for _ in range(reader._count())},
    ord("a"): lambda reader, _depth: reader._array(),
    ord("g"): lambda reader, _depth: reader._array()[()],
}


def _descriptor(dtype: np.dtype[Any], where: str, value: Any) -> str:
    """The name of a data type; a structured one's is the literal that ``.npy`` files have."""
    if dtype.hasobject or dtype.metadata:
        raise TypeError(_refusal(where, value))
    name = _NAMES.get(dtype)
    if name is not None:
        return name
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a type that ``.npy`` files would have to pickle
        try:
            described = repr(np.lib.format.dtype_to_descr(dtype))
        except UserWarning as lossy:
            raise TypeError(_refusal(where, value)) from lossy
    if _dtype(described) != dtype or _bears_metadata(dtype) or len(described) > 0xFFFF:
        raise TypeError(_refusal(where, value))
    return described


def _bears_metadata(dtype: np.dtype[Any]) -> bool:
    inner = [field[0] for field in (dtype.fields or {}).values()]
    if dtype.subdtype is not None:
        inner.append(dtype.base)
    return bool(dtype.metadata) or any(map(_bears_metadata, inner))


def _dtype(described: str) -> np.dtype[Any]:
    dtype = _DTYPES.get(described)
    if dtype is None:
        import ast  # noqa: PLC0415 - the common types need none

        dtype = np.lib.format.descr_to_dtype(ast.literal_eval(described))
        if dtype.hasobject:
            raise CorruptRecord("not well formed: an array of objects")
    return dtype


_DTYPES = {
    repr(order + code): np.dtype(order + code) for order in "<>" for code in ("f2", "f4", "f8", "i2", "i4", "i8")
}
_DTYPES |= {repr(code): np.dtype(code) for code in ("|b1", "|i1", "|u1", "<u2", "<u4", "<u8")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def _refusal(where: str, value: Any) -> str:
    kind = type(value).__qualname__
    if isinstance(value, (np.ndarray, np.generic)) and type(value).__module__ == "numpy":
        kind += f" of {value.dtype}"
    return (
        f"{where[:200]}: expected None, bool, int, float, complex, str, bytes, list, tuple, dict or a NumPy array or"
        f" scalar without objects, got {kind}, which would not come back as it is"
    )

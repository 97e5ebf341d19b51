"""Encoding of values for :func:`streaminfer.content_key`: different values have different encodings.

*Design.* The encoding of a value is a tag, a length if it can vary, and the contents. Each part thus marks its own end,
and ``("ab", "c")`` differs from ``("a", "bc")``. Large contents (arrays, long strings) are replaced by their own
digest, so they are read once and never copied. The key is the digest of the whole: a Merkle tree of two levels. With a
keyed hash, both levels are keyed.

* Arrays: dtype with byte order, shape, then the elements in C order, for any layout in memory. The header of each dtype
  and shape is made once and remembered.
* Mappings and sets: the encoded items, sorted, so their order does not matter.
* Floats: their bits. A NaN equals a NaN with the same bits; -0.0 differs from 0.0.
* Numbers: their type and value. 1, 1.0 and True differ, because a function can tell them apart.
* A subclass (a named tuple, an ``IntEnum``, ``np.matrix``): its class and its contents, because a model may treat it
  differently. Views of bytes (``bytearray``, ``memoryview``, ``np.memmap``) are encoded as their contents.

Objects without readable contents are rejected, unless they have a ``fingerprint``. So are subclasses of arrays with a
meaning outside their elements, such as units.

*Complexity.* One pass over the contents, and about 0.2 µs per array.

One source, compiled with the C types of ``_keys_cy.pxd`` or run as plain Python.
"""

import operator
import struct
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy import ndarray

from streaminfer.errors import InvalidInput

__all__ = ["KeyMaker"]

_MAX_DEPTH = 64
_LONG = 1024  # bytes; longer contents are replaced by their digest
_MAX_HEADERS = 4096
_PLAIN_KINDS = "biufcSUVMm"
_PADDED = (np.longdouble, np.clongdouble)
_FOREIGN_DTYPE = 2  # `dtype.isbuiltin` of a type that another package defines, such as bfloat16 of ml_dtypes
_BUILTIN = (complex, bytes, bytearray, memoryview, set, frozenset)
_OTHER_PLAIN_KINDS = (bytes, bytearray, complex, set, frozenset, MappingProxyType, np.memmap)
_FIXED_SHAPE_ARRAYS = (np.matrix, np.recarray)

_length = struct.Struct("<Q").pack
_signed = struct.Struct("<q").pack
_double = struct.Struct("<d").pack
_joined = operator.concat


class KeyMaker:
    """Makes keys with one hash function and one prefix: the model, its version and the preprocessing.

    Args:
        digest: function from a bytes-like object to a digest of fixed length.
        prefix: the beginning of every encoding; it marks its own end, like every part.

    Thread-safe. It remembers headers only, and forgets them all when there are too many.
    """

    def __init__(self, digest: Callable[[Any], bytes], prefix: bytes) -> None:
        self._digest = digest
        self._prefix = prefix
        self._headers: dict[Any, bytes] = {}
        self._before: tuple[Any, Any, bytes] = (None, None, b"")  # one tuple, so threads read all three at once

    def key(self, inputs: Any, tenant: str | None = None) -> bytes:
        """Return the key of inputs.

        Args:
            inputs: arrays, numbers, strings, bytes, ``None``, and mappings, sequences and sets of these.
            tenant: the tenant that sends the request; ``None`` is the same as an empty name.

        Raises:
            InvalidInput: something among the inputs cannot be keyed; the message says what.
        """
        if not tenant and type(inputs) is tuple and len(inputs) == 1 and type(inputs[0]) is ndarray:
            return self._key_of_one(inputs)
        return self._key_of_all(inputs, tenant)

    def _key_of_one(self, inputs: Any) -> bytes:
        """Return the key of one array; remember the bytes before its digest for the next array of the same shape."""
        array = inputs[0]
        before = self._before
        shape: Any = len(array) if array.ndim == 1 else array.shape  # making a tuple takes longer than comparing it
        if array.dtype is before[0] and shape == before[1]:
            return self._digest(_joined(before[2], self._digest_of(array)))
        header = self._headers.get((array.dtype, array.shape))
        if header is not None:
            self._before = (array.dtype, shape, self._prefix + b"(" + _length(1) + header)
        return self._key_of_all(inputs, None)

    def _key_of_all(self, inputs: Any, tenant: str | None) -> bytes:
        parts = [self._prefix]
        if tenant:
            parts.append(b"t" + _text(str.__str__(tenant)))
        self._encode(inputs, parts, 0)
        return self._digest(b"".join(parts))

    def _encode(self, value: Any, parts: list[bytes], depth: int) -> None:
        kind = type(value)  # the usual types first, compared by identity, which is fast
        if kind is ndarray:
            self._encode_array(value, parts, depth)
        elif kind is str:
            self._encode_bytes(b"u", _utf8(value), parts)
        elif kind is int or kind is float or kind is bool:
            parts.append(_number(value))
        elif value is None:
            parts.append(b"n")
        elif depth >= _MAX_DEPTH:
            raise InvalidInput(f"inputs: nested deeper than {_MAX_DEPTH} levels, or a list that contains itself")
        elif kind is tuple or kind is list or kind is dict:
            self._encode_container(value, parts, depth)
        else:
            self._encode_other(value, parts, depth)

    def _encode_other(self, value: Any, parts: list[bytes], depth: int) -> None:
        kind = type(value)
        if kind not in _BUILTIN and getattr(value, "fingerprint", None) is not None:
            self._encode_object(value, parts, depth)
        elif isinstance(value, np.generic):
            if kind is not value.dtype.type:
                parts.append(b"y" + _text(_named(value)))
            self._encode_array(np.asarray(value), parts, depth)
        elif isinstance(value, memoryview):
            self._encode_view(value, parts, depth)
        else:
            if kind not in _OTHER_PLAIN_KINDS:
                parts.append(b"y" + _text(_named(value)))
            self._encode_subclass_of_plain(value, parts, depth)

    def _encode_subclass_of_plain(self, value: Any, parts: list[bytes], depth: int) -> None:
        if isinstance(value, ndarray):
            self._encode_subclass(value, parts, depth)
        elif isinstance(value, str):
            self._encode_bytes(b"u", _utf8(str.__str__(value)), parts)
        elif isinstance(value, (int, float, complex)):
            parts.append(_number(value))
        elif isinstance(value, (bytes, bytearray)):
            self._encode_bytes(b"b", value, parts)
        else:
            self._encode_container(value, parts, depth)

    def _encode_container(self, value: Any, parts: list[bytes], depth: int) -> None:
        if isinstance(value, (list, tuple)):
            parts.append(b"[" if isinstance(value, list) else b"(")
            parts.append(_length(len(value)))
            for item in value:
                self._encode(item, parts, depth + 1)
        elif isinstance(value, Mapping):
            parts.append(b"m" + _length(len(value)))
            pairs = [(self._encoded(key, depth), self._encoded(item, depth)) for key, item in value.items()]
            for pair in sorted(pairs):
                parts.extend(pair)
        elif isinstance(value, AbstractSet):
            parts.append(b"s" + _length(len(value)))
            parts.extend(sorted([self._encoded(item, depth) for item in value]))
        else:
            raise InvalidInput(
                f"inputs: expected arrays, numbers, strings, bytes, None, or mappings, sequences and sets of these, "
                f"got {_named(value)}; give its class a `fingerprint` (str or bytes) that changes with its contents, "
                f"or the request a key"
            )

    def _encoded(self, value: Any, depth: int) -> bytes:
        parts: list[bytes] = []
        self._encode(value, parts, depth + 1)
        return b"".join(parts)

    def _encode_bytes(self, tag: bytes, content: Any, parts: list[bytes]) -> None:
        size = len(content)
        parts.append(tag)
        parts.append(_length(size))
        parts.append(content if size <= _LONG else self._digest(content))

    def _encode_view(self, value: memoryview, parts: list[bytes], depth: int) -> None:
        if value.format == "B" and value.ndim == 1:
            self._encode_bytes(b"b", value if value.c_contiguous else value.tobytes(), parts)
        else:
            try:
                array = np.asarray(value)
            except (TypeError, ValueError, NotImplementedError) as error:
                message = f"inputs: a memoryview of format {value.format!r} cannot be keyed: {error}"
                raise InvalidInput(message) from None
            self._encode_array(array, parts, depth)

    def _encode_object(self, value: Any, parts: list[bytes], depth: int) -> None:
        """Encode an object by its class and its fingerprint."""
        mark = value.fingerprint
        if callable(mark):
            mark = mark()
        if not isinstance(mark, (str, bytes)):
            raise InvalidInput(
                f"inputs: expected a fingerprint of str or bytes, got {_named(mark)} from {_named(value)}"
            )
        parts.append(b"p" + _text(f"{type(value).__module__}.{type(value).__qualname__}"))
        self._encode(mark, parts, depth + 1)

    def _encode_array(self, array: Any, parts: list[bytes], depth: int) -> None:
        header = self._headers.get((array.dtype, array.shape))
        if header is None:
            header = self._header(array)
        if header is None:
            self._encode_composite(array, parts, depth)
        else:
            parts.append(header)
            parts.append(self._digest_of(array))

    def _digest_of(self, array: Any) -> bytes:
        try:
            return self._digest(array)
        except (TypeError, ValueError, BufferError):  # not in C order, or a dtype without the buffer protocol
            return self._digest(np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    def _header(self, array: Any) -> bytes | None:
        """Encode dtype and shape of an array, and remember them; ``None`` if its elements are not plain bytes."""
        dtype = array.dtype
        if dtype.kind not in _PLAIN_KINDS or dtype.names is not None or dtype.type in _PADDED:
            return None
        name = dtype.str
        if dtype.isbuiltin == _FOREIGN_DTYPE:  # several of these have the same ``dtype.str``
            name = f"{name} {dtype.type.__module__}.{dtype.name}"
        header = b"a" + _text(name) + _length(array.ndim) + b"".join(map(_length, array.shape))
        if len(self._headers) >= _MAX_HEADERS:
            self._headers.clear()
        self._headers[dtype, array.shape] = header
        return header

    def _encode_composite(self, array: Any, parts: list[bytes], depth: int) -> None:
        """Encode field by field, so that padding does not count, or object by object."""
        dtype = array.dtype
        shape = _length(array.ndim) + b"".join(map(_length, array.shape))
        if depth >= _MAX_DEPTH:
            raise InvalidInput(f"inputs: nested deeper than {_MAX_DEPTH} levels, or an array that contains itself")
        if dtype.names is not None:
            parts.append(b"r" + _length(len(dtype.names)) + shape)
            for name in dtype.names:
                parts.append(_text(name))
                self._encode_array(array[name].view(ndarray), parts, depth + 1)
        elif dtype.kind in "OT":
            parts.append(b"o" + _text(dtype.kind) + shape)
            for item in array.flat:
                self._encode(item, parts, depth + 1)
        else:
            raise InvalidInput(f"inputs: an array of {dtype} cannot be keyed: its elements hold bytes without meaning")

    def _encode_subclass(self, array: Any, parts: list[bytes], depth: int) -> None:
        if isinstance(array, np.ma.MaskedArray):
            if array.dtype.names is not None:
                raise InvalidInput("inputs: a masked array with fields cannot be keyed; pass its fields one by one")
            mask = np.ma.getmaskarray(array)
            plain = np.array(array.data, order="C")
            plain[mask] = np.zeros((), plain.dtype)  # masked elements do not count
            parts.append(b"k")
            self._encode_array(plain, parts, depth)
            self._encode_array(np.asarray(mask), parts, depth)
        elif type(array) in _FIXED_SHAPE_ARRAYS or type(array) is np.memmap:
            self._encode_array(array.view(ndarray), parts, depth)
        else:
            raise InvalidInput(
                f"inputs: expected a plain array, got {_named(array)}, a subclass that may mean more than its "
                f"elements; pass numpy.asarray() of it and what else it means"
            )


def _number(value: Any) -> bytes:
    if isinstance(value, bool):
        return b"T" if value else b"F"
    if isinstance(value, int):
        if -(2**63) <= value < 2**63:
            return b"i" + _signed(value)
        return b"I" + _sized(int(value).to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
    if isinstance(value, float):
        return b"f" + _double(value)
    return b"c" + _double(value.real) + _double(value.imag)


def _text(text: str) -> bytes:
    return _sized(_utf8(text))


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # an unpaired surrogate, which file names can contain
        return text.encode("utf-8", "surrogatepass")


def _sized(content: bytes) -> bytes:
    return _length(len(content)) + content


def _named(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"

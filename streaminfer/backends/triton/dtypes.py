"""The protocol's data types as NumPy's, and strings as the protocol writes them.

A ``BYTES`` tensor is, element by element, four bytes of length, least significant first, and the content. Requests
bring it as an array of ``str`` (sent as UTF-8), ``bytes`` or objects that are either; its response is an array of
``bytes`` objects. NumPy's own arrays of bytes drop zeros at the end of an element; arrays of objects do not.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streaminfer._internal.loading.extras import require
from streaminfer.backends.signature import TEXT
from streaminfer.errors import InvalidInput

__all__ = ["CONTENTS", "DATATYPES", "dtype_of", "encode_text", "is_text", "raw", "split_text", "strings", "texts"]


_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": TEXT,
}
DATATYPES = {dtype: name for name, dtype in _DTYPES.items()}
"""The protocol's name for a type of NumPy's."""

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where servers that do not send raw bytes over gRPC put the elements."""


def dtype_of(datatype: str) -> np.dtype[Any] | None:
    """NumPy's type for the protocol's; ``None`` where there is none.

    Raises:
        MissingExtra: it is bfloat16, and ml_dtypes is not installed.
    """
    if datatype == "BF16":
        bfloat16: np.dtype[Any] = np.dtype(require("ml_dtypes", extra="triton", purpose="a BF16 tensor").bfloat16)
        return bfloat16
    return _DTYPES.get(datatype)


def is_text(value: object) -> bool:
    """Whether it can be the content of a ``BYTES`` tensor, as far as the type says."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "SUO" and not isinstance(value, np.ma.MaskedArray)


def raw(array: npt.NDArray[Any]) -> bytes | memoryview:
    """The bytes of a C-contiguous array as the protocol sends them; a view, but of text."""
    if array.dtype.hasobject or array.dtype.kind in "SU":
        return encode_text(array)
    if array.dtype.kind == "V":  # bfloat16 is no type that buffers know
        array = array.view(np.uint8)
    return array.data


def encode_text(values: npt.NDArray[Any]) -> bytes:
    """The elements in C order as the protocol writes them.

    Raises:
        InvalidInput: an element that is neither text nor bytes, or text that is no Unicode.
    """
    parts = []
    for value in values.ravel().tolist():
        try:
            content = value.encode() if isinstance(value, str) else value
        except UnicodeEncodeError as error:
            raise InvalidInput(f"inputs: expected text that UTF-8 has, got half a surrogate pair: {error}") from error
        if not isinstance(content, bytes):
            raise InvalidInput(f"inputs: expected str or bytes in a BYTES tensor, got {type(value).__name__}")
        parts.append(len(content).to_bytes(4, "little"))
        parts.append(content)
    return b"".join(parts)


def strings(values: npt.NDArray[Any]) -> list[str]:
    """The elements in C order for JSON, which has no bytes.

    Raises:
        InvalidInput: an element that is neither text nor bytes, or bytes that are no text.
    """
    try:
        return [one.decode() for one in split_text(encode_text(values), values.size)]
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"inputs: expected text in UTF-8, since this server takes no binary tensors over HTTP, got bytes: {error}"
        ) from error


def split_text(content: bytes | memoryview, count: int) -> list[bytes]:
    """The elements; each has its length in front of it.

    Raises:
        ValueError: they are not ``count``, or a length points past the end.
    """
    elements: list[bytes] = []
    position, size = 0, len(content)
    while position < size and len(elements) < count:
        start = position + 4
        position = start + int.from_bytes(content[position:start], "little")
        if start > size or position > size:
            raise ValueError(f"element {len(elements)} ends past the end of the tensor")
        elements.append(bytes(content[start:position]))
    if position != size or len(elements) != count:
        raise ValueError(f"expected {count} elements in {size} bytes, got another number")
    return elements


def texts(elements: Sequence[str | bytes], shape: Sequence[int]) -> npt.NDArray[Any]:
    """An array of texts, each an object of its own."""
    array = np.empty(len(elements), TEXT)
    array[:] = elements
    return array.reshape(shape)

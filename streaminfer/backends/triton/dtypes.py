"""The protocol's data types as NumPy dtypes, and the protocol's encoding of strings.

In a ``BYTES`` tensor, each element is four bytes of length, least significant first, followed by the content. Requests
have it as an array of ``str`` (sent as UTF-8), ``bytes`` or objects that are either; responses have an array of
``bytes`` objects. NumPy's own arrays of bytes drop zeros at the end of an element; arrays of objects do not.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streaminfer._internal.loading.extras import require
from streaminfer._internal.masked import is_masked
from streaminfer.backends.signature import TEXT, WHOLE
from streaminfer.errors import InvalidInput

__all__ = [
    "CONTENTS",
    "DATATYPES",
    "as_array",
    "dtype_of",
    "encode_text",
    "is_text",
    "raw",
    "split_text",
    "strings",
    "texts",
]

_DTYPES = {
    **{name.upper(): np.dtype(name) for name in WHOLE},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BYTES": TEXT,
}
DATATYPES = {dtype: name for name, dtype in _DTYPES.items()}
"""The protocol's name of each NumPy dtype."""

CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field for elements of servers that do not send raw bytes over gRPC, by the protocol's type."""


def dtype_of(datatype: str) -> np.dtype[Any] | None:
    """Return the NumPy dtype of a protocol type; ``None`` for an unknown type.

    Raises:
        MissingExtra: the type is bfloat16, and ml_dtypes is not installed.
    """
    if datatype == "BF16":
        bfloat16: np.dtype[Any] = np.dtype(require("ml_dtypes", extra="triton", purpose="a BF16 tensor").bfloat16)
        return bfloat16
    return _DTYPES.get(datatype)


def as_array(value: Any) -> npt.NDArray[Any]:
    """Return one input of a request as an array; a string keeps the zeros at its end."""
    return np.asarray(value, TEXT if isinstance(value, (str, bytes)) else None)


def is_text(value: object) -> bool:
    """Return whether the type of a value allows it as the content of a ``BYTES`` tensor."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "SUO" and not is_masked(value)


def raw(array: npt.NDArray[Any]) -> bytes | memoryview:
    """Return the bytes of a C-contiguous array as the protocol sends them; a view, except for text."""
    if array.dtype.hasobject or array.dtype.kind in "SU":
        return encode_text(array)
    if array.dtype.kind == "V":  # buffers cannot describe bfloat16
        array = array.view(np.uint8)
    return array.data


def encode_text(values: npt.NDArray[Any]) -> bytes:
    """Return the elements in C order, in the protocol's encoding.

    Raises:
        InvalidInput: an element is neither text nor bytes, or is text that UTF-8 cannot encode.
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
    """Return the elements in C order as strings for JSON, which has no bytes.

    Raises:
        InvalidInput: an element is neither text nor bytes, or is bytes that are not UTF-8.
    """
    try:
        return [one.decode() for one in split_text(encode_text(values), values.size)]
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"inputs: expected text in UTF-8, since this server takes no binary tensors over HTTP, got bytes: {error}"
        ) from error


def split_text(content: bytes | memoryview, count: int) -> list[bytes]:
    """Return the elements of encoded text; the length of each precedes it.

    Raises:
        ValueError: the number of elements is not ``count``, or a length points past the end.
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
    """Return an array of objects, one text per element."""
    array = np.empty(len(elements), TEXT)
    array[:] = elements
    return array.reshape(shape)

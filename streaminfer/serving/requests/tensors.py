"""Tensors of the protocol as arrays, and back.

Arrays of numbers are views of the request's body. A tensor's sizes are checked against the limits and against the
length of its content before an array is made. In text, the length of each element precedes it; text becomes an array of
``str``, or of ``bytes`` if the model takes those. bfloat16, for which NumPy has no type, becomes float32.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import numpy.typing as npt

from streaminfer._internal.validation import brief
from streaminfer.backends.triton.dtypes import DATATYPES, dtype_of, encode_text, split_text, texts
from streaminfer.errors import BackendError, InvalidInput
from streaminfer.protocols import ModelTensor
from streaminfer.serving.errors import RequestRejected
from streaminfer.serving.limits import Limits

__all__ = ["Tensor", "check_shape", "datatype_of", "datatype_of_spec", "decode", "decode_list", "encode", "encode_list"]

_DATATYPES = {*DATATYPES.values(), "BF16"}
_JSON_KINDS: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}


class Tensor(NamedTuple):
    """An input, as described by the head of a request.

    Attributes:
        name: the name of the input.
        datatype: the protocol's name for its type.
        shape: its sizes; the first is the number of rows.
        elements: number of its elements.
        spec: the model's input of this name; ``None``: not known.
        size: size of its content after the head, if the head states it.
        data: its elements, instead of a content.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    elements: int
    spec: ModelTensor | None
    size: int | None
    data: Any

    @property
    def is_numbers(self) -> bool:
        """True if any bytes are a valid content, so that only its size is checked."""
        return self.elements > 0 and self.datatype not in {"BF16", "BOOL", "BYTES"}


def datatype_of(dtype: np.dtype[Any]) -> str | None:
    """Return the protocol's name for a NumPy dtype; ``None`` if it has none."""
    if (name := DATATYPES.get(dtype)) is not None:
        return name
    if dtype.kind in "OSU":
        return "BYTES"
    return "BF16" if dtype.name == "bfloat16" else None


def datatype_of_spec(spec: ModelTensor) -> str | None:
    """Return the protocol's name for the type of a model's tensor; ``None`` if it has none."""
    if spec.is_bfloat16:
        return "BF16"
    return None if spec.dtype is None else datatype_of(spec.dtype)


def check_shape(name: str, datatype: Any, shape: Any, limits: Limits) -> int:
    """Check the description of a tensor, and return its number of elements.

    Args:
        name: the name of the tensor.
        datatype: the protocol's name for its type.
        shape: its sizes.
        limits: limits of one request.

    Raises:
        InvalidInput: the datatype or shape is not valid in the protocol.
        RequestRejected: the shape exceeds the limits.
    """
    if not isinstance(datatype, str) or datatype not in _DATATYPES:
        raise InvalidInput(f"input {name!r}: expected a datatype of the protocol, got {brief(datatype)}")
    if not isinstance(shape, (list, tuple)) or not all(type(size) is int and size >= 0 for size in shape):
        raise InvalidInput(f"input {name!r}: expected a shape of sizes ≥ 0, got {brief(shape)}")
    if not shape or not shape[0]:
        raise InvalidInput(f"input {name!r}: expected rows on the first axis, got the shape {brief(shape)}")
    if len(shape) > limits.max_rank:  # first, because the product of many sizes takes long
        raise RequestRejected(413, f"input {name!r}: expected at most {limits.max_rank} axes, got {len(shape)}")
    max_elements = limits.max_strings if datatype == "BYTES" else limits.max_elements
    elements = math.prod(filter(None, shape))  # NumPy checks the product without zeros, even if an axis is empty
    for unit, size, limit in (("rows", shape[0], limits.max_rows), ("elements", elements, max_elements)):
        if size > limit:
            raise RequestRejected(413, f"input {name!r}: expected at most {limit} {unit}, got more")
    return elements if all(shape) else 0


def decode(tensor: Tensor, content: memoryview, *, keeps_bytes: bool) -> npt.NDArray[Any]:
    """Return a tensor's bytes as an array, a view unless it is text, bfloat16 or unaligned.

    Args:
        tensor: the tensor, as the request describes it.
        content: its bytes.
        keeps_bytes: whether text stays bytes.

    Raises:
        InvalidInput: the bytes do not match the tensor.
    """
    name, datatype, shape, count, spec = tensor[:5]
    if datatype == "BYTES":
        try:
            elements = split_text(content, count)
        except ValueError as error:
            raise InvalidInput(f"input {name!r}: {error}") from None
        return _as_text(name, elements, shape, keeps_bytes=keeps_bytes)
    dtype = np.dtype(np.uint16) if datatype == "BF16" else dtype_of(datatype)
    assert dtype is not None  # noqa: S101 - `check_shape` knows every type
    if len(content) != count * dtype.itemsize:
        raise InvalidInput(
            f"input {name!r}: expected {count * dtype.itemsize} bytes for {datatype} {list(shape)}, got {len(content)}"
        )
    array = np.frombuffer(content, dtype).reshape(shape)
    if datatype == "BF16":
        return array.view(spec.dtype) if _has_bfloat16(spec) else (array.astype(np.uint32) << 16).view(np.float32)
    if datatype == "BOOL" and not (array.view(np.uint8) <= 1).all():
        raise InvalidInput(f"input {name!r}: expected 0 or 1 in each byte of a BOOL tensor")
    return array if array.flags.aligned else array.copy()  # some libraries cannot read unaligned arrays


def decode_list(tensor: Tensor, *, keeps_bytes: bool) -> npt.NDArray[Any]:
    """Return a tensor's elements from JSON or protobuf, nested or flat, as an array.

    Args:
        tensor: the tensor, as the request describes it.
        keeps_bytes: whether text stays bytes.

    Raises:
        InvalidInput: the elements do not match the tensor.
    """
    name, datatype, shape, count, spec = tensor[:5]
    flat = _flattened(name, tensor.data, len(shape))
    if len(flat) != count:
        raise InvalidInput(f"input {name!r}: expected {count} elements for {list(shape)}, got {len(flat)}")
    kinds = set(map(type, flat))
    if datatype == "BYTES":
        if not kinds <= {str, bytes}:
            raise InvalidInput(f"input {name!r}: expected text in a BYTES tensor, got {_names_of(kinds)}")
        try:
            elements = [one.encode() if isinstance(one, str) else one for one in flat]
        except UnicodeEncodeError as error:
            raise InvalidInput(f"input {name!r}: expected text that UTF-8 has: {error}") from None
        return _as_text(name, elements, shape, keeps_bytes=keeps_bytes)
    dtype = np.dtype(np.float32) if datatype == "BF16" else dtype_of(datatype)
    assert dtype is not None  # noqa: S101 - `check_shape` knows every type
    if not kinds <= _JSON_KINDS[dtype.kind]:
        raise InvalidInput(f"input {name!r}: expected elements of {datatype}, got {_names_of(kinds)}")
    if dtype.kind in "iu" and flat:
        bounds: np.iinfo[Any] = np.iinfo(dtype)
        if min(flat) < bounds.min or max(flat) > bounds.max:
            raise InvalidInput(f"input {name!r}: expected elements that {datatype} has, got others")
    try:
        with np.errstate(over="raise"):
            array = np.array(flat, dtype).reshape(shape)
            return array.astype(spec.dtype) if datatype == "BF16" and _has_bfloat16(spec) else array
    except (OverflowError, FloatingPointError):
        raise InvalidInput(f"input {name!r}: expected elements that {datatype} has, got larger ones") from None


def encode(name: str, array: npt.NDArray[Any], datatype: str | None) -> tuple[str, bytes | memoryview]:
    """Return the datatype of an output and its bytes; a view if the array is contiguous.

    Args:
        name: the name of the output.
        array: its value.
        datatype: the announced datatype; ``None``: none was announced.

    Raises:
        BackendError: the protocol has no type for the output.
    """
    actual = datatype_of(array.dtype)
    if actual == "BYTES":
        try:
            return actual, encode_text(array)
        except InvalidInput as error:
            raise BackendError(f"output {name!r}: {error}") from error
    if actual is None:
        raise BackendError(f"output {name!r}: the protocol has no type for {array.dtype}")
    if datatype == "BF16" and actual == "FP32":  # the lower half of each float is zero
        array, actual = (np.ascontiguousarray(array).view(np.uint32) >> 16).astype(np.uint16), "BF16"
    array = np.ascontiguousarray(array)
    return actual, array.reshape(-1).view(np.uint8).data


def encode_list(name: str, array: npt.NDArray[Any]) -> tuple[str, list[Any]]:
    """Return the datatype of an output and its elements for JSON.

    Raises:
        BackendError: the protocol has no type for the output.
        InvalidInput: JSON cannot hold the elements; binary data can.
    """
    datatype = datatype_of(array.dtype)
    if datatype is None:
        raise BackendError(f"output {name!r}: the protocol has no type for {array.dtype}")
    if datatype == "BF16":
        array, datatype = array.astype(np.float32), "FP32"
    elements: list[Any] = array.ravel().tolist()
    if datatype == "BYTES":
        try:
            elements = [one.decode() if isinstance(one, bytes) else one for one in elements]
        except UnicodeDecodeError:
            raise InvalidInput(
                f"output {name!r}: JSON cannot hold bytes that are no text; {_USE_BINARY_DATA}"
            ) from None
        if not all(isinstance(one, str) for one in elements):
            raise BackendError(f"output {name!r}: the protocol has no type for its elements")
    elif array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInput(f"output {name!r}: JSON cannot hold NaN and infinity; {_USE_BINARY_DATA}")
    return datatype, elements


_USE_BINARY_DATA = "ask for it with binary_data"


def _as_text(name: str, elements: list[bytes], shape: Sequence[int], *, keeps_bytes: bool) -> npt.NDArray[Any]:
    try:
        return texts(elements if keeps_bytes else [one.decode() for one in elements], shape)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {name!r}: expected text in UTF-8: {error}") from None


def _has_bfloat16(spec: ModelTensor | None) -> TypeGuard[ModelTensor]:
    """Return whether the model takes arrays of ml_dtypes' bfloat16."""
    return spec is not None and spec.dtype is not None and spec.dtype.name == "bfloat16"


def _flattened(name: str, nested: Any, rank: int) -> list[Any]:
    if not isinstance(nested, list):
        raise InvalidInput(f"input {name!r}: expected its elements in a list, got {brief(nested)}")
    data: list[Any] = nested
    for _ in range(rank):
        kinds = set(map(type, data))
        if list not in kinds:
            return data
        if len(kinds) > 1 or len(set(map(len, data))) > 1:
            raise InvalidInput(f"input {name!r}: expected lists of equal lengths, got others")
        data = list(itertools.chain.from_iterable(data))
    return data


def _names_of(kinds: set[type]) -> str:
    return ", ".join(sorted(kind.__name__ for kind in kinds))

"""Decoding of a response into one result per row; a response that does not match the model fails the batch.

A server behind a proxy, a replaced model or a faulty model can respond with another name, type, rank or number of rows,
or with fewer bytes than it announces. Rows are read-only views of the message. Only content whose bytes lie unaligned
is copied, because some libraries cannot read it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streaminfer._internal._named_rows_cy import named_rows
from streaminfer.backends.signature import TEXT, TensorSpec, describe_shape, is_shape_of
from streaminfer.backends.triton.dtypes import split_text, texts
from streaminfer.backends.triton.messages import InferResponse, Tensor
from streaminfer.backends.triton.model import ModelDescription
from streaminfer.errors import BackendError

__all__ = ["decode_rows"]


def decode_rows(model: ModelDescription, response: InferResponse, rows: int, *, batched: bool) -> list[Any]:
    """Return one result per row: an array, or a mapping of output name to array.

    Args:
        model: the model's description.
        response: the server's response; the content of shared memory is already an array.
        rows: number of rows of the request.
        batched: whether outputs have the batch axis; otherwise the response is one row.

    Raises:
        BackendError: the response does not match the description; names the output, the expectation and what came.
    """
    columns = []
    for spec in model.outputs:
        tensor = response.outputs.get(spec.name)
        if tensor is None:
            received = ", ".join(map(repr, response.outputs)) or "none"
            raise BackendError(f"model {model.name!r}: response has no output {spec.name!r}, got {received}")
        array = _array(model, spec, tensor)
        _check_shape(model, spec, array, rows if batched else None)
        columns.append(list(array) if batched else [array])
    if len(columns) == 1:
        return columns[0]
    return named_rows([spec.name for spec in model.outputs], columns, rows if batched else 1)


def _array(model: ModelDescription, spec: TensorSpec, tensor: Tensor) -> npt.NDArray[Any]:
    content, shape = tensor.content, tensor.shape
    expected = model.datatypes[spec.name]
    if tensor.datatype != expected:
        raise _unexpected_output(model, spec, f"type {expected}", tensor.datatype)
    if isinstance(content, np.ndarray):
        return content
    if any(size < 0 for size in shape):
        raise _unexpected_output(model, spec, "sizes ≥ 0", list(shape))
    count, dtype = math.prod(shape), spec.dtype
    assert dtype is not None  # noqa: S101 - read_model knows every type
    try:
        if isinstance(content, list):
            return _array_of_list(dtype, content, shape)
        if dtype == TEXT:
            return texts(split_text(content, count), shape)
        size = count * dtype.itemsize
        if len(content) != size:
            raise _unexpected_output(model, spec, f"{size} bytes for {list(shape)}", len(content))
        array = np.frombuffer(content, dtype).reshape(shape)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise _unexpected_output(model, spec, f"a content of {list(shape)}", error) from error
    if not array.flags.aligned:
        array = array.copy()
        array.flags.writeable = False  # like arrays that are views
    return array


def _array_of_list(dtype: np.dtype[Any], content: list[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    if dtype != TEXT:
        with np.errstate(over="raise"):
            array = np.array(content, dtype)
        if array.dtype.kind in "biu" and array.tolist() != content:  # NumPy would truncate 1.5 to 1
            raise ValueError(f"an element that {array.dtype} does not have")
        return array.reshape(shape)
    return texts([one.encode() if isinstance(one, str) else one for one in content], shape)


def _check_shape(model: ModelDescription, spec: TensorSpec, array: npt.NDArray[Any], rows: int | None) -> None:
    expected_shape: tuple[Any, ...] = spec.row_shape if rows is None else (rows, *spec.shape[1:])
    if not is_shape_of(expected_shape, array.shape):
        raise _unexpected_output(
            model, spec, describe_shape(spec.dtype, expected_shape), describe_shape(array.dtype, array.shape)
        )


def _unexpected_output(model: ModelDescription, spec: TensorSpec, expectation: str, received: object) -> BackendError:
    return BackendError(f"model {model.name!r}: output {spec.name!r}: expected {expectation}, got {received}")

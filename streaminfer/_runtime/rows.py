"""Splitting arrays into one request per row, and joining their outputs again."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streaminfer._internal.masked import reject_mask
from streaminfer._internal.validation import expected
from streaminfer.errors import BackendError, InvalidInput

__all__ = ["cut_rows", "join_rows"]

_NUMBERS = (bool, int, float, complex)


def cut_rows(inputs: Any) -> list[Any]:
    """Return the inputs of each row.

    Args:
        inputs: an array whose first axis holds the rows, or a mapping of such arrays.

    Raises:
        InvalidInput: the inputs are something else, have no rows, or are arrays with different numbers of rows.
    """
    counts: dict[str, int] = {}
    arrays = _as_arrays(inputs, "inputs", counts)
    if len(set(counts.values())) != 1:
        raise InvalidInput(expected("inputs", "as many rows in each array", counts))
    count = counts.popitem()[1]
    if not count:
        raise InvalidInput(expected("inputs", "at least one row", inputs))
    return [_row_of(arrays, number) for number in range(count)]


def join_rows(responses: Sequence[Any]) -> Any:
    """Join the outputs of the rows; the type of the first one decides how.

    Args:
        responses: the outputs for each row, at least one.

    Raises:
        BackendError: the outputs differ in type, shape or dtype.
    """
    first = responses[0]
    if isinstance(first, Mapping):
        if not all(isinstance(one, Mapping) and one.keys() == first.keys() for one in responses):
            raise _mismatch("other outputs than the first")
        return {name: join_rows([one[name] for one in responses]) for name in first}
    if isinstance(first, tuple):
        if not all(isinstance(one, tuple) and len(one) == len(first) for one in responses):
            raise _mismatch("other outputs than the first")
        return tuple(join_rows(column) for column in zip(*responses, strict=True))
    if isinstance(first, (np.ndarray, np.generic, *_NUMBERS)):
        arrays = [np.asarray(one) for one in responses]
        # dtypes of text include a width; the widest one can hold all
        kinds = {(array.shape, array.dtype.kind if array.dtype.kind in "SU" else array.dtype) for array in arrays}
        if len(kinds) > 1:
            raise _mismatch(" and ".join(sorted(f"{dtype}{list(shape)}" for shape, dtype in kinds)))
        return np.stack(arrays)
    return list(responses)


def _as_arrays(inputs: Any, name: str, counts: dict[str, int]) -> Any:
    if isinstance(inputs, Mapping) and inputs:
        return {key: _as_arrays(value, f"{name}[{key!r}]", counts) for key, value in inputs.items()}
    reject_mask(inputs, name)
    expectation = "an array whose first axis holds the rows, or a mapping of such arrays"
    try:
        array = np.asarray(inputs) if hasattr(inputs, "__array__") else None
    except Exception as error:  # the conversion of a user's object can raise any error
        raise InvalidInput(expected(name, expectation, inputs)) from error
    if array is None or not array.ndim:
        raise InvalidInput(expected(name, expectation, inputs))
    counts[name] = len(array)
    return array


def _row_of(arrays: Any, number: int) -> Any:
    if isinstance(arrays, dict):
        return {name: _row_of(array, number) for name, array in arrays.items()}
    return arrays[number]


def _mismatch(difference: str) -> BackendError:
    return BackendError(
        f"the responses to the rows cannot form one: {difference}; map() returns a list with one for each"
    )

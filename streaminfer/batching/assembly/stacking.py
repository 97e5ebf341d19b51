"""From what requests brought to arrays: checked one by one, and put together along a new axis."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.text import as_text, begins_with_text, stack_text
from streaminfer.errors import InvalidInput

__all__ = ["SCALARS", "only_axis", "prepare", "stack_column", "stack_rows"]

_JOINED = frozenset("biufc")  # kinds of dtypes whose bytes are the values
_SMALL_AXIS = 8

SCALARS = frozenset((float, bool, complex))
"""Types that numpy stacks as they are, whatever the value."""


def prepare(inputs: Any) -> Any:
    """What one request brought, in a form that can be stacked.

    Args:
        inputs: a number, a string, an array of any shape and dtype but object, an array of strings, what
            ``numpy.asarray`` makes such an array of, or a mapping of names to these.

    Returns:
        The same object where it can be stacked as it is, else an array; arrays of text are arrays of Python strings.

    Raises:
        InvalidInput: it cannot be stacked.
    """
    kind = type(inputs)
    if kind is np.ndarray:
        return _prepare_array(inputs, inputs)
    if kind in SCALARS or kind is str or kind is bytes:
        return inputs
    if kind is int:
        if not -(2**63) <= inputs < 2**63:  # numpy would change the type of everybody's rows
            raise InvalidInput(f"inputs: expected a whole number of 64 bits, got {inputs}")
        return inputs
    if isinstance(inputs, Mapping):
        return {name: prepare(value) for name, value in inputs.items()}
    try:
        array = np.asarray(inputs, object if begins_with_text(inputs) else None)
    except Exception as error:  # a ragged list, or an object whose own conversion fails in its own way
        raise InvalidInput(f"{_unstackable(inputs)} ({error})") from error
    return _prepare_array(array, inputs)


def _prepare_array(array: NDArray[Any], inputs: Any) -> Any:
    if array.dtype.kind != "U" and not array.dtype.hasobject:
        return array
    prepared = as_text(array)
    if prepared is None:
        raise InvalidInput(_unstackable(inputs))
    return prepared


def stack_rows(rows: list[Any], batch_axes: Mapping[str, int]) -> Any:
    """Stack rows along a new axis.

    Args:
        rows: at least one; what :func:`prepare` returned, all stackable.
        batch_axes: for mappings, the position of the new axis for each name, 0 where it names none.

    Returns:
        A new C-contiguous array in this machine's byte order, or a mapping of such arrays.
    """
    first = rows[0]
    if type(first) is dict:
        return {name: stack_column([row[name] for row in rows], batch_axes.get(name, 0)) for name in first}
    if not batch_axes:
        return _array(rows)
    return stack_column(rows, only_axis(batch_axes))


def stack_column(rows: list[Any], axis: int) -> Any:
    """Put rows of one input, or mappings of such, together along an axis."""
    first = rows[0]
    if type(first) is dict:
        return {name: stack_column([row[name] for row in rows], axis) for name in first}
    if axis == 0:
        return _array(rows)
    if (
        axis == 1
        and type(first) is np.ndarray
        and first.ndim > 1
        and 0 < first.shape[0] <= _SMALL_AXIS
        and len(rows) > 1
    ):
        parts = [row[at] for at in range(first.shape[0]) for row in rows]
        return _array(parts).reshape((first.shape[0], len(rows), *first.shape[1:]))
    return np.ascontiguousarray(np.moveaxis(_array(rows), 0, axis))  # twice as fast as np.stack on small rows


def _array(rows: list[Any]) -> NDArray[Any]:
    first = rows[0]
    if type(first) is str or type(first) is bytes:
        return stack_text(rows)
    if (
        type(first) is np.ndarray
        and len(rows) > 1
        and first.size
        and first.dtype.kind in _JOINED
        and first.dtype.isnative
    ):
        # One copy under the interpreter lock: NumPy releases the lock for every row, and each time the event loop may
        # keep it for as long as it has callbacks to run.
        try:
            data = bytearray().join(rows)
        except (BufferError, TypeError, ValueError):
            pass  # a row is not contiguous; what this raises depends on the version of NumPy
        else:
            return np.frombuffer(data, first.dtype).reshape((len(rows), *first.shape))
    array = np.array(rows)  # of rows of one shape and dtype it copies each once; np.stack takes longer
    # numpy keeps a foreign byte order in a batch of one and in no other
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _unstackable(inputs: object) -> str:
    return (
        f"inputs: expected a number, an array, or a mapping of arrays, got {type(inputs).__name__}"
        " that numpy cannot stack; a batcher with stack=False passes a list instead"
    )


def only_axis(batch_axes: Mapping[str, int]) -> int:
    """Return the batch axis of the one input that there is; 0 where several are named, or none."""
    return next(iter(batch_axes.values())) if len(batch_axes) == 1 else 0

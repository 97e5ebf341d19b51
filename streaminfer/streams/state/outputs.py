"""Splits the results of a backend into the outputs of the rows and the states for the next step."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal._named_rows_cy import named_rows
from streaminfer.errors import BackendError
from streaminfer.streams.state.layout import StateTensor

__all__ = ["Outputs", "read_outputs"]

Array = NDArray[Any]


class Outputs(NamedTuple):
    """Outputs and states of a batch.

    Attributes:
        rows: the result of each row, without states.
        states: states by name, in the layout of the model.
        failed: rows whose result is an exception.
    """

    rows: Sequence[Any]
    states: dict[str, Array]
    failed: Sequence[int]


def read_outputs(results: Any, tensors: Sequence[StateTensor], rows: int, size: int, source: str) -> Outputs:
    """Split the results of a batch into outputs and states.

    Args:
        results: a mapping of output name to column: states in the layout of their inputs, all others with the batch
            axis first; or a mapping, or an exception, for each row.
        tensors: the states that the model writes.
        rows: rows of the batch.
        size: rows that the model got, including padding.
        source: name of the model, for messages.

    Raises:
        BackendError: the results do not have this form.
    """
    if isinstance(results, Mapping):
        return _read_columns(results, tensors, rows, size, source)
    if isinstance(results, Sequence) and not isinstance(results, (str, bytes)) and len(results) in (rows, size):
        return _read_rows(results[:rows], tensors, source)
    raise BackendError(
        f"{source}: expected a mapping of outputs, or a list with a mapping for each of {rows} rows, from a backend "
        f"with state, got {type(results).__name__}"
    )


def _read_columns(
    results: Mapping[str, Any], tensors: Sequence[StateTensor], rows: int, size: int, source: str
) -> Outputs:
    states: dict[str, Array] = {}
    for tensor in tensors:
        value: Any = results.get(tensor.output)
        if not _is_array(value) or not tensor.fits(value, (rows, size)):
            raise _misfit(tensor, tensor.batch_shape(size), value, source)
        states[tensor.name] = _read_only(value)
    state_outputs = {tensor.output for tensor in tensors}
    columns = {name: value for name, value in results.items() if name not in state_outputs}
    for name, column in columns.items():
        is_column = isinstance(column, list) or (isinstance(column, np.ndarray) and column.ndim > 0)
        length = len(column) if is_column else -1
        if length not in (rows, size):
            raise BackendError(
                f"{source}: output {name!r}: expected {rows} rows on the first axis, got "
                f"{length if length >= 0 else type(column).__name__}"
            )
    if len(columns) == 1:
        only = next(iter(columns.values()))
        return Outputs(list(only[:rows]), states, ())
    return Outputs(named_rows(list(columns), [column[:rows] for column in columns.values()], rows), states, ())


def _read_rows(results: Sequence[Any], tensors: Sequence[StateTensor], source: str) -> Outputs:
    failed = [row for row, result in enumerate(results) if isinstance(result, BaseException)]
    succeeded = next((result for result in results if not isinstance(result, BaseException)), None)
    states: dict[str, Array] = {}
    state_outputs = {tensor.output for tensor in tensors}
    for result in results:
        if not isinstance(result, (Mapping, BaseException)):
            raise BackendError(
                f"{source}: expected a mapping of outputs for each row from a backend with state, got "
                f"{type(result).__name__}"
            )
    for tensor in tensors:
        values = []
        for result in results:
            substitute = succeeded if isinstance(result, BaseException) else result
            value = np.zeros(tensor.shape, tensor.dtype) if substitute is None else substitute.get(tensor.output)
            if isinstance(value, np.generic):
                value = np.asarray(value)  # a scalar state of one row is not an array
            if not isinstance(value, np.ndarray) or not tensor.fits(np.expand_dims(value, tensor.axis), (1,)):
                raise _misfit(tensor, tensor.shape, value, source)
            values.append(value)
        states[tensor.name] = _read_only(np.stack(values, axis=tensor.axis))
    without_states = [
        result
        if isinstance(result, BaseException)
        else {name: value for name, value in result.items() if name not in state_outputs}
        for result in results
    ]
    rows = [next(iter(row.values())) if isinstance(row, dict) and len(row) == 1 else row for row in without_states]
    return Outputs(rows, states, failed)


def _read_only(value: Array) -> Array:
    """Return a read-only view: the next step may read it as its input, and may fail."""
    if not isinstance(value, np.ndarray):
        return value  # on a device
    view = np.ascontiguousarray(value).view()
    view.flags.writeable = False
    return view


def _is_array(value: Any) -> bool:
    """Return whether a value is a NumPy array, or a device array that NumPy can copy and the backend accepts."""
    return isinstance(value, np.ndarray) or (hasattr(value, "__array__") and hasattr(value, "shape"))


def _misfit(tensor: StateTensor, shape: tuple[int, ...], value: Any, source: str) -> BackendError:
    received = f"{value.dtype}{list(value.shape)}" if _is_array(value) else type(value).__name__
    return BackendError(
        f"{source}: output {tensor.output!r}: expected {tensor.dtype}{list(shape)}, as input {tensor.name!r} reads it, "
        f"got {received}"
    )

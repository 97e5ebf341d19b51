"""One result per row from the results of a batch function or a backend.

An array, or a mapping or tuple of arrays with the batch axis, is cut into rows; a list with one result per row is used
unchanged. Only the type decides, never a coincidence of lengths: results that could be read in two ways are a
`BackendError` that names both.

Rows of an array are views. A caller who stores a small row keeps the batch's whole output in memory; to store outputs
for long, copy them.
"""

from collections.abc import Mapping
from inspect import isawaitable
from typing import Any

import numpy as np

from streaminfer.errors import BackendError, text_of_error

__all__ = ["PLAIN", "split_rows"]

PLAIN = (list, np.ndarray, tuple, dict)
"""Types of results that are certainly not awaitable."""


class _Unreadable(Exception):  # noqa: N818 - never leaves this module
    """Results that cannot be cut into rows; the text says why."""


def split_rows(results: Any, count: int, source: str, padded: int = 0) -> list[Any] | BackendError:
    """Return one result per row.

    Args:
        results: results of a backend or function. An array with a leading batch axis, or a mapping or tuple of such
            arrays (or of lists with an entry per row, mappings and tuples of these), is cut into rows: each row is an
            array, a dict or a tuple. A list, or another sequence, has one result per row; a result may be an
            exception.
        count: how many rows the batch had.
        source: name of the model, for the message.
        padded: how many rows the model got, if the batch was padded to a preferred size. The results of copies are
            removed, unless a backend that looked at ``batch.rows`` has already removed them.

    Returns:
        As many results as rows, or a `BackendError` that says what is wrong.
    """
    try:
        if isinstance(results, (tuple, Mapping)):
            return _split(results, count, padded, "")
        return _read_sequence(results, count, padded)
    except _Unreadable as reason:
        return BackendError(f"{source}: {reason}")
    except Exception as error:  # noqa: BLE001 - an array without axes, or results that fail in their own way
        text = f"{_expectation(count)}, but the rows of what came cannot be read: {text_of_error(error)}"
        failure = BackendError(f"{source}: {text}")
        failure.__cause__ = error
        return failure


def _expectation(count: int) -> str:
    return f"expected an array, a mapping or tuple of arrays, or a list with one result per row ({count} rows)"


def _read_sequence(results: Any, count: int, padded: int) -> list[Any]:
    kind = type(results)
    if kind is not list and (isinstance(results, (str, bytes)) or not _is_sequence(results) or _is_frame(results)):
        actual = "None" if results is None else kind.__name__
        raise _Unreadable(f"{_expectation(count)}, got {actual}{': await it' if isawaitable(results) else ''}")
    # iterating over an array of one row costs more than indexing that row
    rows = results if kind is list else [results[0]] if count == len(results) == 1 else list(results)
    if padded and len(rows) == padded:
        return rows[:count]
    if len(rows) == count:
        return rows
    shape = f", an array of shape {results.shape}" if kind is np.ndarray else ""
    message = f"expected {count} results, one per row of the batch, got {len(rows)}{shape}"
    if kind is not np.ndarray and rows and all(_length(entry) in (count, padded or count) for entry in rows):
        message = (
            f"a list has one result per row: expected {count}, got {len(rows)} entries of {count} rows each; "
            "for several outputs that are cut row by row return a tuple or a mapping"
        )
    raise _Unreadable(message)


def _split(results: Mapping[Any, Any] | tuple[Any, ...], count: int, padded: int, where: str) -> list[Any]:
    is_mapping = not isinstance(results, tuple)
    kind, names = ("mapping", list(results)) if is_mapping else ("tuple", range(len(results)))
    columns = [_column(results[name], count, padded, f"{where}[{name!r}]", kind) for name in names]
    if not columns:
        raise _Unreadable(f"expected a {kind} of arrays with the batch axis ({count} rows), got an empty one")
    rows = zip(*columns, strict=True)
    if is_mapping:
        return [_first_error(row) or dict(zip(names, row, strict=True)) for row in rows]
    make = getattr(type(results), "_make", tuple)  # keeps the class of a named tuple
    return [_first_error(row) or make(row) for row in rows]


def _column(value: Any, count: int, padded: int, where: str, kind: str) -> Any:
    """Return the ``count`` rows of one output among several."""
    if isinstance(value, (tuple, Mapping)):
        return _split(value, count, padded, where)
    length = _length(value)
    if length == count:
        return value
    if padded and length == padded:
        return value[:count]
    actual = f"shape {tuple(value.shape)}" if _is_array(value) else type(value).__name__
    if length is not None and not _is_array(value):
        actual = f"a list of {length}"
    raise _Unreadable(
        f"a {kind} is cut row by row, so output {where} must be an array with the batch axis ({count} rows), "
        f"got {actual}; for one result per row return a list of {count}"
    )


def _first_error(row: tuple[Any, ...]) -> BaseException | None:
    """Return the exception among the outputs of one row, if any; it becomes the row's result."""
    for value in row:
        if isinstance(value, BaseException):
            return value
    return None


def _length(value: Any) -> int | None:
    """Return the number of rows of an array or list; ``None`` for anything else, including a scalar array."""
    if type(value) is list:
        return len(value)
    return int(value.shape[0]) if _is_array(value) and len(value.shape) else None


def _is_array(value: Any) -> bool:
    """Return whether a value is an array of NumPy or of another library."""
    if isinstance(value, np.ndarray):
        return True
    return hasattr(value, "shape") and _is_sequence(value) and not _is_frame(value)


def _is_sequence(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")  # a set has no order


def _is_frame(value: Any) -> bool:
    """Return whether a value is a table of columns, which has as many rows as its length but iterates over columns."""
    return hasattr(value, "columns")

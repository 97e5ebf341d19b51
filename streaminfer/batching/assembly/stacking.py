"""Stacking of requests' inputs along a new axis."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["stack_column"]

_JOINED = frozenset("biufc")  # kinds of dtypes whose bytes are the values
_SMALL_AXIS = 8


def stack_column(rows: list[Any], axis: int) -> Any:
    """Stack rows of one input, or mappings of rows, along a new axis.

    Args:
        rows: at least one; from ``prepare``, all stackable.
        axis: the position of the new axis.

    Returns:
        A new C-contiguous array in this machine's byte order, or a mapping of such arrays.
    """
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
        return np.fromiter(rows, object, len(rows))  # a text type of NumPy would be as wide as the longest row
    if (
        type(first) is np.ndarray
        and len(rows) > 1
        and first.size
        and first.dtype.kind in _JOINED
        and first.dtype.isnative
    ):
        # One copy under the interpreter lock: NumPy releases the lock for every row, and the event loop may then hold
        # it for as long as it has callbacks to run.
        try:
            data = bytearray().join(rows)
        except (BufferError, TypeError, ValueError):
            pass  # a row is not contiguous; the class of this error depends on the version of NumPy
        else:
            return np.frombuffer(data, first.dtype).reshape((len(rows), *first.shape))
    array = np.array(rows)  # copies each row of one shape and dtype once; np.stack takes longer
    # NumPy keeps a foreign byte order only in a batch of one
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))

"""Padding of many short rows, and masks.

Importing this module imports Numba: serving calls what was compiled of it ahead of time. The twins in NumPy are
``padding.pad_rows_numpy`` and ``padding.fill_mask_numpy``, which are used where no kernels are loaded, and always where
they are the faster ones; the figures stand there.

A list of arrays is not given to Numba: reflected and typed lists cost more to make than the rows to copy, and the
address of an array takes 0.6 µs to ask for. ``numpy.concatenate`` makes one array of short rows in 0.13 µs a row.

Complexity: O(rows × length) writes, each element once.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.numba_jit import jit

__all__ = ["EXPORTS", "fill_mask", "pad_rows"]


@jit
def pad_rows(flat: NDArray[Any], lengths: NDArray[np.int64], pad_value: Any, padded: NDArray[Any]) -> None:
    """Writes rows that lie one behind the other into the rows of a matrix, and the pad value behind each.

    Args:
        flat: shape (sum of lengths,), C-contiguous.
        lengths: shape (rows,).
        pad_value: a number of the same dtype.
        padded: shape (rows, length), C-contiguous, written as a whole.
    """
    start = 0
    for row in range(padded.shape[0]):
        length = lengths[row]
        for position in range(length):
            padded[row, position] = flat[start + position]
        for position in range(length, padded.shape[1]):
            padded[row, position] = pad_value
        start += length


@jit
def fill_mask(lengths: NDArray[np.int64], mask: NDArray[np.int64]) -> None:
    """Writes ones where a row is real and zeros behind.

    Args:
        lengths: shape (rows,).
        mask: shape (rows, length), int64, C-contiguous, written as a whole.
    """
    for row in range(mask.shape[0]):
        length = lengths[row]
        for position in range(length):
            mask[row, position] = 1
        for position in range(length, mask.shape[1]):
            mask[row, position] = 0


_LENGTHS = "Array(int64, 1, 'C', readonly=True)"

EXPORTS = {
    "pad_rows_int64": (pad_rows, f"void(Array(int64, 1, 'C', readonly=True), {_LENGTHS}, int64, int64[:, ::1])"),
    "pad_rows_int32": (pad_rows, f"void(Array(int32, 1, 'C', readonly=True), {_LENGTHS}, int32, int32[:, ::1])"),
    "fill_mask": (fill_mask, f"void({_LENGTHS}, int64[:, ::1])"),
}
"""Kernels that serving calls, as in :data:`streaminfer.batching.planner.kernels.EXPORTS`."""

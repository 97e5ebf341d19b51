"""Padding of many short rows, and masks, in Numba; compiled once, in the background, used from then on.

Importing this module imports Numba. The twins in NumPy are ``padding.pad_rows_numpy`` and ``padding.fill_mask_numpy``,
which answer until the kernels are compiled, and always where they are the faster ones; the figures stand there.

A list of arrays is not given to Numba: reflected and typed lists cost more to make than the rows to copy, and the
address of an array takes 0.6 µs to ask for. ``numpy.concatenate`` makes one array of short rows in 0.13 µs a row.

Complexity: O(rows × length) writes, each element once.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer._kernel import kernel

__all__ = ["DTYPES", "fill_mask", "pad_rows", "warm_up"]

DTYPES = frozenset(np.dtype(kind) for kind in (np.int64, np.int32))
"""What :func:`warm_up` compiles for; another dtype would be compiled while a batch waits."""


@kernel
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


@kernel
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


def warm_up() -> None:
    """Compiles both kernels for the dtypes in :data:`DTYPES`; thread-safe, off the event loop."""
    lengths = np.array([1, 2], np.int64)
    for dtype in DTYPES:
        pad_rows(np.zeros(3, dtype), lengths, dtype.type(0), np.empty((2, 2), dtype))
    fill_mask(lengths, np.empty((2, 2), np.int64))

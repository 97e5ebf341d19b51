"""Padding of ragged rows into one array, and the mask for it.

A row takes two slice assignments, about 0.25 µs each for any content: the row itself, and the pad value after it.

Compiled kernels gain at most 0.1 µs per request (``benchmarks/run.py assembly``, 32 × 64 int64: 11 instead of 14 µs
per batch) and lose by a factor of two on long rows, so there are none.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["make_mask", "pad_rows"]


def pad_rows(rows: list[NDArray[Any]], lengths: list[int], axis: int, pad_value: Any, padded: NDArray[Any]) -> None:
    """Write rows of differing length into one array.

    Args:
        rows: at least one, of one dtype, and of one shape except along ``axis``.
        lengths: lengths of the rows along ``axis``.
        axis: axis of the rows, ≥ 0.
        pad_value: a number that fits the dtype.
        padded: batch axis first, its ``axis + 1`` at least as long as the longest row; all of it is written; may be a
            view with any strides.
    """
    before = (slice(None),) * axis
    for padded_row, row, length in zip(padded, rows, lengths, strict=True):
        padded_row[(*before, slice(length))] = row
        padded_row[(*before, slice(length, None))] = pad_value


def make_mask(lengths: list[int], length: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a new mask: ones where a row is real, zeros after it.

    Args:
        lengths: lengths of the rows, each at most the bucket's length.
        length: length of the bucket.
        dtype: dtype of the mask.

    Returns:
        Shape (rows, length).
    """
    return (np.arange(length) < np.array(lengths)[:, np.newaxis]).astype(dtype)

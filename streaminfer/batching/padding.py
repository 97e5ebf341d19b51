"""Ragged rows to one array, and the mask beside it: in NumPy, or by compiled kernels where those are faster.

Idea. A row is one slice assignment, about 0.25 µs whatever it holds. Short rows are written over an array full of the
pad value; behind long ones only the rest is filled, so that nothing is written twice. A mask needs no work per row:
among the windows of a vector of L ones and L zeros, the one that starts at ``L - n`` is the mask of a row of n, so a
batch's masks are one fancy index into a strided view that takes no memory.

Measured, µs a batch, one core (``benchmarks/bench_assembly.py`` measures both together)::

    rows × length         rows: NumPy  kernel    mask: compare  windows  kernel
    32 × 64 int64                 9.7     8.1              3.6      2.3     1.0
    32 × 512 int64               13.7    14.1             11.9      3.5     3.0
    128 × 128 int64              38.6    28.4             13.6      4.5     3.2
    64 × 512 float32             21.3    21.7             21.9      5.5     6.9
    16 × 16000 float32           45.2    83.4             90.2     47.5    46.4

The kernel reads one array, so the rows are concatenated first: many short rows then cost less and long ones twice as
much. So it pads one-dimensional rows up to :data:`SHORT` elements, and fills masks up to :data:`SHORT_MASK`; all else
is NumPy.
"""

import threading
from types import ModuleType
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

__all__ = [
    "SHORT",
    "SHORT_MASK",
    "compile_kernels",
    "fill_mask",
    "fill_mask_numpy",
    "mask_windows",
    "pad_rows",
    "pad_rows_numpy",
]

SHORT = 256
"""Elements of a padded row up to which the kernel is the faster one."""
SHORT_MASK = 16_384
"""Elements of a mask up to which the kernel is the faster one."""
_REFILL_BYTES = 1 << 14

_compiling = threading.Lock()
_ready: ModuleType | None = None


def compile_kernels() -> ModuleType:
    """Imports and compiles the kernels, a second or two once a process; call it off the event loop.

    Thread-safe; returns at once when they are compiled. Until then, NumPy does their work.
    """
    global _ready  # noqa: PLW0603 - once a process
    with _compiling:
        if _ready is None:
            from streaminfer.batching import padding_kernels  # noqa: PLC0415 - numba loads here and not before

            padding_kernels.warm_up()
            _ready = padding_kernels
        return _ready


def pad_rows(rows: list[NDArray[Any]], lengths: list[int], axis: int, pad_value: Any, padded: NDArray[Any]) -> None:
    """Writes rows of differing length into one array.

    Args:
        rows: at least one, of one dtype, and of one shape but for ``axis``.
        lengths: of the rows along ``axis``.
        axis: of the rows, ≥ 0.
        pad_value: a number that the dtype holds.
        padded: batch axis first, its ``axis + 1`` at least as long as the longest row; written as a whole, may be a
            view with any strides.
    """
    kernels = _ready
    if (
        kernels is not None
        and padded.ndim == 2
        and padded.shape[1] <= SHORT
        and padded.dtype in kernels.DTYPES
        and padded.flags.c_contiguous
    ):
        flat = np.concatenate(rows)  # also puts the bytes in this machine's order
        kernels.pad_rows(flat, np.array(lengths, np.int64), padded.dtype.type(pad_value), padded)
    else:
        pad_rows_numpy(rows, lengths, axis, pad_value, padded)


def pad_rows_numpy(
    rows: list[NDArray[Any]], lengths: list[int], axis: int, pad_value: Any, padded: NDArray[Any]
) -> None:
    """:func:`pad_rows` in NumPy."""
    refill = padded[0].nbytes >= _REFILL_BYTES
    if not refill:
        padded[...] = pad_value
    for whole, row, length in zip(padded, rows, lengths, strict=True):
        if axis:
            before: Any = (slice(None),) * axis
            whole[(*before, slice(length))] = row
            if refill:
                whole[(*before, slice(length, None))] = pad_value
        else:
            whole[:length] = row
            if refill:
                whole[length:] = pad_value


def mask_windows(length: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The masks of rows of every length up to a bucket's, one a row, from the full one down to the empty one.

    Returns:
        Shape (length + 1, length), a read-only view of 2 · length elements.
    """
    ones_and_zeros = np.zeros(2 * length, dtype)
    ones_and_zeros[:length] = 1
    step = ones_and_zeros.itemsize
    return as_strided(ones_and_zeros, (length + 1, length), (step, step), writeable=False)


def fill_mask(lengths: list[int], windows: NDArray[Any]) -> NDArray[Any]:
    """A new mask: ones where a row is real, zeros behind.

    Args:
        lengths: of the rows, each at most the bucket's length.
        windows: of the bucket, from :func:`mask_windows`.

    Returns:
        Shape (rows, length).
    """
    rows, length = len(lengths), windows.shape[1]
    if _ready is not None and windows.dtype == np.int64 and rows * length <= SHORT_MASK:
        mask = np.empty((rows, length), np.int64)
        _ready.fill_mask(np.array(lengths, np.int64), mask)
        return mask
    return fill_mask_numpy(lengths, windows)


def fill_mask_numpy(lengths: list[int], windows: NDArray[Any]) -> NDArray[Any]:
    """:func:`fill_mask` in NumPy."""
    mask: NDArray[Any] = windows[windows.shape[1] - np.array(lengths)]
    return mask

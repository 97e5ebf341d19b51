"""Ragged rows to one array, and the mask beside it: in NumPy, or by compiled kernels where those are faster.

Idea. A row is one slice assignment, about 0.25 µs whatever it holds. Short rows are written over an array full of the
pad value; behind long ones only the rest is filled, so that nothing is written twice. A mask needs no work per row:
among the windows of a vector of L ones and L zeros, the one that starts at ``L - n`` is the mask of a row of n, so a
batch's masks are one fancy index into a strided view that takes no memory.

Measured, µs a batch, one core (``benchmarks/run.py assembly`` measures both together)::

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
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from streaminfer import _compiled_kernels

__all__ = [
    "SHORT",
    "SHORT_MASK",
    "PaddingKernels",
    "fill_mask",
    "fill_mask_numpy",
    "load_compiled",
    "load_kernels",
    "mask_windows",
    "pad_rows",
    "pad_rows_numpy",
]

SHORT = 256
"""Elements of a padded row up to which the kernel is the faster one."""
SHORT_MASK = 16_384
"""Elements of a mask up to which the kernel is the faster one."""
_REFILL_BYTES = 1 << 14

_loading = threading.Lock()


class PaddingKernels(NamedTuple):
    """The kernels of ``padding_kernels``; arguments must be C-contiguous and have the dtypes stated there.

    Attributes:
        pad_rows: by dtype of the rows.
        fill_mask: of int64.
    """

    pad_rows: Mapping[np.dtype[Any], Callable[..., None]]
    fill_mask: Callable[..., None]


_loaded: PaddingKernels | None = None
_looked = False


def load_compiled() -> PaddingKernels | None:
    """Load the kernels compiled ahead of time; ``None`` where there are none and NumPy does their work."""
    compiled = _compiled_kernels.load()
    if compiled is None:
        return None
    return PaddingKernels(
        {
            np.dtype(np.int64): compiled.unchecked("pad_rows_int64"),
            np.dtype(np.int32): compiled.unchecked("pad_rows_int32"),
        },
        compiled.unchecked("fill_mask"),
    )


def load_kernels() -> None:
    """Load the kernels: those compiled ahead of time, or else Numba's, which compiles for a second or two.

    Numba keeps what it compiled on disk; a process that finds it there loads it. Call it off the event loop.
    Thread-safe; returns at once when they are loaded.
    """
    global _loaded, _looked  # noqa: PLW0603 - once per process
    with _loading:
        if _loaded is None:
            kernels = load_compiled()
            if kernels is None:
                from streaminfer._internal.numba_jit import compile_exports  # noqa: PLC0415 - imports Numba
                from streaminfer.batching.assembly import padding_kernels  # noqa: PLC0415

                compile_exports(padding_kernels.EXPORTS)
                pad = padding_kernels.pad_rows
                kernels = PaddingKernels({np.dtype(np.int64): pad, np.dtype(np.int32): pad}, padding_kernels.fill_mask)
            _loaded = kernels
            _looked = True


def _kernels() -> PaddingKernels | None:
    """The loaded kernels; the first call looks for those compiled ahead of time."""
    global _loaded, _looked  # noqa: PLW0603 - once per process
    if not _looked:
        with _loading:
            if not _looked:
                _loaded = load_compiled()
                _looked = True
    return _loaded


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
    kernels = _kernels()
    if kernels is not None and padded.ndim == 2 and padded.shape[1] <= SHORT and padded.flags.carray:
        pad = kernels.pad_rows.get(padded.dtype)
        if pad is not None:
            flat = np.concatenate(rows)  # also puts the bytes in this machine's order
            if flat.dtype == padded.dtype:
                pad(flat, np.array(lengths, np.int64), padded.dtype.type(pad_value), padded)
                return
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
    kernels = _kernels()
    if kernels is not None and windows.dtype == np.int64 and rows * length <= SHORT_MASK:
        mask = np.empty((rows, length), np.int64)
        kernels.fill_mask(np.array(lengths, np.int64), mask)
        return mask
    return fill_mask_numpy(lengths, windows)


def fill_mask_numpy(lengths: list[int], windows: NDArray[Any]) -> NDArray[Any]:
    """:func:`fill_mask` in NumPy."""
    mask: NDArray[Any] = windows[windows.shape[1] - np.array(lengths)]
    return mask

"""Which copy of rows is the fastest: that of small ones keeps the interpreter lock, that of long runs is NumPy's.

What releases the lock has to get it back, and on a core that a worker shares with its event loop it waits until the
loop has run all its callbacks: 40 µs or more for a copy of two. Long runs are NumPy's to copy: ``memcpy`` does not read
what it is going to write, which takes a sixth less time. Between them is the kernel; where none was compiled ahead of
time, NumPy copies, since serving does not import Numba.
"""

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer.streams.state._small_rows_cy import copy_small_rows
from streaminfer.streams.state.kernels import WORDS, Rows, Words, copy_rows_numpy

__all__ = ["copy_rows", "end_of", "join"]

Array = NDArray[Any]

_LONG_RUN = 1 << 20
"""Bytes of a run from which ``memcpy`` is faster than the kernel, as measured by ``benchmarks/run.py state``."""

_WORD = WORDS[0].itemsize
_SMALL = 1 << 15
"""Words of all rows up to which the copy keeps the interpreter lock: it takes no longer than getting that back."""


def copy_rows(
    source: Words,
    source_rows: Rows,
    source_row: int,
    source_outer: int,
    target: Words,
    target_rows: Rows,
    target_row: int,
    target_outer: int,
    outer: int,
    inner: int,
) -> None:
    """Copy some rows of one array into rows of another; all strides are in words.

    Args:
        source: flat words of one of the :data:`WORDS`, aligned; so are the numbers of rows.
        source_rows: numbers of the rows to read.
        source_row: from the first run of a row to that of the next row.
        source_outer: from one run of a row to its next run.
        target: flat words of the same type, which do not overlap with the source.
        target_rows: numbers of the rows to write, as many.
        target_row: as ``source_row``.
        target_outer: as ``source_outer``.
        outer: runs of a row.
        inner: words of a run.
    """
    if target.itemsize == _WORD and source_rows.size * outer * inner <= _SMALL:
        copy = copy_small_rows
    elif inner * target.itemsize >= _LONG_RUN:
        copy = copy_rows_numpy
    else:
        copy = _kernels()[target.dtype]
    copy(source, source_rows, source_row, source_outer, target, target_rows, target_row, target_outer, outer, inner)


def join(before: Array, chunk: Array, axis: int) -> Array:
    """Return ``np.concatenate((before, chunk), axis)``."""
    outer, parts = math.prod(chunk.shape[:axis]), (before, chunk)
    shape = (*chunk.shape[:axis], before.shape[axis] + chunk.shape[axis], *chunk.shape[axis + 1 :])
    runs = [_run_of(part, shape, axis, outer) for part in parts]
    if not all(runs) or before.dtype != chunk.dtype:
        return np.concatenate(parts, axis)
    joined, rows, first = np.empty(shape, chunk.dtype), _numbers(outer), 0
    words = joined.reshape(-1).view(WORDS[0])
    for part, run in zip(parts, runs, strict=True):
        copy_rows(part.reshape(-1).view(WORDS[0]), rows, run, 0, words[first:], rows, sum(runs), 0, 1, run)
        first += run
    return joined


def end_of(array: Array, axis: int, length: int) -> Array:
    """Return a copy of the last entries along an axis."""
    end: Array = array[(*(slice(None),) * axis, slice(array.shape[axis] - length, None))]
    copied, outer = np.empty(end.shape, array.dtype), math.prod(array.shape[:axis])
    run, kept = (_run_of(one, array.shape, axis, outer) for one in (array, copied))
    if not run or not kept:
        return end.copy()
    rows, words = _numbers(outer), array.reshape(-1).view(WORDS[0])
    copy_rows(words[run - kept :], rows, run, 0, copied.reshape(-1).view(WORDS[0]), rows, kept, 0, 1, kept)
    return copied


def _run_of(array: Array, shape: tuple[int, ...], axis: int, outer: int) -> int:
    """Return the words of a run along an axis; 0: not whole ones, or other sizes along the other axes."""
    others = array.shape[:axis] == shape[:axis] and array.shape[axis + 1 :] == shape[axis + 1 :]
    if not others or not outer or not array.flags.c_contiguous or not array.flags.aligned or array.dtype.hasobject:
        return 0
    words, rest = divmod(array.nbytes // outer, _WORD)
    return 0 if rest else words


@lru_cache(64)
def _numbers(count: int) -> Rows:
    """Return the numbers of rows from 0 on; ``arange`` releases the lock."""
    return np.arange(count)


@cache
def _kernels() -> dict[np.dtype[Any], Callable[..., None]]:
    from streaminfer import _compiled_kernels  # noqa: PLC0415 - reads files and digests: not at the package's import

    compiled = _compiled_kernels.load()
    if compiled is None:
        return dict.fromkeys(WORDS, copy_rows_numpy)
    return {word: compiled.unchecked(f"copy_rows_{word.name}") for word in WORDS}

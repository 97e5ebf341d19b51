"""Joins and cuts the contexts and chunks of a batch as NumPy does, but keeps the interpreter lock for small ones."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer.streams.state._rows_cy import Rows
from streaminfer.streams.state.kernels import WORDS

__all__ = ["end_of", "join"]

Array = NDArray[Any]

_WORD = WORDS[0]


def join(before: Array, chunk: Array, axis: int) -> Array:
    """Return ``np.concatenate((before, chunk), axis)``."""
    outer, parts = math.prod(chunk.shape[:axis]), (before, chunk)
    shape = (*chunk.shape[:axis], before.shape[axis] + chunk.shape[axis], *chunk.shape[axis + 1 :])
    runs = [_run_of(part, shape, axis, outer) for part in parts]
    if not all(runs) or before.dtype != chunk.dtype:
        return np.concatenate(parts, axis)
    joined, numbers, first = np.empty(shape, chunk.dtype), list(range(outer)), 0
    words = joined.reshape(-1).view(_WORD)
    for part, run in zip(parts, runs, strict=True):
        source = Rows(part.reshape(-1).view(_WORD), run, 0, 1, run)
        Rows(words[first:], sum(runs), 0, 1, run).copy_from(source, numbers, numbers)
        first += run
    return joined


def end_of(array: Array, axis: int, length: int) -> Array:
    """Return a copy of the last entries along an axis."""
    end: Array = array[(*(slice(None),) * axis, slice(array.shape[axis] - length, None))]
    copied, outer = np.empty(end.shape, array.dtype), math.prod(array.shape[:axis])
    run, end_run = (_run_of(one, array.shape, axis, outer) for one in (array, copied))
    if not run or not end_run:
        return end.copy()
    numbers, words = list(range(outer)), array.reshape(-1).view(_WORD)
    source = Rows(words[run - end_run :], run, 0, 1, end_run)
    Rows(copied.reshape(-1).view(_WORD), end_run, 0, 1, end_run).copy_from(source, numbers, numbers)
    return copied


def _run_of(array: Array, shape: tuple[int, ...], axis: int, outer: int) -> int:
    """Return the words of a run along an axis; 0: a run is not whole words, or the array cannot be copied this way."""
    is_aligned = array.shape[:axis] == shape[:axis] and array.shape[axis + 1 :] == shape[axis + 1 :]
    if not is_aligned or not outer or not array.flags.c_contiguous or not array.flags.aligned or array.dtype.hasobject:
        return 0
    words, rest = divmod(array.nbytes // outer, _WORD.itemsize)
    return 0 if rest else words

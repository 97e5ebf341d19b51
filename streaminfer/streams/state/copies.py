"""Which copy of large rows is the fastest: that of long runs is NumPy's, and that of shorter ones the kernel's.

``memcpy``, with which NumPy copies, does not read what it is going to write, which takes a sixth less time. Where no
kernel was compiled ahead of time, NumPy copies all of them, since serving does not import Numba.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from streaminfer.streams.state.kernels import WORDS, Words, copy_rows_numpy

__all__ = ["copy_large_rows"]

_LONG_RUN = 1 << 20
"""Bytes of a run from which ``memcpy`` is faster than the kernel, as measured by ``benchmarks/run.py state``."""


def copy_large_rows(
    source: Words,
    source_rows: list[int],
    source_row: int,
    source_outer: int,
    target: Words,
    target_rows: list[int],
    target_row: int,
    target_outer: int,
    outer: int,
    inner: int,
) -> None:
    """Copy some rows of one array into rows of another; all strides are in words.

    Args:
        source: flat words of one of the :data:`WORDS`, aligned.
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
    copy = copy_rows_numpy if inner * target.itemsize >= _LONG_RUN else _kernels()[target.dtype]
    copy(
        *(source, np.array(source_rows, np.int64), source_row, source_outer),
        *(target, np.array(target_rows, np.int64), target_row, target_outer),
        *(outer, inner),
    )


@cache
def _kernels() -> dict[np.dtype[Any], Callable[..., None]]:
    from streaminfer import _compiled_kernels  # noqa: PLC0415 - reads files and digests: not at the package's import

    compiled = _compiled_kernels.load()
    if compiled is None:
        return dict.fromkeys(WORDS, copy_rows_numpy)
    return {word: compiled.unchecked(f"copy_rows_{word.name}") for word in WORDS}

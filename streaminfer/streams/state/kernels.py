"""Copies of rows between the arena, batches and the outputs of earlier batches.

*Design.* In a batch, a row consists of ``outer`` runs of ``inner`` words, with the runs of the other rows between them.
In the arena the runs of a row are contiguous. Two strides describe each side, so that one kernel gathers rows into a
batch, writes them back, and moves them from one batch to another. Words are as wide as the runs allow, because LLVM
copies wide words four times as fast as bytes. Without compiled kernels, ``_rows_cy.row_copies`` takes the function as
it is, because NumPy copies runs fast too; ``_rows_cy`` copies small rows itself, which keeps the interpreter lock.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["EXPORTS", "WORDS", "Rows", "Words", "copy_rows"]

WORDS = (np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.uint8))
"""Types of words, the widest first."""

Words = NDArray[Any]
Rows = NDArray[np.int64]


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
        source: flat words of one of the :data:`WORDS`, aligned.
        source_rows: numbers of the rows to read.
        source_row: stride from the first run of a row to the first run of the next row.
        source_outer: stride from one run of a row to its next run.
        target: flat words of the same type, which do not overlap with the source.
        target_rows: numbers of the rows to write, as many as ``source_rows``.
        target_row: as ``source_row``.
        target_outer: as ``source_outer``.
        outer: runs of a row.
        inner: words of a run.
    """
    for position in range(source_rows.size):
        for run in range(outer):
            here = source_rows[position] * source_row + run * source_outer
            there = target_rows[position] * target_row + run * target_outer
            target[there : there + inner] = source[here : here + inner]


_READ = "Array(int64, 1, 'C', readonly=True)"
_ARRAYS = ("Array(", ", 1, 'C', readonly=True)"), ("Array(", ", 1, 'C')")
_COUNTS = "int64, int64, int64, int64"

EXPORTS = {
    f"copy_rows_{word.name}": (
        copy_rows,
        f"void({word.name.join(_ARRAYS[0])}, {_READ}, int64, int64, {word.name.join(_ARRAYS[1])}, {_READ}, {_COUNTS})",
    )
    for word in WORDS
}
"""Kernels that serving calls: the name under which each is compiled ahead of time, the function and its signature."""

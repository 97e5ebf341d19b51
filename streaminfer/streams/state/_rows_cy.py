# cython: embedsignature=True, boundscheck=False, wraparound=False
"""Rows of a tensor where they are in memory, and copies of them to another place.

*Design.* A small copy takes less time than asking NumPy for the memory of its arrays. So a `Rows` object asks once, and
row numbers are plain lists. A small copy also keeps the interpreter lock, because a thread that releases the lock must
get it back. On a core that a worker shares with its event loop, the worker would wait until the loop has run all its
callbacks: 40 µs or more for a copy of 2 µs. The kernel makes larger copies and releases the lock. If no kernel was
compiled ahead of time, NumPy copies, because serving does not import Numba.

One source, compiled with the C types of ``_rows_cy.pxd`` or run uncompiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from streaminfer.streams.state.kernels import WORDS, copy_rows

__all__ = ["Rows", "row_copies"]

# C variables in the compiled module, not visible from Python
_WORD = 8
_MAX_LOCKED_WORDS = (
    1 << 16
)  # words of all rows up to which a copy keeps the lock: it takes no longer than getting the lock back


class Rows:
    """Rows of one tensor at one place: an arena, or a batch.

    Args:
        words: flat, aligned words.
        row: words from one row to the next.
        outer: words from one run of a row to its next run.
        runs: runs of a row.
        run: words of a run.
    """

    def __init__(self, words: Any, row: int, outer: int, runs: int, run: int) -> None:
        self._words = words
        self._row = row
        self._outer = outer
        self._runs = runs
        self._run = run
        self._read: Any = None
        self._written: Any = None

    def copy_from(self, source: Rows, source_rows: list[int], rows: list[int]) -> None:
        """Copy rows of the same tensor from another place, which does not overlap with this one.

        Args:
            source: the other place.
            source_rows: numbers of the rows there.
            rows: numbers of the rows here, as many as ``source_rows``.
        """
        count = len(rows)
        if self._words.itemsize != _WORD or count * self._runs * self._run > _MAX_LOCKED_WORDS:
            copy = row_copies()[self._words.dtype]
            copy(
                *(source._words, np.array(source_rows, np.int64), source._row, source._outer),
                *(self._words, np.array(rows, np.int64), self._row, self._outer),
                *(self._runs, self._run),
            )
            return
        if source._read is None:
            source._read = source._words
        if self._written is None:
            self._written = self._words
        read = source._read
        written = self._written
        for position in range(count):
            source_word = source_rows[position]  # multiplied as a C number, and not as the object in the list
            source_word *= source._row
            target_word = rows[position]
            target_word *= self._row
            for _ in range(self._runs):
                for word in range(self._run):
                    written[target_word + word] = read[source_word + word]
                source_word += source._outer
                target_word += self._outer


@cache
def row_copies() -> dict[np.dtype[Any], Callable[..., None]]:
    """Return the functions that copy large rows, by word type, with the arguments of ``kernels.copy_rows``."""
    from streaminfer import _compiled_kernels  # noqa: PLC0415 - reads files and digests: not at the package's import

    compiled = _compiled_kernels.load()
    if compiled is None:
        return dict.fromkeys(WORDS, copy_rows)
    return {word: compiled.unchecked(f"copy_rows_{word.name}") for word in WORDS}

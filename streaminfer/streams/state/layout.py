"""`StateTensor`: one state of a model, and its rows as words in memory."""

from collections.abc import Callable, Hashable
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer.streams.state.kernels import WORDS, copy_rows

__all__ = ["Initial", "RowSource", "StateTensor"]

Array = NDArray[Any]
Initial = Array | Callable[[Hashable], Array]
"""The initial state of a stream: an array, or a function of the stream's id that returns one."""


@attrs.frozen(slots=True)
class RowSource:
    """Rows of a tensor in memory: words, and the strides between the runs that make up a row.

    Attributes:
        words: flat.
        row: words from one row to the next.
        outer: words from one run of a row to its next run.
    """

    words: Array
    row: int
    outer: int


@attrs.frozen(slots=True, eq=False)
class StateTensor:
    """One state of a model.

    Attributes:
        name: of the input that reads it.
        output: that writes it; empty for the context of an input.
        shape: of one row.
        dtype: of both.
        axis: the batch axis in the input and in the output.
        initial: of one row.
        word: the type as which the memory is copied.
        runs: runs of a row that lie apart in a batch.
        run: words of such a run.
        nbytes: of one row.
    """

    name: str
    output: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axis: int
    initial: Initial
    word: np.dtype[Any] = attrs.field(init=False)
    runs: int = attrs.field(init=False)
    run: int = attrs.field(init=False)
    nbytes: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        size = int(np.prod(self.shape[self.axis :], dtype=int)) * self.dtype.itemsize
        word = next(word for word in WORDS if size % word.itemsize == 0)
        runs = int(np.prod(self.shape[: self.axis], dtype=int))
        for name, value in {"word": word, "runs": runs, "run": size // word.itemsize, "nbytes": runs * size}.items():
            object.__setattr__(self, name, value)

    def batch_shape(self, rows: int) -> tuple[int, ...]:
        """Return the shape of a batch."""
        return (*self.shape[: self.axis], rows, *self.shape[self.axis :])

    def in_batch(self, array: Array) -> RowSource:
        """Return the rows of a batch, which is C-contiguous."""
        return RowSource(array.reshape(-1).view(self.word), self.run, array.shape[self.axis] * self.run)

    def in_arena(self, arena: Array) -> RowSource:
        """Return the rows of an arena, of shape (rows, words)."""
        return RowSource(arena.reshape(-1), self.runs * self.run, self.run)

    def new_arena(self, rows: int) -> Array:
        """Reserve memory for rows; the system provides it when a row is first written."""
        return np.empty((rows, self.runs * self.run), self.word)

    def copy(self, source: RowSource, source_rows: Array, target: RowSource, target_rows: Array) -> None:
        """Copy rows."""
        copy_rows(
            source.words,
            source_rows,
            source.row,
            source.outer,
            target.words,
            target_rows,
            target.row,
            target.outer,
            self.runs,
            self.run,
        )

    def row_of(self, batch: Array, row: int) -> Array:
        """Return a view of one row of a batch."""
        view: Array = np.moveaxis(batch, self.axis, 0)[row]
        return view

    def initial_of(self, stream_id: Hashable) -> Array:
        """Return the initial state of a stream.

        Raises:
            ValueError: the user's function returned something that does not fit.
        """
        if not callable(self.initial):
            return self.initial
        given = np.asarray(self.initial(stream_id))
        if given.shape != self.shape or given.dtype != self.dtype:
            raise ValueError(
                f"initial[{self.name!r}]: expected {self.dtype}{list(self.shape)} for stream {stream_id!r}, "
                f"got {given.dtype}{list(given.shape)}"
            )
        return given

"""`StateTensor`: one state of a model, and its rows as words in memory."""

from collections.abc import Callable, Hashable
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.validation import check_count, check_instance, field_check
from streaminfer.streams.state._rows_cy import Rows
from streaminfer.streams.state.kernels import WORDS

__all__ = ["Growing", "Initial", "StateTensor"]

Array = NDArray[Any]
Initial = Array | Callable[[Hashable], Array]
"""The initial state of a stream: an array, or a function of the stream's id that returns one."""


@attrs.frozen(slots=True)
class Growing:
    """A state that grows with each step, like the keys and values of an attention layer.

    The model appends new entries and drops none; only the newest ``max_length`` entries are kept. A batch can have
    streams with different lengths: valid entries are at the end of the axis, after zeros that the model masks by the
    lengths.

    Args:
        axis: axis of a row along which the state grows, without the batch axis.
        max_length: number of entries that are kept, the newest ones.
        lengths: name of the input for the number of valid entries of each row, of shape [batch] and the type of that
            input, int64 if the type is not known; ``None``: the model has no such input.
    """

    axis: int = attrs.field(validator=field_check(check_instance, lambda it: type(it) is int, "a whole number"))
    max_length: int = attrs.field(validator=field_check(check_count))
    lengths: str | None = attrs.field(default=None, validator=field_check(check_instance, str, "a name", optional=True))


@attrs.frozen(slots=True, eq=False)
class StateTensor:
    """One state of a model.

    Attributes:
        name: name of the input that reads the state.
        output: name of the output that writes it; empty for the context of an input.
        shape: shape of one row; the largest shape, if the state grows.
        dtype: type of the input and the output.
        axis: the batch axis in the input and in the output.
        initial: initial value of one row.
        grows: axis of a row along which the state grows; ``None``: the shape is always the same.
        word: the type as which the memory is copied.
        runs: number of contiguous runs of a row, which lie apart in a batch.
        run: words of one run.
        nbytes: bytes of one row.
    """

    name: str
    output: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axis: int
    initial: Initial
    grows: int | None = None
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

    def in_batch(self, array: Array) -> Rows:
        """Return the rows of a C-contiguous batch, or of a copy if the batch is not aligned for its words."""
        words = array.reshape(-1).view(self.word)
        if not words.flags.aligned:
            words = words.copy()
        return Rows(words, self.run, array.shape[self.axis] * self.run, self.runs, self.run)

    def in_arena(self, arena: Array) -> Rows:
        """Return the rows of an arena, of shape (rows, words)."""
        return Rows(arena.reshape(-1), self.runs * self.run, self.run, self.runs, self.run)

    def new_arena(self, rows: int) -> Array:
        """Reserve memory for rows; the system provides it when a row is first written."""
        return np.empty((rows, self.runs * self.run), self.word)

    def fits(self, array: Any, rows: tuple[int, ...]) -> bool:
        """Return whether an array can be a batch of this state, with one of the numbers of rows in ``rows``."""
        if array.dtype != self.dtype or len(array.shape) != len(self.shape) + 1 or array.shape[self.axis] not in rows:
            return False
        row = (*array.shape[: self.axis], *array.shape[self.axis + 1 :])
        return self.fits_row(row, limited=False)

    def fits_row(self, shape: tuple[int, ...], *, limited: bool = True) -> bool:
        """Return whether a row can have a shape; ``limited``: a growing row has at most the largest length."""
        if self.grows is None:
            return shape == self.shape
        if len(shape) != len(self.shape) or (limited and shape[self.grows] > self.shape[self.grows]):
            return False
        return self.with_length(shape, 0) == self.with_length(self.shape, 0)

    def with_length(self, shape: tuple[int, ...], length: int) -> tuple[int, ...]:
        """Return the shape of a row that has grown to a length."""
        if self.grows is None:
            return shape
        return (*shape[: self.grows], length, *shape[self.grows + 1 :])

    @property
    def length_axis(self) -> int:
        """The axis of a batch along which the state grows."""
        assert self.grows is not None  # noqa: S101 - asked of such states only
        return self.grows + (self.grows >= self.axis)

    def newest(self, row: Array, length: int) -> Array:
        """Return a view of the last entries of a row that grows."""
        assert self.grows is not None  # noqa: S101 - asked of such states only
        first = row.shape[self.grows] - length
        view: Array = row[(*(slice(None),) * self.grows, slice(first, None))]
        return view

    def row_in_arena(self, arena: Array, slot: int) -> Array:
        """Return a view of a row of an arena."""
        row: Array = arena[slot].view(self.dtype).reshape(self.shape)
        return row

    def row_of(self, batch: Array, row: int) -> Array:
        """Return a view of one row of a batch."""
        view: Array = np.moveaxis(batch, self.axis, 0)[row, ...]  # "..." makes a view of a scalar too
        return view

    def initial_of(self, stream_id: Hashable) -> Array:
        """Return the initial state of a stream; without a stream (batches at start), the user's function is not called.

        Raises:
            ValueError: the user's function returned an array that does not fit.
        """
        if not callable(self.initial):
            return self.initial
        if stream_id is None:
            return np.zeros(self.with_length(self.shape, 0), self.dtype)
        initial_value = np.asarray(self.initial(stream_id))
        if initial_value.dtype != self.dtype or not self.fits_row(initial_value.shape):
            raise ValueError(
                f"initial[{self.name!r}]: expected {self.dtype}{list(self.shape)} for stream {stream_id!r}, "
                f"got {initial_value.dtype}{list(initial_value.shape)}"
            )
        return initial_value

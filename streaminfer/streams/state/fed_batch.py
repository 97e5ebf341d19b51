"""`FedBatch`: the batch that the backend inside is given, with the states and contexts in it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer.batching.assembly.stacking import only_axis
from streaminfer.errors import BackendError
from streaminfer.request import Batch
from streaminfer.streams.state.joining import end_of, join
from streaminfer.streams.state.store import States

__all__ = ["Context", "FedBatch", "PartOfBatch"]

Array = NDArray[Any]


@attrs.frozen(slots=True, eq=False)
class Context:
    """The end of an input that the next step reads again, before its own.

    Attributes:
        name: of the input.
        length: along the axis.
        axis: of the input, batch axis included.
    """

    name: str
    length: int
    axis: int


class FedBatch(Batch):
    """A batch with the states of its streams; they are put together at the first reading, by the reader.

    Args:
        batch: what the requests brought.
        read_states: returns the states for a number of rows.
        contexts: of the inputs.
        only_input: the name of what the requests brought, where they brought arrays without one.
        whole_outputs: the states.
        lengths: the inputs that are told the lengths of states that grow, with their type; ``None``: of one that the
            model does not ask for. In the order of those states.

    Attributes:
        states: what the inputs have of the streams; ``None``: not read yet.
        ends: by name of the input, what the next step begins with.
    """

    __slots__ = (
        *("_batch", "_contexts", "_fed", "_lengths", "_only_input", "_read_states"),
        *("ends", "is_part", "states", "whole_outputs"),
    )

    def __init__(
        self,
        batch: Batch,
        read_states: Callable[[int], States],
        contexts: Sequence[Context],
        only_input: str | None,
        whole_outputs: frozenset[str],
        lengths: Sequence[tuple[str, np.dtype[Any]] | None] = (),
    ) -> None:
        self.states: States | None = None
        self._lengths = lengths
        self._batch = batch
        self._read_states = read_states
        self._contexts = contexts
        self._only_input = only_input
        self._fed: dict[str, Any] | None = None
        self.ends: dict[str, Array] = {}
        self.whole_outputs = whole_outputs
        self.is_part = batch.is_part  # type: ignore[misc] # a constant of each other class of batches
        self.rows = batch.rows
        self.deadline_ns = batch.deadline_ns

    @property
    def size(self) -> int:
        """How many rows the inputs have."""
        return self._batch.size

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What the model reads."""
        if self._fed is None:
            given = self._batch.inputs
            if isinstance(given, np.ndarray) and self._only_input is not None:
                given = {self._only_input: given}
            elif not isinstance(given, Mapping):
                raise BackendError(
                    f"expected a batch of stacked arrays by name of the input, got {type(given).__name__}; a batcher "
                    "in front of a StatefulBackend needs stack=True"
                )
            size = self._batch.size
            self.states = states = self._read_states(size)
            fed = {**given, **states.arrays}
            for position, told in enumerate(self._lengths):
                if told is not None and states.lengths is not None:
                    known = [lengths[position] for lengths in states.lengths]
                    fed[told[0]] = np.array(known + known[-1:] * (size - len(known)), told[1])
            for context in self._contexts:
                joined = join(fed[context.name], given[context.name], context.axis)
                fed[context.name], self.ends[context.name] = joined, end_of(joined, context.axis, context.length)
            self._fed = fed
        return self._fed

    def left(self, now_ns: int) -> Sequence[int]:
        """Return the rows whose callers wait no longer."""
        return self._batch.left(now_ns)

    def again(self) -> "FedBatch":
        """Return the batch for another attempt, with the states that its streams have then."""
        return type(self)(
            self._batch.again(), self._read_states, self._contexts, self._only_input, self.whole_outputs, self._lengths
        )


class PartOfBatch(Batch):
    """Some rows of a batch.

    Args:
        batch: the whole.
        positions: of the rows.
        axes: the batch axis of each input, 0 where it names none.
    """

    __slots__ = ("_axes", "_batch", "_positions", "is_part")

    def __init__(self, batch: Batch, positions: Sequence[int], axes: Mapping[str, int]) -> None:
        self._batch = batch
        self._positions = positions
        self._axes = axes
        self.rows = [batch.rows[position] for position in positions]
        self.deadline_ns = batch.deadline_ns
        self.is_part = batch.is_part  # type: ignore[misc] # a constant of each other class of batches

    @property
    def inputs(self) -> Any:
        """What these rows brought."""
        inputs = self._batch.inputs
        if isinstance(inputs, Mapping):
            return {name: np.take(value, self._positions, self._axes.get(name, 0)) for name, value in inputs.items()}
        if isinstance(inputs, np.ndarray):
            return np.take(inputs, self._positions, only_axis(self._axes))
        return [inputs[position] for position in self._positions]

    def left(self, now_ns: int) -> Sequence[int]:
        """Return the rows whose callers wait no longer."""
        gone = set(self._batch.left(now_ns))
        return [row for row, position in enumerate(self._positions) if position in gone]

    def again(self) -> "PartOfBatch":
        """Return the same rows of the batch for another attempt."""
        return type(self)(self._batch.again(), self._positions, self._axes)

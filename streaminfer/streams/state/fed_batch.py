"""`FedBatch`: the batch that the inner backend gets, with states and contexts as inputs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer.errors import BackendError
from streaminfer.request import Batch
from streaminfer.streams.state.signature import StateSignature
from streaminfer.streams.state.store import States

__all__ = ["FedBatch"]

Array = NDArray[Any]


class FedBatch(Batch):
    """A batch with the states of its streams; the first access to ``inputs`` gathers them.

    Args:
        batch: inputs of the requests.
        read_states: returns the states for a number of rows.
        signature: separates the states from the inputs of the requests.
        positions: rows of ``batch`` that this batch has; ``None``: all.

    Attributes:
        whole_outputs: names of the state outputs.
        states: states of the streams in the inputs; ``None``: not read yet.
        ends: context of the next step, by name of the input.
    """

    __slots__ = (
        *("_batch", "_inputs", "_positions", "_read_states", "_signature"),
        *("ends", "is_part", "states", "whole_outputs"),
    )

    def __init__(
        self,
        batch: Batch,
        read_states: Callable[[int], States],
        signature: StateSignature,
        positions: Sequence[int] | None = None,
    ) -> None:
        self.states: States | None = None
        self._batch = batch
        self._read_states = read_states
        self._signature = signature
        self._positions = positions
        self._inputs: dict[str, Any] | None = None
        self.ends: dict[str, Array] = {}
        self.whole_outputs = signature.state_outputs
        self.is_part = batch.is_part  # type: ignore[misc] # a constant of each other class of batches
        self.rows = batch.rows if positions is None else [batch.rows[position] for position in positions]
        self.deadline_ns = batch.deadline_ns

    @property
    def size(self) -> int:
        """How many rows the inputs have."""
        return self._batch.size if self._positions is None else len(self._positions)

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Inputs of the model by name."""
        if self._inputs is None:
            arrays, signature = self._batch.inputs, self._signature
            if isinstance(arrays, np.ndarray) and signature.only_input is not None:
                arrays = {signature.only_input: arrays}
            elif not isinstance(arrays, Mapping):
                raise BackendError(
                    f"expected a batch of stacked arrays by name of the input, got {type(arrays).__name__}; a batcher "
                    "in front of a StatefulBackend needs stack=True"
                )
            if self._positions is not None:
                axes = signature.batch_axes
                arrays = {name: np.take(value, self._positions, axes.get(name, 0)) for name, value in arrays.items()}
            size = self.size
            self.states = states = self._read_states(size)
            inputs = {**arrays, **states.arrays}
            for position, name, dtype in signature.lengths:
                lengths = [row[position] for row in states.lengths or ()]
                inputs[name] = np.array(lengths + lengths[-1:] * (size - len(lengths)), dtype)
            for name, length, axis, _ in signature.contexts:
                inputs[name] = joined = np.concatenate((inputs[name], arrays[name]), axis)
                self.ends[name] = joined[(*(slice(None),) * axis, slice(joined.shape[axis] - length, None))].copy()
            self._inputs = inputs
        return self._inputs

    def left(self, now_ns: int) -> Sequence[int]:
        """Return the rows whose callers wait no longer."""
        left = self._batch.left(now_ns)
        if self._positions is None:
            return left
        return [row for row, position in enumerate(self._positions) if position in left]

    def again(self) -> "FedBatch":
        """Return the batch for another attempt, with the states that its streams have then."""
        return type(self)(self._batch.again(), self._read_states, self._signature, self._positions)

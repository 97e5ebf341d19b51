"""The memory of the states: the arena, and the copies between arena, batches and blocks.

Thread-safety: worker threads gather and write back at the same time. They read and change the locations of states
under the lock of the table, for microseconds. They copy rows without the lock, because large rows take milliseconds.
This is safe because a row that is read does not change until the reading step has ended (``_stream_table_cy``), and a
row that is written belongs to no stream yet.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.forking import new_reentrant_lock
from streaminfer.batching.assembly.buffers import BufferPool
from streaminfer.errors import BackendError, Closed
from streaminfer.streams.state._rows_cy import Rows
from streaminfer.streams.state._step_cy import Block, Places, Step, Stream, WriteBack
from streaminfer.streams.state._stream_table_cy import StreamTable
from streaminfer.streams.state.layout import StateTensor

__all__ = ["StateStore", "States"]

Array = NDArray[Any]

_POOL_BYTES = 1 << 30
_MIN_POOLED_BYTES = 1 << 20
"""Bytes from which the memory of gathered states is reused: ``malloc`` gets such blocks from the system each time."""


_Values = list[tuple[int, Mapping[str, Array]]]


class States(NamedTuple):
    """The states that a batch starts from.

    Attributes:
        arrays: arrays by name of the state, in the layout of the model; read-only.
        lengths: lengths of the growing states, by row; ``None``: nothing grows.
    """

    arrays: Mapping[str, Array]
    lengths: list[tuple[int, ...]] | None


class StateStore:
    """States of streams in memory; thread-safe.

    Args:
        tensors: the states of the model.
        max_streams: maximum number of streams.
        keep: number of batches with outputs that stay where the model wrote them.

    Raises:
        ValueError: there is no address space for ``max_streams`` states.

    Attributes:
        lock: held for each use of ``table``.
        table: location of each stream's state.
        gathers: batches with rows that were gathered.
        copied_rows: rows that were gathered or written back.
        sticky: batches that read the outputs of an earlier batch.
    """

    def __init__(self, tensors: Sequence[StateTensor], max_streams: int, max_blocks: int) -> None:
        self.lock = new_reentrant_lock()  # its holder may garbage-collect a coroutine, which ends a step under the lock
        self.table = StreamTable(max_streams)
        self.gathers = 0
        self.copied_rows = 0
        self.sticky = 0
        self._tensors = tensors
        self._growing = [tensor for tensor in tensors if tensor.grows is not None]
        self._max_blocks = max_blocks
        self._arenas: dict[str, tuple[Array, Rows]] = {}
        self._pool = BufferPool(_POOL_BYTES)
        try:
            for tensor in tensors:  # so that a lack of address space fails here and not in a later batch
                self._arena_of(tensor)
        except (MemoryError, ValueError) as error:  # NumPy raises ValueError for a size beyond its integers
            size = sum(tensor.nbytes for tensor in tensors)
            raise ValueError(
                f"max_streams: expected states that fit into memory, got {max_streams} of {size} bytes ({error})"
            ) from error

    def read(self, step: Step, size: int) -> States:
        """Return the states that a step starts from; called when its turn has come.

        Args:
            step: a step of at least one row.
            size: rows of the batch; rows after those of the step are copies of its last row.

        Raises:
            Closed: the step was abandoned.
        """
        with self.lock:
            if step.ended:
                raise Closed("the batch was abandoned before its inputs were read")
            block = self.table.locate(step)
            if block is not None and block.size == size:
                self.sticky += 1
                return States(block.arrays, block.lengths)
            places = self.table.places(step.streams)
            self.gathers += 1
            self.copied_rows += size
        states = self._gather(places, size)
        self._write_back()
        return states

    def read_initial(self, size: int) -> States:
        """Return the initial states for a batch that belongs to no stream."""
        return self._gather(self.table.places([Stream(None, 0)]), size)

    def row(self, stream: Stream) -> dict[str, Array]:
        """Return copies of the states of one stream; the caller holds the lock."""
        arrays = self._gather(self.table.places([stream]), 1).arrays
        return {tensor.name: tensor.row_of(arrays[tensor.name], 0) for tensor in self._tensors}

    def grow(self, before: States, after: Mapping[str, Array]) -> list[tuple[int, ...]] | None:
        """Return the lengths of a batch's rows after its step; ``None``: nothing grows.

        Raises:
            BackendError: the model has dropped entries.
        """
        if before.lengths is None:
            return None
        growth = []
        for tensor in self._growing:
            length, prior = _length(tensor, after[tensor.name]), _length(tensor, before.arrays[tensor.name])
            if length < prior:  # it is not known which entries were dropped
                raise BackendError(
                    f"output {tensor.output!r}: expected at least the {prior} entries of {tensor.name!r}, got {length}"
                )
            growth.append((length - prior, _max_length(tensor)))
        return [
            tuple(min(length + added, limit) for length, (added, limit) in zip(lengths, growth, strict=True))
            for lengths in before.lengths
        ]

    def is_input(self, arrays: Mapping[str, Array], size: int) -> bool:
        """Return whether outputs can be the next input unchanged, of as many rows: no state exceeds its length."""
        has_rows = all(arrays[tensor.name].shape[tensor.axis] == size for tensor in self._tensors)
        return has_rows and all(_length(tensor, arrays[tensor.name]) <= _max_length(tensor) for tensor in self._growing)

    def bytes_in_use(self) -> int:
        """Return the bytes of all states; kept outputs count as a whole. The caller holds the lock."""
        block_bytes: int = sum(
            math.prod(block.arrays[tensor.name].shape) * tensor.dtype.itemsize
            for block in self.table.blocks
            for tensor in self._tensors
        )
        rows = self.table.slots_in_use + self.table.imported
        return rows * sum(tensor.nbytes for tensor in self._tensors) + block_bytes

    def clear(self) -> None:
        """Forget every stream and free the memory."""
        with self.lock:
            self.table.clear()
            self._arenas = {}

    def _gather(self, places: Places, size: int) -> States:
        lengths = places.lengths
        values: _Values = []
        for row, stream_id, imported in places.others:
            state = imported or {tensor.name: tensor.initial_of(stream_id) for tensor in self._tensors}
            values.append((row, state))
            lengths[row] = tuple(state[tensor.name].shape[tensor.grows or 0] for tensor in self._growing)
        arrays = {}
        for tensor in self._tensors:
            gather = self._gather_one if tensor.grows is None else self._gather_growing
            arrays[tensor.name] = gather(tensor, places, values, size)
        return States(arrays, lengths if self._growing else None)

    def _gather_one(self, tensor: StateTensor, places: Places, values: _Values, size: int) -> Array:
        batch = self._allocate(tensor, tensor.batch_shape(size))
        target = tensor.in_batch(batch)
        for block, source_rows, rows_of_batch in places.sources:
            target.copy_from(self._source(tensor, block), source_rows, rows_of_batch)
        for row, state in values:
            tensor.row_of(batch, row)[...] = state[tensor.name]
        rows = len(places.lengths)
        for row in range(rows, size):
            tensor.row_of(batch, row)[...] = tensor.row_of(batch, rows - 1)
        return batch

    def _source(self, tensor: StateTensor, block: Block | None) -> Rows:
        if block is None:
            return self._arena_of(tensor)[1]
        return tensor.in_batch(np.ascontiguousarray(block.arrays[tensor.name]))

    def _gather_growing(self, tensor: StateTensor, places: Places, values: _Values, size: int) -> Array:
        """Gather rows of different lengths: zeros first, the valid entries at the end."""
        position = self._growing.index(tensor)
        lengths = [lengths[position] for lengths in places.lengths]
        longest = max(lengths)
        shape = tensor.with_length(tensor.shape, longest)
        batch = self._allocate(tensor, (*shape[: tensor.axis], size, *shape[tensor.axis :]))
        sources: dict[int, Array] = {row: known[tensor.name] for row, known in values}
        for block, source_rows, rows_of_batch in places.sources:
            array = self._arena_of(tensor)[0] if block is None else np.asarray(block.arrays[tensor.name])
            view = tensor.row_in_arena if block is None else tensor.row_of
            sources.update((row, view(array, source)) for source, row in zip(source_rows, rows_of_batch, strict=True))
        for row in range(size):
            known = min(row, len(lengths) - 1)
            length, target = lengths[known], tensor.row_of(batch, row)
            if length < longest:
                target[...] = 0
            tensor.newest(target, length)[...] = tensor.newest(sources[known], length)
        return batch

    def _write_back(self) -> None:
        """Move the states of the oldest blocks to the arena."""
        while True:
            with self.lock:
                work = self.table.begin_write_back(self._max_blocks)
            if work is None:
                return
            copied = False
            try:
                for tensor in self._tensors:
                    self._write_back_one(tensor, work)
                copied = True
            finally:
                with self.lock:
                    self.copied_rows += len(work.rows)
                    self.table.end_write_back(work, copied)

    def _write_back_one(self, tensor: StateTensor, work: WriteBack) -> None:
        array = np.ascontiguousarray(work.block.arrays[tensor.name])
        if tensor.grows is None:
            self._arena_of(tensor)[1].copy_from(tensor.in_batch(array), work.rows, work.slots)
            return
        arena, _ = self._arena_of(tensor)
        position = self._growing.index(tensor)
        for row, slot in zip(work.rows, work.slots, strict=True):
            length = work.block.lengths[row][position]
            target = tensor.newest(tensor.row_in_arena(arena, slot), length)
            target[...] = tensor.newest(tensor.row_of(array, row), length)

    def _allocate(self, tensor: StateTensor, shape: tuple[int, ...]) -> Array:
        is_pooled = math.prod(shape) * tensor.dtype.itemsize >= _MIN_POOLED_BYTES
        return self._pool.take(shape, tensor.dtype) if is_pooled else np.empty(shape, tensor.dtype)

    def _arena_of(self, tensor: StateTensor) -> tuple[Array, Rows]:
        """Return the arena of a state, as an array and as rows."""
        arena = self._arenas.get(tensor.name)
        if arena is None:
            array = tensor.new_arena(self.table.capacity)
            arena = self._arenas.setdefault(tensor.name, (array, tensor.in_arena(array)))
        return arena


def _length(tensor: StateTensor, batch: Array) -> int:
    return int(batch.shape[tensor.length_axis])


def _max_length(tensor: StateTensor) -> int:
    return tensor.shape[tensor.grows or 0]

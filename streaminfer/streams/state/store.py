"""The memory of the states: the arena, and the copies between it, batches and blocks.

Thread-safety: worker threads gather and write back at the same time. What is where is read and changed under the
lock of the table, in steps of microseconds; rows are copied without it, which takes milliseconds where they are large.
That is sound because a row that is read stays as it is until the step that reads it has ended (``_stream_table_cy``),
and a row that is written is nobody's yet.
"""

import math
import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streaminfer.batching.assembly.buffers import BufferPool
from streaminfer.streams.state._step_cy import Block, Step, Stream, WriteBack
from streaminfer.streams.state._stream_table_cy import StreamTable
from streaminfer.streams.state.layout import StateTensor

__all__ = ["StateStore", "States"]

Array = NDArray[Any]

_POOL_BYTES = 1 << 30
_POOLED_FROM = 1 << 20
"""Bytes of a gathered state from which its memory is reused: ``malloc`` gets such blocks from the system each time."""


class States(NamedTuple):
    """The states that a batch starts from.

    Attributes:
        arrays: by name, in the layout of the model; not to be written to.
        lengths: by row, of the states that grow in their order; ``None``: nothing grows.
    """

    arrays: Mapping[str, Array]
    lengths: list[tuple[int, ...]] | None


class StateStore:
    """States of streams in memory; thread-safe.

    Args:
        tensors: the states of the model.
        max_streams: the most streams.
        keep: so many batches' outputs are kept where the model wrote them.

    Attributes:
        lock: held for each use of ``table``.
        table: which stream's state is where.
        gathers: batches whose rows were gathered.
        sticky: batches that read the outputs of an earlier one.
    """

    def __init__(self, tensors: Sequence[StateTensor], max_streams: int, keep: int) -> None:
        self.lock = threading.Lock()
        self.table = StreamTable(max_streams)
        self.gathers = 0
        self.sticky = 0
        self._tensors = tensors
        self._growing = [tensor for tensor in tensors if tensor.grows is not None]
        self._keep = keep
        self._arena: dict[str, Array] = {}
        self._pool = BufferPool(_POOL_BYTES)

    def read(self, step: Step, size: int) -> States:
        """Return the states that a step starts from; called when its turn has come.

        Args:
            step: of at least one row.
            size: rows of the batch; those behind the step's are copies of its last one.
        """
        with self.lock:
            block = self.table.locate(step)
            if block is not None and block.size == size:
                self.sticky += 1
                return States(block.arrays, block.lengths)
            places = _Places(step.streams, size)
            self.gathers += 1
        states = self._gather(places, size)
        self._write_back()
        return states

    def read_initial(self, size: int) -> States:
        """Return the initial states for a batch that belongs to no stream."""
        return self._gather(_Places([Stream(None, 0)], size), size)

    def row(self, stream: Stream) -> dict[str, Array]:
        """Return copies of the states of one stream; the caller holds the lock."""
        arrays = self._gather(_Places([stream], 1), 1).arrays
        return {tensor.name: tensor.row_of(arrays[tensor.name], 0) for tensor in self._tensors}

    def grow(self, before: States, after: Mapping[str, Array]) -> list[tuple[int, ...]] | None:
        """Return the lengths of a batch's rows after its step; ``None``: nothing grows."""
        if before.lengths is None:
            return None
        grown = [
            (_length(tensor, after[tensor.name]) - _length(tensor, before.arrays[tensor.name]), _most(tensor))
            for tensor in self._growing
        ]
        return [
            tuple(min(length + more, most) for length, (more, most) in zip(lengths, grown, strict=True))
            for lengths in before.lengths
        ]

    def is_input(self, arrays: Mapping[str, Array]) -> bool:
        """Return whether outputs can be the next input as they are: none has grown beyond what is kept."""
        return all(_length(tensor, arrays[tensor.name]) <= _most(tensor) for tensor in self._growing)

    def bytes_in_use(self) -> int:
        """Return the bytes of all states, the kept outputs as a whole; the caller holds the lock."""
        kept = sum(int(array.nbytes) for block in self.table.blocks for array in block.arrays.values())
        return self.table.slots_in_use * sum(tensor.nbytes for tensor in self._tensors) + kept

    def clear(self) -> None:
        """Forget every stream, and give the memory back."""
        with self.lock:
            self.table.clear()
            self._arena = {}

    def _gather(self, places: "_Places", size: int) -> States:
        for row, stream_id, given in places.others:
            values = {tensor.name: tensor.initial_of(stream_id) for tensor in self._tensors} if given is None else given
            places.values.append((row, values))
            places.lengths[row] = tuple(_length_of_row(tensor, values[tensor.name]) for tensor in self._growing)
        arrays = {tensor.name: self._gather_one(tensor, places, size) for tensor in self._tensors}
        return States(arrays, [lengths or () for lengths in places.lengths] if self._growing else None)

    def _gather_one(self, tensor: StateTensor, places: "_Places", size: int) -> Array:
        if tensor.grows is not None:
            return self._gather_growing(tensor, places, size)
        batch = self._new(tensor, tensor.batch_shape(size))
        target = tensor.in_batch(batch)
        if places.slots:
            arena = tensor.in_arena(self._arena_of(tensor))
            tensor.copy(arena, np.array(places.slots), target, np.array(places.slot_rows))
        for block, rows, target_rows in places.blocks.values():
            kept = np.ascontiguousarray(block.arrays[tensor.name])
            tensor.copy(tensor.in_batch(kept), np.array(rows), target, np.array(target_rows))
        for row, values in places.values:
            tensor.row_of(batch, row)[...] = values[tensor.name]
        for row in places.padding:
            tensor.row_of(batch, row)[...] = tensor.row_of(batch, places.padding[0] - 1)
        return batch

    def _gather_growing(self, tensor: StateTensor, places: "_Places", size: int) -> Array:
        """Rows of differing lengths: the valid entries at the end, zeros before them."""
        position = self._growing.index(tensor)
        lengths = [lengths[position] for lengths in places.lengths if lengths is not None]
        longest = max(lengths)
        shape = tensor.with_length(tensor.shape, longest)
        batch = self._new(tensor, (*shape[: tensor.axis], size, *shape[tensor.axis :]))
        sources: dict[int, Array] = {row: values[tensor.name] for row, values in places.values}
        arena = self._arena_of(tensor) if places.slots else None
        for slot, row in zip(places.slots, places.slot_rows, strict=True):
            assert arena is not None  # noqa: S101 - there are slots
            sources[row] = tensor.row_in_arena(arena, slot)
        for block, rows, target_rows in places.blocks.values():
            kept = np.asarray(block.arrays[tensor.name])
            sources.update((row, tensor.row_of(kept, here)) for here, row in zip(rows, target_rows, strict=True))
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
                work = self.table.take_back(self._keep)
            if work is None:
                return
            copied = False
            try:
                for tensor in self._tensors:
                    self._write_back_one(tensor, work)
                copied = True
            finally:
                with self.lock:
                    self.table.taken_back(work, copied)

    def _write_back_one(self, tensor: StateTensor, work: WriteBack) -> None:
        kept, arena = np.ascontiguousarray(work.block.arrays[tensor.name]), self._arena_of(tensor)
        if tensor.grows is None:
            rows, slots = np.array(work.rows), np.array(work.slots)
            tensor.copy(tensor.in_batch(kept), rows, tensor.in_arena(arena), slots)
            return
        position = self._growing.index(tensor)
        for row, slot in zip(work.rows, work.slots, strict=True):
            length = work.block.lengths[row][position]
            target = tensor.newest(tensor.row_in_arena(arena, slot), length)
            target[...] = tensor.newest(tensor.row_of(kept, row), length)

    def _new(self, tensor: StateTensor, shape: tuple[int, ...]) -> Array:
        large = math.prod(shape) * tensor.dtype.itemsize >= _POOLED_FROM
        return self._pool.take(shape, tensor.dtype) if large else np.empty(shape, tensor.dtype)

    def _arena_of(self, tensor: StateTensor) -> Array:
        arena = self._arena.get(tensor.name)
        if arena is None:
            arena = self._arena.setdefault(tensor.name, tensor.new_arena(self.table.capacity))
        return arena


class _Places:
    """Where the rows of a batch are gathered from, as it is now.

    Attributes:
        slots: of the arena.
        slot_rows: rows of the batch that these become.
        blocks: each with its rows, and the rows of the batch that these become.
        others: rows of the batch whose state is given, or else initial, with the stream's id.
        values: rows of the batch, and their states, for ``others``.
        lengths: by row, of the states that grow; ``None``: not known yet.
        padding: rows of the batch that are copies.
    """

    __slots__ = ("blocks", "lengths", "others", "padding", "slot_rows", "slots", "values")

    def __init__(self, streams: Sequence[Stream], size: int) -> None:
        self.slots: list[int] = []
        self.slot_rows: list[int] = []
        self.blocks: dict[int, tuple[Block, list[int], list[int]]] = {}
        self.others: list[tuple[int, Hashable, Mapping[str, Array] | None]] = []
        self.values: list[tuple[int, Mapping[str, Array]]] = []
        self.lengths: list[tuple[int, ...] | None] = [stream.lengths for stream in streams]
        self.padding = range(len(streams), size)
        for row, stream in enumerate(streams):
            block = stream.block
            if block is not None:
                found = self.blocks.get(id(block))
                if found is None:
                    found = self.blocks[id(block)] = (block, [], [])
                found[1].append(stream.row)
                found[2].append(row)
            elif stream.slot >= 0:
                self.slots.append(stream.slot)
                self.slot_rows.append(row)
            else:
                self.others.append((row, stream.stream_id, stream.given))


def _length(tensor: StateTensor, batch: Array) -> int:
    return int(batch.shape[tensor.length_axis])


def _length_of_row(tensor: StateTensor, row: Array) -> int:
    return int(row.shape[tensor.grows or 0])


def _most(tensor: StateTensor) -> int:
    return tensor.shape[tensor.grows or 0]

"""The memory of the states: the arena, and the copies between it, batches and blocks.

Thread-safety: worker threads gather and write back at the same time. What is where is read and changed under the
lock of the table, in steps of microseconds; rows are copied without it, which takes milliseconds where they are large.
That is sound because a row that is read stays as it is until the step that reads it has ended (``_stream_table_cy``),
and a row that is written is nobody's yet.
"""

import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer.batching.assembly.buffers import BufferPool
from streaminfer.streams.state._stream_table_cy import Block, Step, Stream, StreamTable
from streaminfer.streams.state.layout import RowSource, StateTensor

__all__ = ["StateStore"]

Array = NDArray[Any]

_POOL_BYTES = 1 << 30
_POOLED_FROM = 1 << 20
"""Bytes of a gathered state from which its memory is reused: ``malloc`` gets such blocks from the system each time."""


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
        self._keep = keep
        self._arena: dict[str, Array] = {}
        self._pool = BufferPool(_POOL_BYTES)

    def read(self, step: Step, size: int) -> Mapping[str, Array]:
        """Return the states that a step starts from, as the model reads them; called once, when its turn has come.

        Args:
            step: of at least one row.
            size: rows of the batch; those behind the step's are copies of its last one.

        Returns:
            Arrays by name of the state, not to be written to.
        """
        with self.lock:
            block = self.table.locate(step)
            if block is not None and block.size == size:
                self.sticky += 1
                arrays: Mapping[str, Array] = block.arrays
                return arrays
            places = _Places(step.streams, size)
            self.gathers += 1
        gathered = {tensor.name: self._gather(tensor, places, size) for tensor in self._tensors}
        self._write_back()
        return gathered

    def read_initial(self, size: int) -> Mapping[str, Array]:
        """Return the initial states for a batch that belongs to no stream."""
        return {tensor.name: self._gather(tensor, _Places([Stream(None, 0)], size), size) for tensor in self._tensors}

    def row(self, stream: Stream) -> dict[str, Array]:
        """Return copies of the states of one stream; the caller holds the lock."""
        places = _Places([stream], 1)
        return {tensor.name: tensor.row_of(self._gather(tensor, places, 1), 0) for tensor in self._tensors}

    def bytes_in_use(self) -> int:
        """Return the bytes of all states, the kept outputs as a whole; the caller holds the lock."""
        row = sum(tensor.nbytes for tensor in self._tensors)
        return self.table.slots_in_use * row + sum(block.size * row for block in self.table.blocks)

    def clear(self) -> None:
        """Forget every stream, and give the memory back."""
        with self.lock:
            self.table.clear()
            self._arena = {}

    def _gather(self, tensor: StateTensor, places: "_Places", size: int) -> Array:
        shape = tensor.batch_shape(size)
        pooled = tensor.nbytes * size >= _POOLED_FROM
        batch: Array = self._pool.take(shape, tensor.dtype) if pooled else np.empty(shape, tensor.dtype)
        target = tensor.in_batch(batch)
        if places.slots:
            arena = tensor.in_arena(self._arena_of(tensor))
            tensor.copy(arena, np.array(places.slots), target, np.array(places.slot_rows))
        for block, rows, target_rows in places.blocks.values():
            tensor.copy(tensor.in_batch(block.arrays[tensor.name]), np.array(rows), target, np.array(target_rows))
        for row, stream_id, given in places.others:
            value = tensor.initial_of(stream_id) if given is None else given[tensor.name]
            tensor.row_of(batch, row)[...] = value
        if places.padding:
            last = tensor.row_of(batch, places.padding[0] - 1)
            for row in places.padding:
                tensor.row_of(batch, row)[...] = last
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
                rows, slots = np.array(work.rows), np.array(work.slots)
                for tensor in self._tensors:
                    source: RowSource = tensor.in_batch(work.block.arrays[tensor.name])
                    tensor.copy(source, rows, tensor.in_arena(self._arena_of(tensor)), slots)
                copied = True
            finally:
                with self.lock:
                    self.table.taken_back(work, copied)

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
        padding: rows of the batch that are copies.
    """

    __slots__ = ("blocks", "others", "padding", "slot_rows", "slots")

    def __init__(self, streams: Sequence[Stream], size: int) -> None:
        self.slots: list[int] = []
        self.slot_rows: list[int] = []
        self.blocks: dict[int, tuple[Block, list[int], list[int]]] = {}
        self.others: list[tuple[int, Hashable, Mapping[str, Array] | None]] = []
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

"""Table of streams: the location of each stream's state, and the order of the steps.

*Design.* The outputs of a batch stay where the model wrote them: the batch is a `Block`, and each of its streams has
its state in one row of the block. So a step that succeeds moves nothing: :meth:`StreamTable.commit` points the streams
at the new block. A batch of the same streams in the same order as a block reads that block as its input (*sticky
rows*). For other batches the rows are gathered from their locations. Only a few blocks are kept: the remaining rows of
an older block are written back to the arena, each to its own *slot*, and the block is dropped.

A step that does not succeed leaves the state unchanged, because it writes neither to the arena nor to a block. If a
stream is reset, ended or imported while its step runs, its ``version`` changes, and the step does not commit to it.

*Turns.* Each stream remembers the last step that was registered for it. A new step waits for the last steps of all its
streams, and is registered for all of them at once. So the steps of one stream run one at a time, in the order of their
registration, and no two steps wait for each other. A step that is abandoned while it waits keeps its place, so that
later steps do not overtake earlier ones.

*Slots.* A slot becomes free when its stream has moved on. If the stream was reset or ended during its step, the slot
becomes free when that step ends, because the step may still read it.

*Complexity.* O(1) per row; expiry is O(1) per expired stream, in the order of use.

One source, compiled with the C types of ``_stream_table_cy.pxd`` or run uncompiled. Synchronous, takes the time as an
argument, and is not thread-safe: the caller holds a lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Sequence
from typing import Any

from streaminfer.streams.state._step_cy import Block, Places, Step, Stream, WriteBack

__all__ = ["StreamTable"]

_SPARE_SLOTS = 64  # for rows that are written back while a step still reads the slots of removed streams


class StreamTable:
    """The streams that have state.

    Args:
        max_streams: maximum number of streams.

    Attributes:
        capacity: slots of the arena.
        expired: streams that were forgotten so far because they were idle.
        rejected: rows and imports that were rejected so far because there was no place.
        imported: streams with an imported state that no successful step has read yet.
    """

    def __init__(self, max_streams: int) -> None:
        self.max_streams = max_streams
        self.capacity = max_streams + _SPARE_SLOTS
        self.expired = 0
        self.rejected = 0
        self.imported = 0
        self._streams: OrderedDict[Hashable, Stream] = OrderedDict()  # in the order of use
        self._blocks: list[Block] = []
        self._free: list[int] = []
        self._next_slot = 0

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def slots_in_use(self) -> int:
        """Rows of the arena that hold a state, or held one that may still be read."""
        return self._next_slot - len(self._free)

    @property
    def blocks(self) -> list[Block]:
        """The blocks that hold a state, oldest first."""
        return self._blocks.copy()

    def find(self, stream_id: Hashable) -> Stream | None:
        """Return a stream that has state; ``None``: it has none."""
        return self._streams.get(stream_id)

    def begin(self, requests: Sequence[Any], now_ns: int) -> list[Step]:
        """Register the rows of a batch and open its new streams.

        Args:
            requests: request of each row, with a ``stream_id``; a row with the id ``None`` gets no place.
            now_ns: the present.

        Returns:
            The steps, in their order: one, and another one for each repetition of a stream. Rows without a place are in
            no step.
        """
        group: list[Step] = []
        step = Step(group, 0)
        group.append(step)
        for position, request in enumerate(requests):
            stream_id = request.stream_id
            stream = None if stream_id is None else self._streams.get(stream_id)
            if stream is None:
                if stream_id is None or len(self._streams) >= self.max_streams:
                    self.rejected += 1
                    continue
                stream = Stream(stream_id, now_ns)
                self._streams[stream_id] = stream
            else:
                self._streams.move_to_end(stream_id)
            stream.seen_ns = now_ns
            target = step
            previous = stream._tail
            if previous is not None:
                if previous._group is group:
                    if previous._repetition + 1 == len(group):
                        group.append(Step(group, previous._repetition + 1))
                    target = group[previous._repetition + 1]
                if previous._latest_dependent is not target:
                    previous._latest_dependent = target
                    previous._dependents.append(target)
                    target.pending += 1
            stream._tail = target
            target.streams.append(stream)
            target.rows.append(position)
        return group

    def locate(self, step: Step) -> Block | None:
        """Record which states a step starts from; called at the turn of the step.

        Returns:
            The block with exactly the rows of the step, in their order; ``None``: the rows must be gathered.
        """
        versions: list[int] = []
        first = step.streams[0]
        block = first.block
        is_same = block is not None and len(block.streams) == len(step.streams)
        for row, stream in enumerate(step.streams):
            versions.append(stream.version)
            if stream.block is not block or stream.row != row:
                is_same = False
        step._versions = versions
        return block if is_same else None

    def places(self, streams: list[Stream]) -> Places:
        """Return the locations from which the states of some streams are gathered as rows of a batch."""
        places = Places()
        sources: dict[Block | None, tuple[Block | None, list[int], list[int]]] = {}
        for row, stream in enumerate(streams):
            places.lengths.append(stream.lengths)
            block = stream.block
            if block is None and stream.slot < 0:
                places.others.append((row, stream.stream_id, stream.imported))
                continue
            source = sources.get(block)
            if source is None:
                source = sources[block] = (block, [], [])
            source[1].append(stream.slot if block is None else stream.row)
            source[2].append(row)
        places.sources = list(sources.values())
        return places

    def commit(self, step: Step, block: Block, failed: Collection[int] = ()) -> None:
        """Make the outputs of a step the states of its streams.

        Args:
            step: a step that was located and has not ended.
            block: the outputs, in the order of the step's rows.
            failed: rows of the step that keep their previous state.
        """
        owners: list[Stream | None] = []
        versions = step._versions
        for row, stream in enumerate(step.streams):
            if stream._alive and stream.version == versions[row] and not (failed and row in failed):
                self._free_location(stream, None)
                stream.block = block
                stream.row = row
                if block.lengths is not None:
                    stream.lengths = block.lengths[row]
                owners.append(stream)
                block.live += 1
            else:
                owners.append(None)
        block.streams = owners
        if block.live:
            self._blocks.append(block)

    def end(self, step: Step) -> list[Step]:  # noqa: C901 - calls would cost each batch more than the branches
        """End a step, whether it ran or not.

        Returns:
            The steps that may run now; the caller wakes their waiters.
        """
        if step.ended:
            return []
        if step.pending:
            step.abandoned = True
            return []
        ready: list[Step] = []
        ending = [step]
        while ending:
            current = ending.pop()
            current.ended = True
            for stream in current.streams:
                if stream._tail is current:
                    stream._tail = None
                    if stream._alive and stream.block is None and stream.slot < 0 and stream.imported is None:
                        self._remove(stream)  # it has no state but the initial one
            for slot in current._slots_to_free:
                self._free.append(slot)
            current._slots_to_free = []
            for dependent in current._dependents:
                dependent.pending -= 1
                if dependent.pending == 0:
                    if dependent.abandoned:
                        ending.append(dependent)
                    else:
                        ready.append(dependent)
            current._dependents = []
            current._latest_dependent = None
            current._group = None  # breaks a cycle: the group contains this step
        return ready

    def begin_write_back(self, keep: int) -> WriteBack | None:
        """Choose the oldest block to be written back to the arena, if there are more than ``keep`` blocks.

        Args:
            keep: number of blocks that are kept.

        Returns:
            The rows and their new slots, for :meth:`end_write_back`; ``None``: few blocks, or too few free slots.
        """
        if len(self._blocks) <= keep:
            return None
        block = self._blocks[0]
        if block.live > self.capacity - self.slots_in_use:
            return None
        del self._blocks[0]
        work = WriteBack(block)
        for row, stream in enumerate(block.streams):
            if stream is not None:
                work.rows.append(row)
                work.slots.append(self._take_slot())
        return work

    def end_write_back(self, work: WriteBack, copied: bool) -> None:
        """Move the streams of a block to their slots in the arena, except those that have moved on meanwhile.

        Args:
            work: result of :meth:`begin_write_back`.
            copied: the rows were copied to their slots; otherwise the block stays.
        """
        for row, slot in zip(work.rows, work.slots, strict=True):
            stream = work.block.streams[row]
            if copied and stream is not None:
                lengths = stream.lengths
                self._free_location(stream, None)
                stream.lengths = lengths
                stream.slot = slot
            else:
                self._free.append(slot)
        if not copied and work.block.live:
            self._blocks.insert(0, work.block)

    def reset(self, stream_id: Hashable) -> None:
        """Let the next step of a stream start from the initial state."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        self._discard_state(stream)
        if stream._tail is None:
            self._remove(stream)

    def drop(self, stream_id: Hashable) -> None:
        """Forget a stream."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._discard_state(stream)
            self._remove(stream)

    def put(self, stream_id: Hashable, state: Any, now_ns: int) -> bool:
        """Let the next step of a stream start from a given state; return false if there is no place for the stream."""
        stream = self._streams.get(stream_id)
        if stream is None:
            if len(self._streams) >= self.max_streams:
                self.rejected += 1
                return False
            stream = Stream(stream_id, now_ns)
            self._streams[stream_id] = stream
        else:
            self._discard_state(stream)
            self._streams.move_to_end(stream_id)
            stream.seen_ns = now_ns
        stream.imported = state
        self.imported += 1
        return True

    def clear(self) -> None:
        """Forget every stream."""
        for stream_id in list(self._streams):
            self.drop(stream_id)

    def restart(self) -> None:
        """Let every stream start from the initial state."""
        for stream_id in list(self._streams):
            self.reset(stream_id)

    def expire(self, before_ns: int, now_ns: int) -> int:
        """Forget the streams that were last seen at ``before_ns`` or earlier and have no step.

        Args:
            before_ns: latest instant at which a forgotten stream was seen.
            now_ns: the present: streams with a step count as seen now.

        Returns:
            The instant at which the longest idle of the other streams was seen; -1: no stream is left.
        """
        for _ in range(len(self._streams)):  # at most once around: each leaves, or goes to the end
            stream = next(iter(self._streams.values()))
            if stream.seen_ns > before_ns:
                return stream.seen_ns
            if stream._tail is not None:
                stream.seen_ns = now_ns
                self._streams.move_to_end(stream.stream_id)
                continue
            self._discard_state(stream)
            self._remove(stream)
            self.expired += 1
        return now_ns if self._streams else -1

    def _remove(self, stream: Stream) -> None:
        stream._alive = False
        del self._streams[stream.stream_id]

    def _discard_state(self, stream: Stream) -> None:
        """Discard the state of a stream, also for a step that runs."""
        stream.version += 1
        self._free_location(stream, stream._tail)

    def _free_location(self, stream: Stream, reader: Step | None) -> None:
        """Free the location of a stream's state; ``reader`` is the last step that may still read it."""
        block = stream.block
        if block is not None:
            block.streams[stream.row] = None
            block.live -= 1
            stream.block = None
            if block.live == 0 and block in self._blocks:
                self._blocks.remove(block)
        elif stream.slot >= 0:
            if reader is None:
                self._free.append(stream.slot)
            else:
                reader._slots_to_free.append(stream.slot)
            stream.slot = -1
        elif stream.imported is not None:
            stream.imported = None
            self.imported -= 1
        stream.lengths = None

    def _take_slot(self) -> int:
        if self._free:
            return self._free.pop()
        self._next_slot += 1
        return self._next_slot - 1

"""Records of the table of streams: a stream, a step of some streams, and the outputs that are the next inputs.

One source, compiled with the C types of ``_step_cy.pxd`` or run uncompiled. Only the table writes attributes that begin
with an underscore.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

__all__ = ["Block", "Places", "Step", "Stream", "WriteBack"]


class Stream:
    """One stream and the location of its state: in a block, in a slot of the arena, imported, or nowhere yet.

    Attributes:
        stream_id: id of the stream in requests.
        block: outputs of the batch of its latest step; ``None``: the state is elsewhere.
        row: row of the block.
        slot: slot of the arena; -1: the state is elsewhere.
        imported: a state that was imported; ``None``: the state is elsewhere.
        lengths: lengths of the growing parts of its state; ``None``: nothing grows, or it is imported or initial.
        seen_ns: when its latest step was registered.
        version: changes when the state is discarded; a step that started with another version does not commit.
    """

    def __init__(self, stream_id: Hashable, seen_ns: int) -> None:
        self.stream_id = stream_id
        self.block: Block | None = None
        self.row = 0
        self.slot = -1
        self.imported: Any = None
        self.lengths: Any = None
        self.seen_ns = seen_ns
        self.version = 0
        self._alive = True
        self._tail: Step | None = None

    @property
    def is_initial(self) -> bool:
        """Whether its next step starts from the initial state."""
        return self.block is None and self.slot < 0 and self.imported is None


class Block:
    """The outputs of one batch, as the next input.

    Args:
        arrays: outputs by name of the state, in the layout of the model.
        size: rows of the arrays, including padding; -1: the arrays cannot be the next input unchanged.
        lengths: lengths of the growing parts, by row; ``None``: nothing grows.

    Attributes:
        streams: stream with its state in each row; ``None``: no stream.
        live: how many rows hold the state of a stream.
    """

    def __init__(self, arrays: Any, size: int, lengths: Any = None) -> None:
        self.arrays = arrays
        self.size = size
        self.lengths = lengths
        self.streams: list[Stream | None] = []
        self.live = 0


class Step:
    """One batch, or a part of it in which no stream occurs twice.

    Attributes:
        streams: streams of its rows.
        rows: positions of the rows in the batch.
        pending: how many steps must end before this one may run.
        waiter: future to wake when the step may run; ``None``: no task waits.
        ended: the step has run, or never will.
        abandoned: the caller no longer waits; the step only keeps the order.
    """

    def __init__(self, group: list[Step], wave: int) -> None:
        self.streams: list[Stream] = []
        self.rows: list[int] = []
        self.pending = 0
        self.waiter: Any = None
        self.ended = False
        self.abandoned = False
        self._group: list[Step] | None = group
        self._repetition = wave
        self._dependents: list[Step] = []
        self._latest_dependent: Step | None = None
        self._slots_to_free: list[int] = []
        self._versions: list[int] = []


class WriteBack:
    """Rows of a block that are written to slots of the arena.

    Attributes:
        block: the block.
        rows: rows of the block.
        slots: slot of each row.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        self.rows: list[int] = []
        self.slots: list[int] = []


class Places:
    """Where the rows of a batch are gathered from.

    Attributes:
        sources: tuples of a block (``None``: the arena), its rows (or slots), and the rows of the batch they become.
        others: tuples for imported and initial states: row of the batch, id of the stream, imported state or ``None``.
        lengths: lengths of the growing states, by row; ``None``: not known.
    """

    def __init__(self) -> None:
        self.sources: list[tuple[Block | None, list[int], list[int]]] = []
        self.others: list[tuple[int, Hashable, Any]] = []
        self.lengths: list[Any] = []

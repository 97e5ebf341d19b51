"""Records of the table of streams: a stream, a step of some of them, and the outputs that are the next inputs.

One source, compiled with the C types of ``_step_cy.pxd`` or run as it is. Only the table writes what begins with an
underscore.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

__all__ = ["Block", "Places", "Step", "Stream", "WriteBack"]


class Stream:
    """One stream and where its state is: in a block, in a slot of the arena, given by hand, or nowhere yet.

    Attributes:
        stream_id: as requests name it.
        block: the outputs of the batch of its latest step; ``None``: it is elsewhere.
        row: of the block.
        slot: of the arena; -1: it is elsewhere.
        given: a state that was imported; ``None``: it is elsewhere.
        lengths: of the parts of its state that grow; ``None``: nothing grows, or its state is given or initial.
        seen_ns: when its latest step was registered.
        version: how often a step that runs lost the right to commit.
    """

    def __init__(self, stream_id: Hashable, seen_ns: int) -> None:
        self.stream_id = stream_id
        self.block: Block | None = None
        self.row = 0
        self.slot = -1
        self.given: Any = None
        self.lengths: Any = None
        self.seen_ns = seen_ns
        self.version = 0
        self._alive = True
        self._tail: Step | None = None

    @property
    def is_initial(self) -> bool:
        """Whether its next step starts from the initial state."""
        return self.block is None and self.slot < 0 and self.given is None


class Block:
    """The outputs of one batch, as the next input.

    Args:
        arrays: by name of the state, in the layout of the model.
        size: rows of the arrays, padding included; -1: it is no input as it is.
        lengths: by row those of the parts that grow; ``None``: nothing grows.

    Attributes:
        streams: by row the stream whose state this is; ``None``: of none.
        live: how many rows hold the state of a stream.
    """

    def __init__(self, arrays: Any, size: int, lengths: Any = None) -> None:
        self.arrays = arrays
        self.size = size
        self.lengths = lengths
        self.streams: list[Stream | None] = []
        self.live = 0


class Step:
    """One batch, or a part of it in which no stream stands twice.

    Attributes:
        streams: of its rows.
        rows: their positions in the batch.
        pending: how many steps must end before it may run.
        waiter: what the shell wakes when it may; ``None``: nothing waits.
        ended: it has run, or never will.
        abandoned: its caller has gone, and it is only there to keep the order.
    """

    def __init__(self, group: list[Step], wave: int) -> None:
        self.streams: list[Stream] = []
        self.rows: list[int] = []
        self.pending = 0
        self.waiter: Any = None
        self.ended = False
        self.abandoned = False
        self._group: list[Step] | None = group
        self._wave = wave
        self._dependents: list[Step] = []
        self._latest_dependent: Step | None = None
        self._orphans: list[int] = []
        self._versions: list[int] = []


class WriteBack:
    """Rows of a block on their way to slots of the arena.

    Attributes:
        block: which one.
        rows: of the block.
        slots: where each goes.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        self.rows: list[int] = []
        self.slots: list[int] = []
        self.streams: list[Stream] = []


class Places:
    """Where the rows of a batch are gathered from.

    Attributes:
        sources: a block, or ``None`` for the arena; rows of it, or slots; and the rows of the batch that these become.
        others: rows of the batch whose state is given, or else initial; the stream's id, and what is given.
        lengths: by row, of the states that grow; ``None``: not known.
    """

    def __init__(self) -> None:
        self.sources: list[tuple[Block | None, list[int], list[int]]] = []
        self.others: list[tuple[int, Hashable, Any]] = []
        self.lengths: list[Any] = []

"""A request, and the batch that it may run in: the two records that the queue and the dispatcher share.

One source, compiled with the C types of ``_ticket_cy.pxd`` or run as it is. Only the queue writes what begins with an
underscore.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from streaminfer._request_cy import Timings
from streaminfer.batching.queue._event_ring_cy import BatchRecord

__all__ = ["NEVER", "UNKNOWN", "Execution", "Ticket", "departed"]

NEVER = 2**63 - 1
"""The deadline of a request that has none."""
UNKNOWN = -1
"""In place of an instant."""


class Ticket:
    """One request, and where its response goes.

    Attributes:
        request: the request; ``None`` once it ended.
        inputs: what it brought, ready to be stacked; ``None`` once it ended.
        future: anything with ``done``, ``set_result`` and ``set_exception``; ``None`` once it ended.
        timings: the :class:`~streaminfer.request.Timings` that the response carries.
        deadline_ns: monotonic instant, :data:`NEVER` without one.
        priority: a lower number is more urgent.
        execution: the running batch it is part of, if any.
        bucket: which of the batcher's length buckets its inputs belong to; 0 without buckets.
        cost: of its row; 0.0 where the batcher does not limit that.
        tag: its place in the order of streams that take turns; only in a `FairQueue`.
    """

    request: Any
    inputs: Any
    future: Any
    timings: Timings
    deadline_ns: int
    priority: int
    execution: Execution | None
    bucket: int
    cost: float
    _arrival: int  # its number in the event ring
    tag: float
    _live: bool  # it has not ended
    _queued: bool
    _held: bool  # it waits for an earlier one of its stream, which is its _previous
    _stream_id: Hashable  # of a stream that is served in order
    _follower: Ticket | None  # the next one of its stream
    _previous: Ticket | None
    _next: Ticket | None

    @property
    def enqueued_ns(self) -> int:
        """Monotonic instant at which it was accepted."""
        return self.timings.enqueued_ns

    @property
    def state(self) -> str:
        """``"queued"``, ``"running"`` or ``"done"``."""
        return "queued" if self._queued or self._held else "running" if self._live else "done"

    def __repr__(self) -> str:
        return f"Ticket({self.request!r}, {self.state})"


class Execution:
    """A batch on a worker.

    Attributes:
        tickets: its requests, in the order of the rows.
        inputs: what each brought, in the same order.
        live: how many of their callers still wait; at 0 the result is not needed.
        started_ns: when they were taken off the queue.
        deadline_ns: their latest deadline, :data:`NEVER` where one has none.
        task: the asyncio task that runs it, where it runs in one.
        abandoned: cancelled because none of its callers was left.
        record: what the event ring keeps of it; ``None``: it is a part of a batch that failed.
        effective_start_ns: from when on it counts as running; later than ``started_ns`` where it was pipelined.
        predecessor_end_ns: when the batch before it ended, if it was pipelined; 0: it was not; :data:`UNKNOWN`:
            nothing is to be learned from what it takes.
        settled_ns: the instant for which a backend has asked which callers still wait, and kept to the answer; 0: none
            has.
        observed: what the observers of batches keep of it; ``None``: there are none.
    """

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.inputs: list[Any] = []
        self.live = 0
        self.started_ns = 0
        self.deadline_ns = 0
        self.task: Any = None
        self.abandoned = False
        self.record: BatchRecord | None = None
        self.effective_start_ns = 0
        self.predecessor_end_ns = 0
        self.settled_ns = 0
        self.observed: Any = None


def departed(tickets: Sequence[Ticket], now_ns: int) -> list[int]:
    """Return the positions of those whose callers wait no longer: they cancelled, or their deadline has passed.

    Their batches end at this instant: a deadline that passes between it and the delivery is met.
    """
    found: list[int] = []
    position = 0
    for ticket in tickets:
        if ticket.execution is not None:
            ticket.execution.settled_ns = now_ns
        if ticket.future is None or ticket.deadline_ns <= now_ns or ticket.future.done():
            found.append(position)
        position += 1
    return found

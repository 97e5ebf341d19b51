"""A request, and the batch in which it may run: the two records that queue and dispatcher share.

One source, compiled with the C types of ``_ticket_cy.pxd`` or run uncompiled. Only the queue writes attributes that
begin with an underscore.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from streaminfer._request_cy import Timings
from streaminfer.batching.queue._event_ring_cy import BatchRecord

__all__ = ["NEVER", "UNKNOWN", "Execution", "Ticket", "abandoned_rows"]

NEVER = 2**63 - 1
"""The deadline of a request without one."""
UNKNOWN = -1
"""Value for an instant that is unknown."""


class Ticket:
    """One request, and the future of its response.

    Attributes:
        request: the request; ``None`` after its end.
        inputs: its inputs, ready to be stacked; ``None`` after its end.
        future: an object with ``done``, ``set_result`` and ``set_exception``; ``None`` after its end.
        timings: the :class:`~streaminfer.request.Timings` of the response.
        deadline_ns: monotonic instant, :data:`NEVER` without one.
        priority: a lower number is more urgent.
        execution: the running batch of the request, if any.
        bucket: the batcher's length bucket for its inputs; 0 without buckets.
        cost: cost of its row; 0.0 if the batcher does not limit costs.
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
    _held: bool  # it is held back by an earlier request of its stream
    _stream_id: Hashable  # its stream, if that is served in order
    _previous: Ticket | None
    _next: Ticket | None

    @property
    def enqueued_ns(self) -> int:
        """Monotonic instant at which the request was accepted."""
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
        inputs: their inputs, in the same order.
        live: how many of their callers still wait; at 0 the result is not needed.
        started_ns: when the tickets left the queue.
        deadline_ns: the latest deadline, :data:`NEVER` if a request has none.
        task: the asyncio task of the batch, if it has one.
        abandoned: it was cancelled because no caller was left.
        record: its record in the event ring; ``None``: it is a part of a batch that failed.
        effective_start_ns: instant from which it counts as running; later than ``started_ns`` if it was pipelined.
        predecessor_end_ns: when the previous batch ended, if this one was pipelined; 0: it was not; :data:`UNKNOWN`:
            its duration teaches nothing.
        settled_ns: the instant at which a backend read which callers still wait, and skipped the others; 0: none has.
        observed: tokens of the batch observers; ``None``: there are none.
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


def abandoned_rows(tickets: Sequence[Ticket], now_ns: int) -> list[int]:
    """Return the positions of tickets without a caller that waits: it cancelled, or the deadline has passed.

    Their batch ends at this instant: a deadline that passes between then and the delivery counts as met.
    """
    positions: list[int] = []
    position = 0
    for ticket in tickets:
        if ticket.execution is not None:
            ticket.execution.settled_ns = now_ns
        if ticket.future is None or ticket.deadline_ns <= now_ns or ticket.future.done():
            positions.append(position)
        position += 1
    return positions

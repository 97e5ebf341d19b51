"""A queue in which streams take turns: none waits behind the backlog of another.

*Design.* Service order within a priority is that of start-time fair queuing instead of arrival. Each ticket has a start
tag: the later of the virtual time and the finish tag of the ticket of its stream before it, which is ``1 / weight``
behind the start of that. The virtual time is the highest start tag of what was released. A ticket is put in front of
those with a higher tag, so the request of a stream that sends now and then stands in front of all but the first of a
backlog. Requests without a ``stream_id`` are one stream together. A stream pays for what is released: a request that
expires, is cancelled or is shed takes its cost back, so that a stream that always sends too much still has its share.

Tags are earlier than that by an allowance of two turns, down to the virtual time. Without it the second of two requests
that a small stream happens to send together would have to let a backlog go first; with it, as long as streams send less
than their share, they are served in the order of arrival, as if the backlog were not there. Tags outlive an empty
queue, because a backlog comes and goes while a stream sends too much. With a row per batch, 24 streams at 54 % of the
capacity and one that fills the rest, p99 of the 24 is 1.13 times what it is without that one, which is what a batch
that cannot be interrupted costs under any order; it is 1.7 times without the allowance.

A policy is shown the first batch in that order, and no more (``horizon``): it decides which of these are released, and
when, by their deadlines; behind them it could trade one stream's requests for another's.

*Invariants.* Tags ascend within a priority. Between two streams with a backlog, the requests released divided by the
weight differ by at most a batch and the allowance. Requests of a stream are in the order of arrival, except that those
behind one that left unserved keep their tags, and a later one may come before them.

*Complexity.* A ticket is moved past those with a higher tag, at most ``max_size`` and usually the backlog of the
greediest stream: some nanoseconds each. Memory for the streams that have used up their allowance, and as many again.

*Reference.* P. Goyal, H. M. Vin and H. Cheng, Start-time Fair Queueing, SIGCOMM 1996.

One source, compiled with the C types of ``_fair_queue_cy.pxd`` or run uncompiled. Not thread-safe, as its base.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

from streaminfer.batching.queue._feasibility_cy import DurationTable
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import Execution, Ticket

__all__ = ["FairQueue"]

_ALLOWANCE = 2.0  # turns of a stream of weight 1
_FEW = 64  # streams that are remembered without a look at what of it matters


class FairQueue(RequestQueue):
    """Every request that a batcher has in flight, the queued ones in fair order.

    Args:
        max_size: how many may be queued.
        weights: of streams, by id, > 0; 1 for others.

    Attributes:
        horizon: how many queued tickets a policy is shown, ≥ 1.
    """

    def __init__(self, max_size: int, weights: Mapping[Hashable, float]) -> None:
        RequestQueue.__init__(self, max_size)
        self.horizon = max_size
        self._weights = dict(weights)
        self._finish_tags: dict[Hashable, float] = {}
        self._many = _FEW
        self._virtual = 0.0

    def __iter__(self) -> Iterator[Ticket]:
        return iter(RequestQueue.first(self, self.queued))

    def first(self, count: int) -> list[Ticket]:
        """The next ``count`` queued tickets in service order, within the horizon."""
        return RequestQueue.first(self, self.horizon if count > self.horizon else count)

    def batch_if_all_on_time(self, table: DurationTable, now_ns: int) -> list[Ticket] | None:
        """The first batch, if all in it are on time."""
        size = min(table.cap, self.horizon, self.queued)
        batch = RequestQueue.first(self, size)
        ends_ns = now_ns + table.durations[size]
        for ticket in batch:
            if ticket.deadline_ns < ends_ns:
                return None
        return batch

    def take(
        self, tickets: Sequence[Ticket], now_ns: int, reason: str, table: DurationTable | None = None
    ) -> Execution:
        """Move tickets from queued to running, as the base class, and the virtual time to theirs."""
        execution = RequestQueue.take(self, tickets, now_ns, reason, table)
        for ticket in execution.tickets:
            if ticket.tag > self._virtual:
                self._virtual = ticket.tag
        return execution

    def end(self, ticket: Ticket) -> bool:
        """End a ticket, as the base class; one that still waits costs its stream nothing."""
        if ticket._queued:
            stream_id = None if ticket.request is None else ticket.request.stream_id
            finish = self._finish_tags.get(stream_id)
            if finish is not None:
                self._finish_tags[stream_id] = finish - 1.0 / self._weights.get(stream_id, 1.0)
        return RequestQueue.end(self, ticket)

    def ahead_of(self, stream_id: Hashable) -> int:
        """Return how many queued tickets would be served before one more of a stream, of any priority."""
        tag = self._tag_of(stream_id)
        ahead = 0
        for level in self._levels:
            ticket = level.head
            while ticket is not None and ticket.tag <= tag:
                ahead += 1
                ticket = ticket._next
        return ahead

    def precedes(self, stream_id: Hashable, ticket: Ticket) -> bool:
        """Return whether one more request of a stream would be served before a waiting one of the same priority."""
        return self._tag_of(stream_id) < (self._tag_of_held(ticket) if ticket._held else ticket.tag)

    def least_urgent(self) -> Ticket | None:
        """The ticket whose turn is last; that of one that is held back is after all that its stream has queued."""
        found = RequestQueue.least_urgent(self)
        if found is None or not found._held:
            return found
        tag = self._tag_of_held(found)
        for ticket in self._order.last_held(found.priority):
            other = self._tag_of_held(ticket)
            if other > tag:
                found = ticket
                tag = other
        for level in self._levels:
            if level.tail is not None and level.priority == found.priority and level.tail.tag > tag:
                return level.tail
        return found

    def _tag_of(self, stream_id: Hashable) -> float:
        tag = self._finish_tags.get(stream_id, 0.0) - _ALLOWANCE
        return tag if tag > self._virtual else self._virtual

    def _tag_of_held(self, ticket: Ticket) -> float:
        """The tag that a ticket is given when it is queued, if those of its stream before it are served."""
        ahead = 0
        before = ticket._previous
        while before is not None and before._held:
            ahead += 1
            before = before._previous
        finish = self._finish_tags.get(ticket._stream_id, 0.0)
        if finish < self._virtual:
            finish = self._virtual
        tag = finish + ahead / self._weights.get(ticket._stream_id, 1.0) - _ALLOWANCE
        return tag if tag > self._virtual else self._virtual

    def _link(self, ticket: Ticket) -> None:
        """Queue a ticket behind those of its priority whose turn is before its."""
        stream_id = None if ticket.request is None else ticket.request.stream_id
        ticket.tag = self._tag_of(stream_id)
        start = self._finish_tags.get(stream_id, 0.0)
        if start < self._virtual:
            start = self._virtual
        self._finish_tags[stream_id] = start + 1.0 / self._weights.get(stream_id, 1.0)
        if len(self._finish_tags) > self._many:
            self._forget_some()
        RequestQueue._link(self, ticket)
        level = self._recent  # where it was put
        before = ticket._previous
        if level is None or before is None or before.tag <= ticket.tag:
            return
        level.tail = before
        before._next = None
        after = before
        while before is not None and before.tag > ticket.tag:
            after = before
            before = before._previous
        ticket._previous = before
        ticket._next = after
        after._previous = ticket
        if before is None:
            level.head = ticket
        else:
            before._next = ticket

    def _forget_some(self) -> None:
        """Forget the streams that would not wait for a turn: their allowance is whole again."""
        kept: dict[Hashable, float] = {}
        for stream_id, finish in self._finish_tags.items():
            if finish > self._virtual + _ALLOWANCE:
                kept[stream_id] = finish  # noqa: PERF403 - a comprehension has a scope, and types, of its own
        self._finish_tags = kept
        self._many = 2 * len(kept) + _FEW

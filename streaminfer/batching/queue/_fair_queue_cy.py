"""A queue in which streams take turns: no stream waits for the backlog of another.

*Design.* Within a priority, the service order is that of start-time fair queuing instead of arrival. Each ticket has a
start tag: the later of the virtual time and the finish tag of its stream's previous ticket. A finish tag is the start
tag plus ``1 / weight``. The virtual time is the highest start tag of the released tickets. A new ticket is inserted
before those with a higher tag, so a request of an infrequent stream comes before all but the first of a backlog.
Requests without a ``stream_id`` count as one stream. A stream pays only for released requests: if a request expires, is
cancelled or is shed, its cost is returned, so a stream that always sends too much still gets its share.

Tags are earlier by an allowance of two turns, but not before the virtual time. Without the allowance, the second of two
requests that a small stream sends together would wait for a backlog. With it, streams that send less than their share
are served in the order of arrival, as if the backlog did not exist. Tags outlive an empty queue, because the backlog of
a stream that sends too much comes and goes. Measured with a row per batch, 24 streams at 54 % of the capacity and one
stream that fills the rest: p99 of the 24 is 1.13 times its value without that stream, which is the cost of a batch that
cannot be interrupted under any order; without the allowance it is 1.7 times.

A policy sees only the first batch in that order (``horizon``), and decides by deadlines which of its requests to
release, and when. If it saw later requests, it could trade one stream's requests for another's.

*Invariants.* Tags ascend within a priority. Between two streams with a backlog, the numbers of released requests
divided by the weights differ by at most a batch and the allowance. Requests of a stream are in the order of arrival,
with one exception: if a request leaves unserved, those after it keep their tags, and a later one may overtake them.

*Complexity.* A ticket is moved past those with a higher tag, at most ``max_size`` and usually the backlog of the
busiest stream: some nanoseconds each. Memory for the streams that have used up their allowance, and as many again.

*Reference.* P. Goyal, H. M. Vin and H. Cheng, Start-time Fair Queueing, SIGCOMM 1996.

One source, compiled with the C types of ``_fair_queue_cy.pxd`` or run uncompiled. Not thread-safe, like its base.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

from streaminfer.batching.queue._feasibility_cy import DurationTable
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import Execution, Ticket

__all__ = ["FairQueue"]

_ALLOWANCE = 2.0  # turns of a stream of weight 1
_MIN_TAGS = 64  # tags of streams that are stored before the first clean-up


class FairQueue(RequestQueue):
    """All requests that a batcher has in flight, the queued ones in fair order.

    Args:
        max_size: how many may be queued.
        weights: weights of streams, by id, > 0; other streams have 1.

    Attributes:
        horizon: how many queued tickets a policy sees, ≥ 1.
    """

    def __init__(self, max_size: int, weights: Mapping[Hashable, float]) -> None:
        RequestQueue.__init__(self, max_size)
        self.horizon = max_size
        self._weights = dict(weights)
        self._finish_tags: dict[Hashable, float] = {}
        self._cleanup_size = _MIN_TAGS
        self._virtual = 0.0

    def __iter__(self) -> Iterator[Ticket]:
        return iter(RequestQueue.first(self, self.queued))

    def first(self, count: int) -> list[Ticket]:
        """Return the next ``count`` queued tickets in service order, within the horizon."""
        return RequestQueue.first(self, self.horizon if count > self.horizon else count)

    def batch_if_all_on_time(self, table: DurationTable, now_ns: int) -> list[Ticket] | None:
        """Return the first batch, or ``None`` if a request in it is late."""
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
        """Move tickets from queued to running, like the base class, and advance the virtual time to their tags."""
        execution = RequestQueue.take(self, tickets, now_ns, reason, table)
        for ticket in execution.tickets:
            if ticket.tag > self._virtual:
                self._virtual = ticket.tag
        return execution

    def end(self, ticket: Ticket) -> bool:
        """End a ticket, like the base class; a queued ticket costs its stream nothing."""
        if ticket._queued:
            stream_id = None if ticket.request is None else ticket.request.stream_id
            finish = self._finish_tags.get(stream_id)
            if finish is not None:
                self._finish_tags[stream_id] = finish - 1.0 / self._weights.get(stream_id, 1.0)
        return RequestQueue.end(self, ticket)

    def ahead_of(self, stream_id: Hashable, priority: int) -> int:
        """Return how many queued tickets would be served before another one of a stream and priority."""
        tag = self._tag_of(stream_id)
        ahead = 0
        for level in self._levels:
            ticket = level.head if level.priority <= priority else None
            while ticket is not None and (ticket.tag <= tag or level.priority < priority):
                ahead += 1
                ticket = ticket._next
        return ahead

    def precedes(self, stream_id: Hashable, ticket: Ticket) -> bool:
        """Return whether a new request of a stream would be served before a ticket of the same priority."""
        return self._tag_of(stream_id) < (self._tag_of_held(ticket) if ticket._held else ticket.tag)

    def least_urgent(self) -> Ticket | None:
        """Return the ticket to be served last; one that is held back comes after all queued ones of its stream."""
        last = RequestQueue.least_urgent(self)
        if last is None or not last._held:
            return last
        tag = self._tag_of_held(last)
        for ticket in self._order.last_held(last.priority):
            other = self._tag_of_held(ticket)
            if other > tag:
                last = ticket
                tag = other
        for level in self._levels:
            if level.tail is not None and level.priority == last.priority and level.tail.tag > tag:
                return level.tail
        return last

    def _tag_of(self, stream_id: Hashable) -> float:
        finish = self._finish_tags.get(stream_id, 0.0)
        return max(finish - _ALLOWANCE, self._virtual)

    def _tag_of_held(self, ticket: Ticket) -> float:
        """Return the tag that the last held ticket of a stream gets in the queue, if those ahead of it are served."""
        stream_id = ticket._stream_id
        finish = self._finish_tags.get(stream_id, 0.0)
        turns = (self._order.held_in(stream_id) - 1) / self._weights.get(stream_id, 1.0)
        return max(max(finish, self._virtual) + turns - _ALLOWANCE, self._virtual)

    def _link(self, ticket: Ticket) -> None:
        """Queue a ticket after those of its priority that are served before it."""
        stream_id = None if ticket.request is None else ticket.request.stream_id
        ticket.tag = self._tag_of(stream_id)
        finish = self._finish_tags.get(stream_id, 0.0)
        self._finish_tags[stream_id] = max(finish, self._virtual) + 1.0 / self._weights.get(stream_id, 1.0)
        if len(self._finish_tags) > self._cleanup_size:
            self._forget_some()
        RequestQueue._link(self, ticket)
        level = self._recent  # the level to which it was added
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
        """Forget the streams that would not wait for a turn, because they have their whole allowance again."""
        retained: dict[Hashable, float] = {}
        for stream_id, finish in self._finish_tags.items():
            if finish > self._virtual + _ALLOWANCE:
                retained[stream_id] = finish  # noqa: PERF403 - a comprehension has a scope, and types, of its own
        self._finish_tags = retained
        self._cleanup_size = 2 * len(retained) + _MIN_TAGS

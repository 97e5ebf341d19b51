"""The requests that a batcher has in flight: queued in service order, or running, each with its deadline.

Several views of one set of tickets answer different questions, each at the lowest cost.

* *Which request is next?* A first-in-first-out list per priority, doubly linked through the tickets themselves: a
  cancelled or expired ticket leaves the middle in O(1), without a scan.
* *Which request expires next?* A list by deadline of queued and running tickets (``_deadlines_cy``).
* *How many?* Counters; recent arrivals are in the event ring (``_event_ring_cy``).

* *Which request of a stream may run?* If the model has state per stream, a request is *held back* while an earlier one
  of its stream is live (``_stream_order_cy``): it is in no list, and is queued when the earlier one ends.

Invariants, which the property tests check: a ticket is queued, then may run, then has ended, and never returns; ``end``
returns true once per ticket; ``len`` counts the queued ones; order of arrival holds within a priority; every live
ticket with a deadline is in the list by deadline.

One source, compiled with the C types of ``_queue_cy.pxd`` or run uncompiled. Synchronous, takes the time as an
argument, not thread-safe: one event loop, or one simulation, owns a queue.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from streaminfer._request_cy import Timings
from streaminfer.batching.queue._deadlines_cy import DeadlineOrder
from streaminfer.batching.queue._event_ring_cy import EventRing
from streaminfer.batching.queue._feasibility_cy import DurationTable
from streaminfer.batching.queue._stream_order_cy import StreamOrder
from streaminfer.batching.queue._ticket_cy import NEVER, Execution, Ticket
from streaminfer.errors import StreamInferError, copy_error, for_caller

__all__ = ["RequestQueue"]

# C variables in the compiled module, not visible from Python
_NEVER = NEVER
_MAX_EMPTY_LEVELS = 16
_MOST_URGENT_PRIORITY = -(2**31)  # the most urgent priority
_NEWEST_WEIGHT = 0.2  # weight of the newest batch in the recent mean


class _Level:
    """The queued tickets of one priority, oldest first."""

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.head: Ticket | None = None
        self.tail: Ticket | None = None
        self.count = 0
        self.with_deadline = 0


class RequestQueue:
    """All requests that a batcher has in flight.

    Args:
        max_size: how many may be queued; the caller checks :attr:`full` before :meth:`admit`.

    Attributes:
        events: recent arrivals, releases and drops; the queue notes the arrivals.
        queued: how many are queued.
        running: how many are in running batches.
        succeeded: how many got a result so far.
        failed: how many got an exception as their row so far.
        batch_s: recent mean duration of delivered batches in seconds, over about the last ten; 0.0 before the first.
    """

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self.queued = 0
        self.running = 0
        self.events = EventRing()
        self.succeeded = 0
        self.failed = 0
        self.batch_s = 0.0
        self._levels: list[_Level] = []
        self._recent: _Level | None = None
        self._deadlines = DeadlineOrder()
        self._order = StreamOrder()

    def __len__(self) -> int:
        return self.queued

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self.first(self.queued))

    @property
    def full(self) -> bool:
        """Whether the queue has no place for another request."""
        return self.queued + self._order.held_back >= self.max_size

    @property
    def held_back(self) -> int:
        """Number of requests that are held back by an earlier one of their stream."""
        return self._order.held_back

    @property
    def several_priorities(self) -> bool:
        """Whether requests of more than one priority are queued."""
        return self._several_priorities()

    @property
    def oldest_ns(self) -> int:
        """Instant at which the longest queued request was accepted; :data:`NEVER` if none is queued."""
        return self._oldest()

    def admit(
        self,
        request: Any,
        inputs: Any,
        future: Any,
        now_ns: int,
        deadline_ns: int,
        priority: int,
        bucket: int = 0,
        stream_id: Hashable = None,
    ) -> Ticket:
        """Accept a request, after the queued ones of the same priority.

        Args:
            request: the request.
            inputs: its inputs, ready to be stacked.
            future: future of its response.
            now_ns: the present instant.
            deadline_ns: deadline of the request.
            priority: priority of the request.
            bucket: bucket of its inputs.
            stream_id: stream whose earlier requests hold this one back; ``None``: it may be served at any time.
        """
        ticket = Ticket.__new__(Ticket)
        ticket.request = request
        ticket.inputs = inputs
        ticket.future = future
        ticket.timings = Timings(now_ns)
        ticket.deadline_ns = deadline_ns
        ticket.priority = priority
        ticket.execution = None
        ticket.bucket = bucket
        ticket.cost = 0.0
        ticket._live = True
        ticket._held = False
        ticket._previous = None
        ticket._next = None
        ticket._stream_id = None
        if stream_id is not None and self._order.join(ticket, stream_id):
            ticket._queued = False
        else:
            self._link(ticket)
        if ticket.deadline_ns != _NEVER:
            self.events.arrived(now_ns, ticket.deadline_ns - now_ns, ticket.priority)
            self._deadlines.push(ticket)
        else:
            self.events.arrived(now_ns, 0, ticket.priority)
        ticket._arrival = self.events.arrivals - 1
        return ticket

    def first(self, count: int) -> list[Ticket]:
        """Return the next ``count`` queued tickets in service order: by priority, then by arrival."""
        tickets: list[Ticket] = []
        remaining = count
        for level in self._levels:
            ticket = level.head
            while ticket is not None:
                if remaining <= 0:
                    return tickets
                remaining -= 1
                tickets.append(ticket)
                ticket = ticket._next
        return tickets

    def batch_if_all_on_time(self, table: DurationTable, now_ns: int) -> list[Ticket] | None:
        """Return the first full batch if the whole queue, cut into full batches in its order, is on time.

        Args:
            table: durations of batches by size.
            now_ns: when that first batch would start.

        Returns:
            The next tickets in service order, as many as a batch may have; ``None`` if one would be late, or if
            deadlines do not ascend in service order, which is then not the planner's order.
        """
        batch: list[Ticket] = []
        cap = table.cap
        ahead = self.queued
        remaining = 0
        first = True
        time_ns = now_ns
        latest_ns = 0
        for level in self._levels:
            ticket = level.head
            while ticket is not None:
                if ticket.deadline_ns < latest_ns:
                    return None
                latest_ns = ticket.deadline_ns
                if remaining == 0:
                    first = ahead == self.queued
                    remaining = cap if ahead > cap else ahead
                    if time_ns + table.durations[remaining] > latest_ns:
                        return None
                    time_ns += table.steps[remaining]
                    ahead -= remaining
                remaining -= 1
                if first:
                    batch.append(ticket)
                ticket = ticket._next
        return batch

    def ahead_of_deadline(self, priority: int, before_ns: int) -> int:
        """Return how many tickets are served before a new request with a deadline: those with one, by priority.

        Tickets without one that were queued before ``before_ns`` have as large a part of each batch as of the queue.
        Those with a later deadline count too: in full batches, they would be late if the new request came first.
        """
        ahead = overdue = 0
        for level in self._levels:
            if level.priority <= priority:
                ahead += level.with_deadline
            ticket = level.head if level.with_deadline < level.count else None
            while ticket is not None and ticket.timings.enqueued_ns < before_ns:
                overdue += ticket.deadline_ns == _NEVER
                ticket = ticket._next
        return min((ahead + 1) * (self.queued + 1) // (self.queued + 1 - overdue) - 1, self.queued)

    def least_urgent(self) -> Ticket | None:
        """Return the newest ticket of the least urgent priority, to be shed for a more urgent request.

        A ticket that is held back comes first, because its turn is after all queued ones.
        """
        last = None
        for level in self._levels:
            if level.tail is not None:
                last = level.tail
        held = self._order.last_held(_MOST_URGENT_PRIORITY if last is None else last.priority)
        if held:
            last = held[0]
            for ticket in held:
                if ticket._arrival > last._arrival:
                    last = ticket
        return last

    def take(
        self, tickets: Sequence[Ticket], now_ns: int, reason: str, table: DurationTable | None = None
    ) -> Execution:
        """Move tickets from queued to running, except those whose caller has cancelled, and note the batch.

        Args:
            tickets: queued tickets; others are skipped.
            now_ns: the instant that becomes ``timings.started_ns``.
            reason: the reason of the release.
            table: expected durations by size; ``None``: unknown.

        Returns:
            The batch of the tickets that now run, perhaps empty.
        """
        execution = Execution()
        execution.started_ns = execution.effective_start_ns = now_ns
        batch = execution.tickets
        inputs = execution.inputs
        latest_ns = 0
        for ticket in tickets:
            if not ticket._queued or (ticket.future is not None and ticket.future.done()):
                continue  # cancelled a moment ago: its caller is about to end the ticket
            self._unlink(ticket)
            ticket._queued = False
            ticket.execution = execution
            ticket.timings.started_ns = now_ns
            if ticket.deadline_ns > latest_ns:
                latest_ns = ticket.deadline_ns
            batch.append(ticket)
            inputs.append(ticket.inputs)
        execution.deadline_ns = latest_ns
        execution.live = len(batch)
        if execution.live:
            self.running += execution.live
            record = self.events.released(now_ns, execution.live, reason, self.queued)
            execution.record = record
            for ticket in batch:
                self.events.joined(ticket._arrival, record)
            if table is not None and execution.live <= table.cap:
                record.expected_ns = table.durations[execution.live]
        return execution

    def end(self, ticket: Ticket) -> bool:
        """End a ticket in any state.

        Returns:
            Whether it was live: if so, the caller of this method must settle the future.
        """
        if not ticket._live:
            return False
        if ticket._queued:
            self._unlink(ticket)
        elif ticket._held:
            self._order.leave(ticket)
        self._finish(ticket)
        return True

    def held(self) -> list[Ticket]:
        """Return the requests that are held back by an earlier one of their stream."""
        return self._order.held()

    def expire(self, now_ns: int) -> list[tuple[Any, Execution | None, Timings]]:
        """End the live tickets whose deadline is now or past, earliest first.

        Returns:
            For each: the future that must get an error, the running batch of the ticket if any, and its timings.
        """
        late: list[tuple[Any, Execution | None, Timings]] = []
        while True:
            ticket = self._deadlines.earliest()
            if ticket is None or ticket.deadline_ns > now_ns:
                return late
            late.append((ticket.future, ticket.execution, ticket.timings))
            self.end(ticket)

    @property
    def next_deadline_ns(self) -> int:
        """The earliest deadline of a live ticket; :data:`NEVER` if there is none."""
        return self._deadlines.next_ns()

    def deliver(self, execution: Execution, rows: list[Any], assembled_ns: int, inferred_ns: int) -> None:
        """Deliver the rows of a finished batch to the callers that still wait.

        Args:
            execution: the batch.
            rows: as many results as the batch has tickets; a row that is an exception fails only its caller.
            assembled_ns: when the inputs were assembled.
            inferred_ns: when the model had returned.
        """
        self.events.finished(execution.record, inferred_ns, True)
        duration_s = (inferred_ns - execution.effective_start_ns) / 1e9
        self.batch_s = self.batch_s + _NEWEST_WEIGHT * (duration_s - self.batch_s) if self.batch_s else duration_s
        tickets = execution.tickets
        size = len(tickets)
        for index in range(size):
            ticket = tickets[index]
            row = rows[index]
            if not ticket._live:
                continue
            future = ticket.future
            if future.done():
                continue  # cancelled a moment ago: its caller is about to end the ticket
            self._finish(ticket)
            timings = ticket.timings
            timings.assembled_ns = assembled_ns
            timings.inferred_ns = inferred_ns
            timings.batch_size = size
            if isinstance(row, BaseException):
                self.failed += 1
                if not isinstance(row, Exception) or isinstance(row, StopIteration):
                    row = for_caller(row, "the batch function")  # futures do not accept these two classes
                else:
                    row = copy_error(row)  # the same object may be the row of several callers, and of later batches
                if isinstance(row, StreamInferError):
                    row.timings = timings
                future.set_exception(row)
            else:
                self.succeeded += 1
                future.set_result(row)

    def _several_priorities(self) -> bool:
        count = 0
        for level in self._levels:
            count += level.count > 0
        return count > 1

    def _oldest(self) -> int:
        oldest = _NEVER
        for level in self._levels:
            ticket = level.head
            if ticket is not None and ticket.timings.enqueued_ns < oldest:
                oldest = ticket.timings.enqueued_ns
        return oldest

    def _level_of(self, priority: int) -> _Level:
        level = self._recent
        if level is not None and level.priority == priority:
            return level
        if len(self._levels) > _MAX_EMPTY_LEVELS:
            self._levels = [level for level in self._levels if level.count]
        position = 0
        for level in self._levels:
            if level.priority >= priority:
                break
            position += 1
        if level is None or level.priority != priority:
            level = _Level(priority)
            self._levels.insert(position, level)
        self._recent = level
        return level

    def _link(self, ticket: Ticket) -> None:
        level = self._level_of(ticket.priority)
        tail = level.tail
        if tail is None:
            level.head = ticket
        else:
            tail._next = ticket
            ticket._previous = tail
        level.tail = ticket
        level.count += 1
        level.with_deadline += ticket.deadline_ns != _NEVER
        self.queued += 1
        ticket._queued = True

    def _unlink(self, ticket: Ticket) -> None:
        level = self._level_of(ticket.priority)
        before = ticket._previous
        after = ticket._next
        if before is None:
            level.head = after
        else:
            before._next = after
        if after is None:
            level.tail = before
        else:
            after._previous = before
        ticket._previous = None
        ticket._next = None
        level.count -= 1
        level.with_deadline -= ticket.deadline_ns != _NEVER
        self.queued -= 1

    def _finish(self, ticket: Ticket) -> None:
        execution = ticket.execution
        if execution is not None:
            self.running -= 1
            execution.live -= 1
        ticket._live = False
        ticket._queued = False
        ticket.request = None
        ticket.inputs = None
        ticket.future = None
        ticket.execution = None
        if ticket.deadline_ns != _NEVER:
            self._deadlines.ended()
        if ticket._stream_id is not None:
            after = self._order.pass_turn(ticket)
            if after is not None:
                self._link(after)

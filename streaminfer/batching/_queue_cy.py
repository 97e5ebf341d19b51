"""The requests that a batcher has in hand: waiting in service order, or running, each with its deadline.

The idea: three views of one set of tickets, so that each question costs what it must and no more.

* *Who is next?* A first-in-first-out list per priority, doubly linked through the tickets themselves: a cancelled or
  expired ticket leaves the middle in O(1), nothing is scanned and nothing stays behind.
* *Who expires next?* A binary heap by deadline over waiting and running tickets. A ticket that ends stays in the heap
  as a husk (its request, inputs and future dropped) until it surfaces or until husks outnumber live tickets, when the
  heap is rebuilt: O(1) amortised. With equal time limits deadlines arrive in ascending order and a push costs one
  comparison.
* *How many?* Counters.

Invariants, which the property tests check: a ticket is WAITING, then perhaps RUNNING, then DONE, never back;
``end`` says yes once per ticket; ``len`` counts the WAITING ones; order of arrival holds within a priority; every live
ticket with a deadline is in the heap.

One source, compiled with the C types of ``_queue_cy.pxd`` or run as it is. Synchronous, takes the time as an
argument, not thread-safe: one event loop, or one simulation, owns a queue.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, MutableSequence, Sequence
from typing import Any

from streaminfer._request_cy import Timings
from streaminfer.errors import for_caller

__all__ = ["NEVER", "RequestQueue", "Run", "Ticket"]

NEVER = 2**63 - 1
"""The deadline of a request that has none."""

# C variables in the compiled module, not visible from Python
_NEVER = NEVER
_WAITING = 0
_RUNNING = 1
_DONE = 2
_HUSKS_KEPT = 64
_LIMITS_KEPT = 64  # a power of two
_EMPTY_LEVELS_KEPT = 16
_NEWEST = 0.2  # its weight in the recent mean


class Ticket:
    """One request in hand, and where its answer goes.

    Attributes:
        request: the request; ``None`` once it ended.
        inputs: what it brought, ready to be stacked; ``None`` once it ended.
        future: anything with ``done``, ``set_result`` and ``set_exception``; ``None`` once it ended.
        timings: the :class:`~streaminfer.request.Timings` that the answer carries.
        deadline_ns: monotonic instant, :data:`NEVER` without one.
        priority: a lower number is more urgent.
        run: the running batch it is part of, if any.
    """

    __slots__ = (
        "__weakref__",
        "_next",
        "_previous",
        "_state",
        "deadline_ns",
        "future",
        "inputs",
        "priority",
        "request",
        "run",
        "timings",
    )

    request: Any
    inputs: Any
    future: Any
    timings: Timings
    deadline_ns: int
    priority: int
    run: Run | None
    _state: int
    _previous: Ticket | None
    _next: Ticket | None

    @property
    def enqueued_ns(self) -> int:
        """Monotonic instant at which it was accepted."""
        return self.timings.enqueued_ns

    @property
    def state(self) -> str:
        """``"waiting"``, ``"running"`` or ``"done"``."""
        return ("waiting", "running", "done")[self._state]

    def __repr__(self) -> str:
        return f"Ticket({self.request!r}, {self.state})"


class Run:
    """A batch on a worker.

    Attributes:
        tickets: its requests, in the order of the rows.
        inputs: what each brought, in the same order.
        live: how many of them still wait for their answer; at 0 nobody needs the result.
        started_ns: when they were taken off the queue.
        deadline_ns: their latest deadline, :data:`NEVER` where one has none.
        task: the asyncio task that runs it, where it runs in one.
        abandoned: cancelled because nobody waits for it any more.
        begun: whether that task has taken its first step; before, cancelling it would skip its clean-up.
    """

    __slots__ = ("abandoned", "begun", "deadline_ns", "inputs", "live", "started_ns", "task", "tickets")

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.inputs: list[Any] = []
        self.live = 0
        self.started_ns = 0
        self.deadline_ns = 0
        self.task: Any = None
        self.begun = False
        self.abandoned = False

    def __repr__(self) -> str:
        return f"Run({len(self.tickets)} rows, {self.live} live)"


class _Level:
    """The waiting tickets of one priority, oldest first."""

    __slots__ = ("count", "head", "priority", "tail")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.head: Ticket | None = None
        self.tail: Ticket | None = None
        self.count = 0


class RequestQueue:
    """Every request that a batcher has in hand.

    Args:
        max_size: how many may wait; the caller asks :attr:`full` before it admits.

    Attributes:
        admitted: how many were taken in hand so far.
        waiting: how many wait now.
        running: how many are part of running batches now.
        answered: how many were delivered a result so far.
        failed: how many were delivered an exception as their row so far.
        batch_s: recent mean duration of delivered batches in seconds, about the last ten; 0.0 before the first.
    """

    __slots__ = (
        "_heap",
        "_husks",
        "_levels",
        "_limits",
        "_recent",
        "admitted",
        "answered",
        "batch_s",
        "failed",
        "max_size",
        "running",
        "waiting",
    )

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self.waiting = 0
        self.running = 0
        self._limits: MutableSequence[int] = array("q", [0]) * _LIMITS_KEPT
        self.admitted = 0
        self.answered = 0
        self.failed = 0
        self.batch_s = 0.0
        self._levels: list[_Level] = []
        self._recent: _Level | None = None
        self._heap: list[Ticket] = []
        self._husks = 0

    def __len__(self) -> int:
        return self.waiting

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self.first(self.waiting))

    @property
    def full(self) -> bool:
        """No place for another waiting request."""
        return self.waiting >= self.max_size

    @property
    def oldest_ns(self) -> int:
        """When the longest waiting request was accepted; :data:`NEVER` where none waits."""
        return self._oldest()

    def admit(self, request: Any, inputs: Any, future: Any, now_ns: int, deadline_ns: int, priority: int) -> Ticket:
        """Takes a request in hand, behind those that wait with the same priority."""
        ticket = Ticket.__new__(Ticket)
        ticket.request = request
        ticket.inputs = inputs
        ticket.future = future
        ticket.timings = Timings(now_ns)
        ticket.deadline_ns = deadline_ns
        ticket.priority = priority
        ticket.run = None
        ticket._state = _WAITING
        ticket._previous = None
        ticket._next = None
        level = self._recent
        if level is None or level.priority != ticket.priority:
            level = self._level_of(ticket.priority)
            self._recent = level
        tail = level.tail
        if tail is None:
            level.head = ticket
        else:
            tail._next = ticket
            ticket._previous = tail
        level.tail = ticket
        level.count += 1
        self.waiting += 1
        if ticket.deadline_ns != _NEVER:
            self._limits[self.admitted & (_LIMITS_KEPT - 1)] = ticket.deadline_ns - now_ns
            self._push(ticket)
        else:
            self._limits[self.admitted & (_LIMITS_KEPT - 1)] = 0
        self.admitted += 1
        return ticket

    def recent_limits_ns(self) -> list[int]:
        """The time limits that the latest requests brought, up to 64 of them, in no particular order."""
        return [limit for limit in self._limits if limit > 0]

    def first(self, count: int) -> list[Ticket]:
        """The next ``count`` waiting tickets in service order: by priority, then by arrival."""
        tickets: list[Ticket] = []
        left = count
        for level in self._levels:
            ticket = level.head
            while ticket is not None:
                if left <= 0:
                    return tickets
                left -= 1
                tickets.append(ticket)
                ticket = ticket._next
        return tickets

    def least_urgent(self) -> Ticket | None:
        """The newest ticket of the least urgent priority: the one to give way when a more urgent request comes."""
        found = None
        for level in self._levels:
            if level.tail is not None:
                found = level.tail
        return found

    def take(self, tickets: Sequence[Ticket], now_ns: int) -> Run:
        """Moves tickets from waiting to running, but for those whose caller has gone; these end.

        Args:
            tickets: waiting tickets; any that does not wait is passed over.
            now_ns: the instant that becomes ``timings.started_ns``.

        Returns:
            The tickets that now run, perhaps none.
        """
        run = Run()
        run.started_ns = now_ns
        taken = run.tickets
        inputs = run.inputs
        latest_ns = 0
        for ticket in tickets:
            if ticket._state != _WAITING:
                continue
            if ticket.future is not None and ticket.future.done():
                continue  # cancelled a moment ago: its caller is about to end the ticket
            self._unlink(ticket)
            ticket._state = _RUNNING
            ticket.run = run
            ticket.timings.started_ns = now_ns
            if ticket.deadline_ns > latest_ns:
                latest_ns = ticket.deadline_ns
            taken.append(ticket)
            inputs.append(ticket.inputs)
        run.deadline_ns = latest_ns
        run.live = len(taken)
        self.running += run.live
        return run

    def end(self, ticket: Ticket) -> bool:
        """Ends a ticket, wherever it is.

        Returns:
            Whether it was live: the one who gets ``True`` owes the caller an answer.
        """
        if ticket._state == _DONE:
            return False
        if ticket._state == _WAITING:
            self._unlink(ticket)
        else:
            self._leave(ticket)
        self._finish(ticket)
        return True

    def expire(self, now_ns: int) -> list[tuple[Any, Run | None, Timings]]:
        """Ends the live tickets whose deadline is now or past, earliest first.

        Returns:
            Of each: the future that is owed an error, the running batch it was part of, and its timings.
        """
        late: list[tuple[Any, Run | None, Timings]] = []
        while True:
            ticket = self._earliest()
            if ticket is None or ticket.deadline_ns > now_ns:
                return late
            late.append((ticket.future, ticket.run, ticket.timings))
            self.end(ticket)

    @property
    def next_deadline_ns(self) -> int:
        """The earliest deadline of a live ticket; :data:`NEVER` where there is none."""
        return self._next_deadline()

    def deliver(self, run: Run, rows: list[Any], assembled_ns: int, inferred_ns: int) -> None:
        """Hands each caller that still waits its row of a finished batch.

        Args:
            run: the batch.
            rows: as many results as the batch has tickets; a row that is an exception goes to its caller alone.
            assembled_ns: when the inputs stood together.
            inferred_ns: when the model had answered.
        """
        duration_s = (inferred_ns - run.started_ns) / 1e9
        self.batch_s = self.batch_s + _NEWEST * (duration_s - self.batch_s) if self.batch_s else duration_s
        tickets = run.tickets
        size = len(tickets)
        for index in range(size):
            ticket = tickets[index]
            row = rows[index]
            if ticket._state != _RUNNING:
                continue
            future = ticket.future
            if future.done():
                continue  # cancelled a moment ago: its caller is about to end the ticket
            self._leave(ticket)
            self._finish(ticket)
            timings = ticket.timings
            timings.assembled_ns = assembled_ns
            timings.inferred_ns = inferred_ns
            timings.batch_size = size
            if isinstance(row, BaseException):
                self.failed += 1
                if not isinstance(row, Exception) or isinstance(row, StopIteration):
                    row = for_caller(row, "the batch function")  # a future refuses these two
                future.set_exception(row)
            else:
                self.answered += 1
                future.set_result(row)

    def _oldest(self) -> int:
        oldest = _NEVER
        for level in self._levels:
            ticket = level.head
            if ticket is not None and ticket.timings.enqueued_ns < oldest:
                oldest = ticket.timings.enqueued_ns
        return oldest

    def _next_deadline(self) -> int:
        ticket = self._earliest()
        return _NEVER if ticket is None else ticket.deadline_ns

    def _level_of(self, priority: int) -> _Level:
        position = 0
        for level in self._levels:
            if level.priority == priority:
                return level
            if level.priority > priority:
                break
            position += 1
        if len(self._levels) > _EMPTY_LEVELS_KEPT:
            self._levels = [level for level in self._levels if level.count]
            position = 0
            for level in self._levels:
                if level.priority > priority:
                    break
                position += 1
        fresh = _Level(priority)
        self._levels.insert(position, fresh)
        return fresh

    def _unlink(self, ticket: Ticket) -> None:
        level = self._recent
        if level is None or level.priority != ticket.priority:
            level = self._level_of(ticket.priority)
            self._recent = level
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
        self.waiting -= 1

    def _leave(self, ticket: Ticket) -> None:
        self.running -= 1
        run = ticket.run
        if run is not None:
            run.live -= 1

    def _finish(self, ticket: Ticket) -> None:
        ticket._state = _DONE
        ticket.request = None
        ticket.inputs = None
        ticket.future = None
        ticket.run = None
        if ticket.deadline_ns != _NEVER:
            self._husks += 1
            if self._husks > _HUSKS_KEPT and self._husks * 2 > len(self._heap):
                self._rebuild()

    def _earliest(self) -> Ticket | None:
        while self._heap:
            ticket = self._heap[0]
            if ticket._state != _DONE:
                return ticket
            self._pop()
            self._husks -= 1
        return None

    def _rebuild(self) -> None:
        live: list[Ticket] = []
        for ticket in self._heap:
            if ticket._state != _DONE:
                live.append(ticket)  # noqa: PERF401 - a comprehension has a scope, and types, of its own
        self._heap = live
        self._husks = 0
        for position in range(len(self._heap) // 2 - 1, -1, -1):
            self._sift_down(position)

    def _push(self, ticket: Ticket) -> None:
        heap = self._heap
        heap.append(ticket)
        position = len(heap) - 1
        while position > 0:
            parent_position = (position - 1) >> 1
            parent = heap[parent_position]
            if parent.deadline_ns <= ticket.deadline_ns:
                break
            heap[position] = parent
            position = parent_position
        heap[position] = ticket

    def _pop(self) -> None:
        heap = self._heap
        last = heap.pop()
        if heap:
            heap[0] = last
            self._sift_down(0)

    def _sift_down(self, start: int) -> None:
        heap = self._heap
        size = len(heap)
        position = start
        ticket = heap[position]
        while True:
            child_position = 2 * position + 1
            if child_position >= size:
                break
            child = heap[child_position]
            if child_position + 1 < size:
                sibling = heap[child_position + 1]
                if sibling.deadline_ns < child.deadline_ns:
                    child = sibling
                    child_position += 1
            if ticket.deadline_ns <= child.deadline_ns:
                break
            heap[position] = child
            position = child_position
        heap[position] = ticket

"""Callers that send their next request soon after the end of their batch, as in a closed loop.

*Idea.* Callers that each wait for a response before they send the next request are served soonest in one batch, because
a batch has a fixed cost. Callers in two batches stay in two: while one batch runs, the callers of the other one return
and are queued, so that its worker never has all of them. So the batcher measures how many of a batch's callers return
in the first half of the time until the next batch ends, and how soon. If most do, the next batch waits until they are
there, provided that one batch for all saves over twice the time that the wait is expected to take. This holds for
callers in the same process, which return within a few iterations of the event loop, and for clients of a server, which
return after a round trip.

*Invariants.* A wait ends when as many requests have arrived as are expected, after twice the usual delay plus an eighth
of a batch's duration, and in any case after the duration of a batch. It puts no deadline in danger, neither of a queued
request nor of one that comes during the next batch with as little time as recent ones. Requests of several priorities
do not wait, because an urgent one could not interrupt the larger batch, nor do those of live streams, whose sources
send at their own pace. On a shared device no model waits while another one has queued requests. Arrivals that are
independent of the batches hardly ever wait, because only half of them come in the first half. After a wait in vain,
because the requests did not fit into one batch, some batches do not wait.

*Complexity.* Per batch linear in its requests, about a nanosecond each. Compiled with the C types of
``_returning_callers_cy.pxd`` or run uncompiled.
"""

from __future__ import annotations

from typing import Any

from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER, Execution

__all__ = ["ReturningCallers"]

_FEW = 0.25  # share of callers that return at once, below which a batch does not wait until callers have woken
_NEWEST_WEIGHT = 0.1  # weight of the newest batch in the share that returns at once
_NEWEST_DELAY_WEIGHT = 0.05  # the same, in the share that returns soon and its delay
_MOST = 0.8  # share of callers that return, from which on batches wait; 0.5 for independent arrivals
_NEVER = NEVER  # a C variable in the compiled module
_PAUSE = 32  # batches without a wait, at first and after a wait in vain
_SPLIT_NS = 1_000_000_000  # time for which a session counts as present after it read the next batch


class ReturningCallers:
    """How many of a batch's callers send another request soon, and whether the next batch waits for them.

    Not thread-safe: it belongs to one event loop at a time.

    Args:
        queue: the queued requests.
        expected_ns: returns the expected nanoseconds of a batch of so many requests; 0: unknown.

    Attributes:
        at_once: share of the callers that return when they wake, the mean over recent batches; 1 at first.
        share: share of the callers that return soon, the mean over recent batches; 1 at first.
        until_ns: end of the last wait at the latest.
        is_waiting: a batch has waited and is not sent yet.
    """

    def __init__(self, queue: RequestQueue, expected_ns: Any) -> None:
        self._queue = queue
        self._events = queue.events
        self._expected_ns = expected_ns
        self.at_once = 1.0
        self.share = 1.0
        self.until_ns = 0
        self.is_waiting = False
        self._delay_ns = 0.0
        self._end_ns = 0
        self._duration_ns = 0
        self._size = 0
        self._is_stream = False
        self._arrivals = 0
        self._pause = _PAUSE
        self._split_ns = -_SPLIT_NS

    @property
    def are_few(self) -> bool:
        """Whether so few return at once that a batch need not even wait until callers have woken."""
        return self.at_once < _FEW

    def woken(self) -> None:
        """Learn how many callers of the last batch have returned at once, now that they have woken."""
        returned = min(self._events.arrivals - self._arrivals, self._size)
        self.at_once += _NEWEST_WEIGHT * (returned / self._size - self.at_once)

    def ended(self, execution: Execution, now_ns: int) -> None:
        """Learn from the arrivals since the batch before, now that another one has ended.

        Args:
            execution: the batch that ended.
            now_ns: its end.
        """
        events = self._events
        if self._size:
            arrived = events.arrivals - self._arrivals
            returned = events.arrived_until(self._arrivals, (self._end_ns + now_ns) // 2, self._size)
            self.share += _NEWEST_DELAY_WEIGHT * (returned / max(arrived, self._size) - self.share)
            if returned:
                delay_ns = events.arrival_ns(self._arrivals + returned - 1) - self._end_ns
                self._delay_ns += _NEWEST_DELAY_WEIGHT * (delay_ns - self._delay_ns)
        ticket = execution.tickets[0]
        request = ticket.request
        self._is_stream = request is not None and request.stream_id is not None
        self._size = len(execution.tickets)
        self._arrivals = events.arrivals
        self._end_ns = now_ns
        self._duration_ns = now_ns - execution.effective_start_ns
        if self._pause:
            self._pause -= 1

    def should_wait(self, now_ns: int, full_at: int) -> bool:
        """Return whether the next batch of the only worker waits for callers, until :attr:`until_ns` at most.

        Args:
            now_ns: the present instant.
            full_at: number of queued requests that make a full batch.
        """
        if self.share < _MOST or self._pause or self._is_stream:
            return False
        queue = self._queue
        queued = queue.queued
        missing = int(self.share * self._size + 0.5) - (self._events.arrivals - self._arrivals)
        if missing <= 0 or queued + missing > full_at or queue.several_priorities:
            return False
        together_ns = self._expected_ns(queued + missing)
        saved_ns = self._expected_ns(queued) + self._expected_ns(missing) - together_ns
        batch_ns = min(self._expected_ns(self._size), self._duration_ns)
        left_ns = max(self._end_ns + self._delay_ns - now_ns, 0.0)
        self.until_ns = self._end_ns + min(int(2 * self._delay_ns) + batch_ns // 8, batch_ns)
        if saved_ns <= 2 * left_ns or now_ns >= self.until_ns:
            return False
        end_ns = self.until_ns + together_ns
        # a request that comes when the batch has just begun runs after it
        limit_ns = min(self._events.recent_limits_ns(), default=_NEVER)
        if queue.next_deadline_ns < end_ns or limit_ns < end_ns - now_ns + self._expected_ns(1):
            return False
        self.is_waiting = True
        return True

    def sent(self, is_whole: bool) -> None:
        """Note that the batch that waited was sent.

        Args:
            is_whole: it took all queued requests; otherwise they do not fit into one batch.
        """
        self.is_waiting = False
        if not is_whole:
            self._pause = _PAUSE

    def record_split(self, now_ns: int) -> None:
        """Record that a session read the next batch, to split its frames among the workers."""
        self._split_ns = now_ns

    def sharing_workers(self, free: int, now_ns: int) -> int:
        """Return how many of the free workers may share the queue: one if a session splits its frames itself."""
        return 1 if now_ns - self._split_ns < _SPLIT_NS else free

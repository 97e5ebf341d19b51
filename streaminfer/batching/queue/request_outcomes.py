"""Outcomes of requests that complete without a response: each is counted once, and its future settled."""

from collections.abc import Iterable, Sequence

from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import Run, Ticket
from streaminfer.errors import Closed, DeadlineExceeded, Overloaded, for_caller

__all__ = ["RequestOutcomes"]


class RequestOutcomes:
    """Completes requests of one queue with an error.

    Not thread-safe. A ticket that has completed already is left alone, and a future that its caller has cancelled is
    counted as cancelled.

    Args:
        queue: the queue.
        source: name of the model, for messages.

    Attributes:
        failed: requests that got an error of their batch.
        deadline_exceeded: requests whose deadline passed.
        cancelled: requests that their caller cancelled.
        rejected: requests that the policy rejected.
        closed: requests that a stop ended, or that came after it.
        overloaded: requests that the queue had no place for, or that made room for a more urgent one.
    """

    __slots__ = (
        *("_events", "_queue", "_source"),
        *("cancelled", "closed", "deadline_exceeded", "failed", "overloaded", "rejected"),
    )

    def __init__(self, queue: RequestQueue, source: str) -> None:
        self._queue = queue
        self._events = queue.journal
        self._source = source
        self.failed = 0
        self.deadline_exceeded = 0
        self.cancelled = 0
        self.rejected = 0
        self.closed = 0
        self.overloaded = 0

    def fail(self, tickets: Iterable[Ticket], error: BaseException) -> None:
        """Complete requests with copies of an error."""
        for ticket in tickets:
            future = ticket.future
            if self._queue.end(ticket):
                if future.done():
                    self.cancelled += 1
                else:
                    self.failed += 1
                    future.set_exception(for_caller(error, self._source))

    def reject(self, tickets: Sequence[Ticket], rejection: str, now_ns: int) -> None:
        """Complete queued requests that the policy rejects.

        Args:
            tickets: the requests.
            rejection: the reason, and after a colon what the callers are told.
            now_ns: the present instant.
        """
        reason, _, message = rejection.partition(":")
        rejected = 0
        for ticket in tickets:
            future, left_s = ticket.future, (ticket.deadline_ns - now_ns) / 1e9
            if self._queue.end(ticket):
                rejected += 1
                if not future.done():
                    future.set_exception(DeadlineExceeded(f"refused with {left_s:.6f} s left:{message}"))
        self.rejected += rejected
        self._events.dropped(now_ns, reason, rejected)

    def shed(self, ticket: Ticket, now_ns: int, message: str, retry_after_s: float | None) -> None:
        """Complete a queued request that makes room for a more urgent one."""
        self.overloaded += 1
        self._events.dropped(now_ns, "displaced", 1)
        future = ticket.future
        self._queue.end(ticket)
        if not future.done():
            future.set_exception(
                Overloaded(f"displaced by a more urgent request; {message}", retry_after_s=retry_after_s)
            )

    def expire(self, now_ns: int) -> list[Run]:
        """Complete the requests whose deadline has passed.

        Returns:
            The batches that some of them were part of.
        """
        batches = []
        for future, run, timings in self._queue.expire(now_ns):
            if future.done():
                self.cancelled += 1
            else:
                self.deadline_exceeded += 1
                self._events.dropped(now_ns, "expired_waiting" if run is None else "expired_running", 1)
                where = "waiting" if run is None else "its batch was running"
                waited_s = (now_ns - timings.enqueued_ns) / 1e9
                future.set_exception(
                    DeadlineExceeded(
                        f"the deadline passed {waited_s:.6f} s after {self._source} got the request, {where}"
                    )
                )
            if run is not None:
                batches.append(run)
        return batches

    def drop_cancelled(self, ticket: Ticket) -> None:
        """Complete a request if its caller has cancelled its future."""
        if ticket.future is not None and ticket.future.done() and self._queue.end(ticket):
            self.cancelled += 1

    def close(self, tickets: Iterable[Ticket]) -> None:
        """Complete requests because their service stops."""
        for ticket in tickets:
            future = ticket.future
            if self._queue.end(ticket):
                if future.done():
                    self.cancelled += 1
                else:
                    self.closed += 1
                    future.set_exception(Closed("the batcher stopped before it could answer"))

    def forget(self, tickets: Iterable[Ticket]) -> None:
        """Complete requests whose event loop was closed: their futures can no longer be settled."""
        for ticket in tickets:
            if self._queue.end(ticket):
                self.closed += 1

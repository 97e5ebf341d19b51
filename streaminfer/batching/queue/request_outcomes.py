"""Outcomes of requests that complete without a response: each is counted once, and its future gets the error."""

from collections.abc import Iterable, Sequence
from typing import Any

from streaminfer._request_cy import Timings
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import Execution, Ticket
from streaminfer.errors import Closed, DeadlineExceeded, Overloaded, for_caller

__all__ = ["RequestOutcomes"]


class RequestOutcomes:
    """Completes requests of one queue with an error.

    Not thread-safe. It skips a ticket that has completed already, and counts a future that its caller has cancelled as
    cancelled.

    Args:
        queue: the queue.
        source: name of the model, for messages.

    Attributes:
        failed: requests that got an error of their batch.
        deadline_exceeded: requests whose deadline passed.
        cancelled: requests that their caller cancelled.
        rejected: requests that were rejected, by reason: ``"queue_full"``, ``"shed"``, ``"closed"``, or the policy's.
        closed: requests that a stop ended.
    """

    def __init__(self, queue: RequestQueue, source: str) -> None:
        self._queue = queue
        self._events = queue.events
        self._source = source
        self.failed = 0
        self.deadline_exceeded = 0
        self.cancelled = 0
        self.rejected: dict[str, int] = {}
        self.closed = 0

    def fail(
        self, tickets: Sequence[Ticket], error: BaseException, ended_ns: int = 0, assembled_ns: int | None = None
    ) -> None:
        """Complete requests with copies of an error.

        Args:
            tickets: the requests of a batch, or of a part of it that ran alone.
            error: the error of the model.
            ended_ns: when it was raised; 0: the batch never started.
            assembled_ns: when the inputs were assembled; ``None``: when the batch started.
        """
        for ticket in tickets:
            timings = ticket.timings
            if (future := self._end(ticket)) is not None:
                self.failed += 1
                own = for_caller(error, self._source)
                if ended_ns:
                    started_ns = timings.started_ns
                    own.timings = Timings(
                        timings.enqueued_ns, started_ns, assembled_ns or started_ns, ended_ns, len(tickets)
                    )
                future.set_exception(own)

    def reject(self, tickets: Sequence[Ticket], rejection: str, now_ns: int) -> None:
        """Complete queued requests that the policy rejects.

        Args:
            tickets: the requests.
            rejection: the reason, a colon, and the message for the callers.
            now_ns: the present instant.
        """
        reason, _, message = rejection.partition(":")
        rejected = 0
        for ticket in tickets:
            left_s = (ticket.deadline_ns - now_ns) / 1e9
            if (future := self._end(ticket)) is not None:
                rejected += 1
                future.set_exception(DeadlineExceeded(f"rejected with {left_s:.6f} s left:{message}"))
        self.count_rejected(reason, now_ns, rejected)

    def shed(self, ticket: Ticket, now_ns: int, message: str, retry_after_s: float | None) -> None:
        """Complete a queued request that makes room for another one."""
        if (future := self._end(ticket)) is not None:
            self.count_rejected("shed", now_ns)
            future.set_exception(Overloaded(message, retry_after_s=retry_after_s))

    def count_rejected(self, reason: str, now_ns: int, count: int = 1) -> None:
        """Count rejected requests, for instance those rejected before they were queued."""
        if count:
            self.rejected[reason] = self.rejected.get(reason, 0) + count
            self._events.dropped(now_ns, reason, count)

    def expire(self, now_ns: int) -> list[Execution]:
        """Complete the requests whose deadline has passed.

        Returns:
            The batches of those that were running.
        """
        batches = []
        for future, execution, timings in self._queue.expire(now_ns):
            if future.done():
                self.cancelled += 1
            else:
                self.deadline_exceeded += 1
                stage, where = ("queued", "queued") if execution is None else ("running", "its batch was running")
                self._events.dropped(now_ns, f"deadline_exceeded_{stage}", 1)
                waited_s = (now_ns - timings.enqueued_ns) / 1e9
                message = f"the deadline passed {waited_s:.6f} s after {self._source} got the request, {where}"
                future.set_exception(DeadlineExceeded(message))
            if execution is not None:
                batches.append(execution)
        return batches

    def drop_cancelled(self, ticket: Ticket) -> None:
        """Complete a request if its caller has cancelled its future."""
        if ticket.future is not None and ticket.future.done():
            self._end(ticket)

    def close(self, tickets: Iterable[Ticket]) -> None:
        """Complete requests because their service stops."""
        for ticket in tickets:
            if (future := self._end(ticket)) is not None:
                self.closed += 1
                future.set_exception(Closed("the batcher stopped before it could answer"))

    def forget(self, tickets: Iterable[Ticket]) -> None:
        """Complete requests whose event loop was closed: their futures can no longer be settled."""
        for ticket in tickets:
            if self._queue.end(ticket):
                self.closed += 1

    def _end(self, ticket: Ticket) -> Any:
        """End a request; return its future if it must get an error, which the caller counts; otherwise ``None``."""
        future = ticket.future
        if not self._queue.end(ticket):
            return None
        if future.done():
            self.cancelled += 1
            return None
        return future

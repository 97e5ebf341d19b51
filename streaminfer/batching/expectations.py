"""Predictions of the policy for a queue and its model, and its learning from batches."""

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from streaminfer.batching.pipeline import Pipeline
from streaminfer.batching.policy import Policy, adapt_policy
from streaminfer.batching.queue._fair_queue_cy import FairQueue
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import UNKNOWN, Execution, Ticket
from streaminfer.request import Request

if TYPE_CHECKING:
    from streaminfer.batching.planner.outlook import Outlook

__all__ = ["Expectations"]


class _QueueLength(NamedTuple):
    """The one attribute of a queue that a prediction reads: the number of requests that are served first."""

    queued: int


class Expectations:
    """Predictions of one dispatcher's policy, and the reports from which the policy learns.

    Args:
        queue: the queued requests.
        pipeline: the batch that was sent before a worker was free.

    Attributes:
        offered: the optional methods of the policy.
        plain: requests have no length bucket.
    """

    def __init__(self, queue: RequestQueue, pipeline: Pipeline) -> None:
        self._queue = queue
        self._pipeline = pipeline
        self.plain = True

    def set_policy(self, policy: Policy, *, keeps_queue: bool) -> None:
        """Use another policy from now on.

        Args:
            policy: the new policy.
            keeps_queue: the model has a queue, so the policy may send it batches early.
        """
        offered = adapt_policy(policy)
        if not keeps_queue:
            offered = offered._replace(choose_pipelined=None)
        elif offered.choose_pipelined is not None:
            offered = offered._replace(skip=None)  # pipelining depends on the duration of each single batch
        self.offered = self._pipeline.offered = offered

    def bucket_of(self, tickets: Sequence[Ticket]) -> int:
        """Return the bucket of a batch, that of its longest request."""
        return 0 if self.plain else max(ticket.bucket for ticket in tickets)

    def predicted_finish_ns(
        self, now_ns: int, bucket: int, request: Request, has_slo: bool, running: Iterable[Execution]
    ) -> int | None:
        """Return when a request that arrives now is expected to complete; ``None``: the policy does not predict it.

        Args:
            now_ns: the present, or the instant at which the model is free for the request.
            bucket: bucket of the request.
            request: the request.
            has_slo: a request without a deadline gets one.
            running: the batches that the request must wait for.
        """
        if self.offered.predicted_finish_ns is None:
            return None
        queue = self._queue
        ahead = queue.queued
        if isinstance(queue, FairQueue):
            ahead = queue.ahead_of(request.stream_id, request.priority)
        elif ahead and self.offered.patience_ns is not None and (has_slo or request.deadline_ns is not None):
            ahead = queue.ahead_of_deadline(request.priority, now_ns - self.offered.patience_ns)
        served_first = queue if ahead == queue.queued else _QueueLength(ahead)
        started = self._pipeline.started(running)
        early = self._pipeline.batch
        if early is None:
            return self.offered.predicted_finish_ns(served_first, now_ns, started, bucket)
        return self.offered.predicted_finish_ns(served_first, now_ns, started, bucket, len(early.tickets))

    def upper_estimate_ns(self, size: int) -> int | None:
        """Return the nanoseconds that a slow batch of so many of the longest requests takes; ``None``: unknown."""
        if self.offered.predicted_finish_ns is None:
            return None
        return self.offered.predicted_finish_ns(_QueueLength(size - 1), 0, (), -1)

    def outlook(self, now_ns: int, batch: Sequence[Ticket]) -> "Outlook | None":
        """Return the policy's knowledge of queue and model; ``None``: it has none."""
        return None if self.offered.outlook is None else self.offered.outlook(self._queue, now_ns, batch)

    def rows_of_next_batch(self, full_at: int) -> int:
        """Return the most rows that the next batch can have, at most ``full_at``.

        The policy plans no more rows than have the best throughput, or twice as many if it is time to compare.
        """
        models = self.offered.bucket_models or ()
        rows = [full_at if it.timetable is None else it.timetable.cap << it.compares for it in models]
        return min(full_at, max(rows, default=full_at))

    def expected_of_size_ns(self, size: int, bucket: int = 0) -> int:
        """Return the expected nanoseconds of a batch of so many requests of a bucket; 0: unknown."""
        return 0 if self.offered.expected_ns is None else self.offered.expected_ns(size, bucket)

    def expected_ns(self, execution: Execution) -> int:
        """Return the expected nanoseconds of a batch; 0: unknown."""
        return self.expected_of_size_ns(len(execution.tickets), self.bucket_of(execution.tickets))

    def retry_after_s(self, now_ns: int, batches: float, running: Collection[Execution]) -> float | None:
        """Return the seconds that so many batches take, by recent ones; ``None``: no batch has begun."""
        batch_s = self._queue.batch_s
        if not batch_s:  # before the first batch has ended: the age of the oldest running one
            if not running:
                return None
            batch_s = (now_ns - min(execution.started_ns for execution in running)) / 1e9
        return batch_s * batches

    def learn_from(self, execution: Execution, now_ns: int) -> None:
        """Tell the policy the duration of a batch that ended now."""
        offered = self.offered
        if offered.observe is None or (offered.skip is not None and offered.skip(execution, now_ns)):
            return
        bucket = self.bucket_of(execution.tickets)
        if execution.predecessor_end_ns != UNKNOWN and not self._pipeline.observe(execution, now_ns, bucket):
            offered.observe(
                len(execution.tickets), now_ns - execution.effective_start_ns, now_ns, execution.abandoned, bucket
            )

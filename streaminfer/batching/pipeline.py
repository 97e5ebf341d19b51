"""Pipelining: if the policy wants it, a model with a queue gets one batch more than it has workers.

The extra batch starts when another batch ends; the worker of that batch is then not free but runs the extra one.
"""

from collections.abc import Iterable
from typing import Any

from streaminfer.batching.policy import Decision, PolicyCapabilities
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import UNKNOWN, Execution

__all__ = ["Pipeline"]


class Pipeline:
    """The batch that was sent before a worker was free; belongs to one dispatcher.

    Attributes:
        batch: the batch that has not started; ``None``: there is none.
        sent: how many batches were sent early so far.
        offered: the optional methods of the policy; without ``choose_pipelined`` if the model has no queue.
    """

    def __init__(self) -> None:
        self.batch: Execution | None = None
        self.sent = 0
        self.offered = PolicyCapabilities()

    @property
    def is_open(self) -> bool:
        """Whether a batch may be sent early now."""
        return self.offered.choose_pipelined is not None and self.batch is None

    def propose(self, queue: RequestQueue, now_ns: int, batches: Iterable[Execution]) -> Decision:
        """Return the policy's decision for a batch to send early; an empty one if there is nothing to decide.

        Args:
            queue: the queued requests.
            now_ns: the present instant.
            batches: batches that the model has.
        """
        if self.offered.choose_pipelined is None or not queue.queued:
            return Decision()
        return self.offered.choose_pipelined(queue, now_ns, self.started(batches))

    def take(self, batch: Execution) -> None:
        """Note a batch that was sent early."""
        self.batch = batch
        self.sent += 1

    def started(self, batches: Iterable[Execution]) -> list[tuple[int, int]]:
        """Return effective start and number of rows of each batch that has started."""
        return [(batch.effective_start_ns, len(batch.tickets)) for batch in batches if batch is not self.batch]

    def end(self, execution: Execution, now_ns: int, is_known: bool) -> bool:
        """Note the end of a batch while an early one waits; return whether the worker continues with the early one.

        Args:
            execution: the batch that ended.
            now_ns: instant of its end.
            is_known: whether the model was certainly free for the next batch at that instant; only then is there
                something to learn.
        """
        early, self.batch = self.batch, None
        if early is execution:
            execution.predecessor_end_ns = UNKNOWN  # the early batch ended before its predecessor
            return False
        assert early is not None  # noqa: S101 - the dispatcher has asked
        if self.offered.effective_start_ns is None or not is_known:
            early.effective_start_ns, early.predecessor_end_ns = now_ns, UNKNOWN
        else:
            early.effective_start_ns = self.offered.effective_start_ns(early.started_ns, now_ns)
            early.predecessor_end_ns = now_ns
        return True

    def observe(self, batch: Execution, now_ns: int, bucket: int) -> bool:
        """Tell the policy the duration of a batch that was sent early; return false for any other batch."""
        before_ns: int = batch.predecessor_end_ns
        if before_ns <= 0 or batch.abandoned or self.offered.observe_pipelined is None:
            return False
        early_ns: Any = before_ns - batch.started_ns
        self.offered.observe_pipelined(len(batch.tickets), now_ns - before_ns, now_ns, early_ns, bucket)
        return True

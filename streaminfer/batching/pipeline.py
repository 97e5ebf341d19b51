"""Pipelining: a model that keeps a queue is sent one batch more than it has workers, if the policy says so.

The batch starts when another one ends, whose worker is then not free but goes on with it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from streaminfer.batching.policy import Decision
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import UNKNOWN, Execution

__all__ = ["Pipeline"]


class Pipeline:
    """The batch that was sent before a worker was free, and the policy's part in it; belongs to one dispatcher.

    Attributes:
        batch: the batch that has not started; ``None``: there is none.
        sent: how many batches were sent early so far.
        choose: returns the policy's decision for such a batch; ``None``: the policy or the model has no part in it.
        effective_start_ns: returns from when such a batch counts as running, of when it was sent and when the batch
            before it ended; ``None``: the policy has no part in it.
        learn: tells the policy what such a batch took; ``None``: it does not learn.
    """

    def __init__(self) -> None:
        self.batch: Execution | None = None
        self.sent = 0
        self.choose: Callable[[RequestQueue, int, Sequence[tuple[int, int]]], Decision] | None = None
        self.effective_start_ns: Callable[[int, int], int] | None = None
        self.learn: Callable[[int, int, int, int, int], object] | None = None

    @property
    def is_open(self) -> bool:
        """Whether a batch may be sent now."""
        return self.choose is not None and self.batch is None

    def propose(self, queue: RequestQueue, now_ns: int, batches: Iterable[Execution]) -> Decision | None:
        """Return the policy's decision for a batch that is sent early; ``None``: there is nothing to decide.

        Args:
            queue: the requests.
            now_ns: the present instant.
            batches: that the model has.
        """
        if self.choose is None or not queue.queued:
            return None
        return self.choose(queue, now_ns, self.started(batches))

    def take(self, batch: Execution) -> None:
        """Note a batch that was sent early."""
        self.batch = batch
        self.sent += 1

    def started(self, batches: Iterable[Execution]) -> list[tuple[int, int]]:
        """Return from when each of the batches that have started counts as running, and its rows."""
        return [(batch.effective_start_ns, len(batch.tickets)) for batch in batches if batch is not self.batch]

    def end(self, execution: Execution, now_ns: int, is_known: bool) -> bool:
        """Note the end of a batch while another one is sent early; return whether its worker goes on with that.

        Args:
            execution: that ended.
            now_ns: when.
            is_known: whether the model is free for the next from then on, so that there is something to learn.
        """
        early, self.batch = self.batch, None
        if early is execution:
            execution.predecessor_end_ns = UNKNOWN  # it ended before the one that it was sent behind
            return False
        assert early is not None  # noqa: S101 - the dispatcher has asked
        if self.effective_start_ns is None or not is_known:
            early.effective_start_ns, early.predecessor_end_ns = now_ns, UNKNOWN
        else:
            early.effective_start_ns = self.effective_start_ns(early.started_ns, now_ns)
            early.predecessor_end_ns = now_ns
        return True

    def observe(self, batch: Execution, now_ns: int, bucket: int) -> bool:
        """Tell the policy what a batch took that was sent early; false for any other."""
        before_ns: int = batch.predecessor_end_ns
        if before_ns <= 0 or batch.abandoned or self.learn is None:
            return False
        early_ns: Any = before_ns - batch.started_ns
        self.learn(len(batch.tickets), now_ns - before_ns, now_ns, early_ns, bucket)
        return True

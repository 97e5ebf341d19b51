"""What a preemptive device knows of one model: how urgent it is, what larger batches save, and whether it gives way."""

from collections.abc import Callable

from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER
from streaminfer.protocols import BackgroundRuns

__all__ = ["Claim"]


class Claim:
    """Claim of one model on a device.

    Args:
        queue: its requests.
        expected_ns: returns how long a batch of so many requests is expected to take; 0: not known.
        background_runs: how its batches give way to those of other models; ``None``: they do not.

    Attributes:
        slo_ns: objective of its requests; the greatest number where there is none.
        changed: told of another one, by the device; ``None``: nothing listens.
        full_at: so many queued requests are a full batch.
    """

    __slots__ = ("_background_runs", "_expected_ns", "_queue", "changed", "full_at", "slo_ns")

    def __init__(
        self, queue: RequestQueue, expected_ns: Callable[[int], int], background_runs: BackgroundRuns | None
    ) -> None:
        self._queue = queue
        self._expected_ns = expected_ns
        self._background_runs = background_runs
        self.changed: Callable[[], None] | None = None
        self.slo_ns = NEVER
        self.full_at = NEVER

    def change(self, slo_ns: int | None, full_at: int) -> None:
        """Take over other settings of the batcher."""
        self.slo_ns = NEVER if slo_ns is None else slo_ns
        self.full_at = full_at
        if self.changed is not None:
            self.changed()

    @property
    def obstacle(self) -> str:
        """Why its batches cannot run in the background; empty: they can."""
        return (
            "its backend offers no BackgroundRuns"
            if self._background_runs is None
            else self._background_runs.obstacle()
        )

    def set_background(self, is_background: bool) -> None:
        """Run later batches in the background, or no longer."""
        if self._background_runs is not None:
            self._background_runs.set_background(is_background)

    def raise_running(self) -> None:
        """Let the batches that run go on at the usual priority."""
        if self._background_runs is not None:
            self._background_runs.raise_running()

    def yield_running(self) -> None:
        """Let the batches that run in the background give up their core once."""
        if self._background_runs is not None:
            self._background_runs.yield_running()

    def running_ns(self) -> int | None:
        """Return the CPU time that the batch that runs in the background has used; ``None``: it is not known."""
        return None if self._background_runs is None else self._background_runs.running_ns()

    def ended_ns(self) -> int | None:
        """Return the CPU time of the batch of the background that ended last, likewise."""
        return None if self._background_runs is None else self._background_runs.ended_ns()

    @property
    def is_full(self) -> bool:
        """Whether a full batch is queued."""
        return self._queue.queued >= self.full_at

    @property
    def next_deadline_ns(self) -> int:
        """Earliest deadline of a request in flight."""
        return self._queue.next_deadline_ns

    def saving(self) -> float:
        """Return the share of a single request's time that it takes less in a full batch; all where that is not known.

        A model for which larger batches save nothing has 0.
        """
        one_ns, full_ns = self._expected_ns(1), self._expected_ns(self.full_at)
        return max(1.0 - full_ns / (self.full_at * one_ns), 0.0) if one_ns and full_ns else 1.0

"""A preemptive device's knowledge of one model: its urgency, its gain from larger batches, and whether it yields."""

from collections.abc import Callable

from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER
from streaminfer.protocols import BackgroundRuns

__all__ = ["Claim"]

_NO_RUNS = BackgroundRuns(lambda _: None, lambda: None, lambda: "its backend offers no BackgroundRuns")


class Claim:
    """Claim of one model on a device.

    Args:
        queue: the requests of the model.
        expected_ns: returns the expected duration of a batch of so many requests; 0: unknown.
        background_runs: how its batches yield to those of other models; ``None``: they do not.

    Attributes:
        slo_ns: objective of its requests; the largest number if it has none.
        changed: called when the settings change; set by the device; ``None``: no device listens.
        full_at: number of queued requests that make a full batch.
        runs: controls of its running batches; without ``background_runs``, some that do nothing.
    """

    __slots__ = ("_expected_ns", "_queue", "changed", "full_at", "runs", "slo_ns")

    def __init__(
        self, queue: RequestQueue, expected_ns: Callable[[int], int], background_runs: BackgroundRuns | None
    ) -> None:
        self._queue = queue
        self._expected_ns = expected_ns
        self.runs = _NO_RUNS if background_runs is None else background_runs
        self.changed: Callable[[], None] | None = None
        self.slo_ns = NEVER
        self.full_at = NEVER

    def change(self, slo_ns: int | None, full_at: int) -> None:
        """Use other settings of the batcher."""
        self.slo_ns = NEVER if slo_ns is None else slo_ns
        self.full_at = full_at
        if self.changed is not None:
            self.changed()

    @property
    def is_full(self) -> bool:
        """Whether a full batch is queued."""
        return self._queue.queued >= self.full_at

    @property
    def next_deadline_ns(self) -> int:
        """Earliest deadline of a request in flight."""
        return self._queue.next_deadline_ns

    def saving(self) -> float:
        """Return the share of a single request's time that a full batch saves per request; 1 if it is unknown.

        It is 0 for a model that gains nothing from larger batches.
        """
        one_ns, full_ns = self._expected_ns(1), self._expected_ns(self.full_at)
        return max(1.0 - full_ns / (self.full_at * one_ns), 0.0) if one_ns and full_ns else 1.0

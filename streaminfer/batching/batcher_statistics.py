"""Statistics of a batcher."""

from collections.abc import Mapping

import attrs

from streaminfer._internal.snapshot import Snapshot
from streaminfer.batching.device.statistics import DeviceStatistics
from streaminfer.batching.service_time.calibration import CalibrationStatistics

__all__ = ["BatcherStatistics"]


@attrs.frozen(kw_only=True)
class BatcherStatistics(Snapshot):
    """Counters of an `AdaptiveBatcher` since its creation.

    Counting rule: each submitted request is in exactly one of ``queued``, ``running``, ``succeeded``, ``failed``,
    ``deadline_exceeded``, ``cancelled``, ``rejected`` and ``closed``. A cancellation is counted from the next iteration
    of the event loop on. If the request completes in the same iteration in which its caller cancels it, it is counted
    by its outcome.

    Attributes:
        submitted: requests that reached the batcher.
        queued: requests that are not in a batch yet.
        running: requests in running batches whose callers still wait.
        succeeded: requests that got their row.
        failed: requests that got an exception, for their own row or for their whole batch.
        deadline_exceeded: requests whose deadline passed on arrival, while queued or while running.
        cancelled: requests that their caller cancelled.
        rejected: requests that the batcher rejected, by reason: ``"queue_full"``; ``"shed"``: made room for a more
            urgent one, or with ``fair`` for a stream with a shorter backlog; ``"infeasible"``: would miss the deadline,
            by the policy's prediction; ``"closed"``: arrived after the stop.
        closed: requests that the stop of the service ended.
        batches: batches released so far.
        running_batches: batches that are running.
        abandoned_batches: batches cancelled because no caller was left.
        pipelined: batches sent before a worker was free, to a model with a queue.
        split_batches: batches that failed and were sent again in parts, so that a bad row failed alone.
        memory_limits: the most rows that fit into memory, by length bucket (0 without buckets); only for buckets in
            which a batch ran out of memory.
        batch_sizes: number of batches by size at their release.
        released: how many batches were released, by reason: ``"full"``, ``"idle_worker"``, ``"max_queue_delay"``,
            ``"planned"``, ``"probe"``, ``"exploration"``, ``"returning_callers"``.
        batch_s: recent mean duration of a batch in seconds, exponentially weighted; 0.0 before the first.
        calibration: measurements of the latest start, whose batches and requests are not counted above. ``None`` before
            a start, or if the backend offers no example inputs.
        device: statistics of the `Device` that the batcher shares with others; ``None``: it shares none.
    """

    submitted: int
    queued: int
    running: int
    succeeded: int
    failed: int
    deadline_exceeded: int
    cancelled: int
    rejected: Mapping[str, int]
    closed: int
    batches: int
    running_batches: int
    abandoned_batches: int
    pipelined: int
    split_batches: int
    memory_limits: Mapping[int, int]
    batch_sizes: Mapping[int, int]
    released: Mapping[str, int]
    batch_s: float
    calibration: CalibrationStatistics | None = None
    device: DeviceStatistics | None = None

    @property
    def mean_batch_size(self) -> float:
        """Mean number of requests in a batch; 0.0 before the first."""
        return self.rows / self.batches if self.batches else 0.0

    @property
    def rows(self) -> int:
        """Requests in all batches."""
        return sum(size * count for size, count in self.batch_sizes.items())

"""What a batcher did so far, as a frozen snapshot."""

from collections.abc import Mapping

import attrs

from streaminfer._internal.snapshot import Snapshot
from streaminfer.batching.service_time.calibration import CalibrationStatistics

__all__ = ["BatcherStatistics"]


@attrs.frozen(kw_only=True)
class BatcherStatistics(Snapshot):
    """Counters of an `AdaptiveBatcher` since it was made.

    Counting rule: each request that was submitted is in exactly one of ``waiting``, ``running``, ``answered``,
    ``failed``, ``expired``, ``cancelled``, ``overloaded``, ``refused`` and ``closed``. A cancelled caller is counted
    from the next turn of the event loop on; one cancelled in the very turn in which its answer was handed over is
    counted by what it was handed.

    Attributes:
        submitted: requests that reached the batcher.
        waiting: requests that wait for a worker now.
        running: requests in batches that run now and whose callers still wait.
        answered: got their result.
        failed: got an exception, of their own row or of their whole batch.
        expired: reached their deadline, waiting or running.
        cancelled: given up by their caller.
        overloaded: refused because the queue was full, or displaced by a more urgent request.
        refused: refused by the policy because they could not be on time.
        closed: ended by, or refused after, the stop of the service.
        batches: batches released so far.
        running_batches: batches that run now.
        abandoned_batches: batches cancelled because no caller waited for them any more.
        sent_ahead: batches sent before a worker was free, to a model that keeps a queue.
        split_batches: batches that failed and were sent again in parts, so that a bad row failed alone.
        memory_limits: by length bucket (0 without buckets) the most rows of a batch since one ran out of memory.
        batch_sizes: how many batches had which size when they were released.
        released: how many batches went for which reason: ``"full"``, ``"idle_worker"``, ``"delay_elapsed"``.
        batch_s: recent mean duration of a batch in seconds, exponentially weighted; 0.0 before the first.
        calibration: what the latest start measured; its batches and requests are not among those above. ``None`` before
            it, and where the backend has no example of a request.
    """

    submitted: int
    waiting: int
    running: int
    answered: int
    failed: int
    expired: int
    cancelled: int
    overloaded: int
    refused: int
    closed: int
    batches: int
    running_batches: int
    abandoned_batches: int
    sent_ahead: int
    split_batches: int
    memory_limits: Mapping[int, int]
    batch_sizes: Mapping[int, int]
    released: Mapping[str, int]
    batch_s: float
    calibration: CalibrationStatistics | None = None

    @property
    def mean_batch_size(self) -> float:
        """Mean number of requests in a batch; 0.0 before the first."""
        rows = sum(size * count for size, count in self.batch_sizes.items())
        return rows / self.batches if self.batches else 0.0

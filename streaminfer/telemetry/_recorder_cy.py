"""What one request adds to a service's telemetry: five durations, its outcome and its batch size, in one compiled call.

One source, compiled with the C types of ``_recorder_cy.pxd`` or run as it is. In the compiled build under the
interpreter lock each method is atomic: the keys of its dictionaries are plain strings and small integers, which are
hashed and compared in C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streaminfer._request_cy import Response
    from streaminfer.telemetry.histograms._histogram_cy import HistogramState

__all__ = ["Recorder"]


class Recorder:
    """Histograms of the whole latency and of its parts, and how many answers came from batches of which size.

    Args:
        latency: from the call of the service to its answer.
        queued: waiting for a worker and for company.
        assembled: from the release of the batch until its inputs stood together, waiting for a thread included.
        inferred: the model.
        handed_back: from the model's answer until the caller of the service had it.

    Attributes:
        started: requests that came.
        degraded: how many answers were lesser ones.
        errors: how many requests ended without an answer, by the name of the reason.
        batch_sizes: how many answers came from batches of which size.
    """

    __slots__ = (
        "_assembled",
        "_handed_back",
        "_inferred",
        "_latency",
        "_queued",
        "batch_sizes",
        "degraded",
        "errors",
        "started",
    )

    def __init__(
        self,
        latency: HistogramState,
        queued: HistogramState,
        assembled: HistogramState,
        inferred: HistogramState,
        handed_back: HistogramState,
    ) -> None:
        self._latency = latency
        self._queued = queued
        self._assembled = assembled
        self._inferred = inferred
        self._handed_back = handed_back
        self.started = 0
        self.degraded = 0
        self.errors: dict[str, int] = {}
        self.batch_sizes: dict[int, int] = {}

    def begin(self) -> None:
        """Counts a request that came."""
        self.started += 1

    def fail(self, reason: str) -> None:
        """Counts a request that ended without an answer."""
        self.errors[reason] = self.errors.get(reason, 0) + 1

    def answer(self, response: Response, started_ns: int, now_ns: int) -> None:
        """Counts one answer.

        Args:
            response: the answer, with its batch's timings if one took part.
            started_ns: when the service was called.
            now_ns: when its answer came.
        """
        if response.degraded:
            self.degraded += 1
        self.record(started_ns, now_ns)
        timings = response.timings
        if timings is None:
            return
        self._queued.count_ns(max(timings.started_ns - timings.enqueued_ns, 0))
        self._assembled.count_ns(max(timings.assembled_ns - timings.started_ns, 0))
        self._inferred.count_ns(max(timings.inferred_ns - timings.assembled_ns, 0))
        self._handed_back.count_ns(max(now_ns - timings.inferred_ns, 0))
        size = timings.batch_size
        self.batch_sizes[size] = self.batch_sizes.get(size, 0) + 1

    def record(self, started_ns: int, now_ns: int) -> None:
        """Counts one duration that has no parts: a function's."""
        self._latency.count_ns(max(now_ns - started_ns, 0))

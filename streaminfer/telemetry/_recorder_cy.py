"""Recorder of one service: five durations, the outcome and the batch size of a request, in one compiled call.

The same source is compiled with the C types of ``_recorder_cy.pxd`` or runs uncompiled. In the compiled build each
method is atomic under the interpreter lock: the keys of its dictionaries are plain strings and small integers, which
are hashed and compared in C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streaminfer._request_cy import Response
    from streaminfer.telemetry.histograms._histogram_cy import HistogramState

__all__ = ["Recorder"]


class Recorder:
    """Histograms of the latency and its parts, and responses by batch size.

    Args:
        latency: time from the call of the service to its response.
        queue: time in the queue, until the batch is released to a worker.
        assembly: time from the release of the batch until its inputs are assembled, including the wait for a thread.
        inference: time of the model.
        delivery: time from the model's return until the caller has the response.

    Attributes:
        started: requests that began.
        degraded: degraded responses.
        errors: requests that completed without a response, by error.
        batch_sizes: responses by the size of their batch.
    """

    def __init__(
        self,
        latency: HistogramState,
        queue: HistogramState,
        assembly: HistogramState,
        inference: HistogramState,
        delivery: HistogramState,
    ) -> None:
        self._latency = latency
        self._queue = queue
        self._assembly = assembly
        self._inference = inference
        self._delivery = delivery
        self.started = 0
        self.degraded = 0
        self.errors: dict[str, int] = {}
        self.batch_sizes: dict[int, int] = {}

    def begin(self) -> None:
        """Count a request."""
        self.started += 1

    def fail(self, reason: str) -> None:
        """Count a request that completed without a response."""
        self.errors[reason] = self.errors.get(reason, 0) + 1

    def responses(self) -> tuple[int, int]:
        """Return the numbers of degraded responses and of all responses, at the same moment."""
        return self.degraded, self._latency.count

    def answer(self, response: Response, started_ns: int, now_ns: int) -> None:
        """Count one response.

        Args:
            response: the response, with the timings of its batch if there was one.
            started_ns: the instant of the call.
            now_ns: the instant of the response.
        """
        if response.degraded:
            self.degraded += 1
        self.record(started_ns, now_ns)
        timings = response.timings
        if timings is None:
            return
        self._queue.count_ns(max(timings.started_ns - timings.enqueued_ns, 0))
        self._assembly.count_ns(max(timings.assembled_ns - timings.started_ns, 0))
        self._inference.count_ns(max(timings.inferred_ns - timings.assembled_ns, 0))
        self._delivery.count_ns(max(now_ns - timings.inferred_ns, 0))
        size = timings.batch_size
        self.batch_sizes[size] = self.batch_sizes.get(size, 0) + 1

    def record(self, started_ns: int, now_ns: int) -> None:
        """Record one duration without parts, such as that of a function."""
        self._latency.count_ns(max(now_ns - started_ns, 0))

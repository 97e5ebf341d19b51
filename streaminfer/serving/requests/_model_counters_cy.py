"""Counters of one model's requests, in the terms of Triton's statistics.

One source, compiled with the C types of ``_model_counters_cy.pxd``, or run as Python.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streaminfer._request_cy import Response

__all__ = ["ModelCounters"]


class ModelCounters:
    """Counts completed requests and the parts of their latency; a part is the mean over the rows of a request."""

    def __init__(self) -> None:
        self._succeeded = self._failed = self._timed = self._rows = 0
        self._succeeded_ns = self._failed_ns = self._queue_ns = self._input_ns = self._infer_ns = 0
        self._output_ns = self._last_ns = 0
        self._batches = 0.0

    def fail(self, took_ns: int) -> None:
        """Count a request that failed.

        Args:
            took_ns: nanoseconds since its arrival.
        """
        self._failed += 1
        self._failed_ns += took_ns

    def succeed(self, responses: list[Response], arrived_ns: int, now_ns: int) -> None:
        """Count a request that succeeded.

        Args:
            responses: one per row.
            arrived_ns: instant of its arrival.
            now_ns: the current instant.
        """
        self._last_ns = time.time_ns()
        self._succeeded += 1
        self._succeeded_ns += now_ns - arrived_ns
        rows = len(responses)
        self._rows += rows
        timed = queue_ns = input_ns = infer_ns = output_ns = 0
        for response in responses:
            timings = response.timings
            if timings is not None:
                timed += 1
                queue_ns += timings.started_ns - timings.enqueued_ns
                input_ns += timings.assembled_ns - timings.started_ns
                infer_ns += timings.inferred_ns - timings.assembled_ns
                output_ns += now_ns - timings.inferred_ns
                if timings.batch_size:
                    self._batches += 1.0 / timings.batch_size
        if timed:
            self._timed += 1
            self._queue_ns += queue_ns // timed
            self._input_ns += input_ns // timed
            self._infer_ns += infer_ns // timed
            self._output_ns += output_ns // timed

    def statistics(self) -> dict[str, Any]:
        """Return the counts and durations."""
        parts = {
            "success": (self._succeeded, self._succeeded_ns),
            "fail": (self._failed, self._failed_ns),
            "queue": (self._timed, self._queue_ns),
            "compute_input": (self._timed, self._input_ns),
            "compute_infer": (self._timed, self._infer_ns),
            "compute_output": (self._timed, self._output_ns),
            "cache_hit": (0, 0),
            "cache_miss": (0, 0),
        }
        return {
            "last_inference": self._last_ns // 1_000_000,
            "inference_count": self._rows,
            "execution_count": round(self._batches),
            "inference_stats": {name: {"count": count, "ns": ns} for name, (count, ns) in parts.items()},
            "batch_stats": [],
        }

"""How a guard reads an objective that its user may have written: what it raises is no failure of a request."""

from __future__ import annotations

from typing import Any

from streaminfer._internal.listeners import LISTENER_ERRORS, ListenerFailures
from streaminfer.telemetry.objectives.feeding import FeedingCheck

__all__ = ["SloReader"]


class SloReader:
    """Reads an `SLO`, or what stands for one, and logs its first failure. Thread-safe.

    Args:
        slo: has ``burning()`` and, where a limit reads it, ``threshold_s``; ``None``: it never burns.
        reader: what reads it, for the log.
    """

    def __init__(self, slo: Any, reader: str) -> None:
        self._slo = slo
        self._feeding = FeedingCheck(slo, reader)
        self._failures = ListenerFailures("streaminfer.telemetry", reader)
        self._threshold_ns = 0.0

    def burning(self, requests: int) -> bool:
        """Return whether the budget burns; not, where ``burning()`` raises.

        Args:
            requests: how many the reader has had.
        """
        if self._slo is None:
            return False
        self._feeding.look(requests)
        try:
            return bool(self._slo.burning())
        except LISTENER_ERRORS as failure:
            self._failures.report(self._slo, "burning()", failure)
            return False

    def threshold_ns(self) -> float:
        """Return the objective in nanoseconds; the last one that could be read, where ``threshold_s`` raises."""
        try:
            self._threshold_ns = self._slo.threshold_s * 1e9
        except LISTENER_ERRORS as failure:
            self._failures.report(self._slo, "threshold_s", failure)
        return self._threshold_ns

"""Reader of an objective for guards: errors of a user's own objective do not fail requests."""

from __future__ import annotations

from typing import Any

from streaminfer._internal.error_log import Log
from streaminfer._internal.listeners import LISTENER_ERRORS, ListenerFailures
from streaminfer._runtime.objective import CountsEvents

__all__ = ["SloReader"]

_LOG_NAME = "streaminfer.telemetry"
_LOGGER = Log(_LOG_NAME)
_REQUESTS = 100  # by then, a caller that records events itself has recorded some


class SloReader:
    """Reads an `SLO` or a similar object, and logs its first failure. Thread-safe.

    The reader also logs one warning if the objective has no event after a hundred requests: its budget would never
    burn.

    Args:
        slo: an object with ``burning()`` and, for a limit, ``threshold_s``; ``None``: it never burns.
        reader: name of the reader, for the log.
    """

    def __init__(self, slo: Any, reader: str) -> None:
        self._slo = slo
        self._reader = reader
        self._may_lack_events = isinstance(slo, CountsEvents)
        self._failures = ListenerFailures(_LOG_NAME, reader)
        self._threshold_ns = 0.0

    def burning(self, requests: int) -> bool:
        """Return whether the budget burns; false if ``burning()`` raises.

        Args:
            requests: number of requests of the reader so far.
        """
        if self._slo is None:
            return False
        if self._may_lack_events and requests >= _REQUESTS:
            self._check_events(requests)
        try:
            return bool(self._slo.burning())
        except LISTENER_ERRORS as failure:
            self._failures.report(self._slo, "burning()", failure)
            return False

    def threshold_ns(self) -> float:
        """Return the threshold in nanoseconds; if ``threshold_s`` raises, the last one read, or 0."""
        try:
            self._threshold_ns = self._slo.threshold_s * 1e9
        except LISTENER_ERRORS as failure:
            self._failures.report(self._slo, "threshold_s", failure)
        return self._threshold_ns

    def _check_events(self, requests: int) -> None:
        self._may_lack_events = False
        if self._slo.total == 0:
            text = "%s reads SLO %r, which has had no event in %d requests; give the same SLO to a Telemetry in front"
            _LOGGER.warning(text, self._reader, self._slo.name, requests)

"""Warning for an objective that a guard reads and no telemetry feeds."""

from __future__ import annotations

import logging
from typing import Any

from streaminfer._runtime.objective import CountsEvents

__all__ = ["FeedingCheck"]

_REQUESTS = 100  # a caller that records by hand has done so by then
_LOGGER = logging.getLogger("streaminfer.telemetry")


class FeedingCheck:
    """Logs one warning where an `SLO` has had no event after a hundred requests: its budget can never burn.

    Args:
        slo: the objective; one that does not count its events is not checked.
        reader: what reads it, for the warning.
    """

    def __init__(self, slo: Any, reader: str) -> None:
        self._slo = slo
        self._reader = reader
        self._is_due = isinstance(slo, CountsEvents)

    def look(self, requests: int) -> None:
        """Warns once, if there were enough requests.

        Args:
            requests: how many the reader has had.
        """
        if not self._is_due or requests < _REQUESTS:
            return
        self._is_due = False
        if self._slo.total == 0:
            _LOGGER.warning(
                "%s reads SLO %r, which has had no event in %d requests; give the same SLO to a Telemetry in front",
                self._reader,
                self._slo.name,
                requests,
            )

"""A service whose every request a `Telemetry` records.

Compiled, since it runs twice per request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streaminfer._internal.listeners import LISTENER_ERRORS
from streaminfer.sync_layer import SyncService

if TYPE_CHECKING:
    from streaminfer.protocols import Clock
    from streaminfer.request import Request, Response

__all__ = ["RecordedService"]


class RecordedService(SyncService):
    """A service whose every request is recorded.

    Args:
        telemetry: the `Telemetry`, which makes this.
        inner: the service.
    """

    sees_invalid = True

    def __init__(self, telemetry: Any, inner: Any) -> None:
        super().__init__(inner, telemetry)
        self._telemetry = telemetry
        self._begin = telemetry.begin
        self._answer = telemetry.answer

    @property
    def clock(self) -> Clock:
        """Return the clock of the telemetry."""
        clock: Clock = self._telemetry.clock
        return clock

    def enter(self, request: Request, now_ns: int) -> int:  # noqa: ARG002 - any request counts
        """Count the request."""
        try:
            self._begin()
        except LISTENER_ERRORS as failure:
            self._telemetry._failures.report(self._telemetry, "the begin of a request", failure)
        return now_ns

    def exit(self, request: Request, token: int, outcome: Response | BaseException, now_ns: int) -> None:  # noqa: ARG002
        """Record how it ended."""
        if isinstance(outcome, BaseException):
            self._telemetry._fail_safely(outcome)
            return
        try:
            self._answer(outcome, token, now_ns)
        except LISTENER_ERRORS as failure:
            self._telemetry._failures.report(self._telemetry, "a response", failure)

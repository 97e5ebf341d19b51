"""Service wrapper through which a `Telemetry` records every request.

The module is compiled, because it runs twice per request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streaminfer._internal.listeners import LISTENER_ERRORS
from streaminfer.request import time_left_s
from streaminfer.sync_layer import SyncService

if TYPE_CHECKING:
    from streaminfer.protocols import Clock
    from streaminfer.request import Request, Response
    from streaminfer.telemetry.families._labeled_recorder_cy import LabeledRecorder

__all__ = ["RecordedService"]


class RecordedService(SyncService):
    """Wrapper of a service that records every request.

    Args:
        telemetry: the `Telemetry` that made this object.
        inner: the service.
        labeled: recorder by labels; ``None``: no labels.
    """

    sees_invalid = True

    def __init__(self, telemetry: Any, inner: Any, labeled: LabeledRecorder | None) -> None:
        super().__init__(inner, telemetry)
        self._telemetry = telemetry
        self._begin = telemetry.begin
        self._answer = telemetry.answer
        self._labeled = labeled

    @property
    def clock(self) -> Clock:
        """Clock of the telemetry."""
        clock: Clock = self._telemetry.clock
        return clock

    def enter(self, request: Request, now_ns: int) -> int:  # noqa: ARG002 - any request counts
        """Count the request."""
        try:
            self._begin()
        except LISTENER_ERRORS as failure:
            self._telemetry._failures.report(self._telemetry, "the begin of a request", failure)
        return now_ns

    def exit(self, request: Request, token: int, outcome: Response | BaseException, now_ns: int) -> None:
        """Record the outcome of the request."""
        if isinstance(outcome, BaseException):
            self._telemetry._fail_safely(outcome, time_left_s(request.deadline_ns, token))
        else:
            try:
                self._answer(outcome, token, now_ns)
            except LISTENER_ERRORS as failure:
                self._telemetry._failures.report(self._telemetry, "a response", failure)
        if self._labeled is not None:
            self._record_labels(self._labeled, request, token, outcome, now_ns)

    def _record_labels(
        self, labeled: LabeledRecorder, request: Request, token: int, outcome: Response | BaseException, now_ns: int
    ) -> None:
        try:
            if isinstance(outcome, BaseException):
                labeled.fail(request, self._telemetry.reason_of(outcome))
            else:
                labeled.answer(request, outcome, token, now_ns)
        except LISTENER_ERRORS as failure:
            self._telemetry._failures.report(self._telemetry, "a request by labels", failure)

"""Outcome of an attempt at a route that gave no response."""

import asyncio
from typing import Any, NamedTuple

from streaminfer.errors import BackendError, CircuitOpen, Closed, DeadlineExceeded, InvalidInput, Overloaded
from streaminfer.protocols import AdmissionReason
from streaminfer.routing.fallback._attempts_cy import Attempt
from streaminfer.routing.fallback._route_share_cy import BAD, IGNORED, LATE

__all__ = ["AttemptOutcome", "classify"]

_BY_ERROR: tuple[tuple[type[BaseException], str, int], ...] = (
    (Overloaded, "rejected", IGNORED),
    (CircuitOpen, AdmissionReason.CIRCUIT_OPEN, IGNORED),
    (InvalidInput, "invalid", IGNORED),
    (DeadlineExceeded, AdmissionReason.DEADLINE_EXCEEDED, LATE),
    (Closed, AdmissionReason.CLOSED, BAD),
    (Exception, "failed", BAD),
)
"""Outcomes by error, of which the first class that fits counts; any error but an ``Exception`` ends the request."""


class AttemptOutcome(NamedTuple):
    """The end of an attempt without a response.

    Attributes:
        reason: one word for statistics and for ``Response.source``.
        effect: effect on the route's share: ``BAD``, ``LATE`` or ``IGNORED``.
        error: the error that ends the request if no other route responds.
        final: no other route is tried.
    """

    reason: str
    effect: int
    error: BaseException
    final: bool = False


def classify(
    name: str, attempt: Attempt, error: BaseException, task: "asyncio.Task[Any]", now_ns: int, *, stopping: bool
) -> AttemptOutcome:
    """Return the outcome of an attempt; takes back the router's own interruption of the task.

    Args:
        name: name of the route.
        attempt: the attempt.
        error: error that the route raised.
        task: task of the caller.
        now_ns: the present instant.
        stopping: the router stops and has interrupted all attempts.
    """
    cancelled = isinstance(error, asyncio.CancelledError)
    cancellations = task.uncancel() if attempt.interrupted else task.cancelling()
    if cancellations > attempt.cancellations:  # it was cancelled from outside the router too
        return AttemptOutcome("cancelled", IGNORED, error, final=True)
    if attempt.interrupted and cancelled:
        if stopping:
            closed = Closed("the router stopped before the response")
            return AttemptOutcome(AdmissionReason.CLOSED, IGNORED, closed, final=True)
        elapsed_s = (now_ns - attempt.started_ns) / 1e9
        return AttemptOutcome(
            "attempt_timeout", LATE, DeadlineExceeded(f"route {name!r} had not responded after {elapsed_s:.6f} s")
        )
    if cancelled:  # by the route itself
        failure = BackendError(f"route {name!r} was cancelled from inside")
        failure.__cause__ = error
        return AttemptOutcome("failed", BAD, failure)
    for kind, reason, effect in _BY_ERROR:
        if isinstance(error, kind):
            return AttemptOutcome(reason, effect, error, final=stopping or reason == "invalid")
    return AttemptOutcome("cancelled", IGNORED, error, final=True)

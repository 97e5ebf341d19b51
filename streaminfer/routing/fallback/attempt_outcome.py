"""How an attempt at a route ended without an answer: its name, whether it counts, and whether another is asked."""

import asyncio
from typing import Any, NamedTuple

from streaminfer.errors import BackendError, CircuitOpen, Closed, DeadlineExceeded, InvalidInput, Overloaded
from streaminfer.protocols import AdmissionReason
from streaminfer.routing.fallback._attempts_cy import Attempt
from streaminfer.routing.fallback._degradation_cy import BAD, LATE, NEUTRAL

__all__ = ["AttemptOutcome", "classify"]

_TABLE: tuple[tuple[type[BaseException], str, int], ...] = (
    (Overloaded, "overloaded", NEUTRAL),
    (CircuitOpen, AdmissionReason.CIRCUIT_OPEN, NEUTRAL),
    (InvalidInput, "invalid", NEUTRAL),
    (DeadlineExceeded, AdmissionReason.DEADLINE_EXCEEDED, LATE),
    (Closed, AdmissionReason.CLOSED, BAD),
    (Exception, "failed", BAD),
)
"""The first that fits; what is no ``Exception`` ends the request as it is."""


class AttemptOutcome(NamedTuple):
    """The end of an attempt.

    Attributes:
        reason: one word for statistics and for ``Response.source``.
        outcome: of the ladder: ``BAD``, ``LATE`` or ``NEUTRAL``.
        error: what the request ends with if nobody else answers.
        final: nobody else is asked.
    """

    reason: str
    outcome: int
    error: BaseException
    final: bool = False


def classify(
    name: str, attempt: Attempt, error: BaseException, task: "asyncio.Task[Any]", now_ns: int, *, cutting: bool
) -> AttemptOutcome:
    """What the end of an attempt means; takes back the router's own interruption of the task.

    Args:
        name: of the route.
        attempt: the attempt.
        error: what the route raised.
        task: the caller's.
        now_ns: the present instant.
        cutting: the router stops and has interrupted everybody.
    """
    cancelled = isinstance(error, asyncio.CancelledError)
    left = task.uncancel() if attempt.interrupted else task.cancelling()
    if attempt.was_cancelled_too(left):
        return AttemptOutcome("cancelled", NEUTRAL, error, final=True)
    if attempt.interrupted and cancelled:
        if cutting:
            return AttemptOutcome(
                AdmissionReason.CLOSED, NEUTRAL, Closed("the router stopped before it could answer"), final=True
            )
        took_s = (now_ns - attempt.started_ns) / 1e9
        return AttemptOutcome(
            "overdue", LATE, DeadlineExceeded(f"the route {name!r} had not answered after {took_s:.6f} s")
        )
    if cancelled:  # nobody asked for it: the route's own work was cancelled
        failure = BackendError(f"the route {name!r} was cancelled from inside")
        failure.__cause__ = error
        return AttemptOutcome("failed", BAD, failure)
    for kind, reason, outcome in _TABLE:
        if isinstance(error, kind):
            final = reason == "invalid" or (cutting and reason == AdmissionReason.CLOSED)
            return AttemptOutcome(reason, outcome, error, final)
    return AttemptOutcome("cancelled", NEUTRAL, error, final=True)

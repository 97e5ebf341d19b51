"""Attempts of one request at several routes; a request that the best route serves needs none."""

from collections.abc import Sequence

from streaminfer.errors import CircuitOpen, Closed, DeadlineExceeded, Overloaded, StreamInferError
from streaminfer.protocols import Admission, AdmissionReason, sooner
from streaminfer.routing.fallback.attempt_outcome import AttemptOutcome
from streaminfer.routing.fallback.route_state import RouteState

__all__ = ["AttemptHistory"]

_TIME = frozenset(
    {
        AdmissionReason.INFEASIBLE,
        AdmissionReason.QUEUE_FULL,
        AdmissionReason.LIMIT,
        AdmissionReason.RATE_LIMIT,
        AdmissionReason.DEADLINE_EXCEEDED,
        "rejected",
        "attempt_timeout",
    }
)
"""Reasons that mean that a route's device had no time for the request."""


class AttemptHistory:
    """Why routes did not respond to a request.

    Attributes:
        began_ns: when the router got the request.
        reasons: position of the route → why it was skipped last, or the outcome of its attempt.
        tried: positions of the routes with an attempt.
        offered: position of the route → whether this request is part of its share.
        busy: bit ``d`` is set for each device that had no time for the request.
        error: error of the last attempt.
        retry_after_s: the shortest ``retry_after_s`` of a rejection; ``None``: no rejection had one.
        finish_ns: predicted finish at the route that was selected last; 0: unknown.
        verdicts: position of the route → its ``admission`` that the selector has not used yet.
    """

    __slots__ = ("began_ns", "busy", "error", "finish_ns", "offered", "reasons", "retry_after_s", "tried", "verdicts")

    def __init__(self, began_ns: int, verdict: Admission | None = None) -> None:
        self.began_ns = began_ns
        self.verdicts = {0: verdict}
        self.reasons: dict[int, str] = {}
        self.tried: set[int] = set()
        self.offered: dict[int, bool] = {}
        self.busy = 0
        self.error: BaseException | None = None
        self.retry_after_s: float | None = None
        self.finish_ns = 0

    def skip(self, state: RouteState, verdict: Admission) -> None:
        """Record that a route's ``admission`` rejected the request."""
        self.note(state, verdict.reason)
        self.retry_after_s = sooner(self.retry_after_s, verdict.retry_after_s)

    def failed(self, state: RouteState, outcome: AttemptOutcome) -> None:
        """Record an attempt that gave no response."""
        self.note(state, outcome.reason)
        self.tried.add(state.position)
        self.error = outcome.error
        if isinstance(outcome.error, (Overloaded, CircuitOpen)):
            self.retry_after_s = sooner(self.retry_after_s, outcome.error.retry_after_s)

    def note(self, state: RouteState, reason: str) -> None:
        """Record why a route gave no response."""
        state.skipped[reason] += 1
        self.reasons[state.position] = reason
        if reason in _TIME:
            self.busy |= 1 << state.share.device

    def take_error(self, states: Sequence[RouteState], now_ns: int, deadline_ns: int) -> BaseException:
        """Return the error that ends the request, and forget it, so that no cycle keeps the inputs alive."""
        summary = ", ".join(f"{state.route.name}: {self.reasons.get(state.position, 'not tried')}" for state in states)
        error, self.error = self.error, None
        if error is not None:
            passed_s = (now_ns - self.began_ns) / 1e9
            error.add_note(f"no other route responded in the {passed_s:.6f} s since the request came ({summary})")
            return error
        return self._rejection(f"no route could respond ({summary})", now_ns >= deadline_ns)

    def _rejection(self, message: str, deadline_passed: bool) -> StreamInferError:
        if deadline_passed:
            return DeadlineExceeded(message)
        reasons = set(self.reasons.values())
        if reasons == {AdmissionReason.CLOSED}:
            return Closed(message)
        if reasons == {AdmissionReason.CIRCUIT_OPEN}:
            return CircuitOpen(message, retry_after_s=self.retry_after_s)
        return Overloaded(message, retry_after_s=self.retry_after_s)

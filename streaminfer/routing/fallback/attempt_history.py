"""What one request has met on its way, from the first route that did not take it: most requests need none."""

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
        "overloaded",
        "overdue",
    }
)
"""Reasons that say that a route's device had no time for the request."""


class AttemptHistory:
    """Why routes did not answer a request.

    Attributes:
        began_ns: when the router got the request.
        reasons: position of the route → why it was passed over last, or how it ended.
        tried: positions of the routes that were asked.
        offered: positions of the routes whose share this request is one of, or is not.
        busy: bit ``d`` is set for each device that had no time for it.
        error: what the last route that was asked raised.
        retry_after_s: the least that a refusal named; ``None``: none named any.
        finish_ns: predicted by the route that was chosen last; 0: unknown.
    """

    __slots__ = ("began_ns", "busy", "error", "finish_ns", "offered", "reasons", "retry_after_s", "tried")

    def __init__(self, began_ns: int) -> None:
        self.began_ns = began_ns
        self.reasons: dict[int, str] = {}
        self.tried: set[int] = set()
        self.offered: dict[int, bool] = {}
        self.busy = 0
        self.error: BaseException | None = None
        self.retry_after_s: float | None = None
        self.finish_ns = 0

    def skip(self, lane: RouteState, verdict: Admission) -> None:
        """A route's ``admission`` said no."""
        self.note(lane, verdict.reason)
        self.retry_after_s = sooner(self.retry_after_s, verdict.retry_after_s)

    def failed(self, lane: RouteState, ending: AttemptOutcome) -> None:
        """A route was asked and did not answer."""
        self.note(lane, ending.reason)
        self.tried.add(lane.position)
        self.error = ending.error
        if isinstance(ending.error, (Overloaded, CircuitOpen)):
            self.retry_after_s = sooner(self.retry_after_s, ending.error.retry_after_s)

    def note(self, lane: RouteState, reason: str) -> None:
        """A route was passed over, or ended without an answer."""
        lane.skipped[reason] += 1
        self.reasons[lane.position] = reason
        if reason in _TIME:
            self.busy |= 1 << lane.rung.device

    def take_error(self, lanes: list[RouteState], now_ns: int, deadline_ns: int) -> BaseException:
        """What the request ends with where nobody answers; asked once, so that no cycle keeps the inputs alive."""
        story = ", ".join(f"{lane.route.name}: {self.reasons.get(lane.position, 'not asked')}" for lane in lanes)
        error, self.error = self.error, None
        if error is not None:
            passed_s = (now_ns - self.began_ns) / 1e9
            error.add_note(f"no other route answered in the {passed_s:.6f} s since the request came ({story})")
            return error
        return self._refusal(f"no route could answer ({story})", now_ns >= deadline_ns)

    def _refusal(self, message: str, expired: bool) -> StreamInferError:
        if expired:
            return DeadlineExceeded(message)
        reasons = set(self.reasons.values())
        if reasons == {AdmissionReason.CLOSED}:
            return Closed(message)
        if reasons == {AdmissionReason.CIRCUIT_OPEN}:
            return CircuitOpen(message, retry_after_s=self.retry_after_s)
        return Overloaded(message, retry_after_s=self.retry_after_s)

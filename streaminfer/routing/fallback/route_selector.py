"""Choice of the route for one request, and of the instant at which an attempt there is interrupted."""

from collections.abc import Sequence

from streaminfer._internal.error_log import ErrorLog
from streaminfer._internal.units import NEVER_NS
from streaminfer.protocols import Admission, AdmissionReason
from streaminfer.request import Request
from streaminfer.routing.fallback._fast_path_cy import FastPath
from streaminfer.routing.fallback.attempt_history import AttemptHistory
from streaminfer.routing.fallback.route_probes import RouteProbes
from streaminfer.routing.fallback.route_state import RouteState
from streaminfer.routing.verdicts import first_accepting

__all__ = ["RouteSelector", "deadline_of"]

_ACCEPTED = Admission(True)
_RESERVE_INTERVAL_NS = 5_000_000  # shortest interval between two updates of the time that the next route needs
_JITTER_NS = 500_000


def deadline_of(request: Request) -> int:
    """Return the deadline, or ``NEVER_NS``."""
    return NEVER_NS if request.deadline_ns is None else request.deadline_ns


class RouteSelector:
    """Selects the next route for a request.

    Args:
        states: states of the routes, best first.
        fast_path: fast path of the best route; computes the time of an interruption.
        probes: sends probes to routes that predict only late responses; ``None``: no probes.
    """

    def __init__(self, states: Sequence[RouteState], fast_path: FastPath, probes: RouteProbes | None) -> None:
        self._states = states
        self._fast_path = fast_path
        self._probes = probes
        self._errors = ErrorLog("streaminfer.routing")

    def select(self, request: Request, history: AttemptHistory, now_ns: int) -> RouteState | None:
        """Return the best untried route that accepts the request now; ``None``: there is none.

        A route beyond its share, or a route that may hang, is better than no response, unless it takes the time of
        other requests. The last choice is the last idle route that predicts a late response, which learns from this
        request.
        """
        held_back: list[RouteState] = []
        for state in self._states:
            position = state.position
            if position in history.tried:
                continue
            offered = history.offered.get(position)
            if offered is None:
                offered = history.offered[position] = state.share.offers()
            if not offered:
                history.note(state, "burning" if state.share.closed else "share")
                held_back.append(state)
            elif state.share.stalled and state.share.in_flight:
                history.note(state, "stalled")
                held_back.append(state)
            elif self._accepts(state, request, history, now_ns):
                return state
        for state in held_back:
            if not history.busy >> state.share.device & 1 and self._accepts(state, request, history, now_ns):
                return state
        return self._idle_route(history)

    def admission(self, request: Request, now_ns: int) -> Admission:
        """Return the admission of the best open route that accepts the request, else of the best open route.

        Routes get the request unchanged, before any ``prepare``. Changes nothing.
        """
        open_states = (state for state in self._states if not state.share.closed)
        return first_accepting(self._verdict(state, request, now_ns) for state in open_states) or _ACCEPTED

    def switch_ns(
        self, state: RouteState, request: Request, history: AttemptHistory, now_ns: int, deadline_ns: int
    ) -> int:
        """Return when an attempt is interrupted; ``NEVER_NS`` if the route itself ends it in time."""
        if deadline_ns == NEVER_NS:
            return NEVER_NS
        share = state.share
        reserve_ns: int | None = share.reserve_ns
        if now_ns >= share.reserve_until_ns:
            reserve_ns = self._reserve_ns(state, request, now_ns)
            if reserve_ns is not None:
                share.reserve_until_ns = now_ns + _RESERVE_INTERVAL_NS
                share.reserve_ns = reserve_ns
        remaining = len(self._states) - len(history.tried) - 1
        if reserve_ns is None or not remaining:
            reserve_ns = 0
        return self._fast_path.switch_ns(now_ns, deadline_ns, history.finish_ns, reserve_ns, state.enforces)

    def _accepts(self, state: RouteState, request: Request, history: AttemptHistory, now_ns: int) -> bool:
        verdict = history.verdicts.pop(state.position, None) or self._verdict(state, request, now_ns)
        finish_ns = verdict.predicted_finish_ns or 0
        if verdict.ok and not (finish_ns and state.share.risks(now_ns, deadline_of(request), finish_ns)):
            history.finish_ns = finish_ns
            return True
        if verdict.ok:  # too close to the deadline
            history.note(state, AdmissionReason.INFEASIBLE)
        else:
            history.skip(state, verdict)
        if self._probes is not None and (verdict.ok or verdict.reason == AdmissionReason.INFEASIBLE):
            self._probes.consider(state, request, now_ns)
        return False

    def _idle_route(self, history: AttemptHistory) -> RouteState | None:
        for state in reversed(self._states):
            reason = history.reasons.get(state.position)
            infeasible = reason == AdmissionReason.INFEASIBLE and state.position not in history.tried
            if infeasible and state.share.in_flight == 0:
                history.finish_ns = 0
                return state
        return None

    def _reserve_ns(self, state: RouteState, request: Request, now_ns: int) -> int | None:
        """Return the time that the next route that would accept the request needs.

        Returns:
            The time that the route predicts (or 1.5 times its recent mean), an eighth more, and half a millisecond; 0:
            no route would accept a request; -1: unknown; ``None``: no route would accept this request, but one may
            accept a request with more time.
        """
        is_infeasible = False
        for other in self._states[state.position + 1 :]:
            if other.share.closed:
                continue
            verdict = self._verdict(other, request, now_ns)
            if not verdict.ok:
                is_infeasible = is_infeasible or verdict.reason == AdmissionReason.INFEASIBLE
                continue
            if verdict.predicted_finish_ns is not None:
                needs_ns = verdict.predicted_finish_ns - now_ns
            elif other.share.latency_ns:
                needs_ns = other.share.latency_ns * 3 // 2
            else:
                return -1
            return needs_ns + (needs_ns >> 3) + _JITTER_NS
        return None if is_infeasible else 0

    def _verdict(self, state: RouteState, request: Request, now_ns: int) -> Admission:
        """Return a route's ``admission``; if it raises, accept, so that the route gets the request."""
        try:
            return _ACCEPTED if state.admission is None else state.admission(request, now_ns)
        except Exception as error:  # noqa: BLE001 - logged
            self._errors.report(f"admission of route {state.route.name!r}", error)
            return _ACCEPTED

"""Choice of a route, without a router."""

import pytest

import streaminfer as si
from streaminfer.protocols import Admission
from streaminfer.request import Response
from streaminfer.routing import Route
from streaminfer.routing.fallback._degradation_cy import DegradationController
from streaminfer.routing.fallback._fast_path_cy import FastPath
from streaminfer.routing.fallback.attempt_history import AttemptHistory
from streaminfer.routing.fallback.route_selector import RouteSelector
from streaminfer.routing.fallback.route_state import make_route_states

pytestmark = pytest.mark.uncompiled

MS = 1_000_000


class Scripted:
    def __init__(self, **verdict):
        self.verdict = Admission(**verdict)

    async def call(self, request):
        return Response(request.inputs)

    def admission(self, request, now_ns):
        return self.verdict


class Slow(Scripted):
    """Service that predicts 16 ms and rejects requests with less time."""

    def __init__(self):
        super().__init__(ok=True, predicted_finish_ns=16 * MS)

    def admission(self, request, now_ns):
        if request.deadline_ns < 16 * MS:
            return Admission(False, "infeasible")
        return self.verdict


class Probes:
    def __init__(self):
        self.considered = []

    def consider(self, state, request, now_ns):
        self.considered.append(state.route.name)


def make(*services):
    names = "abc"[: len(services)]
    routes = [Route(name, service, device=name) for name, service in zip(names, services, strict=True)]
    states = make_route_states(routes, has_default=False)
    degradation = DegradationController([state.share for state in states], 1000 * MS)
    fast_path = FastPath(degradation, states[0].share, "a", states[0].admission, states[0].enforces, False)
    probes = Probes()
    return RouteSelector(states, fast_path, probes), states, probes


def test_the_best_route_that_accepts_is_selected():
    selector, states, probes = make(Scripted(ok=False, reason="queue_full"), Scripted(ok=True), Scripted(ok=True))
    history = AttemptHistory(0)

    assert selector.select(si.Request(1.0), history, 0) is states[1]
    assert history.reasons == {0: "queue_full"}
    assert probes.considered == []


def test_a_tried_route_is_not_selected_again():
    selector, states, _ = make(Scripted(ok=True), Scripted(ok=True))
    history = AttemptHistory(0)
    history.tried.add(0)

    assert selector.select(si.Request(1.0), history, 0) is states[1]


def test_infeasible_route_is_probed_and_chosen_last():
    """The selector considers an infeasible route for a probe, and selects it last and only while it is idle."""
    selector, states, probes = make(Scripted(ok=False, reason="closed"), Scripted(ok=False, reason="infeasible"))
    history = AttemptHistory(0)

    assert selector.select(si.Request(1.0, deadline_ns=MS), history, 0) is states[1]
    assert probes.considered == ["b"]
    states[1].share.take()
    assert selector.select(si.Request(1.0, deadline_ns=MS), AttemptHistory(0), 0) is None


def test_admission_is_that_of_best_accepting_route():
    """The admission of the selector is that of the best route that accepts the request."""
    full, closed = {"ok": False, "reason": "queue_full", "retry_after_s": 2.0}, {"ok": False, "reason": "closed"}
    finish = Admission(True, predicted_finish_ns=7)
    selector, _, _ = make(Scripted(**full), Scripted(**finish._asdict()))
    rejecting, _, _ = make(Scripted(**full), Scripted(**closed, retry_after_s=1.0))

    assert selector.admission(si.Request(1.0), 0) == finish
    assert rejecting.admission(si.Request(1.0), 0) == Admission(False, "queue_full", 1.0)


def test_attempt_leaves_time_for_next_route():
    """An attempt leaves the next route the time that it needs."""
    selector, states, _ = make(Scripted(ok=True), Scripted(ok=True, predicted_finish_ns=16 * MS))
    request = si.Request(1.0, deadline_ns=100 * MS)

    switch_ns = selector.switch_ns(states[0], request, AttemptHistory(0), 0, 100 * MS)

    assert switch_ns == 100 * MS - (16 * MS + 2 * MS) - 500_000


def test_short_request_takes_no_time_from_later_ones():
    """The next route is infeasible for a short request, and still gets its time from a later, longer request."""
    selector, states, _ = make(Scripted(ok=True), Slow())
    best, history = states[0], AttemptHistory(0)

    short_ns = selector.switch_ns(best, si.Request(1.0, deadline_ns=10 * MS), history, 0, 10 * MS)
    long_ns = selector.switch_ns(best, si.Request(1.0, deadline_ns=100 * MS), history, 0, 100 * MS)

    assert (short_ns, long_ns) == (10 * MS, 100 * MS - 18 * MS - 500_000)


@pytest.mark.parametrize("others", [[], [Scripted(ok=False, reason="circuit_open")]], ids=["none", "open circuit"])
def test_no_later_route_is_known_for_a_while(others):
    """That no later route accepts any request is kept for the next requests, which can then take the fast path."""
    selector, states, _ = make(Scripted(ok=True), *others)

    switch_ns = selector.switch_ns(states[0], si.Request(1.0, deadline_ns=10 * MS), AttemptHistory(0), 0, 10 * MS)

    assert (switch_ns, states[0].share.reserve_until_ns) == (10 * MS, 5 * MS)

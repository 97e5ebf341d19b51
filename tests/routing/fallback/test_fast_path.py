"""The fast path without a router: when it uses the last check of the best route for another request."""

import pytest

import streaminfer as si
from streaminfer.protocols import Admission
from streaminfer.routing.fallback._degradation_cy import DegradationController
from streaminfer.routing.fallback._fast_path_cy import FastPath
from streaminfer.routing.fallback._route_share_cy import RouteShare

pytestmark = pytest.mark.uncompiled

MS = 1_000_000


class Task:
    def cancelling(self):
        return 0


class Checks:
    """Checks of a route that always takes 200 ms; counts them."""

    def __init__(self, *, predicts=True):
        self.predicts = predicts
        self.count = 0

    def __call__(self, request, now_ns):
        self.count += 1
        finish_ns = now_ns + 200 * MS
        if not self.predicts:
            return Admission(True)
        return Admission(finish_ns <= request.deadline_ns, predicted_finish_ns=finish_ns)


def make(checks):
    share = RouteShare(0, False, False, False, False)
    share.reserve_until_ns = 1000 * MS
    degradation = DegradationController([share], 1000 * MS)
    degradation.step(0, False)
    return FastPath(degradation, share, "best", checks, True, False)


def take(fast_path, limit_ms, now_ns=0, priority=0):
    return fast_path.take(si.Request(1.0, deadline_ns=now_ns + limit_ms * MS, priority=priority), now_ns, Task())


@pytest.mark.parametrize("predicts", [True, False], ids=["predicts", "predicts nothing"])
def test_a_check_is_reused_seven_times(predicts):
    """One check is valid for the next seven requests that have as much time."""
    checks = Checks(predicts=predicts)
    fast_path = make(checks)

    assert all(take(fast_path, 1000) for _ in range(8))
    assert checks.count == 1

    take(fast_path, 1000)
    assert checks.count == 2


@pytest.mark.parametrize(("limit_ms", "taken"), [(50, False), (799, True)], ids=["infeasible", "tight"])
def test_a_request_with_less_time_is_checked(limit_ms, taken):
    """A check of a request with much time is not used for one that has less than four times the predicted time."""
    checks = Checks()
    fast_path = make(checks)
    take(fast_path, 1000)

    attempt = take(fast_path, limit_ms)

    assert (attempt is not None, checks.count) == (taken, 2)


@pytest.mark.parametrize(("priority", "checks_made"), [(-1, 1), (0, 1), (1, 2)])
def test_a_less_urgent_request_is_checked(priority, checks_made):
    """A check is not used for a request of a less urgent priority, which is served after others."""
    checks = Checks()
    fast_path = make(checks)
    take(fast_path, 1000)

    take(fast_path, 1000, priority=priority)

    assert checks.count == checks_made


def test_a_rejected_request_leaves_the_check_valid():
    """After a request that the route rejects, the earlier check is still valid for requests with much time."""
    checks = Checks()
    fast_path = make(checks)
    take(fast_path, 1000)
    take(fast_path, 50)

    take(fast_path, 1000, now_ns=MS // 2)

    assert checks.count == 2


def test_a_check_is_valid_for_a_millisecond():
    checks = Checks()
    fast_path = make(checks)
    take(fast_path, 1000)

    take(fast_path, 1000, now_ns=MS)

    assert checks.count == 2

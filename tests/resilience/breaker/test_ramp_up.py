"""Ramp-up: a breaker that has closed permits a growing share of the calls."""

import asyncio

import pytest

import streaminfer as si
from streaminfer.request import Request
from streaminfer.resilience import CircuitBreaker
from streaminfer.resilience.breaker._ramp_up_cy import RampUp
from streaminfer.testing import ScriptedBackend, run

pytestmark = pytest.mark.uncompiled

S = 1_000_000_000


@pytest.fixture
def breaker(clock):
    """Return a breaker that its probe has just closed, and that lets all calls pass after ten seconds."""
    return closed_by_its_probe(clock, ramp_up_s=10.0)


def closed_by_its_probe(clock, **settings):
    made = CircuitBreaker(minimum_calls=2, window=4, open_s=1.0, half_open_calls=1, clock=clock, seed=1, **settings)
    for _ in range(2):
        made.record(False, 0.1)
    clock.advance(1.0)
    made.record(True, 0.1, made.try_acquire())
    assert made.state == "closed"
    return made


def passed(breaker, calls=100):
    permits = [breaker.try_acquire() for _ in range(calls)]
    for permit in permits:
        breaker.record(True, 0.01, permit) if permit else None
    return sum(permit > 0 for permit in permits)


def test_the_share_grows_from_a_tenth_to_all(breaker, clock):
    """A tenth of the calls pass at first, more in a straight line, and all after ``ramp_up_s``."""
    seen = []
    for _ in range(6):
        seen.append(passed(breaker))
        clock.advance(2.0)
    assert seen == pytest.approx([10, 28, 46, 64, 82, 100], abs=1)
    assert breaker.statistics().share == 1.0
    assert breaker.statistics().rejected == 600 - sum(seen)


def test_without_ramp_up_all_pass_at_once(clock):
    """Without a ramp, which is the default, every call passes as soon as the breaker is closed."""
    assert passed(closed_by_its_probe(clock)) == 100


def test_rejection_names_share_and_time(clock):
    """The error of a rejected call says that the breaker has closed, which share passes, and when all calls pass."""
    breaker = closed_by_its_probe(clock, ramp_up_s=10.0, name="faces")
    guarded = breaker.wrap(lambda: 1)
    clock.advance(4.0)
    assert guarded() == 1
    with pytest.raises(
        si.CircuitOpen, match=r"^circuit breaker 'faces' has just closed and lets 46% of the calls pass"
    ):
        guarded()
    with pytest.raises(si.CircuitOpen) as rejection:
        for _ in range(3):
            with breaker.guard():
                pass
    assert rejection.value.retry_after_s == breaker.retry_after_s == 6.0
    assert breaker.state == "closed"


def test_failures_during_ramp_up_open_the_breaker(breaker, clock):
    """Failures during the ramp open the breaker, and its next ramp starts from a tenth."""
    clock.advance(5.0)
    failed = 0
    while failed < 2:
        permit = breaker.try_acquire()
        if permit:
            breaker.record(False, 0.1, permit)
            failed += 1
    assert breaker.state == "open"
    clock.advance(2.0)
    breaker.record(True, 0.1, breaker.try_acquire())
    assert breaker.state == "closed"
    assert passed(breaker) == pytest.approx(10, abs=1)


@pytest.mark.parametrize("by_hand", ["reset", "disable", "metrics_only"])
def test_manual_close_skips_the_ramp(breaker, by_hand):
    """A breaker that is closed by hand lets all calls pass: there is no ramp."""
    getattr(breaker, by_hand)()
    assert passed(breaker) == 100


def test_the_ramp_begins_while_a_listener_runs(clock):
    """The ramp begins with the change of state, even if a listener has not returned from an earlier event."""
    made = CircuitBreaker(minimum_calls=2, window=4, open_s=1.0, half_open_calls=1, ramp_up_s=10.0, clock=clock, seed=1)
    shares = []

    def close(event):
        if event.after == "open":
            clock.advance(1.0)
            made.record(True, 0.1, made.try_acquire())
            shares.append((made.state, made.statistics().share, passed(made, 10)))

    made.listen(close)
    for _ in range(2):
        made.record(False, 0.1)

    assert shares == [("closed", 0.1, 1)]


def test_half_open_time_limit_starts_the_ramp(clock):
    """If half-open ends at its time limit and the breaker closes, the ramp begins at the instant of this limit."""
    made = CircuitBreaker(
        minimum_calls=2, open_s=1.0, half_open_calls=2, half_open_s=3.0, ramp_up_s=10.0, clock=clock, seed=1
    )
    for _ in range(2):
        made.record(False, 0.1)
    clock.advance(1.0)
    made.record(True, 0.1, made.try_acquire())
    clock.advance(8.0)
    assert made.try_acquire() > 0
    assert made.statistics().share == pytest.approx(0.1 + 0.9 * 0.5)


def test_admission_and_permits_pass_the_share(breaker, clock):
    """``admission`` and ``permits`` accept the share of the calls, and each accepted call passes."""
    guarded = breaker.wrap(_Answers())
    clock.advance(4.0)
    told = passed_calls = 0
    for number in range(100):
        yes = guarded.admission(Request(1.0), clock()).ok if number % 2 else breaker.permits()
        told += yes
        if yes:
            asyncio.run(guarded.call(Request(1.0)))
            passed_calls += 1
    assert told == passed_calls == pytest.approx(46, abs=1)
    while (refused := guarded.admission(Request(1.0), clock())).ok:
        asyncio.run(guarded.call(Request(1.0)))
    assert (refused.reason, refused.retry_after_s) == ("circuit_open", 6.0)


class _Answers:
    async def call(self, request):
        return si.Response(1.0)


@pytest.mark.parametrize("timeout_s", [None, 1.0], ids=["no deadline", "deadline"])
def test_a_router_sends_the_rest_to_the_next_route(timeout_s):
    """During the ramp of a breaker in a route, the share of the requests passes, and the next route gets the others."""

    async def main(loop):
        breaker = CircuitBreaker(minimum_calls=2, open_s=1.0, half_open_calls=1, ramp_up_s=40.0, seed=1)
        model = ScriptedBackend(ConnectionError("gone"), ConnectionError("gone"), duration_s=0.001)
        router = si.FallbackRouter(
            si.Route("full", [breaker, model], quality=1.0),
            si.Route("small", ScriptedBackend(duration_s=0.001), quality=0.5),
        )
        async with si.Stack(router, clock=loop.clock) as service:

            async def answer():
                deadline_ns = None if timeout_s is None else loop.clock() + round(timeout_s * S)
                response = await service.call(Request(1.0, deadline_ns=deadline_ns))
                await asyncio.sleep(0.01)
                return response.source.split()[0]

            while router.statistics().routes[0].share < 1.0 or breaker.statistics().share == 1.0:
                await answer()
            expected = passed_calls = 0
            for _ in range(2000):
                expected += breaker.statistics().share
                passed_calls += await answer() == "full"
            assert 700 < passed_calls == pytest.approx(expected, abs=2)
            while breaker.statistics().share < 1.0:
                await answer()
            assert [await answer() for _ in range(100)] == ["full"] * 100

    run(main)


def test_the_sum_of_shares_is_exact():
    """As many calls pass as the sum of their shares, to within one."""
    ramp = RampUp(S)
    ramp.begin(0)
    expected = count = 0
    for now in range(0, S, S // 97):
        expected += ramp.share(now)
        count += ramp.admits(now)
        assert abs(count - expected) <= 1.0
    assert ramp.admits(S)
    assert not ramp.active
    assert (ramp.share(S), ramp.left_ns(S)) == (1.0, 0)


def test_a_wrong_argument_is_named():
    with pytest.raises(ValueError, match="ramp_up_s: expected a finite number of seconds"):
        CircuitBreaker(ramp_up_s=-1.0)

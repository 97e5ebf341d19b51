"""The state machine of the limit: its rules, and its counts and bounds in any order, compiled and uncompiled."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streaminfer._internal.units import NEVER_NS
from streaminfer.resilience.limit._adaptation_cy import LimitAdaptation
from streaminfer.resilience.limit._state_machine_cy import FULL, INFEASIBLE, UNKNOWN, LimitMachine

pytestmark = pytest.mark.uncompiled

MS = 1_000_000
S = 1_000 * MS


def make(
    limit=10,
    low=1,
    high=100,
    adaptive=True,
    reserve=0.1,
    tighten=0.5,
    delay_ms=-1.0,
    of=(LimitAdaptation, LimitMachine),
):
    delay_ns = delay_ms * MS if delay_ms >= 0 else -1.0
    adaptation_type, machine_type = of
    adaptation = adaptation_type(float(limit), low, high, adaptive, tighten, delay_ns)
    return machine_type(adaptation, reserve)


def round_of(machine, now, queued_ms, served_ms, count=10, deadline=NEVER_NS):
    """Run one window of calls that are all in flight at once, and return the instant at which they end."""
    permits = [machine.try_acquire(0, deadline, now) for _ in range(count)]
    assert all(permit > 0 for permit in permits)
    end = now + int((queued_ms + served_ms) * MS)
    rounds = machine.adaptation.windows
    for permit in permits:
        machine.succeed(permit, int(queued_ms * MS), now, end)
    last = machine.try_acquire(0, NEVER_NS, end)
    machine.succeed(last, int(queued_ms * MS), end, end + int((queued_ms + served_ms) * MS))
    assert machine.adaptation.windows == rounds + 1
    return end + int((queued_ms + served_ms) * MS)


def test_long_queue_delay_lowers_limit_by_littles_law():
    """A queue delay above the target lowers the limit to the value that Little's law gives."""
    machine = make(limit=10, delay_ms=20)
    round_of(machine, S, 50, 10)
    assert machine.adaptation.target_ns == 30 * MS
    assert machine.adaptation.limit == pytest.approx(10 * 30 / 60)


def test_limit_at_most_halves_in_one_window():
    machine = make(limit=10, delay_ms=10)
    round_of(machine, S, 1000, 10)
    assert machine.adaptation.limit == 5.0


def test_short_delay_raises_limit_by_root_at_most():
    """A short queue delay raises the limit by at most its square root, and not above what Little's law gives."""
    machine = make(limit=16, delay_ms=1000)
    now = round_of(machine, S, 10, 10, count=10)
    assert machine.adaptation.limit == 16 + 4
    near = make(limit=16, delay_ms=11)
    round_of(near, now, 10, 10, count=10)
    assert near.adaptation.limit == pytest.approx(16 * 21 / 20)


def test_slower_batches_alone_change_nothing():
    machine = make(limit=10)
    now = round_of(machine, S, 20, 10)
    before = machine.adaptation.limit
    for service_ms in (20, 40, 80):  # all wait for two batches, whatever those take
        now = round_of(machine, now, 2 * service_ms, service_ms)
        assert machine.adaptation.limit == before


def test_wait_for_one_batch_is_never_congestion():
    machine = make(limit=10, delay_ms=0)
    round_of(machine, S, 30, 30)
    assert machine.adaptation.limit == 10


def test_unused_limit_falls_but_does_not_grow():
    """A limit that is not reached does not grow, but congestion lowers it."""
    machine = make(limit=80, delay_ms=1000)
    now = round_of(machine, S, 1, 10, count=10)
    assert machine.adaptation.limit == 80
    congested = make(limit=80, delay_ms=10)
    round_of(congested, now, 50, 10, count=10)
    assert congested.adaptation.limit == pytest.approx(2 * 10 * 0.5)


def test_window_counts_calls_begun_after_last_decision():
    """A window counts only calls that began after the last decision."""
    machine = make(limit=10, delay_ms=20)
    early = machine.try_acquire(0, NEVER_NS, S)
    round_of(machine, S + MS, 50, 10, count=9)
    limit, rounds = machine.adaptation.limit, machine.adaptation.windows
    for _ in range(3):
        machine.succeed(early, 500 * MS, S, 3 * S)  # it began before the present limit
        early = machine.try_acquire(0, NEVER_NS, S)
    assert (machine.adaptation.limit, machine.adaptation.windows) == (limit, rounds)


def test_latency_is_judged_by_mean_less_standard_error():
    """Latencies that vary are judged by their mean minus its standard error."""
    machine = make(limit=4, delay_ms=2.5)
    now = S
    for _ in range(9):
        fast, slow = (machine.try_acquire(0, NEVER_NS, now) for _ in range(2))
        machine.succeed(fast, UNKNOWN, 0, now + 5 * MS)
        machine.succeed(slow, UNKNOWN, 0, now + 15 * MS)
        now += 15 * MS
    assert machine.adaptation.windows == 1
    assert machine.adaptation.target_ns == pytest.approx(12.5 * MS)
    assert machine.adaptation.limit == pytest.approx(4 * 12.5 / (10 - 5 / math.sqrt(18)))


def test_objective_is_target_for_queueing_and_service():
    """The objective sets the target for queue delay and service time together."""
    machine = make(limit=10)
    machine.set_objective(100.0 * MS, False)
    round_of(machine, S, 50, 10)
    assert machine.adaptation.target_ns == pytest.approx(70 * MS)
    assert machine.adaptation.limit == pytest.approx(10 * 70 / 60)


def test_burning_slo_lowers_target_once():
    """A burning SLO lowers the target once, and the target returns in half a minute."""
    machine = make(limit=10)
    machine.set_objective(1000.0 * MS, True)
    now = round_of(machine, S, 300, 50)
    now = round_of(machine, now, 300, 50)
    assert machine.adaptation.target_ns == pytest.approx(350 * MS)
    assert machine.adaptation.limit == pytest.approx(10)
    machine.set_objective(1000.0 * MS, False)
    goals = []
    start = now
    while now < start + 29 * S:
        now = round_of(machine, now, 300, 50, count=5)
        goals.append(machine.adaptation.target_ns)
        machine.set_objective(1000.0 * MS, False)
    assert goals == sorted(goals)
    assert goals[len(goals) // 2] == pytest.approx(0.75 * 700 * MS, rel=0.05)
    while now < start + 32 * S:
        now = round_of(machine, now, 300, 50, count=5)
    assert machine.adaptation.target_ns == pytest.approx(700 * MS)


def test_a_burning_slo_tightens_a_fixed_limit():
    machine = make(limit=10, adaptive=False, tighten=0.4)
    machine.set_objective(0.0, True)
    assert machine.adaptation.allowed == 4
    assert machine.adaptation.limit == 10


def test_priorities_leave_places_to_more_urgent_ones():
    machine = make(limit=10, adaptive=False, reserve=0.25)
    given = {}
    for priority in (9, 3, 2, 1, 0, -5):
        given[priority] = 0
        while machine.try_acquire(priority, NEVER_NS, S) > 0:
            given[priority] += 1
    assert given == {9: 1, 3: 3, 2: 1, 1: 2, 0: 3, -5: 0}  # up to 1, 4, 5, 7, 10, 10
    assert machine.rejected == 6


@pytest.mark.parametrize(("reserve", "permits"), [(0.2, 80), (0.7, 30), (0.8, 20), (0.9, 10)])
def test_a_reserve_is_exact(reserve, permits):
    """A reserve leaves the number of permits that its decimal says, although binary fractions do not have its value."""
    machine = make(limit=100, adaptive=False, reserve=reserve)
    assert sum(machine.try_acquire(1, NEVER_NS, S) > 0 for _ in range(100)) == permits


def test_without_reserve_priorities_are_equal():
    machine = make(limit=3, adaptive=False, reserve=0.0)
    assert [machine.try_acquire(2**31 - 1, NEVER_NS, S) > 0 for _ in range(4)] == [True, True, True, False]


def test_call_with_too_little_time_is_infeasible():
    """A call with less time than any recent call took is infeasible while other calls are in flight."""
    machine = make(limit=10)
    now = round_of(machine, S, 20, 10)
    assert machine.try_acquire(0, now + MS, now) > 0  # nothing is in flight: this call can correct the estimate
    assert machine.check(0, now + 29 * MS, now) == INFEASIBLE
    assert machine.try_acquire(0, now + 29 * MS, now) == INFEASIBLE
    assert machine.try_acquire(0, now + 30 * MS, now) > 0
    assert machine.infeasible == 1
    fast = machine.try_acquire(0, NEVER_NS, now)
    machine.succeed(fast, 0, now, now + 5 * MS)  # one fast response is enough
    assert machine.check(0, now + 29 * MS, now) == 1


def test_exceeded_deadlines_count_as_twice_the_target():
    """Exceeded deadlines count as twice the target, unless they were shorter than the service time."""
    machine = make(limit=20, delay_ms=20)
    now = round_of(machine, S, 20, 10, count=19)
    goal, limit = machine.adaptation.target_ns, machine.adaptation.limit
    assert (goal, limit) == (30 * MS, 20)
    for _ in range(30):  # less than the 10 ms of service: no evidence
        machine.exceed_deadline(machine.try_acquire(0, NEVER_NS, now), 9 * MS, now + 9 * MS)
    assert machine.adaptation.limit == limit
    for _ in range(10):
        machine.exceed_deadline(machine.try_acquire(0, NEVER_NS, now), 11 * MS, now + 11 * MS)
    assert machine.adaptation.limit == pytest.approx(2 * 1 * 0.5)  # base: twice the one call in flight


def test_late_untimed_calls_keep_the_no_load_latency():
    """Late calls among calls without timings leave the no-load latency unchanged."""
    machine = make(limit=4, high=4)
    now = S
    for _ in range(40):
        permits = [machine.try_acquire(0, NEVER_NS, now) for _ in range(4)]
        now += 10 * MS
        for permit in permits[:2]:
            machine.succeed(permit, UNKNOWN, 0, now)
        for permit in permits[2:]:
            if permit > 0:
                machine.exceed_deadline(permit, 50 * MS, now)
    assert machine.adaptation.windows > 2
    assert machine.adaptation.service_ns == 10 * MS
    assert machine.adaptation.target_ns == 20 * MS


def test_late_calls_before_first_response_halve_limit():
    machine = make(limit=16)
    permits = [machine.try_acquire(0, NEVER_NS, S) for _ in range(16)]
    for permit in permits:
        machine.exceed_deadline(permit, 50 * MS, 2 * S)
    assert machine.adaptation.limit == 8


def test_inner_rejections_lower_the_limit_by_a_tenth():
    machine = make(limit=20)
    permits = [machine.try_acquire(0, NEVER_NS, S) for _ in range(20)]
    for permit in permits[:10]:
        machine.reject_inside(permit, S)
    assert machine.adaptation.limit == 18
    assert machine.inner_rejected == 10


def test_drain_time_is_calls_in_flight_over_rate():
    """The drain time is the calls in flight divided by the rate, and grows while no call ends."""
    machine = make(limit=20, adaptive=False)
    assert machine.drain_ns(S) == 0
    now = S
    first = machine.try_acquire(0, NEVER_NS, now)
    assert machine.drain_ns(now + 7 * MS) == 7 * MS  # the only measurement is the time of this call so far
    machine.succeed(first, 0, now, now + 10 * MS)
    now += 10 * MS
    for _ in range(2):
        machine.try_acquire(0, NEVER_NS, now)
    assert machine.drain_ns(now) == 20 * MS
    for _ in range(2):
        now += 10 * MS
        machine.release(now)
    for _ in range(15):
        machine.succeed(machine.try_acquire(0, NEVER_NS, now), 0, now, now + 10 * MS)
        now += 10 * MS
    for _ in range(5):
        machine.try_acquire(0, NEVER_NS, now)
    assert machine.drain_ns(now) == pytest.approx(50 * MS, rel=0.01)
    assert machine.drain_ns(now + 40 * MS) == pytest.approx(50 * MS, rel=0.01)
    assert machine.drain_ns(now + 300 * MS) == 300 * MS


def test_the_wait_counts_calls_before_and_the_reserve():
    """A call waits until enough calls complete for all calls before it, and for the reserve of its priority."""
    machine = make(limit=10, adaptive=False, reserve=0.2)
    assert machine.wait_ns(0, 3, S) == 0
    now = S
    for _ in range(20):
        machine.succeed(machine.try_acquire(0, NEVER_NS, now), 0, now, now + 10 * MS)
        now += 10 * MS
    while machine.try_acquire(0, NEVER_NS, now) > 0:
        pass

    assert machine.wait_ns(0, 0, now) == pytest.approx(10 * MS, rel=0.01)
    assert machine.wait_ns(-1, 4, now) == pytest.approx(50 * MS, rel=0.01)
    assert machine.wait_ns(1, 4, now) == pytest.approx(70 * MS, rel=0.01)
    machine.release(now)
    assert machine.wait_ns(0, 0, now) == 0


def test_idle_time_is_not_counted_into_the_rate():
    machine = make(limit=20, adaptive=False)
    now = S
    for _ in range(40):
        machine.succeed(machine.try_acquire(0, NEVER_NS, now), 0, now, now + 10 * MS)
        now += 1010 * MS  # a second of rest
    assert machine.interval_ns == pytest.approx(10 * MS)


def test_permit_is_positive_where_clock_starts_at_zero():
    """A permit is greater than 0 even if the clock starts at 0."""
    assert make().try_acquire(0, NEVER_NS, 0) > 0


class Twins(RuleBasedStateMachine):
    """The compiled and the uncompiled machine side by side, compared with a list of the permits in use."""

    twin = None

    @initialize(
        limit=st.integers(1, 50),
        adaptive=st.booleans(),
        delay=st.sampled_from([-1.0, 0.0, 5.0]),
        reserve=st.sampled_from([0.0, 0.3]),
    )
    def begin(self, limit, adaptive, delay, reserve):
        settings = {"low": 1 if not adaptive else min(2, limit), "high": 60}
        self.adaptive = adaptive
        self.machines = [
            make(limit, adaptive=adaptive, delay_ms=delay, reserve=reserve, of=kind, **settings)
            for kind in ((LimitAdaptation, LimitMachine), type(self).twin)
        ]
        self.first = limit
        self.out = []
        self.now = S
        self.asked = self.given = 0

    def each(self, method, *arguments):
        results = [getattr(machine, method)(*arguments) for machine in self.machines]
        assert results[0] == results[1]
        return results[0]

    @rule(ms=st.integers(0, 3000))
    def time_passes(self, ms):
        self.now += ms * MS

    @rule(priority=st.integers(-2, 4), slack=st.sampled_from([None, -5, 0, 10, 1000]), count=st.integers(1, 12))
    def ask(self, priority, slack, count):
        deadline = NEVER_NS if slack is None else self.now + slack * MS
        for _ in range(count):
            looked = self.each("check", priority, deadline, self.now)
            permit = self.each("try_acquire", priority, deadline, self.now)
            assert permit == self.now if looked == 1 else permit == looked
            self.asked += 1
            if permit > 0:
                self.given += 1
                self.out.append(permit)
                assert len(self.out) <= self.machines[0].adaptation.allowed
            elif permit == FULL:
                assert len(self.out) >= 1

    @precondition(lambda self: self.out)
    @rule(
        count=st.integers(1, 40),
        how=st.sampled_from(["succeed", "batch", "exceed_deadline", "reject_inside", "release"]),
        queued=st.integers(0, 500),
        place=st.integers(0, 100),
    )
    def end(self, count, how, queued, place):
        for _ in range(min(count, len(self.out))):
            permit = self.out.pop(place % len(self.out))
            if how == "succeed":
                self.each("succeed", permit, UNKNOWN, 0, self.now)
            elif how == "batch":
                self.each("succeed", permit, queued * MS, self.now, self.now)
            elif how == "exceed_deadline":
                self.each("exceed_deadline", permit, queued * MS, self.now)
            elif how == "reject_inside":
                self.each("reject_inside", permit, self.now)
            else:
                self.each("release", self.now)

    @rule(objective=st.sampled_from([0.0, 50.0, 1000.0]), burning=st.booleans())
    def set_objective(self, objective, burning):
        self.each("set_objective", objective * MS, burning)

    @invariant()
    def counts_and_bounds(self):
        if not hasattr(self, "machines"):
            return
        one, two = self.machines
        for name in (
            "in_flight", "admitted", "rejected", "infeasible", "succeeded", "deadline_exceeded", "inner_rejected",
            "ignored", "stale_permits", "interval_ns",
        ):  # fmt: skip
            assert getattr(one, name) == getattr(two, name), name
        for name in (
            "limit", "allowed", "windows", "target_ns", "queue_delay_ns", "service_ns", "mean_ns", "fastest_ns", "burning",
        ):  # fmt: skip
            assert getattr(one.adaptation, name) == getattr(two.adaptation, name), name
        assert one.in_flight == len(self.out)
        assert one.admitted == self.given
        assert one.admitted + one.rejected + one.infeasible == self.asked
        ended = one.succeeded + one.deadline_exceeded + one.inner_rejected + one.ignored
        assert one.admitted == ended + one.in_flight
        assert 1 <= one.adaptation.allowed <= math.floor(one.adaptation.limit)
        assert one.adaptation.limit == self.first if not self.adaptive else 1 <= one.adaptation.limit <= 60
        assert self.each("drain_ns", self.now) >= 0
        assert self.each("wait_ns", 1, 2, self.now) <= self.each("wait_ns", 1, 3, self.now)
        assert (self.each("drain_ns", self.now) == 0) or self.out


@pytest.fixture(autouse=True, scope="module")
def _twin(plain):
    machine = plain("resilience.limit._state_machine_cy")
    Twins.twin = machine.LimitAdaptation, machine.LimitMachine


TestTwins = Twins.TestCase


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 200)), min_size=5, max_size=60))
def test_limit_stays_within_bounds(rounds):
    """Whatever is measured, the limit stays within its bounds and rises by at most its square root at a time."""
    machine = make(limit=20, low=4, high=40, delay_ms=30)
    now = S
    for queued_ms, served_ms in rounds:
        before = machine.adaptation.limit
        now = round_of(machine, now, queued_ms, served_ms, count=min(10, machine.adaptation.allowed))
        assert 4 <= machine.adaptation.limit <= 40
        assert machine.adaptation.limit <= before + math.sqrt(before) + 1e-9

"""The shares of routes: each rule of the module's docstring, and a stateful property test of its invariants."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streaminfer.routing.fallback._degradation_cy import DegradationController
from streaminfer.routing.fallback._route_share_cy import BAD, GOOD, IGNORED, LATE, RouteShare

pytestmark = pytest.mark.uncompiled

STEP = 1000


def make(*, devices=(0, 0), backed=False, module=None):
    share_type, degradation_type = (
        (RouteShare, DegradationController) if module is None else (module.RouteShare, module.DegradationController)
    )
    last = len(devices) - 1
    shares = [
        share_type(device, device in devices[at + 1 :], at < last, at == last, at == last and not backed)
        for at, device in enumerate(devices)
    ]
    made = degradation_type(shares, STEP)
    made.step(0, False)
    return made


def serve(degradation, position, outcomes, *, limit_ns=1000, duration_ns=900):
    """Offer one request per outcome to one route; return how many it takes."""
    taken = 0
    for outcome in outcomes:
        share = degradation.shares[position]
        degradation.arrive(0)
        if share.offers():
            share.take()
            share.settle(outcome, duration_ns, limit_ns, 0)
            taken += 1
    return taken


def steps(degradation, count, outcomes=(GOOD,) * 20, *, burning=False, start=1, **kwargs):
    for number in range(start, start + count):
        serve(degradation, 0, outcomes, **kwargs)
        degradation.step(number * STEP, burning)
    return degradation.shares[0].fraction


def test_healthy_routes_keep_the_whole_traffic():
    assert steps(make(), 50) == 1.0


def test_failing_route_is_halved_and_returns_gradually():
    """A failing route loses half of its share and regains at most a tenth of the traffic per step."""
    degradation = make()
    assert steps(degradation, 1, [GOOD] * 10 + [BAD] * 10) == pytest.approx(0.5)
    assert (degradation.shares[0].cuts, degradation.shares[0].flaps) == (1, 1)
    shares = [steps(degradation, 1, [GOOD] * 40, start=start) for start in range(2, 40)]
    assert shares[0] == pytest.approx(0.5)  # a share does not grow in the step after a cut
    assert shares == sorted(shares)
    assert all(after - before <= 0.1 + 1e-9 for before, after in pairwise(shares))
    assert shares[-1] == 1.0
    assert degradation.shares[0].flaps == 1


def test_few_failures_do_not_change_share():
    """A tenth of failed attempts, or a single failure, does not change the share of a route."""
    assert steps(make(), 1, [BAD] * 2 + [GOOD] * 18) == 1.0
    assert steps(make(), 1, [BAD] + [GOOD] * 7) == 1.0


@pytest.mark.parametrize(
    ("failed", "requests", "share"),
    [(2, 6, 0.5), (2, 7, 1.0), (3, 8, 0.5), (8, 50, 1.0), (9, 50, 0.5), (115, 1000, 1.0), (117, 1000, 0.5)],
)
def test_chance_alone_does_not_cut_a_share(failed, requests, share):
    """A share is cut only if more than a tenth of the requests fail, and more than chance explains at that rate."""
    outcomes = [BAD] * failed + [GOOD] * (requests - failed)
    degradation = make()
    serve(degradation, 0, outcomes)
    degradation.step((1 if requests >= 8 else 8) * STEP, False)
    assert degradation.shares[0].fraction == pytest.approx(share)


@pytest.mark.parametrize("requests", [8, 50, 250])
def test_route_with_few_failures_keeps_traffic(requests):
    """A route with less than a tenth of its attempts failing keeps its traffic.

    With one attempt in twenty failing at random, the best route keeps at least nine tenths of the traffic.
    """
    degradation = make()
    draw = random.Random(1)
    fractions = [
        steps(degradation, 1, [BAD if draw.random() < 0.05 else GOOD for _ in range(requests)], start=start)
        for start in range(1, 400)
    ]
    assert sum(fractions) / len(fractions) > 0.9


def serve_batches(degradation, outcomes, *, rows, start):
    """Send batches, one per outcome, whose requests all have the outcome of their batch."""
    for number, outcome in enumerate(outcomes):
        for _ in range(rows):
            degradation.arrive(0)
            share = degradation.shares[0]
            if share.offers():
                share.take()
                share.settle(outcome, 900, 1000, 0, start + number)


@pytest.mark.parametrize(("batches", "rows"), [(4, 7), (8, 32), (2, 16)])
def test_route_with_few_failed_batches_keeps_traffic(batches, rows):
    """A route with less than a tenth of its batches failing keeps its traffic.

    The requests of a batch fail together, so chance explains more failures; here one batch in twenty fails.
    """
    degradation = make()
    draw = random.Random(1)
    fractions = []
    for step in range(1, 400):
        outcomes = [BAD if draw.random() < 0.05 else GOOD for _ in range(batches)]
        serve_batches(degradation, outcomes, rows=rows, start=step * STEP)
        degradation.step(step * STEP, False)
        fractions.append(degradation.shares[0].fraction)
    assert sum(fractions) / len(fractions) > 0.9


@pytest.mark.parametrize(
    ("bad", "good", "share"), [(1, 0, 0.5), (1, 1, 1.0), (1, 3, 1.0), (2, 2, 0.5), (2, 8, 1.0), (4, 6, 0.5)]
)
def test_unlikely_batch_failures_cut_share(bad, good, share):
    """Failed batches cut a share if chance does not explain them. One failed batch of several changes nothing."""
    degradation = make()
    serve_batches(degradation, [BAD] * bad + [GOOD] * good, rows=10, start=1)
    degradation.step(STEP, False)
    assert degradation.shares[0].fraction == pytest.approx(share)


def test_rows_that_fail_alone_are_failures_each():
    """If every third row of a batch fails and the others succeed, each failed row counts, and the share is cut."""
    degradation = make()
    for number in range(30):
        degradation.arrive(0)
        degradation.shares[0].offers()
        degradation.shares[0].take()
        degradation.shares[0].settle(GOOD if number % 3 else BAD, 900, 1000, 0, 7)
    degradation.step(STEP, False)
    assert degradation.shares[0].fraction == pytest.approx(0.5)


@pytest.mark.parametrize("requests", [50, 100, 250, 1000])
def test_rare_misses_do_not_change_shares(requests):
    """With one request in 200 late or missed at random, the best route keeps its traffic and needs little headroom."""
    degradation, draw = make(), random.Random(1)
    fractions = []
    for number in range(1, 400):
        serve(degradation, 0, [LATE if draw.random() < 0.005 else GOOD for _ in range(requests)])
        for _ in range(requests):
            if draw.random() < 0.005:
                degradation.missed(1, 1000)
        degradation.step(number * STEP, False)
        fractions.append(degradation.shares[0].fraction)
    assert sum(fractions) / len(fractions) > 0.95
    assert degradation.shares[0].headroom < 0.1


def crowd(degradation, number, responds, burning=False):
    """Run a step in which the first route takes its share and the second the rest, which is late if it hangs."""
    best, rest = degradation.shares
    for _ in range(50):
        degradation.arrive(0)
        share = best if best.offers() else rest
        share.take()
        good = share is best or responds
        share.settle(GOOD if good else LATE, 900, 1000, 0)
        if not good:
            degradation.missed(1 << rest.device, 1000)
    degradation.step(number * STEP, burning)


def test_a_share_grows_back_beside_a_route_that_hangs():
    """A share grows beside a cheaper route of its device that hangs, because that route can take over no traffic."""
    degradation = make()
    for _ in range(50):
        degradation.missed(1, 1000)
    serve(degradation, 0, [GOOD] * 50)
    degradation.step(STEP, False)
    assert degradation.shares[0].fraction == pytest.approx(0.5)

    for number in range(2, 30):
        crowd(degradation, number, responds=False)
    assert degradation.shares[0].fraction == 1.0


def test_route_that_responds_again_relieves_device():
    """The share of a route is cut again after the first step in which a cheaper route of its device responds."""
    degradation = make()
    cuts = 0
    for number in range(1, 9):
        cuts = degradation.shares[0].cuts
        serve(degradation, 0, [GOOD] * 50)
        for _ in range(50):
            degradation.missed(1, 1000)
        degradation.step(number * STEP, False)
    assert degradation.shares[0].cuts == cuts < 3

    serve(degradation, 0, [GOOD] * 50)
    for _ in range(25):
        degradation.missed(1, 1000)
        degradation.shares[1].take()
        degradation.shares[1].settle(GOOD, 100, 1000, 0)
    degradation.step(9 * STEP, False)
    assert degradation.shares[0].cuts == cuts + 1


def test_burning_closes_no_route_beside_hanging_one():
    """A burning budget does not keep a route closed beside one that hangs.

    The closed route returns after three steps in which no other route has responded, and is not closed again.
    """
    degradation = make(devices=(0, 1))
    for number in range(1, 4):
        for _ in range(50):
            degradation.arrive(0)
            degradation.shares[1].take()
            degradation.shares[1].settle(LATE, 1000, 1000, 0)
            degradation.missed(2, 1000)
        degradation.step(number * STEP, True)
        assert degradation.shares[0].closed is (number < 3)

    for number in range(4, 40):
        crowd(degradation, number, responds=False, burning=True)
        assert not degradation.shares[0].closed
    assert degradation.shares[0].fraction == 1.0


def test_neutral_outcomes_count_for_nothing():
    assert steps(make(), 5, [IGNORED] * 20) == 1.0


def test_the_share_is_spread_evenly():
    degradation = make()
    steps(degradation, 1, [GOOD] * 10 + [BAD] * 10)
    offered = []
    for _ in range(20):
        offered.append(degradation.shares[0].offers())
        if offered[-1]:
            degradation.shares[0].take()
            degradation.shares[0].settle(IGNORED, 0, 0, 0)
    assert sum(offered) in (10, 11)
    assert all(any(pair) for pair in pairwise(offered))


def test_smallest_share_gets_one_request_per_step():
    """A route with the smallest share is offered one request per step."""
    degradation = make()
    for number in range(1, 40):
        serve(degradation, 0, [BAD] * 200)
        degradation.step(number * STEP, False)
    assert degradation.shares[0].fraction == pytest.approx(0.01)
    assert serve(degradation, 0, [IGNORED] * 20) == 1


def test_headroom_rises_when_late_and_falls_slowly():
    """Late responses raise the headroom of a route; without them it falls slowly."""
    degradation = make()
    share = degradation.shares[0]
    assert steps(degradation, 1, [GOOD] * 18 + [LATE] * 2) == 1.0
    assert share.headroom == pytest.approx(0.1)
    share.take()
    assert share.risks(0, 1000, 901)
    assert not share.risks(0, 1000, 899)
    steps(degradation, 1, start=2)
    assert share.headroom == pytest.approx(0.0975)
    for number in range(3, 20):
        serve(degradation, 0, [LATE] * 20)
        degradation.step(number * STEP, False)
    assert share.headroom == 0.5
    assert share.fraction < 1.0  # the largest headroom did not help


def test_headroom_of_hang_falls_fast_for_quick_route():
    """Headroom that a hang raised falls fast while responses take little of their time."""
    degradation = make(devices=(0, 1))
    share = degradation.shares[0]
    steps(degradation, 3, [GOOD] * 10 + [LATE] * 10)
    made = share.headroom
    assert made == pytest.approx(0.4)
    steps(degradation, 1, start=4)
    assert share.headroom == pytest.approx(made - 0.0025)  # they take most of their time: the device may be crowded
    steps(degradation, 1, start=5, duration_ns=100)
    assert share.headroom == pytest.approx((made - 0.0025) / 2 - 0.0025)
    steps(degradation, 6, start=6, duration_ns=100)
    assert share.headroom == 0.0


def test_headroom_falls_slowly_while_share_recovers():
    """While the share of a route recovers, its headroom falls slowly, however quick the responses are."""
    degradation = make(devices=(0, 1))
    steps(degradation, 3, [GOOD] * 10 + [LATE] * 10)
    steps(degradation, 1, [GOOD] * 10 + [BAD] * 10, start=4)
    made = degradation.shares[0].headroom
    assert steps(degradation, 2, start=5, duration_ns=100) < 1.0
    assert degradation.shares[0].headroom == pytest.approx(made - 0.005)


def test_lone_request_needs_no_headroom():
    """A request that would run alone needs no headroom unless the last response of the route was late."""
    degradation = make()
    share = degradation.shares[0]
    steps(degradation, 1, [LATE] * 4 + [GOOD] * 16)
    assert share.headroom > 0.1
    assert not share.risks(0, 1000, 999)
    serve(degradation, 0, [LATE])
    assert share.suspect
    assert share.risks(0, 1000, 751)
    assert not share.risks(0, 1000, 749)
    assert not degradation.shares[1].risks(0, 1000, 5000)  # no route follows it


def test_costlier_route_gives_way_on_crowded_device():
    """On a crowded device the costlier route loses part of its share, and the cheaper route keeps its share."""
    degradation = make()
    serve(degradation, 0, [GOOD] * 40)
    serve(degradation, 1, [GOOD] * 60)
    for _ in range(10):
        degradation.missed(1, 1000)
    degradation.step(STEP, False)
    assert degradation.shares[0].fraction == pytest.approx(0.75)
    assert degradation.shares[1].fraction == 1.0


def test_infeasible_requests_do_not_crowd_device():
    """Requests with less time than the quickest response took do not make a device count as crowded."""
    degradation = make()
    for number in range(1, 30):
        serve(degradation, 0, [GOOD] * 40)
        serve(degradation, 1, [GOOD] * 40, duration_ns=500)
        for _ in range(20):
            degradation.missed(1, 499)
        degradation.step(number * STEP, False)
    assert degradation.shares[0].fraction == 1.0
    serve(degradation, 0, [GOOD] * 40)
    for _ in range(20):
        degradation.missed(1, 500)  # the cheaper route was as quick
    degradation.step(30 * STEP, False)
    assert degradation.shares[0].fraction < 0.7


def test_infeasible_attempts_do_not_count_as_load():
    """Late attempts with less time than the quickest response took change neither share nor headroom."""
    degradation = make(backed=True)
    steps(degradation, 1)
    for number in range(2, 30):
        serve(degradation, 0, [GOOD] * 20)
        serve(degradation, 0, [LATE] * 20, limit_ns=899)
        degradation.step(number * STEP, False)
    share = degradation.shares[0]
    assert (share.fraction, share.headroom, share.suspect) == (1.0, 0.0, False)
    serve(degradation, 0, [LATE] * 20, limit_ns=900)
    degradation.step(30 * STEP, False)
    assert share.headroom > 0.0
    assert share.suspect


def test_routes_on_separate_devices_do_not_give_way():
    """A route keeps its share if requests miss their deadline because of another device."""
    degradation = make(devices=(0, 1))
    serve(degradation, 0, [GOOD] * 100)
    for _ in range(10):
        degradation.missed(1 << 1, 1000)
    degradation.step(STEP, False)
    assert degradation.shares[0].fraction == 1.0


def test_share_is_stable_between_calm_and_crowded():
    """The share does not change while the rate of misses is between the calm and the crowded limit."""
    degradation = make()
    serve(degradation, 0, [GOOD] * 10 + [BAD] * 10)
    degradation.step(STEP, False)
    for number in range(2, 30):
        serve(degradation, 0, [GOOD] * 400)
        for _ in range(2):  # 0.5 %
            degradation.missed(1, 1000)
        degradation.step(number * STEP, False)
    assert degradation.shares[0].fraction == pytest.approx(0.5)


def test_burning_closes_best_routes_but_never_last():
    """A burning budget closes the best routes one after the other, but never the last one."""
    degradation = make(devices=(0, 0, 0))
    serve(degradation, 0, [GOOD] * 20)
    degradation.step(STEP, True)
    assert [share.closed for share in degradation.shares] == [True, False, False]
    assert not degradation.shares[0].offers()
    for number in range(2, 30):
        serve(degradation, 1, [GOOD] * 20)
        degradation.missed(0, 1000)
        degradation.missed(0, 1000)
        degradation.step(number * STEP, True)
    assert [share.closed for share in degradation.shares] == [True, True, False]
    degradation.step(30 * STEP, False)
    assert [share.fraction for share in degradation.shares] == [0.05, 0.05, 1.0]


def test_share_doubles_after_burning():
    """After burning, a share first doubles per step and is whole after 12 steps (three seconds by default)."""
    degradation = make()
    serve(degradation, 0, [GOOD] * 20)
    degradation.step(STEP, True)
    degradation.step(2 * STEP, False)
    shares = [degradation.shares[0].fraction]
    for number in range(3, 15):
        serve(degradation, 0, [GOOD] * 100)
        degradation.step(number * STEP, False)
        shares.append(degradation.shares[0].fraction)
    assert shares[:3] == pytest.approx([0.05, 0.1, 0.2])
    assert shares[-1] == 1.0


def test_fast_responses_restore_a_share_faster():
    easy, hard = make(), make()
    for degradation in (easy, hard):
        steps(degradation, 1, [BAD] * 20)
    assert steps(easy, 4, [GOOD] * 100, start=2, duration_ns=50) > steps(hard, 4, [GOOD] * 100, start=2)


def test_step_with_few_requests_is_extended():
    """The controller judges a route with fewer than eight requests only after eight steps."""
    degradation = make()
    for number in range(1, 7):
        serve(degradation, 0, [BAD] if number < 3 else [])
        degradation.step(number * STEP, False)
        assert degradation.shares[0].fraction == 1.0
    degradation.step(7 * STEP, False)
    assert degradation.shares[0].fraction < 1.0


def test_last_route_is_cut_only_with_default():
    """The share of the last route is cut only if there is a default response."""
    for backed in (False, True):
        degradation = make(backed=backed)
        serve(degradation, 1, [BAD] * 20)
        degradation.step(STEP, False)
        assert (degradation.shares[1].fraction < 1.0) is backed


@given(st.lists(st.tuples(st.sampled_from([GOOD, BAD, LATE, IGNORED]), st.integers(0, 1), st.booleans()), max_size=200))
def test_compiled_and_plain_agree(plain, events):
    module = plain("routing.fallback._degradation_cy")
    pair = [make(), make(module=module)]
    for number, (outcome, position, missed) in enumerate(events):
        for degradation in pair:
            serve(degradation, position, [outcome] * 5)
            if missed:
                degradation.missed(1, 1000)
            degradation.step(number * STEP, number % 17 > 14)
        ours, theirs = (
            [n for r in degradation.shares for n in (r.fraction, r.headroom, r.cuts)] for degradation in pair
        )
        assert ours == pytest.approx(theirs)


class Machine(RuleBasedStateMachine):
    """The invariants hold under any traffic, and after it each route regains its whole share."""

    def __init__(self):
        super().__init__()
        self.degradation = make(devices=(0, 0, 1))
        self.now = 0
        self.out = [0, 0, 0]
        self.sent = self.steps = 0  # since the last step with enough requests to judge a route

    @rule(position=st.integers(0, 2), outcome=st.sampled_from([GOOD, BAD, LATE, IGNORED]), count=st.integers(1, 40))
    def requests(self, position, outcome, count):
        serve(self.degradation, position, [outcome] * count)
        self.sent += count

    @rule(position=st.integers(0, 2))
    def hang(self, position):
        self.degradation.arrive(self.now)
        if self.degradation.shares[position].offers():
            self.degradation.shares[position].take()
            self.out[position] += 1

    @precondition(lambda self: any(self.out))
    @rule(outcome=st.sampled_from([GOOD, BAD, LATE, IGNORED]))
    def come_back(self, outcome):
        position = next(at for at, count in enumerate(self.out) if count)
        self.out[position] -= 1
        self.degradation.shares[position].settle(outcome, 5, 10, self.now)

    @rule(devices=st.integers(0, 3), count=st.integers(1, 20))
    def miss(self, devices, count):
        for _ in range(count):
            self.degradation.missed(devices, 1000)

    @rule(burning=st.booleans())
    def step(self, burning):
        before = [share.fraction for share in self.degradation.shares]
        cuts = [share.cuts for share in self.degradation.shares]
        self.now += STEP
        self.degradation.step(self.now, burning)
        self.steps += 1
        for share, fraction, cut in zip(self.degradation.shares, before, cuts, strict=True):
            most = fraction
            for _ in range(self.steps):
                most = max(2 * most, most + 0.2, 0.05)
            assert share.fraction <= most + 1e-9
            assert share.cuts - cut <= 2
            assert share.fraction >= fraction or share.cuts > cut
        if self.sent >= 8:
            self.sent = self.steps = 0

    @invariant()
    def bounds(self):
        for share, out in zip(self.degradation.shares, self.out, strict=True):
            assert (share.fraction == 0.0) if share.closed else (0.01 <= share.fraction <= 1.0)
            assert 0.0 <= share.headroom <= 0.5
            assert share.in_flight == out
        assert not self.degradation.shares[-1].closed
        assert self.degradation.shares[-1].fraction == 1.0

    def teardown(self):
        for _ in range(200):
            for position in (2, 1, 0):
                serve(self.degradation, position, [GOOD] * 30)
            self.now += STEP
            self.degradation.step(self.now, False)
        assert [share.fraction for share in self.degradation.shares] == [1.0, 1.0, 1.0]
        assert self.degradation.shares[0].headroom < 0.3


TestMachine = Machine.TestCase

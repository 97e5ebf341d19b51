"""The ladder of shares: every rule of its essay, and a model-free machine for its invariants."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streaminfer.routing.fallback._degradation_cy import BAD, GOOD, LATE, NEUTRAL, DegradationController, RouteShare

pytestmark = pytest.mark.uncompiled

STEP = 1000


def ladder(*, devices=(0, 0), backed=False, module=None):
    rung_type, ladder_type = (
        (RouteShare, DegradationController) if module is None else (module.RouteShare, module.DegradationController)
    )
    last = len(devices) - 1
    rungs = [
        rung_type(device, device in devices[at + 1 :], at < last, at == last, at == last and not backed)
        for at, device in enumerate(devices)
    ]
    made = ladder_type(rungs, STEP)
    made.step(0, False)
    return made


def serve(rungs, position, outcomes, *, limit_ns=1000, duration_ns=900):
    """Requests that are offered to one rung, and how those that it takes end."""
    taken = 0
    for outcome in outcomes:
        rung = rungs.rungs[position]
        rungs.arrive(0)
        if rung.offers():
            rung.take()
            rung.settle(outcome, duration_ns, limit_ns, 0)
            taken += 1
    return taken


def steps(rungs, count, outcomes=(GOOD,) * 20, *, burning=False, start=1, **kwargs):
    for number in range(start, start + count):
        serve(rungs, 0, outcomes, **kwargs)
        rungs.step(number * STEP, burning)
    return rungs.rungs[0].share


def test_healthy_routes_keep_the_whole_traffic():
    assert steps(ladder(), 50) == 1.0


def test_a_failing_route_is_halved_and_comes_back_gradually():
    rungs = ladder()
    assert steps(rungs, 1, [GOOD] * 10 + [BAD] * 10) == pytest.approx(0.5)
    assert (rungs.rungs[0].cuts, rungs.rungs[0].departures) == (1, 1)
    shares = [steps(rungs, 1, [GOOD] * 40, start=start) for start in range(2, 40)]
    assert shares[0] == pytest.approx(0.5)  # it rests
    assert shares == sorted(shares)
    assert all(after - before <= 0.1 + 1e-9 for before, after in pairwise(shares))
    assert shares[-1] == 1.0
    assert rungs.rungs[0].departures == 1


def test_a_tenth_of_failures_or_a_single_one_change_nothing():
    assert steps(ladder(), 1, [BAD] * 2 + [GOOD] * 18) == 1.0
    assert steps(ladder(), 1, [BAD] + [GOOD] * 7) == 1.0


def test_neutral_outcomes_count_for_nothing():
    assert steps(ladder(), 5, [NEUTRAL] * 20) == 1.0


def test_the_share_is_spread_evenly():
    rungs = ladder()
    steps(rungs, 1, [GOOD] * 10 + [BAD] * 10)
    offered = []
    for _ in range(20):
        offered.append(rungs.rungs[0].offers())
        if offered[-1]:
            rungs.rungs[0].take()
            rungs.rungs[0].settle(NEUTRAL, 0, 0, 0)
    assert sum(offered) in (10, 11)
    assert all(any(pair) for pair in pairwise(offered))


def test_with_the_least_share_one_request_a_step_is_offered():
    rungs = ladder()
    for number in range(1, 40):
        serve(rungs, 0, [BAD] * 200)
        rungs.step(number * STEP, False)
    assert rungs.rungs[0].share == pytest.approx(0.01)
    assert serve(rungs, 0, [NEUTRAL] * 20) == 1


def test_late_answers_raise_the_headroom_and_its_lack_is_forgotten_slowly():
    rungs = ladder()
    rung = rungs.rungs[0]
    assert steps(rungs, 1, [GOOD] * 18 + [LATE] * 2) == 1.0
    assert rung.headroom == pytest.approx(0.1)
    rung.take()
    assert rung.risks(0, 1000, 901)
    assert not rung.risks(0, 1000, 899)
    steps(rungs, 1, start=2)
    assert rung.headroom == pytest.approx(0.0975)
    for number in range(3, 20):
        serve(rungs, 0, [LATE] * 20)
        rungs.step(number * STEP, False)
    assert rung.headroom == 0.5
    assert rung.share < 1.0  # more of it was no help


def test_headroom_that_a_hang_made_is_gone_soon_where_answers_take_little_of_their_time():
    rungs = ladder(devices=(0, 1))
    rung = rungs.rungs[0]
    steps(rungs, 3, [GOOD] * 10 + [LATE] * 10)
    made = rung.headroom
    assert made == pytest.approx(0.4)
    steps(rungs, 1, start=4)
    assert rung.headroom == pytest.approx(made - 0.0025)  # they take most of their time: the device may be crowded
    steps(rungs, 1, start=5, duration_ns=100)
    assert rung.headroom == pytest.approx((made - 0.0025) / 2 - 0.0025)
    steps(rungs, 6, start=6, duration_ns=100)
    assert rung.headroom == 0.0


def test_on_the_way_back_headroom_falls_slowly_however_little_time_answers_take():
    rungs = ladder(devices=(0, 1))
    steps(rungs, 3, [GOOD] * 10 + [LATE] * 10)
    steps(rungs, 1, [GOOD] * 10 + [BAD] * 10, start=4)
    made = rungs.rungs[0].headroom
    assert steps(rungs, 2, start=5, duration_ns=100) < 1.0
    assert rungs.rungs[0].headroom == pytest.approx(made - 0.005)


def test_one_that_would_be_alone_needs_no_headroom_unless_the_last_one_was_late():
    rungs = ladder()
    rung = rungs.rungs[0]
    steps(rungs, 1, [LATE] * 4 + [GOOD] * 16)
    assert rung.headroom > 0.1
    assert not rung.risks(0, 1000, 999)
    serve(rungs, 0, [LATE])
    assert rung.suspect
    assert rung.risks(0, 1000, 751)
    assert not rung.risks(0, 1000, 749)
    assert not rungs.rungs[1].risks(0, 1000, 5000)  # nothing stands behind it


def test_a_crowded_device_makes_the_dearer_route_give_way():
    rungs = ladder()
    serve(rungs, 0, [GOOD] * 40)
    serve(rungs, 1, [GOOD] * 60)
    for _ in range(10):
        rungs.missed(1)
    rungs.step(STEP, False)
    assert rungs.rungs[0].share == pytest.approx(0.75)
    assert rungs.rungs[1].share == 1.0


def test_routes_with_a_device_each_do_not_give_way_to_each_other():
    rungs = ladder(devices=(0, 1))
    serve(rungs, 0, [GOOD] * 100)
    for _ in range(10):
        rungs.missed(1 << 1)
    rungs.step(STEP, False)
    assert rungs.rungs[0].share == 1.0


def test_between_calm_and_crowded_nothing_moves():
    rungs = ladder()
    serve(rungs, 0, [GOOD] * 10 + [BAD] * 10)
    rungs.step(STEP, False)
    for number in range(2, 30):
        serve(rungs, 0, [GOOD] * 400)
        for _ in range(2):  # 0.5 %
            rungs.missed(1)
        rungs.step(number * STEP, False)
    assert rungs.rungs[0].share == pytest.approx(0.5)


def test_burning_closes_the_best_routes_one_after_the_other_but_never_the_last():
    rungs = ladder(devices=(0, 0, 0))
    serve(rungs, 0, [GOOD] * 20)
    rungs.step(STEP, True)
    assert [rung.closed for rung in rungs.rungs] == [True, False, False]
    assert not rungs.rungs[0].offers()
    for number in range(2, 30):
        serve(rungs, 1, [GOOD] * 20)
        rungs.missed(0)
        rungs.missed(0)
        rungs.step(number * STEP, True)
    assert [rung.closed for rung in rungs.rungs] == [True, True, False]
    rungs.step(30 * STEP, False)
    assert [rung.share for rung in rungs.rungs] == [0.05, 0.05, 1.0]


def test_return_after_burning_doubles_and_is_complete_within_three_seconds_of_quarter_steps():
    rungs = ladder()
    serve(rungs, 0, [GOOD] * 20)
    rungs.step(STEP, True)
    rungs.step(2 * STEP, False)
    shares = [rungs.rungs[0].share]
    for number in range(3, 15):
        serve(rungs, 0, [GOOD] * 100)
        rungs.step(number * STEP, False)
        shares.append(rungs.rungs[0].share)
    assert shares[:3] == pytest.approx([0.05, 0.1, 0.2])
    assert shares[-1] == 1.0


def test_easy_answers_let_it_return_faster():
    easy, hard = ladder(), ladder()
    for rungs in (easy, hard):
        steps(rungs, 1, [BAD] * 20)
    assert steps(easy, 4, [GOOD] * 100, start=2, duration_ns=50) > steps(hard, 4, [GOOD] * 100, start=2)


def test_a_step_with_few_requests_goes_on():
    rungs = ladder()
    for number in range(1, 7):
        serve(rungs, 0, [BAD] if number < 3 else [])
        rungs.step(number * STEP, False)
        assert rungs.rungs[0].share == 1.0
    rungs.step(7 * STEP, False)
    assert rungs.rungs[0].share < 1.0


def test_the_last_route_is_cut_only_where_a_default_stands_behind_it():
    for backed in (False, True):
        rungs = ladder(backed=backed)
        serve(rungs, 1, [BAD] * 20)
        rungs.step(STEP, False)
        assert (rungs.rungs[1].share < 1.0) is backed


@given(st.lists(st.tuples(st.sampled_from([GOOD, BAD, LATE, NEUTRAL]), st.integers(0, 1), st.booleans()), max_size=200))
def test_compiled_and_plain_agree(plain, events):
    module = plain("routing.fallback._degradation_cy")
    pair = [ladder(), ladder(module=module)]
    for number, (outcome, position, missed) in enumerate(events):
        for rungs in pair:
            serve(rungs, position, [outcome] * 5)
            if missed:
                rungs.missed(1)
            rungs.step(number * STEP, number % 17 > 14)
        ours, theirs = ([n for r in rungs.rungs for n in (r.share, r.headroom, r.cuts)] for rungs in pair)
        assert ours == pytest.approx(theirs)


class Machine(RuleBasedStateMachine):
    """Any traffic: invariants hold, and after it every route comes back."""

    def __init__(self):
        super().__init__()
        self.ladder = ladder(devices=(0, 0, 1))
        self.now = 0
        self.out = [0, 0, 0]

    @rule(position=st.integers(0, 2), outcome=st.sampled_from([GOOD, BAD, LATE, NEUTRAL]), count=st.integers(1, 40))
    def requests(self, position, outcome, count):
        serve(self.ladder, position, [outcome] * count)

    @rule(position=st.integers(0, 2))
    def hang(self, position):
        self.ladder.arrive(self.now)
        if self.ladder.rungs[position].offers():
            self.ladder.rungs[position].take()
            self.out[position] += 1

    @precondition(lambda self: any(self.out))
    @rule(outcome=st.sampled_from([GOOD, BAD, LATE, NEUTRAL]))
    def come_back(self, outcome):
        position = next(at for at, count in enumerate(self.out) if count)
        self.out[position] -= 1
        self.ladder.rungs[position].settle(outcome, 5, 10, self.now)

    @rule(devices=st.integers(0, 3), count=st.integers(1, 20))
    def miss(self, devices, count):
        for _ in range(count):
            self.ladder.missed(devices)

    @rule(burning=st.booleans())
    def step(self, burning):
        before = [rung.share for rung in self.ladder.rungs]
        cuts = [rung.cuts for rung in self.ladder.rungs]
        self.now += STEP
        self.ladder.step(self.now, burning)
        for rung, share, cut in zip(self.ladder.rungs, before, cuts, strict=True):
            assert rung.share <= max(2 * share, share + 0.2, 0.05) + 1e-9
            assert rung.cuts - cut <= 2
            assert rung.share >= share or rung.cuts > cut

    @invariant()
    def bounds(self):
        for rung, out in zip(self.ladder.rungs, self.out, strict=True):
            assert (rung.share == 0.0) if rung.closed else (0.01 <= rung.share <= 1.0)
            assert 0.0 <= rung.headroom <= 0.5
            assert rung.in_flight == out
        assert not self.ladder.rungs[-1].closed
        assert self.ladder.rungs[-1].share == 1.0

    def teardown(self):
        for _ in range(200):
            for position in (2, 1, 0):
                serve(self.ladder, position, [GOOD] * 30)
            self.now += STEP
            self.ladder.step(self.now, False)
        assert [rung.share for rung in self.ladder.rungs] == [1.0, 1.0, 1.0]
        assert self.ladder.rungs[0].headroom < 0.3


TestMachine = Machine.TestCase

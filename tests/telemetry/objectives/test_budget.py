"""The ring of an error budget, compared with a list of events and with its uncompiled source."""

import random
import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streaminfer.errors import InvalidInput, Overloaded
from streaminfer.telemetry.histograms.rolling_histogram import RollingState
from streaminfer.telemetry.objectives.alerts import AlertPair
from streaminfer.telemetry.objectives.slo import SLO, BudgetState, BurnSignal
from streaminfer.testing import FakeClock

pytestmark = pytest.mark.uncompiled

OUTCOMES = {"good": 0.1, "late": 0.2, "failed": KeyError("x"), "rejected": Overloaded(), "ignored": InvalidInput("x")}
PERIOD_S = 1000.0


def make(clock, **settings):
    return SLO(
        "ring",
        threshold_s=0.1,
        objective=0.9,
        period_s=PERIOD_S,
        alert_pairs=(),
        signal=BurnSignal(window_s=24.0, short_s=2.0, starts_at=2.0, minimum_events=3),
        clock=clock,
        **settings,
    )


class RingAgainstList(RuleBasedStateMachine):
    """Random operations; a window has the events of the list for its length, or for up to the stated bound longer."""

    def __init__(self):
        super().__init__()
        self.clock = FakeClock(10**15)
        self.slo = make(self.clock)
        self.began = self.now = self.clock.now_ns
        self.events = []
        self.was_burning, self.since = False, 0

    @rule(
        seconds=st.one_of(
            st.floats(0.0, 0.2), st.floats(0.0, 30.0), st.floats(0.0, 1.2 * PERIOD_S), st.sampled_from([0.0, 1e7])
        )
    )
    def time_passes(self, seconds):
        self.clock.advance(seconds)
        self.now = max(self.now, self.clock.now_ns)

    @rule(whole=st.integers(1, 300))
    def time_reaches_a_boundary(self, whole):
        width_ns = self.slo.width_ns
        self.clock.now_ns = self.began + ((self.now - self.began) // width_ns + whole) * width_ns
        self.now = self.clock.now_ns

    @rule(seconds=st.floats(0.0, 100.0))
    def the_clock_goes_back(self, seconds):
        self.clock.now_ns -= round(seconds * 1e9)

    @rule(kind=st.sampled_from(sorted(OUTCOMES)), count=st.integers(1, 20))
    def requests_end(self, kind, count):
        for _ in range(count):
            self.slo.record(OUTCOMES[kind])
            if kind != "ignored":
                self.events.append((self.now, kind))

    @rule(window_s=st.one_of(st.floats(1e-3, 1.0), st.floats(0.1, PERIOD_S), st.just(PERIOD_S)))
    def a_window_is_read(self, window_s):
        self.check(int(window_s * 1e9))

    @rule(level=st.integers(0, 8), buckets=st.floats(254.0, 257.0))
    def a_window_as_long_as_a_ring_is_read(self, level, buckets):
        self.check(min(int(buckets * 4**level * self.slo.width_ns), self.slo.period_ns))

    def check(self, window_ns):
        longer_ns = window_ns + max(self.slo.width_ns, window_ns // 63)
        seen, bad, rejected = self.slo.window(window_ns)
        for figure, kinds in (
            (seen, {"good", "late", "failed", "rejected"}),
            (bad, {"late", "failed", "rejected"}),
            (rejected, {"rejected"}),
        ):
            ages = [self.now - at for at, kind in self.events if kind in kinds]
            assert sum(age <= window_ns for age in ages) <= figure <= sum(age < longer_ns for age in ages)
        assert self.slo.burn_over(window_ns) == (bad / seen / 0.1 if seen else 0.0)

    @rule()
    def somebody_asks_whether_it_burns(self):
        def burn(window_s, least=1):
            seen, bad, rejected = self.slo.window(int(window_s * 1e9))
            return (bad - rejected) / (seen - rejected) / 0.1 if seen - rejected >= least else 0.0

        if self.was_burning:
            self.was_burning = not (self.now - self.since >= 24e9 and burn(24.0) < 1.0)
        elif burn(24.0, 3) >= 2.0 and burn(2.0) >= 2.0:
            self.was_burning, self.since = True, self.now
        assert self.slo.burning() is self.was_burning

    @invariant()
    def totals_are_exact(self):
        kinds = [kind for _, kind in self.events]
        slo = self.slo
        assert slo.total == len(kinds)
        assert (slo.late, slo.failed, slo.rejected) == tuple(map(kinds.count, ("late", "failed", "rejected")))
        assert slo.bad == slo.late + slo.failed + slo.rejected

    @invariant()
    def history_agrees_with_the_list(self):
        noted, width_ns = self.slo.history()
        assert len(noted) <= 257
        assert noted[-1] == (self.now - self.began, self.slo.total, self.slo.bad)
        assert noted[-1][0] - noted[0][0] <= PERIOD_S * 1e9 + width_ns
        for at, total, bad in noted[:-1]:
            before = [kind for instant, kind in self.events if instant - self.began < at]
            assert (total, bad) == (len(before), len(before) - before.count("good"))


RingAgainstList.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
TestRingAgainstList = RingAgainstList.TestCase


@pytest.mark.parametrize(
    ("period_s", "pairs"),
    [
        (30 * 86400.0, None),
        (7 * 86400.0, None),
        (60.0, None),
        (1.0, None),
        (3600.0, ()),
        (3600.0, (AlertPair(2.0, 9, 3),)),
    ],
)
def test_levels_cover_period_and_shortest_window(period_s, pairs):
    """The levels cover the period and resolve the shortest window, with no more levels than it takes."""
    signal = BurnSignal(window_s=min(60.0, period_s))
    slo = SLO("x", threshold_s=1.0, period_s=period_s, alert_pairs=pairs, signal=signal, clock=FakeClock())
    shortest_s = min([signal.window_s / 12, *(pair.short_s for pair in slo.alert_pairs)])
    assert slo.width_ns * 255 * 4 ** (slo.levels - 1) >= slo.period_ns
    assert slo.resolution_s <= max(shortest_s / 64, 1e-6)
    assert slo.levels <= 12
    coarser = slo.width_ns * 4
    assert slo.levels == 1 or coarser * 64 > shortest_s * 1e9 * 0.99, "no more levels than it takes"


def test_window_of_ring_length_has_valid_boundary():
    """A window as long as a ring is not read from a boundary that was overwritten.

    A window of 255.5 buckets that ends in the middle of a bucket begins at the oldest boundary of the ring.
    """
    clock = FakeClock()
    slo = make(clock)
    for _ in range(2000):
        clock.now_ns += slo.width_ns // 4
        slo.record(0.05)
    for quarters in range(1016, 1032):
        seen, _, _ = slo.window(quarters * (slo.width_ns // 4))
        assert quarters <= seen <= quarters * (1 + 1 / 63) + 1


def test_old_ring_is_right_at_every_window_length():
    """An old ring has the right events for every length of the window.

    After two periods with one event per second, every window has about as many events as seconds.
    """
    clock = FakeClock()
    slo = make(clock)
    for _ in range(2000):
        slo.record(0.05)
        clock.advance(1.0)
    for window_s in range(1, 1001):
        seen, bad, _ = slo.window(window_s * 10**9)
        assert bad == 0
        assert window_s <= seen <= window_s * (1 + 1 / 63) + 1


HISTOGRAMS, OBJECTIVES = "histograms.", "objectives."


@pytest.fixture
def twins(plain, monkeypatch):
    """Return uncompiled twins of the states, each of which imports uncompiled modules."""
    modules = {}
    for path in (HISTOGRAMS + "_monotonic_cy", HISTOGRAMS + "_histogram_cy", "_recorder_cy", OBJECTIVES + "_budget_cy"):
        folder, _, name = f"streaminfer.telemetry.{path}".rpartition(".")
        modules[name] = plain(f"telemetry.{path}")
        monkeypatch.setattr(sys.modules[folder], name, modules[name], raising=False)
        monkeypatch.setitem(sys.modules, f"{folder}.{name}", modules[name])
    for path in (OBJECTIVES + "_budget_cy", HISTOGRAMS + "_rolling_cy", OBJECTIVES + "_budget_recorder_cy"):
        # loaded again, so that their imports lead to the twins
        twin = f"plain_telemetry_{path.replace('.', '_')}"
        sys.modules.pop(twin, None)
        modules[path.rpartition(".")[2]] = plain(f"telemetry.{path}")
        monkeypatch.delitem(sys.modules, twin)
    return modules


def budget_story(state_class, clock):
    rng = random.Random(5)
    state = state_class(
        clock,
        10**8,
        0.1,
        10**12,
        10**9 // 32,
        9,
        (Overloaded,),
        (InvalidInput,),
        BurnSignal(window_s=24.0, short_s=2.0, starts_at=2.0, minimum_events=3, grace_s=60.0),
        1,
    )
    told = []
    for _ in range(3000):
        clock.advance(rng.choice([0.0, 0.001, 0.1, 1.0, 20.0]) * rng.random())
        state.record(OUTCOMES[rng.choice(sorted(OUTCOMES))])
        window_ns = rng.randrange(1, 10**12)
        told.append((state.burning(), state.window(window_ns), state.burn_over(window_ns)))
    return told, state.history(), state.total, state.ignored


def test_compiled_and_plain_budgets_agree(twins):
    story = budget_story(twins["_budget_cy"].BudgetState, FakeClock(9))
    assert story == budget_story(BudgetState, FakeClock(9))
    assert {burning for burning, *_ in story[0]} == {True, False}


def test_compiled_and_plain_rolling_states_agree(twins):
    def story(state_class):
        rng = random.Random(2)
        clock = FakeClock(3)
        state = state_class(clock, 4, 10**9, 10**6, 10**10, 2)
        told = []
        for _ in range(1500):
            clock.advance(rng.choice([0.0, 0.01, 0.5, 3.0]) * rng.random())
            state.record(rng.lognormvariate(-3, 2))
            state.record_ns(rng.randrange(10**10))
            told.append((state.live_count(), state.quantile(0.9), state.share_within(0.1)))
        return told, state.merged_counts()

    assert story(twins["_rolling_cy"].RollingState) == story(RollingState)


def test_the_plain_recorder_feeds_the_plain_budget(twins):
    clock = FakeClock()
    signal = BurnSignal(window_s=24.0, short_s=2.0)
    budget = twins["_budget_cy"].BudgetState(clock, 10, 0.1, 10**12, 10**9, 9, (), (), signal, 1)
    histograms = [twins["_histogram_cy"].HistogramState(1, 1000, 1) for _ in range(5)]
    recorder = twins["_budget_recorder_cy"].BudgetRecorder(budget, None, *histograms)
    for duration in (9, 10, 11):
        recorder.record(100, 100 + duration)
    assert (budget.total, budget.late, histograms[0].count) == (3, 1, 3)

"""The burn signal in a loop with a shedder that it controls: the signal must not oscillate and must not latch."""

import random
from itertools import pairwise

import pytest

from streaminfer.errors import Overloaded
from streaminfer.telemetry.objectives.slo import SLO, BurnSignal
from streaminfer.testing import FakeClock

pytestmark = pytest.mark.uncompiled

WINDOW_S = 6.0
THRESHOLD_S = 0.1


def make(clock, **settings):
    return SLO(
        "loop",
        threshold_s=THRESHOLD_S,
        objective=0.99,
        clock=clock,
        signal=BurnSignal(window_s=WINDOW_S, **settings),
    )


class Plant:
    """Server with a queue, and a shedder that rejects a share of the requests while the budget burns."""

    def __init__(self, *, sheds, capacity=100.0):
        self.clock = FakeClock()
        self.slo = make(self.clock)
        self.sheds, self.capacity = sheds, capacity
        self.backlog = 0.0
        self.rng = random.Random(1)
        self.was = False
        self.starts, self.ends = [], []
        self.late = 0

    def run(self, seconds, load):
        ends_at = self.clock.now_ns + round(seconds * 1e9)
        while self.clock.now_ns < ends_at:
            gap_s = self.rng.expovariate(load * self.capacity)
            self.clock.advance(gap_s)
            self.backlog = max(0.0, self.backlog - gap_s * self.capacity)
            burning = self.slo.burning()
            if burning != self.was:
                (self.starts if burning else self.ends).append(self.clock.now_ns / 1e9)
                self.was = burning
            if burning and self.rng.random() < self.sheds:
                self.slo.record(Overloaded())
                continue
            self.backlog += 1
            latency_s = self.backlog / self.capacity
            self.late += latency_s > THRESHOLD_S
            self.slo.record(latency_s)

    def gaps(self):
        return [later - earlier for earlier, later in pairwise(self.starts)]


@pytest.mark.parametrize("load", [0.8, 0.9, 0.95, 1.0, 1.05, 1.3, 2.0])
def test_burning_starts_at_most_once_per_window(load):
    plant = Plant(sheds=0.6)
    plant.run(180.0, load)
    assert all(gap >= WINDOW_S for gap in plant.gaps())
    if load >= 1.3:
        assert len(plant.starts) >= 3, "sustained overload is seen again and again"
        helpless = Plant(sheds=0.0)
        helpless.run(180.0, load)
        assert plant.late < helpless.late / 3, "and acting on it helps"


@pytest.mark.parametrize("share", [0.05, 0.058, 0.06, 0.062, 0.07])
def test_noise_at_the_threshold_does_not_flap(share):
    """Random bad events around the share at which the signal starts (6 × 1 %) start it at most three times."""
    clock = FakeClock()
    slo = make(clock)
    rng = random.Random(3)
    starts, was = [], False
    for _ in range(30_000):
        clock.advance(0.01)
        slo.record(1.0 if rng.random() < share else 0.01)
        burning = slo.burning()
        if burning and not was:
            starts.append(clock.now_ns / 1e9)
        was = burning
    assert all(later - earlier >= WINDOW_S for earlier, later in pairwise(starts))
    assert len(starts) <= 3, "once it burns, only a share below the lower limit ends it"


@pytest.mark.parametrize("sheds", [0.5, 1.0])
def test_it_ends_after_overload_despite_shedding(sheds):
    """After an overload the signal ends, although all requests that were shed count as bad."""
    plant = Plant(sheds=sheds)
    plant.run(60.0, 1.5)
    assert plant.starts
    plant.run(2 * WINDOW_S + 1.0, 0.5)
    assert not plant.slo.burning()
    episodes = len(plant.starts)
    plant.run(120.0, 0.5)
    assert len(plant.starts) == episodes
    assert plant.slo.rejected > 0
    assert plant.slo.burn_rate(3600.0) > 1.0, "the rejections are in the budget all the same"


def burst(slo, good, bad):
    for _ in range(good):
        slo.record(0.01)
    for _ in range(bad):
        slo.record(1.0)


def test_few_events_do_not_start_burning():
    clock = FakeClock()
    slo = make(clock, minimum_events=30)
    burst(slo, 0, 29)
    assert not slo.burning()
    burst(slo, 1, 0)
    assert slo.burning()


def test_one_bad_event_alone_does_not_start_burning():
    """With a strict objective, one failure of a hundred requests burns at a rate of ten, but starts no signal."""
    clock = FakeClock()
    slo = SLO("strict", threshold_s=THRESHOLD_S, objective=0.999, clock=clock)
    burst(slo, 100, 1)
    assert slo.burn_rate(60.0) > 6.0
    assert not slo.burning()
    clock.advance(61.0)
    burst(slo, 100, 1)  # the earlier bad event has left the window
    assert not slo.burning()
    burst(slo, 0, 1)
    assert slo.burning()


def test_one_bad_event_starts_it_if_one_is_enough():
    """One bad event starts the signal if `minimum_events` is 1."""
    slo = make(FakeClock(), minimum_events=1)
    burst(slo, 0, 1)
    assert slo.burning()


@pytest.mark.parametrize("grace_s", [0.0, 2.0])
def test_cold_start_burns_only_without_grace(grace_s):
    """Late responses in the grace time after the first event do not start the signal, and are in the budget."""
    clock = FakeClock()
    slo = make(clock, grace_s=grace_s)
    clock.advance(100.0)  # the grace time begins with the first event

    started = []
    for _ in range(20):
        burst(slo, 0, 10)
        started.append(slo.burning())
        clock.advance(0.0999)
    for _ in range(500):
        burst(slo, 1, 0)
        started.append(slo.burning())
        clock.advance(0.01)

    assert any(started) is (grace_s == 0.0)
    assert slo.bad == 200
    assert slo.budget_remaining() < 0.0


def test_events_after_the_grace_start_burning():
    """Only events after the grace time count, at least ``minimum_events`` of them."""
    clock = FakeClock()
    slo = make(clock, grace_s=2.0, minimum_events=30)
    burst(slo, 10_000, 100)
    clock.advance(1.999)
    burst(slo, 0, 100)
    assert not slo.burning()

    clock.advance(0.001)
    burst(slo, 0, 29)
    assert not slo.burning()
    burst(slo, 0, 1)
    assert slo.burning()


@pytest.mark.parametrize("window_s", [0.3, 6.0, 40.0])
def test_grace_leaves_later_windows_alone(window_s):
    """When the windows hold no event of the grace time, the signal is the same as without a grace time."""
    clocks = FakeClock(), FakeClock()
    graced, plain = (
        SLO("x", threshold_s=THRESHOLD_S, clock=clock, signal=BurnSignal(window_s=window_s, grace_s=grace_s))
        for clock, grace_s in zip(clocks, (1.0, 0.0), strict=True)
    )
    rng = random.Random(5)
    for slo, clock in zip((graced, plain), clocks, strict=True):
        burst(slo, 50, 0)
        clock.advance(1.0 + 1.1 * window_s)
    seen = []
    for _ in range(3000):
        outcome = 1.0 if rng.random() < 0.08 else 0.01
        for slo, clock in zip((graced, plain), clocks, strict=True):
            slo.record(outcome)
            clock.advance(0.01)
        seen.append((graced.burning(), plain.burning()))

    assert all(one == other for one, other in seen)
    assert any(one for one, _ in seen)


def test_old_bad_events_do_not_start_burning():
    """Bad events that are in the long window, but not in the short one, do not start the signal."""
    clock = FakeClock()
    slo = make(clock)
    burst(slo, 0, 100)
    clock.advance(1.0)
    burst(slo, 100, 0)
    assert slo.burn_rate(WINDOW_S) > 6.0
    assert not slo.burning()


def test_short_window_spike_does_not_start_it():
    """A spike in the short window alone does not start the signal."""
    clock = FakeClock()
    slo = make(clock)
    for _ in range(50):
        burst(slo, 100, 0)
        clock.advance(0.1)
    burst(slo, 0, 100)
    assert slo.burn_rate(0.5) > 6.0
    assert not slo.burning()


def test_burning_lasts_a_window_and_to_the_lower_limit():
    clock = FakeClock()
    slo = make(clock)
    burst(slo, 0, 100)
    assert slo.burning()
    burst(slo, 20_000, 0)  # 0.5 % bad
    clock.advance(5.999)
    assert slo.burning()
    clock.advance(0.001)
    assert not slo.burning()
    burst(slo, 0, 10_000)
    assert slo.burning(), "and is ready again"
    clock.advance(6.2)
    burst(slo, 1000, 20)  # 2 % bad: below the limit at which the signal starts, above that at which it ends
    assert slo.burning()
    clock.advance(6.2)
    assert not slo.burning(), "without events nothing burns"

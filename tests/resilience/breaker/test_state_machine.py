"""Each row of the table in docs/reference/breaker-states.md, in its order."""

import re
from pathlib import Path

import pytest

from streaminfer.resilience import CircuitBreaker
from streaminfer.testing import FakeClock

pytestmark = pytest.mark.uncompiled

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "breaker-states.md"
TESTS = {}


@pytest.fixture
def breaker():
    return made()


def made(**settings):
    defaults = {
        "minimum_calls": 4,
        "window": 8,
        "slow_call_s": 0.1,
        "open_s": 1.0,
        "max_open_s": 3.0,
        "half_open_calls": 2,
        "half_open_s": 10.0,
        "clock": FakeClock(1_000),
    }
    breaker = CircuitBreaker(**defaults | settings)
    breaker.heard = []
    breaker.listen(lambda event: breaker.heard.append((event.before, event.after, event.reason)))
    return breaker


def record(breaker, *outcomes, duration_s=0.0):
    for ok in outcomes:
        breaker.record(ok, duration_s, breaker.try_acquire())


def opened(**settings):
    breaker = made(**settings)
    record(breaker, False, False, False, False)
    assert breaker.state == "open"
    breaker.heard.clear()
    return breaker


def half_opened(**settings):
    """Return a half-open breaker whose first probe is in flight, and the permit of this probe."""
    breaker = opened(**settings)
    breaker._clock.advance(1.0)
    permit = breaker.try_acquire()
    breaker.heard.clear()
    return breaker, permit


def row(number):
    def register(test):
        TESTS[number] = test
        return test

    return register


@row(1)
def test_1_closed_stays_closed_below_the_thresholds(breaker):
    """A closed breaker stays closed below the thresholds, and below the minimum number of calls."""
    record(breaker, False, False, False)
    assert breaker.state == "closed"
    breaker = made()
    record(breaker, True, True, True, False, False, True)
    assert breaker.state == "closed"
    assert breaker.statistics().failure_rate == 2 / 6
    assert breaker.heard == []


@row(2)
@pytest.mark.parametrize(
    ("threshold", "failures", "calls"), [(0.07, 7, 100), (0.29, 29, 100), (0.5, 2, 4), (1.0, 4, 4)]
)
def test_2_closed_opens_at_the_failure_rate(threshold, failures, calls):
    breaker = made(failure_rate_threshold=threshold, window=100, minimum_calls=calls)
    record(breaker, *[True] * (calls - failures), *[False] * (failures - 1))
    assert breaker.state == "closed"
    record(breaker, False)
    assert breaker.state == "open"
    assert breaker.heard == [("closed", "open", "failure_rate")]


def test_2_a_success_can_complete_the_minimum(breaker):
    record(breaker, False, False, True, True)
    assert breaker.state == "open"


def test_2_window_below_minimum_is_judged_when_full():
    """A window that is smaller than the minimum number of calls is judged when it is full."""
    breaker = made(window=2, minimum_calls=10)
    record(breaker, False)
    assert breaker.state == "closed"
    record(breaker, False)
    assert breaker.state == "open"


@row(3)
def test_3_closed_opens_at_the_slow_rate():
    breaker = made(slow_rate_threshold=0.5)
    record(breaker, True, True, True, duration_s=0.1)  # exactly `slow_call_s`: not slow
    record(breaker, True, True, duration_s=0.101)
    assert breaker.state == "closed"
    record(breaker, True, duration_s=0.101)
    assert breaker.state == "open"
    assert breaker.heard == [("closed", "open", "slow_rate")]


@row(4)
def test_4_open_rejects():
    breaker = opened()
    assert breaker.try_acquire() == 0
    assert not breaker.permits()
    assert 0.9 <= breaker.retry_after_s <= 1.0
    assert breaker.statistics().rejected == 1
    assert breaker.state == "open"


@row(5)
def test_5_open_ignores_outcomes_of_earlier_calls():
    breaker = made()
    late = breaker.try_acquire()
    record(breaker, False, False, False, False)
    breaker.record(True, 0.0, late)
    breaker.record(True, 0.0)
    breaker.release(late)
    seen = breaker.statistics()
    assert (seen.state, seen.succeeded, seen.stale_permits) == ("open", 0, 3)


@row(6)
def test_6_first_call_after_open_time_is_half_open():
    """An open breaker becomes half-open with the first call after the open time, not when its state is read."""
    breaker = opened()
    breaker._clock.now_ns += round(breaker.retry_after_s * 1e9) - 1
    assert (breaker.state, breaker.permits(), breaker.try_acquire()) == ("open", False, 0)
    breaker._clock.now_ns += 1
    for _ in range(3):
        assert (breaker.state, breaker.permits()) == ("half_open", True)  # reading changes nothing
    assert breaker.heard == []
    assert breaker.try_acquire()
    assert breaker.heard == [("open", "half_open", "open_time_passed")]


def test_6_half_open_begins_at_end_of_open_time():
    """Half-open begins at the end of the open time, however late its first call comes."""
    breaker = opened()
    instants = []
    breaker.listen(lambda event: instants.append(event.at_ns))
    ends_ns = breaker._clock.now_ns + round(breaker.retry_after_s * 1e9)
    breaker._clock.advance(30.0)
    assert breaker.try_acquire()
    assert instants == [ends_ns]


def test_6_state_reached_by_time_has_no_outcomes():
    """A state that was reached by the passage of time alone has judged no outcomes."""
    breaker = opened()
    assert breaker.statistics().calls == 4
    breaker._clock.advance(1.0)
    seen = breaker.statistics()
    assert (seen.state, seen.calls, seen.failures, seen.slow) == ("half_open", 0, 0, 0)
    assert breaker.try_acquire()
    breaker._clock.advance(12.0)  # the half-open time and the next open time pass without a call
    seen = breaker.statistics()
    assert (seen.state, seen.calls, seen.half_open_in_flight) == ("half_open", 0, 0)


@row(7)
def test_7_half_open_lets_probes_through(breaker):
    breaker, first = half_opened(half_open_calls=3)
    rest = [breaker.try_acquire() for _ in range(19)]
    assert len({first, *rest} - {0}) == 3
    assert rest[2:] == [0] * 17


@row(8)
def test_8_half_open_rejects_calls_beyond_the_probes():
    breaker, _ = half_opened(half_open_calls=1)
    assert not breaker.permits()
    assert breaker.try_acquire() == 0
    assert breaker.retry_after_s == 1.0  # at most one open time
    breaker._clock.advance(9.5)
    assert breaker.retry_after_s == 0.5


def test_8_retry_time_never_exceeds_an_open_time():
    """A rejected caller is not told to wait longer than one open time."""
    breaker, _ = half_opened(half_open_calls=1, half_open_s=2.5)
    assert breaker.retry_after_s == 1.0


def test_8_completed_probe_frees_no_permit():
    """A probe that has been recorded does not make room for another one."""
    breaker, permit = half_opened(half_open_calls=2)
    breaker.record(True, 0.0, permit)
    assert [breaker.try_acquire() > 0 for _ in range(3)] == [True, False, False]


@row(9)
def test_9_half_open_released_probe_frees_its_permit():
    breaker, permit = half_opened(half_open_calls=1)
    for _ in range(50):
        assert breaker.try_acquire() == 0
        breaker.release(permit)
        assert breaker.permits()
        permit = breaker.try_acquire()
        assert permit
    assert breaker.state == "half_open"


@row(10)
def test_10_half_open_closes_when_the_probes_are_well():
    breaker, permit = half_opened(failure_rate_threshold=0.6)
    breaker.record(True, 0.0, permit)
    assert breaker.state == "half_open"
    record(breaker, False)
    assert breaker.state == "closed"
    assert breaker.heard == [("half_open", "closed", "probes_succeeded")]
    seen = breaker.statistics()
    assert (seen.calls, seen.trips, seen.consecutive_trips) == (0, 1, 0)


def test_10_fewer_probes_suffice_for_a_smaller_minimum():
    """Fewer probes than `half_open_calls` suffice if the minimum number of calls is smaller."""
    breaker = made(minimum_calls=1, half_open_calls=5)
    record(breaker, False)
    breaker._clock.advance(1.0)
    record(breaker, True)
    assert breaker.state == "closed"


@row(11)
def test_11_failed_probes_open_for_longer():
    """Each time the probes fail, the breaker opens for longer, up to `max_open_s`."""
    breaker = opened()
    for base_s in (2.0, 3.0, 3.0):  # 1.0 doubled, up to max_open_s
        breaker._clock.now_ns += round(breaker.retry_after_s * 1e9)
        record(breaker, False, True)
        assert 0.9 * base_s <= breaker.retry_after_s <= base_s
    assert breaker.heard[:2] == [("open", "half_open", "open_time_passed"), ("half_open", "open", "probes_failed")]
    assert breaker.statistics().consecutive_trips == 4
    breaker._clock.advance(3.0)
    record(breaker, True, True)
    record(breaker, False, False, False, False)
    assert 0.9 <= breaker.retry_after_s <= 1.0  # after a successful close, the open time starts over


@row(12)
def test_12_half_open_opens_when_the_probes_are_slow():
    breaker, permit = half_opened()
    breaker.record(True, 0.2, permit)
    record(breaker, True, duration_s=0.2)
    assert breaker.state == "open"
    assert breaker.heard == [("half_open", "open", "probes_slow")]


@row(13)
def test_13_half_open_opens_when_a_probe_never_returns():
    breaker, lost = half_opened()
    record(breaker, True)
    breaker._clock.now_ns += 10_000_000_000 - 1
    assert breaker.state == "half_open"
    breaker._clock.now_ns += 1
    assert breaker.state == "open"
    assert 1.8 <= breaker.retry_after_s <= 2.0
    assert breaker.heard == []  # no call has come yet
    assert breaker.try_acquire() == 0
    assert breaker.heard == [("half_open", "open", "half_open_time_passed")]
    breaker.record(True, 10.0, lost)
    assert breaker.statistics().stale_permits == 1
    breaker._clock.advance(2.0)
    record(breaker, True, True)
    assert breaker.state == "closed"


def test_13_later_probe_does_not_extend_the_time_limit():
    breaker, _ = half_opened()
    breaker._clock.advance(9.0)
    assert breaker.try_acquire()
    breaker._clock.advance(1.0)
    assert breaker.state == "open"


def test_13_retry_time_counts_from_end_of_half_open():
    """The time to retry counts from the end of half-open, even if no call came at that instant."""
    breaker, _ = half_opened()
    breaker._clock.advance(11.5)
    assert 0.3 <= breaker.retry_after_s <= 0.5
    assert breaker.try_acquire() == 0
    assert 0.3 <= breaker.retry_after_s <= 0.5


def test_13_both_time_limits_can_pass_between_calls():
    """If both time limits pass between two calls, the breaker is half-open and reports both changes."""
    breaker, _ = half_opened()
    breaker._clock.advance(12.0)
    assert (breaker.state, breaker.permits(), breaker.retry_after_s) == ("half_open", True, 0.0)
    assert breaker.try_acquire()
    assert [reason for *_, reason in breaker.heard] == ["half_open_time_passed", "open_time_passed"]


def test_13_late_result_does_not_close_the_circuit():
    """The result of a probe that exceeded the half-open time does not close the circuit, which has opened."""
    breaker, lost = half_opened(half_open_calls=1)
    breaker._clock.advance(10.0)
    breaker.record(True, 10.0, lost)
    assert breaker.state == "open"
    assert breaker.heard == [("half_open", "open", "half_open_time_passed")]


@row(14)
@pytest.mark.parametrize(
    ("ok", "state", "reason"), [(True, "closed", "probes_succeeded"), (False, "open", "probes_failed")]
)
def test_14_half_open_is_judged_by_few_outcomes(ok, state, reason):
    """At the end of the half-open time, the breaker judges the outcomes that it has, however few."""
    breaker, permit = half_opened(half_open_calls=3)
    breaker.record(ok, 0.0, permit)
    breaker._clock.advance(10.0)
    assert (breaker.state, breaker.heard) == (state, [])
    assert bool(breaker.try_acquire()) is ok
    assert breaker.state == state
    assert breaker.heard == [("half_open", state, reason)]


@row(15)
def test_15_half_open_without_outcomes_starts_over():
    """Half-open starts over if its time ends without a probe in flight and without an outcome."""
    breaker, permit = half_opened()
    breaker.release(permit)
    breaker._clock.advance(100.0)
    assert breaker.state == "half_open"
    permit = breaker.try_acquire()
    breaker._clock.advance(9.0)
    assert breaker.state == "half_open"
    breaker.record(True, 9.0, permit)
    assert breaker.heard == []


@row(16)
def test_16_half_open_ignores_stale_permits():
    breaker, permit = half_opened(half_open_calls=2)
    other = breaker.try_acquire()
    breaker.release(permit)
    breaker.release(permit)
    breaker.record(False, 0.0, permit)
    breaker.record(False, 0.0, 1 << 20)  # a permit of the first closed state
    assert breaker.try_acquire()
    assert not breaker.try_acquire()
    breaker.record(True, 0.0, other)
    breaker.record(True, 0.0, other)
    seen = breaker.statistics()
    assert (seen.state, seen.calls, seen.half_open_in_flight, seen.stale_permits) == ("half_open", 1, 1, 4)


@row(17)
@pytest.mark.parametrize("start", [made, opened, lambda: half_opened()[0]])
def test_17_forced_open_rejects_until_reset(start):
    breaker = start()
    before = breaker.try_acquire()
    breaker.force_open()
    breaker._clock.advance(1e6)
    assert (breaker.state, breaker.mode, breaker.try_acquire()) == ("open", "forced_open", 0)
    assert breaker.retry_after_s == 3.0
    breaker.record(True, 0.0, before)
    breaker.reset()
    assert (breaker.state, breaker.mode) == ("closed", "automatic")
    assert [reason for *_, reason in breaker.heard[-2:]] == ["forced_open", "reset"]


@row(18)
@pytest.mark.parametrize("start", [made, opened, lambda: half_opened()[0]])
def test_18_disabled_lets_all_pass_and_counts_nothing(start):
    breaker = start()
    failed = breaker.statistics().failed
    breaker.disable()
    record(breaker, *[False] * 20)
    seen = breaker.statistics()
    assert (seen.state, seen.mode, seen.calls, seen.failed, seen.ignored) == ("closed", "disabled", 0, failed, 20)
    breaker.reset()
    record(breaker, False, False, False, False)
    assert breaker.state == "open"


@row(19)
@pytest.mark.parametrize("start", [made, opened, lambda: half_opened()[0]])
def test_19_metrics_only_judges_but_never_opens(start):
    """In the mode metrics-only the breaker judges outcomes and tells listeners, but never opens."""
    breaker = start()
    breaker.metrics_only()
    breaker.heard.clear()
    record(breaker, *[False] * 8)
    assert (breaker.state, breaker.mode, breaker.statistics().failure_rate) == ("closed", "metrics_only", 1.0)
    assert breaker.heard == [("closed", "closed", "failure_rate")]  # one event, when the threshold is reached
    record(breaker, *[True] * 8, *[False] * 8)
    assert len(breaker.heard) == 2


@row(20)
@pytest.mark.parametrize("start", [made, opened, lambda: half_opened()[0]])
def test_20_reset_closes_with_nothing_remembered(start):
    breaker = start()
    late = breaker.try_acquire()
    breaker.reset()
    seen = breaker.statistics()
    assert (seen.state, seen.mode, seen.calls, seen.consecutive_trips) == ("closed", "automatic", 0, 0)
    if late:
        breaker.record(False, 0.0, late)
        assert breaker.statistics().calls == 0
    record(breaker, False, False, False, False)
    assert 0.9 <= breaker.retry_after_s <= 1.0


def test_table_of_states_matches_the_tests():
    """The documented table of transitions has one row for each number that a test here covers."""
    rows = [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)]
    assert rows == sorted(TESTS) == list(range(1, 21))

"""RollingHistogram: the records in its window, and the expiry of older ones."""

import copy
import math
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram
from streaminfer.telemetry.histograms.rolling_histogram import RollingHistogram
from streaminfer.testing import FakeClock

pytestmark = pytest.mark.uncompiled

COARSE = {"lowest_s": 1e-3, "highest_s": 10.0, "significant_digits": 1}


def test_each_slice_expires_after_its_window():
    clock = FakeClock(7)
    histogram = RollingHistogram(window_s=6.0, slices=3, clock=clock, **COARSE)
    for second in range(12):
        histogram.record(1.0)
        # slices of two seconds: the present slice and the two before it
        assert histogram.count == (second % 2 + 1) + 2 * min(second // 2, 2)
        clock.advance(1.0)


def test_record_stays_as_promised_and_then_is_gone():
    """A record stays for the promised time and is gone after the window."""
    clock = FakeClock()
    histogram = RollingHistogram(window_s=60.0, slices=6, clock=clock, **COARSE)
    clock.advance(9.999999999)
    histogram.record(1.0)
    clock.advance(50.0)
    assert histogram.count == 1
    clock.advance(0.000000001)
    assert histogram.count == 0
    assert math.isnan(histogram.quantile(0.5))


@pytest.mark.parametrize("idle_s", [5.9, 6.0, 6.1, 59.0, 60.0, 61.0, 3600.0, 1e9])
def test_only_new_records_count_after_idle_or_jump(idle_s):
    """After idle time or a jump of the clock, only new records count."""
    clock = FakeClock()
    histogram = RollingHistogram(window_s=6.0, slices=6, clock=clock, **COARSE)
    for _ in range(6):
        histogram.record(5.0)
        clock.advance(1.0)
    clock.advance(idle_s)
    histogram.record(0.1)
    assert (histogram.count, histogram.max) == (1, 0.1)
    assert histogram.snapshot().count == 1


def test_backward_clock_keeps_the_current_slice():
    clock = FakeClock(10**12)
    histogram = RollingHistogram(window_s=6.0, slices=3, clock=clock, **COARSE)
    clock.advance(4.0)
    histogram.record(1.0)
    clock.now_ns -= 10**11
    histogram.record(2.0)
    assert histogram.count == 2
    clock.now_ns += 10**11
    clock.advance(6.0)
    assert histogram.count == 0


def test_figures_equal_those_of_a_plain_histogram():
    rolling, plain = RollingHistogram(clock=FakeClock()), LatencyHistogram()
    values = np.random.default_rng(1).lognormal(-4, 1, 6000)
    for histogram in (rolling, plain):
        histogram.record_many(values[:5500])
        histogram.record_many(values[5500:5900].tolist())
        for value in values[5900:].tolist():
            histogram.record(value)
        histogram.record_ns(12_345_678)
        histogram.record(math.inf)
    assert rolling.snapshot() == plain
    assert (rolling.count, rolling.snapshot().clamped) == (6002, 1)
    assert (rolling.min, rolling.max, rolling.mean) == (plain.min, plain.max, plain.mean)
    assert rolling.quantile(0.99) == plain.quantile(0.99)
    assert rolling.quantiles([0.1, 0.999]).tolist() == plain.quantiles([0.1, 0.999]).tolist()
    assert rolling.share_within(0.01) == plain.share_within(0.01)
    assert repr(rolling) == repr(plain).replace("LatencyHistogram(", "RollingHistogram(last 60 s, ")
    assert rolling._repr_html_().partition("<table>")[2] == plain._repr_html_().partition("<table>")[2] != ""
    assert repr(RollingHistogram(window_s=0.5)) == "RollingHistogram(last 500 ms, count=0)"


def test_a_snapshot_is_independent():
    histogram = RollingHistogram(clock=FakeClock(), **COARSE)
    histogram.record(1.0)
    snapshot = histogram.snapshot()
    histogram.record(2.0)
    snapshot.record(3.0)
    assert (histogram.count, snapshot.count, histogram.max) == (2, 2, 2.0)
    histogram.reset()
    assert histogram.count == 0
    histogram.record(2.0)
    assert (histogram.count, histogram.min) == (1, 2.0)


def test_rolling_histogram_can_be_plotted():
    from matplotlib.figure import Figure

    histogram = RollingHistogram(clock=FakeClock())
    histogram.record_many([0.1, 0.2])
    axes = Figure().add_subplot()
    assert histogram.plot(axes) is axes
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize("bad", [-1.0, math.nan, "1", True, None])
def test_invalid_durations_raise(bad):
    histogram = RollingHistogram(clock=FakeClock())
    with pytest.raises((TypeError, ValueError), match="seconds: expected"):
        histogram.record(bad)
    with pytest.raises((TypeError, ValueError)):
        histogram.record_ns(bad)
    with pytest.raises((TypeError, ValueError)):
        histogram.record_many([bad, bad])
    assert histogram.count == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_s": 0.0}, "window_s"),
        ({"window_s": 1e10}, "window_s"),
        ({"window_s": 1e300}, "window_s"),
        ({"window_s": 1e-9, "slices": 2}, "window_s"),
        ({"window_s": "1"}, "window_s"),
        ({"slices": 0}, "slices"),
        ({"slices": 1.5}, "slices"),
        ({"clock": 3}, "clock"),
        ({"significant_digits": 9}, "significant_digits"),
        ({"lowest_s": 0.0}, "lowest_s"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises((TypeError, ValueError), match=f"{message}: expected"):
        RollingHistogram(**settings)


def test_stack_clock_is_bound_once_and_time_goes_on():
    """The clock of a stack is bound once, and time continues from where it was."""
    histogram = RollingHistogram(window_s=6.0, slices=3, **COARSE)
    histogram.record(1.0)
    clock = FakeClock(123)
    histogram.bind_clock(clock)
    histogram.bind_clock(lambda: 10**18)
    assert histogram.count == 1
    clock.advance(4.0)
    histogram.record(1.0)
    assert histogram.count == 2
    clock.advance(2.0)
    assert histogram.count == 1


def test_default_clock_is_monotonic():
    import time

    before = time.monotonic_ns()
    histogram = RollingHistogram()
    elapsed_ns, now_ns = histogram._ages()
    assert before <= now_ns <= time.monotonic_ns()
    assert 0 <= elapsed_ns <= now_ns - before


STEPS = st.lists(st.tuples(st.integers(0, 45), st.integers(1, 9)), max_size=60)


@given(STEPS, st.integers(1, 6))
def test_rolling_histogram_equals_a_list_of_records(steps, slices):
    """The histogram has the records of its last slices; here a slice lasts one second, and time is in deciseconds."""
    clock = FakeClock(5)
    histogram = RollingHistogram(window_s=float(slices), slices=slices, clock=clock, **COARSE)
    records = []
    now = 0
    for pause, value in steps:
        now += pause
        clock.now_ns = 5 + now * 10**8
        histogram.record(value / 10)
        records.append((now, value / 10))
        live = [value for at, value in records if at // 10 > now // 10 - slices]
        assert histogram.count == len(live)
        assert (histogram.min, histogram.max) == (min(live), max(live))
        expected = LatencyHistogram(**COARSE)
        expected.record_many(live)
        assert histogram.snapshot() == expected
        # the promise of the documentation
        assert sum(now - at <= 10 * (slices - 1) for at, _ in records) <= len(live)
        assert len(live) <= sum(now - at < 10 * slices for at, _ in records)


@pytest.mark.usefixtures("switch_often")
def test_no_record_is_lost_between_threads():
    histogram = RollingHistogram(window_s=3600.0, **COARSE)
    moments = []

    def record():
        for _ in range(2000):
            histogram.record(0.5)

    def read():
        for _ in range(50):
            snapshot = histogram.snapshot()
            moments.append((snapshot.count, sum(snapshot.snapshot()[0])))

    threads = [threading.Thread(target=target) for target in (record, record, record, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert histogram.count == 6000
    assert all(count == total for count, total in moments)
    assert moments == sorted(moments)


@pytest.mark.usefixtures("switch_often")
def test_no_record_is_lost_while_the_ring_turns():
    """If time passes while threads record, every record is in the slice of its instant, and the total is exact."""
    clock = FakeClock()
    histogram = RollingHistogram(window_s=100.0, slices=100, clock=clock, **COARSE)

    def record():
        for _ in range(1500):
            histogram.record(0.5)

    def turn():
        for _ in range(99):
            clock.advance(1.0)
            assert histogram.count <= 3000

    threads = [threading.Thread(target=target) for target in (record, record, turn)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert histogram.count == 3000


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_rolling_histogram_cannot_be_copied(duplicate):
    histogram = RollingHistogram(**COARSE)
    with pytest.raises(TypeError, match=r"^RollingHistogram\(.* cannot be copied; make another one"):
        duplicate(histogram)

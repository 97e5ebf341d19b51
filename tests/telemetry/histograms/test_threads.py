"""LatencyHistogram under threads, in both builds: no record is lost, and every reader sees one moment."""

import sys
import threading

import numpy as np
import pytest

from streaminfer._internal.locking import is_atomic, locked_subclass, public_methods
from streaminfer.telemetry.histograms import latency_histogram as built_module

pytestmark = pytest.mark.usefixtures("switch_often")

RECORDS = {"built": 60_000, "plain": 3_000}


def run_together(*functions):
    """Run each function in a thread of its own, and check that none of them raises."""
    errors = []
    barrier = threading.Barrier(len(functions))

    def guarded(function):
        barrier.wait()
        try:
            function()
        except BaseException as error:  # to be shown by the test
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.fixture
def records(build):
    return RECORDS["built" if build is built_module and is_atomic(build.HistogramState, "record") else "plain"]


def test_no_record_is_lost(histogram_class, records):
    histogram = histogram_class(highest_s=1.0)

    def record():
        for _ in range(records // 6):
            histogram.record(0.001)
            histogram.record_ns(2_000_000)
            histogram.record(5.0)

    def record_arrays():
        for _ in range(records // 2000):
            histogram.record_many([0.003] * 10)
            histogram.record_many(np.full(5000, 0.004))

    def record_corrected():
        for _ in range(records // 20):
            histogram.record_corrected(0.030, 0.010)

    other = histogram_class(highest_s=1.0)
    other.record(0.5)

    def merge():
        for _ in range(records // 200):
            histogram.merge(other)

    run_together(record, record, record_arrays, record_corrected, merge)
    expected = histogram_class(highest_s=1.0)
    for seconds, count in (
        (0.001, 2 * (records // 6)),
        (0.002, 2 * (records // 6)),
        (5.0, 2 * (records // 6)),
        (0.003, records // 2000 * 10),
        (0.004, records // 2000 * 5000),
        (0.030, records // 20),
        (0.020, records // 20),
        (0.010, records // 20),
        (0.5, records // 200),
    ):
        expected.record_many(np.full(count, seconds))
    assert histogram.count == expected.count
    assert histogram.clamped == expected.clamped == 2 * (records // 6)
    assert histogram == expected
    assert (histogram.min, histogram.max) == (0.001, 1.0)


def test_readers_see_one_moment(histogram_class, records):
    """While a thread records 1, 2, 3, … µs, each reader sees as many durations as the longest one has microseconds."""
    histogram = histogram_class(lowest_s=1e-7, significant_digits=4)
    moments, figures = [], []
    done = threading.Event()

    def record():
        for microseconds in range(1, records + 1):
            histogram.record_ns(microseconds * 1000)
        done.set()

    def read():
        while not done.is_set():
            counts, minimum_ns, maximum_ns, clamped = histogram.snapshot()
            count = sum(counts)
            moments.append((count, maximum_ns, minimum_ns, clamped))
            twin = histogram.copy()
            moments.append((twin.count, twin.maximum_ns, twin.minimum_ns, twin.clamped))
            shortest, middle, longest = histogram.quantiles([0.0, 0.5, 1.0]).tolist()
            figures.append((shortest, middle, longest))

    run_together(record, read, read)
    assert histogram.count == records
    for count, maximum_ns, minimum_ns, clamped in moments:
        if count:
            assert (maximum_ns, minimum_ns, clamped) == (count * 1000, 1000, 0)
    for shortest, middle, longest in figures:
        if longest > 0:
            count = round(longest * 1e6)
            assert shortest == 1e-6
            assert middle == pytest.approx(((count + 1) // 2) * 1e-6, rel=2e-4, abs=1e-7)


def test_a_reset_among_records_forgets_whole_records(histogram_class, records):
    histogram = histogram_class()
    forgotten = threading.Event()

    def record():
        for _ in range(records // 2):
            histogram.record(0.001)

    def reset():
        for _ in range(20):
            histogram.reset()
        forgotten.set()

    run_together(record, reset)
    assert forgotten.is_set()
    assert histogram.count == sum(histogram.snapshot()[0]) <= records // 2


def test_merging_into_each_other_does_not_block(histogram_class, records):
    one, other = histogram_class(), histogram_class()
    one.record(0.001)
    other.record(0.002)
    run_together(
        lambda: [one.merge(other) for _ in range(20)],
        lambda: [other.merge(one) for _ in range(20)],
    )
    assert one.count > 20
    assert other.count > 20


class CountedLock:
    """Lock that counts how often it is acquired."""

    def __init__(self):
        self.held = 0
        self.lock = threading.Lock()

    def __enter__(self):
        self.lock.acquire()
        self.held += 1

    def __exit__(self, *exception):
        self.lock.release()


@pytest.mark.parametrize(
    "call",
    [
        lambda h: h.record(0.1),
        lambda h: h.record_ns(5),
        lambda h: h.record_corrected(0.1, 0.01),
        lambda h: h.record_each(np.array([0.1, 0.2])),
        lambda h: h.quantile(0.5),
        lambda h: h.quantiles_into(np.array([0.5, 0.9]), np.empty(2)),
        lambda h: h.share_within(0.5),
        lambda h: h.snapshot(),
        lambda h: h.add_counts(np.zeros(h.counts_length, np.int64), 1, -1, 0),
        lambda h: h.reset(),
    ],
)
def test_each_call_holds_the_lock_once(build, call):
    """If code is not atomic, every call holds the lock exactly once."""
    state = locked_subclass(build.HistogramState, public_methods(build.HistogramState))(1000, 10**9, 3)
    state._lock = CountedLock()
    call(state)
    assert state._lock.held == 1


def test_uncompiled_count_ns_holds_the_lock(builds):
    """`count_ns`, the call for compiled callers, holds the lock in the uncompiled build, too."""
    histogram = builds["plain"].LatencyHistogram()
    histogram._lock = CountedLock()
    histogram.count_ns(5)
    assert histogram._lock.held == 1


def test_error_releases_the_lock(builds):
    histogram = builds["plain"].LatencyHistogram()
    for _ in range(2):
        with pytest.raises(ValueError, match="seconds"):
            histogram.record(-1.0)
    histogram.record(1.0)
    assert histogram.count == 1


def test_only_nonatomic_builds_take_a_lock(builds, monkeypatch):
    plain, built = builds["plain"], builds["built"]
    assert not is_atomic(plain.HistogramState, "record")
    assert hasattr(plain.LatencyHistogram, "_lock")
    assert hasattr(built.LatencyHistogram, "_lock") is not is_atomic(built.HistogramState, "record")
    if is_atomic(built.HistogramState, "record"):
        # nothing may stand between a caller and the compiled method
        assert built.LatencyHistogram.record is built.HistogramState.record
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    assert not is_atomic(built.HistogramState, "record")

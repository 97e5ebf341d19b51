"""Arrival processes: rates, seeds, durations, and rejected arguments."""

import attrs
import numpy as np
import pytest

from streaminfer.loadtest.arrivals import (
    ARRIVALS,
    Bursts,
    Cameras,
    Constant,
    Diurnal,
    Gamma,
    OnOff,
    Poisson,
    Ramp,
    Rates,
    Replay,
    as_arrivals,
)

PROCESSES = [
    Constant(200.0), Poisson(200.0), Gamma(200.0, cv=2.0), OnOff(200.0), Bursts(200.0), Cameras(25.0, 8, 0.01),
    Diurnal(200.0), Ramp(100.0, 300.0), Rates([100.0, 300.0], 30.0), Replay(np.linspace(0, 60, 12_000)),
]  # fmt: skip


def kind(process):
    return type(process).__name__


class TestSchedule:
    @pytest.mark.parametrize("process", PROCESSES, ids=kind)
    def test_mean_rate(self, process):
        """Within a minute, the mean rate is that of the process."""
        assert process.schedule(60.0, 1).size == pytest.approx(12_000, rel=0.15)

    @pytest.mark.parametrize("process", PROCESSES, ids=kind)
    def test_instants_ascend_within_duration(self, process):
        """Instants ascend from 0 and lie before the end."""
        instants = process.schedule(10.0, 2)

        assert instants[0] >= 0
        assert (np.diff(instants) >= 0).all()
        assert instants[-1] < 10.0

    @pytest.mark.parametrize("process", PROCESSES, ids=kind)
    def test_same_seed_same_schedule(self, process):
        """The same seed gives the same schedule."""
        np.testing.assert_array_equal(process.schedule(5.0, 3), process.schedule(5.0, 3))

    @pytest.mark.parametrize("process", [Poisson(50.0), Gamma(50.0), OnOff(50.0), Bursts(50.0)], ids=kind)
    def test_longer_run_begins_with_the_shorter(self, process):
        """A longer run of one seed begins with the schedule of the shorter one."""
        short = process.schedule(5.0, 4)

        np.testing.assert_array_equal(process.schedule(50.0, 4)[: short.size], short)

    @pytest.mark.parametrize("process", PROCESSES, ids=kind)
    def test_no_duration_no_arrivals(self, process):
        """Nothing arrives within 0 seconds."""
        assert process.schedule(0.0, 1).size == 0

    def test_every_kind_is_listed(self):
        """A scenario file can name each process."""
        assert {type(process) for process in PROCESSES} == set(ARRIVALS.values())


def test_mean_of_clumps_is_the_rate():
    """Over many seeds, the mean rate of a process with uneven gaps is the given one: no run begins with a clump."""
    counts = [Gamma(20.0, cv=10.0).schedule(10.0, seed).size for seed in range(400)]

    assert np.mean(counts) == pytest.approx(200.0, abs=4 * np.std(counts) / 20)


@pytest.mark.parametrize(
    "process",
    [
        OnOff(20.0, on_s=2.0, off_s=8.0),
        Bursts(20.0, on_s=5.0, off_s=50.0),
        Bursts(20.0, on_s=5.0, off_s=50.0, times=0.1),
    ],
    ids=str,
)
def test_mean_of_two_levels_is_the_rate(process):
    """Over many seeds, the mean rate of short runs is the given rate, because a run begins at either level."""
    counts = [process.schedule(3.0, seed).size for seed in range(1000)]

    assert np.mean(counts) == pytest.approx(60.0, abs=4 * np.std(counts) / np.sqrt(1000))


def test_ramp_has_the_rate_of_each_moment():
    """A ramp from 0 to 400/s has a quarter of its requests in the first half."""
    instants = Ramp(0.0, 400.0).schedule(60.0, 5)

    halves = np.histogram(instants, [0, 30, 60])[0]
    assert halves == pytest.approx([3_000, 9_000], rel=0.06)


def test_diurnal_peaks_in_the_middle():
    """With a peak of 1.8 times the mean, the eighth around the peak has over 4 times the requests of the first one."""
    instants = Diurnal(200.0, peak=1.8).schedule(80.0, 6)

    night, peak = np.histogram(instants, [0, 10, 35, 45])[0][[0, 2]]
    assert peak / night > 4


def test_diurnal_days_may_be_short():
    """Days much shorter than the gaps between requests are a constant rate, and need no more memory."""
    instants = Diurnal(100.0, period_s=1e-6).schedule(60.0, 6)

    assert np.histogram(instants, 4, (0.0, 60.0))[0] == pytest.approx(np.full(4, 1500), rel=0.1)


def test_diurnal_days_are_the_same():
    """Each day has its peak in the middle."""
    instants = Diurnal(200.0, peak=2.0, period_s=20.0).schedule(70.0, 6)

    quarters = np.histogram(instants, 14, (0.0, 70.0))[0][:12].reshape(3, 4)
    assert (quarters[:, 1:3] > 3 * quarters[:, ::3]).all()


def test_rates_follow_the_table():
    """Each window has the rate of the table; a window with rate 0 and the time after the table are empty."""
    counts = np.histogram(Rates([100.0, 0.0, 50.0], 10.0).schedule(60.0, 7), [0, 10, 20, 30, 60])[0]

    assert counts[1] == 0
    assert counts[3] == 0
    assert counts[[0, 2]] == pytest.approx([1000, 500], rel=0.15)


class TestRecordedCounts:
    def test_rows_are_summed_and_scaled(self, tmp_path):
        """Counts of several functions per minute are summed, and become rates with the given mean."""
        np.savez(tmp_path / "counts.npz", per_minute=np.array([[1, 0, 5], [1, 2, 3]], np.uint32))

        rates = Rates.load(tmp_path / "counts.npz", key="per_minute", window_s=0.5, rate=40.0)

        np.testing.assert_allclose(rates.rates, [20.0, 20.0, 80.0])
        assert rates.window_s == 0.5

    @pytest.mark.parametrize("counts", [[0, 0], [], [np.nan]], ids=str)
    def test_counts_without_any_request(self, tmp_path, counts):
        """Counts without any request are rejected, because they cannot be scaled to a rate."""
        np.savez(tmp_path / "counts.npz", per_minute=counts)

        with pytest.raises(ValueError, match="counts: expected counts of which some are above 0"):
            Rates.load(tmp_path / "counts.npz", key="per_minute", window_s=1.0, rate=1.0)


class TestReplay:
    def test_rate_scales_time(self):
        """A rate compresses the trace and keeps its shape."""
        trace = np.array([5.0, 6.0, 9.0, 10.0])

        np.testing.assert_allclose(Replay(trace, rate=3.0).schedule(10.0, 0), [0.0, 0.2, 0.8, 1.0])

    def test_rate_of_one_instant(self):
        """Requests that are due at the same instant have no rate, so the given rate does not scale them."""
        np.testing.assert_array_equal(Replay([5.0, 5.0], rate=3.0).schedule(1.0, 0), [0.0, 0.0])

    def test_rate_of_no_requests(self):
        """A trace without requests has an empty schedule at any rate."""
        assert Replay([], rate=3.0).schedule(1.0, 0).size == 0

    def test_load_selects_one_of_several_runs(self, tmp_path):
        """Offsets delimit runs; a unit scales them."""
        path = tmp_path / "trace.npz"
        np.savez(path, send_ms=[0.0, 55.0, 0.0, 16.0, 32.0], offsets=[0, 2, 5])

        replay = Replay.load(path, key="send_ms", unit_s=1e-3, run=1)

        np.testing.assert_allclose(replay.schedule(1.0, 0), [0.0, 0.016, 0.032])

    def test_load_file_with_a_single_run(self, tmp_path):
        """A file without offsets has one run, and no second one."""
        path = tmp_path / "trace.npz"
        np.savez(path, t=[0.0, 0.5])

        np.testing.assert_allclose(Replay.load(path, run=0).schedule(1.0, 0), [0.0, 0.5])
        with pytest.raises(ValueError, match="run: expected a whole number"):
            Replay.load(path, run=1)

    def test_load_unknown_key(self, tmp_path):
        """The error for an unknown key names the arrays of the file."""
        path = tmp_path / "trace.npz"
        np.savez(path, t=[0.0])

        with pytest.raises(ValueError, match="key: expected one of 't', got 'x'"):
            Replay.load(path, key="x")

    @pytest.mark.parametrize("unit_s", ["ms", 0, -1.0], ids=str)
    def test_load_wrong_unit(self, tmp_path, unit_s):
        """The unit is a number of seconds above 0."""
        path = tmp_path / "trace.npz"
        np.savez(path, t=[0.0, 1.0])

        with pytest.raises((TypeError, ValueError), match="unit_s: expected a finite number of seconds > 0"):
            Replay.load(path, unit_s=unit_s)

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"t,1.0"], ids=["empty", "zip", "text"])
    def test_load_file_of_another_format(self, tmp_path, content):
        """The error for a file of another format names the file, whatever its content."""
        path = tmp_path / "trace.npz"
        path.write_bytes(content)

        with pytest.raises(ValueError, match=r"path: expected an \.npz file, got '.*trace\.npz'"):
            Replay.load(path)

    def test_load_one_array(self, tmp_path):
        """A NumPy file with a single array, which has no name, is rejected."""
        np.save(tmp_path / "trace.npy", [0.0, 1.0])

        with pytest.raises(ValueError, match=r"path: expected an \.npz file, got '.*trace\.npy'"):
            Replay.load(tmp_path / "trace.npy")


class TestRefused:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Poisson(0), "rate: expected a finite number > 0, got 0"),
            (lambda: Gamma(10, cv=-1), "cv: expected a number from 1e-06 to 1e[+]06"),
            (lambda: Gamma(10, cv=1e300), "cv: expected a number from 1e-06 to 1e[+]06"),
            (lambda: Diurnal(10, peak=2.5), "peak: expected a number from 1 to 2"),
            (lambda: Rates([-1.0], 1.0), "rates: expected rates ≥ 0"),
            (lambda: Cameras(25, 0), "cameras: expected a whole number ≥ 1"),
            (lambda: as_arrivals([1.0, 0.5]), "^arrivals: expected ascending seconds"),
            (lambda: Replay([np.nan]), "^arrivals_s: expected finite seconds"),
        ],
    )
    def test_invalid_field_is_named(self, make, message):
        """The message names the field."""
        with pytest.raises(ValueError, match=message):
            make()

    @pytest.mark.parametrize(
        ("process", "message"),
        [
            (Constant(1e300), r"rate \* duration_s: expected at most 100,000,000 arrivals"),
            (Poisson(1e9), r"rate \* duration_s: expected at most 100,000,000 arrivals"),
            (Ramp(1e300, 1e300), r"rate \* duration_s: expected at most 100,000,000 arrivals"),
            (OnOff(1.0, on_times=1e300), r"rate \* duration_s: expected at most 100,000,000 arrivals"),
            (Cameras(25.0, 1_000_000), r"cameras \* fps \* duration_s: expected at most 100,000,000 arrivals"),
            (OnOff(100.0, on_s=1e-6, off_s=1e-6), r"on_s \+ off_s: expected periods so long that"),
            (Bursts(100.0, on_s=1e-320, off_s=1e-320), r"on_s \+ off_s: expected periods so long"),
        ],
        ids=["constant", "poisson", "ramp", "high", "cameras", "on_off", "bursts"],
    )
    def test_a_schedule_has_a_largest_size(self, process, message):
        """A schedule that would not fit into memory, or never end, is rejected before it is made."""
        with pytest.raises(ValueError, match=message):
            process.schedule(60.0, 0)

    @pytest.mark.parametrize("given", ["often", Poisson, 100, np.float64(100)], ids=repr)
    def test_other_types_are_not_arrivals(self, given):
        """Only processes and instants are arrivals: a class has no rate, and a rate is not a process."""
        with pytest.raises(TypeError, match="arrivals: expected arrivals such as"):
            as_arrivals(given)


def test_constant_ends_before_the_duration():
    """A constant rate ends before the duration, although 0.07 · 100 is a little more than 7 in floating point."""
    assert Constant(100).schedule(0.07, 0).size == 7


def test_instants_are_kept():
    """Given instants are used unchanged, and need not begin at 0."""
    np.testing.assert_array_equal(as_arrivals([0.5, 0.75, 2.0]).schedule(1.0, 0), [0.5, 0.75])


@pytest.mark.parametrize(
    ("process", "said"),
    [
        (Replay(np.arange(5_000.0), 100.0), "Replay(arrivals_s=<5,000 instants>, rate=100.0)"),
        (Rates(np.ones(1_440), 1.0), "Rates(rates=<1,440 rates>, window_s=1.0)"),
    ],
    ids=["trace", "rates"],
)
def test_repr_counts_tables(process, said):
    """The repr counts the entries of a table, so that a report names its schedule in one line."""
    assert repr(process) == said


def test_processes_compare_by_fields():
    """Processes with equal fields are equal."""
    assert Poisson(5.0) == Poisson(5.0)
    assert attrs.asdict(Gamma(5.0)) == {"rate": 5.0, "cv": 4.0}

"""Arrival processes: the random streams of published figures, the shape of each, and rejected arguments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.simulation import arrivals

PROCESSES = [arrivals.poisson, arrivals.gamma, arrivals.on_off, arrivals.bursts]


def reference_switching(rng, n, quiet, quiet_s, loud, loud_s):
    """Return arrivals as published with the figures: exponential periods, and arrivals within them."""
    out, t, burst = [], 0.0, False
    while len(out) < n:
        end = t + rng.exponential(loud_s if burst else quiet_s)
        lam = loud if burst else quiet
        while (t := t + rng.exponential(1 / lam)) <= end:
            out.append(t)
        t, burst = end, not burst
    return np.array(out[:n])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_streams_match_published_figures(seed):
    """The random streams are those of the published figures."""
    rate, n = 640.5, 700
    stream = np.random.default_rng
    np.testing.assert_array_equal(
        arrivals.poisson(rate, n, seed), np.cumsum(stream(seed).exponential(1 / rate, n)), strict=True
    )
    np.testing.assert_array_equal(
        arrivals.gamma(rate, n, seed), np.cumsum(stream(seed).gamma(1 / 16, 16 / rate, n)), strict=True
    )
    np.testing.assert_array_equal(
        arrivals.on_off(rate, n, seed), reference_switching(stream(seed), n, rate / 2, 0.2, 3 * rate, 0.05), strict=True
    )
    quiet = rate / ((0.05 * 10.0 + 0.45) / (0.05 + 0.45))
    np.testing.assert_array_equal(
        arrivals.bursts(rate, n, seed),
        reference_switching(stream(seed), n, quiet, 0.45, quiet * 10.0, 0.05),
        strict=True,
    )


@pytest.mark.parametrize("process", PROCESSES)
def test_arrivals_ascend_and_have_the_mean_rate(process):
    """Arrivals ascend from 0, depend only on the seed and have the requested mean rate."""
    made = process(200.0, 20_000, 5)
    assert made.shape == (20_000,)
    assert made.dtype == np.float64
    assert (np.diff(made) >= 0).all()
    assert made[0] >= 0
    np.testing.assert_array_equal(made, process(200.0, 20_000, 5))
    assert not np.array_equal(made, process(200.0, 20_000, 6))
    assert 20_000 / made[-1] == pytest.approx(200.0, rel=0.12)


@pytest.mark.parametrize("process", [arrivals.on_off, arrivals.bursts])
def test_long_levels_are_not_drawn_to_their_end(process, monkeypatch):
    stream, means = np.random.default_rng(1), []

    class Counted:
        def exponential(self, mean):
            means.append(mean)
            return stream.exponential(mean)

    monkeypatch.setattr(arrivals, "_stream", lambda _: Counted())

    assert process(100.0, 10, 1, on_s=100.0, off_s=100.0).size == 10
    assert len(means) == 1 + 10


@pytest.mark.parametrize("process", PROCESSES)
def test_no_arrivals(process):
    assert process(10.0, 0, 1).shape == (0,)


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_gamma_has_given_coefficient_of_variation(cv):
    """The gaps of a gamma process have the coefficient of variation that was given."""
    gaps = np.diff(arrivals.gamma(100.0, 100_000, 3, cv=cv))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_the_levels_of_on_off_and_bursts_can_be_chosen():
    calm = arrivals.on_off(100.0, 5_000, 1, on_times=1.0, off_times=1.0)
    assert np.diff(calm).std() / np.diff(calm).mean() == pytest.approx(1.0, rel=0.05)
    rough = np.diff(arrivals.bursts(100.0, 5_000, 1, times=100.0))
    assert rough.std() / rough.mean() > 3.0


def test_cameras_without_jitter_are_periodic():
    frames = arrivals.cameras(25.0, 3, 2.0, 7, jitter_s=0.0)
    assert frames.shape == (150,)
    np.testing.assert_allclose(frames[3:] - frames[:-3], 0.04, atol=1e-12)
    assert len(set(np.round(frames[:3], 9))) == 3  # each camera has its own phase


def test_jitter_delays_frames_up_to_given_bound():
    """Jitter delays each frame by at most the time that was given."""
    calm = arrivals.cameras(25.0, 1, 40.0, 7, jitter_s=0.0)
    shaken = arrivals.cameras(25.0, 1, 40.0, 7, jitter_s=0.01)  # shorter than a period: frames keep their order
    delays = shaken - calm
    assert delays.shape == (1000,)
    assert delays.min() >= 0
    assert delays.max() <= 0.01
    assert delays.mean() == pytest.approx(0.005, rel=0.1)


def test_frames_that_overtake_each_other_still_ascend():
    assert (np.diff(arrivals.cameras(100.0, 8, 1.0, 1, jitter_s=0.2)) >= 0).all()


def test_cameras_that_record_for_no_time_send_nothing():
    assert arrivals.cameras(25.0, 3, 0.0, 7, jitter_s=0.01).size == 0


def test_cameras_take_a_jitter_of_negative_zero():
    frames = arrivals.cameras(25.0, 3, 2.0, 7, jitter_s=-0.0)
    assert (frames == arrivals.cameras(25.0, 3, 2.0, 7, jitter_s=0.0)).all()


def test_replay_starts_at_zero_and_sorts():
    np.testing.assert_allclose(arrivals.replay([1000.5, 1000.0, 1000.25, 1000.25]), [0.0, 0.25, 0.25, 0.5])
    assert arrivals.replay([]).shape == (0,)
    given = np.array([3.0, 1.0])
    arrivals.replay(given)
    np.testing.assert_array_equal(given, [3.0, 1.0])  # the caller's trace is not touched


@given(st.lists(st.floats(0, 1e9), max_size=50))
def test_any_replayed_trace_can_be_simulated(trace):
    nanoseconds = arrivals.arrivals_in_ns(arrivals.replay(trace))
    assert nanoseconds.dtype == np.int64
    assert nanoseconds.shape == (len(trace),)
    assert (np.diff(nanoseconds) >= 0).all()


def test_arrivals_round_to_the_nearest_nanosecond():
    assert arrivals.arrivals_in_ns([0, 0.0011, 0.1 + 0.2, 1e9]).tolist() == [0, 1_100_000, 300_000_000, 10**18]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: arrivals.poisson(0.0, 1, 1), ValueError, r"rate: expected a finite number > 0, got 0\.0 \(float\)"),
        (lambda: arrivals.poisson("5", 1, 1), TypeError, r"rate: expected a finite number > 0, got '5' \(str\)"),
        (lambda: arrivals.poisson(True, 1, 1), TypeError, "rate"),
        (lambda: arrivals.poisson(np.inf, 1, 1), ValueError, "rate"),
        (lambda: arrivals.poisson(1.0, 2.5, 1), TypeError, "n: "),
        (lambda: arrivals.poisson(1.0, -1, 1), ValueError, "n: "),
        (lambda: arrivals.poisson(1.0, 10**14, 1), ValueError, "n: expected a whole number ≥ 0 and ≤ 100000000"),
        (lambda: arrivals.poisson(1.0, 1, -1), ValueError, "seed"),
        (lambda: arrivals.gamma(1.0, 1, 1, cv=0.0), ValueError, "cv"),
        (lambda: arrivals.gamma(1.0, 1, 1, cv=5e-324), ValueError, "cv: expected a number from 1e-06 to 1e[+]06"),
        (lambda: arrivals.gamma(1.0, 1, 1, cv=1e300), ValueError, "cv: expected a number from 1e-06 to 1e[+]06"),
        (lambda: arrivals.on_off(1.0, 1, 1, on_s=0.0), ValueError, "on_s"),
        (lambda: arrivals.on_off(1.0, 1, 1, off_times=0.0), ValueError, "off_times"),
        (lambda: arrivals.bursts(1.0, 1, 1, off_s=-1.0), ValueError, "off_s"),
        (lambda: arrivals.bursts(1.0, 1, 1, times=np.nan), ValueError, "times"),
        (lambda: arrivals.cameras(25.0, 0, 1.0, 1, jitter_s=0.0), ValueError, "cameras"),
        (lambda: arrivals.cameras(25.0, 1, 1.0, 1, jitter_s=-0.1), ValueError, "jitter_s"),
        (lambda: arrivals.cameras(25.0, 10**6, 60.0, 1, jitter_s=0.0), ValueError, r"cameras \* fps \* duration_s"),
        (lambda: arrivals.bursts(9.0, 100, 1, on_s=1e-9, off_s=1e-9), ValueError, r"on_s \+ off_s"),
        (lambda: arrivals.cameras(25.0, 1, np.nan, 1, jitter_s=0.1), ValueError, "duration_s"),
        (lambda: arrivals.replay([[1.0]]), ValueError, "trace_s: expected one dimension"),
        (lambda: arrivals.replay([0.0, np.nan]), ValueError, "trace_s: expected finite seconds; element 1"),
        (lambda: arrivals.arrivals_in_ns([0.0, 2.0, 1.0]), ValueError, "arrivals_s: expected ascending .* element 2"),
        (lambda: arrivals.arrivals_in_ns([-0.5]), ValueError, r"arrivals_s: expected seconds from 0 .* got -0\.5"),
        (lambda: arrivals.arrivals_in_ns([0.0, 2e9]), ValueError, "arrivals_s: expected seconds from 0"),
        (lambda: arrivals.arrivals_in_ns([0.0, np.inf]), ValueError, "arrivals_s"),
        (lambda: arrivals.arrivals_in_ns(["a"]), TypeError, "arrivals_s"),
        (lambda: arrivals.arrivals_in_ns([None]), TypeError, "arrivals_s"),
        (lambda: arrivals.arrivals_in_ns(3.0), ValueError, "arrivals_s: expected one dimension"),
    ],
)
def test_wrong_arguments_are_rejected(call, error, message):
    with pytest.raises(error, match=message):
        call()

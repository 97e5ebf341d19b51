"""The monotone curve through noisy sizes, and the recent noise, against plain statements of what they are."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.batching.monotone_fit import _pooled, monotone_curve
from streaminfer.batching.noise import ASSUMED_NOISE, RecentNoise
from streaminfer.batching.service_time import ServiceTime

estimates = st.lists(
    st.tuples(st.integers(1, 200), st.floats(-5, 5), st.floats(1e-6, 1)),
    min_size=1,
    max_size=12,
    unique_by=lambda e: e[0],
)


def isotonic(values, weights):
    """The min-max formula of isotonic regression, straight from its definition."""
    count = len(values)

    def mean(low, high):
        return np.average(values[low : high + 1], weights=weights[low : high + 1])

    return [max(min(mean(low, high) for high in range(at, count)) for low in range(at + 1)) for at in range(count)]


@given(estimates)
def test_pooling_is_isotonic_regression(points):
    values, weights = [value for _, value, _ in points], [1 / variance for _, _, variance in points]
    np.testing.assert_allclose(_pooled(values, weights), isotonic(values, weights), rtol=1e-9, atol=1e-9)


@given(estimates, st.none() | st.builds(ServiceTime.affine, st.floats(1e-3, 10), st.floats(0, 1)))
def test_the_curve_is_positive_monotone_and_passes_through_the_pooled_estimates(points, prior):
    sizes, log_times, variances = map(list, zip(*sorted(points), strict=True))
    curve, fitted = monotone_curve(sizes, log_times, variances, prior)
    times = curve.table_s(250)[1:]
    assert (times > 0).all()
    assert (np.diff(times) >= -1e-12 * times[1:]).all()
    if prior is None:
        for size, log_time in zip(sizes, fitted, strict=True):
            assert curve.seconds(size) == pytest.approx(math.exp(log_time))
        first = curve.seconds(sizes[0])
        for size in range(1, sizes[0]):
            assert first * size / sizes[0] * (1 - 1e-9) <= curve.seconds(size) <= first * (1 + 1e-9)


@pytest.mark.parametrize("size", [1, 5, 64])
def test_from_one_size_half_of_the_cost_is_taken_as_proportional(size):
    curve, _ = monotone_curve([size], [0.0], [0.01], None)
    for other in (1, 2, 5, 50, 640):
        assert curve.seconds(other) == pytest.approx(0.5 + 0.5 * other / size)


def test_two_clean_sizes_say_nearly_all_of_the_slope():
    line = ServiceTime.affine(4.0, 0.25)
    curve, _ = monotone_curve([8, 32], [math.log(line.seconds(8)), math.log(line.seconds(32))], [1e-6, 1e-6], None)
    for size in (1, 4, 16, 64):
        assert curve.seconds(size) == pytest.approx(line.seconds(size), rel=1e-3)


def test_two_noisy_neighbours_say_little_of_the_slope():
    curve, _ = monotone_curve([7, 8], [0.0, 0.0], [0.01, 0.01], None)  # at face value: a batch of 64 costs as one of 8
    assert curve.seconds(64) > 3.5


def test_a_prior_keeps_its_shape_between_and_outside():
    prior = ServiceTime.table({1: 1.0, 8: 2.0, 16: 8.0, 32: 8.0})
    curve, _ = monotone_curve([4, 20], [math.log(2 * prior.seconds(size)) for size in (4, 20)], [0.01, 0.01], prior)
    for size in (1, 4, 8, 12, 16, 32, 64):
        assert curve.seconds(size) == pytest.approx(2 * prior.seconds(size))


def test_noise_is_assumed_until_eight_ratios_have_come():
    noise = RecentNoise()
    assert noise.deviation == pytest.approx(ASSUMED_NOISE, rel=0.2)
    widths = []
    for _ in range(8):
        noise.add(0.0)
        widths.append(noise.upper)
    assert all(after <= before for before, after in itertools.pairwise(widths))
    assert widths[-1] == 0.001


@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.5])
def test_scale_and_quantile_of_normal_ratios_are_those_of_the_distribution(sigma):
    source, deviations, uppers = random.Random(1), [], []
    noise = RecentNoise()
    for at in range(4000):
        noise.add(source.gauss(0, sigma))
        if at > 64:
            deviations.append(noise.deviation)
            uppers.append(noise.upper)
    assert np.mean(deviations) == pytest.approx(sigma, rel=0.05)
    assert np.mean(uppers) == pytest.approx(1.645 * sigma, rel=0.05)


def test_three_outliers_of_sixty_four_move_nothing():
    source = random.Random(2)
    ratios = [source.uniform(-0.01, 0.01) for _ in range(61)]
    noise = RecentNoise()
    for ratio in [*ratios, 3.0, 3.0, 3.0]:
        noise.add(ratio)
    assert noise.upper <= 0.0125
    assert noise.deviation <= 0.0125
    noise.add(3.0)
    assert noise.upper > 1.0


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=200))
def test_the_window_holds_the_last_sixty_four(ratios):
    noise = RecentNoise()
    for ratio in ratios:
        noise.add(ratio)
    kept = ratios[-64:]
    assert list(noise._recent)[-len(kept) :] == kept
    assert noise._ordered == sorted(noise._recent)
    assert len(noise._ordered) == min(max(len(ratios), 8), 64)

"""Scatter of durations: deviation, margin and mean factor of the last 64 log-ratios."""

import random
import subprocess
import sys
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.batching.service_time.residual_quantile import ResidualQuantile

pytestmark = pytest.mark.uncompiled

NORMAL = NormalDist()


def filled(residuals):
    window = ResidualQuantile()
    for residual in residuals:
        window.add(residual)
    return window


def state(window):
    return window.deviation, window.margin, window.mean_factor


def test_five_percent_is_assumed_at_first():
    """Before the first ratio, the window assumes a scatter of 5 %."""
    window = ResidualQuantile()

    assert window.deviation == pytest.approx(0.05, rel=0.15)
    assert window.margin == pytest.approx(NORMAL.inv_cdf(0.95) * 0.05, rel=0.3)
    assert window.mean_factor == pytest.approx(1.0, abs=0.005)


def test_ratios_replace_assumed_ones():
    """Each of the first eight ratios replaces an assumed one, so the margin of a steady device shrinks."""
    window, margins = ResidualQuantile(), []

    for _ in range(8):
        margins.append(window.margin)
        window.add(0.0)

    assert all(after <= before for before, after in pairwise(margins))
    assert state(window) == pytest.approx((0.001, 0.001, 1.0))


@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.5])
def test_normal_ratios_give_their_quantiles(sigma):
    """If ratios are normally distributed, the deviation and the margin are on average those of the distribution."""
    source, window = random.Random(1), ResidualQuantile()
    deviations, margins, covered = [], [], []

    for at in range(4000):
        residual = source.gauss(0, sigma)
        if at > 64:
            covered.append(residual <= window.margin)
        window.add(residual)
        deviations.append(window.deviation)
        margins.append(window.margin)

    assert np.mean(deviations) == pytest.approx(sigma, rel=0.05)
    assert np.mean(margins) == pytest.approx(NORMAL.inv_cdf(0.95) * sigma, rel=0.05)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_three_outliers_of_64_do_not_move_the_margin():
    """Three outliers of 64 move neither the deviation nor the margin; a fourth moves the margin."""
    source = random.Random(2)
    window = filled([source.uniform(-0.01, 0.01) for _ in range(61)] + [3.0, 3.0, 3.0])

    assert window.margin <= 0.0125
    assert window.deviation <= 0.0125
    window.add(3.0)
    assert window.margin > 1.0


def test_outliers_count_in_the_mean():
    """The mean factor is the mean of observed/predicted, outliers included."""
    window = filled([np.log(3.0) if at % 16 == 0 else 0.0 for at in range(64)])

    assert window.mean_factor == pytest.approx((4 * 3.0 + 60) / 64)


def test_a_stall_counts_as_three_and_a_half():
    """A ratio above 3.5 counts as 3.5, so a single stall moves the mean factor little."""
    window = filled([0.0] * 63 + [20.0])

    assert window.mean_factor == pytest.approx((63 + 3.5) / 64)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=200))
def test_only_the_last_64_count(residuals):
    """A window that has forgotten older ratios equals one that never had them."""
    long, short = filled(residuals), filled(residuals[-64:])

    if len(residuals) >= 8:
        assert state(long) == pytest.approx(state(short), rel=1e-9, abs=1e-12)
    assert long.deviation >= 0.001
    assert long.margin >= 0.001
    assert 0 < long.mean_factor <= 3.5


@pytest.mark.parametrize("count", [8, 20, 63, 64])
def test_ranks_stretch_to_the_normal_quantiles(count):
    """At Blom's plotting positions of a normal distribution, the deviation is 1 and the margin is its 95 % quantile."""
    window = filled([NORMAL.inv_cdf((rank + 0.625) / (count + 0.25)) for rank in range(count)])

    assert window.deviation == pytest.approx(1.0, abs=1e-9)
    assert window.margin == pytest.approx(NORMAL.inv_cdf(0.95), abs=1e-9)


def test_statistics_is_not_imported():
    """The module does not import `statistics`, which a server would load only for a few constants."""
    code = "import sys, streaminfer.batching.service_time.residual_quantile; sys.exit('statistics' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Quantiles of distributions, compared with tables and the standard library."""

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer._internal.distributions.quantiles import normal_quantile, student_quantile

pytestmark = pytest.mark.uncompiled


@given(st.floats(1e-6, 1 - 1e-6))
def test_normal_quantile_is_that_of_statistics(p):
    """The inverse of the normal distribution agrees with the standard library's."""
    assert normal_quantile(p) == pytest.approx(NormalDist().inv_cdf(p), abs=1e-9)


@pytest.mark.parametrize(
    ("p", "degrees", "expected"),
    [
        (0.5, 7, 0.0),
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 3, 3.18245),
        (0.99, 9, 2.82144),
        (0.975, 30, 2.04227),
        (0.995, 3, 5.84091),
        (0.9995, 4, 8.61030),
        (0.9995, 8, 5.04131),
        (0.0005, 8, -5.04131),
    ],
)
def test_student_quantile_agrees_with_tables(p, degrees, expected):
    """The quantiles have the five digits of printed tables, also far in the tails."""
    assert student_quantile(p, degrees) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def _student_distribution(value, degrees, steps=2000):
    """Integrate the density of Student's distribution by Simpson's rule, over the angle whose tangent is scaled."""
    angle = math.atan(value / math.sqrt(degrees))
    weights = [1, *([4, 2] * (steps // 2))[:-1], 1]
    area = sum(it * math.cos(angle * n / steps) ** (degrees - 1) for n, it in enumerate(weights)) * angle / steps / 3
    return 0.5 + area * math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)


@given(st.floats(0.5, 0.999), st.floats(2, 200))
def test_student_quantile_inverts_its_distribution(p, degrees):
    """The distribution function of the quantile is the probability, also for a fraction of a degree of freedom."""
    found = _student_distribution(student_quantile(p, degrees), degrees)
    assert 1 - found == pytest.approx(1 - p, rel=3e-3)

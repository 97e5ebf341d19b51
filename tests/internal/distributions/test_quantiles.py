"""Quantiles of distributions, compared with tables and the standard library."""

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
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 3, 3.1824), (0.975, 30, 2.0423), (0.99, 9, 2.8214)],
)
def test_student_quantile_agrees_with_tables(p, degrees, expected):
    """The quantile is exact for one and two degrees of freedom, and within 1 % of the tables for more."""
    assert student_quantile(p, degrees) == pytest.approx(expected, rel=1e-4 if degrees <= 2 else 0.01)

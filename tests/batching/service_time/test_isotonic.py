"""Isotonic regression, compared with its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.batching.service_time._isotonic_cy import isotonic_curve

pytestmark = pytest.mark.uncompiled

points = st.lists(st.tuples(st.floats(-5, 5), st.floats(1e-3, 1e3)), max_size=12)


def by_definition(values, weights):
    """Return the isotonic regression by its min-max formula."""
    count = len(values)

    def mean(low, high):
        return np.average(values[low : high + 1], weights=weights[low : high + 1])

    return [max(min(mean(low, high) for high in range(at, count)) for low in range(at + 1)) for at in range(count)]


@given(points)
def test_curve_is_the_min_max_formula(drawn):
    """The curve is the nondecreasing sequence with the least weighted squared distance."""
    values, weights = [value for value, _ in drawn], [weight for _, weight in drawn]

    curve = isotonic_curve(values, weights)

    np.testing.assert_allclose(curve, by_definition(values, weights), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("values", "weights", "curve"),
    [
        ([], [], []),
        ([3.0], [1.0], [3.0]),
        ([1.0, 2.0, 2.0, 5.0], [1, 1, 1, 1], [1.0, 2.0, 2.0, 5.0]),
        ([1.0, 4.0, 2.0, 5.0], [1, 1, 1, 1], [1.0, 3.0, 3.0, 5.0]),
        ([1.0, 4.0, 2.0, 5.0], [1, 3, 1, 1], [1.0, 3.5, 3.5, 5.0]),
        ([3.0, 2.0, 1.0], [1, 1, 1], [2.0, 2.0, 2.0]),
    ],
    ids=["empty", "one", "nondecreasing", "pooled", "weighted", "pooled-twice"],
)
def test_falling_values_become_their_mean(values, weights, curve):
    """A run of falling values is replaced by its weighted mean, and other values stay."""
    assert isotonic_curve(values, weights) == pytest.approx(curve)


@given(points)
def test_compiled_and_plain_agree(plain, drawn):
    values, weights = [value for value, _ in drawn], [weight for _, weight in drawn]
    assert isotonic_curve(values, weights) == plain("batching.service_time._isotonic_cy").isotonic_curve(
        values, weights
    )

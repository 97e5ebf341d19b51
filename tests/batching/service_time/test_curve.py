"""Loops over the durations of all sizes, compiled and uncompiled, compared with NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.batching.service_time import _curve_cy as compiled

pytestmark = pytest.mark.uncompiled

FORMS = ["built", "plain"]


@pytest.fixture(scope="module", params=FORMS)
def form(request, plain):
    return compiled if request.param == "built" else plain("batching.service_time._curve_cy")


points = st.dictionaries(st.integers(1, 60), st.floats(1e-6, 1e3), min_size=1, max_size=8)
tables = st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=60).map(lambda rest: np.array([0.0, *sorted(rest)]))


@given(points, st.floats(0, 10), st.integers(1, 80))
def test_times_lie_on_straight_lines(form, drawn, slope_s, largest):
    sizes = tuple(sorted(drawn))
    times_s = tuple(sorted(drawn.values()))
    table = np.full(largest + 1, np.nan)
    form.fill_times(sizes, times_s, slope_s, table)
    wanted = np.arange(largest + 1)
    inside = (wanted >= sizes[0]) & (wanted <= sizes[-1])
    past = wanted > sizes[-1]
    below = (wanted > 0) & (wanted < sizes[0])
    first_slope = slope_s if len(sizes) == 1 else (times_s[1] - times_s[0]) / (sizes[1] - sizes[0])
    assert table[0] == 0.0
    np.testing.assert_allclose(table[inside], np.interp(wanted[inside], sizes, times_s), rtol=1e-9)
    np.testing.assert_allclose(table[past], times_s[-1] + slope_s * (wanted[past] - sizes[-1]), rtol=1e-9)
    going_on = times_s[0] - first_slope * (sizes[0] - wanted[below])
    np.testing.assert_allclose(table[below], np.maximum(going_on, times_s[0] * wanted[below] / sizes[0]), rtol=1e-9)


def test_size_zero_of_an_affine_time_takes_no_time(form):
    table = np.empty(4)
    form.fill_times((0,), (2.0,), 0.5, table)
    assert table.tolist() == [0.0, 2.5, 3.0, 3.5]


@given(tables, st.floats(1e-3, 1e12))
def test_whole_nanoseconds_are_positive_and_bounded(form, table, unit_ns):
    whole = np.empty(len(table), np.int64)
    form.fill_whole_ns(table, unit_ns, whole)
    expected = np.clip(table * unit_ns, 1.0, 1e17)
    assert whole[0] == 0
    np.testing.assert_allclose(whole[1:], expected[1:], rtol=1e-12, atol=0.5)


@given(tables)
def test_best_size_has_most_worth_near_top_throughput(form, table):
    """The best size has the most worth among the sizes close to the highest throughput."""
    sizes = np.arange(1, len(table))
    throughput = sizes / table[1:]
    worth = throughput * sizes**-0.05
    best = form.best_size(table)
    assert throughput[best - 1] >= 0.98 * throughput.max() * (1 - 1e-12)
    assert worth[best - 1] >= worth[throughput >= 0.98 * throughput.max()].max() * (1 - 1e-12)


@given(tables, st.floats(0.0, 0.25), st.data())
def test_the_largest_size_as_good_as_the_best(form, table, tolerance, data):
    best = data.draw(st.integers(1, len(table) - 1))
    limit = data.draw(st.integers(best, len(table) - 1))
    below = data.draw(st.integers(best, limit))
    throughput = np.arange(best, limit + 1) / table[best : limit + 1]
    as_good = np.flatnonzero(throughput >= throughput[0] * (1.0 - tolerance))
    assert form.largest_as_good(table, best, below, limit, tolerance) == max(best + as_good[-1], below)


@given(tables, st.floats(0.0, 0.01), st.floats(1.0, 20.0), st.floats(1.0, 3.0))
def test_planned_durations(form, table, safety, stretch, band):
    mean, upper = (table * 1e9).astype(np.int64), (table * 1e9 * band).astype(np.int64)
    planned, capped, slow = np.empty((3, len(table)), np.int64)
    form.fill_planned(mean, upper, safety, stretch, planned, capped, slow)
    np.testing.assert_array_equal(planned, mean + (mean * safety).astype(np.int64))
    np.testing.assert_array_equal(capped, upper)
    np.testing.assert_array_equal(slow, np.minimum(upper, (planned * stretch).astype(np.int64)))


def test_slow_batch_without_bound_takes_upper_estimate(form):
    """A slow batch takes the upper estimate if no finite stretch is known."""
    planned, capped, slow = np.empty((3, 3), np.int64)
    form.fill_planned(np.array([0, 5, 7]), np.array([0, 6, 9]), 0.0, np.inf, planned, capped, slow)
    assert (planned.tolist(), capped.tolist(), slow.tolist()) == ([0, 5, 7], [0, 6, 9], [0, 6, 9])

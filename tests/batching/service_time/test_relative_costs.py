"""Relative costs of sizes, regularized by a line over all sizes; compiled and uncompiled."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.batching.service_time import _relative_costs_cy as compiled

pytestmark = pytest.mark.uncompiled


@pytest.fixture(scope="module", params=["built", "plain"])
def smoothed_costs(request, plain):
    module = compiled if request.param == "built" else plain("batching.service_time._relative_costs_cy")
    return module.smoothed_costs


def of_line(sizes, setup, per_row):
    return [math.log(setup + per_row * size) for size in sizes]


def test_costs_on_a_line_stay(smoothed_costs):
    sizes = [1, 2, 4, 8, 16]
    costs, setup, per_row = smoothed_costs(sizes, of_line(sizes, 4.0, 0.25), [100] * 5, 0.05)
    assert costs == pytest.approx([4.0 + 0.25 * size for size in sizes], rel=1e-3)
    assert (setup, per_row) == pytest.approx((4.0, 0.25), rel=1e-2)


@pytest.mark.parametrize(("visits", "kept"), [(1, 1 / 1.5), (100, 100 / 100.5)])
def test_a_cost_off_the_line_counts_by_its_visits(smoothed_costs, visits, kept):
    """The measured cost of a size has the weight of its visits, and the line has the weight of half a visit."""
    sizes = [1, 2, 4, 8, 16]
    logarithms = of_line(sizes, 4.0, 1.0)
    logarithms[2] += math.log(1.2)
    costs, setup, per_row = smoothed_costs(sizes, logarithms, [10**6, 10**6, visits, 10**6, 10**6], 0.01)
    on_line = setup + per_row * 4
    own = math.exp(logarithms[2])
    assert costs[2] == pytest.approx(on_line * (own / on_line) ** kept, rel=1e-9)


def test_noise_draws_costs_to_the_line(smoothed_costs):
    sizes, logarithms = [1, 2, 4, 8], of_line([1, 2, 4, 8], 1.0, 1.0)
    logarithms[1] += 0.3
    apart = [smoothed_costs(sizes, logarithms, [8] * 4, deviation)[0][1] for deviation in (0.01, 0.6, 3.0)]
    assert apart[0] > apart[1] > apart[2]


def test_setup_and_slope_are_never_negative(smoothed_costs):
    """Falling costs give a flat line, and costs that grow faster than the size give a line through the origin."""
    _, setup, per_row = smoothed_costs([1, 2, 4], [math.log(cost) for cost in (4.0, 2.0, 1.0)], [9] * 3, 0.05)
    assert per_row == 0.0
    assert setup > 0.0
    _, setup, per_row = smoothed_costs([1, 2, 4], [math.log(cost) for cost in (1.0, 4.0, 16.0)], [9] * 3, 0.05)
    assert setup == 0.0
    assert per_row > 0.0


def test_costs_far_apart_leave_a_flat_line(smoothed_costs):
    _, _, per_row = smoothed_costs([1, 2], [0.0, 60.0], [1, 1], 0.05)
    assert per_row == 0.0


samples = st.dictionaries(
    st.integers(1, 4096), st.tuples(st.floats(-8, 8), st.integers(1, 20)), min_size=1, max_size=12
)


@given(samples, st.floats(0.001, 2))
def test_costs_neither_fall_nor_grow_too_fast(smoothed_costs, drawn, deviation):
    sizes = sorted(drawn)
    costs, _, _ = smoothed_costs(
        sizes, [drawn[size][0] for size in sizes], [drawn[size][1] for size in sizes], deviation
    )
    assert len(costs) == len(sizes)
    for at in range(1, len(sizes)):
        filled_up = 2 ** math.ceil(math.log2(sizes[at]))
        most = costs[at - 1] * (filled_up / sizes[at - 1]) ** 1.35
        assert costs[at - 1] * (1 - 1e-9) <= costs[at] <= most * (1 + 1e-9)


@given(samples, st.floats(0.001, 2))
def test_compiled_and_plain_agree(plain, drawn, deviation):
    sizes = sorted(drawn)
    given_ = sizes, [drawn[size][0] for size in sizes], [drawn[size][1] for size in sizes], deviation
    one, other = (
        compiled.smoothed_costs(*given_),
        plain("batching.service_time._relative_costs_cy").smoothed_costs(*given_),
    )
    assert one[0] == pytest.approx(other[0], rel=1e-12)
    assert one[1:] == pytest.approx(other[1:], rel=1e-9)

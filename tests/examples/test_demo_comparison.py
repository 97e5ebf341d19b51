"""Conclusions of the live demo from the repeats of a load series, with made-up repeats."""

import importlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

LOADS = (0.25, 0.5, 1.0, 2.0, 4.0)
RATE = 1000.0  # a load of 1 is 32 microphones


@pytest.fixture
def comparison(demo):
    return demo("demo.comparison")


def make_sweep(demo, batched, unbatched):
    """Return repeats that hold every load up to the given one (0: none) and lose nearly everything above it."""
    findings, services = demo("demo.findings"), demo("demo.services")

    def curve(way, limits):
        return findings.Curve(
            way,
            [
                [
                    findings.LoadPoint(load, round(32 * load), *((1.0, 0.005) if load <= limit else (0.0, math.inf)))
                    for load in LOADS
                ]
                for limit in limits
            ],
        )

    cpu = demo("demo.machine").CpuUse(10.0, 5.0, 0.0, 1.0)
    return findings.Sweep(RATE, curve(services.batched(), batched), curve(services.UNBATCHED[0], unbatched), cpu)


def say(demo, batched, unbatched):
    sweep = make_sweep(demo, batched, unbatched)
    found = demo("demo.comparison").compare(sweep)
    return found, demo("demo.sentences").say_headline(found, sweep)


def points(demo, shares):
    return [
        demo("demo.findings").LoadPoint(load, round(32 * load), share, 0.01)
        for load, share in zip(LOADS, shares, strict=False)
    ]


@pytest.mark.parametrize(
    ("shares", "low", "high"),
    [
        ([1.0, 1.0, 0.98, 0.5, 0.1], 2**-0.5, 2**-0.5),  # half-way between two loads, which are a factor of 2 apart
        ([1.0, 0.99, 0.5, 0.5, 0.1], 0.5, 0.5),
        ([1.0, 0.6, 1.0, 0.99, 0.98], 2.0, 2.0),  # a disturbance at a lower load
        ([1.0, 0.6, 0.6, 1.0, 0.98], 0.25 * 2 ** (0.01 / 0.4), 0.25 * 2 ** (0.01 / 0.4)),  # two are no disturbance
        ([1.0] * 5, 4.0, math.inf),
        ([0.98] * 5, 0.0, 0.25),
    ],
    ids=["interpolated", "just held", "disturbed", "disturbed twice", "never crossed", "never held"],
)
def test_find_limit_of_one_repeat(demo, comparison, shares, low, high):
    limit = comparison.find_limit(points(demo, shares))
    assert (limit.low, limit.high) == pytest.approx((low, high))


def test_repeats_that_agree_give_the_ratio(demo, comparison):
    found, said = say(demo, [2.0, 2.0, 2.0], [1.0, 0.5, 1.0])
    assert found.verdict is comparison.Verdict.RATIO
    assert found.ratio == pytest.approx(2.0, rel=0.02)
    assert said == (
        "Batched, 2.0 times as many live microphones with 99% of chunks on time: 64 instead of 32 (2.0 to 4.0 times in "
        "3 repeats)."
    )


def test_repeats_that_disagree_are_too_noisy(demo, comparison):
    """Repeats with ratios of 1, 4 and 8 are too noisy to tell, although none of them is below 1."""
    found, said = say(demo, [1.0, 2.0, 4.0], [1.0, 0.5, 0.5])
    assert found.verdict is comparison.Verdict.TOO_NOISY
    assert math.isnan(found.ratio)
    assert said.startswith("Too noisy to tell")
    assert "1.0 times and more" in said


@pytest.mark.parametrize(
    ("batched", "unbatched"),
    [
        ([2.0, 2.0, 0.5], [1.0, 1.0, 1.0]),  # once fewer instead of more
        ([1.0, 2.0, 1.0], [1.0, 1.0, 2.0]),
        ([2.0, 2.0, 0], [1.0, 1.0, 1.0]),
        ([2.0, 2.0, 4.0], [1.0, 1.0, 4.0]),
        ([0, 4.0, 4.0], [0, 1.0, 1.0]),  # one repeat gives no bound
    ],
    ids=["sides", "straddle", "batched missed once", "both beyond once", "neither once"],
)
def test_repeats_on_both_sides_are_too_noisy(demo, comparison, batched, unbatched):
    found, said = say(demo, batched, unbatched)
    assert found.verdict is comparison.Verdict.TOO_NOISY
    assert said.startswith("Too noisy to tell how many more live microphones batching allows: the 3 repeats disagree")
    assert said.endswith("Run it again on a quieter machine.")


def test_repeats_that_differ_on_one_side_give_a_bound(demo, comparison):
    """Repeats with ratios of 2, 4 and 8 disagree about the ratio, but agree that it is at least 2."""
    found, said = say(demo, [1.0, 2.0, 2.0], [0.5, 0.5, 0.25])
    assert found.verdict is comparison.Verdict.AT_LEAST
    assert found.ratio == pytest.approx(2.0, rel=0.02)
    assert said.startswith("Batched, at least 2.0 times as many")
    assert said.endswith("(2.0 to 8.0 times in 3 repeats).")


def test_the_stated_limits_are_where_the_medians_cross(demo, comparison):
    """The sentence has the limits at which the figure's median lines cross 99 %, so a lucky repeat changes nothing."""
    found, said = say(demo, [1.0, 1.0, 4.0], [0.5, 0.5, 0.25])
    assert found.batched_median.low == pytest.approx(1.0, rel=0.02)
    assert found.verdict is comparison.Verdict.AT_LEAST
    assert "32 instead of 16 (" in said


def test_ratio_close_to_one_is_not_stated(demo, comparison):
    """Ratios of 1.01 to 1.04 lie on one side of 1, but "1.0 times as many" would say nothing."""
    limits = [comparison.Limit(ratio, ratio) for ratio in (1.01, 1.02, 1.04)]
    assert comparison._judge(limits, limits[1]) == (comparison.Verdict.SAME, 1.02)
    wide = [*limits, comparison.Limit(1.9, 1.9)]
    assert comparison._judge(wide, limits[1])[0] is comparison.Verdict.TOO_NOISY


def test_equal_capacity_beyond_sweep_is_not_compared(demo, comparison):
    """Nothing is compared if batched and unbatched both hold every offered load.

    The repeats agree, and a quieter machine would show no more.
    """
    found, said = say(demo, [4.0, 4.0, 4.0], [4.0, 4.0, 4.0])
    assert found.verdict is comparison.Verdict.BOTH
    assert said == (
        "Nothing to compare: batched or not, 99% of chunks were on time at the highest load, 128 live microphones (3 "
        "repeats)."
    )


@pytest.mark.parametrize(
    ("batched", "unbatched", "bound"),
    [([4.0] * 3, [2.0, 4.0, 4.0], ""), ([0] * 3, [0.25] * 3, " (0.0 to 1.0 times as many)")],
    ids=["beyond", "below"],
)
def test_repeats_with_bounds_that_agree_are_not_noisy(demo, comparison, batched, unbatched, bound):
    """If limits lie outside the loads, the loads do not reach far enough, and the repeats are not called noisy."""
    _, said = say(demo, batched, unbatched)
    assert said == (
        "The loads do not reach far enough to tell how many more live microphones batching allows: a limit lies outside "
        f"them in each of 3 repeats{bound}."
    )


def test_two_repeats_are_too_few(demo, comparison):
    found, said = say(demo, [2.0, 2.0], [1.0, 1.0])
    assert found.verdict is comparison.Verdict.TOO_NOISY
    assert said == "Too few repeats to tell how many more live microphones batching allows: 2, of at least 3."


def test_equal_limits_give_the_verdict_same(demo, comparison):
    found, said = say(demo, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert found.verdict is comparison.Verdict.SAME
    assert said.startswith("Batched or not, about as many live microphones with 99% of chunks on time: 32 and 32 (1.0")


def test_batched_above_all_loads_is_a_lower_bound(demo, comparison):
    """If the batched way holds every load, the stated bound is the smallest of the repeats, rounded down."""
    found, said = say(demo, [4.0, 4.0, 4.0], [1.0, 1.0, 0.5])
    assert found.verdict is comparison.Verdict.AT_LEAST
    assert 3.9 < found.ratio <= 4.0
    assert said.startswith("Batched, at least 3.9 times as many")
    assert "more than 128 instead of 32 " in said


def test_unbatched_below_all_loads_is_a_lower_bound(demo, comparison):
    """If the unbatched way holds no load, its limit is only known to be below all loads, so the ratio is a bound."""
    found, said = say(demo, [1.0, 1.0, 2.0], [0, 0, 0])
    assert found.verdict is comparison.Verdict.AT_LEAST
    assert found.ratio == pytest.approx(4.0, rel=0.02)
    assert "instead of fewer than 8 (" in said


def test_batched_below_all_loads_is_an_upper_bound(demo, comparison):
    found, said = say(demo, [0, 0, 0], [1.0, 1.0, 1.0])
    assert found.verdict is comparison.Verdict.AT_MOST
    assert found.ratio == pytest.approx(0.25, rel=0.02)
    assert said.startswith("Batched, at most 0.3 times as many")


def test_no_load_held_gives_no_comparison(demo, comparison):
    found, said = say(demo, [0, 0, 0], [0, 0, 0])
    assert found.verdict is comparison.Verdict.NEITHER
    assert said == "Nothing to compare: no load had 99% of chunks on time, batched or not (3 repeats)."


held = st.sampled_from([0.0, *LOADS])


@given(st.lists(st.tuples(held, held), min_size=3, max_size=7))
def test_no_statement_contradicts_a_repeat(pairs):
    """A stated ratio lies within those of the repeats, and a stated bound holds for each; else nothing is stated."""
    comparison = importlib.import_module("demo.comparison")
    found, said = say(importlib.import_module, *zip(*pairs, strict=True))
    lows, highs = [ratio.low for ratio in found.ratios], [ratio.high for ratio in found.ratios]
    match found.verdict:
        case comparison.Verdict.RATIO:
            assert min(lows) <= found.ratio <= max(highs) <= 2 * min(lows)
            assert found.ratio == found.batched_median.low / found.unbatched_median.low
            assert min(lows) > 1 or max(highs) < 1
        case comparison.Verdict.SAME:
            assert min(lows) <= found.ratio <= max(highs) <= 1.25 * min(lows)
        case comparison.Verdict.AT_LEAST:
            assert all(low >= found.ratio >= 1.25 for low in lows)
        case comparison.Verdict.AT_MOST:
            assert all(high <= found.ratio <= 0.8 for high in highs)
        case _:
            assert math.isnan(found.ratio)
            assert "Batched, " not in said

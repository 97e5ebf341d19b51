"""LatencyHistogram in both builds: recording, reading, merging."""

import copy
import doctest
import math
import pickle
import weakref
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

NAN = float("nan")
HOUR_NS = 3600 * 10**9


def recorded(histogram_class, milliseconds, **layout):
    histogram = histogram_class(**layout)
    for value in milliseconds:
        histogram.record(value / 1000)
    return histogram


def everything(histogram):
    counts, minimum_ns, maximum_ns, clamped = histogram.snapshot()
    return histogram._layout(), counts.tolist(), histogram.count, minimum_ns, maximum_ns, clamped


def test_the_example_of_the_documentation(build):
    assert doctest.testmod(build, raise_on_error=True).attempted == 3


def test_default_layout(histogram_class):
    histogram = histogram_class()
    assert histogram._layout() == (1000, HOUR_NS, 3)
    assert (histogram.unit_magnitude, histogram.half_magnitude, histogram.counts_length) == (9, 10, 24 * 1024)
    assert histogram.capacity_ns == 2**42 - 1


@pytest.mark.parametrize(
    ("layout", "error", "name"),
    [
        ({"lowest_s": 0.0}, ValueError, "lowest_s"),
        ({"lowest_s": 1e-10}, ValueError, "lowest_s"),
        ({"lowest_s": 1e300}, ValueError, "highest_s"),
        ({"lowest_s": NAN}, ValueError, "lowest_s"),
        ({"lowest_s": "1"}, TypeError, "lowest_s"),
        ({"highest_s": 1.9e-6}, ValueError, "highest_s"),
        ({"highest_s": 2.0**62 / 1e9}, ValueError, "highest_s"),
        ({"highest_s": 1e300}, ValueError, "highest_s"),
        ({"highest_s": math.inf}, ValueError, "highest_s"),
        ({"highest_s": None}, TypeError, "highest_s"),
        ({"significant_digits": 0}, ValueError, "significant_digits"),
        ({"significant_digits": 6}, ValueError, "significant_digits"),
        ({"significant_digits": 3.0}, TypeError, "significant_digits"),
        ({"lowest_s": 2.0**55 / 1e9, "highest_s": 2.0**60 / 1e9, "significant_digits": 5}, ValueError, "layout"),
    ],
)
def test_impossible_layouts_raise_and_are_named(histogram_class, layout, error, name):
    with pytest.raises(error, match=rf"^{name}: "):
        histogram_class(**layout)


def test_layout_takes_keywords_only(histogram_class):
    with pytest.raises(TypeError):
        histogram_class(1e-6)


@pytest.mark.parametrize(
    "value", [0.05, np.float64(0.05), np.float32(0.05), Fraction(1, 20)], ids=lambda v: type(v).__name__
)
def test_real_numbers_are_recorded(histogram_class, value):
    histogram = histogram_class()
    histogram.record(value)
    assert histogram.count == 1
    assert histogram.max == pytest.approx(0.05, rel=1e-7)


def test_whole_seconds_and_both_zeros_are_recorded(histogram_class):
    histogram = histogram_class()
    for value in (2, 0.0, -0.0):
        histogram.record(value)
    assert (histogram.count, histogram.min, histogram.max) == (3, 0.0, 2.0)


@pytest.mark.parametrize("value", [7_000_000, np.int64(7_000_000)], ids=lambda v: type(v).__name__)
def test_whole_nanoseconds_are_recorded_exactly(histogram_class, value):
    histogram = histogram_class()
    histogram.record_ns(value)
    assert (histogram.count, histogram.minimum_ns, histogram.maximum_ns) == (1, 7_000_000, 7_000_000)


def test_seconds_round_to_the_nearest_nanosecond(histogram_class):
    for seconds, nanoseconds in (
        (1.4e-9, 1),
        (1.6e-9, 2),
        (0.1, 10**8),
        (0.3, 3 * 10**8),
        (1234.567890123, 1234567890123),
    ):
        histogram = histogram_class()
        histogram.record(seconds)
        assert histogram.maximum_ns == nanoseconds


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (NAN, ValueError),
        (-1e-12, ValueError),
        (-1, ValueError),
        (-math.inf, ValueError),
        (np.float32("nan"), ValueError),
    ]
    + [(value, TypeError) for value in (True, np.True_, "1", b"1", None, 1j, Decimal(1))],
    ids=repr,
)
def test_invalid_seconds_raise_and_record_nothing(histogram_class, value, error):
    histogram = histogram_class()
    for call in (
        histogram.record,
        lambda bad: histogram.record_corrected(bad, 0.01),
        lambda bad: histogram.record_corrected(0.05, bad),
        lambda bad: histogram.record_many([bad]),
        histogram.share_within,
    ):
        with pytest.raises(error):
            call(value)
    assert histogram.count == 0


@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, ValueError), (-(10**30), ValueError)] + [(value, TypeError) for value in (True, 1.0, "1", None, NAN)],
    ids=repr,
)
def test_invalid_nanoseconds_raise_and_record_nothing(histogram_class, value, error):
    histogram = histogram_class()
    with pytest.raises(error, match=r"^nanoseconds: "):
        histogram.record_ns(value)
    assert histogram.count == 0


def test_error_names_the_argument_and_its_value(histogram_class):
    with pytest.raises(ValueError, match=r"^seconds: expected a number of seconds ≥ 0, got -0.5 \(float\)$"):
        histogram_class().record(-0.5)
    with pytest.raises(ValueError, match=r"^expected_interval_s: .* got -1.0 \(float\)$"):
        histogram_class().record_corrected(1.0, -1.0)
    with pytest.raises(ValueError, match=r"^seconds: expected a number of seconds ≥ 0, got -1000"):
        histogram_class().record(-(10**400))
    with pytest.raises(TypeError, match=r"^q: expected a real number, got '0.5' \(str\)$"):
        histogram_class().quantile("0.5")


def test_durations_beyond_the_range_are_clamped(histogram_class):
    """A duration beyond the range is recorded as the longest and counted as clamped."""
    histogram = histogram_class(highest_s=10.0)
    histogram.record(10.0)
    assert histogram.clamped == 0
    for call, value in (
        (histogram.record, 10.000000001),
        (histogram.record, math.inf),
        (histogram.record, 10**400),
        (histogram.record_ns, 10**10 + 1),
        (histogram.record_ns, 10**40),
        (histogram.record_many, [11.0, 1e300, 2.0]),
    ):
        call(value)
    assert (histogram.count, histogram.clamped) == (9, 7)
    assert histogram.max == 10.0
    assert histogram.quantile(0.99) == 10.0
    assert histogram.min == 2.0


def test_too_short_is_in_lowest_part_and_not_clamped(histogram_class):
    """A duration that is too short is in the lowest part and is not counted as clamped."""
    histogram = histogram_class()
    for nanoseconds in (0, 3, 511):
        histogram.record_ns(nanoseconds)
    assert histogram.clamped == 0
    assert histogram.snapshot()[0][0] == 3
    assert (histogram.min, histogram.max) == (0.0, 511e-9)


def test_count_ns_clamps_both_ways(builds):
    """`count_ns`, the call for compiled callers, clamps at both ends of the range."""
    histogram = builds["plain"].LatencyHistogram(highest_s=1.0)
    for nanoseconds in (-5, 5_000_000, 2 * 10**9):
        histogram.count_ns(nanoseconds)
    assert (histogram.count, histogram.clamped, histogram.min, histogram.max) == (3, 1, 0.0, 1.0)


def test_an_empty_histogram_has_no_quantile(histogram_class):
    histogram = histogram_class()
    figures = [histogram.quantile(0.5), histogram.quantile(0.0), histogram.min, histogram.max, histogram.mean]
    figures += [histogram.stddev, histogram.share_within(1.0), *histogram.quantiles([0.0, 1.0])]
    assert all(math.isnan(figure) for figure in figures)
    assert histogram.count == histogram.clamped == 0


def test_quantiles_of_a_hundred_known_durations(histogram_class):
    histogram = recorded(histogram_class, range(1, 101))
    for q, expected in ((0.01, 0.001), (0.5, 0.050), (0.501, 0.051), (0.99, 0.099), (0.991, 0.1)):
        assert expected <= histogram.quantile(q) <= expected * 1.001
    assert histogram.quantile(0.0) == histogram.min == 0.001
    assert histogram.quantile(1.0) == histogram.max == 0.1
    assert histogram.quantile(1) == 0.1


def test_quantile_does_not_round_up_to_next_rank(histogram_class):
    """The quantile 0.999 of 1,000 durations does not round up to the next rank."""
    # 0.999 * 1000 is 999.0000000000001 in some orders of evaluation
    histogram = recorded(histogram_class, [1.0] * 999 + [500.0])
    assert histogram.quantile(0.999) < 0.0011
    assert histogram.quantile(math.nextafter(0.999, 1.0)) < 0.0011
    assert histogram.quantile(0.9991) == 0.5


@pytest.mark.parametrize("q", [-0.001, 1.001, NAN, 50, 99.9])
def test_shares_outside_zero_to_one_are_an_error(histogram_class, q):
    histogram = recorded(histogram_class, [1])
    with pytest.raises(ValueError, match=r"^q: "):
        histogram.quantile(q)
    with pytest.raises(ValueError, match=r"^qs: "):
        histogram.quantiles([0.5, q])


def test_shares_of_a_wrong_type_are_an_error(histogram_class):
    histogram = recorded(histogram_class, [1])
    for q in (True, "0.5", None):
        with pytest.raises(TypeError):
            histogram.quantile(q)
        with pytest.raises(TypeError):
            histogram.quantiles([q])


def test_quantiles_keep_shape_and_equal_single_ones(histogram_class):
    """`quantiles` keeps the shape of its argument and equals `quantile` at each share."""
    histogram = recorded(histogram_class, range(1, 2000, 7))
    shares = np.array([[0.0, 0.1, 0.5], [0.9, 0.999, 1.0]])
    result = histogram.quantiles(shares)
    assert result.dtype == np.float64
    assert result.shape == shares.shape
    assert result.ravel().tolist() == [histogram.quantile(float(q)) for q in shares.ravel()]
    assert histogram.quantiles(0.5).shape == ()
    assert histogram.quantiles([]).shape == (0,)
    assert histogram.quantiles(shares[:, ::2]).tolist() == result[:, ::2].tolist()


def test_share_within(histogram_class):
    histogram = recorded(histogram_class, [1, 2, 3, 4])
    for seconds, share in ((0.0005, 0.0), (0.001, 0.25), (0.0025, 0.5), (0.003, 0.75), (0.0039, 0.75), (0.004, 1.0)):
        assert histogram.share_within(seconds) == share
    assert histogram.share_within(math.inf) == 1.0


def test_mean_and_deviation(histogram_class):
    values = [1, 2, 3, 4, 100]
    histogram = recorded(histogram_class, values)
    assert histogram.mean == pytest.approx(np.mean(values) / 1000, rel=1e-3)
    assert histogram.stddev == pytest.approx(np.std(values) / 1000, rel=1e-3)


def test_one_duration_is_its_own_mean(histogram_class):
    # the middle of its part is above it
    histogram = recorded(histogram_class, [1.025])
    assert histogram.mean == histogram.min == histogram.max
    assert histogram.stddev == 0.0


def test_record_many_accepts_arrays_and_lists(histogram_class):
    values = np.random.default_rng(1).lognormal(-5, 1, (40, 50))
    single = histogram_class()
    for value in values.ravel().tolist():
        single.record(value)
    for given in (values, values.tolist(), values.T, np.asfortranarray(values), values.astype(">f8")):
        histogram = histogram_class()
        histogram.record_many(given)
        assert everything(histogram) == everything(single)


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 20_000])
def test_record_many_equals_record_at_every_size(histogram_class, size):
    values = np.random.default_rng(2).lognormal(-5, 2, size)
    values.setflags(write=False)
    single, many = histogram_class(highest_s=0.1), histogram_class(highest_s=0.1)
    for value in values.tolist():
        single.record(value)
    many.record_many(values)
    assert everything(many) == everything(single)


def test_record_many_accepts_other_dtypes(histogram_class):
    histogram = histogram_class()
    for given in (np.arange(3), np.array([1, 2], np.uint8), np.array([0.5], np.float32), 0.25, [], range(2)):
        histogram.record_many(given)
    assert (histogram.count, histogram.max) == (9, 2.0)


@pytest.mark.parametrize(("size", "place"), [(10, 7), (10_000, 7), (10_000, 9_000)])
@pytest.mark.parametrize("bad", [NAN, -1.0, -math.inf])
def test_record_many_records_all_or_nothing(histogram_class, size, place, bad):
    values = np.full(size, 0.001)
    values[place] = bad
    histogram = recorded(histogram_class, [5])
    before = everything(histogram)
    with pytest.raises(ValueError, match=rf"^seconds\[{place}\]: expected a number of seconds ≥ 0, got {bad}"):
        histogram.record_many(values)
    assert everything(histogram) == before


@pytest.mark.parametrize("bad", [[True], ["1"], [None], [1j], np.array(["2020"], "M8[D]"), [[1], [1, 2]]], ids=repr)
def test_record_many_rejects_what_is_not_a_number(histogram_class, bad):
    with pytest.raises((TypeError, ValueError)):
        histogram_class().record_many(bad)


def test_record_corrected_adds_the_omitted_durations(histogram_class):
    """After a stall, `record_corrected` adds the durations that a steady caller would have seen."""
    histogram = histogram_class()
    histogram.record_corrected(0.025, 0.010)
    expected = recorded(histogram_class, [25, 15])
    assert everything(histogram) == everything(expected)
    histogram.record_corrected(0.009, 0.010)
    histogram.record_corrected(0.010, 0.010)
    histogram.record_corrected(0.005, 0.0)
    expected.record_many([0.009, 0.010, 0.005])
    assert everything(histogram) == everything(expected)


def test_record_corrected_starts_at_the_clamped_value(histogram_class):
    histogram = histogram_class(highest_s=1.0)
    histogram.record_corrected(math.inf, 0.25)
    assert (histogram.count, histogram.clamped) == (4, 1)
    assert (histogram.min, histogram.max) == (0.25, 1.0)


def test_corrected_takes_long_stall_at_short_interval(histogram_class):
    """`record_corrected` takes a stall of an hour at an interval of a microsecond."""
    histogram = histogram_class()
    histogram.record_corrected(3600.0, 1e-6)
    assert histogram.count == 3_600_000_000
    assert histogram.min == 1e-6
    assert histogram.quantile(0.5) == pytest.approx(1800.0, rel=1e-3)


def test_merge_leaves_the_other_unchanged(histogram_class):
    one, other = recorded(histogram_class, [1, 2, 9_000_000]), recorded(histogram_class, [0.5, 3])
    before = everything(other)
    assert one.merge(other) is None
    assert everything(one) == everything(recorded(histogram_class, [1, 2, 9_000_000, 0.5, 3]))
    assert one.clamped == 1
    assert everything(other) == before


def test_merge_with_itself_doubles(histogram_class):
    histogram = recorded(histogram_class, [1, 2, 9_000_000])
    histogram.merge(histogram)
    assert everything(histogram) == everything(recorded(histogram_class, [1, 2, 9_000_000] * 2))


def test_merge_beyond_the_largest_count_is_an_error(histogram_class):
    histogram = histogram_class()
    histogram.record(0.05)
    for _ in range(62):
        histogram.merge(histogram)

    with pytest.raises(
        ValueError, match=r"^other: expected less than 2\^63 durations with the 4611686018427387904 here"
    ):
        histogram.merge(histogram)

    assert (histogram.count, histogram.quantile(0.5)) == (2**62, 0.05)


def test_merge_of_an_empty_histogram_changes_nothing(histogram_class):
    histogram, empty = recorded(histogram_class, [1]), histogram_class()
    before = everything(histogram)
    histogram.merge(empty)
    histogram.merge(histogram_class(significant_digits=2))
    assert everything(histogram) == before
    empty.merge(histogram_class())
    assert empty.count == 0
    assert math.isnan(empty.max)


def test_merge_into_finer_layout_keeps_quantiles(histogram_class):
    """A merge into an empty histogram of a finer layout keeps every quantile."""
    coarse = recorded(histogram_class, np.random.default_rng(4).lognormal(2, 2, 500), significant_digits=1)
    fine = histogram_class(lowest_s=1e-7, significant_digits=4)
    fine.merge(coarse)
    shares = np.linspace(0, 1, 101)
    assert fine.quantiles(shares).tolist() == coarse.quantiles(shares).tolist()
    assert (fine.count, fine.min, fine.max) == (coarse.count, coarse.min, coarse.max)


def test_merge_counts_clamped_durations_once(histogram_class):
    wide = recorded(histogram_class, [1, 20_000, 30_000, 10**10])
    assert wide.clamped == 1
    narrow = recorded(histogram_class, [99_000], highest_s=10.0)
    narrow.merge(wide)
    assert (narrow.count, narrow.clamped, narrow.max) == (5, 4, 10.0)
    back = recorded(histogram_class, [2])
    back.merge(narrow)
    assert (back.count, back.clamped, back.max) == (6, 4, 10.0)


def test_merge_does_not_clamp_part_at_limit(histogram_class):
    """A merge does not clamp the part that holds the limit."""
    wide = recorded(histogram_class, [10_000])
    narrow = histogram_class(highest_s=10.0)
    narrow.merge(wide)
    assert (narrow.clamped, narrow.max) == (0, 10.0)


def test_merge_of_other_types_is_an_error(histogram_class):
    with pytest.raises(TypeError, match=r"^other: expected a LatencyHistogram, got 3"):
        histogram_class().merge(3)


@pytest.mark.parametrize(
    "duplicate",
    [lambda h: h.copy(), copy.copy, copy.deepcopy, lambda h: pickle.loads(pickle.dumps(h))],
    ids=["copy()", "copy.copy", "copy.deepcopy", "pickle"],
)
@pytest.mark.parametrize("values", [[], [1, 2.5, 7, 10**10]], ids=["empty", "filled"])
def test_duplicates_are_equal_exact_and_independent(histogram_class, duplicate, values):
    histogram = recorded(histogram_class, values, significant_digits=4)
    twin = duplicate(histogram)
    assert type(twin) is histogram_class
    assert everything(twin) == everything(histogram)
    twin.record(0.1)
    assert (twin.count, histogram.count) == (len(values) + 1, len(values))


def test_reset_clears_everything_but_the_layout(histogram_class):
    histogram = recorded(histogram_class, [1, 2, 10**10], significant_digits=2)
    histogram.reset()
    assert everything(histogram) == everything(histogram_class(significant_digits=2))
    histogram.record_many([0.0005, 5.0])
    assert sum(histogram.snapshot()[0]) == histogram.count == 2
    assert histogram.share_within(1.0) == 0.5


def test_equality_is_of_layout_and_counts(histogram_class):
    histogram = recorded(histogram_class, [1, 2])
    assert histogram == recorded(histogram_class, [2, 1])
    assert histogram != recorded(histogram_class, [1, 2, 2])
    assert histogram != recorded(histogram_class, [1, 2], highest_s=7200.0)
    assert histogram != recorded(histogram_class, [1, 2], lowest_s=9e-7)  # as many parts, of the same widths
    assert histogram != "histogram"
    assert histogram_class.__eq__(histogram, 1) is NotImplemented


def test_histogram_is_unhashable(histogram_class):
    with pytest.raises(TypeError, match="unhashable"):
        hash(histogram_class())


def test_weak_references_but_no_other_attributes(histogram_class):
    """A histogram can be weakly referenced and takes no other attributes."""
    histogram = histogram_class()
    assert weakref.ref(histogram)() is histogram
    with pytest.raises(AttributeError):
        histogram.another = 1


def test_add_counts_checks_length_and_extremes(histogram_class):
    """Counts of another length or with impossible extremes raise a `ValueError` and add nothing."""
    histogram = histogram_class()
    counts = np.zeros(histogram.counts_length, np.int64)
    counts[5] = 1
    with pytest.raises(ValueError, match="expected 24576 of them, got 3"):
        histogram.add_counts(counts[:3].copy(), 0, 0, 0)
    for minimum_ns, maximum_ns in ((2, 1), (-1, 1), (0, 2**42)):
        with pytest.raises(ValueError, match="impossible extremes"):
            histogram.add_counts(counts, minimum_ns, maximum_ns, 0)
    assert histogram.count == 0


def test_uninitialized_object_is_harmless(builds):
    """An object that was never initialized raises an error and does not crash the process."""
    histogram_class = builds["built"].LatencyHistogram
    blank = histogram_class.__new__(histogram_class)
    with pytest.raises((ValueError, AttributeError)):
        blank.copy()

"""LatencyHistogram compared with definitions, with its uncompiled build and with the hdrhistogram package."""

import math

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from streaminfer.telemetry.histograms import hdr_encoding as encoding

HOUR_NS = 3600 * 10**9

durations_ns = st.one_of(
    st.integers(0, 5_000), st.integers(0, HOUR_NS), st.integers(0, 42).map(lambda bit: min(2**bit, HOUR_NS))
)
samples_ns = st.lists(durations_ns, min_size=1, max_size=80)
layouts = st.builds(
    lambda lowest, octaves, digits: (lowest, min(lowest << octaves, 2**61), digits),
    st.one_of(st.integers(1, 10**7), st.integers(0, 24).map(lambda bit: 2**bit)),
    st.integers(1, 40),
    st.integers(1, 4),
)


def of_ns(histogram_class, values_ns, layout=(1000, HOUR_NS, 3)):
    histogram = histogram_class._of_layout(*layout)
    for value in values_ns:
        histogram.record_ns(value)
    return histogram


def everything(histogram):
    counts, minimum_ns, maximum_ns, clamped = histogram.snapshot()
    return histogram._layout(), counts.tolist(), histogram.count, minimum_ns, maximum_ns, clamped


def hdr_of_ns(values_ns, layout=(1000, HOUR_NS, 3)):
    histogram = HdrHistogram(*layout)
    for value in values_ns:
        assert histogram.record_value(value)
    return histogram


@given(layouts)
def test_layout_equals_that_of_hdrhistogram(histogram_class, layout):
    ours, theirs = histogram_class._of_layout(*layout), HdrHistogram(*layout)
    assert ours.counts_length == theirs.counts_len
    assert ours.unit_magnitude == theirs.unit_magnitude
    assert ours.half_magnitude == theirs.sub_bucket_half_count_magnitude


@given(layouts, st.data())
def test_duration_is_in_part_of_hdrhistogram(histogram_class, layout, data):
    """A duration is counted in the part in which HdrHistogram counts it, and the bounds are equal."""
    value = data.draw(st.integers(0, layout[1]))
    ours, theirs = of_ns(histogram_class, [value], layout), HdrHistogram(*layout)
    index = theirs.get_counts_array_index(value)
    assert ours.snapshot()[0].index(1) == index
    bounds = ours._lowest_at(np.array([index, index + 1]))
    assert bounds[0] == theirs.get_lowest_equivalent_value(value)
    assert bounds[1] - 1 == theirs.get_highest_equivalent_value(value)


@given(layouts, st.data())
def test_error_bound(histogram_class, layout, data):
    lowest_ns, highest_ns, digits = layout
    values = data.draw(st.lists(st.integers(0, highest_ns), min_size=1, max_size=60))
    q = data.draw(st.floats(0, 1))
    histogram = of_ns(histogram_class, values, layout)
    rank = max(1, math.ceil(math.nextafter(q, 0) * len(values)))
    exact = min(values) if q == 0 else sorted(values)[rank - 1]
    got = round(histogram.quantile(q) * 1e9)
    slack = 1 + exact // 2**52  # precision that seconds lose as a float
    assert exact - slack <= got <= exact + max(exact / 10**digits, lowest_ns) + slack
    assert min(values) - slack <= got <= max(values) + slack


@given(samples_ns, st.lists(st.floats(0, 1), max_size=20))
def test_many_quantiles_equal_single_ones_and_rise(histogram_class, values, shares):
    """`quantiles` equals `quantile` at each share and never falls as the share rises."""
    histogram = of_ns(histogram_class, values)
    shares.sort()
    seconds = histogram.quantiles(shares).tolist()
    assert seconds == [histogram.quantile(q) for q in shares]
    assert seconds == sorted(seconds)


@given(samples_ns, st.floats(0, 1))
def test_share_within_quantile_is_at_least_the_share(histogram_class, values, q):
    """The share within a quantile is at least the share of the quantile."""
    histogram = of_ns(histogram_class, values)
    assert histogram.share_within(histogram.quantile(q)) >= q


@given(samples_ns, durations_ns)
def test_share_within_counts_whole_parts(histogram_class, values, threshold_ns):
    histogram, theirs = of_ns(histogram_class, values), HdrHistogram(1000, HOUR_NS, 3)
    part = theirs.get_counts_array_index
    expected = sum(part(value) <= part(threshold_ns) for value in values)
    if threshold_ns < min(values):
        expected = 0
    assert histogram.share_within(threshold_ns / 1e9) == expected / len(values)


@given(samples_ns, samples_ns, st.sampled_from([HOUR_NS, 10**6]))
def test_merge_equals_recording_together(histogram_class, one, other, highest_ns):
    layout = (1000, highest_ns, 3)
    merged = of_ns(histogram_class, one, layout)
    merged.merge(of_ns(histogram_class, other, layout))
    assert everything(merged) == everything(of_ns(histogram_class, one + other, layout))


@given(samples_ns, st.integers(1, 3), st.integers(1000, 10**6), st.integers(10**7, HOUR_NS))
def test_merge_into_coarser_layout_equals_recording(histogram_class, values, digits, lowest_ns, highest_ns):
    """A merge into a coarser layout equals recording the durations there."""
    coarse = (lowest_ns, highest_ns, digits)
    merged = histogram_class._of_layout(*coarse)
    # the part that holds the limit can reach beyond it, and then the exact durations are unknown
    part = HdrHistogram(1000, HOUR_NS, 3).get_lowest_equivalent_value
    values = [value for value in values if part(value) != part(highest_ns)]
    merged.merge(of_ns(histogram_class, values))
    assert everything(merged) == everything(of_ns(histogram_class, values, coarse))


@given(samples_ns, layouts)
def test_merge_of_any_layouts_keeps_all_counts(histogram_class, values, layout):
    merged, other = histogram_class._of_layout(*layout), of_ns(histogram_class, values)
    merged.merge(other)
    assert merged.count == sum(merged.snapshot()[0]) == len(values)
    assert merged.maximum_ns == min(max(values), layout[1])
    assert merged.minimum_ns == min(*values, layout[1])
    part = HdrHistogram(1000, HOUR_NS, 3).get_lowest_equivalent_value
    assert merged.clamped == sum(part(value) > layout[1] for value in values)


@given(samples_ns)
def test_encoding_equals_hdrhistogram_byte_for_byte(histogram_class, values):
    """The encoding is that of HdrHistogram, byte for byte."""
    ours, theirs = of_ns(histogram_class, values), hdr_of_ns(values)
    assert ours.encode().encode() == theirs.encode()


@given(layouts, st.data())
def test_encodings_are_exchangeable_with_hdrhistogram(histogram_class, layout, data):
    values = data.draw(st.lists(st.integers(0, layout[1]), max_size=50))
    ours, theirs = of_ns(histogram_class, values, layout), hdr_of_ns(values, layout)
    read_there, read_here = HdrHistogram.decode(ours.encode()), histogram_class.decode(theirs.encode())
    assert read_here == ours == histogram_class.decode(ours.encode())
    assert list(read_there.counts) == list(ours.snapshot()[0])
    assert read_there.get_total_count() == read_here.count == len(values)
    if values:
        assert read_here.maximum_ns == read_there.get_max_value()
        assert read_here.minimum_ns == read_there.get_min_value()
    for rank in range(1, len(values) + 1):
        share = rank / len(values)
        at_most = read_here.maximum_ns / 1e9
        assert read_here.quantile(share) == min(read_there.get_value_at_percentile(100 * share) / 1e9, at_most)


@given(samples_ns)
def test_ranks_equal_hdrhistogram_within_extremes(histogram_class, values):
    """The value of every rank is that of HdrHistogram, limited to the recorded extremes."""
    ours, theirs = of_ns(histogram_class, values), hdr_of_ns(values)
    for rank in range(1, len(values) + 1):
        share = rank / len(values)
        expected = min(theirs.get_value_at_percentile(100 * share), max(values))
        assert ours.quantile(share) == expected / 1e9


@given(samples_ns)
@settings(max_examples=10)  # the package iterates over all parts in Python
def test_moments_equal_hdrhistogram_within_extremes(histogram_class, values):
    """Mean and deviation are those of HdrHistogram, with the mean limited to the recorded extremes."""
    ours, theirs = of_ns(histogram_class, values), hdr_of_ns(values)
    mean = min(max(theirs.get_mean_value(), min(values)), max(values))
    assert ours.mean == pytest.approx(mean / 1e9, rel=1e-9, abs=1e-12)
    assert ours.stddev == pytest.approx(theirs.get_stddev() / 1e9, rel=1e-6, abs=1e-12)


@given(st.integers(0, 10**9), st.integers(1, 400))
def test_record_corrected_equals_the_explicit_series(histogram_class, value, parts):
    interval = max(1, value // parts)
    corrected = histogram_class()
    corrected.record_corrected(value / 1e9, interval / 1e9)
    series = [value, *range(value - interval, interval - 1, -interval)]
    assert everything(corrected) == everything(of_ns(histogram_class, series))


@given(st.integers(1, 10**7), st.integers(1, 300))
def test_corrected_equals_hdrhistogram_at_multiples(histogram_class, interval, multiple):
    """`record_corrected` agrees with HdrHistogram at whole multiples of the interval."""
    # at other durations the Python port counts a rest below one interval, unlike the Java original
    ours, theirs = histogram_class(), HdrHistogram(1000, HOUR_NS, 3)
    ours.record_corrected(interval * multiple / 1e9, interval / 1e9)
    theirs.record_corrected_value(interval * multiple, interval)
    assert list(ours.snapshot()[0]) == list(theirs.counts)
    assert ours.count == multiple


operations = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.floats(0, 8e3)),
        st.tuples(st.just("record_ns"), durations_ns),
        st.tuples(st.just("record_many"), st.lists(st.floats(0, 8e3), max_size=5)),
        st.tuples(st.just("record_corrected"), st.floats(0, 8e3), st.floats(1e-3, 10)),
        st.tuples(st.just("reset")),
    ),
    max_size=25,
)


@given(operations, st.lists(st.floats(0, 1), max_size=5), st.floats(0, 8e3))
@settings(max_examples=60)
def test_compiled_and_plain_histograms_agree(builds, calls, shares, threshold):
    built, plain = (module.LatencyHistogram() for module in builds.values())
    for name, *arguments in calls:
        getattr(built, name)(*arguments)
        getattr(plain, name)(*arguments)
    assert everything(built) == everything(plain)
    figures = [
        (h.share_within(threshold), *(h.quantile(q) for q in shares), h.min, h.max, h.mean, h.stddev)
        for h in (built, plain)
    ]
    assert np.array_equal(*figures, equal_nan=True)
    assert built.encode() == plain.encode()


@given(
    layouts,
    st.lists(
        st.one_of(st.floats(0, 1e4), st.floats(min_value=0), st.integers(0, 61).map(lambda bit: (2**bit - 1) / 1e9)),
        max_size=60,
    ),
    st.sampled_from([None, float("nan"), -1.0]),
)
def test_record_many_equals_single_records(histogram_class, layout, seconds, unsound):
    one_by_one = histogram_class._of_layout(*layout)
    for value in seconds:
        one_by_one.record(value)
    made = histogram_class._of_layout(*layout)
    if unsound is None:
        made.record_many(np.array(seconds, np.float64))
        assert everything(made) == everything(one_by_one)
    else:
        with pytest.raises(ValueError, match=rf"seconds\[{len(seconds)}\]"):
            made.record_many(np.array([*seconds, unsound, *seconds], np.float64))
        assert made.count == 0


@given(st.lists(st.one_of(st.just(0), st.integers(0, 300), st.integers(0, 2**63 - 1)), max_size=40))
def test_any_counts_survive_the_encoding(counts):
    # a total beyond 2^63 is rejected, so the largest count is alone
    given_counts = np.array(counts if sum(counts) < 2**63 else [0, 0, max(counts)], np.int64)
    text = encoding.encode(1, 1000, 2, given_counts)
    header = encoding.decode_header(text)
    assert (header.lowest_ns, header.highest_ns, header.significant_digits) == (1, 1000, 2)
    assert encoding.decode_counts(header, given_counts.size).tolist() == given_counts.tolist()

"""Points of histograms, which exporters send."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from telemetries import DURATIONS_S

from streaminfer.telemetry import LatencyHistogram
from streaminfer.telemetry.exporters import histogram_points
from streaminfer.telemetry.exporters.histogram_points import BOUNDS_S, HistogramReader

pytestmark = pytest.mark.uncompiled

DURATIONS = st.lists(st.floats(0.0, 4000.0) | st.floats(1e-7, 1e-3), max_size=60)
LAYOUTS = st.sampled_from(
    [{}, {"significant_digits": 1}, {"significant_digits": 2}, {"lowest_s": 1e-9, "highest_s": 60.0}]
)


def histogram_of(seconds, **layout):
    histogram = LatencyHistogram(**layout)
    histogram.record_many(seconds)
    return histogram


def buckets(point, schema):
    """Return the counts by bucket, at a coarser schema."""
    found = {}
    for index, count in zip(point.indexes, point.counts, strict=True):
        coarser = -(-index // 2 ** (point.schema - schema))
        found[coarser] = found.get(coarser, 0) + count
    return found


@given(DURATIONS, LAYOUTS)
def test_point_counts_every_duration_once(seconds, layout):
    """Exponential and classic buckets each add up to the count, and no bucket is empty."""
    point = HistogramReader().read(histogram_of(np.array(seconds, float), **layout))

    assert point.total == len(seconds) == point.zeros + sum(point.counts) == point.cumulative[-1]
    assert list(point.indexes) == sorted(set(point.indexes))
    assert all(point.counts)
    assert list(point.cumulative) == sorted(point.cumulative)


@given(DURATIONS, DURATIONS, LAYOUTS, st.integers(20, 60))
def test_merging_commutes_with_exporting(one, other, layout, limit):
    """Points of two servers add up to the point of the merged histogram."""
    first, second = histogram_of(np.array(one, float), **layout), histogram_of(np.array(other, float), **layout)
    merged = first.copy()
    merged.merge(second)
    reader = HistogramReader(limit)

    points = [reader.read(histogram) for histogram in (first, second, merged)]

    schema = min(point.schema for point in points)
    left, right, both = (buckets(point, schema) for point in points)
    assert both == {index: left.get(index, 0) + right.get(index, 0) for index in left.keys() | right.keys()}
    assert [a + b for a, b in zip(points[0].cumulative, points[1].cumulative, strict=True)] == list(
        points[2].cumulative
    )
    assert points[2].zeros == points[0].zeros + points[1].zeros
    assert points[2].sum_s == pytest.approx(points[0].sum_s + points[1].sum_s)


@given(DURATIONS, LAYOUTS)
def test_bucket_holds_the_duration_to_half_a_part(seconds, layout):
    """Each duration lies in its bucket, or outside it by at most half of its part of the latency histogram."""
    for duration in seconds:
        histogram = histogram_of(np.array([duration]), **layout)
        point = HistogramReader().read(histogram)
        counted_s = histogram.max
        half_part = max(counted_s * 10.0**-histogram.significant_digits, 2**histogram.unit_magnitude / 1e9)
        if point.zeros:
            assert counted_s < point.zero_threshold_s
            continue
        base = 2.0 ** (2.0**-point.schema)
        assert base ** (point.indexes[0] - 1) - half_part <= counted_s <= base ** point.indexes[0] + half_part
        assert point.sum_s == pytest.approx(counted_s, abs=half_part)


@given(DURATIONS, LAYOUTS)
def test_sum_equals_the_sum_of_single_durations(seconds, layout):
    """The sum of a histogram is that of its durations one by one, in all octaves with durations."""
    reader = HistogramReader()
    alone = [reader.read(histogram_of(np.array([duration]), **layout)).sum_s for duration in seconds]

    assert reader.read(histogram_of(np.array(seconds, float), **layout)).sum_s == pytest.approx(math.fsum(alone))


@pytest.mark.parametrize("shape", DURATIONS_S)
def test_classic_buckets_are_shares_within_bounds(shape):
    """The cumulative count of a bound is the share that the histogram has within it."""
    histogram = histogram_of(DURATIONS_S[shape][:20_000])

    point = HistogramReader().read(histogram)

    within = [round(histogram.share_within(bound) * histogram.count) for bound in BOUNDS_S]
    assert list(point.cumulative[:-1]) == within


def test_schema_falls_until_the_limit_holds():
    """A wide histogram loses resolution until its buckets are within the limit; a narrow one has the finest schema."""
    wide, narrow = histogram_of(DURATIONS_S["wide"][:50_000]), histogram_of([0.0123])
    limits = (50_000, 590, 100, 20)

    points = [HistogramReader(limit).read(wide) for limit in limits]

    assert [point.schema for point in points] == sorted((point.schema for point in points), reverse=True)
    assert points[0].schema == 8 > points[1].schema > points[3].schema
    assert all(len(point.indexes) <= limit for point, limit in zip(points, limits, strict=True))
    assert HistogramReader(20).read(narrow).schema == 8


@given(st.lists(DURATIONS, min_size=2, max_size=5), LAYOUTS, st.integers(20, 60))
def test_schema_never_becomes_finer(seconds, layout, limit):
    """The schema of a histogram never becomes finer as it grows.

    Prometheus takes a finer schema for a restart of the server, and would count all durations again.
    """
    histogram, reader = LatencyHistogram(**layout), HistogramReader(limit)
    schemas = []
    for more in seconds:
        histogram.record_many(np.array(more, float))
        schemas.append(reader.read(histogram).schema)

    assert schemas == sorted(schemas, reverse=True)


@pytest.mark.parametrize(("digits", "schema"), [(1, 3), (2, 7), (3, 8), (5, 8)])
def test_schema_follows_the_precision(digits, schema):
    """Buckets are no wider than the precision allows, if Prometheus has such buckets."""
    point = HistogramReader().read(histogram_of([0.5], significant_digits=digits, highest_s=10.0))

    assert point.schema == schema


def test_empty_histogram_has_no_buckets():
    """The point of an empty histogram has zeros and no buckets."""
    point = HistogramReader().read(LatencyHistogram())

    assert (point.total, point.sum_s, point.zeros, list(point.indexes)) == (0, 0.0, 0, [])
    assert math.isnan(point.min_s)


def test_reader_keeps_no_state_between_histograms():
    """One reader can read many histograms of one layout."""
    reader = HistogramReader()
    reader.read(histogram_of(DURATIONS_S["narrow"][:100]))

    assert reader.read(histogram_of([0.0, 1.0])).total == 2
    assert reader.read(histogram_of([0.0, 1.0])).zeros == 1


@given(st.lists(st.sampled_from([1, 3, 30, 300]), min_size=2, max_size=5), st.integers(20, 60), st.integers(0, 99))
def test_point_does_not_depend_on_the_histogram_before(sizes, limit, seed):
    """A search from the schema of the histogram before ends at the same schema as a search from the finest."""
    reader, rng = HistogramReader(limit), np.random.default_rng(seed)
    for size in sizes:
        histogram = histogram_of(rng.lognormal(-5.0, 2.0, size))
        found, expected = reader.read(histogram), HistogramReader(limit).read(histogram)
        assert found == expected


@pytest.mark.parametrize("shift", [0, 1, 4, 12])
def test_schema_buckets_hold_each_part_once(shift):
    """The buckets of a schema hold every part but the first exactly once.

    They follow one another, and a coarser bucket begins where a finer one does.
    """
    layout = histogram_points._layout(9, 10, 24_576, 3)
    edges, middles, numbers = layout.buckets(shift)

    assert (edges[0], edges[-1]) == (1, 24_576)
    assert list(edges) == sorted(set(edges))
    assert list(numbers) == sorted(set(numbers))
    assert len(edges) == len(numbers) + 1
    assert set(edges) <= set(layout.buckets(0)[0])
    assert len(middles) == len(numbers)
    if shift:  # each bucket is one of the next finer schema, or two of them
        assert sorted({*edges, *middles}) == list(layout.buckets(shift - 1)[0])

"""A latency histogram as exporters send it: exponential buckets, classic buckets and the sum, in one pass.

Both Prometheus' native histograms and OpenTelemetry's exponential ones number buckets so that bucket ``i`` of schema
``s`` holds durations in ``(b^(i-1), b^i]`` seconds, with ``b = 2^(2^-s)``. A part of our layout goes, whole, into the
bucket of its middle. That depends on the part alone, so histograms that are merged before they are exported and those
that Prometheus adds up afterwards have the same buckets.

Error: a duration moves by at most half a part (0.05 % at three digits, or half of ``lowest_s``), and a quantile is
known to one bucket: 0.27 % at schema 8, twice that for each schema below. `MAX_BUCKETS` lowers the schema only where
durations are spread over many buckets; there, interpolation inside a bucket is off by far less than its width.
"""

import bisect
import functools
import math
from array import array
from typing import NamedTuple

import attrs
import numpy as np

from streaminfer.telemetry.exporters._exponential_cy import ZERO, compact
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram

__all__ = ["BOUNDS_S", "BOUND_LABELS", "MAX_BUCKETS", "Exemplar", "HistogramPoint", "HistogramReader"]

BOUNDS_S = (*tuple(step * 10.0**exponent for exponent in range(-4, 1) for step in (1.0, 2.5, 5.0)), 10.0)
"""Upper bounds of the classic buckets in seconds; the last one, infinity, is left out."""

BOUND_LABELS = (*(f"{bound:g}" if bound % 1 else f"{bound:.1f}" for bound in BOUNDS_S), "+Inf")
"""The label ``le`` of each classic bucket."""

MAX_BUCKETS = 400
"""Most exponential buckets of a series, so that it takes less than 1 KB."""

MAX_SCHEMA = 8


@attrs.frozen
class Exemplar:
    """A traced request that stands for those of its bucket.

    Attributes:
        value_s: its latency in seconds.
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits.
        unix_ns: when it ended.
    """

    value_s: float
    trace_id: str
    span_id: str
    unix_ns: int

    @property
    def bucket(self) -> int:
        """Number of its classic bucket."""
        return bisect.bisect_left(BOUNDS_S, self.value_s)


class HistogramPoint(NamedTuple):
    """A histogram at one moment.

    Attributes:
        total: durations.
        sum_s: their sum in seconds, each taken as the middle of its part.
        min_s: the shortest; NaN while empty.
        max_s: the longest.
        schema: resolution of the exponential buckets.
        zero_threshold_s: durations up to it are in ``zeros``.
        zeros: count of the zero bucket.
        indexes: numbers of the exponential buckets that hold something, ascending.
        counts: their counts.
        cumulative: counts up to each of ``BOUNDS_S``, and of all.
        exemplars: traced requests among them.
    """

    total: int
    sum_s: float
    min_s: float
    max_s: float
    schema: int
    zero_threshold_s: float
    zeros: int
    indexes: "array[int]"
    counts: "array[int]"
    cumulative: "array[int]"
    exemplars: tuple[Exemplar, ...] = ()


class _Layout(NamedTuple):
    starts: "array[int]"
    groups: "array[int]"
    middles_s: "array[float]"
    natives: "array[int]"
    classics: "array[int]"
    schema: int
    empty: HistogramPoint


class HistogramReader:
    """Reads histograms one after another, with one buffer for all of a layout. Not thread-safe.

    Args:
        max_buckets: most exponential buckets of a point, at least 8.
    """

    def __init__(self, max_buckets: int = MAX_BUCKETS) -> None:
        self._max_buckets = max_buckets
        self._buffers: dict[int, tuple[array[int], array[int], array[int]]] = {}

    def read(self, histogram: LatencyHistogram) -> HistogramPoint:
        """Return what the histogram holds now."""
        layout = _layout(
            histogram.unit_magnitude, histogram.half_magnitude, histogram.counts_length, histogram.significant_digits
        )
        if not histogram.count:
            return layout.empty
        buffers = self._buffers.get(id(layout))
        if buffers is None:
            length = len(layout.natives)
            buffers = array("q", bytes(8 * length)), array("i", bytes(4 * length)), array("q", bytes(8 * length))
            self._buffers[id(layout)] = buffers
        sums, indexes, counts = buffers
        cumulative = layout.empty.cumulative[:]
        first, last, sum_s = histogram.group_into(layout.starts, layout.groups, layout.middles_s, sums)
        populated, shift, zeros = compact(
            sums, first, last, layout.natives, layout.classics, self._max_buckets, indexes, counts, cumulative
        )
        return HistogramPoint(
            total=cumulative[-1],
            sum_s=sum_s,
            min_s=histogram.min,
            max_s=histogram.max,
            schema=layout.schema - shift,
            zero_threshold_s=layout.empty.zero_threshold_s,
            zeros=zeros,
            indexes=indexes[:populated],
            counts=counts[:populated],
            cumulative=cumulative,
        )


@functools.lru_cache(maxsize=16)
def _layout(unit_magnitude: int, half_magnitude: int, counts_length: int, digits: int) -> _Layout:
    """Return which bucket each part of a layout belongs to."""
    index = np.arange(counts_length + 1)
    bucket = (index >> half_magnitude) - 1
    half = 1 << half_magnitude
    part = np.where(bucket < 0, index, (index & (half - 1)) + half)
    lowest_ns = part << (np.maximum(bucket, 0) + unit_magnitude)
    middles_s = (lowest_ns[:-1] + lowest_ns[1:]) / 2e9
    schema = _schema(digits)
    natives = np.ceil(np.log2(middles_s) * 2**schema).astype(np.int64)
    natives[0] = ZERO
    # as `share_within` has it: a part is within a bound that it holds
    classics = np.searchsorted(np.array(BOUNDS_S), lowest_ns[:-1] / 1e9, side="left")
    starts = np.flatnonzero(np.diff(natives, prepend=ZERO - 1) | np.diff(classics, prepend=-1))
    groups = np.zeros(counts_length, np.int32)
    groups[starts[1:]] = 1
    # arrays of the standard library: compiled code gets at their buffers faster than at NumPy's
    return _Layout(
        array("i", np.append(starts, counts_length).astype(np.int32).tobytes()),
        array("i", np.cumsum(groups, dtype=np.int32).tobytes()),
        array("d", middles_s.tobytes()),
        array("i", natives[starts].astype(np.int32).tobytes()),
        array("i", classics[starts].astype(np.int32).tobytes()),
        schema,
        HistogramPoint(
            total=0,
            sum_s=0.0,
            min_s=math.nan,
            max_s=math.nan,
            schema=schema,
            zero_threshold_s=(1 << unit_magnitude) / 1e9,
            zeros=0,
            indexes=array("i"),
            counts=array("q"),
            cumulative=array("q", bytes(8 * (len(BOUNDS_S) + 1))),
        ),
    )


def _schema(digits: int) -> int:
    """Return the coarsest schema whose buckets are not wider than our parts may be, or the finest one."""
    return min(MAX_SCHEMA, math.ceil(-math.log2(math.log2(1.0 + 10.0**-digits))))

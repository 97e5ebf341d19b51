"""A latency histogram in export form: exponential buckets, classic buckets and the sum.

One pass over the parts gives running totals and the sum. The count of any bucket, exponential or classic, is then the
difference of two totals. The reader selects the finest schema with buckets of at most `MAX_SIZE` bytes. The buckets of
one schema show whether the next finer schema can fit. The search begins at the schema of the last histogram, which is
usually right. Complexity: O(parts that can be non-empty + buckets of the schemas that are tried).

Prometheus' native histograms and OpenTelemetry's exponential ones number buckets in the same way: bucket ``i`` of
schema ``s`` holds durations in ``(b^(i-1), b^i]`` seconds, with ``b = 2^(2^-s)``. A part of our layout goes as a whole
into the bucket of its middle. This depends on the part alone, so merging histograms before the export gives the same
buckets as adding them up in Prometheus afterwards.

Error: a duration moves by at most half a part (0.05 % at three digits, or half of ``lowest_s``). A quantile is known to
one bucket: 0.27 % at schema 8, twice that for each coarser schema. `MAX_SIZE` lowers the schema only if durations are
spread over many buckets. If each bucket holds many durations, interpolation is off by far less than a bucket's width.
If a thousand durations are spread widely, a p99 is off by up to the width, 1 or 2 %.
"""

import bisect
import functools
import math
from array import array
from collections.abc import Iterable
from typing import NamedTuple

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer._internal import IMPORTED_NS
from streaminfer.telemetry.exporters._exponential_cy import fill_bounds, fill_buckets
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram, lowest_at

__all__ = ["BOUNDS_S", "BOUND_LABELS", "MAX_SIZE", "Exemplar", "HistogramPoint", "HistogramReader"]

BOUNDS_S = (*tuple(step * 10.0**exponent for exponent in range(-4, 1) for step in (1.0, 2.5, 5.0)), 10.0)
"""Upper bounds of the classic buckets in seconds, without the last one, infinity."""

BOUND_LABELS = (*(f"{bound:g}" if bound % 1 else f"{bound:.1f}" for bound in BOUNDS_S), "+Inf")
"""The label ``le`` of each classic bucket."""

MAX_SIZE = 590
"""Most bytes of the exponential buckets of a series; with its classic buckets, a series takes less than 1 KB."""

MAX_SCHEMA = 8


@attrs.frozen
class Exemplar:
    """A traced request as an example of its bucket.

    Attributes:
        value_s: latency in seconds.
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits.
        unix_ns: end of the request, in nanoseconds since 1970.
    """

    value_s: float
    trace_id: str
    span_id: str
    unix_ns: int

    @property
    def bucket(self) -> int:
        """Index of the classic bucket that contains the latency."""
        return bisect.bisect_left(BOUNDS_S, self.value_s)


class HistogramPoint(NamedTuple):
    """A histogram at one moment.

    Attributes:
        total: number of durations.
        sum_s: sum of the durations in seconds, each taken as the middle of its part.
        min_s: shortest duration; NaN while empty.
        max_s: longest duration; NaN while empty.
        schema: resolution of the exponential buckets.
        zero_threshold_s: upper bound of the zero bucket.
        zeros: count of the zero bucket.
        indexes: numbers of the non-empty exponential buckets, ascending.
        counts: counts of these buckets.
        cumulative: counts up to each of ``BOUNDS_S``, and the total count.
        exemplars: traced requests, as examples.
        created_ns: start of counting, in nanoseconds since 1970; no duration is older.
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
    created_ns: int = IMPORTED_NS


class _Layout:
    """Mapping of the parts of a histogram to buckets.

    Attributes:
        schema: the finest schema.
        bounds: the first part above each classic bound, and the end of the last part.
        empty: the point of an empty histogram.
    """

    def __init__(self, unit_magnitude: int, half_magnitude: int, counts_length: int, digits: int) -> None:
        lowest_ns = lowest_at(np.arange(counts_length + 1), unit_magnitude, half_magnitude)
        self.schema = min(MAX_SCHEMA, math.ceil(-math.log2(math.log2(1.0 + 10.0**-digits))))
        middles_s = (lowest_ns[:-1] + lowest_ns[1:]) / 2e9
        # the bucket of each part, less 1; the first part is in none, because its durations may be 0
        self._natives: NDArray[np.int64] = np.ceil(np.log2(middles_s[1:]) * 2**self.schema).astype(np.int64) - 1
        self._by_shift: list[tuple[array[int], array[int], array[int]]] = []
        # as in `share_within`: a part that contains a bound counts as within it
        above = np.searchsorted(lowest_ns[:-1] / 1e9, np.array(BOUNDS_S), side="right")
        self.bounds = _ints([*above, counts_length])
        self.empty = HistogramPoint(
            total=0,
            sum_s=0.0,
            min_s=math.nan,
            max_s=math.nan,
            schema=self.schema,
            zero_threshold_s=(1 << unit_magnitude) / 1e9,
            zeros=0,
            indexes=array("i"),
            counts=array("q"),
            cumulative=array("q", bytes(8 * (len(BOUNDS_S) + 1))),
        )

    def buckets(self, shift: int) -> "tuple[array[int], array[int], array[int]]":
        """Return the buckets of the schema that is ``shift`` steps coarser than the finest.

        Each step merges two buckets into one. The result is edges, middles and numbers, for `fill_buckets`.
        """
        while len(self._by_shift) <= shift:
            below = len(self._by_shift)
            finer, numbers = ((self._natives >> steps) + 1 for steps in (max(0, below - 1), below))
            starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
            edges = [*(starts + 1), len(self._natives) + 1]
            middles = np.searchsorted(finer, 2 * numbers[starts]) + 1
            self._by_shift.append((_ints(edges), _ints(middles), _ints(numbers[starts])))
        return self._by_shift[shift]


def _ints(numbers: Iterable[int]) -> "array[int]":
    # of the standard library: compiled code accesses its buffer faster than NumPy's
    return array("i", np.array(numbers, np.int32).tobytes())


_layout = functools.lru_cache(maxsize=16)(_Layout)


class HistogramReader:
    """Reads histograms one after another, with one buffer per layout. Not thread-safe.

    Args:
        max_size: most bytes of the exponential buckets of a point, at least 20, because the buckets below and above 1 s
            never merge.
    """

    def __init__(self, max_size: int = MAX_SIZE) -> None:
        self._max_size = max_size
        self._totals: dict[int, array[int]] = {}
        self._shift = 0  # of the last histogram
        self._indexes = array("i", bytes(4 * max_size))
        self._counts = array("q", bytes(8 * max_size))

    def read(self, histogram: LatencyHistogram, created_ns: int = IMPORTED_NS) -> HistogramPoint:
        """Return the histogram at this moment, in export form.

        Args:
            histogram: any latency histogram.
            created_ns: start of counting, in nanoseconds since 1970; no duration is older.
        """
        length = histogram.counts_length
        layout = _layout(histogram.unit_magnitude, histogram.half_magnitude, length, histogram.significant_digits)
        if not histogram.count:
            return layout.empty if created_ns == IMPORTED_NS else layout.empty._replace(created_ns=created_ns)
        totals = self._totals.get(length)
        if totals is None:
            totals = self._totals[length] = array("q", bytes(8 * (length + 1)))
        first, end, sum_s = histogram.cumulate_into(totals)
        zeros = totals[1] if first == 0 else 0
        shift, limit, least = self._shift, self._max_size, 0
        while True:
            filled, size, finer = fill_buckets(
                totals, first, end, *layout.buckets(shift), limit, self._indexes, self._counts
            )
            if size > limit:
                shift += 1
                least = shift
            elif shift > least and finer <= limit:
                shift -= 1
            else:
                break
        self._shift = shift
        cumulative = layout.empty.cumulative[:]
        fill_bounds(totals, first, end, layout.bounds, cumulative)
        return HistogramPoint(
            total=cumulative[-1],
            sum_s=sum_s,
            min_s=histogram.min,
            max_s=histogram.max,
            schema=layout.schema - shift,
            zero_threshold_s=layout.empty.zero_threshold_s,
            zeros=zeros,
            indexes=self._indexes[:filled],
            counts=self._counts[:filled],
            cumulative=cumulative,
            created_ns=created_ns,
        )

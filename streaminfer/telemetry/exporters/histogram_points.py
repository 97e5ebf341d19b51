"""A latency histogram as exporters send it: exponential buckets, classic buckets and the sum.

One pass over the parts gives running totals and the sum. What a bucket holds, exponential or classic, is then the
difference of two totals, whatever the schema. The finest schema is taken whose buckets take at most `MAX_SIZE` bytes:
the buckets of one schema tell whether the next finer one is worth a try, and the search begins where that of the last
histogram ended, which is mostly right. O(parts that can hold something + buckets of the schemas that are tried).

Both Prometheus' native histograms and OpenTelemetry's exponential ones number buckets so that bucket ``i`` of schema
``s`` holds durations in ``(b^(i-1), b^i]`` seconds, with ``b = 2^(2^-s)``. A part of our layout goes, whole, into the
bucket of its middle. That depends on the part alone, so histograms that are merged before they are exported and those
that Prometheus adds up afterwards have the same buckets.

Error: a duration moves by at most half a part (0.05 % at three digits, or half of ``lowest_s``), and a quantile is
known to one bucket: 0.27 % at schema 8, twice that for each schema below. `MAX_SIZE` lowers the schema only where
durations are spread over many buckets. Where each of those holds many durations, interpolation is off by far less than
a bucket's width; where a thousand durations are spread widely, a p99 is off by up to the width, 1 or 2 %.
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
"""Upper bounds of the classic buckets in seconds; the last one, infinity, is left out."""

BOUND_LABELS = (*(f"{bound:g}" if bound % 1 else f"{bound:.1f}" for bound in BOUNDS_S), "+Inf")
"""The label ``le`` of each classic bucket."""

MAX_SIZE = 590
"""Most bytes of the exponential buckets of a series, so that it takes less than 1 KB with its classic ones."""

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
        created_ns: no duration is older, in nanoseconds since 1970.
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
    """Which buckets the parts of a histogram belong to.

    Attributes:
        schema: the finest.
        bounds: the first part above each classic bound; the end of the last part.
        empty: the point of a histogram that is empty.
    """

    def __init__(self, unit_magnitude: int, half_magnitude: int, counts_length: int, digits: int) -> None:
        lowest_ns = lowest_at(np.arange(counts_length + 1), unit_magnitude, half_magnitude)
        self.schema = min(MAX_SCHEMA, math.ceil(-math.log2(math.log2(1.0 + 10.0**-digits))))
        middles_s = (lowest_ns[:-1] + lowest_ns[1:]) / 2e9
        self._natives: NDArray[np.int64] = np.ceil(np.log2(middles_s) * 2**self.schema).astype(np.int64)
        self._by_shift: list[tuple[array[int], array[int], array[int]]] = []
        # as `share_within` has it: a part is within a bound that it holds
        above = np.searchsorted(lowest_ns[:-1] / 1e9, np.array(BOUNDS_S), side="right")
        # arrays of the standard library: compiled code gets at their buffers faster than at NumPy's
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
        """Return the buckets of a schema so many steps below the finest, at each of which two become one.

        They are edges, middles and numbers, as `fill_buckets` takes them. The first part, whose durations may be 0, is
        in none of them.
        """
        while len(self._by_shift) <= shift:
            below = len(self._by_shift)
            finer, numbers = self._numbers(max(0, below - 1)), self._numbers(below)
            starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
            edges = [*(starts + 1), len(self._natives)]
            middles = np.searchsorted(finer, 2 * numbers[starts]) + 1
            self._by_shift.append((_ints(edges), _ints(middles), _ints(numbers[starts])))
        return self._by_shift[shift]

    def _numbers(self, shift: int) -> NDArray[np.int64]:
        """Return the number of the bucket of each part but the first."""
        numbers: NDArray[np.int64] = ((self._natives[1:] - 1) >> shift) + 1
        return numbers


def _ints(numbers: Iterable[int]) -> "array[int]":
    return array("i", np.array(numbers, np.int32).tobytes())


_layout = functools.lru_cache(maxsize=16)(_Layout)


class HistogramReader:
    """Reads histograms one after another, with one buffer for all of a layout. Not thread-safe.

    Args:
        max_size: most bytes of the exponential buckets of a point, at least 20: those on either side of 1 s never
            merge.
    """

    def __init__(self, max_size: int = MAX_SIZE) -> None:
        self._max_size = max_size
        self._totals: dict[int, array[int]] = {}
        self._shift = 0  # of the last histogram
        self._indexes = array("i", bytes(4 * max_size))
        self._counts = array("q", bytes(8 * max_size))

    def read(self, histogram: LatencyHistogram, created_ns: int = IMPORTED_NS) -> HistogramPoint:
        """Return what the histogram holds now.

        Args:
            histogram: any.
            created_ns: no duration of it is older, in nanoseconds since 1970.
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

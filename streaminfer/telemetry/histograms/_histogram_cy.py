# cython: boundscheck=False, wraparound=False
"""Compiled state of a latency histogram: maps durations to counts, and ranks to durations.

The layout is that of Gil Tene's HdrHistogram (https://github.com/HdrHistogram/HdrHistogram), bit for bit. Buckets
double in width, and each is cut into the same number of equal parts. A record therefore costs one increment, and the
relative error is the same everywhere. All durations are whole nanoseconds.

* ``unit`` = the largest power of two ≤ ``lowest_ns``: the width of the narrowest part.
* ``2 · half`` = the smallest power of two ≥ ``2 · 10^digits``: the number of parts in bucket 0, which starts at zero.
  Every later bucket covers the next octave and adds ``half`` parts: earlier buckets have counted its lower half.
* The bucket of ``v`` is the number of bits of ``v`` beyond those of bucket 0. Its part is ``v`` shifted right by bucket
  and unit. Because each bucket adds ``half`` parts, the index is ``bucket · half + part``.

A part of bucket ``b > 0`` is ``unit · 2^b`` wide and starts at or above ``half`` times its width. Its width is
therefore at most ``1 / half ≤ 10^-digits`` of any duration in it. In bucket 0 the width is one unit.

Invariants: ``count`` is the sum of all counts. Parts below that of ``minimum_ns`` and above that of ``maximum_ns`` are
empty. Each index is below ``counts_length``, because durations are clamped to ``highest_ns`` before they are counted.
A walk between the extremes therefore ends before it leaves the array.

Cost: recording O(1), no allocation. A quantile walks from the nearer extreme, at most ``counts_length`` parts (24,576
at the defaults, 8 bytes each).

Threads: in the compiled build under the interpreter lock every method is atomic. No other thread can run between its
first and last write, or the first and last read of a snapshot: there it does not call Python, drop a reference or
allocate. In an uncompiled run, or without an interpreter lock, the caller must hold a lock for each call, as
``LatencyHistogram`` does.

The same source is compiled with the C types of ``_histogram_cy.pxd`` or runs uncompiled. The directives above are safe:
every index follows from the invariants, or from a loop over the length of the array.
"""

from __future__ import annotations

from array import array
from collections.abc import MutableSequence
from numbers import Real
from typing import Any

from streaminfer._internal.validation import check_count, expected

__all__ = ["HistogramState"]

_FAR_NS = 2**62
_FAR_NS_FLOAT = 2.0**62
_NAN = float("nan")
_JUST_BELOW_ONE = 1.0 - 2.0**-53

bit_length = int.bit_length


class HistogramState:
    """Counts of durations in nanoseconds, in HdrHistogram's layout.

    Args:
        lowest_ns: resolution of the shortest durations; at least 1.
        highest_ns: longer durations are counted as this one; at least ``2 * lowest_ns``, below 2^62.
        significant_digits: precision of a duration in decimal digits, 1 to 5.

    Attributes:
        count: number of durations counted.
        clamped: number of durations that were longer than ``highest_ns``.
        minimum_ns: the shortest duration, exactly; 2^62 while empty.
        maximum_ns: the longest duration, exactly; -1 while empty.
        capacity_ns: the longest duration of the last part, at or above ``highest_ns``.
        counts_length: number of parts.

    Raises:
        ValueError: the layout is impossible.
    """

    __slots__ = ("_counts", "_mask", "capacity_ns", "clamped", "count", "counts_length", "half_magnitude", "highest_ns",
                 "lowest_ns", "maximum_ns", "minimum_ns", "significant_digits", "unit_magnitude")  # fmt: skip

    _counts: MutableSequence[int]

    def __init__(self, lowest_ns: int, highest_ns: int, significant_digits: int) -> None:
        if not (1 <= lowest_ns <= highest_ns // 2 and highest_ns < 2**62 and 1 <= significant_digits <= 5):
            raise ValueError(
                "layout: expected 1 ≤ lowest ≤ highest / 2, highest < 2^62 nanoseconds and 1 to 5 significant digits, "
                f"got lowest {lowest_ns}, highest {highest_ns}, {significant_digits} digits"
            )
        unit_magnitude = lowest_ns.bit_length() - 1
        half_magnitude: int = (2 * 10**significant_digits - 1).bit_length() - 1
        if unit_magnitude + half_magnitude > 61:
            raise ValueError(
                f"layout: {significant_digits} significant digits above a lowest of {lowest_ns} nanoseconds pass 2^62"
            )
        bucket_count = max(1, highest_ns.bit_length() - unit_magnitude - half_magnitude)
        self.lowest_ns = lowest_ns
        self.highest_ns = highest_ns
        self.significant_digits = significant_digits
        self.capacity_ns = (1 << (unit_magnitude + half_magnitude + bucket_count)) - 1
        self.counts_length = (bucket_count + 1) << half_magnitude
        self.unit_magnitude = unit_magnitude
        self.half_magnitude = half_magnitude
        self._mask: int = ((2 << half_magnitude) - 1) << unit_magnitude
        self._counts = array("q", [0]) * self.counts_length
        self.count = 0
        self.clamped = 0
        self.minimum_ns = _FAR_NS
        self.maximum_ns = -1

    def record(self, seconds: float, /) -> None:
        """Count one duration.

        Args:
            seconds: the duration, rounded to whole nanoseconds. A duration above ``highest_s``, infinity included, is
                counted as ``highest_s`` and in ``clamped``.

        Raises:
            ValueError: ``seconds`` is NaN or negative.
            TypeError: ``seconds`` is not a real number, or is a bool.
        """
        _count(self, _nanoseconds(_duration("seconds", seconds)))

    def record_ns(self, nanoseconds: int, /) -> None:
        """Count one duration in whole nanoseconds; otherwise like :meth:`record`.

        Raises:
            ValueError: ``nanoseconds`` is negative.
            TypeError: ``nanoseconds`` is not a whole number, or is a bool.
        """
        if type(nanoseconds) is not int or nanoseconds < 0:
            nanoseconds = check_count("nanoseconds", nanoseconds, at_least=0)
        # Python's min, because an integer may have any size; the result fits a C integer
        _count(self, min(nanoseconds, 2**62))

    def count_ns(self, nanoseconds: int) -> None:
        """Count one duration without checks, for compiled callers.

        Args:
            nanoseconds: the duration; clamped to 0 and ``highest_ns``, but only the latter adds to ``clamped``.
        """
        _count(self, nanoseconds)

    def record_corrected(self, seconds: float, expected_interval_s: float) -> None:
        """Count one duration, and those that a closed-loop caller could not measure while it waited.

        A caller that sends at a fixed interval, but waits for each response, sends nothing during a long request
        ("coordinated omission"). The missing requests would have taken ``seconds`` less 1, 2, … intervals. These
        durations are counted too, down to one interval, like ``recordValueWithExpectedInterval`` of HdrHistogram in
        Java and C. (HdrHistogram's Python port also counts the remainder below one interval.)

        Args:
            seconds: the duration, as in :meth:`record`; the added durations count down from its clamped value.
            expected_interval_s: seconds between the starts of two requests; below half a nanosecond nothing is added.

        Raises:
            ValueError: an argument is NaN or negative.
            TypeError: an argument is not a real number, or is a bool.
        """
        _count_corrected(
            self,
            _nanoseconds(_duration("seconds", seconds)),
            _nanoseconds(_duration("expected_interval_s", expected_interval_s)),
        )

    def record_each(self, seconds: Any) -> None:
        """Count every duration of an array, or none on an error.

        Args:
            seconds: shape (n,), float64, contiguous.

        Raises:
            ValueError: a duration is NaN or negative.
        """
        for index in range(len(seconds)):
            if not seconds[index] >= 0.0:
                raise ValueError(expected(f"seconds[{index}]", "a number of seconds ≥ 0", float(seconds[index])))
        counts = self._counts  # local variables: C would reload attributes after each write
        minimum_ns = self.minimum_ns
        maximum_ns = self.maximum_ns
        clamped = 0
        for index in range(len(seconds)):
            nanoseconds = _nanoseconds(float(seconds[index]))
            if nanoseconds > self.highest_ns:
                nanoseconds = self.highest_ns
                clamped += 1
            counts[_index(self, nanoseconds)] += 1
            minimum_ns = min(minimum_ns, nanoseconds)
            maximum_ns = max(maximum_ns, nanoseconds)
        self.count += len(seconds)
        self.clamped += clamped
        self.minimum_ns = minimum_ns
        self.maximum_ns = maximum_ns

    def add_counts(self, counts: Any, minimum_ns: int, maximum_ns: int, clamped: int) -> None:
        """Add counts of another histogram with the same layout.

        Args:
            counts: shape (counts_length,), int64, none negative.
            minimum_ns: the shortest of the durations.
            maximum_ns: the longest of the durations; negative if there are none.
            clamped: number of durations that were clamped.

        Raises:
            ValueError: ``counts`` has another length, or the extremes are impossible.
        """
        if len(counts) != self.counts_length:
            raise ValueError(f"counts: expected {self.counts_length} of them, got {len(counts)}")
        if maximum_ns < 0:
            return
        if not 0 <= minimum_ns <= maximum_ns <= self.capacity_ns:
            raise ValueError(f"counts: impossible extremes {minimum_ns} and {maximum_ns} ns")
        total = 0
        for index in range(_index(self, minimum_ns), _index(self, maximum_ns) + 1):
            self._counts[index] += counts[index]
            total += counts[index]
        self.count += total
        self.clamped += clamped
        self.minimum_ns = min(self.minimum_ns, minimum_ns)
        self.maximum_ns = max(self.maximum_ns, maximum_ns)

    def quantile(self, q: float) -> float:
        """Return the duration in seconds that a share ``q`` of all durations does not exceed; NaN while empty.

        As in HdrHistogram, it is the highest duration in the part of rank ⌈q · count⌉, but within the exact extremes.
        It is never too low, and too high by at most ``10**-significant_digits`` of itself, or by ``lowest_s``.

        Args:
            q: a share from 0 to 1; 0 gives the minimum, 1 the maximum.

        Raises:
            ValueError: ``q`` is NaN or outside 0 to 1.
            TypeError: ``q`` is not a real number, or is a bool.
        """
        return _quantile(self, _share(q))

    def quantiles_into(self, shares: Any, seconds: Any) -> None:
        """Write the quantile of each share, all at the same moment.

        Args:
            shares: shape (n,), float64, each from 0 to 1.
            seconds: shape (n,), float64: output, the quantiles.
        """
        for index in range(min(len(shares), len(seconds))):
            seconds[index] = _quantile(self, shares[index])

    def share_within(self, seconds: float) -> float:
        """Return the share of counted durations at or below ``seconds``; NaN while empty.

        Durations in the same part as ``seconds`` count as at or below it. Below the exact minimum the share is 0, from
        the exact maximum on it is 1. ``share_within(quantile(q))`` is at least ``q``.

        Raises:
            ValueError: ``seconds`` is NaN or negative.
            TypeError: ``seconds`` is not a real number, or is a bool.
        """
        return _share_within(self, _nanoseconds(_duration("seconds", seconds)))

    def snapshot(self) -> tuple[Any, int, int, int]:
        """Return the state of the histogram at one moment.

        Returns:
            A new ``array("q")`` of the counts, ``minimum_ns``, ``maximum_ns``, ``clamped``.
        """
        counts = array("q", [0]) * self.counts_length
        copied = counts
        minimum_ns = self.minimum_ns
        maximum_ns = self.maximum_ns
        clamped = self.clamped
        if self.count:
            for index in range(_index(self, minimum_ns), _index(self, maximum_ns) + 1):
                copied[index] = self._counts[index]
        return counts, minimum_ns, maximum_ns, clamped

    def cumulate_into(self, totals: Any) -> tuple[int, int, float]:
        """Write running totals of the counts at one moment, from the first part that can be non-empty.

        Args:
            totals: shape (counts_length + 1,), int64: output. The element of each part from ``first`` to ``end`` is the
                sum of the counts below that part; the other elements stay unchanged.

        Returns:
            ``first``; ``end``, one after the last part that can be non-empty; and the sum of all durations in seconds,
            each taken as the middle of its part. For an empty histogram 0, 0 and 0.
        """
        if self.count == 0:
            return 0, 0, 0.0
        counts = self._counts  # local variable: C would reload an attribute after each write
        first = index = _index(self, self.minimum_ns)
        end = _index(self, self.maximum_ns) + 1
        total = 0
        sum_ns = 0.0
        while index < end:
            # all parts of an octave have the same width: sum(position * count) follows from the sum of running totals
            octave_end = min(end, ((index >> self.half_magnitude) + 1) << self.half_magnitude)
            lowest_ns = _lowest_at(self, index)
            width_ns = _lowest_at(self, index + 1) - lowest_ns
            parts = octave_end - index
            before = total
            sum_of_totals = 0
            while index < octave_end:
                totals[index] = total
                total += counts[index]
                sum_of_totals += total
                index += 1
            count = total - before
            steps = parts * total - sum_of_totals
            sum_ns += float(count) * (lowest_ns + width_ns / 2.0) + float(steps) * width_ns
        totals[end] = total
        return first, end, sum_ns / 1e9

    def reset(self) -> None:
        """Remove all counts; the layout stays."""
        if self.count:
            for index in range(_index(self, self.minimum_ns), _index(self, self.maximum_ns) + 1):
                self._counts[index] = 0
        self.count = 0
        self.clamped = 0
        self.minimum_ns = _FAR_NS
        self.maximum_ns = -1


def _count(state: HistogramState, nanoseconds: int) -> None:
    if nanoseconds > state.highest_ns:
        nanoseconds = state.highest_ns
        state.clamped += 1
    nanoseconds = max(nanoseconds, 0)
    state._counts[_index(state, nanoseconds)] += 1
    state.count += 1
    state.minimum_ns = min(state.minimum_ns, nanoseconds)
    state.maximum_ns = max(state.maximum_ns, nanoseconds)


def _count_corrected(state: HistogramState, nanoseconds: int, interval_ns: int) -> None:
    _count(state, nanoseconds)
    if interval_ns == 0:
        return
    missing = min(nanoseconds, state.highest_ns) - interval_ns
    while missing >= interval_ns:
        # count all durations of the series in one part at once: a long stall over a short interval has billions
        index = _index(state, missing)
        last = max(_lowest_at(state, index), interval_ns)
        repeats = (missing - last) // interval_ns + 1
        state._counts[index] += repeats
        state.count += repeats
        missing -= repeats * interval_ns
        # the series counts down: the last one so far is the shortest, and the maximum came first
        state.minimum_ns = min(state.minimum_ns, missing + interval_ns)


def _index(state: HistogramState, nanoseconds: int) -> int:
    bucket = bit_length(nanoseconds | state._mask) - state.unit_magnitude - state.half_magnitude - 1
    return (bucket << state.half_magnitude) + (nanoseconds >> (bucket + state.unit_magnitude))


def _lowest_at(state: HistogramState, index: int) -> int:
    half = 1 << state.half_magnitude
    bucket = (index >> state.half_magnitude) - 1
    if bucket < 0:
        return index << state.unit_magnitude
    return ((index & (half - 1)) + half) << (bucket + state.unit_magnitude)


def _quantile(state: HistogramState, share: float) -> float:
    if state.count == 0:
        return _NAN
    if share == 0.0:
        return state.minimum_ns / 1e9
    # rounded down by one step, as in HdrHistogram: 0.999 · 1000 must not become 999.0000001 and give rank 1000
    exact = share * _JUST_BELOW_ONE * state.count
    rank = int(exact)
    if rank < exact or rank == 0:
        rank += 1
    if rank > state.count // 2:
        above = state.count - rank
        index = _index(state, state.maximum_ns)
        cumulative = state._counts[index]
        while cumulative <= above:
            index -= 1
            cumulative += state._counts[index]
    else:
        index = _index(state, state.minimum_ns)
        cumulative = state._counts[index]
        while cumulative < rank:
            index += 1
            cumulative += state._counts[index]
    return min(_lowest_at(state, index + 1) - 1, state.maximum_ns) / 1e9


def _share_within(state: HistogramState, nanoseconds: int) -> float:
    if state.count == 0:
        return _NAN
    if nanoseconds >= state.maximum_ns:
        return 1.0
    if nanoseconds < state.minimum_ns:
        return 0.0
    cumulative = 0
    for index in range(_index(state, state.minimum_ns), _index(state, nanoseconds) + 1):
        cumulative += state._counts[index]
    return cumulative / state.count


def _nanoseconds(seconds: float) -> int:
    scaled = seconds * 1e9
    if scaled < _FAR_NS_FLOAT:
        return int(scaled + 0.5)
    return _FAR_NS


def _duration(name: str, seconds: float) -> float:
    value = seconds if type(seconds) is float else _real(name, seconds)
    if not value >= 0.0:
        raise ValueError(expected(name, "a number of seconds ≥ 0", seconds))
    return value


def _share(q: float) -> float:
    value = q if type(q) is float else _real("q", q)
    if not 0.0 <= value <= 1.0:
        raise ValueError(expected("q", "a share from 0 to 1", q))
    return value


def _real(name: str, number: Any) -> float:
    if isinstance(number, bool) or not isinstance(number, (float, int, Real)):
        raise TypeError(expected(name, "a real number", number))
    try:
        return float(number)
    except OverflowError:
        return -1.0 if number < 0 else _FAR_NS_FLOAT  # the integer is too large for a float

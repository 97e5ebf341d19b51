# cython: boundscheck=False, wraparound=False
"""The compiled state of a latency histogram: where a duration is counted, and which duration a rank stands for.

The idea (Gil Tene's HdrHistogram, https://github.com/HdrHistogram/HdrHistogram, whose layout this is bit for bit):
buckets that double in width, each cut into the same number of equal parts, so that a record costs one increment and
the relative error is the same everywhere. Everything is in whole nanoseconds.

* ``unit`` = the largest power of two ≤ ``lowest_ns``: the width of the narrowest part.
* ``2 · half`` = the smallest power of two ≥ ``2 · 10^digits``: parts in bucket 0, which starts at zero. Every later
  bucket covers the next octave, whose lower half the buckets before it have counted already, so it adds ``half`` parts.
* The bucket of ``v`` is the number of bits that ``v`` has beyond those of bucket 0, its part is ``v`` shifted right by
  bucket and unit, and since each bucket adds ``half`` parts the index is ``bucket · half + part``.

A part of bucket ``b > 0`` is ``unit · 2^b`` wide and starts at or above ``half`` times its width, so its width is at
most ``1 / half ≤ 10^-digits`` of any duration in it; in bucket 0 the width is one unit.

Invariants: ``count`` is the sum of all counts; no part below that of ``minimum_ns`` or above that of ``maximum_ns``
holds anything (while empty they are above and below everything); each index is below ``counts_length``, since what is
counted is clamped to ``highest_ns`` first. A walk between the extremes therefore ends before it leaves the array.

Cost: recording O(1), no allocation. A quantile walks from the nearer extreme, at most ``counts_length`` parts (24,576
at the defaults, 8 bytes each).

Threads: in the compiled build under the interpreter lock every method is atomic. Nothing between the first and the last
write, or between the first and the last read of a snapshot, calls Python, drops a reference or allocates, so no other
thread gets in. Run uncompiled, or without an interpreter lock, a caller takes a lock around each call, as
``LatencyHistogram`` does.

One source, compiled with the C types of ``_histogram_cy.pxd`` or run as it is. The directives above are safe: every
index comes from the invariants or from a loop over the array's own length.
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
        lowest_ns: durations below it are not told apart; at least 1.
        highest_ns: longer durations are counted as this one; at least ``2 * lowest_ns``, below 2^62.
        significant_digits: decimal digits that are kept of a duration, 1 to 5.

    Attributes:
        count: how many durations were counted.
        clamped: how many of them were longer than ``highest_ns``.
        minimum_ns: the shortest, exactly; 2^62 while empty.
        maximum_ns: the longest, exactly; -1 while empty.
        capacity_ns: the longest duration that has a place of its own, at or above ``highest_ns``.
        counts_length: number of parts.

    Raises:
        ValueError: an impossible layout.
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
        """Counts one duration.

        Args:
            seconds: the duration, rounded to whole nanoseconds; above ``highest_s``, infinity included, it is counted
                as ``highest_s`` and in ``clamped``.

        Raises:
            ValueError: NaN or negative.
            TypeError: not a real number, or a bool.
        """
        _count(self, _nanoseconds(_duration("seconds", seconds)))

    def record_ns(self, nanoseconds: int, /) -> None:
        """Counts one duration in whole nanoseconds; otherwise like :meth:`record`.

        Raises:
            ValueError: negative.
            TypeError: not a whole number, or a bool.
        """
        if type(nanoseconds) is not int or nanoseconds < 0:
            nanoseconds = check_count("nanoseconds", nanoseconds, at_least=0)
        # Python's minimum, of whole numbers of any size: the result fits a C integer
        _count(self, min(nanoseconds, 2**62))

    def count_ns(self, nanoseconds: int) -> None:
        """Counts one duration that the caller knows to be sound: the call for compiled callers.

        Args:
            nanoseconds: the duration; above ``highest_ns`` clamped and counted, negative taken as 0.
        """
        _count(self, nanoseconds)

    def record_corrected(self, seconds: float, expected_interval_s: float) -> None:
        """Counts one duration, and those that its length kept a closed-loop caller from measuring.

        A caller that sends at a fixed interval, but only after the answer to the request before, sends nothing
        while it waits ("coordinated omission"). Requests that should have left meanwhile would have taken ``seconds``
        less 1, 2, … intervals: these are counted too, down to one interval, as HdrHistogram's
        ``recordValueWithExpectedInterval`` does in Java and C (its Python port also counts what remains below one
        interval).

        Args:
            seconds: the duration, as in :meth:`record`; the others count down from what it is clamped to.
            expected_interval_s: seconds between the starts of two requests; below half a nanosecond nothing is added.

        Raises:
            ValueError: NaN or negative.
            TypeError: not a real number, or a bool.
        """
        _count_corrected(
            self,
            _nanoseconds(_duration("seconds", seconds)),
            _nanoseconds(_duration("expected_interval_s", expected_interval_s)),
        )

    def record_each(self, seconds: Any) -> None:
        """Counts every duration of an array, or none.

        Args:
            seconds: shape (n,), float64, contiguous.

        Raises:
            ValueError: one of them is NaN or negative.
        """
        for index in range(len(seconds)):
            if not seconds[index] >= 0.0:
                raise ValueError(expected(f"seconds[{index}]", "a number of seconds ≥ 0", float(seconds[index])))
        counts = self._counts  # locals: C reads attributes again after each write
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
        """Adds counts that were made elsewhere with the same layout.

        Args:
            counts: shape (counts_length,), int64, none negative.
            minimum_ns: the shortest duration among them.
            maximum_ns: the longest; negative where there are none.
            clamped: how many were clamped.

        Raises:
            ValueError: another length, or impossible extremes.
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
        """The duration in seconds that a share ``q`` of all counted durations does not exceed; NaN while empty.

        It is the highest duration that the layout does not tell from the one of rank ⌈q · count⌉, as in HdrHistogram,
        but never outside the exact extremes: never too low, and too high by at most ``10**-significant_digits`` of it
        (or by ``lowest_s``). 0 gives the minimum, 1 the maximum.

        Args:
            q: a share, 0 to 1.

        Raises:
            ValueError: NaN or outside 0 to 1.
            TypeError: not a real number, or a bool.
        """
        return _quantile(self, _share(q))

    def quantiles_into(self, shares: Any, seconds: Any) -> None:
        """Writes the quantile of each share, all of one moment.

        Args:
            shares: shape (n,), float64, each from 0 to 1.
            seconds: shape (n,), float64: the result.
        """
        for index in range(min(len(shares), len(seconds))):
            seconds[index] = _quantile(self, shares[index])

    def share_within(self, seconds: float) -> float:
        """The share of counted durations that are at or below ``seconds``; NaN while empty.

        Durations that the layout does not tell from ``seconds`` count as at or below it; the exact extremes decide
        beyond them. ``share_within(quantile(q))`` is at least ``q``.

        Raises:
            ValueError: NaN or negative.
            TypeError: not a real number, or a bool.
        """
        return _share_within(self, _nanoseconds(_duration("seconds", seconds)))

    def take_changes(self, known: Any, shift: int) -> list[tuple[int, int]]:
        """Return what changed since the counts that a caller knows, of one moment, and tell it the new ones.

        Costs a few microseconds and no memory but that of the changes, for callers that look often.

        Args:
            known: shape (counts_length >> shift,), int64, zero at first: counts of groups of parts; after a reset what
                it has above the counts stays.
            shift: each group is of ``2**shift`` neighboring parts; at most ``half_magnitude``.

        Returns:
            Number and increase of each group with more than ``known``.
        """
        counts = self._counts
        changes = []
        if self.count:
            for group in range(_index(self, self.minimum_ns) >> shift, (_index(self, self.maximum_ns) >> shift) + 1):
                count = 0
                for index in range(group << shift, (group + 1) << shift):
                    count += counts[index]
                if count > known[group]:
                    changes.append((group, count - known[group]))
                    known[group] = count
        return changes

    def snapshot(self) -> tuple[Any, int, int, int]:
        """All that was counted, of one moment.

        Returns:
            A fresh ``array("q")`` of the counts, ``minimum_ns``, ``maximum_ns``, ``clamped``.
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
        """Writes running totals of the counts, of one moment, from the first part that can hold something.

        Args:
            totals: shape (counts_length + 1,), int64: from ``first`` to ``end``, gets the count of the parts from
                ``first`` on below each part; the rest is left.

        Returns:
            ``first``, ``end`` behind the last part that can hold something, and the sum of all durations in seconds,
            each taken as the middle of its part; of an empty histogram 0, 0 and 0.
        """
        if self.count == 0:
            return 0, 0, 0.0
        counts = self._counts  # a local: C reads where the array of an attribute is again after each write
        first = index = _index(self, self.minimum_ns)
        end = _index(self, self.maximum_ns) + 1
        total = 0
        sum_ns = 0.0
        while index < end:
            # parts of equal width: the k-th of n counts k times less in the sum of totals, so additions are enough
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
        """Forgets all that was counted; the layout stays."""
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
        # all members of the series that share a part, at once: a long stall over a short interval has billions
        index = _index(state, missing)
        last = max(_lowest_at(state, index), interval_ns)
        repeats = (missing - last) // interval_ns + 1
        state._counts[index] += repeats
        state.count += repeats
        missing -= repeats * interval_ns
        # the series counts down: its latest member is the shortest so far, and the maximum came first
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
    # one step down, as in HdrHistogram: 0.999 · 1000 must not round up to 999.0000001 and give rank 1000
    exact = share * _JUST_BELOW_ONE * state.count
    rank = int(exact)
    if rank < exact or rank == 0:
        rank += 1
    if rank > state.count // 2:
        above = state.count - rank
        index = _index(state, state.maximum_ns)
        seen = state._counts[index]
        while seen <= above:
            index -= 1
            seen += state._counts[index]
    else:
        index = _index(state, state.minimum_ns)
        seen = state._counts[index]
        while seen < rank:
            index += 1
            seen += state._counts[index]
    return min(_lowest_at(state, index + 1) - 1, state.maximum_ns) / 1e9


def _share_within(state: HistogramState, nanoseconds: int) -> float:
    if state.count == 0:
        return _NAN
    if nanoseconds >= state.maximum_ns:
        return 1.0
    if nanoseconds < state.minimum_ns:
        return 0.0
    seen = 0
    for index in range(_index(state, state.minimum_ns), _index(state, nanoseconds) + 1):
        seen += state._counts[index]
    return seen / state.count


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
        return -1.0 if number < 0 else _FAR_NS_FLOAT  # whole numbers have no end

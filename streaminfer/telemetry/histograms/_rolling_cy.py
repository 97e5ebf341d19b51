# cython: boundscheck=False, wraparound=False, cdivision=True
"""The compiled state of a rolling histogram: a ring of histograms, one per time slice.

The idea: time is cut into slices of equal length, numbered from zero. A duration is counted in the histogram of the
present slice. The histogram of slice ``n`` stands at ``n mod slices`` and remembers its number, so nothing has to
happen when a slice ends, and no thread clears anything: the first record of a later slice that stands in the same
place clears it, and a reader leaves out what carries a number that is too old. That holds as well after hours
without a record and for a clock that jumps ahead.

What a reader sees at elapsed time ``t``, with slices of length ``s``: the slices ``⌊t/s⌋ - slices + 1`` to ``⌊t/s⌋``.
So a duration counted up to ``(slices - 1) · s`` ago is always in, and one counted ``slices · s`` ago or earlier never.

Invariants: ``_open`` is the histogram of slice ``_number``, which ends at ``_closes_ns``; ``_numbers[n mod slices]`` is
the number of the slice that was counted there last. Elapsed time never goes back, so numbers only grow.

Cost: a record is one comparison more than a histogram's, and the clock; the first of each slice also clears what an old
one left, between its extremes. A read adds the live slices into a histogram that is kept for it, between their
extremes, so it allocates nothing.

Threads: as in ``_histogram_cy``. In the compiled build under the interpreter lock each method is atomic after its read
of the clock: recorders never wait for a lock, and a reader sees all slices at one moment. Otherwise a caller takes a
lock around each, as ``RollingHistogram`` does.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, MutableSequence
from typing import Any

from streaminfer.telemetry.histograms import _histogram_cy, _monotonic_cy
from streaminfer.telemetry.histograms._histogram_cy import HistogramState

__all__ = ["RollingState"]


class RollingState(_monotonic_cy.MonotonicClock):
    """Histograms of the latest time slices.

    Args:
        clock: returns monotonic nanoseconds; ``None``: the system's.
        slices: how many are kept.
        slice_ns: how long one lasts.
        lowest_ns: the layout of each, as of :class:`HistogramState`.
        highest_ns: the same.
        significant_digits: the same.
    """

    _numbers: MutableSequence[int]

    def __init__(
        self,
        clock: Callable[[], int] | None,
        slices: int,
        slice_ns: int,
        lowest_ns: int,
        highest_ns: int,
        significant_digits: int,
    ) -> None:
        _monotonic_cy.MonotonicClock.__init__(self, clock)
        self.slices = slices
        self.slice_ns = slice_ns
        self._ring = [HistogramState(lowest_ns, highest_ns, significant_digits) for _ in range(slices)]
        self._merged = HistogramState(lowest_ns, highest_ns, significant_digits)
        self._numbers = array("q", range(slices))  # empty histograms: whether they are live makes no difference
        self._open = self._ring[0]
        self._number = 0
        self._closes_ns = slice_ns

    def record(self, seconds: float, /) -> None:
        """Counts one duration in the present slice; see :meth:`LatencyHistogram.record`."""
        self.count_ns(_histogram_cy._nanoseconds(_histogram_cy._duration("seconds", seconds)))

    def record_ns(self, nanoseconds: int, /) -> None:
        """Counts one duration in whole nanoseconds; see :meth:`LatencyHistogram.record_ns`."""
        _turn(self)
        self._open.record_ns(nanoseconds)

    def count_ns(self, nanoseconds: int) -> None:
        """Counts one duration that the caller knows to be sound: the call for compiled callers."""
        _turn(self)
        self._open.count_ns(nanoseconds)

    def record_each(self, seconds: Any) -> None:
        """Counts every duration of a contiguous float64 array, or none."""
        _turn(self)
        self._open.record_each(seconds)

    def add_counts(self, counts: Any, minimum_ns: int, maximum_ns: int, clamped: int) -> None:
        """Adds counts that were made elsewhere with the same layout to the present slice."""
        _turn(self)
        self._open.add_counts(counts, minimum_ns, maximum_ns, clamped)

    def live_count(self) -> int:
        """How many durations the live slices hold."""
        _turn(self)
        total = 0
        for position in range(self.slices):
            if _is_live(self, position):
                part = self._ring[position]
                total += part.count
        return total

    def quantile(self, q: float) -> float:
        """The quantile over the live slices in seconds; see :meth:`LatencyHistogram.quantile`."""
        _merge(self)
        return self._merged.quantile(q)

    def share_within(self, seconds: float) -> float:
        """The share of the live slices' durations within ``seconds``; see :meth:`LatencyHistogram.share_within`."""
        _merge(self)
        return self._merged.share_within(seconds)

    def merged_counts(self) -> tuple[Any, int, int, int]:
        """The counts of the live slices, of one moment, in the form of :meth:`HistogramState.snapshot`."""
        _merge(self)
        return self._merged.snapshot()

    def reset(self) -> None:
        """Forgets all that was counted."""
        for part in self._ring:
            part.reset()


def _turn(state: RollingState) -> int:
    """Makes ``_open`` the histogram of the present slice."""
    if state._tick() >= state._closes_ns:
        state._number = state._elapsed_ns // state.slice_ns
        state._closes_ns = (state._number + 1) * state.slice_ns
        position = state._number % state.slices
        state._open = state._ring[position]
        if state._numbers[position] != state._number:
            state._numbers[position] = state._number
            state._open.reset()
    return 0


def _is_live(state: RollingState, position: int) -> bool:
    return state._numbers[position] > state._number - state.slices


def _merge(state: RollingState) -> int:
    _turn(state)
    merged = state._merged
    merged.reset()
    for position in range(state.slices):
        if _is_live(state, position):
            part = state._ring[position]
            merged.add_counts(part._counts, part.minimum_ns, part.maximum_ns, part.clamped)
    return 0

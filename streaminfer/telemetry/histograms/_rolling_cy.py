# cython: boundscheck=False, wraparound=False, cdivision=True
"""Compiled state of a rolling histogram: a ring of histograms, one per time slice.

Time is cut into slices of equal length, numbered from zero. A duration is counted in the histogram of the present
slice. The histogram of slice ``n`` is at position ``n mod slices`` of the ring and stores its number. Nothing happens
when a slice ends, and no background thread clears old slices: the first access in a later slice clears the histogram at
its position, and a reader skips histograms with numbers that are too old. This also works after hours without a record,
and if the clock jumps ahead.

With slices of length ``s``, a reader at elapsed time ``t`` sees the slices ``⌊t/s⌋ - slices + 1`` to ``⌊t/s⌋``. A
duration counted up to ``(slices - 1) · s`` ago is always included, and one counted ``slices · s`` or more ago never.

Invariants: ``_open`` is the histogram of slice ``_number``, which ends at ``_slice_end_ns``. ``_numbers[n mod slices]``
is the number of the slice that was counted at that position last. Elapsed time never goes back, so numbers only grow.

Cost: a record costs a reading of the clock and one comparison more than in a single histogram. The first record of a
slice also clears the counts of the old slice, between their extremes. A read adds up the live slices in a reserved
histogram, so it allocates nothing.

Threads: as in ``_histogram_cy``. In the compiled build under the interpreter lock each method is atomic after it has
read the clock: recorders never wait for a lock, and a reader sees all slices at one moment. Otherwise the caller must
hold a lock for each call, as ``RollingHistogram`` does.
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
        clock: returns monotonic nanoseconds; ``None``: the system's monotonic clock.
        slices: number of slices.
        slice_ns: duration of a slice.
        lowest_ns: as for :class:`HistogramState`.
        highest_ns: as for :class:`HistogramState`.
        significant_digits: as for :class:`HistogramState`.
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
        self._numbers = array("q", range(slices))  # live or not: the histograms are empty
        self._open = self._ring[0]
        self._number = 0
        self._slice_end_ns = slice_ns

    def record(self, seconds: float, /) -> None:
        """Count one duration in the present slice; see :meth:`LatencyHistogram.record`."""
        self.count_ns(_histogram_cy._nanoseconds(_histogram_cy._duration("seconds", seconds)))

    def record_ns(self, nanoseconds: int, /) -> None:
        """Count one duration in whole nanoseconds; see :meth:`LatencyHistogram.record_ns`."""
        _rotate(self)
        self._open.record_ns(nanoseconds)

    def count_ns(self, nanoseconds: int) -> None:
        """Count one duration without checks, for compiled callers."""
        _rotate(self)
        self._open.count_ns(nanoseconds)

    def record_each(self, seconds: Any) -> None:
        """Count every duration of a contiguous float64 array, or none on an error."""
        _rotate(self)
        self._open.record_each(seconds)

    def add_counts(self, counts: Any, minimum_ns: int, maximum_ns: int, clamped: int) -> None:
        """Add counts of another histogram with the same layout to the present slice."""
        _rotate(self)
        self._open.add_counts(counts, minimum_ns, maximum_ns, clamped)

    def live_count(self) -> int:
        """Return the number of durations in the live slices."""
        _rotate(self)
        total = 0
        for position in range(self.slices):
            if _is_live(self, position):
                part = self._ring[position]
                total += part.count
        return total

    def quantile(self, q: float) -> float:
        """Return a quantile over the live slices in seconds; see :meth:`LatencyHistogram.quantile`."""
        _merge(self)
        return self._merged.quantile(q)

    def share_within(self, seconds: float) -> float:
        """Return the share of durations in the live slices within ``seconds``; as `LatencyHistogram.share_within`."""
        _merge(self)
        return self._merged.share_within(seconds)

    def merged_counts(self) -> tuple[Any, int, int, int]:
        """Return the counts of the live slices at one moment, like :meth:`HistogramState.snapshot`."""
        _merge(self)
        return self._merged.snapshot()

    def reset(self) -> None:
        """Remove all counts."""
        for part in self._ring:
            part.reset()


def _rotate(state: RollingState) -> int:
    """Make ``_open`` the histogram of the present slice."""
    if state._tick() >= state._slice_end_ns:
        state._number = state._elapsed_ns // state.slice_ns
        state._slice_end_ns = (state._number + 1) * state.slice_ns
        position = state._number % state.slices
        state._open = state._ring[position]
        if state._numbers[position] != state._number:
            state._numbers[position] = state._number
            state._open.reset()
    return 0


def _is_live(state: RollingState, position: int) -> bool:
    return state._numbers[position] > state._number - state.slices


def _merge(state: RollingState) -> int:
    _rotate(state)
    merged = state._merged
    merged.reset()
    for position in range(state.slices):
        if _is_live(state, position):
            part = state._ring[position]
            merged.add_counts(part._counts, part.minimum_ns, part.maximum_ns, part.clamped)
    return 0

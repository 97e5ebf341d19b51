# cython: boundscheck=False, wraparound=False, cdivision=True
"""Compiled state of an error budget: good and bad events over any window up to a period, in bounded memory.

The state stores *running totals at instants*, not counts of intervals. Time is cut into buckets at several levels; each
level has buckets four times as wide as the level before. At the start of each bucket, the state stores the totals so
far in the ring of that level, which has 256 slots. The sum of a window is then one subtraction: the current totals less
the totals at the last boundary at or before the start of the window, at the finest level that still holds it. An event
costs an increment, a boundary one write per level, and a window of any length two reads.

Error: the start of a window is rounded down to a boundary. A window is never shorter than requested, and longer by less
than one bucket of its level. A window that needs level ``k > 0`` is longer than 255 buckets of level ``k - 1``, so a
bucket is at most 4/255 of it: **every window is at most 1/63 longer than requested**, or by ``width_ns`` if that is
more. The sum over the rounded window is exact.

Memory: ``levels · 256 · 3`` integers. Ten levels take 61 KiB and span 39 ms to 30 days.

Idle time costs nothing while it lasts. The first call after it stores the same totals at every boundary that passed and
that a ring still needs, at most 256 per level.

The signal ``burning`` reads two windows. It starts when both burn at ``burn_starts_at`` or more: the long window shows
that the burn is significant, where one bad event is not enough, and the short window that it still continues. It ends
when the long window burns below ``burn_ends_at``, but not before a whole long window has passed. So it starts at most
once in each window, however the load reacts. It counts *admitted* events only: for the budget, rejections are bad
events like others, but a signal that makes a guard reject requests would sustain itself by these rejections. It also
ignores the events of the grace time, the first ``burn_grace_ns`` after the first event. Totals only grow, so the totals
at the end of the grace time replace smaller totals at the start of a window.

Invariants: ``_current`` is the open bucket of level 0, which ends at ``_next_ns``; the totals of every boundary up to
it are stored. Elapsed time only grows, and so do the totals at later boundaries.

Threads: in the compiled build under the interpreter lock each method is atomic after it has read the clock, because it
does not call Python between its first and last write. Otherwise the caller must hold a lock for each call, as ``SLO``
does.

The same source is compiled with the C types of ``_budget_cy.pxd`` or runs uncompiled. The directives above are safe: a
slot is ``level · 256 + (index mod 256)`` with ``level < levels``, and elapsed time is never negative.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, MutableSequence
from typing import Any

from streaminfer.telemetry.histograms import _histogram_cy, _monotonic_cy

__all__ = ["SLOTS", "BudgetState"]

SLOTS = 256

_GOOD = 0
_LATE = 1
_FAILED = 2
_REJECTED = 3
_SLOTS = 256
_LEVEL_BITS = 8
_FAR_NS = 2**62


class BudgetState(_monotonic_cy.MonotonicClock):
    """Good and bad events of a period, and whether the budget burns.

    Args:
        clock: returns monotonic nanoseconds; ``None``: the system's monotonic clock.
        threshold_ns: longest latency of a good event.
        allowed: share of events that may be bad, above 0.
        period_ns: the longest window.
        width_ns: width of a bucket of level 0.
        levels: number of levels, so that ``255 * width_ns * 4**(levels - 1) >= period_ns``.
        rejections: exceptions that count as rejections.
        ignoring: exceptions that are not events.
        signal: settings of ``burning``, a `BurnSignal` with ``short_s`` set.
        check_every_ns: shortest time between two calls of ``_check`` from records.

    Attributes:
        total: events since the start.
        bad: bad events: the sum of ``late``, ``failed`` and ``rejected``.
        late: responses after the threshold.
        failed: errors other than rejections.
        rejected: rejections.
        ignored: outcomes that were not events.
        quickest_ns: the least latency of a good response; 0 before the first.
    """

    _all: MutableSequence[int]
    _bad: MutableSequence[int]
    _rejected: MutableSequence[int]

    def __init__(
        self,
        clock: Callable[[], int] | None,
        threshold_ns: int,
        allowed: float,
        period_ns: int,
        width_ns: int,
        levels: int,
        rejections: tuple[type[BaseException], ...],
        ignoring: tuple[type[BaseException], ...],
        signal: Any,
        check_every_ns: int,
    ) -> None:
        _monotonic_cy.MonotonicClock.__init__(self, clock)
        self.threshold_ns = threshold_ns
        self.allowed = allowed
        self.period_ns = period_ns
        self.width_ns = width_ns
        self.levels = levels
        self.rejections = rejections
        self.ignoring = ignoring
        self.burn_window_ns = round(signal.window_s * 1e9)
        self.burn_short_ns = max(round(signal.short_s * 1e9), 1)
        self.burn_starts_at = signal.starts_at
        self.burn_ends_at = signal.ends_at
        self.burn_minimum = signal.minimum_events
        self.burn_grace_ns = round(min(float(signal.grace_s) * 1e9, _FAR_NS))
        self.total = 0
        self.bad = 0
        self.late = 0
        self.failed = 0
        self.rejected = 0
        self.ignored = 0
        self.quickest_ns = 0
        self._burning = False
        self._burning_since_ns = 0
        self._grace_ends_ns = _FAR_NS if self.burn_grace_ns > 0 else 0
        self._grace_events = 0
        self._grace_bad = 0
        self._check_every_ns = check_every_ns
        self._next_check_ns = _FAR_NS
        self._current = 0
        self._next_ns = width_ns
        self._all = array("q", [0]) * (levels * SLOTS)
        self._bad = array("q", [0]) * (levels * SLOTS)
        self._rejected = array("q", [0]) * (levels * SLOTS)

    def record(self, outcome: float | BaseException, /, timeout_s: float | None = None) -> None:
        """Count the outcome of one request.

        Args:
            outcome: the latency of its response in seconds, or its exception.
            timeout_s: seconds that the caller gave the request; ``None``: no limit.

        Raises:
            ValueError: ``outcome`` is NaN or negative.
            TypeError: ``outcome`` is neither a real number nor an exception.
        """
        if type(outcome) is float or not isinstance(outcome, BaseException):
            self.count_ns(_histogram_cy._nanoseconds(_histogram_cy._duration("outcome", outcome)))
        elif not isinstance(outcome, Exception) or isinstance(outcome, self.ignoring):
            self.ignored += 1
        elif timeout_s is not None and isinstance(outcome, TimeoutError) and timeout_s * 1e9 < self.quickest_ns:
            self.ignored += 1  # an idle service would be late too
        elif isinstance(outcome, self.rejections):
            _count(self, _REJECTED)
        else:
            _count(self, _FAILED)

    def count_ns(self, latency_ns: int) -> int:
        """Count one response, without checks of its latency, for compiled callers."""
        if latency_ns > self.threshold_ns:
            return _count(self, _LATE)
        if latency_ns < self.quickest_ns or self.quickest_ns == 0:
            self.quickest_ns = latency_ns
        return _count(self, _GOOD)

    def burning(self) -> bool:
        """Return whether the budget burns so fast, now and for a while, that the service should do less.

        The call is cheap enough for every request: it costs about as much as a record. The signal starts at most once
        in each of its windows. Rejections do not sustain it.
        """
        _advance(self)
        if self._burning:
            if (
                self._elapsed_ns - self._burning_since_ns >= self.burn_window_ns
                and _admitted_burn(self, self.burn_window_ns, 1) < self.burn_ends_at
            ):
                self._burning = False
        elif (
            _admitted_burn(self, self.burn_short_ns, 1) >= self.burn_starts_at
            and _admitted_burn(self, self.burn_window_ns, self.burn_minimum) >= self.burn_starts_at
        ):
            self._burning = True
            self._burning_since_ns = self._elapsed_ns
        return self._burning

    def burn_over(self, window_ns: int) -> float:
        """Return the share of bad events in a window, divided by the allowed share; 0.0 without events."""
        events, bad, _ = _window(self, window_ns)
        return bad / events / self.allowed if events else 0.0

    def window(self, window_ns: int) -> tuple[int, int, int]:
        """Return the numbers of all events, bad events and rejections in the last ``window_ns``, at most the period."""
        return _window(self, window_ns)

    def totals(self) -> tuple[int, int, int, int]:
        """Return the numbers of all, late, failed and rejected events since the start, at one moment."""
        return self.total, self.late, self.failed, self.rejected

    def history(self) -> tuple[list[tuple[int, int, int]], int]:
        """Return at most 257 running totals over the period, or since the start if that is later.

        Returns:
            Instants in elapsed nanoseconds, ascending, each with the totals of all and of bad events up to it; the last
            instant is now. Second, the nanoseconds between two instants.
        """
        _advance(self)
        span_ns = self._elapsed_ns if self._elapsed_ns < self.period_ns else self.period_ns
        width_ns = self.width_ns
        level = 0
        while span_ns > (_SLOTS - 1) * width_ns:
            width_ns *= 4
            level += 1
        points = []
        for index in range((self._elapsed_ns - span_ns) // width_ns, self._elapsed_ns // width_ns + 1):
            slot = (level << _LEVEL_BITS) + (index & (_SLOTS - 1))
            points.append((index * width_ns, self._all[slot], self._bad[slot]))
        points.append((self._elapsed_ns, self.total, self.bad))
        return points, width_ns

    def _watch(self) -> None:
        """Let records call ``_check`` from now on."""
        self._next_check_ns = 0

    def _check(self) -> None:
        """Do nothing; a subclass can override it. Records call it from time to time."""


def _window(state: BudgetState, window_ns: int) -> tuple[int, int, int]:
    _advance(state)
    slot = _slot_before(state, window_ns)
    if slot < 0:
        return state.total, state.bad, state.rejected
    return state.total - state._all[slot], state.bad - state._bad[slot], state.rejected - state._rejected[slot]


def _count(state: BudgetState, kind: int) -> int:
    elapsed_ns = _advance(state)
    state.total += 1
    if kind != _GOOD:
        state.bad += 1
        if kind == _LATE:
            state.late += 1
        elif kind == _FAILED:
            state.failed += 1
        else:
            state.rejected += 1
    if elapsed_ns < state._grace_ends_ns:
        if state._grace_ends_ns == _FAR_NS:
            state._grace_ends_ns = elapsed_ns + state.burn_grace_ns
        state._grace_events = state.total - state.rejected
        state._grace_bad = state.bad - state.rejected
    if elapsed_ns >= state._next_check_ns:
        state._next_check_ns = elapsed_ns + state._check_every_ns
        state._check()
    return 0


def _advance(state: BudgetState) -> int:
    """Store the totals at every boundary that has passed, at every level, and return the elapsed time."""
    elapsed_ns = state._tick()
    if elapsed_ns < state._next_ns:
        return elapsed_ns
    total = state.total
    bad = state.bad
    rejected = state.rejected
    first = state._current + 1
    last = elapsed_ns // state.width_ns
    state._current = last
    state._next_ns = (last + 1) * state.width_ns
    level = 0
    # every fourth boundary is also a boundary of the next level
    while level < state.levels and first <= last:
        index = first if last - first < _SLOTS else last - _SLOTS + 1
        while index <= last:
            slot = (level << _LEVEL_BITS) + (index & (_SLOTS - 1))
            state._all[slot] = total
            state._bad[slot] = bad
            state._rejected[slot] = rejected
            index += 1
        first = (first + 3) >> 2
        last = last >> 2
        level += 1
    return elapsed_ns


def _slot_before(state: BudgetState, window_ns: int) -> int:
    """Return the slot of the last boundary at or before the start of a window; -1 if the window covers everything."""
    edge_ns = state._elapsed_ns - window_ns
    if edge_ns <= 0:
        return -1
    width_ns = state.width_ns
    level = 0
    while window_ns > (_SLOTS - 1) * width_ns:
        width_ns *= 4
        level += 1
    return (level << _LEVEL_BITS) + ((edge_ns // width_ns) & (_SLOTS - 1))


def _admitted_burn(state: BudgetState, window_ns: int, minimum: int) -> float:
    """Return the burn rate among admitted events after the grace time.

    It is 0.0 with fewer than ``minimum`` events (≥ 1), or with only one bad event, unless ``minimum`` is 1.
    """
    slot = _slot_before(state, window_ns)
    events_before = state._grace_events
    bad_before = state._grace_bad
    if slot >= 0 and state._all[slot] - state._rejected[slot] > events_before:
        events_before = state._all[slot] - state._rejected[slot]
        bad_before = state._bad[slot] - state._rejected[slot]
    events = state.total - state.rejected - events_before
    bad = state.bad - state.rejected - bad_before
    if events < minimum or (bad < 2 and minimum > 1):
        return 0.0
    return bad / events / state.allowed

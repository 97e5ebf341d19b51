# cython: boundscheck=False, wraparound=False, cdivision=True
"""The compiled state of an error budget: good and bad events over any window up to a period, in bounded memory.

It stores *running totals at instants*, not counts of intervals. Time is cut into buckets at several levels, each
four times as wide as the one before it. Where a bucket of a level begins, the totals so far are noted in that level's
ring of 256. The sum of a window is then one subtraction, the totals now less those noted at the last boundary at or
before the window's beginning, at the finest level that still holds it. An event costs an increment, a boundary a note,
a window of any length two reads.

Error: a window is rounded outward to a boundary. It is never shorter than requested, and longer by less than one bucket
of its level. A window that needs level ``k > 0`` is longer than 255 buckets of level ``k - 1``, so a bucket is at most
4/255 of it: **every window is at most 1/63 longer than requested**, or by ``width_ns`` where that is more. Within the
window it really covers, a sum is exact.

Memory: ``levels · 256 · 3`` whole numbers. Ten levels, 61 KiB, span 39 ms to 30 days.

Idle time costs nothing while it lasts; the first call after it notes the same totals at every boundary that passed and
that a ring can still need, at most 256 per level.

The decision ``burning`` reads two windows. It starts when both burn at ``burn_starts_at`` or more (the long one: it
matters, so one bad event alone is not enough; the short one: it still happens) and ends when the long one burns below
``burn_ends_at``, not before a whole long window has passed. So it starts at most once in each window, however the load
reacts to it. It reads *admitted* events only: rejections are bad events like others for the budget, but a signal that
makes a guard reject would keep itself alight by these rejections. Nor does it read the events of the grace time, the
first ``burn_grace_ns`` after the first event: totals only grow, so the totals at the end of the grace time replace
smaller ones as a window's beginning.

Invariants: ``_current`` is the bucket of level 0 that is open and ends at ``_next_ns``; every boundary up to it is
noted; elapsed time, and so every total at a later boundary, only grows.

Threads: in the compiled build under the interpreter lock each method is atomic after its read of the clock (nothing
between the first and the last write calls Python). Otherwise a caller takes a lock around each, as ``SLO`` does.

One source, compiled with the C types of ``_budget_cy.pxd`` or run as it is. The directives above are safe: a slot is
``level · 256 + (index mod 256)`` with ``level < levels``, and elapsed time is never negative.
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
        clock: returns monotonic nanoseconds; ``None``: the system's.
        threshold_ns: a longer latency is a bad event.
        allowed: share of events that may be bad, above 0.
        period_ns: the longest window.
        width_ns: of a bucket of level 0.
        levels: so many that ``255 * width_ns * 4**(levels - 1) >= period_ns``.
        rejections: exceptions that reject a request at once.
        ignoring: exceptions that are no events.
        signal: settings of ``burning``, a `BurnSignal` with a short window of its own.
        check_every_ns: how often ``_check`` is called at most, from records.

    Attributes:
        total: events since the beginning.
        bad: bad ones, the sum of the next three.
        late: responses after the threshold.
        failed: errors other than rejections.
        rejected: rejections.
        ignored: outcomes that were no events.
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
        self.burn_grace_ns = min(round(signal.grace_s * 1e9), _FAR_NS)
        self.total = 0
        self.bad = 0
        self.late = 0
        self.failed = 0
        self.rejected = 0
        self.ignored = 0
        self._burning = False
        self._burning_since_ns = 0
        self._grace_ends_ns = _FAR_NS if self.burn_grace_ns > 0 else 0
        self._grace_seen = 0
        self._grace_bad = 0
        self._check_every_ns = check_every_ns
        self._next_check_ns = _FAR_NS
        self._current = 0
        self._next_ns = width_ns
        self._all = array("q", [0]) * (levels * SLOTS)
        self._bad = array("q", [0]) * (levels * SLOTS)
        self._rejected = array("q", [0]) * (levels * SLOTS)

    def record(self, outcome: float | BaseException, /) -> None:
        """Counts how one request ended.

        Args:
            outcome: the seconds to its response, or the exception that it ended with.

        Raises:
            ValueError: NaN or negative seconds.
            TypeError: neither a real number nor an exception.
        """
        if type(outcome) is float or not isinstance(outcome, BaseException):
            self.count_ns(_histogram_cy._nanoseconds(_histogram_cy._duration("outcome", outcome)))
        elif not isinstance(outcome, Exception) or isinstance(outcome, self.ignoring):
            self.ignored += 1
        elif isinstance(outcome, self.rejections):
            _count(self, _REJECTED)
        else:
            _count(self, _FAILED)

    def count_ns(self, latency_ns: int) -> int:
        """Count one response whose latency was checked: the call for compiled callers."""
        return _count(self, _LATE if latency_ns > self.threshold_ns else _GOOD)

    def burning(self) -> bool:
        """Whether the budget burns so fast, now and for a while, that the service should do less.

        Made for a call per request: it costs about as much as a record. It starts at most once in each of its
        windows. Rejections do not keep it alight.
        """
        return _burning(self)

    def burn_over(self, window_ns: int) -> float:
        """The share of bad events in a window over the share that is allowed; 0.0 without events."""
        seen, bad, _ = _window(self, window_ns)
        return bad / seen / self.allowed if seen else 0.0

    def window(self, window_ns: int) -> tuple[int, int, int]:
        """Events of a window that ends now, at most ``period_ns`` long: all, bad ones, and rejections among them."""
        return _window(self, window_ns)

    def totals(self) -> tuple[int, int, int, int]:
        """Events since the beginning, of one moment: all, late, failed and rejected ones."""
        return self.total, self.late, self.failed, self.rejected

    def history(self) -> tuple[list[tuple[int, int, int]], int]:
        """Running totals over the period, or since the beginning where that is later, at most 257 of them.

        Returns:
            Instants in elapsed nanoseconds, ascending, each with the totals of all and of bad events up to it, the last
            one being now; and how far apart they are.
        """
        if self._tick() >= self._next_ns:
            _advance(self, self._elapsed_ns)
        span_ns = self._elapsed_ns if self._elapsed_ns < self.period_ns else self.period_ns
        width_ns = self.width_ns
        level = 0
        while span_ns > (_SLOTS - 1) * width_ns:
            width_ns *= 4
            level += 1
        noted = []
        for index in range((self._elapsed_ns - span_ns) // width_ns, self._elapsed_ns // width_ns + 1):
            slot = (level << _LEVEL_BITS) + (index & (_SLOTS - 1))
            noted.append((index * width_ns, self._all[slot], self._bad[slot]))
        noted.append((self._elapsed_ns, self.total, self.bad))
        return noted, width_ns

    def _watch(self) -> None:
        """Lets records call ``_check`` from now on."""
        self._next_check_ns = 0

    def _check(self) -> None:
        """What a subclass does now and then while events come."""


def _burning(state: BudgetState) -> bool:
    elapsed_ns = state._tick()
    if elapsed_ns >= state._next_ns:
        _advance(state, elapsed_ns)
    if state._burning:
        if (
            elapsed_ns - state._burning_since_ns >= state.burn_window_ns
            and _admitted_burn(state, state.burn_window_ns, 1) < state.burn_ends_at
        ):
            state._burning = False
    elif (
        _admitted_burn(state, state.burn_short_ns, 1) >= state.burn_starts_at
        and _admitted_burn(state, state.burn_window_ns, state.burn_minimum) >= state.burn_starts_at
    ):
        state._burning = True
        state._burning_since_ns = elapsed_ns
    return state._burning


def _window(state: BudgetState, window_ns: int) -> tuple[int, int, int]:
    if state._tick() >= state._next_ns:
        _advance(state, state._elapsed_ns)
    slot = _slot_before(state, window_ns)
    if slot < 0:
        return state.total, state.bad, state.rejected
    return state.total - state._all[slot], state.bad - state._bad[slot], state.rejected - state._rejected[slot]


def _count(state: BudgetState, kind: int) -> int:
    elapsed_ns = state._tick()
    if elapsed_ns >= state._next_ns:
        _advance(state, elapsed_ns)
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
        state._grace_seen = state.total - state.rejected
        state._grace_bad = state.bad - state.rejected
    if elapsed_ns >= state._next_check_ns:
        state._next_check_ns = elapsed_ns + state._check_every_ns
        state._check()
    return 0


def _advance(state: BudgetState, elapsed_ns: int) -> None:
    """Notes the totals at every boundary that has passed, at every level."""
    total = state.total
    bad = state.bad
    rejected = state.rejected
    first = state._current + 1
    last = elapsed_ns // state.width_ns
    state._current = last
    state._next_ns = (last + 1) * state.width_ns
    level = 0
    # a boundary of a level is each fourth one of the level below
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


def _slot_before(state: BudgetState, window_ns: int) -> int:
    """Where the totals at the last boundary at or before a window's beginning are noted; -1: it holds everything."""
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
    """The burn rate among admitted events after the grace time.

    It is 0.0 where there are fewer than ``minimum`` (≥ 1), or one bad event alone, unless one event is enough.
    """
    slot = _slot_before(state, window_ns)
    seen_before = state._grace_seen
    bad_before = state._grace_bad
    if slot >= 0 and state._all[slot] - state._rejected[slot] > seen_before:
        seen_before = state._all[slot] - state._rejected[slot]
        bad_before = state._bad[slot] - state._rejected[slot]
    seen = state.total - state.rejected - seen_before
    bad = state.bad - state.rejected - bad_before
    if seen < minimum or (bad < 2 and minimum > 1):
        return 0.0
    return bad / seen / state.allowed

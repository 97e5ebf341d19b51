# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Event ring of a batcher: arrivals, releases with their reasons, and drops; always on, bounded.

The idea: three rings of plain numbers that forget their oldest entry, so that a batcher can tell at any time what it
did a moment ago, at the price of a few stores. Only counters run since the start. Nothing is computed here that a
reader can compute: `DecisionLog` does the reading.

* *Arrivals*: the instant, the time limit and the priority of each accepted request, and the number of its batch. The
  planner reads the present rate and the usual time limits from the same ring.
* *Batches*: start, end, worker row, size, how many waited, why it went, how long it was expected to take, how it ended.
* *Drops*: the instant, why, and how many; drops of one instant for one reason share an entry.

A reason is kept as a number: its place in a table of the reasons seen so far, of 256 at most (a policy of one's own
that makes up a new text each time must not eat the memory); what is beyond counts as ``"other"``.

*Worker rows.* The batcher counts its workers and does not tell them apart, so the ring gives each batch the lowest
row that is free, which is what a timeline wants: a heap of the rows below the highest ever used that are free now,
O(log rows) a batch. A batch that outlives the ring (more batches than it holds went while it ran) is kept by its
number in a dict, so that its row is freed when it ends.

Invariants: entry ``i`` of a ring of ``c`` lies at ``i & (c - 1)``, and the last ``min(total, c)`` are there; a row is
held by at most one running batch; rows below ``_rows`` are held or in the heap, once.

Cost, compiled: 2 to 3 ns an arrival, about 27 ns a batch for release and finish, 11 ns a drop. Not thread-safe: one
event loop, or one simulation, owns a ring and takes its snapshots.

One source, compiled with the C types of ``_event_ring_cy.pxd`` or run as it is. The directives above are safe: every
index is masked by the size of its ring, comes from a table's own counter, or from the invariants of the heap.
"""

from __future__ import annotations

from array import array
from collections.abc import MutableSequence
from typing import Any

from streaminfer._internal.validation import check_count, expected

__all__ = ["EventRing"]

# C variables in the compiled module, not visible from Python
_RATE_WINDOW = 256
_LIMITS_KEPT = 64  # a power of two
_REASONS_KEPT = 256
_RUNNING = -1
_NOT_TOLD = -1
_NO_BATCH = -1
_INFINITE = float("inf")


class _ReasonCounts:
    """Reasons by number, and how often each was given since the start."""

    def __init__(self) -> None:
        self.names: list[Any] = []
        self.counts: MutableSequence[int] = array("q", [0]) * (_REASONS_KEPT + 1)
        self._numbers: dict[Any, int] = {}

    def add(self, reason: Any, count: int) -> int:
        known = self._numbers.get(reason)
        number = self._number_of(reason) if known is None else known
        self.counts[number] += count
        return number

    def _number_of(self, reason: Any) -> int:
        number = len(self.names)
        if number >= _REASONS_KEPT:
            if number == _REASONS_KEPT:
                self.names.append("other")
            return _REASONS_KEPT
        self.names.append(reason)
        self._numbers[reason] = number
        return number

    def by_reason(self) -> dict[str, int]:
        totals: dict[str, int] = {}
        for number in range(len(self.names)):
            reason = self.names[number]
            totals[reason] = totals.get(reason, 0) + self.counts[number]
        return totals


class EventRing:
    """What a batcher did lately, as rings of numbers.

    Args:
        requests: how many arrivals are kept, a power of two.
        batches: how many batches are kept, and as many drops, a power of two.

    Attributes:
        requests: the same.
        batches: the same.
        arrivals: how many requests arrived so far.
        releases: how many batches were released so far; the number of the next one.
        drops: how many requests were dropped so far.
        last_end_ns: when a batch left its worker last; 0: none has.

    Raises:
        TypeError, ValueError: not a power of two.
    """

    def __init__(self, requests: int = 8192, batches: int = 2048) -> None:
        self.requests = _power_of_two("requests", requests)
        self.batches = _power_of_two("batches", batches)
        self.arrivals = 0
        self.releases = 0
        self.drops = 0
        self.last_end_ns = 0
        self._arrival_ns: MutableSequence[int] = array("q", [0]) * requests
        self._limit_ns: MutableSequence[int] = array("q", [0]) * requests
        self._priority: MutableSequence[int] = array("i", [0]) * requests
        self._arrival_batch: MutableSequence[int] = array("q", [0]) * requests
        self._limits: MutableSequence[int] = array("q", [0]) * _LIMITS_KEPT
        self._limits_seen = 0
        self._start_ns: MutableSequence[int] = array("q", [0]) * batches
        self._end_ns: MutableSequence[int] = array("q", [0]) * batches
        self._expected_ns: MutableSequence[int] = array("q", [0]) * batches
        self._worker: MutableSequence[int] = array("q", [0]) * batches
        self._size: MutableSequence[int] = array("i", [0]) * batches
        self._queued: MutableSequence[int] = array("i", [0]) * batches
        self._ok: MutableSequence[int] = array("b", [0]) * batches
        self._reason: MutableSequence[int] = array("i", [0]) * batches
        self._released = _ReasonCounts()
        self._drop_ns: MutableSequence[int] = array("q", [0]) * batches
        self._drop_count: MutableSequence[int] = array("q", [0]) * batches
        self._drop_reason: MutableSequence[int] = array("i", [0]) * batches
        self._drop_entries = 0
        self._dropped = _ReasonCounts()
        self._rows = 0
        self._free: MutableSequence[int] = array("q", [0]) * 8
        self._free_count = 0
        self._outlived: dict[int, int] = {}

    def arrived(self, now_ns: int, limit_ns: int, priority: int) -> None:
        """Notes a request that was queued, or found the queue full.

        Args:
            now_ns: the instant.
            limit_ns: how long after it the deadline comes; 0: it has none.
            priority: a lower number is more urgent.
        """
        slot = self.arrivals & (self.requests - 1)
        self._arrival_ns[slot] = now_ns
        self._limit_ns[slot] = limit_ns
        self._priority[slot] = priority
        self._arrival_batch[slot] = _NO_BATCH
        self.arrivals += 1
        if limit_ns > 0:
            self._limits[self._limits_seen & (_LIMITS_KEPT - 1)] = limit_ns
            self._limits_seen += 1

    def released(self, now_ns: int, size: int, reason: str, queued: int) -> int:
        """Notes a batch that goes to a worker.

        Args:
            now_ns: the instant.
            size: how many requests it has.
            reason: why it goes.
            queued: how many requests go on queued.

        Returns:
            Its number, counted from 0, for :meth:`finished`.
        """
        number = self.releases
        slot = number & (self.batches - 1)
        if number >= self.batches and self._end_ns[slot] == _RUNNING:
            self._outlived[number - self.batches] = self._worker[slot]
        self._reason[slot] = self._released.add(reason, 1)
        self._start_ns[slot] = now_ns
        self._end_ns[slot] = _RUNNING
        self._expected_ns[slot] = 0
        self._worker[slot] = self._take_row()
        self._size[slot] = size
        self._queued[slot] = queued
        self._ok[slot] = _NOT_TOLD
        self.releases = number + 1
        return number

    def joined(self, arrival: int, number: int) -> None:
        """Notes of which batch a request is part.

        Args:
            arrival: number of the request, counted from 0.
            number: what :meth:`released` returned.
        """
        if arrival >= self.arrivals - self.requests:
            self._arrival_batch[arrival & (self.requests - 1)] = number

    def expected(self, number: int, duration_ns: int) -> None:
        """Notes how long a batch that was just released is expected to take.

        Args:
            number: what :meth:`released` returned.
            duration_ns: nanoseconds.
        """
        self._expected_ns[number & (self.batches - 1)] = duration_ns

    def ended(self, number: int, now_ns: int) -> None:
        """Notes that a batch has left its worker, and frees its row for the next one; :meth:`finished` tells how.

        Args:
            number: what :meth:`released` returned; nothing happens unless that batch runs.
            now_ns: the instant, ≥ 0.
        """
        if number < 0 or number >= self.releases:
            return
        if number < self.releases - self.batches:
            row = self._outlived.pop(number, None)
            if row is not None:
                self.last_end_ns = now_ns
                self._free_row(row)
            return
        slot = number & (self.batches - 1)
        if self._end_ns[slot] == _RUNNING:
            self._end_ns[slot] = self.last_end_ns = now_ns
            self._free_row(self._worker[slot])

    def finished(self, number: int, now_ns: int, ok: bool) -> bool:
        """Notes how a batch ended, and frees its row unless :meth:`ended` has.

        Args:
            number: what :meth:`released` returned.
            now_ns: the instant, ≥ 0.
            ok: whether it succeeded.

        Returns:
            Whether such a batch ran; nothing happens otherwise.
        """
        if number < 0 or number >= self.releases:
            return False
        if number < self.releases - self.batches:
            runs = number in self._outlived
        else:
            slot = number & (self.batches - 1)
            runs = self._ok[slot] == _NOT_TOLD
            if runs:
                self._ok[slot] = ok
        self.ended(number, now_ns)
        return runs

    def started(self, number: int, now_ns: int) -> None:
        """Notes when a pipelined batch began to run, and gives it the lowest row that is free by then.

        Args:
            number: what :meth:`released` returned, of a batch that runs.
            now_ns: the instant.
        """
        slot = number & (self.batches - 1)
        if number >= self.releases - self.batches and self._end_ns[slot] == _RUNNING:
            self._start_ns[slot] = now_ns
            self._free_row(self._worker[slot])
            self._worker[slot] = self._take_row()

    def dropped(self, now_ns: int, reason: str, count: int = 1) -> None:
        """Notes requests that complete without a result.

        Args:
            now_ns: the instant.
            reason: why.
            count: how many; of none nothing is noted.
        """
        if count <= 0:
            return
        number = self._dropped.add(reason, count)
        self.drops += count
        entries = self._drop_entries
        last = (entries - 1) & (self.batches - 1)
        if entries and self._drop_ns[last] == now_ns and self._drop_reason[last] == number:
            self._drop_count[last] += count
            return
        slot = entries & (self.batches - 1)
        self._drop_ns[slot] = now_ns
        self._drop_reason[slot] = number
        self._drop_count[slot] = count
        self._drop_entries = entries + 1

    def gap_ns(self, now_ns: int) -> float:
        """Mean time between the last 256 arrivals, the silence since the last one counted in.

        Returns:
            Nanoseconds; infinite before a second arrival, and while no time has passed since the first.
        """
        return self._gap_over(_RATE_WINDOW, now_ns)

    def gaps_ns(self, now_ns: int) -> tuple[float, float, float]:
        """Return :meth:`gap_ns`, and the same over the last 64 and 16: fewer tell of a burst sooner, and of chance."""
        return self._gap_over(_RATE_WINDOW, now_ns), self._gap_over(64, now_ns), self._gap_over(16, now_ns)

    def _gap_over(self, window: int, now_ns: int) -> float:
        kept = self.arrivals
        if kept > window:
            kept = window
        if kept > self.requests:
            kept = self.requests
        if kept < 2:
            return _INFINITE
        passed = now_ns - self._arrival_ns[(self.arrivals - kept) & (self.requests - 1)]
        return passed / (kept - 1) if passed > 0 else _INFINITE

    def recent_limits_ns(self) -> list[int]:
        """The time limits of the last 64 requests that had one, in no particular order."""
        limits: list[int] = []
        for slot in range(self._limits_seen if self._limits_seen < _LIMITS_KEPT else _LIMITS_KEPT):
            limits.append(self._limits[slot])  # noqa: PERF401 - a comprehension has a scope, and types, of its own
        return limits

    def longest_limit_ns(self, since_ns: int) -> int:
        """Return the longest time limit of the arrivals since an instant, of the last 64 at most; 0: none had one."""
        longest_ns = 0
        for back in range(1, _LIMITS_KEPT + 1):
            slot = (self.arrivals - back) & (self.requests - 1)
            if back > self.arrivals or back > self.requests or self._arrival_ns[slot] < since_ns:
                break
            if self._limit_ns[slot] > longest_ns:
                longest_ns = self._limit_ns[slot]
        return longest_ns

    def recent_classes(self) -> dict[int, tuple[float, int]]:
        """Return the share of the last 256 arrivals and the shortest time limit of each priority, by priority.

        Arrivals without a deadline are counted in the total only.
        """
        kept = self.arrivals
        if kept > _RATE_WINDOW:
            kept = _RATE_WINDOW
        if kept > self.requests:
            kept = self.requests
        classes: dict[int, tuple[float, int]] = {}
        for back in range(1, kept + 1):
            slot = (self.arrivals - back) & (self.requests - 1)
            limit_ns = self._limit_ns[slot]
            if limit_ns > 0:
                priority = self._priority[slot]
                share, shortest_ns = classes.get(priority, (0.0, limit_ns))
                classes[priority] = (share + 1.0 / kept, min(shortest_ns, limit_ns))
        return classes

    @property
    def released_by_reason(self) -> dict[str, int]:
        """How many batches went so far, by reason."""
        return self._released.by_reason()

    @property
    def dropped_by_reason(self) -> dict[str, int]:
        """How many requests were dropped so far, by reason."""
        return self._dropped.by_reason()

    def snapshot(self) -> dict[str, Any]:
        """Copies what the rings hold, oldest entries first: the fields of a `DecisionLog`.

        Returns:
            NumPy arrays by name, int64 except ``batch_ok`` (bool); ``batch_ends_ns`` is -1 for batches that still run.
            ``reasons`` and ``drop_reasons`` are tuples of the reasons, ``released`` and ``dropped`` the counters by
            reason since the start.
        """
        import numpy as np  # noqa: PLC0415 - needed for snapshots only

        def in_order(ring: Any, total: int) -> Any:
            entries = np.asarray(ring)
            if total <= len(entries):
                return entries[:total].astype(np.int64)
            return np.roll(entries, -(total % len(entries))).astype(np.int64)

        reasons, drop_reasons = self._released.names, self._dropped.names
        first = max(self.releases - self.batches, 0)
        batches = in_order(self._arrival_batch, self.arrivals)
        return {
            "arrivals_ns": in_order(self._arrival_ns, self.arrivals),
            "limits_ns": in_order(self._limit_ns, self.arrivals),
            "priorities": in_order(self._priority, self.arrivals),
            "arrival_batches": np.where(batches >= first, batches - first, _NO_BATCH),
            "batch_starts_ns": in_order(self._start_ns, self.releases),
            "batch_ends_ns": in_order(self._end_ns, self.releases),
            "batch_expected_ns": in_order(self._expected_ns, self.releases),
            "batch_workers": in_order(self._worker, self.releases),
            "batch_sizes": in_order(self._size, self.releases),
            "batch_queued": in_order(self._queued, self.releases),
            "batch_ok": in_order(self._ok, self.releases) > 0,
            "reasons": tuple([reasons[number] for number in in_order(self._reason, self.releases).tolist()]),
            "drops_ns": in_order(self._drop_ns, self._drop_entries),
            "drop_counts": in_order(self._drop_count, self._drop_entries),
            "drop_reasons": tuple(
                [drop_reasons[number] for number in in_order(self._drop_reason, self._drop_entries).tolist()]
            ),
            "released": self.released_by_reason,
            "dropped": self.dropped_by_reason,
        }

    def _take_row(self) -> int:
        """The lowest free row: the top of the heap, or a new one."""
        free = self._free
        count = self._free_count
        if count == 0:
            self._rows += 1
            return self._rows - 1
        lowest = free[0]
        count -= 1
        self._free_count = count
        row = free[count]  # it sinks from the top
        position = 0
        while True:
            child = 2 * position + 1
            if child >= count:
                break
            if child + 1 < count and free[child + 1] < free[child]:
                child += 1
            if row <= free[child]:
                break
            free[position] = free[child]
            position = child
        free[position] = row
        return lowest

    def _free_row(self, row: int) -> None:
        if self._free_count == len(self._free):
            self._grow()
        free = self._free
        position = self._free_count
        self._free_count = position + 1
        while position > 0:  # it rises from the end
            parent = (position - 1) >> 1
            if free[parent] <= row:
                break
            free[position] = free[parent]
            position = parent
        free[position] = row

    def _grow(self) -> None:
        larger: MutableSequence[int] = array("q", [0]) * (2 * len(self._free))
        for position in range(self._free_count):
            larger[position] = self._free[position]
        self._free = larger

    def __repr__(self) -> str:
        return f"EventRing({self.arrivals} arrivals, {self.releases} batches, {self.drops} drops)"


def _power_of_two(name: str, value: Any) -> int:
    number = check_count(name, value)
    if number & (number - 1):
        raise ValueError(expected(name, "a power of two", value))
    return number

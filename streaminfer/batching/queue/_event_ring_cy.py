# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Event ring of a batcher: arrivals, releases with their reasons, and drops; always on, bounded.

Three rings overwrite their oldest entry, so a batcher can report its recent events at any time, for the price of a few
stores. Arrays hold the arrivals, bounded queues the batches and drops. Only the counters cover the time since the
start. The rings compute nothing that a reader can compute: `DecisionLog` does that.

* *Arrivals*: instant, time limit and priority of each accepted request, and the number of its batch. The planner reads
  the present rate and the usual time limits from the same ring.
* *Batches*: start, end, worker row, size, number of requests left in the queue, reason, expected duration, outcome.
* *Drops*: instant, reason and number; drops of one instant for one reason share an entry.

*Worker rows.* The batcher counts its workers and does not distinguish them. The ring gives each batch the lowest free
row, which suits a timeline: a heap has the free rows below the highest one ever used, O(log rows) a batch. A batch may
outlive its ring entry, if more batches than the ring holds are released while it runs. Its execution has the record,
so its row is freed like any other.

Invariants: arrival ``i`` lies at ``i & (requests - 1)``, and the last ``min(arrivals, requests)`` are stored; a row
belongs to at most one running batch; each row below ``_rows`` is either in use or in the heap, once.

Not thread-safe: one event loop, or one simulation, owns a ring and takes its snapshots.

One source, compiled with the C types of ``_event_ring_cy.pxd`` or run uncompiled. The directives above are safe: every
index into an array is masked by the size of its ring.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import MutableSequence
from heapq import heappop, heappush
from typing import Any

__all__ = ["BatchRecord", "EventRing"]

# C variables in the compiled module, not visible from Python
_RATE_WINDOW = 256
_MAX_LIMITS = 64  # a power of two
_RUNNING = -1
_NO_BATCH = -1
_INFINITE = float("inf")


class BatchRecord:
    """A batch that was sent to a worker.

    Attributes:
        number: number of the batch, from 0.
        start_ns: when it began to run.
        end_ns: when it left its worker; -1: it is running.
        expected_ns: its expected duration; 0: unknown.
        worker: its row, the lowest that was free.
        size: number of its requests.
        queued: how many requests stayed in the queue.
        reason: the reason of its release.
        ok: whether it succeeded.
    """

    number: int
    start_ns: int
    end_ns: int
    expected_ns: int
    worker: int
    size: int
    queued: int
    reason: str
    ok: bool


class EventRing:
    """Record of a batcher's recent events.

    Args:
        requests: number of arrivals to store, a power of two.
        batches: number of batches to store, and of drops.

    Attributes:
        requests: the same.
        batches: the same.
        arrivals: how many requests arrived so far.
        releases: how many batches were released so far; the number of the next one.
        drops: how many requests were dropped so far.
        last_end_ns: when a batch last left its worker; 0: none has.
        released_by_reason: how many batches were released so far, by reason.
        dropped_by_reason: how many requests were dropped so far, by reason.
    """

    def __init__(self, requests: int = 8192, batches: int = 2048) -> None:
        self.requests = requests
        self.batches = batches
        self.arrivals = 0
        self.releases = 0
        self.drops = 0
        self.last_end_ns = 0
        self._arrival_ns: MutableSequence[int] = array("q", [0]) * requests
        self._limit_ns: MutableSequence[int] = array("q", [0]) * requests
        self._priority: MutableSequence[int] = array("i", [0]) * requests
        self._arrival_batch: MutableSequence[int] = array("q", [0]) * requests
        self._limits: MutableSequence[int] = array("q", [0]) * _MAX_LIMITS
        self._limit_count = 0
        self._records: deque[BatchRecord] = deque(maxlen=batches)
        self.released_by_reason: dict[str, int] = {}
        self._rows = 0
        self._free: list[int] = []
        self._drops: deque[tuple[int, int, str]] = deque(maxlen=batches)  # instant, number and reason
        self.dropped_by_reason: dict[str, int] = {}

    def arrived(self, now_ns: int, limit_ns: int, priority: int) -> None:
        """Note a request that was queued, or that arrived at a full queue.

        Args:
            now_ns: the instant.
            limit_ns: time from then to the deadline; 0: it has no deadline.
            priority: a lower number is more urgent.
        """
        slot = self.arrivals & (self.requests - 1)
        self._arrival_ns[slot] = now_ns
        self._limit_ns[slot] = limit_ns
        self._priority[slot] = priority
        self._arrival_batch[slot] = _NO_BATCH
        self.arrivals += 1
        if limit_ns > 0:
            self._limits[self._limit_count & (_MAX_LIMITS - 1)] = limit_ns
            self._limit_count += 1

    def arrived_until(self, first: int, until_ns: int, most: int) -> int:
        """Return how many requests arrived by an instant, of those from number ``first`` on.

        Args:
            first: number of the first request to count, from 0.
            until_ns: the instant.
            most: count no more than so many.
        """
        count = min(self.arrivals - first, most, self.requests)
        arrived = 0
        while arrived < count and self._arrival_ns[(first + arrived) & (self.requests - 1)] <= until_ns:
            arrived += 1
        return arrived

    def arrival_ns(self, number: int) -> int:
        """Return when a request arrived that is still stored."""
        return self._arrival_ns[number & (self.requests - 1)]

    def released(self, now_ns: int, size: int, reason: str, queued: int) -> BatchRecord:
        """Note a batch that is sent to a worker.

        Args:
            now_ns: the instant.
            size: number of its requests.
            reason: the reason of its release.
            queued: how many requests stay in the queue.

        Returns:
            Its record, for :meth:`finished`.
        """
        record = BatchRecord.__new__(BatchRecord)
        record.number = self.releases
        record.start_ns = now_ns
        record.end_ns = _RUNNING
        record.expected_ns = 0
        record.worker = self._take_row()
        record.size = size
        record.queued = queued
        record.reason = str(reason)
        record.ok = False
        self._records.append(record)
        self.releases += 1
        self.released_by_reason[reason] = self.released_by_reason.get(reason, 0) + 1
        return record

    def joined(self, arrival: int, record: BatchRecord) -> None:
        """Note the batch of a request.

        Args:
            arrival: number of the request, from 0.
            record: from :meth:`released`.
        """
        if arrival >= self.arrivals - self.requests:
            self._arrival_batch[arrival & (self.requests - 1)] = record.number

    def ended(self, record: BatchRecord | None, now_ns: int) -> None:
        """Note that a batch has left its worker, and free its row; :meth:`finished` notes its outcome.

        Args:
            record: from :meth:`released`; the call has no effect unless that batch is running.
            now_ns: the instant, ≥ 0.
        """
        if record is not None and record.end_ns == _RUNNING:
            record.end_ns = self.last_end_ns = now_ns
            heappush(self._free, record.worker)

    def finished(self, record: BatchRecord | None, now_ns: int, ok: bool) -> None:
        """Note the outcome of a batch, and free its row unless :meth:`ended` has.

        Args:
            record: from :meth:`released`; ``None``: no effect.
            now_ns: the instant, ≥ 0.
            ok: whether it succeeded.
        """
        if record is not None:
            record.ok = ok
            self.ended(record, now_ns)

    def started(self, record: BatchRecord | None, now_ns: int) -> None:
        """Note when a pipelined batch began to run, and give it the lowest row that is free then.

        Args:
            record: from :meth:`released`; the call has no effect unless that batch is running.
            now_ns: the instant.
        """
        if record is not None and record.end_ns == _RUNNING:
            record.start_ns = now_ns
            heappush(self._free, record.worker)
            record.worker = self._take_row()

    def dropped(self, now_ns: int, reason: str, count: int = 1) -> None:
        """Note requests that complete without a result.

        Args:
            now_ns: the instant.
            reason: the reason.
            count: number of requests; with 0 the call has no effect.
        """
        if count <= 0:
            return
        self.dropped_by_reason[reason] = self.dropped_by_reason.get(reason, 0) + count
        self.drops += count
        last = len(self._drops) - 1  # compiled, negative positions are undefined here
        if last >= 0 and self._drops[last][::2] == (now_ns, reason):
            count += self._drops.pop()[1]
        self._drops.append((now_ns, count, reason))

    def gap_ns(self, now_ns: int) -> float:
        """Return the mean time between the last 256 arrivals, including the time since the last one.

        Returns:
            Nanoseconds; infinite before a second arrival, or if no time has passed since the first.
        """
        return self._gap_over(_RATE_WINDOW, now_ns)

    def gaps_ns(self, now_ns: int) -> tuple[float, float, float]:
        """Return :meth:`gap_ns` over the last 256, 64 and 16 arrivals; fewer show a burst sooner, but are noisier."""
        return self._gap_over(_RATE_WINDOW, now_ns), self._gap_over(64, now_ns), self._gap_over(16, now_ns)

    def _gap_over(self, window: int, now_ns: int) -> float:
        count = min(self.arrivals, self.requests, window)
        if count < 2:
            return _INFINITE
        elapsed_ns = now_ns - self._arrival_ns[(self.arrivals - count) & (self.requests - 1)]
        return elapsed_ns / (count - 1) if elapsed_ns > 0 else _INFINITE

    def recent_limits_ns(self) -> list[int]:
        """Return the time limits of the last 64 requests that had one, in no particular order."""
        limits: list[int] = []
        for slot in range(min(self._limit_count, _MAX_LIMITS)):
            limits.append(self._limits[slot])  # noqa: PERF401 - a comprehension has a scope, and types, of its own
        return limits

    def longest_limit_ns(self, since_ns: int) -> int:
        """Return the longest time limit of the arrivals since an instant, of at most the last 64; 0: none had one."""
        longest_ns = 0
        for back in range(1, min(self.arrivals, self.requests, _MAX_LIMITS) + 1):
            slot = (self.arrivals - back) & (self.requests - 1)
            if self._arrival_ns[slot] < since_ns:
                break
            longest_ns = max(longest_ns, self._limit_ns[slot])
        return longest_ns

    def recent_classes(self) -> dict[int, tuple[float, int]]:
        """Return the share of the last 256 arrivals and the shortest time limit of each priority, by priority.

        Arrivals without a deadline count only in the total.
        """
        count = min(self.arrivals, self.requests, _RATE_WINDOW)
        classes: dict[int, tuple[float, int]] = {}
        for back in range(1, count + 1):
            slot = (self.arrivals - back) & (self.requests - 1)
            limit_ns = self._limit_ns[slot]
            if limit_ns > 0:
                priority = self._priority[slot]
                share, shortest_ns = classes.get(priority, (0.0, limit_ns))
                classes[priority] = (share + 1.0 / count, min(shortest_ns, limit_ns))
        return classes

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of the rings, oldest entries first: the fields of a `DecisionLog`.

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

        first = max(self.releases - self.batches, 0)
        arrival_batches = in_order(self._arrival_batch, self.arrivals)
        rows = [(it.start_ns, it.end_ns, it.expected_ns, it.worker, it.size, it.queued, it.ok) for it in self._records]
        starts, ends, expected, workers, sizes, queued, ok = np.array(rows, np.int64).reshape(-1, 7).T.copy()
        return {
            "arrivals_ns": in_order(self._arrival_ns, self.arrivals),
            "limits_ns": in_order(self._limit_ns, self.arrivals),
            "priorities": in_order(self._priority, self.arrivals),
            "arrival_batches": np.where(arrival_batches >= first, arrival_batches - first, _NO_BATCH),
            "batch_starts_ns": starts,
            "batch_ends_ns": ends,
            "batch_expected_ns": expected,
            "batch_workers": workers,
            "batch_sizes": sizes,
            "batch_queued": queued,
            "batch_ok": ok > 0,
            "reasons": tuple([record.reason for record in self._records]),
            "drops_ns": np.array([drop[0] for drop in self._drops], np.int64),
            "drop_counts": np.array([drop[1] for drop in self._drops], np.int64),
            "drop_reasons": tuple([drop[2] for drop in self._drops]),
            "released": self.released_by_reason.copy(),
            "dropped": self.dropped_by_reason.copy(),
        }

    def _take_row(self) -> int:
        """Return the lowest free row: the top of the heap, or a new one."""
        if self._free:
            return heappop(self._free)
        self._rows += 1
        return self._rows - 1

    def __repr__(self) -> str:
        return f"EventRing({self.arrivals} arrivals, {self.releases} batches, {self.drops} drops)"

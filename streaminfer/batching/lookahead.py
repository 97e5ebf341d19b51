"""`Lookahead`: the batch that the best plan for the present and the near future would send now.

At each decision for a free worker:

1. If all that waits, cut into full batches in deadline order, is on time, the first of these batches goes: no plan
   can do better, and this is the common case (a pass of a few nanoseconds a request).
2. Otherwise requests that even a batch of one would answer late are refused at once, and the planner (``kernels``)
   chooses the batch: the exact dynamic program over what waits and the arrivals expected at the present rate where
   all requests have about the same time limit, a heuristic that plays candidates forward where they have not.
3. When nothing at all can be on time, the newest request is served as a probe: a learned time that has become wrong is
   so unlearned, where refusing everything would never measure again.

Batches are never larger than the size of best throughput. With several priorities waiting, the most urgent that fit are
put into the planned batch first, and the batch is made small enough for the most urgent of them. A request without a
deadline stands in the order where one with a second's patience would, and is never refused.

Exact: one worker, uniform time limits, service times as given, at most 16 dropped, at most 256 waiting. Beyond that,
and with several workers, each of which plans as if it were alone, it is a heuristic.
"""

import threading
from collections import deque
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer.batching._order_cy import fill_deadlines, full_batches_on_time
from streaminfer.batching._queue_cy import RequestQueue, Ticket
from streaminfer.batching.policy import Decision

__all__ = ["Lookahead"]

_PATIENCE_NS = 1_000_000_000
_RATE_WINDOW = 256
_LEARN_EVERY_NS = 200_000
_UNIFORM = 0.05
"""Time limits that differ by no more than this share are about equal."""


class Lookahead:
    """The planning policy; synchronous, takes the time as an argument, belongs to one queue.

    Args:
        max_batch_size: the cap.
        service_time: a `ServiceTime` that is taken as it is, or a learned one, which then learns from :meth:`finished`.
    """

    def __init__(self, max_batch_size: int, service_time: Any) -> None:
        self.max_batch_size = max_batch_size
        self.service_time = service_time
        self._learns = hasattr(service_time, "observe")
        self._learned_ns = -_LEARN_EVERY_NS
        self._version = -1
        self._durations: NDArray[np.int64] | None = None
        self._arrivals: deque[tuple[int, int]] = deque()

    def finished(self, size: int, duration_ns: int, now_ns: int, cut_short: bool = False) -> None:
        """Learns from a batch.

        Args:
            size: how many requests it had.
            duration_ns: how long the worker was busy with it.
            now_ns: when it ended.
            cut_short: it was cancelled then and would have taken longer: learned from if that is longer than was
                thought.
        """
        # a model of microseconds answers faster than it could be learned: a sample of its batches says as much
        if not self._learns or now_ns - self._learned_ns < _LEARN_EVERY_NS:
            return
        model = self.service_time
        if cut_short and (not model.known or duration_ns <= model.upper_ns(self.max_batch_size)[size]):
            return
        self._learned_ns = now_ns
        model.observe(size, duration_ns, now_ns)

    def decide(self, waiting: RequestQueue, now_ns: int, free_workers: int) -> Decision:  # noqa: ARG002 - the protocol
        """The next batch for one free worker."""
        self._note_arrivals(waiting.admitted, now_ns)
        durations = self._table()
        if durations is None:  # nothing was ever measured: what waits is the best first measurement
            return Decision(waiting.first(self.max_batch_size), "first_measurement")
        cap = durations.size - 1
        tickets = waiting.first(waiting.waiting)
        if full_batches_on_time(tickets, durations, now_ns):
            return Decision(tickets[:cap], "full" if len(tickets) >= cap else "idle_worker")
        return self._plan(waiting, tickets, durations, now_ns)

    def _plan(
        self, waiting: RequestQueue, tickets: list[Ticket], durations: NDArray[np.int64], now_ns: int
    ) -> Decision:
        cap = durations.size - 1
        deadlines = np.empty(len(tickets), np.int64)
        if not fill_deadlines(tickets, deadlines, _PATIENCE_NS, now_ns):
            order = np.argsort(deadlines, kind="stable")
            tickets = [tickets[position] for position in order.tolist()]
            deadlines = deadlines[order]
            if full_batches_on_time(tickets, durations, now_ns):
                return Decision(tickets[:cap], "full" if len(tickets) >= cap else "idle_worker")
        doomed = int(np.searchsorted(deadlines, now_ns + durations[1]))
        if doomed == len(tickets):
            newest = max(tickets, key=lambda ticket: ticket.enqueued_ns)
            return Decision([newest], "probe", [ticket for ticket in tickets if ticket is not newest])
        refused = tickets[:doomed]
        tickets = tickets[doomed:]
        deadlines = deadlines[doomed:]
        head, size = self._choose(waiting, deadlines, durations, now_ns)
        batch = tickets[head : head + size]
        if tickets[0].priority != tickets[-1].priority or any(t.priority != tickets[0].priority for t in tickets):
            batch = _urgent_first(tickets, deadlines, durations, now_ns, size)
        return Decision(batch, "planned", refused)

    def _choose(
        self, waiting: RequestQueue, deadlines: NDArray[np.int64], durations: NDArray[np.int64], now_ns: int
    ) -> tuple[int, int]:
        kernels = _kernels_if_ready()
        if kernels is None:
            return 0, _largest_on_time(int(deadlines[0]) - now_ns, durations, deadlines.size)
        limits = np.array(waiting.recent_limits_ns() or [_PATIENCE_NS], np.int64)
        shortest, longest = int(limits.min()), int(limits.max())
        head, size = kernels.choose(
            now_ns,
            deadlines,
            durations,
            limits,
            self._gap_ns(),
            longest - shortest <= _UNIFORM * longest,
            kernels.MAX_DROPS,
        )
        return int(head), int(size)

    def _table(self) -> NDArray[np.int64] | None:
        """Durations by size up to the size of best throughput; remade when the model has learned."""
        model = self.service_time
        if not self._learns:
            if self._durations is None:
                self._durations = model.table_ns(model.best_batch_size(self.max_batch_size))
        elif model.version != self._version and model.known:
            self._version = model.version
            self._durations = model.upper_ns(self.max_batch_size)[: model.best_batch_size(self.max_batch_size) + 1]
        return self._durations

    def _note_arrivals(self, admitted: int, now_ns: int) -> None:
        arrivals = self._arrivals
        arrivals.append((admitted, now_ns))
        while len(arrivals) > 2 and admitted - arrivals[1][0] >= _RATE_WINDOW:
            arrivals.popleft()

    def _gap_ns(self) -> float:
        """Recent mean time between arrivals; infinite before two decisions saw some."""
        first, last = self._arrivals[0], self._arrivals[-1]
        arrived = last[0] - first[0]
        return (last[1] - first[1]) / arrived if arrived and last[1] > first[1] else float("inf")

    def __repr__(self) -> str:
        return f"Lookahead({self.max_batch_size}, {self.service_time!r})"


def _largest_on_time(left_ns: int, durations: NDArray[np.int64], available: int) -> int:
    """The largest batch that takes no longer than ``left_ns``, at least 1."""
    return max(1, min(available, int(np.searchsorted(durations, left_ns, side="right")) - 1))


def _urgent_first(
    tickets: list[Ticket], deadlines: NDArray[np.int64], durations: NDArray[np.int64], now_ns: int, size: int
) -> list[Ticket]:
    """A batch of about the planned size that takes the most urgent requests that are on time in it."""
    priority = min(ticket.priority for ticket in tickets)
    most_urgent = next(position for position, ticket in enumerate(tickets) if ticket.priority == priority)
    fits = _largest_on_time(int(deadlines[most_urgent]) - now_ns, durations, len(tickets))
    size = min(size, fits)
    finish_ns = now_ns + int(durations[size])
    on_time = [
        ticket for ticket, deadline_ns in zip(tickets, deadlines.tolist(), strict=True) if deadline_ns >= finish_ns
    ]
    on_time.sort(key=lambda ticket: ticket.priority)
    return on_time[:size]


_compiling = threading.Lock()
_ready: ModuleType | None = None


def compile_kernels() -> ModuleType:
    """Imports and compiles the planner's kernels, a second or two once a process; call it off the event loop.

    Thread-safe; returns at once when they are compiled.
    """
    global _ready  # noqa: PLW0603 - once a process
    with _compiling:
        if _ready is None:
            from streaminfer.batching import kernels  # noqa: PLC0415 - numba loads here and not before

            kernels.warm_up()
            _ready = kernels
        return _ready


def _kernels_if_ready() -> ModuleType | None:
    """The compiled kernels; until they are ready, their compilation in the background is started once."""
    if _ready is None and not _compiling.locked():
        threading.Thread(target=compile_kernels, name="streaminfer-compile", daemon=True).start()
    return _ready

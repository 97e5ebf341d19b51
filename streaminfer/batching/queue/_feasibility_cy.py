# cython: embedsignature=True, cdivision=True
"""Durations by batch size, and the checks of every decision: are all requests on time, when does each complete?

A few nanoseconds a ticket. The divisors are batch sizes, and so positive. Compiled with the C types of
``_feasibility_cy.pxd`` or run uncompiled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from streaminfer.batching.queue._ticket_cy import Ticket

__all__ = ["DurationTable", "fill_deadlines"]

_NEVER = 2**63 - 1
_SHARE_LIMIT = 0.95
"""Longest duration of a worker's share of the queue, relative to that of one batch of the whole queue."""
_COST_LIMIT = 1.5
"""Longest duration per row of such a share, relative to that of the one batch."""


class DurationTable:
    """Durations of batches by size, in a form that compiled code reads without NumPy calls.

    With several workers the next batch need not wait for the end of this one: ``steps`` says how much later it starts.

    Args:
        durations: shape (cap + 1,), int64, nanoseconds of a batch by its size, entry 0 is 0.
        steps: shape (cap + 1,), int64: nanoseconds from the start of a batch to the earliest start of the next.

    Attributes:
        cap: the largest batch.
    """

    def __init__(self, durations: NDArray[np.int64], steps: NDArray[np.int64]) -> None:
        # read through the buffer, entries are Python ints: NumPy ints would reach timers and timings
        self.durations = durations.data
        self.steps = steps.data
        self.cap = len(durations) - 1

    def completes_ns(self, ahead: int, start_ns: int) -> int:
        """Return when a request completes that is served in full batches after others.

        Args:
            ahead: number of requests that are served before it.
            start_ns: when the first batch starts.
        """
        full = ahead // self.cap
        completes_ns: int = start_ns + full * self.steps[self.cap] + self.durations[ahead - full * self.cap + 1]
        return completes_ns

    def ends_ns(self, started_ns: int, size: int) -> int:
        """Return the expected end of a batch that was started at an instant."""
        ends_ns: int = started_ns + self.durations[size if size < self.cap else self.cap]
        return ends_ns

    def is_shortly_after(self, end_ns: int, now_ns: int, size: int) -> bool:
        """Return whether a batch has ended within a sixteenth of the duration of one of ``size`` rows."""
        return (now_ns - end_ns) * 16 < self.durations[size]

    def share_of_worker(self, queued: int, workers: int) -> int:
        """Return how many of the queued requests the first of several free workers gets.

        Requests in one batch all end together. Callers that then send their next requests would meet in one batch
        again, beside workers that stay idle. So as many workers as possible get equal shares of the requests that come
        shortly after the end of a batch. Independent arrivals are not shared: a burst that occupies all workers with
        small batches delays the next one. The first batch stays whole where a share would be hardly shorter, or would
        take half as long again per row.

        Args:
            queued: number of queued requests, at least 1.
            workers: number of free workers.
        """
        whole = queued if queued < self.cap else self.cap
        whole_ns = self.durations[whole]
        workers = workers if workers < queued else queued
        while workers > 1:
            share = (queued + workers - 1) // workers
            if share >= whole:
                break
            share_ns = self.durations[share]
            if share_ns < _SHARE_LIMIT * whole_ns and share_ns * whole <= _COST_LIMIT * whole_ns * share:
                return share
            workers -= 1
        return whole

    def all_on_time(self, deadlines: NDArray[np.int64], now_ns: int) -> bool:
        """Return whether all requests are on time if they are cut into full batches in this order.

        Args:
            deadlines: shape (n,), int64, ascending: a batch is on time if it ends by its first deadline.
            now_ns: when the first batch would start.
        """
        count = len(deadlines)
        time_ns = now_ns
        index = 0
        while index < count:
            size = self.cap if count - index > self.cap else count - index
            if time_ns + self.durations[size] > deadlines[index]:
                return False
            time_ns += self.steps[size]
            index += size
        return True


def fill_deadlines(tickets: list[Ticket], deadlines: NDArray[np.int64], patience_ns: int) -> int:
    """Write the deadline of each ticket into an array.

    Args:
        tickets: n of them.
        deadlines: shape (n,), int64.
        patience_ns: a ticket without a deadline gets the one that it would have with this time limit.

    Returns:
        How many tickets have no deadline, as n if the deadlines ascend, otherwise as the complement ``~n``, below 0.
    """
    ascending = True
    untimed = 0
    latest_ns = 0
    index = 0
    for ticket in tickets:
        deadline_ns = ticket.deadline_ns
        if deadline_ns == _NEVER:
            deadline_ns = ticket.timings.enqueued_ns + patience_ns
            untimed += 1
        if deadline_ns < latest_ns:
            ascending = False
        latest_ns = deadline_ns
        deadlines[index] = deadline_ns
        index += 1
    return untimed if ascending else ~untimed

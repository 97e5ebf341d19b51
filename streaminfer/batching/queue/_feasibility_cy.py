# cython: embedsignature=True, cdivision=True
"""What a planner asks at every decision: what does a batch take, are all on time as they stand, when does each end?

A few nanoseconds a ticket; what is divided by is a cap, and so positive. Compiled with the C types of
``_feasibility_cy.pxd`` or run as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from streaminfer.batching.queue._ticket_cy import Ticket

__all__ = ["DurationTable", "fill_deadlines"]

_NEVER = 2**63 - 1


class DurationTable:
    """What a batch takes, by its size, where compiled code reads it without asking NumPy.

    With several workers the next batch need not wait for the one before: ``steps`` says by how much later it starts.

    Args:
        durations: shape (cap + 1,), int64, nanoseconds of a batch by its size, entry 0 is 0.
        steps: shape (cap + 1,), int64: when the next batch may start, in nanoseconds after this one did.

    Attributes:
        cap: the largest batch.
    """

    def __init__(self, durations: NDArray[np.int64], steps: NDArray[np.int64]) -> None:
        # read through the buffer, an entry is an int of Python: one of NumPy's would reach timers and timings
        self.durations = durations.data
        self.steps = steps.data
        self.cap = len(durations) - 1

    def completes_ns(self, ahead: int, start_ns: int) -> int:
        """Return when a request completes that is served in full batches behind others.

        Args:
            ahead: how many are served before it.
            start_ns: when the first batch starts.
        """
        full = ahead // self.cap
        completes_ns: int = start_ns + full * self.steps[self.cap] + self.durations[ahead - full * self.cap + 1]
        return completes_ns

    def ends_ns(self, started_ns: int, size: int) -> int:
        """When a batch that was started then ends, as far as is known."""
        ends_ns: int = started_ns + self.durations[size if size < self.cap else self.cap]
        return ends_ns

    def all_on_time(self, deadlines: NDArray[np.int64], now_ns: int) -> bool:
        """Whether requests, cut into full batches in this order, are all on time.

        Args:
            deadlines: shape (n,), int64, ascending: a batch is on time when it ends by its first one.
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
        patience_ns: a ticket without a deadline stands where one with this time limit would.

    Returns:
        How many tickets have no deadline; less than 0 where deadlines do not ascend: the complement of that number.
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

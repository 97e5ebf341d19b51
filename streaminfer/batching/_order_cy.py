"""What a planner asks of the waiting tickets at every decision: are all on time as they stand, and when does each end?

One pass each, O(n), a few nanoseconds a ticket; compiled with the C types of ``_order_cy.pxd`` or run as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from streaminfer.batching._queue_cy import Ticket

__all__ = ["fill_deadlines", "full_batches_on_time"]


def full_batches_on_time(tickets: list[Ticket], durations: NDArray[np.int64], now_ns: int) -> bool:
    """Whether the tickets, cut into full batches as they stand, are all on time on one worker.

    Args:
        tickets: in service order; at least one.
        durations: shape (cap + 1,), int64, nanoseconds of a batch by its size.
        now_ns: when the first batch would start.

    Returns:
        False also where their deadlines do not ascend: then the order is not a planner's.
    """
    cap = len(durations) - 1
    count = len(tickets)
    time_ns = now_ns
    latest_ns = 0
    left = 0
    for index in range(count):
        ticket = tickets[index]
        deadline_ns = ticket.deadline_ns
        if deadline_ns < latest_ns:
            return False
        latest_ns = deadline_ns
        if left == 0:
            left = count - index
            if left > cap:
                left = cap
            time_ns += durations[left]
            if time_ns > deadline_ns:
                return False
        left -= 1
    return True


def fill_deadlines(tickets: list[Ticket], deadlines: NDArray[np.int64], patience_ns: int, now_ns: int) -> bool:
    """Writes the deadline of each ticket into an array.

    Args:
        tickets: n of them.
        deadlines: shape (n,), int64.
        patience_ns: a ticket without a deadline stands where one with this time limit would, but is never late.
        now_ns: the present instant; that ticket's deadline is not before ``now_ns + patience_ns // 2``.

    Returns:
        Whether they ascend as they stand.
    """
    ascending = True
    latest_ns = 0
    index = 0
    for ticket in tickets:
        deadline_ns = ticket.deadline_ns
        if deadline_ns == _NEVER:
            deadline_ns = ticket.timings.enqueued_ns + patience_ns
            if deadline_ns < now_ns + patience_ns // 2:
                deadline_ns = now_ns + patience_ns // 2
        if deadline_ns < latest_ns:
            ascending = False
        latest_ns = deadline_ns
        deadlines[index] = deadline_ns
        index += 1
    return ascending


_NEVER = 2**63 - 1

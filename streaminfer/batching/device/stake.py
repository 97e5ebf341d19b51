"""Stakes of models that do not fit in a device's memory together: the gain of a load, and its cost.

*Design*. A load often takes a multiple of a time limit. It then saves no request that waits for it, and loses the
requests that arrive for an evicted model until that one is loaded again. Such a load is *in vain* if the arriving model
expects no more requests, by rate and weight, than those that leave would lose. It is done nevertheless when the model
was passed over for long, so that each model is served from time to time.

*Complexity*. O(models that leave).
"""

import math
from collections.abc import Iterable

from streaminfer.batching.device.turns import Bid
from streaminfer.batching.queue._ticket_cy import NEVER

__all__ = ["is_in_vain", "needed_ns"]


def needed_ns(bid: Bid, is_waiting: bool, now_ns: int) -> float:
    """Return when the next batch of a model has to start.

    Args:
        bid: bid of the model; its batch is not read.
        is_waiting: the model has a batch to send.
        now_ns: the present instant.
    """
    if bid.outlook is None:
        return now_ns if is_waiting else math.inf
    deadlines = bid.outlook.deadlines
    first_ns = deadlines[0] if deadlines.size else now_ns + bid.outlook.gaps_ns[0] + bid.outlook.limit_ns
    return float(first_ns - bid.outlook.durations[1])


def is_in_vain(arriving: Bid, leaving: Iterable[Bid], now_ns: int) -> bool:
    """Return whether a load that is not overdue costs more than it gains.

    Args:
        arriving: the model to load, with a queue.
        leaving: the models that have to leave for it.
        now_ns: the present instant.
    """
    if not _is_late(arriving, now_ns):
        return False
    lost = sum(_worth(other) for other in leaving if _loses_while(other, arriving.load_ns))
    return lost > 0.0 and _worth(arriving) <= lost


def _worth(bid: Bid) -> float:
    """Return the value of a model's expected requests, per nanosecond."""
    return 0.0 if bid.outlook is None else bid.weight / bid.outlook.gaps_ns[0]


def _loses_while(bid: Bid, other_load_ns: int) -> bool:
    """Return whether a model's requests expire if it leaves for another one and is loaded again afterwards."""
    if bid.outlook is None:
        return False
    return bool(bid.outlook.limit_ns < other_load_ns + bid.load_ns + bid.outlook.durations[1])


def _is_late(bid: Bid, now_ns: int) -> bool:
    """Return whether the whole queue of a model expires during its load."""
    if bid.outlook is None or any(ticket.deadline_ns == NEVER for ticket in bid.outlook.tickets):
        return False
    return bool(bid.outlook.deadlines[-1] < now_ns + bid.load_ns + bid.outlook.durations[1])

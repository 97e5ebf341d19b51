"""What a policy knows of its queue and its model, for a decision over the models of a device."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streaminfer.batching.queue._ticket_cy import Ticket

__all__ = ["Outlook"]


class Outlook(NamedTuple):
    """What a policy knows of its queue and its model, for a decision over several.

    Attributes:
        tickets: the queued requests, by deadline.
        deadlines: of these, shape (n,), int64.
        durations: nanoseconds that 19 of 20 batches do not exceed, by size, shape (cap + 1,), int64. With means the
            model that waits for another one's batch would be late whenever that takes longer than planned.
        gap_ns: expected time between arrivals; infinite: none are expected.
        limit_ns: time limit of expected arrivals.
        is_free: any run of neighbors among ``tickets`` may be a batch.
    """

    tickets: Sequence[Ticket]
    deadlines: NDArray[np.int64]
    durations: NDArray[np.int64]
    gap_ns: float
    limit_ns: int
    is_free: bool

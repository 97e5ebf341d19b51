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
        durations: what a batch takes for one that waits for it, by size, shape (cap + 1,), int64 nanoseconds: more than
            the mean.
        gaps_ns: expected time between arrivals, by many of them first and then by fewer; infinite: none are expected.
        limit_ns: time limit of expected arrivals.
        is_free: any run of neighbors among ``tickets`` may be a batch.
    """

    tickets: Sequence[Ticket]
    deadlines: NDArray[np.int64]
    durations: NDArray[np.int64]
    gaps_ns: tuple[float, ...]
    limit_ns: int
    is_free: bool

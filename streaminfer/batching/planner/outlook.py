"""A policy's knowledge of its queue and model, for a decision between the models of a device."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streaminfer.batching.queue._ticket_cy import Ticket

__all__ = ["Outlook"]


class Outlook(NamedTuple):
    """A policy's knowledge of its queue and model, for a decision between several models.

    Attributes:
        tickets: the queued requests, by deadline.
        deadlines: their deadlines, shape (n,), int64.
        durations: nanoseconds that a batch makes a waiting model wait, by size, shape (cap + 1,), int64; more than the
            mean.
        gaps_ns: expected nanoseconds between arrivals, estimated from many arrivals first, then from fewer; infinite:
            none are expected.
        limit_ns: time limit of expected arrivals, in nanoseconds.
        is_free: any contiguous run of ``tickets`` may be a batch.
    """

    tickets: Sequence[Ticket]
    deadlines: NDArray[np.int64]
    durations: NDArray[np.int64]
    gaps_ns: tuple[float, ...]
    limit_ns: int
    is_free: bool

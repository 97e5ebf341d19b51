"""Less urgent requests in a batch of urgent ones.

*Design.* The urgent requests are already chosen. Less urgent ones fill the batch up to the largest size that meets
three conditions. The first urgent request is on time even in a slow batch. A more urgent request that arrives just
after the batch was sent can still be served in the next one. Enough less urgent requests are on time in a batch of that
size. The last two conditions are monotone in the size, so each is found by bisection or in one pass. If the first
urgent request is late in any slow batch, it must be on time in a mean one.

*Complexity.* O(cap + n log cap) for n less urgent requests.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streaminfer.batching.planner.bucket_model import BucketModel

__all__ = ["fill_with_less_urgent"]

_Array = NDArray[np.int64]
_Rates = Sequence[tuple[float, int]]


def fill_with_less_urgent(
    now_ns: int, model: BucketModel, urgent: _Array, size: int, others: _Array, max_size: int, rates: _Rates
) -> list[int]:
    """Choose the less urgent requests of a batch.

    Args:
        now_ns: when the batch starts.
        model: the durations of batches, slow ones and mean ones.
        urgent: deadlines of the urgent requests, from the first of the batch on.
        size: how many of them are in the batch, at least one.
        others: shape (n,), deadlines of the less urgent requests, in the order in which they are served.
        max_size: the largest batch that does not delay urgent requests which cannot share it.
        rates: arrivals per nanosecond and time limit in nanoseconds of each class that must not be delayed.

    Returns:
        Positions in ``others``, ascending.
    """
    if urgent.size > size:
        return []  # each further row delays the urgent requests that stay queued
    left_ns = int(urgent[0]) - now_ns
    on_time = int(np.searchsorted(model.slow, left_ns, side="right")) - 1
    if on_time < size:
        on_time = int(np.searchsorted(model.durations, left_ns, side="right")) - 1
    max_size = room = min(model.slow.size - 1, size + others.size, on_time, max_size)
    while room > size and not _leaves_time(model, room, rates):
        room -= 1
    if room <= size and not _leaves_time(model, size, rates):
        # no size leaves enough time for the next urgent request: a smaller batch would only cost throughput
        room = max_size
    low, high = size, max(room, size)
    while low < high:
        middle = (low + high + 1) // 2
        if np.count_nonzero(others >= now_ns + model.slow[middle]) >= middle - size:
            low = middle
        else:
            high = middle - 1
    chosen: list[int] = np.flatnonzero(others >= now_ns + model.slow[low])[: low - size].tolist()
    return chosen


def _leaves_time(model: BucketModel, size: int, rates: _Rates) -> bool:
    """Return whether a request of each class that arrives when the batch starts can be served in the next one."""
    takes_ns = int(model.slow_steps[size])
    for rate, limit_ns in rates:
        following = min(max(int(rate * takes_ns), 1), model.slow.size - 1)
        if takes_ns + int(model.slow[following]) > limit_ns:
            return False
    return True

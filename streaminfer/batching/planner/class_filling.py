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

__all__ = ["fill_with_less_urgent"]

_Array = NDArray[np.int64]


def fill_with_less_urgent(
    now_ns: int,
    durations: _Array,
    *,
    urgent_deadline_ns: int,
    urgent_size: int,
    urgent_remaining: int,
    max_size: int,
    others: _Array,
    rates: Sequence[tuple[float, int]],
    means: _Array,
    steps: _Array,
) -> list[int]:
    """Choose the less urgent requests of a batch.

    Args:
        now_ns: when the batch starts.
        durations: shape (cap + 1,), nanoseconds of a slow batch by size, nondecreasing.
        urgent_deadline_ns: the earliest deadline of the urgent requests in the batch.
        urgent_size: number of urgent requests in the batch.
        urgent_remaining: number of requests of their class that stay queued.
        max_size: the largest batch that does not delay urgent requests which cannot share it.
        others: shape (n,), deadlines of the less urgent requests, in the order in which they are served.
        rates: arrivals per nanosecond and time limit in nanoseconds of each class that must not be delayed.
        means: shape (cap + 1,), mean nanoseconds of a batch, for urgent requests that are late in a slow one anyway.
        steps: shape (cap + 1,), nanoseconds after which the next batch may start after a slow one.

    Returns:
        Positions in ``others``, ascending.
    """
    if urgent_remaining:
        return []  # each further row delays the urgent requests that stay queued
    cap = durations.size - 1
    on_time = int(np.searchsorted(durations, urgent_deadline_ns - now_ns, side="right")) - 1
    if on_time < urgent_size:
        on_time = int(np.searchsorted(means, urgent_deadline_ns - now_ns, side="right")) - 1
    max_size = room = min(cap, urgent_size + others.size, on_time, max_size)
    while room > urgent_size and not _leaves_time(durations, steps, room, rates):
        room -= 1
    if room <= urgent_size and not _leaves_time(durations, steps, urgent_size, rates):
        # no size leaves enough time for the next urgent request: a smaller batch would only cost throughput
        room = max_size
    low, high = urgent_size, max(room, urgent_size)
    while low < high:
        size = (low + high + 1) // 2
        if np.count_nonzero(others >= now_ns + durations[size]) >= size - urgent_size:
            low = size
        else:
            high = size - 1
    chosen: list[int] = np.flatnonzero(others >= now_ns + durations[low])[: low - urgent_size].tolist()
    return chosen


def _leaves_time(durations: _Array, steps: _Array, size: int, rates: Sequence[tuple[float, int]]) -> bool:
    """Return whether a request of each class that arrives when the batch starts can be served in the next one."""
    takes_ns = int(steps[size])
    for rate, limit_ns in rates:
        following = min(max(int(rate * takes_ns), 1), durations.size - 1)
        if takes_ns + int(durations[following]) > limit_ns:
            return False
    return True

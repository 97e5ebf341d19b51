"""Choice of the length bucket to serve first, because requests of different buckets do not share a batch.

Importing this module imports Numba; a serving process calls its kernels compiled ahead of time (``kernel_loader``).

*Roll buckets*: plays the queue forward with each bucket served first. The later batches follow by latest start, or by
requests per second of device time; heads that are late are passed over. The bucket with which most requests are on time
is served first, with the batch that was played. This is a heuristic, measured in ``benchmarks``.
"""

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.loading.numba_jit import jit

__all__ = ["EXPORTS", "choose_bucket", "roll_buckets"]

FAR_NS = 2**62

_Array = NDArray[np.int64]


@jit
def roll_buckets(
    now_ns: int,
    deadlines: _Array,
    offsets: _Array,
    caps: _Array,
    durations: _Array,
    steps: _Array,
    first: int,
    by_rate: bool,
) -> tuple[int, int]:
    """Play the queue forward with one bucket served first.

    Args:
        now_ns: the present instant.
        deadlines: shape (n,): bucket after bucket, ascending within each.
        offsets: shape (buckets + 1,): where each bucket begins in ``deadlines``.
        caps: shape (buckets,): the largest batch of each.
        durations: shape (buckets, largest cap + 1), nanoseconds.
        steps: the same shape, see :func:`plan`.
        first: the bucket whose batch is first.
        by_rate: continue with the bucket that serves most requests per second of device time; otherwise with the one
            whose batch has to start first.

    Returns:
        How many of the n are on time, and when the next batch could start after the last.
    """
    buckets = caps.size
    heads = offsets[:-1].copy()
    time_ns = now_ns
    on_time = 0
    forced = True
    while True:
        chosen = -1
        chosen_size = 0
        best = 0.0
        for bucket in range(buckets):
            if forced and bucket != first:
                continue
            size = 0
            while heads[bucket] < offsets[bucket + 1]:
                size = min(offsets[bucket + 1] - heads[bucket], caps[bucket])
                if time_ns + durations[bucket, size] <= deadlines[heads[bucket]]:
                    break
                heads[bucket] += 1
                size = 0
            if size == 0:
                continue
            latest_start_ns = deadlines[heads[bucket]] - durations[bucket, size]
            score = size / steps[bucket, size] if by_rate else -float(latest_start_ns)
            if chosen < 0 or score > best:
                chosen, chosen_size, best = bucket, size, score
        if chosen < 0:
            if forced:
                forced = False
                continue
            return on_time, time_ns
        forced = False
        time_ns += steps[chosen, chosen_size]
        heads[chosen] += chosen_size
        on_time += chosen_size


@jit
def choose_bucket(
    now_ns: int, deadlines: _Array, offsets: _Array, caps: _Array, durations: _Array, steps: _Array
) -> int:
    """Return the bucket to serve now; arguments as for :func:`roll_buckets`, with at least one request."""
    best_bucket = -1
    best_on_time = -1
    best_end = FAR_NS
    for bucket in range(caps.size):
        if offsets[bucket] == offsets[bucket + 1]:
            continue
        for by_rate in (False, True):
            on_time, end = roll_buckets(now_ns, deadlines, offsets, caps, durations, steps, bucket, by_rate)
            if on_time > best_on_time or (on_time == best_on_time and end < best_end):
                best_bucket, best_on_time, best_end = bucket, on_time, end
    return best_bucket


_READ = "Array(int64, 1, 'C', readonly=True)"
_READ_2D = "Array(int64, 2, 'C', readonly=True)"

EXPORTS = {
    "choose_bucket": (choose_bucket, f"int64(int64, {_READ}, {_READ}, {_READ}, {_READ_2D}, {_READ_2D})"),
}
"""Kernels for serving: the name under which each is compiled ahead of time, the function and its signature."""

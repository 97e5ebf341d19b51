"""The planner's arithmetic: chooses the requests of the next batch so that most requests are on time.

Importing this module imports Numba; a serving process calls its kernels compiled ahead of time (``kernel_loader``).

The requests are in deadline order: the queued ones first, then the next expected arrivals. Members of a batch finish
together, so a batch is on time if it finishes by its earliest deadline.

*Plan*, for uniform time limits, is an exact dynamic program. With deadlines in the order of arrival, an exchange
argument shows that some best schedule serves contiguous runs and drops only requests before a run (Baptiste, "Batching
identical jobs", Mathematical Methods of Operations Research 52, 2000). ``T[m, i]`` is the earliest instant at which the
first ``i`` requests are handled, ``m`` of them dropped::

    T[m, i] = min( T[m-1, i-1],                                          request i-1 is dropped
                   min over b of max(T[m, i-b], release[i-1]) + t(b) )   a batch of b, if that is by deadline[i-b]

With k workers, ``T`` is the instant at which the next batch may start: ``t(b) / k`` after this one started, as if the
batches were spread evenly. That is exact for one worker and a heuristic for more.

The smallest ``m`` with a finite ``T[m, n]`` drops fewest requests, its value is the earliest finish, and its first
batch is read backwards from the table. This ignores the time after the horizon. If requests arrive as fast as the
device can serve them, its time therefore gets a price: the number of requests that it could serve meanwhile. The plan
accepts one more drop if it saves device time that is worth more, because at capacity a batch that is cut short to save
its head costs later requests. If the first batch would wait for expected arrivals, those of its requests that are
already queued are sent now: a worker is never idle while a request is queued, and an expectation is not a request.
O(n · cap · (m + 1)), bounded by ``max_drops``; with more drops there is no plan, and heads are dropped as below.

*Drop heads* passes over the requests that would be late in the largest possible batch: Nexus's early drop (Shen et
al., SOSP 2019). Under sustained overload it is as good as the plan and costs O(n).

*Worth its time*: if a model pads batches to some sizes, one more row can take as long as twice the rows. While the
device's time is scarce, a smaller batch is sent if it serves many more requests for its time.

*Roll*, for mixed time limits, plays each candidate for the first batch forward over the expected arrivals with a simple
policy: drop heads, or the largest batch that is on time for the head. It takes the candidate that serves most, less the
price of its time. Deadline order is not optimal for mixed limits, and this heuristic is not either; it is measured in
``benchmarks``.
"""

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.loading.numba_jit import jit

__all__ = ["EXPORTS", "MAX_PLANNED", "choose", "drop_heads", "plan", "roll", "worth_its_time"]

FAR_NS = 2**62
MAX_PLANNED = 512
"""With more requests than this, queued and expected, there is no plan: heads are dropped instead."""
_MAX_WORSE_PLANS = 6
"""Number of further drops without a better plan that ends the search for an earlier finish."""
_MIN_ADVANTAGE = 0.25
"""Share of a batch by which a smaller one must serve more, so that one bad measurement does not decide."""
_ZERO_PRICE_LOAD, _FULL_PRICE_LOAD = 0.95, 1.05
"""Loads, as shares of the device's capacity, between which the price of its time rises from zero to full."""

_Array = NDArray[np.int64]


@jit
def plan(
    now_ns: int,
    deadlines: _Array,
    releases: _Array,
    queued: int,
    durations: _Array,
    steps: _Array,
    max_drops: int,
    price: float,
    table: _Array,
) -> tuple[int, int]:
    """Return the first batch of the schedule with most requests on time, less the price of its time.

    Args:
        now_ns: the present instant.
        deadlines: shape (n,), ascending.
        releases: shape (n,), ascending; ``now_ns`` for the queued ones.
        queued: how many are queued, the first of the n.
        durations: shape (cap + 1,), nanoseconds of a batch by its size, nondecreasing.
        steps: shape (cap + 1,), nanoseconds after its start until the next one may start; with one worker, the
            durations.
        max_drops: the most dropped requests; with more there is no plan.
        price: requests that a nanosecond of the device is worth: as many more may be dropped to finish earlier.
        table: scratch, at least (max_drops + 1, n + 1).

    Returns:
        How many requests to pass over and how many to send after them; (-1, 0): no plan.
    """
    n = deadlines.size
    cap = durations.size - 1
    reversed_steps = steps[::-1].copy()
    reversed_rests = (durations - steps)[::-1].copy()
    chosen = -1
    best_cost = 0.0
    for m in range(min(max_drops, n) + 1):
        row = table[m]
        for i in range(m + 1):
            row[i] = FAR_NS
        for i in range(m + 1, n + 1):
            best = FAR_NS
            if m > 0:
                best = table[m - 1, i - 1]
            size = i - m
            if size <= cap:
                start = max(now_ns, releases[i - 1])
                if start + durations[size] <= deadlines[m] and start + steps[size] < best:
                    best = start + steps[size]
            low = max(i - cap, m + 1)
            first = cap - i + low
            earliest = _earliest(
                row[low:i], deadlines[low:i], reversed_steps[first:cap], reversed_rests[first:cap], releases[i - 1]
            )
            row[i] = min(best, earliest)
        if row[n] < FAR_NS:
            cost = m + price * (row[n] - now_ns)
            if chosen < 0 or cost < best_cost:
                chosen, best_cost = m, cost
            elif price == 0.0 or m >= chosen + _MAX_WORSE_PLANS:
                break
    if chosen < 0:
        return -1, 0
    return _first_batch(now_ns, deadlines, releases, queued, durations, steps, table, chosen)


@jit
def _earliest(starts: _Array, deadlines: _Array, steps: _Array, rests: _Array, release_ns: int) -> int:
    """Return the earliest end; the innermost loop, without branches, so that it compiles to vector instructions."""
    best = FAR_NS
    for k in range(starts.size):
        start = starts[k]
        start = start if start > release_ns else release_ns  # noqa: FURB136 - max() would keep it from that
        following = start + steps[k]
        following = following if following + rests[k] <= deadlines[k] else FAR_NS
        best = following if following < best else best  # noqa: FURB136
    return best


@jit
def _first_batch(
    now_ns: int,
    deadlines: _Array,
    releases: _Array,
    queued: int,
    durations: _Array,
    steps: _Array,
    table: _Array,
    drops: int,
) -> tuple[int, int]:
    """Follow the minima of the table back to the batch that starts now."""
    cap = durations.size - 1
    m = drops
    i = deadlines.size
    while True:
        value = table[m, i]
        if m > 0 and table[m - 1, i - 1] == value:
            m -= 1
            i -= 1
            continue
        size = i - m
        first = False
        if size <= cap:
            start = max(now_ns, releases[i - 1])
            first = start + steps[size] == value and start + durations[size] <= deadlines[m]
        # among equally good plans, take the largest first batch: its requests are certain, the others only expected
        for j in range(i - 1, max(i - cap, m + 1) - 1, -1):
            start = max(table[m, j], releases[i - 1])
            if start + steps[i - j] == value and start + durations[i - j] <= deadlines[j]:
                i = j
                first = False
                break
        if first:
            return (m, min(size, queued - m)) if m < queued else (-1, 0)


@jit
def drop_heads(now_ns: int, deadlines: _Array, queued: int, durations: _Array) -> tuple[int, int]:
    """Return the largest possible batch after the requests that would be late in it.

    Returns:
        How many requests to pass over and how many to send; (queued, 0) if even a batch of one is late.
    """
    cap = durations.size - 1
    for head in range(queued):
        size = min(queued - head, cap)
        if now_ns + durations[size] <= deadlines[head]:
            return head, size
    return queued, 0


@jit
def worth_its_time(
    now_ns: int, deadlines: _Array, head: int, size: int, durations: _Array, steps: _Array, price: float
) -> tuple[int, int]:
    """Return the chosen batch, or a smaller one that serves many more requests for its time.

    There is such a batch if the model pads batches to some sizes, so that one more row takes much longer.

    Args:
        now_ns: the present instant.
        deadlines: shape (queued,), ascending.
        head: how many requests the chosen batch passes over.
        size: how many it has.
        durations: shape (cap + 1,), nanoseconds.
        steps: see :func:`plan`.
        price: see :func:`plan`.

    Returns:
        How many requests to pass over and how many to send: the first ones that are on time in the batch.
    """
    best = size
    threshold = size - price * steps[size] + _MIN_ADVANTAGE * size
    for fewer in range(size - 1, 0, -1):
        value = fewer - price * steps[fewer]
        if value > threshold:
            best, threshold = fewer, value
    if best < size:
        while head > 0 and now_ns + durations[best] <= deadlines[head - 1]:
            head -= 1
    return head, best


@jit
def largest_for(now_ns: int, deadline_ns: int, durations: _Array, available: int) -> int:
    """Return the size of the largest batch, at least 1, that finishes by a deadline."""
    size = min(available, durations.size - 1)
    while size > 1 and now_ns + durations[size] > deadline_ns:
        size -= 1
    return size


@jit
def roll(
    now_ns: int,
    deadlines: _Array,
    releases: _Array,
    head: int,
    size: int,
    durations: _Array,
    steps: _Array,
    dropping: bool,
    done: NDArray[np.bool_],
) -> tuple[int, int]:
    """Play the queue forward after a first batch.

    Args:
        now_ns: the present instant.
        deadlines: shape (n,): of the queued requests, ascending, then of the expected ones, ascending.
        releases: shape (n,).
        head: position of the batch's first request.
        size: how many requests the batch has.
        durations: shape (cap + 1,).
        steps: shape (cap + 1,).
        dropping: continue by dropping heads; otherwise with the largest batch for the head.
        done: scratch, shape (n,).

    Returns:
        How many of the n are on time, and when the next batch could start after the last.
    """
    n = deadlines.size
    for i in range(n):
        done[i] = False
    finish_ns = now_ns + durations[size]
    time_ns = now_ns + steps[size]
    on_time = 0
    for i in range(head, head + size):
        done[i] = True
        if finish_ns <= deadlines[i]:
            on_time += 1
    lowest = 0
    while True:
        while lowest < n and (done[lowest] or time_ns + durations[1] > deadlines[lowest]):
            lowest += 1
        available = 0
        next_release = FAR_NS
        for i in range(lowest, n):
            if done[i] or time_ns + durations[1] > deadlines[i]:
                continue
            if releases[i] <= time_ns:
                available += 1
            elif releases[i] < next_release:
                next_release = releases[i]
        if available == 0:
            if next_release == FAR_NS:
                return on_time, time_ns
            time_ns = next_release
            continue
        take = 0
        sent = 0
        for i in range(lowest, n):
            if done[i] or releases[i] > time_ns or time_ns + durations[1] > deadlines[i]:
                continue
            if take == 0:
                if dropping:
                    largest = min(available, durations.size - 1)
                    if time_ns + durations[largest] > deadlines[i]:
                        available -= 1
                        continue
                    take = largest
                else:
                    take = largest_for(time_ns, deadlines[i], durations, available)
            done[i] = True
            sent += 1
            if sent == take:
                break
        time_ns += steps[sent]
        on_time += sent


@jit
def choose(
    now_ns: int,
    deadlines: _Array,
    durations: _Array,
    steps: _Array,
    slacks: _Array,
    gap_ns: float,
    uniform: bool,
    max_drops: int,
) -> tuple[int, int]:
    """Return the next batch of one free worker.

    Args:
        now_ns: the present instant.
        deadlines: shape (queued,), ascending, each at least the duration of a batch of one away.
        durations: shape (cap + 1,), nanoseconds of a batch by its size, nondecreasing.
        steps: see :func:`plan`.
        slacks: shape (k,), time limits of recent requests in nanoseconds, used for the expected arrivals.
        gap_ns: expected nanoseconds between arrivals; infinite: none are expected.
        uniform: all time limits are about equal.
        max_drops: see :func:`plan`.

    Returns:
        How many requests to pass over and how many to send after them, at least one.
    """
    queued = deadlines.size
    cap = durations.size - 1
    load = steps[cap] / (gap_ns * cap)
    price = min(max((load - _ZERO_PRICE_LOAD) / (_FULL_PRICE_LOAD - _ZERO_PRICE_LOAD), 0.0), 1.0) * cap / steps[cap]
    drop_head, drop_size = drop_heads(now_ns, deadlines, queued, durations)
    drop_head, drop_size = worth_its_time(now_ns, deadlines, drop_head, drop_size, durations, steps, price)
    if queued > MAX_PLANNED // 2:
        return drop_head, drop_size
    expected = 0
    if gap_ns < FAR_NS:
        expected = min(2 * cap, MAX_PLANNED - queued)
    n = queued + expected
    arrivals = np.arange(expected)
    expected_releases = now_ns + ((arrivals + 1) * gap_ns).astype(np.int64)
    expected_ends = expected_releases + slacks[arrivals % slacks.size]
    order = np.argsort(expected_ends, kind="mergesort")
    ends = np.concatenate((deadlines, expected_ends[order]))
    releases = np.concatenate((np.full(queued, now_ns), expected_releases[order]))
    if uniform:
        # keep the order: a request with a shorter limit can have an earlier deadline than its predecessor
        for i in range(queued, n):
            ends[i] = max(ends[i], ends[i - 1])
            releases[i] = max(releases[i], releases[i - 1])
        table = np.empty((max_drops + 1, n + 1), np.int64)
        head, size = plan(now_ns, ends, releases, queued, durations, steps, max_drops, price, table)
        if size > 0:
            return head, size
        return drop_head, drop_size
    overloaded = steps[cap] > gap_ns * cap
    done = np.empty(n, np.bool_)
    best_value = -np.inf
    best_end = FAR_NS
    best_head = drop_head
    best_size = drop_size
    last_size = 0
    for head in range(drop_head + 1):
        size = largest_for(now_ns, deadlines[head], durations, queued - head)
        if 0 < head < drop_head and size <= last_size:
            continue
        last_size = size
        for dropping in (False, True):
            if overloaded and not dropping:
                continue
            on_time, end = roll(now_ns, ends, releases, head, size, durations, steps, dropping, done)
            value = on_time - price * (end - now_ns)
            if value > best_value or (value == best_value and end < best_end):
                best_value, best_end, best_head, best_size = value, end, head, size
    return best_head, best_size


_READ = "Array(int64, 1, 'C', readonly=True)"
_PAIR = "UniTuple(int64, 2)"

EXPORTS = {
    "choose": (choose, f"{_PAIR}(int64, {_READ}, {_READ}, {_READ}, {_READ}, float64, boolean, int64)"),
    "drop_heads": (drop_heads, f"{_PAIR}(int64, {_READ}, int64, {_READ})"),
}
"""Kernels for serving: the name under which each is compiled ahead of time, the function and its signature."""

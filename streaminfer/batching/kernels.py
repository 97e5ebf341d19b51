"""The planner's arithmetic: which requests the next batch should take so that most are on time; Numba, compiled once.

Importing this module imports Numba, which the planner does in the background.

The requests stand in deadline order, the waiting ones first and behind them the next expected arrivals. Members of a
batch finish together, so a batch is on time when it finishes by its earliest deadline.

*Plan*, for uniform time limits, is an exact dynamic program. With deadlines in the order of arrival an exchange
argument shows that some best schedule serves contiguous runs and drops only requests in front of a run (Baptiste,
"Batching identical jobs", Mathematical Methods of Operations Research 52, 2000). With ``T[m, i]`` the earliest
instant at which the first ``i`` requests are handled, ``m`` of them dropped::

    T[m, i] = min( T[m-1, i-1],                                          request i-1 is dropped
                   min over b of max(T[m, i-b], release[i-1]) + t(b) )   a batch of b, if that is by deadline[i-b]

The smallest ``m`` with a finite ``T[m, n]`` drops fewest, its value is the earliest finish, and its first batch is
read off backwards. Where that batch would wait for expected arrivals, those of it that are there go now: a worker
never idles while something waits, and an expectation is no request. O(n · cap · (m + 1)), bounded by ``max_drops``;
beyond that many there is no plan, and heads are dropped as below.

*Drop heads* passes over the requests that would be late in the largest batch there is: Nexus's early drop (Shen et
al., SOSP 2019). Under sustained overload it is as good as the plan and costs O(n).

*Roll*, for mixed time limits, plays each candidate for the first batch forward over the expected arrivals by a simple
policy, drop heads or the largest batch that is on time for the head, and takes the candidate that answers most.
Deadline order is not optimal there and neither is this: it is a heuristic, measured in ``benchmarks``.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["MAX_DROPS", "MAX_PLANNED", "choose", "drop_heads", "plan", "roll", "warm_up"]

FAR_NS = 2**62
MAX_PLANNED = 512
"""More requests than these, waiting and expected, are not planned for: heads are dropped instead."""
MAX_DROPS = 16

_Array = NDArray[np.int64]


@njit(nogil=True)
def plan(
    now_ns: int, deadlines: _Array, releases: _Array, waiting: int, durations: _Array, max_drops: int, table: _Array
) -> tuple[int, int]:
    """The first batch of a schedule that has most requests on time, ties to the earliest finish.

    Args:
        now_ns: the present instant.
        deadlines: shape (n,), ascending.
        releases: shape (n,), ascending; ``now_ns`` for those that wait.
        waiting: how many wait, the first of the n.
        durations: shape (cap + 1,), nanoseconds of a batch by its size, nondecreasing.
        max_drops: give up beyond this many dropped.
        table: scratch, at least (max_drops + 1, n + 1).

    Returns:
        How many requests to pass over and how many to send behind them; (-1, 0): no plan.
    """
    n = deadlines.size
    cap = durations.size - 1
    falling = durations[::-1].copy()
    for m in range(max_drops + 1):
        row = table[m]
        for i in range(m + 1):
            row[i] = FAR_NS
        for i in range(m + 1, n + 1):
            best = FAR_NS
            if m > 0:
                best = table[m - 1, i - 1]
            size = i - m
            if size <= cap:
                finish = max(now_ns, releases[i - 1]) + durations[size]
                if finish <= deadlines[m] and finish < best:
                    best = finish
            low = max(i - cap, m + 1)
            row[i] = min(best, _earliest(row[low:i], deadlines[low:i], falling[cap - i + low : cap], releases[i - 1]))
        if row[n] < FAR_NS:
            return _first_batch(now_ns, deadlines, releases, waiting, durations, table, m)
    return -1, 0


@njit(nogil=True)
def _earliest(finishes: _Array, deadlines: _Array, durations: _Array, release_ns: int) -> int:
    """The innermost loop, alone and without branches, so that it is compiled to vector instructions."""
    best = FAR_NS
    for k in range(finishes.size):
        start = finishes[k]
        start = start if start > release_ns else release_ns  # noqa: FURB136 - max() would keep it from that
        finish = start + durations[k]
        finish = finish if finish <= deadlines[k] else FAR_NS
        best = finish if finish < best else best  # noqa: FURB136
    return best


@njit(nogil=True)
def _first_batch(
    now_ns: int, deadlines: _Array, releases: _Array, waiting: int, durations: _Array, table: _Array, drops: int
) -> tuple[int, int]:
    """Follows the minima of the table back to the batch that starts now."""
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
        first = size <= cap and max(now_ns, releases[i - 1]) + durations[size] == value and value <= deadlines[m]
        # of equally good plans the one with the largest first batch: what is sent now is certain, the rest expected
        for j in range(i - 1, max(i - cap, m + 1) - 1, -1):
            finish = max(table[m, j], releases[i - 1]) + durations[i - j]
            if finish == value and finish <= deadlines[j]:
                i = j
                first = False
                break
        if first:
            return (m, min(size, waiting - m)) if m < waiting else (-1, 0)


@njit(nogil=True)
def drop_heads(now_ns: int, deadlines: _Array, waiting: int, durations: _Array) -> tuple[int, int]:
    """The largest batch there is behind the requests that would be late in it.

    Returns:
        How many requests to pass over and how many to send; (waiting, 0) where even a batch of one is late.
    """
    cap = durations.size - 1
    for head in range(waiting):
        size = min(waiting - head, cap)
        if now_ns + durations[size] <= deadlines[head]:
            return head, size
    return waiting, 0


@njit(nogil=True)
def largest_for(now_ns: int, deadline_ns: int, durations: _Array, available: int) -> int:
    """The largest batch, at least 1, that finishes by a deadline."""
    size = min(available, durations.size - 1)
    while size > 1 and now_ns + durations[size] > deadline_ns:
        size -= 1
    return size


@njit(nogil=True)
def roll(
    now_ns: int,
    deadlines: _Array,
    releases: _Array,
    head: int,
    size: int,
    durations: _Array,
    dropping: bool,
    done: NDArray[np.bool_],
) -> tuple[int, int]:
    """Plays the present forward after a first batch.

    Args:
        now_ns: the present instant.
        deadlines: shape (n,): those that wait, ascending, then the expected ones, ascending.
        releases: shape (n,).
        head: position of the batch's first request.
        size: how many the batch takes.
        durations: shape (cap + 1,).
        dropping: go on by dropping heads, else by the largest batch for the head.
        done: scratch, shape (n,).

    Returns:
        How many of the n are on time, and when the last batch ends.
    """
    n = deadlines.size
    for i in range(n):
        done[i] = False
    time_ns = now_ns + durations[size]
    on_time = 0
    for i in range(head, head + size):
        done[i] = True
        if time_ns <= deadlines[i]:
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
        time_ns += durations[sent]
        on_time += sent


@njit(nogil=True)
def choose(
    now_ns: int,
    deadlines: _Array,
    durations: _Array,
    slacks: _Array,
    gap_ns: float,
    uniform: bool,
    max_drops: int,
) -> tuple[int, int]:
    """The next batch of one free worker.

    Args:
        now_ns: the present instant.
        deadlines: shape (waiting,), ascending, none nearer than a batch of one takes.
        durations: shape (cap + 1,), nanoseconds of a batch by its size, nondecreasing.
        slacks: shape (k,), time limits of recent requests in nanoseconds: those of the expected arrivals.
        gap_ns: expected time between arrivals; infinite: none are expected.
        uniform: all time limits are about equal.
        max_drops: see :func:`plan`.

    Returns:
        How many requests to pass over and how many to send behind them, at least one.
    """
    waiting = deadlines.size
    cap = durations.size - 1
    drop_head, drop_size = drop_heads(now_ns, deadlines, waiting, durations)
    if waiting > MAX_PLANNED // 2:
        return drop_head, drop_size
    expected = 0
    if gap_ns < FAR_NS:
        expected = min(2 * cap, MAX_PLANNED - waiting)
    n = waiting + expected
    ends = np.empty(n, np.int64)
    releases = np.empty(n, np.int64)
    for i in range(waiting):
        ends[i] = deadlines[i]
        releases[i] = now_ns
    for k in range(expected):
        release = now_ns + int((k + 1) * gap_ns)
        end = release + slacks[k % slacks.size]
        i = waiting + k
        while i > waiting and ends[i - 1] > end:
            ends[i] = ends[i - 1]
            releases[i] = releases[i - 1]
            i -= 1
        ends[i] = end
        releases[i] = release
    if uniform:
        # behind a request whose limit is a little longer the next one's may end a little earlier
        for i in range(waiting, n):
            ends[i] = max(ends[i], ends[i - 1])
            releases[i] = max(releases[i], releases[i - 1])
        table = np.empty((max_drops + 1, n + 1), np.int64)
        head, size = plan(now_ns, ends, releases, waiting, durations, max_drops, table)
        if size > 0:
            return head, size
        return drop_head, drop_size
    overloaded = durations[cap] > gap_ns * cap
    done = np.empty(n, np.bool_)
    best_on_time = -1
    best_end = FAR_NS
    best_head = drop_head
    best_size = drop_size
    last_size = 0
    for head in range(drop_head + 1):
        size = largest_for(now_ns, deadlines[head], durations, waiting - head)
        if 0 < head < drop_head and size <= last_size:
            continue
        last_size = size
        for dropping in (False, True):
            if overloaded and not dropping:
                continue
            on_time, end = roll(now_ns, ends, releases, head, size, durations, dropping, done)
            if on_time > best_on_time or (on_time == best_on_time and end < best_end):
                best_on_time, best_end, best_head, best_size = on_time, end, head, size
    return best_head, best_size


def warm_up() -> None:
    """Compiles :func:`choose` and what it calls, for both kinds of time limits."""
    deadlines = np.array([30, 30], np.int64)
    durations = np.array([0, 10, 25], np.int64)
    choose(0, deadlines, durations, deadlines, 5.0, True, MAX_DROPS)
    choose(0, deadlines, durations, deadlines, 5.0, False, MAX_DROPS)

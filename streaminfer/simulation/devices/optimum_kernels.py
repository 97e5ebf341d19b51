"""The dynamic program of the joint clairvoyant optimum; ``optimum`` explains it.

For each pair of prefixes the kernel stores the *front*: for every number of served requests that matters, the earliest
instant at which the device can be free again. If the memory has room for one model only, there is a front for each
model that may be in it. Rows of fronts are reused when no batch of the first model can reach back to them.

Importing this module imports Numba.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.loading.numba_jit import jit

__all__ = ["EXPORTS", "most_of_two"]

_FAR_NS = 2**62
_NO_LIMIT_NS = 2**63 - 1

_Array = NDArray[np.int64]


@jit
def _windows(
    arrivals: _Array, deadlines: _Array, others: _Array, others_deadlines: _Array, loads_ns: int
) -> tuple[_Array, _Array, int]:
    """Return, for each prefix of one model, the shortest and the longest prefix of the other that matter.

    The third value bounds the entries of a front: those after its first differ by requests that are still in time. In a
    schedule for its last entry, the part that ended before the loads of both models leads to its first entry.
    """
    n = arrivals.size
    lows = np.empty(n + 1, np.int64)
    highs = np.empty(n + 1, np.int64)
    low = high = 0
    widest = 1
    for i in range(n + 1):
        while i > 0 and low < others.size and others_deadlines[low] < arrivals[i - 1]:
            low += 1
        while high < others.size and (i == n or others[high] <= deadlines[i]):
            high += 1
        lows[i] = low
        highs[i] = max(low, high)
        for j in range(lows[i], highs[i] + 1):
            next_ns = _next_arrival(i, j, arrivals, others) - loads_ns
            entries = max(i - int(np.searchsorted(deadlines, next_ns)), 0)
            entries += max(j - int(np.searchsorted(others_deadlines, next_ns)), 0)
            widest = max(widest, entries + 1)
    return lows, highs, widest


@jit
def _next_arrival(i: int, j: int, first: _Array, second: _Array) -> int:
    """Return when the first request arrives that is in neither prefix."""
    next_ns = first[i] if i < first.size else _FAR_NS
    return min(next_ns, second[j]) if j < second.size else next_ns


class _Fronts(NamedTuple):
    """Fronts by position: their instants, the number of requests served in the first entry, and of entries."""

    ends_ns: _Array
    fewest: _Array
    entries: _Array


@jit
def _extend(
    front: _Array,
    served: int,
    base: int,
    fronts: _Fronts,
    at: Any,
    size: int,
    setup_ns: int,
    start_ns: Any,
    takes_ns: int,
) -> int:
    """Add to a front the entries that follow from another front by a batch, or by a drop, which takes no time.

    Args:
        front: the front.
        served: number of its entries.
        base: number of requests served in its first entry.
        fronts: fronts.
        at: position of the other one.
        size: number of requests in the batch; 0: it is a drop.
        setup_ns: nanoseconds before the batch, for a load.
        start_ns: the first and the last instant at which the batch may start.
        takes_ns: duration of the batch.

    Returns:
        The new number of entries of the front.
    """
    source, shift = fronts.ends_ns[at], fronts.fewest[at] + size - base
    ready_ns, start_by_ns = start_ns
    begin = max(0, -shift)
    end = begin
    while end < fronts.entries[at] and source[end] + setup_ns <= start_by_ns:
        end += 1
    target = front[begin + shift : end + shift]
    origin = source[begin:end]
    for entry in range(end - begin):
        target[entry] = min(target[entry], max(origin[entry] + setup_ns, ready_ns) + takes_ns)
    return max(served, end + shift) if end > begin else served


@jit
def most_of_two(  # noqa: PLR0915 - the steps of one program, which share its tables
    first: _Array,
    first_deadlines: _Array,
    first_durations: _Array,
    second: _Array,
    second_deadlines: _Array,
    second_durations: _Array,
    first_load_ns: int,
    second_load_ns: int,
) -> int:
    """Return the most requests of two models that one device can serve on time in total.

    Args:
        first: arrivals of one model, shape (n,), ascending, ≥ 0.
        first_deadlines: shape (n,), ascending.
        first_durations: shape (cap + 1,), nanoseconds of a batch by its size, nondecreasing.
        second: arrivals of the other model.
        second_deadlines: deadlines of the other model.
        second_durations: durations of the other model.
        first_load_ns: nanoseconds to load the first model, if the memory has room for one; 0 for both models if it has
            room for both.
        second_load_ns: nanoseconds to load the other model.

    Returns:
        The number of requests.
    """
    cap, other_cap = first_durations.size - 1, second_durations.size - 1
    loads_ns = (first_load_ns, second_load_ns)
    both_ns = first_load_ns + second_load_ns
    states = 2 if both_ns > 0 else 1  # which model is in memory
    # after pruning, fronts have up to `width` entries, and before that those of one batch more
    lows, highs, width = _windows(first, first_deadlines, second, second_deadlines, both_ns)
    rows = cap + 1
    columns = (highs - lows).max() + 1
    fewest = np.zeros((rows, columns, states), np.int64)
    entries = np.zeros((rows, columns, states), np.int64)
    fronts = _Fronts(np.full((rows, columns, states, width), _FAR_NS, np.int64), fewest, entries)
    new = np.full((states, 4 * width + cap + other_cap + 2), _FAR_NS, np.int64)
    used = 0  # number of their entries that the previous pair has written
    bases = np.zeros(states, np.int64)
    counts = np.zeros(states, np.int64)
    any_time_ns = (0, _FAR_NS)
    for i in range(first.size + 1):
        row = i % rows
        for j in range(lows[i], highs[i] + 1):
            column = j - lows[i]
            from_above = i > 0 and lows[i - 1] <= j <= highs[i - 1]
            before, above = (i - 1) % rows, j - lows[i - 1]
            new[:, :used] = _FAR_NS
            used = 0
            for state in range(states):
                front = new[state]
                base, served = 0, int(i == 0 and j == 0)
                if served > 0:
                    front[0] = loads_ns[state]
                if from_above:  # the newest request of the first model is dropped
                    base = fewest[before, above, state]
                if column > 0:
                    base = max(base, fewest[row, column - 1, state])
                if from_above:
                    served = _extend(front, served, base, fronts, (before, above, state), 0, 0, any_time_ns, 0)
                if column > 0:
                    served = _extend(front, served, base, fronts, (row, column - 1, state), 0, 0, any_time_ns, 0)
                for size in range(1, min(cap, i) + 1):
                    takes_ns = first_durations[size]
                    start_ns = (first[i - 1], first_deadlines[i - size] - takes_ns)
                    if state == 1 or start_ns[1] < start_ns[0]:
                        break  # a larger batch takes longer and has an earlier deadline
                    if lows[i - size] <= j <= highs[i - size]:
                        for loaded in range(states):
                            at = ((i - size) % rows, j - lows[i - size], loaded)
                            setup_ns = first_load_ns * loaded
                            served = _extend(front, served, base, fronts, at, size, setup_ns, start_ns, takes_ns)
                for size in range(1, min(other_cap, column) + 1):
                    takes_ns = second_durations[size]
                    start_ns = (second[j - 1], second_deadlines[j - size] - takes_ns)
                    if state < states - 1 or start_ns[1] < start_ns[0]:
                        break
                    for loaded in range(states):
                        at = (row, column - size, loaded)
                        setup_ns = second_load_ns * (states - 1 - loaded)
                        served = _extend(front, served, base, fronts, at, size, setup_ns, start_ns, takes_ns)
                bases[state], counts[state] = base, served
            next_ns = _next_arrival(i, j, first, second)
            for state in range(states):
                front, served, base = new[state], counts[state], bases[state]
                if states > 1:  # a load for the next batch; a second load back would only take longer
                    others = _Fronts(new, bases, counts)
                    served = _extend(front, served, base, others, 1 - state, 0, loads_ns[state], (0, _NO_LIMIT_NS), 0)
                used = max(used, served)
                # serving more and being free no later is better, so the remaining entries ascend in both
                for entry in range(served - 2, -1, -1):
                    front[entry] = min(front[entry], front[entry + 1])
                # every later batch starts after the next arrival: among the entries that are free by then, and before a
                # load, only the one that served most matters
                free_by_ns = next_ns - (loads_ns[1 - state] if states > 1 else 0)
                passed = 0
                while passed + 1 < served and front[passed + 1] <= free_by_ns:
                    passed += 1
                for entry in range(served - passed):
                    fronts.ends_ns[row, column, state, entry] = front[passed + entry]
                fewest[row, column, state] = base + passed
                entries[row, column, state] = served - passed
    row, column = first.size % rows, second.size - lows[first.size]
    return int((fewest[row, column] + entries[row, column]).max() - 1)


_READ = "Array(int64, 1, 'C', readonly=True)"

EXPORTS = {"most_of_two": (most_of_two, f"int64({_READ}, {_READ}, {_READ}, {_READ}, {_READ}, {_READ}, int64, int64)")}
"""The kernel, as in :data:`streaminfer.batching.planner.kernels.EXPORTS`."""

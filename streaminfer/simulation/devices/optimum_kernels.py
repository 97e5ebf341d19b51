"""The dynamic program of the joint clairvoyant optimum; the reasons are in ``optimum``.

For each pair of prefixes the kernel keeps the *front*: for every number served that matters, the earliest instant at
which the device can be free again. Rows of fronts are reused once no batch of the first model can reach back to them.

Importing this module imports Numba.
"""

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.numba_jit import jit

__all__ = ["EXPORTS", "most_of_two"]

_FAR_NS = 2**62

_Array = NDArray[np.int64]


@jit
def _windows(arrivals: _Array, deadlines: _Array, others: _Array, others_deadlines: _Array) -> tuple[_Array, _Array]:
    """For each prefix of one model, the shortest and the longest prefix of the other that matter."""
    n = arrivals.size
    lows = np.empty(n + 1, np.int64)
    highs = np.empty(n + 1, np.int64)
    low = high = 0
    for i in range(n + 1):
        while i > 0 and low < others.size and others_deadlines[low] < arrivals[i - 1]:
            low += 1
        while high < others.size and (i == n or others[high] <= deadlines[i]):
            high += 1
        lows[i] = low
        highs[i] = max(low, high)
    return lows, highs


@jit
def _next_arrival(i: int, j: int, first: _Array, second: _Array) -> int:
    """When the first request arrives that neither prefix has."""
    next_ns = first[i] if i < first.size else _FAR_NS
    return min(next_ns, second[j]) if j < second.size else next_ns


@jit
def _width(
    first: _Array, first_deadlines: _Array, second: _Array, second_deadlines: _Array, lows: _Array, highs: _Array
) -> int:
    """A bound on the entries of a front: those behind its first differ by requests that are still in time."""
    widest = 1
    for i in range(first.size + 1):
        for j in range(lows[i], highs[i] + 1):
            next_ns = _next_arrival(i, j, first, second)
            entries = max(i - int(np.searchsorted(first_deadlines, next_ns)), 0)
            entries += max(j - int(np.searchsorted(second_deadlines, next_ns)), 0)
            widest = max(widest, entries + 1)
    return widest


@jit
def _extend(
    front: _Array, served: int, source: _Array, entries: int, shift: int, ready_ns: int, start_by_ns: int, takes_ns: int
) -> int:
    """Add to a front what follows from another one by a batch, or by a drop that takes nothing.

    Returns:
        The entries of the front by then.
    """
    for entry in range(max(0, -shift), entries):
        start_ns = source[entry]
        if start_ns > start_by_ns:
            break
        end_ns = max(start_ns, ready_ns) + takes_ns
        at = entry + shift
        front[at] = min(front[at], end_ns)
        served = max(served, at + 1)
    return served


@jit
def most_of_two(
    first: _Array,
    first_deadlines: _Array,
    first_durations: _Array,
    second: _Array,
    second_deadlines: _Array,
    second_durations: _Array,
) -> int:
    """Most requests of two models that one device can serve on time, in all.

    Args:
        first: arrivals of one model, shape (n,), ascending, ≥ 0.
        first_deadlines: shape (n,), ascending.
        first_durations: shape (cap + 1,), nanoseconds of a batch by its size, nondecreasing.
        second: of the other model.
        second_deadlines: of the other model.
        second_durations: of the other model.

    Returns:
        How many.
    """
    cap, other_cap = first_durations.size - 1, second_durations.size - 1
    lows, highs = _windows(first, first_deadlines, second, second_deadlines)
    # fronts hold up to `width` entries once pruned, and before that one batch more
    width = _width(first, first_deadlines, second, second_deadlines, lows, highs)
    rows = cap + 1
    columns = (highs - lows).max() + 1
    fronts = np.full((rows, columns, width), _FAR_NS, np.int64)
    fewest = np.zeros((rows, columns), np.int64)  # the number served that a front's first entry stands for
    entries = np.zeros((rows, columns), np.int64)
    front = np.empty(2 * width + cap + other_cap + 2, np.int64)
    for i in range(first.size + 1):
        row = i % rows
        for j in range(lows[i], highs[i] + 1):
            column = j - lows[i]
            front[:] = _FAR_NS
            base, served = 0, int(i == 0 and j == 0)
            front[0] = _FAR_NS * (1 - served)
            from_above = i > 0 and lows[i - 1] <= j <= highs[i - 1]
            if from_above:  # the newest request of the first model is dropped
                base = fewest[(i - 1) % rows, j - lows[i - 1]]
            if column > 0:
                base = max(base, fewest[row, column - 1])
            if from_above:
                above = j - lows[i - 1]
                before = (i - 1) % rows
                shift = fewest[before, above] - base
                served = _extend(front, served, fronts[before, above], entries[before, above], shift, 0, _FAR_NS, 0)
            if column > 0:
                shift = fewest[row, column - 1] - base
                served = _extend(front, served, fronts[row, column - 1], entries[row, column - 1], shift, 0, _FAR_NS, 0)
            for size in range(1, min(cap, i) + 1):
                start_by_ns = first_deadlines[i - size] - first_durations[size]
                if start_by_ns < first[i - 1]:
                    break  # a larger batch takes longer and has an earlier deadline
                source = (i - size) % rows
                at = j - lows[i - size]
                if 0 <= at <= highs[i - size] - lows[i - size]:
                    shift = fewest[source, at] + size - base
                    served = _extend(
                        front,
                        served,
                        fronts[source, at],
                        entries[source, at],
                        shift,
                        first[i - 1],
                        start_by_ns,
                        first_durations[size],
                    )
            for size in range(1, min(other_cap, column) + 1):
                start_by_ns = second_deadlines[j - size] - second_durations[size]
                if start_by_ns < second[j - 1]:
                    break
                shift = fewest[row, column - size] + size - base
                served = _extend(
                    front,
                    served,
                    fronts[row, column - size],
                    entries[row, column - size],
                    shift,
                    second[j - 1],
                    start_by_ns,
                    second_durations[size],
                )
            # serving more and being free no later is better: what remains ascends in both
            for entry in range(served - 2, -1, -1):
                front[entry] = min(front[entry], front[entry + 1])
            # every later batch starts after the next arrival: of all that are free by then, the one that served most
            next_ns = _next_arrival(i, j, first, second)
            passed = 0
            while passed + 1 < served and front[passed + 1] <= next_ns:
                passed += 1
            fronts[row, column, : served - passed] = front[passed:served]
            fewest[row, column] = base + passed
            entries[row, column] = served - passed
    row, column = first.size % rows, second.size - lows[first.size]
    return int(fewest[row, column] + entries[row, column] - 1)


_READ = "Array(int64, 1, 'C', readonly=True)"

EXPORTS = {"most_of_two": (most_of_two, f"int64({_READ}, {_READ}, {_READ}, {_READ}, {_READ}, {_READ})")}
"""The kernel, as in :data:`streaminfer.batching.planner.kernels.EXPORTS`."""

"""The dynamic program of the clairvoyant optimum, without the interpreter lock; the reasons stand in ``optimum``.

For each prefix of the requests the kernel keeps the *front*: for every number served that matters, the earliest
instant at which the server can be free again. The front of a prefix is a row of an array; rows are reused once no
batch can reach back to them, which is one row more than a batch can hold.

Complexity: O(n · B · W) time and O(B · W) memory for n requests, batches of B and fronts of W entries; see ``optimum``
for W. For 2,500 requests, 32 a batch and an SLO of 50 ms: 1 ms at half the
capacity, 4 ms at ten times.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer import _compiled_kernels

__all__ = ["EXPORTS", "most_on_time", "most_on_time_numpy", "warm_up"]

_UNREACHED_NS = 2**63 - 1

Instants = NDArray[np.int64]


def most_on_time(
    arrivals_ns: Instants, deadlines_ns: Instants, durations_ns: Instants, max_batch_size: int, width: int
) -> int:
    """Most requests that one worker can serve on time; loads the kernel, see :func:`warm_up`.

    Args:
        arrivals_ns: shape (n,), int64, ascending, ≥ 0, C-contiguous.
        deadlines_ns: shape (n,), int64, ascending, C-contiguous.
        durations_ns: shape (max_batch_size + 1,), int64, C-contiguous: of a batch by its size, nondecreasing.
        max_batch_size: the most requests in a batch.
        width: a bound on the entries of a front. The numbers served that a front tells apart differ by requests that
            are served after the newest arrival: at most those whose deadline has not passed by then.

    Returns:
        How many.
    """
    return int(_compiled()(arrivals_ns, deadlines_ns, durations_ns, max_batch_size, width))


def warm_up() -> None:
    """Load the kernel: the one compiled ahead of time, or else Numba's, which compiles for about a second.

    Numba keeps what it compiled on disk; a process that finds it there loads it.
    """
    _compiled()


def most_on_time_numpy(
    arrivals_ns: Instants, deadlines_ns: Instants, durations_ns: Instants, max_batch_size: int
) -> int:
    """The plain twin of :func:`most_on_time`, which tests hold the kernel against; it prunes nothing.

    Its front is whole: entry k is the earliest finish having served k of the prefix, unreached where that cannot be.
    """
    n = arrivals_ns.size
    fronts = np.full((n + 1, n + 1), _UNREACHED_NS, np.int64)
    fronts[0, 0] = 0
    for last in range(1, n + 1):
        fronts[last] = fronts[last - 1]
        ready_ns = arrivals_ns[last - 1]
        for size in range(1, min(max_batch_size, last) + 1):
            starts = np.maximum(fronts[last - size, : n + 1 - size], ready_ns)
            fits = starts <= deadlines_ns[last - size] - durations_ns[size]
            ends = np.where(fits, starts + np.where(fits, durations_ns[size], 0), _UNREACHED_NS)
            np.minimum(fronts[last, size:], ends, out=fronts[last, size:])
    return int(np.flatnonzero(fronts[n] < _UNREACHED_NS)[-1])


@cache
def _compiled() -> Callable[..., Any]:
    compiled = _compiled_kernels.load()
    return _compiled_by_numba() if compiled is None else compiled.checked("most_on_time")


@cache
def _compiled_by_numba() -> Callable[..., Any]:
    from streaminfer._internal.loading.numba_jit import compile_exports, jit  # noqa: PLC0415 - imports Numba

    kernel = jit(_most)
    compile_exports({"most_on_time": (kernel, EXPORTS["most_on_time"][1])})
    return kernel


def _most(
    arrivals_ns: Instants, deadlines_ns: Instants, durations_ns: Instants, max_batch_size: int, width: int
) -> int:
    n = arrivals_ns.size
    rows = max_batch_size + 1
    finish = np.empty((rows, width), np.int64)
    fewest = np.zeros(rows, np.int64)  # the number served that a row's first entry stands for
    entries = np.ones(rows, np.int64)
    finish[0, 0] = 0
    for last in range(1, n + 1):
        here = last % rows
        before = (last - 1) % rows
        base = fewest[before]
        count = entries[before]
        finish[here] = _UNREACHED_NS
        for entry in range(count):
            finish[here, entry] = finish[before, entry]  # the newest request is dropped
        ready_ns = arrivals_ns[last - 1]
        for size in range(1, min(max_batch_size, last) + 1):
            duration_ns = durations_ns[size]
            start_by_ns = deadlines_ns[last - size] - duration_ns
            if start_by_ns < ready_ns:
                break  # a larger batch takes longer and has an earlier deadline
            source = (last - size) % rows
            shift = fewest[source] + size - base
            for entry in range(max(0, -shift), entries[source]):
                start_ns = finish[source, entry]
                if start_ns > start_by_ns:
                    break
                start_ns = max(start_ns, ready_ns)
                served = entry + shift
                count = max(count, served + 1)
                finish[here, served] = min(finish[here, served], start_ns + duration_ns)
        # serving more and being free no later is better: what remains ascends in both
        for entry in range(count - 2, -1, -1):
            finish[here, entry] = min(finish[here, entry], finish[here, entry + 1])
        # every later batch starts after the next arrival: of all that are free by then, the one that served most
        passed = 0
        if last < n:
            while passed + 1 < count and finish[here, passed + 1] <= arrivals_ns[last]:
                passed += 1
            for entry in range(passed, count):
                finish[here, entry - passed] = finish[here, entry]
        fewest[here] = base + passed
        entries[here] = count - passed
    return int(fewest[n % rows] + entries[n % rows] - 1)


_INSTANTS = "Array(int64, 1, 'C', readonly=True)"

EXPORTS = {"most_on_time": (_most, f"int64({_INSTANTS}, {_INSTANTS}, {_INSTANTS}, int64, int64)")}
"""The kernel, as in :data:`streaminfer.batching.planner.kernels.EXPORTS`."""

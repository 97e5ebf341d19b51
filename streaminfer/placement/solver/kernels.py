"""Kernels of placement, without the interpreter lock: delays of a greedy batcher, and the flow of demand to replicas.

*Delays.* Whenever it is free, one worker takes the queued requests, at most a full batch. One pass over the arrivals.

*Flow.* Shortest augmenting paths on the bipartite network source → clusters → pools → sink, stored as a dense matrix:
one cluster after another. Nodes that a search without success has reached take part in no later search, because no path
leaves them. The kernel extends an existing flow, so a repair starts from the flow of the plan. The nodes that searches
without success reach form a minimum cut; only its pools can serve its clusters.

Complexity: O(n) delays; O(paths · clusters · pools) for the flow, mostly much less.
Reference: J. Edmonds, R. M. Karp, "Theoretical improvements in algorithmic efficiency for network flow problems", 1972.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer import _compiled_kernels

__all__ = ["EXPORTS", "batch_delays", "extend_flow", "warm_up"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def batch_delays(arrivals_s: Floats, durations_s: Floats) -> Floats:
    """Return the delay of each request from its arrival to the end of its batch, with one worker.

    Args:
        arrivals_s: shape (n,), ascending.
        durations_s: shape (max_batch_size + 1,), seconds of a batch by its size; entry 0 is not read.
    """
    delays_s = np.empty_like(arrivals_s)
    _compiled("placement_batch_delays")(arrivals_s, durations_s, delays_s)
    return delays_s


def extend_flow(limits: Ints, demand: Ints, capacity: Ints, flow: Ints) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Extend a flow of demand to a largest one.

    Args:
        limits: shape (clusters, pools), the most that may flow from each cluster to each pool.
        demand: shape (clusters,).
        capacity: shape (pools,).
        flow: shape (clusters, pools), a flow that fits all three; increased in place.

    Returns:
        The clusters and the pools that unserved demand reaches; none where all demand is served.
    """
    clusters, pools = limits.shape
    reached = np.zeros(clusters + pools, np.int64)
    _compiled("placement_extend_flow")(limits, demand, capacity, flow, reached)
    return reached[:clusters] > 0, reached[clusters:] > 0


def warm_up() -> None:
    """Load the kernels: those compiled ahead of time, or else Numba's, which compiles for some seconds."""
    for name in EXPORTS:
        _compiled(name)


@cache
def _compiled(name: str) -> Callable[..., Any]:
    compiled = _compiled_kernels.load()
    return _compiled_by_numba()[name] if compiled is None else compiled.checked(name)


@cache
def _compiled_by_numba() -> dict[str, Callable[..., Any]]:
    from streaminfer._internal.loading.numba_jit import compile_exports, jit  # noqa: PLC0415 - imports Numba

    kernels: dict[str, Callable[..., Any]] = {name: jit(function) for name, (function, _) in EXPORTS.items()}
    compile_exports({name: (kernels[name], signature) for name, (_, signature) in EXPORTS.items()})
    return kernels


def _delays(arrivals_s: Floats, durations_s: Floats, delays_s: Floats) -> int:
    n = arrivals_s.size
    largest = durations_s.size - 1
    first = 0
    free_s = 0.0
    batches = 0
    while first < n:
        start_s = max(free_s, arrivals_s[first])
        end = first + 1
        while end < n and end - first < largest and arrivals_s[end] <= start_s:
            end += 1
        free_s = start_s + durations_s[end - first]
        for request in range(first, end):
            delays_s[request] = free_s - arrivals_s[request]
        first = end
        batches += 1
    return batches


def _extend(limits: Ints, demand: Ints, capacity: Ints, flow: Ints, reached: Ints) -> int:
    clusters, pools = limits.shape
    spare = capacity - flow.sum(axis=0)
    before = np.empty(clusters + pools, np.int64)  # the node before each on its path; a pool p is the node clusters + p
    amount = np.empty(clusters + pools, np.int64)  # the most that can flow along the path to each
    queue = np.empty(clusters + pools, np.int64)
    paths = 0
    for root in range(clusters):
        unserved = demand[root] - flow[root].sum()
        while unserved > 0 and not reached[root]:
            before[:] = -1
            before[root] = queue[0] = root
            amount[root] = unserved
            count = 1
            at = 0
            last = -1
            while at < count and last < 0:
                node = queue[at]
                at += 1
                if node < clusters:
                    for pool in range(pools):
                        place = clusters + pool
                        if before[place] < 0 and not reached[place] and limits[node, pool] > flow[node, pool]:
                            before[place] = node
                            amount[place] = min(amount[node], limits[node, pool] - flow[node, pool])
                            queue[count] = place
                            count += 1
                            if spare[pool] > 0:
                                last = place
                                break
                else:
                    for cluster in range(clusters):
                        if before[cluster] < 0 and not reached[cluster] and flow[cluster, node - clusters] > 0:
                            before[cluster] = node
                            amount[cluster] = min(amount[node], flow[cluster, node - clusters])
                            queue[count] = cluster
                            count += 1
            if last < 0:
                reached[queue[:count]] = 1
                break
            added = min(amount[last], spare[last - clusters])
            unserved -= added
            spare[last - clusters] -= added
            while last != root:
                node = before[last]
                cluster, pool = min(node, last), max(node, last) - clusters
                flow[cluster, pool] += added if node < clusters else -added
                last = node
            paths += 1
    return paths


_TIMES = "Array(float64, 1, 'C', readonly=True)"
_LIST = "Array(int64, 1, 'C', readonly=True)"
_TABLE = "Array(int64, 2, 'C', readonly=True)"

EXPORTS: dict[str, tuple[Callable[..., Any], str]] = {
    "placement_batch_delays": (
        _delays,
        f"int64({_TIMES}, {_TIMES}, float64[::1])",
    ),
    "placement_extend_flow": (
        _extend,
        f"int64({_TABLE}, {_LIST}, {_LIST}, int64[:, ::1], int64[::1])",
    ),
}
"""The kernels: the name under which each is compiled ahead of time, the function and its signature."""

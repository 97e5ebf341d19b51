"""Kernels of placement, without the interpreter lock: delays of a greedy batcher, and the flow of demand to replicas.

*Delays.* Whenever it is free, one worker takes the queued requests, at most a full batch. One pass over the arrivals.

*Flow.* Dinic's algorithm on the bipartite network source → clusters → pools → sink, stored as a dense matrix: with 500
clusters and some hundred pools, a search costs 0.1 ms, and a handful of phases suffice. The kernel extends an existing
flow, so a repair starts from the flow of the plan. The nodes that the last search reaches from clusters with unserved
demand form a minimum cut; only its pools can serve its clusters.

Complexity: O(n) delays; O(phases · clusters · pools) in practice for the flow.
Reference: E. A. Dinic, "Algorithm for solution of a problem of maximum flow in networks with power estimation" (1970).
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


def _extend(limits: Ints, demand: Ints, capacity: Ints, flow: Ints, reached: Ints) -> int:  # noqa: PLR0915 - one loop
    clusters, pools = limits.shape
    unserved = demand.copy()
    spare = capacity.copy()
    for cluster in range(clusters):
        for pool in range(pools):
            unserved[cluster] -= flow[cluster, pool]
            spare[pool] -= flow[cluster, pool]
    cluster_level = np.empty(clusters, np.int64)
    pool_level = np.empty(pools, np.int64)
    next_pool = np.empty(clusters, np.int64)
    next_cluster = np.empty(pools, np.int64)
    queue = np.empty(clusters + pools, np.int64)  # a pool p is clusters + p
    cluster_path = np.empty(clusters + 1, np.int64)
    pool_path = np.empty(clusters + 1, np.int64)
    phases = 0
    while True:
        phases += 1
        cluster_level[:] = -1
        pool_level[:] = -1
        next_pool[:] = 0
        next_cluster[:] = 0
        count = 0
        for cluster in range(clusters):
            if unserved[cluster] > 0:
                cluster_level[cluster] = 0
                queue[count] = cluster
                count += 1
        at = 0
        found = False
        while at < count:
            node = queue[at]
            at += 1
            if node < clusters:
                for pool in range(pools):
                    if pool_level[pool] < 0 and limits[node, pool] > flow[node, pool]:
                        pool_level[pool] = cluster_level[node] + 1
                        queue[count] = clusters + pool
                        count += 1
                        if spare[pool] > 0:
                            found = True
            elif not found:  # only the shortest paths are of interest
                pool = node - clusters
                for cluster in range(clusters):
                    if cluster_level[cluster] < 0 and flow[cluster, pool] > 0:
                        cluster_level[cluster] = pool_level[pool] + 1
                        queue[count] = cluster
                        count += 1
        if not found:
            for node in range(count):
                reached[queue[node]] = 1
            return phases
        for root in range(clusters):
            depth = 0
            cluster_path[0] = root
            while unserved[root] > 0:
                cluster = cluster_path[depth]
                pool = next_pool[cluster]
                while pool < pools and (
                    pool_level[pool] != cluster_level[cluster] + 1 or limits[cluster, pool] <= flow[cluster, pool]
                ):
                    pool += 1
                next_pool[cluster] = pool
                if pool == pools:
                    if depth == 0:
                        break
                    depth -= 1
                    next_cluster[pool_path[depth]] += 1
                    pool = pool_path[depth]
                pool_path[depth] = pool
                if spare[pool] > 0:
                    amount = min(unserved[root], spare[pool])
                    for step in range(depth + 1):
                        amount = min(
                            amount,
                            limits[cluster_path[step], pool_path[step]] - flow[cluster_path[step], pool_path[step]],
                        )
                        if step < depth:
                            amount = min(amount, flow[cluster_path[step + 1], pool_path[step]])
                    for step in range(depth + 1):
                        flow[cluster_path[step], pool_path[step]] += amount
                        if step < depth:
                            flow[cluster_path[step + 1], pool_path[step]] -= amount
                    unserved[root] -= amount
                    spare[pool] -= amount
                    depth = 0
                    continue
                following = next_cluster[pool]
                while following < clusters and (
                    cluster_level[following] != pool_level[pool] + 1 or flow[following, pool] <= 0
                ):
                    following += 1
                next_cluster[pool] = following
                if following == clusters:
                    next_pool[cluster_path[depth]] += 1
                else:
                    depth += 1
                    cluster_path[depth] = following


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

"""`Flows`: tests whether replicas can serve all demand in every state, by a maximum flow of demand to pools.

*Idea.* The cost of a plan depends only on its replicas. The replicas suffice if and only if, in every state, all demand
can flow to pools that keep its promise (Hall's condition for a transport problem). If it cannot, the minimum cut names
clusters with pools that are too small together. This gives an inequality that every plan must satisfy: Benders' cut,
here found by a flow in a millisecond instead of a linear program.

Amounts are whole numbers, with :data:`UNITS` for the largest total demand, so flows are exact. Unserved demand below
:data:`TOLERANCE` of the largest total demand is rounding.
"""

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer.placement.solver import kernels

__all__ = ["TOLERANCE", "Cut", "Flows"]

UNITS = 2**40
TOLERANCE = 1e-6

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@attrs.frozen(eq=False)
class Cut:
    """Clusters, and the pools that are too small for them.

    In every plan, the rate of ``pools`` plus the demand that can go elsewhere is at least the demand of ``clusters``.
    """

    state: int
    clusters: Bools
    pools: Bools


class Flows:
    """Flows of the demand of each state.

    Args:
        rates: shape (states, clusters), requests per second.
        allowed: shape (states, clusters, pools), whether a pool may serve a cluster; states may share arrays.
        pool_rates: shape (pools,), requests per second of a replica.
    """

    def __init__(self, rates: Floats, allowed: list[Bools], pool_rates: Floats) -> None:
        self.rates = rates
        self.allowed = allowed
        self.pool_rates = pool_rates
        self.unit = UNITS / max(float(rates.sum(axis=1).max(initial=0.0)), 1e-12)
        self._demand = np.ceil(rates * self.unit - 0.5).astype(np.int64)
        self._tolerance = int(TOLERANCE * UNITS)
        self._limits: dict[int, Ints] = {}

    def limits(self, state: int) -> Ints:
        """Return the most that can flow from each cluster to each pool, shape (clusters, pools)."""
        if state not in self._limits:
            self._limits[state] = np.where(self.allowed[state], self._demand[state][:, None], 0)
        return self._limits[state]

    def empty(self) -> Ints:
        """Return a flow of nothing."""
        return np.zeros(self.allowed[0].shape, np.int64)

    def capacity(self, counts: Floats) -> Ints:
        """Return the capacity of the replicas of each pool; a count may be a fraction in a relaxation."""
        return np.minimum(np.rint(counts * self.pool_rates * self.unit), 4.0 * UNITS).astype(np.int64)

    def extend(
        self, state: int, counts: Floats, flow: Ints, *, opened: Floats | None = None, pools: Bools | None = None
    ) -> tuple[Bools, Bools]:
        """Extend a flow of one state as far as possible.

        Args:
            state: index of the state.
            counts: shape (pools,), replicas.
            flow: increased in place.
            opened: shape (pools,), how far the sites of each pool are in use, 0 … 1; ``None``: all are.
            pools: pools to which the flow may be extended; ``None``: all.

        Returns:
            The clusters and pools that unserved demand reaches.
        """
        limits = self.limits(state)
        if opened is not None:
            limits = np.rint(limits * opened).astype(np.int64)
        if pools is not None:
            limits = np.where(pools, limits, flow)
        capacity = self.capacity(counts)
        nonempty = np.flatnonzero(capacity)  # few, and only these take part
        partial_flow = flow.take(nonempty, axis=1)
        clusters, reached = kernels.extend_flow(
            limits.take(nonempty, axis=1), self._demand[state], capacity[nonempty], partial_flow
        )
        flow[:, nonempty] = partial_flow
        reaches: Bools = np.asarray((limits[clusters] > 0).any(axis=0))
        reaches[nonempty] = reached
        return clusters, reaches

    def unserved(self, state: int, flow: Ints) -> Ints:
        """Return the demand that a flow leaves unserved, without rounding."""
        left = self._demand[state] - flow.sum(axis=1)
        return np.where(left > np.minimum(self._tolerance, self._demand[state] // 2), left, 0)

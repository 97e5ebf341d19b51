"""`Flows`: whether replicas can serve everybody in every state, by a largest flow of demand to pools.

*Idea.* What a plan costs depends on its replicas only. They suffice if and only if, in every state, all demand can
flow to the pools that keep its promise (Hall's condition for a transport problem). Where it cannot, the minimum cut
names clusters whose pools are too small together: an inequality that every plan must satisfy (Benders' cut, here
found by a flow in a millisecond instead of a linear program).

Amounts are whole numbers, :data:`UNITS` for the largest total demand, so flows are exact; what is left of a demand
below :data:`TOLERANCE` of it is rounding.
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

    Every plan has: rate of the pools in ``pools`` + the demand that could go elsewhere ≥ all demand of ``clusters``.
    """

    state: int
    clusters: Bools
    pools: Bools


class Flows:
    """Flows of the demand of each state.

    Args:
        rates: shape (states, clusters), requests per second.
        allowed: shape (states, clusters, pools): which pools may serve whom. Rows of one scenario may be shared.
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
        """Shape (clusters, pools): the most that can flow."""
        if state not in self._limits:
            self._limits[state] = np.where(self.allowed[state], self._demand[state][:, None], 0)
        return self._limits[state]

    def empty(self) -> Ints:
        """Return a flow of nothing."""
        return np.zeros(self.allowed[0].shape, np.int64)

    def capacity(self, counts: Floats) -> Ints:
        """What replicas can take; a count may be a fraction in a relaxation."""
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
            pools: only to these.

        Returns:
            The clusters and pools that unserved demand reaches.
        """
        limits = self.limits(state)
        if opened is not None:
            limits = np.rint(limits * opened).astype(np.int64)
        if pools is not None:
            limits = np.where(pools, limits, flow)
        capacity = self.capacity(counts)
        usable = np.flatnonzero(capacity)  # few, and only these take part
        inside = flow.take(usable, axis=1)
        clusters, reached = kernels.extend_flow(
            limits.take(usable, axis=1), self._demand[state], capacity[usable], inside
        )
        flow[:, usable] = inside
        reaches: Bools = np.asarray((limits[clusters] > 0).any(axis=0))
        reaches[usable] = reached
        return clusters, reaches

    def unserved(self, state: int, flow: Ints) -> Ints:
        """What a flow leaves of the demand; rounding is no demand."""
        left = self._demand[state] - flow.sum(axis=1)
        return np.where(left > np.minimum(self._tolerance, self._demand[state] // 2), left, 0)

    def violated(self, state: int, counts: Floats, opened: Floats | None = None) -> Cut | None:
        """Return a cut that replicas violate, or ``None`` where they suffice."""
        flow = self.empty()
        clusters, pools = self.extend(state, counts, flow, opened=opened)
        return Cut(state, clusters, pools) if self.unserved(state, flow).any() else None

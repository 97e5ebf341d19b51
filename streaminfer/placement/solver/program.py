"""`solve`: the exact choice of replicas, a mixed-integer program that grows by cuts.

*Design.* The variables are the replicas of each pool and, where a site costs something, whether it is used. The rows
are slots, memory, the budget and the migrations. Assignment variables are not needed: a set of cuts says that all
demand is served in every hour and after every loss. The flows of :mod:`~streaminfer.placement.solver.flows` separate
the cuts, first from the linear relaxation, then from whole solutions. In a flow a cluster sends no more than its demand
times the replicas of a pool, so the relaxation is as tight as that of the program with assignment variables. Cuts that
the relaxation does not need are dropped before the search for whole solutions. A solution that violates cuts is
completed greedily, and each added replica shows another cut. Then it is solved again at its own sites, so there is
always a plan beside the bound. If the clusters of a cut have no pool in common, the parts of the cut are added too;
each part says more than their sum. Equal replicas are counted, not numbered, so they have no symmetry. A pool that
another pool at the same place dominates is left out. Replicas of a kind are nearly equal at all sites, so a search also
has their totals as variables, and the best plan so far narrows the bounds of the totals (see
:mod:`~streaminfer.placement.solver.replica_model`).

*Quality.* Each pool has one quality. So the best quality of a flow is a sum over the distinct qualities q₁ > q₂ > …
of (qₖ minus qₖ₊₁) times the largest flow to pools of at least qₖ: loads of pools form a polymatroid. These largest
flows are variables, bounded by cuts of the same kind.

*Complexity.* 500 clusters × 60 sites × 3 variants: some hundred integer variables and cuts.

References: J. F. Benders (1962); D. Gale, "A theorem on flows in networks" (1957); J. Edmonds (1970).
"""

import time
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer.placement.solver.flows import Cut
from streaminfer.placement.solver.greedy import serve_most, trimmed
from streaminfer.placement.solver.instance import Instance
from streaminfer.placement.solver.replica_model import ReplicaModel, own_scheduler

__all__ = ["Solution", "solve"]

_MAX_STALLED_ROUNDS = 3
"""Rounds of cuts without progress after which the search for whole solutions begins."""

_PROGRESS = 2e-5
_SEARCH_S = 4.0
"""Time limit of the search for whole replicas; it doubles each time that a search reaches it. A search that is cut
short still shows cuts and plans, and the bound rises only slowly at the end of a search."""

_POLISH_ROUNDS = 10
_POLISH_SHARE = 0.5
"""Time limit of a polishing round, as a share of the search before it."""

_MAX_NARROWED_GAP = 0.03
"""Gap below which bounds of totals exclude plans; with a larger gap they only slow a search down."""

_NEVER_S = 1e9
_GAP_FACTOR = 1 - 1e-9
"""Factor of the gap, so that rounding does not make it larger than requested."""

_TOLERANCE = 2e-6
"""Relative to a row's largest number; above the solver's tolerance, or a row would be added again and again."""

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@attrs.frozen(eq=False)
class Solution:
    """Replicas of each pool, their value, and the bound that no value can improve on."""

    counts: Floats
    value: float
    bound: float

    @property
    def gap(self) -> float:
        """Relative distance of value and bound."""
        return abs(self.value - self.bound) / max(abs(self.value), 1e-12)


def solve(instance: Instance, *, gap: float = 0.001, time_limit_s: float | None = None) -> Solution | None:
    """Find the best replicas.

    Args:
        instance: pools to choose from.
        gap: relative distance to the best at which to stop.
        time_limit_s: seconds after which to return the best so far.

    Returns:
        The best replicas; ``None`` if no replicas satisfy the constraints.

    Raises:
        MissingExtra: highspy is not installed.
    """
    if not instance.pools:
        return None if instance.flows.rates.any() else Solution(np.zeros(0), 0.0, 0.0)
    with own_scheduler():
        return _Search(instance, gap, time.monotonic() + (_NEVER_S if time_limit_s is None else time_limit_s)).run()


def local_prices(instance: Instance, counts: Floats) -> dict[int, float]:
    """Return the marginal value of one more unit of each resource, by the row of the resource.

    The values are duals of the linear relaxation with the sites that the replicas use.
    """
    if not instance.pools:
        return dict.fromkeys(range(len(instance.limits)), 0.0)
    with own_scheduler():
        return _Search(instance, 0.0, time.monotonic() + _NEVER_S).local_prices(counts)


class _Search:
    """One search: cuts, whole solutions, the best plan so far.

    The search minimizes: a quality to maximize counts as a negative cost until the result is returned.
    """

    def __init__(self, instance: Instance, gap: float, end_s: float) -> None:
        self.instance = instance
        self.model = ReplicaModel(instance, gap)
        self.gap = gap
        self.end_s = end_s
        self.is_partial = instance.settings.is_partial
        # else completing may break the budget or the limit of migrations; the next round has more cuts
        self.completes = not self.model.is_quality and instance.settings.migrations is None
        self.bound = -np.inf
        self.cutoff = np.inf
        self.counts: Floats | None = None
        self.value = np.inf
        self.is_out_of_time = False
        self.first = instance.uses.argmax(axis=0)
        self.at_site = (self.first[:, None] == np.arange(len(instance.site_prices))).astype(np.float32)
        served = range(0 if self.is_partial else len(instance.flows.rates))
        self.flows: list[tuple[int, Bools | None, int | None]] = [(state, None, None) for state in served]
        for column, (state, quality) in enumerate(self.model.quality_flows, self.model.at_flows):
            self.flows.append((state, instance.qualities >= quality, column))

    def _optimize(self, limit_s: float = _NEVER_S, *, target: float | None = None) -> Floats | None:
        """Return the values of the columns; ``None`` if there is no solution, or none in time."""
        values = self.model.optimize(max(0.05, min(limit_s, self.end_s - time.monotonic())), target=target)
        self.is_out_of_time = time.monotonic() >= self.end_s
        return None if self.is_out_of_time else values

    def run(self) -> Solution | None:
        if self.is_partial:
            self._offer(serve_most(self.instance))
        elif not all((mask.any(axis=1) | (rates <= 0)).all() for mask, rates in self._states()):
            return None
        else:
            self._first_cuts()
        if not self._cut_relaxation():
            return self._result()
        self.bound = self.model.objective
        self.model.drop_slack()
        self._start()
        limit_s = _SEARCH_S
        while not self._is_close():
            began_s = time.monotonic()
            if not self._narrow():
                break
            values = self._optimize_integer(limit_s)
            is_finished = self.model.is_finished
            self._prove(self.cutoff if self.model.is_infeasible else self.model.bound)
            if self.is_out_of_time or (values is None and is_finished):
                break
            if not is_finished:
                limit_s *= 2.0
            if values is None:
                continue
            is_cut = self._take(values)
            if self._is_close() or (is_finished and not is_cut):
                break
            self._polish(values, _POLISH_SHARE * (time.monotonic() - began_s))
        return self._result()

    def _is_close(self) -> bool:
        best = self._best()
        return best is not None and best.gap <= self.gap

    def _best(self) -> Solution | None:
        """Return the best solution so far, if any; a bound beyond its value is a rounding error of the solver."""
        return None if self.counts is None else Solution(self.counts, self.value, min(self.bound, self.value))

    def _result(self) -> Solution | None:
        """Return the best solution so far, if any; raise an error if the time was too short to know."""
        best = self._best()
        if best is None and self.is_out_of_time:
            raise TimeoutError("plan: no plan was found within time_limit_s; allow more time, or use method='greedy'")
        if best is not None and self.model.is_quality:
            return Solution(best.counts, -best.value, -best.bound)
        return best

    def _cut_relaxation(self) -> bool:
        """Add cuts that the linear relaxation violates; return whether it has a solution."""
        self.model.declare(is_integer=False)
        previous, stalled = 0.0, 0
        while stalled < _MAX_STALLED_ROUNDS:
            values = self._optimize()
            if values is None:
                return False
            objective = self.model.objective
            stalled = stalled + 1 if abs(objective - previous) <= _PROGRESS * abs(objective) else 0
            previous = objective
            if not self._separate(values, lazy=False):
                break
        return True

    def _narrow(self) -> bool:
        """Exclude plans that are not better than the best plan by the gap; return whether any plan may be left."""
        best = self._best()
        if best is None or best.gap > _MAX_NARROWED_GAP:
            return True
        cutoff = best.value - _GAP_FACTOR * self.gap * abs(best.value)
        if cutoff == self.cutoff:
            return True
        self.cutoff = cutoff
        if self.model.narrow(cutoff, self.end_s):
            return True
        self._prove(cutoff)
        return False

    def _prove(self, bound: float) -> None:
        """Keep the bound of a search; plans that the search excluded can be as good as the cutoff."""
        self.bound = max(self.bound, min(bound, self.cutoff))

    def _optimize_integer(self, limit_s: float = _NEVER_S, *, target: float | None = None) -> Floats | None:
        """Return values with whole replicas; cuts are added for the solutions on the way to them."""
        self.model.declare(is_integer=True)
        values = self._optimize(limit_s, target=target)
        for improving in self.model.improving[:-1]:
            self._separate(_rounded(improving, self.model.at_homes), lazy=True)
        return None if values is None else _rounded(values, self.model.at_homes)

    def _polish(self, values: Floats, limit_s: float) -> None:
        """Look for an equally good plan at the sites of a solution, which is faster; keep its cuts."""
        objective = self.model.objective
        target = objective + self.gap * abs(objective)
        self.model.allow_sites(values[: self.model.at_sites])
        for _ in range(_POLISH_ROUNDS):
            if not self._cut_relaxation() or (polished := self._optimize_integer(limit_s, target=target)) is None:
                break
            is_worse = abs(self.model.objective - objective) > self.gap * abs(objective)
            is_cut = self._take(polished)
            if not is_cut or is_worse:
                break
        self.model.allow_sites()

    def local_prices(self, counts: Floats) -> dict[int, float]:
        """Return the dual values of the resources, with the sites of the counts."""
        self._first_cuts()
        self.model.allow_sites(counts)
        while (values := self._optimize()) is not None and self._separate(values, lazy=False):
            pass
        duals = {} if values is None else self.model.resource_duals()
        return {row: max(0.0, -duals.get(row, 0.0)) for row in range(len(self.instance.limits))}

    def _start(self) -> None:
        """Begin with the greedy choice.

        The solver does not get it as a start: HiGHS 1.16 ends with a wrong optimum for some starting solutions.
        """
        if self.completes and (counts := trimmed(self.instance, np.zeros(self.model.at_sites))) is not None:
            self._offer(counts)

    def _states(self) -> Any:
        return zip(self.instance.flows.allowed, self.instance.flows.rates, strict=True)

    def _take(self, values: Floats) -> bool:
        """Keep whole replicas that suffice; cut off others, and complete them. Return whether they were cut off."""
        counts = values[: self.model.at_sites]
        is_cut = self._separate(values, lazy=True)
        if not is_cut or self.is_partial:
            self._offer(counts)
        elif self.completes:
            violated: list[Cut] = []
            completed = trimmed(self.instance, counts, violated)
            for cut in violated:
                self._add(cut, values)
                self._add(cut, values, by_sites=True)
                self._add_parts(cut, values)
            if completed is not None:
                self._offer(completed)
        return is_cut

    def _offer(self, counts: Floats) -> None:
        """Keep replicas that suffice if they are the best so far."""
        value = -self.instance.quality(counts) if self.model.is_quality else self.instance.cost(counts)
        if value < self.value:
            self.counts, self.value = counts.copy(), value

    def _first_cuts(self) -> None:
        """Add cuts of the clusters that can use only the pools of one cluster, and of all clusters together."""
        flows = self.instance.flows
        for state in range(len(flows.rates)):
            if self.instance.candidates.states[state].lost:
                continue
            served = flows.rates[state] > 0
            patterns = np.unique(flows.allowed[state][served], axis=0)
            all_pools = np.ones((1, patterns.shape[1]), bool)
            for pools in np.concatenate([patterns, all_pools]):
                clusters = served & ~(flows.allowed[state] & ~pools).any(axis=1)
                self._add(Cut(state, clusters, pools), None)
            if len(self.model.priced):
                for pools in patterns:
                    cluster = (flows.allowed[state] == pools).all(axis=1) & served
                    self._add(Cut(state, np.arange(len(served)) == cluster.argmax(), np.zeros_like(pools)), None)

    def _separate_clusters(self, values: Floats) -> bool:
        """Add cuts: each cluster needs one of its sites in use, or with a replica for it, whichever is less."""
        instance, is_cut = self.instance, False
        counts = values[: self.model.at_sites]
        site_use = self.model.site_use(values)
        for state in range(len(instance.flows.rates)):
            if instance.candidates.states[state].lost:
                continue
            rates, allowed = instance.flows.rates[state], instance.flows.allowed[state]
            with np.errstate(divide="ignore", invalid="ignore"):
                parts = np.minimum(1.0, instance.pool_rates / rates[:, None]) * counts * allowed
            by_site = parts @ self.at_site
            is_short = np.minimum(by_site, site_use).sum(axis=1) < 1 - _TOLERANCE
            for c in np.flatnonzero(is_short & (rates > 0)):
                pools = allowed[c] & (by_site[c] < site_use)[self.first]
                is_cut = self._add(Cut(state, np.arange(len(rates)) == c, pools), values) or is_cut
        return is_cut

    def _separate(self, values: Floats, *, lazy: bool) -> bool:
        """Add cuts that the values violate; return whether there are any."""
        flows, counts = self.instance.flows, values[: self.model.at_sites]
        pool_use = None if lazy else self.model.opened(values)
        is_cut = not (lazy or self.is_partial) and len(self.model.priced) > 0 and self._separate_clusters(values)
        for state, pools, column in self.flows:
            flow = flows.empty()
            clusters, reached = flows.extend(state, counts, flow, opened=pool_use, pools=pools)
            if column is None:
                is_violated = flows.unserved(state, flow).any()
            else:
                is_violated = values[column] > flow.sum() / flows.unit * (1 + 1e-7) + 1e-7
            if is_violated:
                cut = Cut(state, clusters, reached)
                usable = flows.allowed[state] if pools is None else flows.allowed[state] & pools
                is_cut = self._add(cut, values, column=column, usable=usable) or is_cut
                if column is None:
                    self._add_parts(cut, values)
        return is_cut

    def _add_parts(self, cut: Cut, values: Floats) -> None:
        """Add the cuts of clusters that have no pool in common."""
        flows = self.instance.flows
        allowed = flows.allowed[cut.state]
        remaining = cut.clusters.copy()
        parts = 0
        while remaining.any():
            part = np.zeros_like(remaining)
            part[np.argmax(remaining)] = True
            while True:
                pools = allowed[part].any(axis=0) & cut.pools
                extended = remaining & allowed[:, pools].any(axis=1) | part
                if (extended == part).all():
                    break
                part = extended
            remaining &= ~part
            parts += 1
            if parts > 1 or remaining.any():
                self._add(Cut(cut.state, part, pools), values)

    def _add(
        self,
        cut: Cut,
        values: Floats | None,
        *,
        column: int | None = None,
        usable: Bools | None = None,
        by_sites: bool = False,
    ) -> bool:
        """Add a cut; return whether the values violate it."""
        flows, model = self.instance.flows, self.model
        rates = flows.rates[cut.state][cut.clusters]
        usable_pools = (flows.allowed[cut.state] if usable is None else usable)[cut.clusters]
        row = np.zeros(model.columns)
        capacity = np.minimum(self.instance.pool_rates, rates @ usable_pools)
        reach = rest = rates @ (((usable_pools & ~cut.pools) @ self.at_site) > 0)
        choice = np.ones(rest.size, int)
        if values is not None:
            counts = capacity * values[: model.at_sites]
            site_use = model.site_use(values)
            reach = rates @ ((usable_pools @ self.at_site) > 0)
            costs = np.array(
                [
                    counts @ self.at_site,
                    np.where(cut.pools, counts, 0.0) @ self.at_site + rest * site_use,
                    reach * site_use,
                ]
            )
            choice = 2 - costs[::-1].argmin(axis=0) if by_sites else costs.argmin(axis=0)
        with_pools = (choice[self.first] == 0) | (choice[self.first] == 1) & cut.pools
        row[: model.at_sites] = np.where(with_pools, capacity, 0.0)
        row[model.at_sites : model.at_homes] = np.choose(choice, [np.zeros(rest.size), rest, reach])[model.priced]
        at_free_sites = ~with_pools & (self.instance.site_prices == 0)[self.first]
        right = rates.sum() - rates @ usable_pools[:, at_free_sites].any(axis=1)
        if column is None:
            row[: model.at_homes] = np.minimum(row[: model.at_homes], max(right, 0.0))
        else:
            row[column] = -1.0
            right -= flows.rates[cut.state].sum()
        scale = max(abs(right), float(np.abs(row).max()), 1e-12)  # the solver's tolerances are absolute
        row /= scale
        right /= scale
        if values is not None and row @ values >= right - _TOLERANCE:
            return False
        self.model.add_row(np.arange(self.model.columns), row, right, self.model.infinity)
        return True


def _rounded(values: Floats, count: int) -> Floats:
    """Round the first values in place."""
    values[:count] = np.rint(values[:count])
    return values

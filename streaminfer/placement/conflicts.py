"""Explanation of an infeasible problem: an irreducible set of constraints, in the user's words, and remedies.

*Method.* QuickXplain halves the set again and again and tests each half together with the constraints that are known to
matter, so a conflict of k out of n constraints takes about 2k·log(n/k) tests. A test searches for any plan under a
subset of the constraints: by the greedy choice if it succeeds, otherwise by the exact program. In large problems with
hundreds of constraints that exclude each other, the tests take minutes. When the time is up, the conflict keeps the
halves that were not tested.

Reference: U. Junker, "QuickXplain: preferred explanations and relaxations for over-constrained problems", AAAI 2004.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np

from streaminfer._internal.units import format_duration
from streaminfer.errors import StreamInferError
from streaminfer.placement.network.promised_rtt import UNPROMISABLE_S
from streaminfer.placement.problem import Problem, UserCluster
from streaminfer.placement.solver.candidates import Candidates, in_time
from streaminfer.placement.solver.greedy import complete
from streaminfer.placement.solver.instance import Instance, Settings
from streaminfer.placement.solver.program import solve

__all__ = [
    "Constraint",
    "InfeasiblePlacement",
    "Relaxation",
    "constraints",
    "infeasible_placement",
    "is_feasible",
    "quick_explain",
]

_EXPLAIN_S = 60.0
"""Longest search for the reasons if the caller sets no limit; half of it is for the conflict."""
_MAX_LISTED = 20
"""Most members of a conflict in the message; `InfeasiblePlacement.conflict` has all."""
_MAX_SITES = 5
"""Most sites with an unpromisable round trip that the text of a constraint names."""
_UNLIMITED = 1e6
_MAX_SLO_FACTOR = 64.0
_STEPS = 12
_BUDGET_GAP = 0.001
"""Relative distance of the suggested budget from the least one that suffices."""
_SHARE_STEPS = 1000
"""Steps of the suggested share of a demand, which the text gives in tenths of a percent."""
_ROUNDING_ERROR = 5e-6
"""Largest relative error of a number that is rounded to six digits."""


@attrs.frozen
class Constraint:
    """A requirement of the problem, or of the caller of `plan`.

    Attributes:
        kind: ``"demand"``, ``"slo"``, ``"residency"``, ``"quality"``, ``"slots"``, ``"memory"``, ``"failure"``,
            ``"budget"`` or ``"migrations"``.
        subject: the cluster, the site and kind of device, or the lost sites.
        text: the constraint in words.
    """

    kind: str
    subject: tuple[Any, ...]
    text: str = attrs.field(eq=False)

    def __str__(self) -> str:
        return self.text


@attrs.frozen
class Relaxation:
    """A smallest change of one constraint that makes a plan possible.

    Attributes:
        constraint: the constraint to change.
        text: the change in words.
        amount: slots or bytes to add, seconds of the SLO, a share of the demand, a quality, a budget, or replicas to
            start; NaN if the change is to drop the constraint.
    """

    constraint: Constraint
    text: str
    amount: float

    def __str__(self) -> str:
        return self.text


class InfeasiblePlacement(StreamInferError, ValueError):  # noqa: N818 - the field's word
    """Raised when no plan keeps every promise.

    Attributes:
        conflict: constraints that exclude each other; without any one of them, the others can hold together.
        relaxations: changes of a single constraint, each of which makes a plan possible; may be empty.
        is_irreducible: the time sufficed to make the conflict that small; otherwise it may have unnecessary members.
    """

    def __init__(
        self, conflict: tuple[Constraint, ...], relaxations: tuple[Relaxation, ...], is_irreducible: bool = True
    ) -> None:
        listed = "; ".join(map(str, conflict[:_MAX_LISTED]))
        if len(conflict) > _MAX_LISTED:
            listed += f"; and {len(conflict) - _MAX_LISTED} more"
        help_text = f"; it would help to {' or to '.join(map(str, relaxations))}" if relaxations else ""
        super().__init__(f"no placement satisfies all of: {listed}{help_text}")
        self.conflict = conflict
        self.relaxations = relaxations
        self.is_irreducible = is_irreducible

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.conflict, self.relaxations, self.is_irreducible)


def infeasible_placement(
    candidates: Candidates, settings: Settings, time_limit_s: float | None = None
) -> InfeasiblePlacement:
    """Explain why there is no plan.

    Args:
        candidates: the pools.
        settings: settings of the caller of `plan`.
        time_limit_s: seconds after which to return what is known; ``None``: a minute.
    """
    members = list(constraints(candidates, settings))
    half_s = (_EXPLAIN_S if time_limit_s is None else time_limit_s) / 2
    end_s = time.monotonic() + half_s
    conflict, is_irreducible = quick_explain(lambda subset: is_feasible(candidates, settings, subset, end_s), members)
    relaxer = _Relaxer(candidates, settings, members, time.monotonic() + half_s)
    return InfeasiblePlacement(tuple(conflict), tuple(relaxer.relaxations(conflict)), is_irreducible)


def constraints(candidates: Candidates, settings: Settings) -> Iterator[Constraint]:
    """Yield the constraints of a problem and of the caller's settings."""
    problem = candidates.problem
    if settings.budget is not None:
        yield Constraint("budget", (), f"the budget of {settings.budget:.6g}")
    if settings.migrations is not None:
        yield Constraint("migrations", (), f"at most {settings.migrations} started replicas")
    for group in problem.failure_groups:
        yield Constraint("failure", group, f"the loss of {' and '.join(map(repr, group))} is survived")
    for resource in candidates.resources:
        site = problem.sites[resource.site].name
        unit = "slots" if resource.what == "slots" else "bytes of memory"
        text = f"{resource.limit:.6g} {unit} of {resource.kind!r} at site {site!r}"
        yield Constraint(resource.what, (site, resource.kind), text)
    for c, cluster in enumerate(problem.clusters):
        promise, subject, description = problem.promise_of(cluster), (cluster.name,), f"cluster {cluster.name!r}"
        max_rate, slo = candidates.rates[:, c].max(), format_duration(promise.slo_s)
        yield Constraint("demand", subject, f"{description} is served, up to {max_rate:.6g} requests per second")
        promised = f"p{100 * promise.share:.6g} of {description} within {slo}"
        yield Constraint("slo", subject, f"{promised}{_unpromised(problem, cluster)}")
        if cluster.residency is not None:
            yield Constraint("residency", subject, f"data of {description} stay in {cluster.residency!r}")
        if np.isfinite(promise.min_quality):
            yield Constraint("quality", subject, f"quality of at least {promise.min_quality:.6g} for {description}")


def _unpromised(problem: Problem, cluster: UserCluster) -> str:
    """Return the sites with too few measurements for the promise, however long its SLO is; "" for none."""
    share = problem.promise_of(cluster).share
    access_s = problem.access_of(cluster, 0).rtt.quantile(share)
    links = problem.links.get(cluster.name, {})
    sites = [repr(name) for name, link in links.items() if max(access_s, link.rtt.quantile(share)) >= UNPROMISABLE_S]
    if not sites:
        return ""
    more = f" and {len(sites) - _MAX_SITES} more" if len(sites) > _MAX_SITES else ""
    return f" (the round trip to {', '.join(sites[:_MAX_SITES])}{more} is unpromisable)"


def is_feasible(
    candidates: Candidates, settings: Settings, subset: Sequence[Constraint], end_s: float = math.inf
) -> bool:
    """Return whether a plan satisfies these constraints.

    Raises:
        TimeoutError: it is not known by ``end_s``, an instant of `time.monotonic`.
    """
    _left_s(end_s)  # raises if no time is left
    required = {(it.kind, it.subject) for it in subset}
    problem = candidates.problem
    names = [cluster.name for cluster in problem.clusters]

    def is_relaxed(kind: str) -> Any:
        return np.array([(kind, (name,)) not in required for name in names])

    allowed = candidates.in_time | is_relaxed("slo")[None, :, None]
    allowed = allowed & candidates.serves & (candidates.meets_residency | is_relaxed("residency")[:, None])
    allowed &= candidates.meets_quality | is_relaxed("quality")[:, None]
    survived = {_lost(candidates, group) for group in problem.failure_groups if ("failure", group) in required}
    states = [at for at, state in enumerate(candidates.states) if not state.lost or state.lost in survived]
    rates = np.where(is_relaxed("demand"), 0.0, candidates.rates[states])
    extra = dict(settings.extra)
    for row, resource in enumerate(candidates.resources):
        if (resource.what, (problem.sites[resource.site].name, resource.kind)) not in required:
            extra[row] = _UNLIMITED * max(1.0, float(candidates.needs[row].max(initial=1.0)))
    relaxed_settings = attrs.evolve(
        settings,
        extra=extra,
        budget=settings.budget if ("budget", ()) in required else None,
        migrations=settings.migrations if ("migrations", ()) in required else None,
    )
    smaller = attrs.evolve(candidates, states=tuple(candidates.states[at] for at in states), rates=rates)
    return _has_plan(Instance(smaller, allowed, relaxed_settings), end_s)


def _has_plan(instance: Instance, end_s: float) -> bool:
    settings = instance.settings
    for mask, rates in zip(instance.flows.allowed, instance.flows.rates, strict=True):
        if (rates > 0)[~mask.any(axis=1)].any():
            return False
    counts = complete(instance, np.zeros(len(instance.pools)))
    if counts is not None:
        in_budget = settings.budget is None or instance.cost(counts) <= settings.budget
        if in_budget and (settings.migrations is None or instance.started(counts) <= settings.migrations):
            return True
    return solve(instance, gap=1e9, time_limit_s=_left_s(end_s)) is not None


def _left_s(end_s: float) -> float | None:
    """Return the seconds until ``end_s``; ``None``: there is no limit."""
    if end_s == math.inf:
        return None
    if (left_s := end_s - time.monotonic()) <= 0:
        raise TimeoutError
    return left_s


def _lost(candidates: Candidates, group: tuple[str, ...]) -> tuple[int, ...]:
    names = [site.name for site in candidates.problem.sites]
    return tuple(sorted(names.index(name) for name in group))


def quick_explain(
    feasible: Callable[[list[Constraint]], bool], members: list[Constraint]
) -> tuple[list[Constraint], bool]:
    """Return a subset that is infeasible, and whether it is feasible without any one of its members.

    Args:
        feasible: tests constraints; if it raises ``TimeoutError``, the subset keeps the members that were not tested.
        members: constraints that are infeasible together.
    """
    is_over = False

    def suffices(subset: list[Constraint]) -> bool:
        nonlocal is_over
        try:
            return not is_over and not feasible(subset)
        except TimeoutError:
            is_over = True
            return False

    def explain(background: list[Constraint], added: bool, members: list[Constraint]) -> list[Constraint]:
        if added and suffices(background):
            return []
        if len(members) == 1 or is_over:
            return members
        half = len(members) // 2
        left, right = members[:half], members[half:]
        from_right = explain([*background, *left], True, right)
        from_left = explain([*background, *from_right], bool(from_right), left)
        return [*from_left, *from_right]

    return explain([], False, members), not is_over


@attrs.frozen
class _Relaxer:
    """Finds the least change of a constraint that suffices while all others hold."""

    candidates: Candidates
    settings: Settings
    all_constraints: list[Constraint]
    end_s: float

    def relaxations(self, conflict: Sequence[Constraint]) -> Iterator[Relaxation]:
        """Yield, while there is time, the smallest change of each member that suffices alone."""
        for constraint in conflict:
            others = [it for it in self.all_constraints if it != constraint]
            try:
                is_needed = is_feasible(self.candidates, self.settings, others, self.end_s)
                change = self._smallest_change(constraint) if is_needed else None
            except TimeoutError:
                return
            if change is not None:
                yield Relaxation(constraint, *change)

    def _smallest_change(self, constraint: Constraint) -> tuple[str, float] | None:
        """Return the change in words and its amount; ``None`` if no change suffices."""
        changes: dict[str, Callable[..., tuple[str, float] | None]] = {
            "slots": partial(self._more_of_a_resource, "slots"),
            "memory": partial(self._more_of_a_resource, "memory"),
            "slo": self._longer_slo,
            "demand": self._less_demand,
            "quality": self._less_quality,
            "budget": self._larger_budget,
            "migrations": self._more_migrations,
        }
        if constraint.kind not in changes:
            return f"drop the constraint: {constraint.text}", math.nan
        return changes[constraint.kind](*constraint.subject)

    def _suffices(self, **changes: Any) -> bool:
        """Return whether all constraints can hold with other candidates or settings."""
        candidates, settings = changes.get("candidates", self.candidates), changes.get("settings", self.settings)
        return is_feasible(candidates, settings, self.all_constraints, self.end_s)

    def _more_of_a_resource(self, quantity: str, site: str, kind: str) -> tuple[str, float]:
        sites = self.candidates.problem.sites
        row = next(
            r
            for r, it in enumerate(self.candidates.resources)
            if (it.what, sites[it.site].name, it.kind) == (quantity, site, kind)
        )
        unit = 1.0 if quantity == "slots" else float(self.candidates.needs[row].max()) / 64
        amount = unit * _smallest_count(
            lambda count: self._suffices(settings=attrs.evolve(self.settings, extra={row: count * unit}))
        )
        return f"add {amount:.6g} {quantity} of {kind!r} at site {site!r}", amount

    def _longer_slo(self, name: str) -> tuple[str, float] | None:
        problem, at = self.candidates.problem, self._index(name)
        cluster = problem.clusters[at]
        promise = problem.promise_of(cluster)

        def with_slo(factor: float) -> bool:
            promises = [(cluster, attrs.evolve(promise, slo_s=promise.slo_s * factor))]
            changed = self.candidates.in_time.copy()
            for scenario in range(len(problem.scenarios)):
                changed[scenario, at] = in_time(problem, promises, self.candidates.pools, scenario)
            return self._suffices(candidates=attrs.evolve(self.candidates, in_time=changed))

        if not with_slo(_MAX_SLO_FACTOR):
            return None
        longer_s = promise.slo_s * _bisect(with_slo, _MAX_SLO_FACTOR, 1.0)
        return f"allow cluster {name!r} {format_duration(longer_s)}", longer_s

    def _less_demand(self, name: str) -> tuple[str, float] | None:
        def with_demand(share: float) -> bool:
            rates = self.candidates.rates.copy()
            rates[:, self._index(name)] *= share
            return self._suffices(candidates=attrs.evolve(self.candidates, rates=rates))

        share = math.floor(_bisect(with_demand, 0.0, 1.0) * _SHARE_STEPS) / _SHARE_STEPS  # what is said is enough too
        return (f"serve {share:.1%} of cluster {name!r}", share) if share > 0 else None

    def _less_quality(self, name: str) -> tuple[str, float] | None:
        at, candidates = self._index(name), self.candidates
        qualities = np.array([pool.variant.quality for pool in candidates.pools])
        lower = np.unique(qualities[candidates.serves[at] & ~candidates.meets_quality[at]])[::-1]
        for quality in lower.tolist():
            meets_quality = candidates.meets_quality.copy()
            meets_quality[at] = qualities >= quality
            if self._suffices(candidates=attrs.evolve(candidates, meets_quality=meets_quality)):
                return f"accept a quality of {quality:.6g} for cluster {name!r}", quality
        return None

    def _larger_budget(self) -> tuple[str, float] | None:
        instance = Instance(self.candidates, settings=attrs.evolve(self.settings, budget=None))
        solution = solve(instance, gap=_BUDGET_GAP, time_limit_s=_left_s(self.end_s))
        if solution is None:
            return None
        text = f"{solution.value * (1 + _ROUNDING_ERROR):.6g}"  # the rounded budget suffices too
        return f"spend {text}", float(text)

    def _more_migrations(self) -> tuple[str, float]:
        allowed = self.settings.migrations or 0
        count = allowed + _smallest_count(
            lambda added: self._suffices(settings=attrs.evolve(self.settings, migrations=allowed + added))
        )
        return f"start {count} replica{'s' * (count > 1)}", float(count)

    def _index(self, name: str) -> int:
        return [it.name for it in self.candidates.problem.clusters].index(name)


def _smallest_count(feasible: Callable[[int], bool]) -> int:
    """Return the least whole number that suffices; a large enough number must suffice."""
    high = 1
    while not feasible(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if feasible(middle) else (middle, high)
    return high


def _bisect(feasible: Callable[[float], bool], good: float, bad: float) -> float:
    """Return the value nearest to ``bad`` that suffices, to a part in 4096."""
    for _ in range(_STEPS):
        middle = (good + bad) / 2
        good, bad = (middle, bad) if feasible(middle) else (good, middle)
    return good

"""Why there is no plan: an irreducible set of constraints, in the user's words, and what would help.

*Method.* QuickXplain: the set is halved again and again, and each half is tested beside what is known to matter, so a
conflict of k out of n constraints takes about 2k·log(n/k) tests. A test is a search for any plan under the
constraints of a subset: the greedy choice where it succeeds, the exact program otherwise.

Reference: U. Junker, "QuickXplain: preferred explanations and relaxations for over-constrained problems", AAAI 2004.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import numpy as np

from streaminfer._internal.units import format_duration
from streaminfer.errors import StreamInferError
from streaminfer.placement.solver.candidates import Candidates, find_candidates
from streaminfer.placement.solver.greedy import complete
from streaminfer.placement.solver.instance import Instance, Settings
from streaminfer.placement.solver.program import solve

__all__ = ["Constraint", "InfeasiblePlacement", "Relaxation", "constraints", "infeasible_placement", "is_feasible"]

_UNLIMITED = 1e6
_MOST_SLO = 64.0
_STEPS = 12


@attrs.frozen
class Constraint:
    """Something that was asked for.

    Attributes:
        kind: ``"demand"``, ``"slo"``, ``"residency"``, ``"quality"``, ``"slots"``, ``"memory"``, ``"failure"``,
            ``"budget"`` or ``"migrations"``.
        subject: the cluster, the site and kind of device, or the lost sites.
        text: in words.
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
        constraint: what changes.
        text: how, in words.
        amount: the changed value: slots, bytes, seconds of the SLO, or a share of the demand; NaN where it is dropped.
    """

    constraint: Constraint
    text: str
    amount: float

    def __str__(self) -> str:
        return self.text


class InfeasiblePlacement(StreamInferError, ValueError):  # noqa: N818 - the field's word
    """No plan keeps every promise.

    Attributes:
        conflict: constraints that exclude each other; without any one of them the others do not.
        relaxations: changes of one of them that alone make a plan possible; there may be none.
    """

    def __init__(self, conflict: tuple[Constraint, ...], relaxations: tuple[Relaxation, ...]) -> None:
        asked = "; ".join(map(str, conflict))
        help_text = f"; it would help to {' or to '.join(map(str, relaxations))}" if relaxations else ""
        super().__init__(f"no placement satisfies all of: {asked}{help_text}")
        self.conflict = conflict
        self.relaxations = relaxations

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.conflict, self.relaxations)


def infeasible_placement(candidates: Candidates, settings: Settings) -> InfeasiblePlacement:
    """Explain why there is no plan."""
    everything = list(constraints(candidates, settings))
    conflict = tuple(_quick_explain(lambda subset: is_feasible(candidates, settings, subset), everything))
    relaxations = tuple(_relaxations(candidates, settings, everything, conflict))
    return InfeasiblePlacement(conflict, relaxations)


def constraints(candidates: Candidates, settings: Settings) -> Iterator[Constraint]:
    """List what was asked for."""
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
        yield Constraint(
            resource.what,
            (site, resource.kind),
            f"{resource.limit:.6g} {unit} of {resource.kind!r} at site {site!r}",
        )
    for c, cluster in enumerate(problem.clusters):
        promise = problem.promise_of(cluster)
        yield Constraint(
            "demand",
            (cluster.name,),
            f"cluster {cluster.name!r} is served, up to {candidates.rates[:, c].max():.6g} requests per second",
        )
        yield Constraint(
            "slo",
            (cluster.name,),
            f"p{100 * promise.share:.6g} of cluster {cluster.name!r} within {format_duration(promise.slo_s)}",
        )
        if cluster.residency is not None:
            yield Constraint(
                "residency", (cluster.name,), f"data of cluster {cluster.name!r} stay in {cluster.residency!r}"
            )
        if np.isfinite(promise.min_quality):
            yield Constraint(
                "quality",
                (cluster.name,),
                f"quality of at least {promise.min_quality:.6g} for cluster {cluster.name!r}",
            )


def is_feasible(candidates: Candidates, settings: Settings, kept: Sequence[Constraint]) -> bool:
    """Whether there is a plan that satisfies these constraints."""
    asked = {(it.kind, it.subject) for it in kept}
    problem = candidates.problem
    names = [cluster.name for cluster in problem.clusters]

    def dropped(kind: str) -> Any:
        return np.array([(kind, (name,)) not in asked for name in names])

    allowed = candidates.in_time | dropped("slo")[None, :, None]
    allowed = allowed & candidates.serves & (candidates.stays | dropped("residency")[:, None])
    allowed &= candidates.suffices | dropped("quality")[:, None]
    failures = {(): True, **{_lost(candidates, group): ("failure", group) in asked for group in problem.failure_groups}}
    states = [at for at, state in enumerate(candidates.states) if failures[state.lost]]
    rates = np.where(dropped("demand"), 0.0, candidates.rates[states])
    extra = dict(settings.extra)
    for row, resource in enumerate(candidates.resources):
        if (resource.what, (problem.sites[resource.site].name, resource.kind)) not in asked:
            extra[row] = _UNLIMITED * max(1.0, float(candidates.needs[row].max(initial=1.0)))
    changed = attrs.evolve(
        settings,
        extra=extra,
        budget=settings.budget if ("budget", ()) in asked else None,
        migrations=settings.migrations if ("migrations", ()) in asked else None,
    )
    smaller = attrs.evolve(candidates, states=tuple(candidates.states[at] for at in states), rates=rates)
    return _has_plan(Instance(smaller, allowed, changed))


def _has_plan(instance: Instance) -> bool:
    settings = instance.settings
    for mask, rates in zip(instance.flows.allowed, instance.flows.rates, strict=True):
        if (rates > 0)[~mask.any(axis=1)].any():
            return False
    counts = complete(instance, np.zeros(len(instance.pools)))
    if counts is not None:
        in_budget = settings.budget is None or instance.cost(counts) <= settings.budget
        if in_budget and (settings.migrations is None or instance.started(counts) <= settings.migrations):
            return True
    return solve(instance, gap=1e9) is not None


def _lost(candidates: Candidates, group: tuple[str, ...]) -> tuple[int, ...]:
    names = [site.name for site in candidates.problem.sites]
    return tuple(sorted(names.index(name) for name in group))


def _quick_explain(feasible: Callable[[list[Constraint]], bool], members: list[Constraint]) -> list[Constraint]:
    """Return a subset that is infeasible, and feasible without any one of its members."""

    def explain(background: list[Constraint], added: bool, rest: list[Constraint]) -> list[Constraint]:
        if added and not feasible(background):
            return []
        if len(rest) == 1:
            return rest
        half = len(rest) // 2
        left, right = rest[:half], rest[half:]
        from_right = explain([*background, *left], True, right)
        from_left = explain([*background, *from_right], bool(from_right), left)
        return [*from_left, *from_right]

    return explain([], False, members)


def _relaxations(
    candidates: Candidates, settings: Settings, everything: list[Constraint], conflict: tuple[Constraint, ...]
) -> Iterator[Relaxation]:
    """The smallest change of each member that alone suffices."""
    for constraint in conflict:
        others = [it for it in everything if it != constraint]
        if is_feasible(candidates, settings, others):
            yield from _least_change(candidates, settings, everything, constraint)


def _least_change(
    candidates: Candidates, settings: Settings, everything: list[Constraint], constraint: Constraint
) -> Iterator[Relaxation]:
    problem = candidates.problem
    match constraint.kind:
        case "slots" | "memory":
            site, kind = constraint.subject
            row = next(
                r
                for r, it in enumerate(candidates.resources)
                if (problem.sites[it.site].name, it.kind, it.what) == (site, kind, constraint.kind)
            )
            unit = 1.0 if constraint.kind == "slots" else float(candidates.needs[row].max()) / 64
            more = _least_count(
                lambda count: is_feasible(candidates, attrs.evolve(settings, extra={row: count * unit}), everything)
            )
            yield Relaxation(
                constraint, f"add {more * unit:.6g} {constraint.kind} of {kind!r} at site {site!r}", more * unit
            )
        case "slo":
            (name,) = constraint.subject
            slo_s = problem.promise_of(next(it for it in problem.clusters if it.name == name)).slo_s

            def with_slo(factor: float) -> bool:
                changed = _with_slo(candidates, name, slo_s * factor)
                return is_feasible(changed, settings, everything)

            if with_slo(_MOST_SLO):
                factor = _bisected(with_slo, _MOST_SLO, 1.0)
                yield Relaxation(
                    constraint, f"allow cluster {name!r} {format_duration(slo_s * factor)}", slo_s * factor
                )
        case "demand":
            (name,) = constraint.subject
            at = [it.name for it in problem.clusters].index(name)

            def with_demand(share: float) -> bool:
                rates = candidates.rates.copy()
                rates[:, at] *= share
                return is_feasible(attrs.evolve(candidates, rates=rates), settings, everything)

            share = _bisected(with_demand, 0.0, 1.0)
            if share > 0:
                yield Relaxation(constraint, f"serve {share:.1%} of cluster {name!r}", share)
        case _:
            yield Relaxation(constraint, f"give up: {constraint.text}", float("nan"))


def _with_slo(candidates: Candidates, name: str, slo_s: float) -> Candidates:
    """The candidates with another SLO for one cluster."""
    problem = candidates.problem
    at = next(c for c, it in enumerate(problem.clusters) if it.name == name)
    own = attrs.evolve(problem.promise_of(problem.clusters[at]), name="its own", slo_s=slo_s)
    alone = attrs.evolve(
        problem,
        clusters=(attrs.evolve(problem.clusters[at], service_class="its own"),),
        service_classes=(own,),
        links={name: problem.links.get(name, {})},
        scenarios=tuple(
            attrs.evolve(it, access={key: value for key, value in it.access.items() if key == name})
            for it in problem.scenarios
        ),
    )
    in_time = candidates.in_time.copy()
    in_time[:, at] = find_candidates(alone).in_time[:, 0]
    return attrs.evolve(candidates, in_time=in_time)


def _least_count(feasible: Callable[[int], bool]) -> int:
    """Return the least whole number that suffices; a large one does."""
    high = 1
    while not feasible(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if feasible(middle) else (middle, high)
    return high


def _bisected(feasible: Callable[[float], bool], good: float, bad: float) -> float:
    """Return the value nearest to ``bad`` that suffices, to a part in 4096."""
    for _ in range(_STEPS):
        middle = (good + bad) / 2
        good, bad = (middle, bad) if feasible(middle) else (good, middle)
    return good

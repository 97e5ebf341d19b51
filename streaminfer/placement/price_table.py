"""`prices`: solves again to find what one more slot, a longer SLO or a relaxed promise would save.

Each figure is the difference between two exact plans. A limit on slots or memory also has a *local* price: its dual
value in the linear program with the sites of the plan. This is a rate at the margin and may differ from the worth of a
whole slot.
"""

import math

import attrs

from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.units import format_duration
from streaminfer._internal.validation import check_duration, check_instance
from streaminfer.placement.plan_record import Plan
from streaminfer.placement.planning import check_search
from streaminfer.placement.problem import Problem
from streaminfer.placement.solver.candidates import find_candidates
from streaminfer.placement.solver.instance import Instance
from streaminfer.placement.solver.program import local_prices, solve

__all__ = ["Price", "PriceTable", "prices"]

_BUDGET_STEP = 0.05
"""Relative growth of the budget: it usually must pay for a whole replica before it changes anything."""


@attrs.frozen(kw_only=True)
class Price:
    """Worth of a change of one constraint.

    Attributes:
        change: the change in words.
        saving: decrease of the cost, or increase of the quality if there is a budget.
        uncertainty: sum of the gaps of both plans; a smaller saving may be no saving at all.
        local: dual value, at the plan's sites, of a limit on slots or memory; NaN for other changes.
    """

    change: str
    saving: float
    uncertainty: float
    local: float = math.nan


@attrs.frozen(repr=False)
class PriceTable:
    """Prices, the largest saving first; a notebook shows them as a table."""

    prices: tuple[Price, ...]

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [
            (
                it.change,
                f"{it.saving:.4g}",
                f"± {it.uncertainty:.2g}",
                "" if math.isnan(it.local) else f"{it.local:.4g}",
            )
            for it in self.prices
        ]

    def __repr__(self) -> str:
        return "\n".join(f"{change}: saves {saving} {error}" for change, saving, error, _ in self._rows())

    def _repr_html_(self) -> str:
        return html_table(
            self._rows(), head=["change", "saves", "", "local"], caption="What changes are worth per hour"
        )


def prices(
    plan: Plan, *, slo_step_s: float = 0.005, gap: float = 0.0001, time_limit_s: float | None = None
) -> PriceTable:
    """Solve again with binding limits relaxed, longer SLOs, and without minimum quality, residency or failures.

    Args:
        plan: a plan of `plan`, or of `repair`; the lost sites of a repair stay lost.
        slo_step_s: seconds by which the SLO of each class grows; a budget grows by 5 %.
        gap: gap of each solution.
        time_limit_s: time limit of each solution.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
        MissingExtra: highspy is not installed.
        TimeoutError: a solution was not found within ``time_limit_s``.
    """
    check_instance("plan", plan, Plan, "a Plan")
    slo_step_s = check_duration("slo_step_s", slo_step_s, positive=True)
    gap, time_limit_s = check_search(gap, time_limit_s)
    instance = plan.instance
    # a repaired plan has lost what it had to survive
    problem = attrs.evolve(plan.problem, failures=()) if instance.lost else plan.problem
    candidates, settings = instance.candidates, instance.settings
    hours = tuple(sorted({state.hour for state in candidates.states}))
    sign = 1.0 if settings.budget is None else -1.0
    base = solve(instance, gap=gap, time_limit_s=time_limit_s)
    if base is None:
        raise ValueError("plan: expected one whose problem has an exact plan, got one with unserved clusters")
    prices_found: list[Price] = []

    def offer(change: str, changed: Instance, local: float = math.nan) -> None:
        other = solve(changed.without(instance.lost) if instance.lost else changed, gap=gap, time_limit_s=time_limit_s)
        if other is not None and base is not None:
            saving = max(0.0, sign * (base.value - other.value))
            error = abs(base.value - base.bound) + abs(other.value - other.bound)
            prices_found.append(Price(change=change, saving=saving, uncertainty=error, local=local))

    duals = local_prices(instance, base.counts)
    spare = instance.limits - instance.needs @ base.counts
    for row, resource in enumerate(candidates.resources):
        needs = instance.needs[row]
        if resource.site in instance.lost or not needs.any() or spare[row] >= needs[needs > 0].min():
            continue
        amount = 1.0 if resource.what == "slots" else float(needs.max())
        name = problem.sites[resource.site].name
        change = f"{amount:.6g} more {resource.what} of {resource.kind!r} at site {name!r}"
        extra = {**settings.extra, row: settings.extra.get(row, 0.0) + amount}
        offer(change, Instance(candidates, settings=attrs.evolve(settings, extra=extra)), duals[row] * amount)
    if settings.migrations is not None:
        more_started = attrs.evolve(settings, migrations=settings.migrations + 1)
        offer("one more started replica", Instance(candidates, settings=more_started))
    if settings.budget is not None:
        larger_settings = attrs.evolve(settings, budget=settings.budget * (1 + _BUDGET_STEP))
        offer(f"{_BUDGET_STEP:.0%} more budget", Instance(candidates, settings=larger_settings))
    for change, other_problem in _changed(problem, slo_step_s):
        offer(change, Instance(find_candidates(other_problem, hours), settings=settings))
    return PriceTable(tuple(sorted(prices_found, key=lambda it: -it.saving)))


def _changed(problem: Problem, slo_step_s: float) -> list[tuple[str, Problem]]:
    """Return the problems with one promise relaxed."""
    changes = []
    for at, promise in enumerate(problem.service_classes):
        classes = list(problem.service_classes)
        classes[at] = attrs.evolve(promise, slo_s=promise.slo_s + slo_step_s)
        change = f"{format_duration(slo_step_s)} more for class {promise.name!r}"
        changes.append((change, attrs.evolve(problem, service_classes=tuple(classes))))
        if promise.min_quality > -math.inf:
            classes[at] = attrs.evolve(promise, min_quality=-math.inf)
            change = f"any quality for class {promise.name!r}"
            changes.append((change, attrs.evolve(problem, service_classes=tuple(classes))))
    for region in sorted({c.residency for c in problem.clusters if c.residency is not None}):
        clusters = [attrs.evolve(c, residency=None) if c.residency == region else c for c in problem.clusters]
        changes.append((f"data may leave {region!r}", attrs.evolve(problem, clusters=tuple(clusters))))
    if problem.failure_groups:
        changes.append(("no failure is survived", attrs.evolve(problem, failures=())))
    return changes

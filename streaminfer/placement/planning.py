"""`plan`, `plan_hours` and `repair`: choose the replicas for a problem."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.validation import (
    check_choice,
    check_count,
    check_duration,
    check_instance,
    check_number,
    expected,
)
from streaminfer.placement.assignment import make_plan
from streaminfer.placement.conflicts import infeasible_placement
from streaminfer.placement.plan_record import Plan
from streaminfer.placement.problem import Problem
from streaminfer.placement.solver.candidates import Candidates, find_candidates
from streaminfer.placement.solver.greedy import greedy_counts, lower_bound, trimmed
from streaminfer.placement.solver.instance import Instance, Settings
from streaminfer.placement.solver.program import solve

__all__ = ["plan", "plan_hours", "repair"]

_METHODS = ("exact", "greedy")
_SERVED_GAP = 1e-5
"""Share of the requests that may stay unserved although there is capacity."""
_SERVED_S = 5.0
"""Longest search for the most requests that can be served; 500 clusters at 60 sites take a second."""


def plan(
    problem: Problem,
    *,
    budget: float | None = None,
    hours: Iterable[int] | None = None,
    running: Plan | None = None,
    migrations: int | None = None,
    method: str = "exact",
    gap: float = 0.001,
    time_limit_s: float | None = None,
) -> Plan:
    """Choose replicas for the sites: the lowest cost that keeps every promise, or the best quality within a budget.

    One plan serves all hours and scenarios. After each of the problem's failures, its remaining replicas serve them.

    Args:
        problem: clusters, sites, models and promises.
        budget: maximum cost per hour; the plan then maximizes the mean quality. ``None``: lowest cost.
        hours: hours that the plan is for; ``None``: all.
        running: the plan that runs, for ``migrations``.
        migrations: maximum number of replicas to start that do not run yet; ``None``: any number.
        method: ``"exact"``, or ``"greedy"``, which is faster and needs no extra unless it meets a limit.
        gap: relative distance to the best plan at which the search ends.
        time_limit_s: longest search, in seconds; the plan states the gap that is left. If there is no plan, the search
            for the reasons takes as long again at most; without a limit, a minute.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
        InfeasiblePlacement: there is no such plan; the error has the reasons and the single changes that would help.
        TimeoutError: no plan was found within ``time_limit_s``.
        MissingExtra: highspy is not installed, and the method is exact or the greedy choice meets a limit.
    """
    check_instance("problem", problem, Problem, "a Problem")
    check_choice("method", method, _METHODS)
    if budget is not None:
        budget = check_number("budget", budget, "a number ≥ 0", lambda it: it >= 0)
    if migrations is not None:
        migrations = check_count("migrations", migrations, at_least=0)
    gap, time_limit_s = check_search(gap, time_limit_s)
    if running is not None:
        check_instance("running", running, Plan, "a Plan or None")
    chosen = None if hours is None else _checked_hours(problem, hours)
    settings = Settings(budget=budget, running=_homes(problem, running), migrations=migrations)
    candidates = find_candidates(problem, chosen)
    if method == "greedy" and (budget is not None or migrations is not None):
        raise ValueError("method: expected 'exact' with budget or migrations, got 'greedy'")
    return _planned(candidates, settings, method, gap, time_limit_s)


def check_search(gap: float, time_limit_s: float | None) -> tuple[float, float | None]:
    """Return the gap and the time limit of a search as floats.

    Raises:
        TypeError, ValueError: one is not a number, or out of range.
    """
    gap = check_number("gap", gap, "a number ≥ 0", lambda it: it >= 0)
    if time_limit_s is not None:
        time_limit_s = check_duration("time_limit_s", time_limit_s, positive=True)
    return gap, time_limit_s


def _homes(problem: Problem, running: Plan | None) -> dict[tuple[Any, ...], int]:
    """Return the running replicas by `Pool.home`; their problem may have other sites, or in another order."""
    index = {site.name: at for at, site in enumerate(problem.sites)}
    counts = {} if running is None else running.running
    return {
        (model, variant, tuple(index.get(name, -1) for name in sites), kinds): count
        for (model, variant, sites, kinds), count in counts.items()
    }


def _checked_hours(problem: Problem, hours: Iterable[int]) -> tuple[int, ...]:
    check_instance("hours", hours, Iterable, "whole numbers or None")
    chosen = dict.fromkeys(check_count("hours", hour, at_least=0, at_most=problem.hours - 1) for hour in hours)
    if not chosen:
        raise ValueError(expected("hours", "at least one hour", hours))
    return tuple(chosen)


def _planned(candidates: Candidates, settings: Settings, method: str, gap: float, time_limit_s: float | None) -> Plan:
    instance = Instance(candidates, settings=settings)
    if method == "greedy" and (counts := greedy_counts(instance)) is not None:
        return make_plan(instance, counts, bound=lower_bound(instance))
    solution = solve(instance, gap=gap, time_limit_s=time_limit_s)
    if solution is None:
        raise infeasible_placement(candidates, settings, time_limit_s)
    return make_plan(instance, solution.counts, bound=solution.bound)


def plan_hours(
    problem: Problem, *, migrations: int | None = None, gap: float = 0.001, time_limit_s: float | None = None
) -> tuple[Plan, ...]:
    """Choose the replicas for each hour; each plan starts from the previous one.

    Args:
        problem: clusters, sites, models and promises.
        migrations: maximum number of replicas to start from one hour to the next.
        gap: as in `plan`.
        time_limit_s: as in `plan`, for each hour.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
        InfeasiblePlacement: there is no plan for an hour.
        TimeoutError: no plan for an hour was found within ``time_limit_s``.
    """
    check_instance("problem", problem, Problem, "a Problem")
    if migrations is not None:
        migrations = check_count("migrations", migrations, at_least=0)
    plans: list[Plan] = []
    for hour in range(problem.hours):
        running = plans[-1] if plans else None
        limit = migrations if plans else None
        plans.append(plan(problem, hours=[hour], running=running, migrations=limit, gap=gap, time_limit_s=time_limit_s))
    return tuple(plans)


def repair(running: Plan, lost: Iterable[str]) -> Plan:
    """Serve all clusters again after the loss of sites, with the remaining replicas and as few new ones as needed.

    The choice is greedy and therefore fast. If it meets a limit, the exact program looks for capacity and may stop
    remaining replicas. `Plan.unserved` has the demand for which there is no capacity.

    Args:
        running: the plan before the loss.
        lost: names of the sites.

    Raises:
        TypeError, ValueError: an argument of the wrong type, or not the name of a site.
        MissingExtra: the greedy choice meets a limit, and highspy is not installed.
    """
    check_instance("running", running, Plan, "a Plan")
    check_instance("lost", lost, lambda it: isinstance(it, Iterable) and not isinstance(it, str), "names of sites")
    problem = running.problem
    index = {site.name: at for at, site in enumerate(problem.sites)}
    lost_sites = {index[check_choice("lost", name, tuple(index))] for name in lost}
    instance = running.instance.without(lost_sites)
    remaining = np.where(instance.uses[list(lost_sites)].any(axis=0), 0.0, running.counts)
    counts = trimmed(instance, remaining, retained=remaining)
    if counts is None:
        solution = solve(instance, gap=1e9)
        counts = _serve_most(instance, remaining) if solution is None else solution.counts
    return make_plan(instance, counts, bound=lower_bound(instance))


def _serve_most(instance: Instance, remaining: NDArray[np.float64]) -> NDArray[np.float64]:
    """Serve as many requests as possible, with the kept replicas if this is possible."""
    flows = instance.flows
    most_served = solve(
        instance.serving(flows.rates, Settings(is_partial=True)), gap=_SERVED_GAP, time_limit_s=_SERVED_S
    )
    assert most_served is not None  # noqa: S101 - nothing that is served is a solution
    served = [flows.empty() for _ in flows.rates]
    for state, flow in enumerate(served):
        flows.extend(state, most_served.counts, flow)
    reduced = instance.serving(np.array([flow.sum(axis=1) for flow in served]) / flows.unit, Settings())
    counts = trimmed(reduced, remaining, retained=remaining)
    if counts is None:
        counts = trimmed(reduced, most_served.counts)
    return most_served.counts if counts is None else counts

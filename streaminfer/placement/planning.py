"""`plan`, `plan_hours` and `repair`: from a problem to replicas."""

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
"""Share of the requests that may be left unserved though there is capacity."""
_SERVED_S = 5.0
"""Longest search for it; 500 clusters at 60 sites take a second."""


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
    """Choose what runs where: the least cost that keeps every promise, or the most quality at a cost.

    One plan serves all hours and scenarios, and what is left of it after each of the problem's failures.

    Args:
        problem: what there is.
        budget: the most that may be spent per hour; the mean quality is then maximized. ``None``: least cost.
        hours: that the plan is for; ``None``: all.
        running: the plan that runs, for ``migrations``.
        migrations: the most replicas that may be started which do not run yet; ``None``: any number.
        method: ``"exact"``, or ``"greedy"``: faster, and needs no extra.
        gap: relative distance to the best plan at which the search ends.
        time_limit_s: the longest search; the plan then says which gap is left. Why there is no plan is looked for as
            long again, without a limit for a minute.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
        InfeasiblePlacement: there is no such plan; the error says why, and which single changes would help, if any do.
        TimeoutError: no plan was found within ``time_limit_s``.
        MissingExtra: highspy is not installed, and the method is exact, or the greedy choice meets a limit.
    """
    check_instance("problem", problem, lambda it: isinstance(it, Problem), "a Problem")
    check_choice("method", method, _METHODS)
    if budget is not None:
        check_number("budget", budget, "a number ≥ 0", lambda it: it >= 0)
    if migrations is not None:
        check_count("migrations", migrations, at_least=0)
    check_number("gap", gap, "a number ≥ 0", lambda it: it >= 0)
    if time_limit_s is not None:
        check_duration("time_limit_s", time_limit_s, positive=True)
    if running is not None:
        check_instance("running", running, lambda it: isinstance(it, Plan), "a Plan or None")
    chosen = None if hours is None else _checked_hours(problem, hours)
    settings = Settings(budget=budget, running=_homes(problem, running), migrations=migrations)
    candidates = find_candidates(problem, chosen)
    if method == "greedy" and (budget is not None or migrations is not None):
        raise ValueError("method: expected 'exact' with budget or migrations, got 'greedy'")
    return _planned(candidates, settings, method, gap, time_limit_s)


def _homes(problem: Problem, running: Plan | None) -> dict[tuple[Any, ...], int]:
    """What runs, by `Pool.home`: the plan may be of a problem with other sites, or in another order."""
    index = {site.name: at for at, site in enumerate(problem.sites)}
    counts = {} if running is None else running.running
    return {
        (model, variant, tuple(index.get(name, -1) for name in sites), kinds): count
        for (model, variant, sites, kinds), count in counts.items()
    }


def _checked_hours(problem: Problem, hours: Iterable[int]) -> tuple[int, ...]:
    check_instance("hours", hours, lambda it: isinstance(it, Iterable), "whole numbers or None")
    chosen = tuple(check_count("hours", hour, at_least=0, at_most=problem.hours - 1) for hour in hours)
    if not chosen:
        raise ValueError(expected("hours", "at least one hour", hours))
    return chosen


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
    """Choose what runs in each hour; each plan starts from the one before.

    Args:
        problem: what there is.
        migrations: the most replicas that may be started from one hour to the next.
        gap: as in `plan`.
        time_limit_s: of each plan.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
        InfeasiblePlacement: there is no plan for an hour.
        TimeoutError: none was found within ``time_limit_s``.
    """
    check_instance("problem", problem, lambda it: isinstance(it, Problem), "a Problem")
    if migrations is not None:
        check_count("migrations", migrations, at_least=0)
    plans: list[Plan] = []
    for hour in range(problem.hours):
        running = plans[-1] if plans else None
        limit = migrations if plans else None
        plans.append(plan(problem, hours=[hour], running=running, migrations=limit, gap=gap, time_limit_s=time_limit_s))
    return tuple(plans)


def repair(running: Plan, lost: Iterable[str]) -> Plan:
    """Serve everybody again after the loss of sites, with the replicas that are left and as few new ones as needed.

    Greedy, so it is fast. Where it meets a limit the exact program looks for capacity, and may stop replicas that are
    left; what there is no capacity for is in `Plan.unserved`.

    Args:
        running: the plan before the loss.
        lost: names of the sites.

    Raises:
        TypeError, ValueError: an argument of the wrong type, or not the name of a site.
        MissingExtra: highspy is not installed, and the greedy choice meets a limit.
    """
    check_instance("running", running, lambda it: isinstance(it, Plan), "a Plan")
    if isinstance(lost, str):
        raise TypeError(expected("lost", "names of sites", lost))
    problem = running.problem
    index = {site.name: at for at, site in enumerate(problem.sites)}
    gone = {index[check_choice("lost", name, tuple(index))] for name in lost}
    instance = running.instance.without(gone)
    kept = np.where(instance.uses[list(gone)].any(axis=0), 0.0, running.counts)
    counts = trimmed(instance, kept, kept=kept)
    if counts is None:
        solution = solve(instance, gap=1e9)
        counts = _serve_most(instance, kept) if solution is None else solution.counts
    return make_plan(instance, counts, bound=lower_bound(instance))


def _serve_most(instance: Instance, kept: NDArray[np.float64]) -> NDArray[np.float64]:
    """Serve as many requests as possible, with the replicas that are kept if they can do it."""
    flows = instance.flows
    most = solve(instance.serving(flows.rates, Settings(is_partial=True)), gap=_SERVED_GAP, time_limit_s=_SERVED_S)
    assert most is not None  # noqa: S101 - nothing that is served is a solution
    served = [flows.empty() for _ in flows.rates]
    for state, flow in enumerate(served):
        flows.extend(state, most.counts, flow)
    less = instance.serving(np.array([flow.sum(axis=1) for flow in served]) / flows.unit, Settings())
    counts = trimmed(less, kept, kept=kept)
    if counts is None:
        counts = trimmed(less, most.counts)
    return most.counts if counts is None else counts

"""Prices of changes, compared with plans of the changed problem."""

import math

import attrs
import pytest
from placement_problems import small_problem

from streaminfer.placement import InfeasiblePlacement, plan, prices


def savings(found):
    return {it.change: it.saving for it in prices(found, gap=0.0).prices}


def problem_with_least_quality():
    """Return a problem that has a plan and a service class with a least quality."""
    for seed in range(40):
        problem = small_problem(seed, "quality")
        if any(it.min_quality > 1.0 for it in problem.service_classes):
            try:
                plan(problem)
            except InfeasiblePlacement:
                continue
            return problem
    raise AssertionError


def test_least_quality_has_its_price():
    """The price of a least quality is the saving of a plan with any variant; classes that require none have no row."""
    problem = problem_with_least_quality()
    classes = [attrs.evolve(it, min_quality=-math.inf) for it in problem.service_classes]
    found, free = plan(problem, gap=0.0), plan(attrs.evolve(problem, service_classes=classes), gap=0.0)

    assert savings(found)["any quality for class 'slow'"] == pytest.approx(found.cost - free.cost)
    assert found.cost > free.cost
    assert not any(change.startswith("any quality") for change in savings(free))


def test_budget_has_its_price():
    """The price of a budget is the quality that a plan with 5 % more budget gains."""
    problem = problem_with_least_quality()
    classes = [attrs.evolve(it, min_quality=-math.inf) for it in problem.service_classes]
    problem = attrs.evolve(problem, service_classes=classes)
    budget = 1.36 * plan(problem, gap=0.0).cost
    found, richer = (plan(problem, budget=it, gap=0.0) for it in (budget, 1.05 * budget))

    assert richer.quality > found.quality
    assert savings(found)["5% more budget"] == pytest.approx(richer.quality - found.quality, abs=1e-6)
    assert "5% more budget" not in savings(plan(problem))


def test_prices_where_nothing_runs():
    """Without requests, no change saves anything."""
    problem = small_problem(0, "plain")
    silent = attrs.evolve(problem, clusters=[attrs.evolve(it, rates=[0.0]) for it in problem.clusters])

    assert set(savings(plan(silent)).values()) == {0.0}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gap": None}, "gap: expected a number ≥ 0"),
        ({"gap": -1.0}, "gap: expected a number ≥ 0"),
        ({"time_limit_s": "60"}, "time_limit_s: expected a finite number of seconds > 0"),
    ],
)
def test_wrong_argument_is_named(wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        prices(plan(small_problem(1, "quality")), **wrong)

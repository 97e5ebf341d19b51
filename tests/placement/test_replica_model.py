"""Totals of replicas, and their bounds."""

import time

import attrs
import numpy as np
import pytest
from placement_problems import KINDS, BruteForce, small_problem

from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.placement import (
    AccessProfile,
    DeviceGroup,
    Distribution,
    Link,
    Model,
    Problem,
    ServiceClass,
    Shard,
    Site,
    UserCluster,
    Variant,
)
from streaminfer.placement.solver import program
from streaminfer.placement.solver.candidates import find_candidates
from streaminfer.placement.solver.instance import Instance, Settings
from streaminfer.placement.solver.program import solve

ROUNDS = 8


def relaxed(instance):
    """Return a search whose linear relaxation has its cuts."""
    search = program._Search(instance, 0.0, np.inf)
    search._first_cuts()
    search._cut_relaxation()
    return search


def columns_of(counts, brute, instance):
    """Return the rows of counts whose pools the instance has, by its pools."""
    columns = np.zeros((len(counts), len(brute.candidates.pools)))
    columns[:, brute.columns] = counts
    return columns[columns[:, instance.pool_indexes].sum(axis=1) == columns.sum(axis=1)][:, instance.pool_indexes]


def bounds_of_totals(model):
    linear = model._highs.getLp()
    return [(linear.col_lower_[column], linear.col_upper_[column]) for column in range(model.at_totals, model.columns)]


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_for_all_plans_within_the_cutoff(kind):
    """The bounds hold for every plan that is as good as the cutoff.

    Brute force finds no plan with at most 1.1 times the least cost whose totals are outside the bounds.
    """
    widths = []
    for seed in range(ROUNDS):
        candidates = find_candidates(small_problem(seed, kind))
        instance, brute = Instance(candidates), BruteForce(candidates)
        cutoff = 1.1 * brute.least_cost()
        if not np.isfinite(cutoff):
            continue
        counts = brute.counts()
        counts = counts[brute.feasible(counts) & (brute.costs(counts) <= cutoff)]
        columns = columns_of(counts, brute, instance)
        model = relaxed(instance).model
        used = np.array([(instance.uses & (row > 0)).any(axis=1)[model.priced] for row in columns])
        whole = np.concatenate([columns, used], axis=1)

        assert model.narrow(cutoff, np.inf)

        for members, (least, most) in zip(model.totals, bounds_of_totals(model), strict=True):
            totals = whole[:, list(members)].sum(axis=1)
            assert least <= totals.min() <= totals.max() <= most, seed
            widths.append(most - least)
    assert min(widths) <= 1


def test_bounds_hold_for_all_plans_of_a_quality():
    """The bounds hold for every plan with 0.9 times the best quality, and a quality above the best has no plan."""
    widths, spread = [], 0
    for seed in range(ROUNDS):
        candidates = find_candidates(small_problem(seed, "quality"))
        brute = BruteForce(candidates)
        if not np.isfinite(least := brute.least_cost()):
            continue
        brute.budget = 1.25 * least
        instance = Instance(candidates, settings=Settings(budget=brute.budget))
        best = solve(instance, gap=0.0)
        counts = brute.counts()
        counts = counts[brute.feasible(counts) & (brute.mean_qualities(counts) >= 0.9 * best.value)]
        columns = columns_of(counts, brute, instance)
        model = relaxed(instance).model

        assert model.narrow(-0.9 * best.value, np.inf)  # qualities are costs below zero

        for members, (fewest, most) in zip(model.totals, bounds_of_totals(model), strict=True):
            totals = columns[:, list(members)].sum(axis=1)
            assert fewest <= totals.min() <= totals.max() <= most, seed
            widths.append(most - fewest)
            spread += totals.min() < totals.max()

        assert not model.narrow(-best.value - 0.5 * (best.bound - best.value) - 0.1, np.inf)
    assert min(widths) <= 1
    assert spread


def test_objective_and_rows_survive_narrow():
    """After a narrowing, the model optimizes to the same objective and has the same rows."""
    search = relaxed(Instance(find_candidates(small_problem(0, "plain"))))
    model = search.model
    before, rows = model.objective, model._highs.getNumRow()

    model.narrow(2 * before, np.inf)
    model.optimize(np.inf)

    assert model.objective == pytest.approx(before)
    assert model._highs.getNumRow() == rows


def test_totals_are_bounded_after_a_search_too():
    """After a search, totals above the cutoff are still bounded: the cutoff ends a search, and not these programs."""
    instance = many_sites(40.4)
    instance.prices = 0.01 * instance.prices
    instance.site_prices = 0.01 * instance.site_prices
    model = relaxed(instance).model
    assert model.narrow(1.1 * model.objective, np.inf)
    model.declare(is_integer=True)
    model.optimize(10.0)

    assert model.narrow(1.02 * model.objective, np.inf)

    sites, replicas = bounds_of_totals(model)[:2]
    assert (sites, replicas) == ((11, 12), (41, 41))


def test_no_totals_are_bounded_without_time():
    """Once the time limit has passed, the bounds of all totals are 0 and infinity."""
    search = relaxed(Instance(find_candidates(small_problem(0, "plain"))))

    assert search.model.narrow(1.01 * search.model.objective, time.monotonic() - 1)

    assert set(bounds_of_totals(search.model)) == {(0.0, np.inf)}


def many_sites(load):
    """Return an instance of one cluster that needs ``load`` replicas, and sites with four slots at similar prices."""
    sites = [
        Site(name=f"s{s}", price=0.2, devices=[DeviceGroup(kind="gpu", slots=4, price=1 + 0.003 * (s * 7 % 12))])
        for s in range(12)
    ]
    problem = Problem(
        clusters=[UserCluster(name="c", rates=(1.0,), access="wired", service_class="normal", model="m")],
        sites=sites,
        models=[
            Model(
                name="m",
                variants=[
                    Variant(
                        name="v",
                        max_batch_size=4,
                        shards=[Shard(service_time={"gpu": ServiceTime.affine(0.004, 0.002)}, memory_bytes=1.0)],
                    )
                ],
            )
        ],
        access=[AccessProfile(name="wired", rtt=Distribution.of([0.001, 0.002]))],
        service_classes=[ServiceClass(name="normal", slo_s=0.5)],
        links={"c": {site.name: Link(rtt=Distribution.of(0.004)) for site in sites}},
    )
    rate = max(pool.rate for pool in find_candidates(problem).pools)
    cluster = attrs.evolve(problem.clusters[0], rates=(load * rate,))
    return Instance(find_candidates(attrs.evolve(problem, clusters=[cluster])))


def test_plan_is_proven_best_by_its_number_of_replicas(monkeypatch):
    """A load of 40.4 replicas needs 41, so a plan with 41 is proven best without a search for their sites."""
    searches = []
    monkeypatch.setattr(program._Search, "_optimize_integer", lambda *args: searches.append(args))

    solution = solve(many_sites(40.4), gap=0.001)

    assert solution.counts.sum() == 41
    assert solution.gap <= 0.001
    assert not searches

"""Explanations why there is no plan: conflicts that brute force confirms, and changes that help."""

import pickle

import attrs
import numpy as np
import pytest
from placement_problems import KINDS, BruteForce, satisfiable, small_problem

from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.placement import Distribution, InfeasiblePlacement, Link, RttSamples, plan, repair
from streaminfer.placement.conflicts import constraints, infeasible_placement, is_feasible, quick_explain
from streaminfer.placement.solver.candidates import find_candidates
from streaminfer.placement.solver.instance import Settings

ROUNDS = 20


@pytest.mark.parametrize("kind", KINDS)
def test_conflict_is_irreducible(kind):
    """Brute force finds no placement for a conflict, and finds one for the conflict without any one of its members."""
    for seed in range(ROUNDS):
        candidates = find_candidates(small_problem(seed, kind))
        everything = list(constraints(candidates, Settings()))
        if is_feasible(candidates, Settings(), everything):
            continue

        conflict = infeasible_placement(candidates, Settings()).conflict

        assert not satisfiable(candidates, conflict)
        for member in conflict:
            assert satisfiable(candidates, [it for it in conflict if it != member]), (seed, str(member))


@pytest.mark.parametrize("kind", ["plain", "memory", "failures", "shards", "site_prices"])
@pytest.mark.parametrize("options", [{"budget": 0.8}, {"migrations": 1}, {"budget": 1.2, "migrations": 0}], ids=str)
def test_budget_or_migration_conflict_is_irreducible(kind, options):
    """A conflict that has a budget or a limit on migrations is irreducible.

    Brute force confirms it. The budget is a multiple of the least cost; each pool of the first site runs one replica.
    """
    explained = 0
    for seed in range(ROUNDS // 2, ROUNDS):
        candidates = find_candidates(small_problem(seed, kind))
        least = BruteForce(candidates).least_cost()
        if not np.isfinite(least):
            continue
        limits = options | ({"budget": options["budget"] * least} if "budget" in options else {})
        settings = Settings(running={pool.home: 1 for pool in candidates.pools if pool.sites[0] == 0}, **limits)
        everything = list(constraints(candidates, settings))
        if is_feasible(candidates, settings, everything):
            assert satisfiable(candidates, everything, settings), seed
            continue

        conflict = infeasible_placement(candidates, settings).conflict

        explained += 1
        assert not satisfiable(candidates, conflict, settings), seed
        for member in conflict:
            assert satisfiable(candidates, [it for it in conflict if it != member], settings), (seed, str(member))
    assert explained


@pytest.mark.parametrize("kind", ["failures", "classes"])
def test_conflict_is_valid_after_any_number_of_tests(kind):
    """After any number of tests, brute force finds no placement for the conflict; more tests make it no larger."""
    problem = small_problem(11, kind)
    crowded = attrs.evolve(
        problem, clusters=[attrs.evolve(it, rates=[9 * rate for rate in it.rates]) for it in problem.clusters]
    )
    candidates = find_candidates(crowded)
    everything = list(constraints(candidates, Settings()))

    sizes, is_irreducible = [], False
    while not is_irreducible:
        left = tests = len(sizes)

        def feasible(subset):
            nonlocal left
            left -= 1
            if left < 0:
                raise TimeoutError
            return is_feasible(candidates, Settings(), subset)

        conflict, is_irreducible = quick_explain(feasible, everything)
        assert not satisfiable(candidates, conflict), tests
        sizes.append(len(conflict))

    assert sizes[0] == len(everything)
    assert len(set(sizes)) > 3
    assert sizes == sorted(sizes, reverse=True)


def test_explanation_without_time_has_everything():
    """Without time, the explanation has all constraints and is not irreducible; its message lists the first 20."""
    problem = small_problem(0, "plain")
    clusters = [
        attrs.evolve(it, name=f"{it.name} {number}", rates=[1e5]) for number in range(10) for it in problem.clusters
    ]
    links = {it.name: problem.links[it.name.split()[0]] for it in clusters}
    candidates = find_candidates(attrs.evolve(problem, clusters=clusters, links=links))

    error = infeasible_placement(candidates, Settings(), time_limit_s=1e-9)

    everything = tuple(constraints(candidates, Settings()))
    assert (error.conflict, error.relaxations, error.is_irreducible) == (everything, (), False)
    assert str(error).endswith(f"; and {len(everything) - 20} more")
    assert not pickle.loads(pickle.dumps(error)).is_irreducible


def test_plan_passes_its_time_limit_on(monkeypatch):
    """The explanation gets the time limit of the plan."""
    problem = small_problem(0, "plain")
    alone = [attrs.evolve(problem.clusters[0], rates=[1e5])]
    seen = []

    def noted(candidates, settings, time_limit_s=None):
        seen.append(time_limit_s)
        return infeasible_placement(candidates, settings, time_limit_s)

    monkeypatch.setattr("streaminfer.placement.planning.infeasible_placement", noted)

    for limit_s in (None, 30.0):
        assert raised(
            attrs.evolve(problem, clusters=alone, links={"c0": problem.links["c0"]}), time_limit_s=limit_s
        ).is_irreducible
    assert seen == [None, 30.0]


def test_unpromisable_round_trips_are_named():
    """The conflict names a link with too few measurements, because a longer SLO does not help, and no other link."""
    problem = small_problem(0, "plain")
    cluster, (near, far) = problem.clusters[0], [it.name for it in problem.sites[:2]]
    few = RttSamples({cluster.name: {near: np.linspace(0.01, 0.02, 20)}}).links()[cluster.name][near]
    alone = attrs.evolve(problem, clusters=[attrs.evolve(cluster, rates=[1.0])], links={})

    def promise(**links):
        conflict = raised(attrs.evolve(alone, links={cluster.name: links})).conflict
        return next(str(it) for it in conflict if it.kind == "slo")

    slow = promise(**{near: Link(rtt=Distribution.of(9.0))})
    assert "unpromisable" not in slow
    assert (
        promise(**{near: Link(rtt=Distribution.of(9.0)), far: few})
        == f"{slow} (the round trip to '{far}' is unpromisable)"
    )


def plannable(kind):
    """Return the first problem of a kind that has a plan, and its least cost."""
    for seed in range(ROUNDS):
        problem = small_problem(seed, kind)
        least = BruteForce(find_candidates(problem)).least_cost()
        if np.isfinite(least):
            return problem, least
    raise AssertionError(kind)


def raised(problem, **options):
    with pytest.raises(InfeasiblePlacement) as caught:
        plan(problem, **options)
    return caught.value


def helpful(error, kind):
    (found,) = [it for it in error.relaxations if it.constraint.kind == kind]
    return found


@pytest.mark.parametrize("kind", ["plain", "site_prices", "failures"])
def test_budget_that_would_suffice_is_the_least(kind):
    """The budget that would suffice is the least cost, within the gap; the printed number suffices as well."""
    problem, least = plannable(kind)

    found = helpful(raised(problem, budget=least / 2), "budget")

    assert least <= found.amount <= 1.0011 * least
    assert str(found) == f"spend {found.amount:.6g}"
    assert plan(problem, budget=float(str(found).split()[-1])).cost <= found.amount


@pytest.mark.parametrize("options", [{}, {"budget": 1e3}], ids=["least cost", "budget"])
def test_migrations_that_would_suffice_are_the_fewest(options):
    """With one migration fewer than the error names, there is no plan."""
    problem, _ = plannable("plain")
    nothing = repair(plan(problem), [site.name for site in problem.sites])

    found = helpful(raised(problem, running=nothing, migrations=0, **options), "migrations")

    fewest = int(found.amount)
    assert fewest > 1
    assert str(found) == f"start {fewest} replicas"
    assert (
        sum(group.replicas for group in plan(problem, running=nothing, migrations=fewest, **options).replicas) == fewest
    )
    assert helpful(raised(problem, running=nothing, migrations=fewest - 1, **options), "migrations") == found


@pytest.mark.parametrize("rate", [601.0, 777.0, 1003.0, 1234.0])
def test_demand_that_would_suffice_is_the_most(rate):
    """The printed share of the demand can be served, and a share that is 0.2 percentage points larger cannot."""
    problem = small_problem(0, "plain")
    (cluster,) = clusters = problem.clusters[:1]
    alone = attrs.evolve(problem, clusters=clusters, links={"c0": problem.links["c0"]})

    def with_rate(rate):
        return attrs.evolve(alone, clusters=[attrs.evolve(cluster, rates=rate)])

    found = helpful(raised(with_rate(rate)), "demand")

    assert str(found) == f"serve {found.amount:.1%} of cluster 'c0'"
    told = float(str(found).split()[1].rstrip("%")) / 100
    assert plan(with_rate(told * rate)).unserved == {}
    raised(with_rate((told + 0.002) * rate))


def test_quality_that_would_suffice_is_the_best():
    """The quality that would suffice is that of the best variant that is fast enough."""
    problem = small_problem(0, "plain")
    (model,) = problem.models
    (shard,) = model.variants[0].shards
    slow = attrs.evolve(shard, service_time={"cpu": ServiceTime.affine(1.0, 1.0)})
    variants = [
        attrs.evolve(model.variants[0], name=f"q{quality}", quality=quality, shards=[shard if quality < 4 else slow])
        for quality in (1.0, 2.0, 3.0, 4.0, 5.0)
    ]
    classes = [attrs.evolve(it, min_quality=5.0) for it in problem.service_classes]
    alone = attrs.evolve(
        problem,
        clusters=problem.clusters[:1],
        links={"c0": problem.links["c0"]},
        models=[attrs.evolve(model, variants=variants)],
        service_classes=classes,
    )

    found = helpful(raised(alone), "quality")

    assert (found.amount, str(found)) == (3.0, "accept a quality of 3 for cluster 'c0'")


def test_failure_listed_twice_is_not_relaxed_once():
    """Removing one of two equal failures is not a relaxation that suffices.

    The plan would still have to survive the other group, which has the same sites in another order.
    """
    problem, _ = plannable("plain")
    names = [site.name for site in problem.sites]

    error = raised(attrs.evolve(problem, failures=[names, names[::-1]]))

    assert [it.kind for it in error.conflict] == ["failure", "demand"]
    assert "failure" not in {it.constraint.kind for it in error.relaxations}


def test_error_comes_back_from_a_process():
    """An error can be pickled, so that a pool of processes that plan returns the error of each."""
    candidates = find_candidates(small_problem(0, "memory"))
    error = infeasible_placement(candidates, Settings(budget=0.0))

    copied = pickle.loads(pickle.dumps(error))

    assert (str(copied), copied.conflict) == (str(error), error.conflict)

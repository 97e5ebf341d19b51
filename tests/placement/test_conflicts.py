"""Why there is no plan: conflicts that brute force confirms, and changes that help."""

import pickle

import numpy as np
import pytest
from placement_problems import KINDS, BruteForce, satisfiable, small_problem

from streaminfer.placement.conflicts import constraints, infeasible_placement, is_feasible
from streaminfer.placement.solver.candidates import find_candidates
from streaminfer.placement.solver.instance import Settings

ROUNDS = 20


@pytest.mark.parametrize("kind", KINDS)
def test_conflict_is_irreducible(kind):
    """Brute force finds no counts for the conflict, and finds some without any one of its members."""
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
def test_conflict_with_budget_or_migrations_is_irreducible(kind, options):
    """Brute force confirms it; the budget is a part of the least cost, and one replica of each form runs at the first site."""
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


def test_error_comes_back_from_a_process():
    """A pool of processes that plan returns what each raised."""
    candidates = find_candidates(small_problem(0, "memory"))
    error = infeasible_placement(candidates, Settings(budget=0.0))

    copied = pickle.loads(pickle.dumps(error))

    assert (str(copied), copied.conflict) == (str(error), error.conflict)

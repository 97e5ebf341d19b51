"""Why there is no plan: conflicts that brute force confirms, and changes that help."""

import pickle

import pytest
from placement_problems import KINDS, satisfiable, small_problem

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


def test_error_comes_back_from_a_process():
    """A pool of processes that plan returns what each raised."""
    candidates = find_candidates(small_problem(0, "memory"))
    error = infeasible_placement(candidates, Settings(budget=0.0))

    copied = pickle.loads(pickle.dumps(error))

    assert (str(copied), copied.conflict) == (str(error), error.conflict)

"""The exact program against brute force."""

import numpy as np
import pytest
from placement_problems import KINDS, BruteForce, small_problem

from streaminfer.placement.solver.candidates import find_candidates
from streaminfer.placement.solver.instance import Instance, Settings
from streaminfer.placement.solver.program import solve

ROUNDS = 20


@pytest.mark.parametrize("kind", KINDS)
def test_least_cost_equals_brute_force(kind):
    """The plan costs what the best of all plans costs, and there is none where no counts serve everybody."""
    for seed in range(ROUNDS):
        candidates = find_candidates(small_problem(seed, kind))
        least = BruteForce(candidates).least_cost()

        solution = solve(Instance(candidates), gap=0.0)

        assert (np.inf if solution is None else solution.value) == pytest.approx(least, rel=1e-6), seed


def test_most_quality_equals_brute_force():
    """Within a budget the mean quality is the largest of all plans."""
    for seed in range(ROUNDS):
        candidates = find_candidates(small_problem(seed, "quality"))
        brute = BruteForce(candidates)
        if not np.isfinite(least := brute.least_cost()):
            continue
        budget = 1.25 * least

        solution = solve(Instance(candidates, settings=Settings(budget=budget)), gap=0.0)

        assert solution is not None
        assert solution.value == pytest.approx(brute.most_quality(budget), rel=1e-5), seed


def test_solver_prints_nothing(capfd):
    """The banner of the solver stays away from the caller's output."""
    solve(Instance(find_candidates(small_problem(0, "plain"))))

    assert capfd.readouterr() == ("", "")

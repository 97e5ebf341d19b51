"""The exact program against brute force."""

from concurrent.futures import ThreadPoolExecutor

import attrs
import highspy
import numpy as np
import pytest
from placement_problems import KINDS, BruteForce, small_problem

from streaminfer.placement.solver import program
from streaminfer.placement.solver.candidates import find_candidates
from streaminfer.placement.solver.instance import Instance, Settings
from streaminfer.placement.solver.program import solve
from streaminfer.placement.solver.replica_model import ReplicaModel, _make_silent_solver

ROUNDS = 20


@pytest.mark.parametrize("kind", KINDS)
def test_least_cost_equals_brute_force(kind):
    """The plan has the least cost of all plans, and there is no plan if no placement serves all clusters."""
    for seed in range(ROUNDS):
        candidates = find_candidates(small_problem(seed, kind))
        least = BruteForce(candidates).least_cost()

        solution = solve(Instance(candidates), gap=0.0)

        assert (np.inf if solution is None else solution.value) == pytest.approx(least, rel=1e-6), seed


def test_most_quality_equals_brute_force():
    """Within a budget, the plan has the largest mean quality of all plans."""
    for seed in range(ROUNDS):
        candidates = find_candidates(small_problem(seed, "quality"))
        brute = BruteForce(candidates)
        if not np.isfinite(least := brute.least_cost()):
            continue
        budget = 1.25 * least

        solution = solve(Instance(candidates, settings=Settings(budget=budget)), gap=0.0)

        assert solution is not None
        assert solution.value == pytest.approx(brute.most_quality(budget), rel=1e-5), seed


@pytest.mark.parametrize("gap", [0.001, 0.01, 0.05, 0.1])
def test_gap_of_a_plan_is_at_most_the_given_gap(gap):
    """The gap of a plan is at most the given one, although the search leaves out what is within the gap."""
    gaps = []
    for seed in range(ROUNDS):
        solution = solve(Instance(find_candidates(small_problem(seed, "plain"))), gap=gap)
        gaps += [] if solution is None else [solution.gap]

    assert gaps
    assert max(gaps) <= gap


def test_unlimited_sites_keep_their_price():
    """Ten million slots cost the same as fifty: the solver's tolerance does not hide the price of a site."""
    for seed in range(ROUNDS):
        costs = []
        for slots in (50, 10_000_000):
            problem = small_problem(seed, "site_prices")
            sites = [
                attrs.evolve(site, devices=[attrs.evolve(group, slots=slots) for group in site.devices])
                for site in problem.sites
            ]
            costs.append(solve(Instance(find_candidates(attrs.evolve(problem, sites=sites))), gap=0.0))

        fifty, endless = (None if it is None else (it.value, it.bound) for it in costs)
        assert endless == (None if fifty is None else pytest.approx(fifty, rel=1e-6)), seed


def test_other_uses_of_highs_change_no_plan():
    """A program that solves problems of its own with HiGHS, before and after, in any number of threads, gets its plan.

    HiGHS keeps its workers for each thread, and solves nothing with another number of them.
    """
    candidates = find_candidates(small_problem(1, "memory"))

    def solve_another(threads):
        another = _make_silent_solver(highspy)
        another.setOptionValue("threads", threads)
        another.addVar(0.0, 1.0)
        return another.run()

    def solve_all():
        return [(solve_another(threads), solve(Instance(candidates), gap=0.0)) for threads in (2, 1, 3)]

    with ThreadPoolExecutor(1) as fresh_thread:
        solved = fresh_thread.submit(solve_all).result()

    least = pytest.approx(BruteForce(candidates).least_cost(), rel=1e-6)
    assert [(status, solution.value) for status, solution in solved] == [(highspy.HighsStatus.kOk, least)] * 3


def test_solver_prints_nothing(capfd):
    """The solver's banner is not in the caller's output."""
    solve(Instance(find_candidates(small_problem(0, "plain"))))

    assert capfd.readouterr() == ("", "")


def test_search_that_runs_out_of_time_is_repeated(monkeypatch):
    """A search that its time limit ends is followed by a longer one.

    Neither its missing solution nor its bound is taken for a result.
    """
    candidates = find_candidates(small_problem(1, "memory"))
    optimize, limits = ReplicaModel.optimize, []

    def cut_short(self, limit_s, *, target):
        values = optimize(self, limit_s, target=target)
        if self._is_integer and limit_s < 3 * program._SEARCH_S:
            limits.append(limit_s)
            self.is_finished, self.bound = False, -np.inf
            return None
        return values

    monkeypatch.setattr(ReplicaModel, "optimize", cut_short)

    solution = solve(Instance(candidates), gap=0.0)

    assert limits == [program._SEARCH_S, 2 * program._SEARCH_S]
    assert solution.value == pytest.approx(BruteForce(candidates).least_cost(), rel=1e-6)


def test_each_search_has_its_own_time():
    """The time limit of a linear program includes earlier runs, whose time HiGHS counts; that of a search does not."""
    model = ReplicaModel(Instance(find_candidates(small_problem(0, "plain"))), gap=0.0)
    for whole in (False, True, False, True):
        model.declare(is_integer=whole)
        before_s = model._highs.getRunTime()
        model.optimize(3.0)
        assert model._highs.getOptionValue("time_limit")[1] == 3.0 + (0.0 if whole else before_s)


def test_rows_are_scaled_to_the_solver_tolerances():
    """The largest coefficient of the program is between 1e-4 and 1, because the solver's tolerances are absolute.

    With rows in bytes, HiGHS 1.16 does not end.
    """
    model = ReplicaModel(Instance(find_candidates(small_problem(1, "memory"))), gap=0.0)

    assert 1e-4 <= np.abs(model._highs.getLp().a_matrix_.value_).max() <= 1.0

"""`ReplicaModel`: variables and rows of a plan in HiGHS."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.loading.extras import require
from streaminfer.placement.solver.instance import Instance

__all__ = ["ReplicaModel", "own_scheduler"]

_SLACK = 0.02
"""Slack above which a cut is dropped, as a share of its largest number."""

_ROUNDING = 1e-4
"""Rounding of the bounds of a total, above the solver's tolerance."""

_NO_HEURISTICS = {
    "mip_heuristic_effort": 0.0,
    "mip_heuristic_run_feasibility_jump": False,
    "mip_heuristic_run_rens": False,
    "mip_heuristic_run_rins": False,
    "mip_heuristic_run_root_reduced_cost": False,
}
"""Options without the solver's heuristics, which took half of a search's time for solutions that lack cuts."""

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


class ReplicaModel:
    """Linear program with replicas and sites that can be declared whole numbers.

    Columns: replicas of each pool, used sites, started replicas by home, flows by quality step and state, totals.

    *Totals.* If prices are close, a search branches over hundreds of equal places for a replica, and never over the
    number of replicas. So the replicas of each device type, variant and level, and the used sites, have totals as
    additional whole variables. Two linear programs per total find the bounds of all plans that are better than the best
    known plan. Rounded to whole numbers, these bounds leave few values, often one.

    Args:
        instance: pools to choose from.
        gap: relative gap; the solver stops at 95 % of it.

    Attributes:
        is_quality: whether the program maximizes quality, or the served share, as a negative cost: it minimizes.
        priced: sites that cost something.
        quality_flows: state and least quality of each flow, the best quality first, where quality is maximized.
        at_sites: first column of the sites, and so on.
        objective: value of the last solution.
        bound: bound of the last search for whole replicas.
        is_finished: whether that search, or the linear program, ended before its time limit.
        is_infeasible: whether it has proven that there is no solution.
        improving: whole solutions that the last search found on its way.
    """

    def __init__(self, instance: Instance, gap: float) -> None:
        self.instance = instance
        self._highspy = require("highspy", extra="placement", purpose="plan")
        self.infinity: float = self._highspy.kHighsInf
        self.is_quality = instance.settings.budget is not None or instance.settings.is_partial
        self.priced = np.flatnonzero(instance.site_prices)
        homes = list(dict.fromkeys(pool.home for pool in instance.pools))
        self.homes = homes if instance.settings.migrations is not None else []
        steps = instance.steps() if self.is_quality else np.zeros(0)
        self.quality_flows = [(state, quality) for quality in steps for state in instance.normal()]
        self.at_sites = len(instance.pools)
        self.at_homes = self.at_sites + len(self.priced)
        self.at_flows = self.at_homes + len(self.homes)
        self.at_totals = self.at_flows + len(self.quality_flows)
        self.totals = self._groups()
        self.columns = self.at_totals + len(self.totals)
        self._resource_rows: dict[int, tuple[int, float]] = {}  # of each resource, with its unit
        self.improving: list[Floats] = []
        self.objective = self.bound = 0.0
        self.is_finished = False
        self.is_infeasible = False
        self._cutoff = self.infinity
        self._is_integer = False
        self._highs = _make_silent_solver(self._highspy)
        options = {"threads": 1, "mip_rel_gap": 0.95 * gap, "mip_abs_gap": 1e-9, **_NO_HEURISTICS}
        for option, value in options.items():
            self._highs.setOptionValue(option, value)
        self._costs = self._add_columns()
        for total, members in enumerate(self.totals, self.at_totals):
            self.add_row([*members, total], [*np.ones(len(members)), -1.0], 0.0, 0.0)
        self._limit_resources()
        if instance.settings.migrations is not None:
            self._limit_migrations(instance.settings.migrations)
        if instance.settings.budget is not None:
            prices = np.concatenate([instance.prices, instance.site_prices[self.priced]])
            self.add_row(np.arange(self.at_homes), prices, -self.infinity, instance.settings.budget)
        self._fixed_rows = self._highs.getNumRow()
        self._highs.cbMipImprovingSolution.subscribe(
            lambda event: self.improving.append(np.array(event.data_out.mip_solution))
        )

    def resource_duals(self) -> dict[int, float]:
        """Return the dual values of one unit of each resource in the last linear program."""
        duals = self._highs.getSolution().row_dual
        return {resource: duals[row] / unit for resource, (row, unit) in self._resource_rows.items()}

    def declare(self, *, is_integer: bool) -> None:
        """Make replicas and sites whole, or not."""
        self._is_integer = is_integer
        kind = self._highspy.HighsVarType.kInteger if is_integer else self._highspy.HighsVarType.kContinuous
        columns = np.r_[: self.at_homes, self.at_totals : self.columns].astype(np.int32)
        self._highs.changeColsIntegrality(len(columns), columns, np.array([kind] * len(columns)))

    def optimize(self, limit_s: float, *, target: float | None = None) -> Floats | None:
        """Return the values of the columns; ``None`` if there is no solution.

        Args:
            limit_s: seconds after which the best so far is returned.
            target: an objective at which a search for whole replicas ends; ``None``: the best, within the gap.
        """
        self.improving.clear()
        before_s = self._highs.getRunTime()  # a linear program counts the time of earlier runs, a search does not
        if self._is_integer:
            self._highs.clearSolver()  # HiGHS 1.16 ends with a wrong optimum for some starting solutions
            before_s = 0.0
        self._highs.setOptionValue("time_limit", before_s + limit_s)
        self._highs.setOptionValue("objective_target", -self.infinity if target is None else target)
        self._highs.setOptionValue("objective_bound", self._cutoff if self._is_integer else self.infinity)
        self._highs.run()
        info = self._highs.getInfo()  # adding a row resets it
        self.objective, self.bound = info.objective_function_value, info.mip_dual_bound
        status, statuses = self._highs.getModelStatus(), self._highspy.HighsModelStatus
        self.is_finished = status != statuses.kTimeLimit
        self.is_infeasible = status in {statuses.kInfeasible, statuses.kUnboundedOrInfeasible}
        solution = self._highs.getSolution()
        if self.is_infeasible or not solution.value_valid:
            return None
        values: Floats = np.array(solution.col_value)
        return values

    def narrow(self, cutoff: float, end_s: float) -> bool:
        """Bound the totals to those of solutions as good as the cutoff; return whether such solutions can exist.

        Args:
            cutoff: an objective value.
            end_s: instant of `time.monotonic` at which to stop; what is bounded by then is valid.
        """
        highs = self._highs
        self.declare(is_integer=False)
        self._cutoff = cutoff
        highs.setOptionValue("objective_bound", self.infinity)  # the objective is now a total
        scale = max(float(np.abs(self._costs).max(initial=0.0)), 1e-12)
        all_columns = np.arange(self.columns, dtype=np.int32)
        self.add_row(all_columns, self._costs / scale, -self.infinity, cutoff / scale)
        highs.changeColsCost(self.columns, all_columns, np.zeros(self.columns))
        is_possible = True
        for total in range(self.at_totals, self.columns):
            minimum, maximum = (sign * self._minimum(total, sign, end_s) for sign in (1.0, -1.0))
            minimum, maximum = np.ceil(minimum - _ROUNDING), np.floor(maximum + _ROUNDING)
            if minimum > maximum:
                is_possible = False
                break
            highs.changeColBounds(total, max(minimum, 0.0), maximum)
        highs.deleteRows(1, np.array([highs.getNumRow() - 1], np.int32))
        highs.changeColsCost(self.columns, all_columns, self._costs)
        return is_possible

    def _minimum(self, total: int, sign: float, end_s: float) -> float:
        """Return the minimum of ``sign`` times a total; infinity without solutions, minus infinity if unknown."""
        highs, statuses = self._highs, self._highspy.HighsModelStatus
        highs.changeColCost(total, sign)
        highs.setOptionValue("time_limit", highs.getRunTime() + max(0.0, end_s - time.monotonic()))
        highs.run()
        status, minimum = highs.getModelStatus(), highs.getInfo().objective_function_value
        highs.changeColCost(total, 0.0)  # which resets both
        fallback = self.infinity if status == statuses.kInfeasible else -self.infinity
        return float(minimum if status == statuses.kOptimal else fallback)

    def drop_slack(self) -> None:
        """Drop the cuts that the last linear program does not need: each node of a search pays for them."""
        slack = np.array(self._highs.getSolution().row_value) - np.array(self._highs.getLp().row_lower_)
        rows = self._fixed_rows + np.flatnonzero(slack[self._fixed_rows :] > _SLACK)
        self._highs.deleteRows(len(rows), rows.astype(np.int32))

    def allow_sites(self, counts: Floats | None = None) -> None:
        """Use exactly the sites that counts use; ``None``: any."""
        lower, upper = np.zeros(self.at_homes), np.ones(self.at_homes)
        upper[: self.at_sites] = self.instance.max_counts
        if counts is not None:
            is_used: Bools = np.asarray((self.instance.uses & (counts > 0)).any(axis=1))
            upper[: self.at_sites][self.instance.uses[~is_used].any(axis=0)] = 0.0
            lower[self.at_sites :] = upper[self.at_sites :] = is_used[self.priced]
        self._highs.changeColsBounds(self.at_homes, np.arange(self.at_homes, dtype=np.int32), lower, upper)

    def opened(self, values: Floats) -> Floats:
        """Return how far each pool can be in use: no further than its sites, or its replicas if these are below one."""
        pool_use: Floats = np.where(self.instance.uses, self.site_use(values)[:, None], 1.0).min(axis=0, initial=1.0)
        return np.minimum(pool_use, values[: self.at_sites])

    def site_use(self, values: Floats) -> Floats:
        """Return how far each site is in use; sites without a price always are."""
        site_use = np.ones(len(self.instance.site_prices))
        site_use[self.priced] = values[self.at_sites : self.at_homes]
        return site_use

    def add_row(self, columns: Any, values: Any, lower: float, upper: float) -> None:
        """Add a row; zeros are left out."""
        nonzero = np.flatnonzero(values)
        self._highs.addRow(
            lower, upper, len(nonzero), np.asarray(columns, np.int32)[nonzero], np.asarray(values, np.float64)[nonzero]
        )

    def _groups(self) -> list[tuple[int, ...]]:
        """Return the columns of each total: replicas by device types, also by variant, also by level; used sites."""
        groups: dict[Any, list[int]] = {"sites": list(range(self.at_sites, self.at_homes))}
        for p, pool in enumerate(self.instance.pools):
            key = (pool.kinds, pool.variant.name, pool.level)
            for length in range(1, len(key) + 1):
                groups.setdefault(key[:length], []).append(p)
        return list(dict.fromkeys(tuple(members) for members in groups.values() if len(members) > 1))

    def _add_columns(self) -> Floats:
        instance, highs = self.instance, self._highs
        upper = np.concatenate(
            [instance.max_counts, np.ones(len(self.priced)), np.full(self.columns - self.at_homes, self.infinity)]
        )
        lower, cost = np.zeros(self.columns), np.zeros(self.columns)
        if self.is_quality:
            steps, normal = instance.steps(), instance.normal()
            demands = instance.flows.rates[normal].sum(axis=1)
            flows = slice(self.at_flows, self.at_totals)
            cost[flows] = np.repeat(np.diff(steps, append=0.0), len(normal)) / max(demands.sum(), 1e-12)
            upper[flows] = np.tile(demands, len(steps))
            if not instance.settings.is_partial:  # all requests are served
                lower[self.at_totals - len(normal) : self.at_totals] = demands
        else:
            cost[: self.at_homes] = np.concatenate([instance.prices, instance.site_prices[self.priced]])
        highs.addVars(self.columns, lower, upper)
        highs.changeColsCost(self.columns, np.arange(self.columns, dtype=np.int32), cost)
        return cost

    def _limit_resources(self) -> None:
        instance = self.instance
        pools = np.arange(len(instance.pools))
        position = {int(site): at for at, site in enumerate(self.priced)}
        for row, resource in enumerate(instance.candidates.resources):
            if not instance.needs[row].any():
                continue
            # more than all that could run limits nothing, and a site would be "used" within the solver's tolerance
            limit = min(float(instance.limits[row]), float(instance.needs[row] @ (instance.max_counts + 1)))
            # scaled: amounts in bytes would leave no digits for the solver's tolerances, which are absolute
            unit = max(float(instance.needs[row].max()), limit)
            self._resource_rows[row] = self._highs.getNumRow(), unit
            needs, limit = instance.needs[row] / unit, limit / unit
            if (at := position.get(resource.site)) is None:
                self.add_row(pools, needs, -self.infinity, limit)
            else:
                self.add_row(np.append(pools, self.at_sites + at), np.append(needs, -limit), -self.infinity, 0.0)

    def _limit_migrations(self, limit: int) -> None:
        for at, home in enumerate(self.homes):
            pools = [p for p, pool in enumerate(self.instance.pools) if pool.home == home]
            values = [*np.ones(len(pools)), -1.0]
            running = self.instance.settings.running.get(home, 0)
            self.add_row([*pools, self.at_homes + at], values, -self.infinity, running)
        self.add_row(self.at_homes + np.arange(len(self.homes)), np.ones(len(self.homes)), -self.infinity, limit)


@contextlib.contextmanager
def own_scheduler() -> Iterator[None]:
    """Run HiGHS without its worker threads of earlier uses in this thread, and leave none to later uses.

    HiGHS keeps its workers for each thread, and solves nothing with another number of them.

    Raises:
        MissingExtra: highspy is not installed.
    """
    reset = require("highspy", extra="placement", purpose="plan").Highs.resetGlobalScheduler
    reset(False)
    try:
        yield
    finally:
        reset(False)


def _make_silent_solver(highspy: Any) -> Any:
    """Return a solver that prints nothing; the constructor of `Highs` alone prints a banner."""

    class SilentHighs(highspy.Highs):  # type: ignore[misc] # loaded at first use
        def enableCallbacks(self) -> None:  # noqa: N802 - the constructor calls it, and it prints
            self.setOptionValue("output_flag", False)
            super().enableCallbacks()

    return SilentHighs()

"""An error budget that the service counts itself while a trial runs, and its state at the end.

The objective counts what `Telemetry` measures: from the call of the service to its response, errors included. The meter
counts from the instant at which a request was due, on the sender's side. Live streams have no budget here, because the
frames that a session drops never reach the service.

A month's budget has alerts over hours and days. A budget of a few seconds has the same two kinds over parts of the
period. Each fires when a quarter of the budget is spent: at a burn rate of 5 over a twentieth of the period it calls a
person, and at a burn rate of 2 over an eighth of the period it can wait.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs

import streaminfer as si
from streaminfer.telemetry import Alert, AlertPair, SloStatistics

__all__ = ["Budget", "BudgetWatch", "make_objective", "watching"]

MARGIN_S = 1.0
"""Seconds by which the period is longer than a trial, so that no event leaves the period while the trial runs."""
LOOK_S = 0.1
"""Time between two checks. A callback would check at once, but within the requests that are timed."""
MINIMUM_EVENTS = 30


@attrs.frozen(eq=False, kw_only=True)
class Budget:
    """State of an error budget after a trial.

    Attributes:
        statistics: statistics of the objective at the end of the trial.
        alerts: every alert that began, with its figures at the first check.
        worst_burn_rate: the highest burn rate at any check, over the longest window of the alerts.
        window_s: seconds of that window.
        noted: instants in nanoseconds, each with the totals of all events and of bad events up to it.
        width_ns: nanoseconds between two instants.
    """

    statistics: SloStatistics
    alerts: tuple[Alert, ...]
    worst_burn_rate: float
    window_s: float
    noted: list[tuple[int, int, int]]
    width_ns: int

    @property
    def overspent(self) -> bool:
        """Whether there were more bad events than the objective allows."""
        return self.statistics.budget_remaining < 0


def make_objective(name: str, *, threshold_s: float, objective: float, seconds: float) -> si.SLO:
    """Return an objective for a trial.

    Args:
        name: name to show.
        threshold_s: a response within this time is good.
        objective: share of requests that must be good.
        seconds: duration of the trial.
    """
    period_s = seconds + MARGIN_S
    pairs = [
        AlertPair(5.0, period_s / 20, period_s / 80, "page"),
        AlertPair(2.0, period_s / 8, period_s / 32, "ticket"),
    ]
    return si.SLO(
        name,
        threshold_s=threshold_s,
        objective=objective,
        period_s=period_s,
        alert_pairs=pairs,
        minimum_events=MINIMUM_EVENTS,
    )


class BudgetWatch:
    """Checks an objective at intervals.

    Args:
        slo: the objective.
    """

    def __init__(self, slo: si.SLO) -> None:
        self._slo = slo
        self._window_s = max(pair.long_s for pair in slo.alert_pairs)
        self._alerts: dict[tuple[AlertPair, int], Alert] = {}
        self._worst_burn_rate = 0.0

    def look(self) -> None:
        """Record burn rates and alerts."""
        for alert in self._slo.alerts():
            self._alerts.setdefault((alert.pair, alert.since_ns), alert)
        self._worst_burn_rate = max(self._worst_burn_rate, self._slo.burn_rate(self._window_s))

    def read(self) -> Budget:
        """Return the state of the budget so far."""
        self.look()
        noted, width_ns = self._slo.history()
        return Budget(
            statistics=self._slo.statistics(),
            alerts=tuple(self._alerts.values()),
            worst_burn_rate=self._worst_burn_rate,
            window_s=self._window_s,
            noted=noted,
            width_ns=width_ns,
        )


@asynccontextmanager
async def watching(slo: si.SLO) -> AsyncIterator[BudgetWatch]:
    """Watch an objective while the block runs."""
    watch = BudgetWatch(slo)

    async def look_again_and_again() -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            watch.look()

    looking = asyncio.create_task(look_again_and_again())
    try:
        yield watch
    finally:
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking

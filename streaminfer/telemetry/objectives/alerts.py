"""Alerts for a budget that burns fast: the multiwindow, multi-burn-rate alerts of the SRE workbook.

Source: Google, *The Site Reliability Workbook*, chapter 5. A burn rate of 1 spends exactly the budget of the period; a
rate ``r`` over a window ``w`` spends ``r · w / period`` of it. Each rate has a pair of windows. The long window shows
that a significant share of the budget has been spent. The short window shows that the burn continues, so the alert ends
soon after the problem. For 30 days:

======  ==========  =========  ======  ========
burns   long        short      spent   severity
======  ==========  =========  ======  ========
14.4    1 hour      5 minutes  2 %     page
6       6 hours     30 min     5 %     page
3       1 day       2 hours    10 %    ticket
1       3 days      6 hours    10 %    ticket
======  ==========  =========  ======  ========

Beyond the workbook:

* *Other periods.* The windows scale with the period; the rates and the shares of the budget spent stay the same.
* *Loose objectives.* A total outage burns at ``1 / (1 - objective)``. No rate is higher than 0.8 times this: at an
  objective of 0.9 the first pair has a rate of 8 instead of 14.4.
* *Low traffic.* No alert fires with fewer than ``minimum_events`` events in the long window: one failure in three
  requests is not a trend.
* *New objects.* No alert fires before the short window has passed once: a cold start is not an outage.
* *No flapping at the threshold.* An alert ends when a window of its pair burns below 0.9 of the rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import attrs

from streaminfer._internal.validation import check_amount, check_choice, check_duration, expected, field_check

__all__ = ["Alert", "AlertPair", "AlertStates", "Severity", "check_rate", "workbook_pairs"]

Severity = Literal["page", "ticket"]

_WORKBOOK_PERIOD_S = 30 * 86400.0
_ENDS_AT = 0.9


def check_rate(name: str, value: object) -> float:
    """Return a burn rate: a finite number > 0.

    Raises:
        TypeError: ``value`` is not a real number.
        ValueError: ``value`` is NaN, infinite, zero or negative.
    """
    return check_amount(name, value, positive=True)


@attrs.frozen
class AlertPair:
    """Two windows that must both burn at a rate for an alert.

    Args:
        burn_rate: the rate, > 0; 1 spends the whole budget in the period.
        long_s: seconds of the long window.
        short_s: seconds of the short window.
        severity: ``"page"``: an operator must act now; ``"ticket"``: within days.

    Raises:
        ValueError: an argument is not positive, or ``short_s`` is not less than ``long_s``.
        TypeError: an argument is not a number.
    """

    burn_rate: float = attrs.field(validator=field_check(check_rate))
    long_s: float = attrs.field(validator=field_check(check_duration, positive=True))
    short_s: float = attrs.field(validator=field_check(check_duration, positive=True))
    severity: Severity = attrs.field(default="page", validator=field_check(check_choice, get_args(Severity)))

    def __attrs_post_init__(self) -> None:
        if self.short_s >= self.long_s:
            raise ValueError(expected("short_s", f"less than long_s={self.long_s!r}", self.short_s))


@attrs.frozen(kw_only=True)
class Alert:
    """Start or end of an alert.

    Attributes:
        slo: name of the objective.
        severity: ``"page"`` or ``"ticket"``.
        firing: whether the alert fires; false if it has ended.
        pair: windows and burn rate of the alert.
        long_burn_rate: burn rate of the long window at ``at_ns``.
        short_burn_rate: burn rate of the short window at ``at_ns``.
        since_ns: instant at which the alert started.
        at_ns: instant of these figures.
    """

    slo: str
    severity: Severity
    firing: bool
    pair: AlertPair
    long_burn_rate: float
    short_burn_rate: float
    since_ns: int
    at_ns: int

    def __str__(self) -> str:
        state = f"{self.severity}: {self.slo!r}" if self.firing else f"resolved {self.severity}: {self.slo!r}"
        return (
            f"{state} burns at {self.long_burn_rate:.3g} over {self.pair.long_s:g} s and {self.short_burn_rate:.3g} "
            f"over {self.pair.short_s:g} s (limit {self.pair.burn_rate:.3g})"
        )


def workbook_pairs(period_s: float = _WORKBOOK_PERIOD_S) -> tuple[AlertPair, ...]:
    """Return the four pairs of the SRE workbook, with windows scaled to a period.

    Args:
        period_s: seconds of the period, > 0.

    Raises:
        ValueError: ``period_s`` is not positive and finite.
        TypeError: ``period_s`` is not a number.
    """
    hour_s = 3600.0 * check_duration("period_s", period_s, positive=True) / _WORKBOOK_PERIOD_S
    return (
        AlertPair(14.4, hour_s, hour_s / 12, "page"),
        AlertPair(6.0, 6 * hour_s, hour_s / 2, "page"),
        AlertPair(3.0, 24 * hour_s, 2 * hour_s, "ticket"),
        AlertPair(1.0, 72 * hour_s, 6 * hour_s, "ticket"),
    )


class AlertStates:
    """State machine of the alert pairs that fire, without a clock or a lock.

    Args:
        slo: name of the objective.
        pairs: the alert pairs.
        minimum_events: fewest events in the long window for an alert.
    """

    def __init__(self, slo: str, pairs: tuple[AlertPair, ...], minimum_events: int) -> None:
        self.slo = slo
        self.pairs = pairs
        self.minimum_events = minimum_events
        self._firing: list[Alert | None] = [None] * len(pairs)

    def firing(self) -> tuple[Alert, ...]:
        """Return the alerts that fire, with the figures of the last update, in the order of the pairs."""
        return tuple(alert for alert in self._firing if alert is not None)

    def update(self, now_ns: int, age_s: float, read: Callable[[float], tuple[int, float]]) -> list[Alert]:
        """Check every pair.

        Args:
            now_ns: the present instant, monotonic.
            age_s: age of the objective in seconds.
            read: returns the number of events and the burn rate of a window, given its seconds.

        Returns:
            The alerts that started or ended, in the order of the pairs.
        """
        changes: list[Alert] = []
        for position, pair in enumerate(self.pairs):
            before = self._firing[position]
            events, long_rate = read(pair.long_s)
            _, short_rate = read(pair.short_s)
            lower = min(long_rate, short_rate)
            if before is None:
                firing = lower >= pair.burn_rate and events >= self.minimum_events and age_s >= pair.short_s
            else:
                firing = lower >= _ENDS_AT * pair.burn_rate
            if before is None and not firing:
                continue
            alert = Alert(
                slo=self.slo,
                severity=pair.severity,
                firing=firing,
                pair=pair,
                long_burn_rate=long_rate,
                short_burn_rate=short_rate,
                since_ns=now_ns if before is None else before.since_ns,
                at_ns=now_ns,
            )
            self._firing[position] = alert if firing else None
            if firing is (before is None):
                changes.append(alert)
        return changes

"""`SLO`: a latency and availability objective with its error budget, burn rates and alerts.

``_budget_cy`` explains the ring of buckets, its error bound and the signal ``burning``. The class here extends that
compiled state, without overriding methods that run once per request. ``alerts`` explains the alerts.
"""

from __future__ import annotations

import concurrent.futures
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar, cast

import attrs

from streaminfer._internal.forking import new_lock
from streaminfer._internal.listeners import Listeners
from streaminfer._internal.locking import public_methods, thread_safe
from streaminfer._internal.validation import (
    check_count,
    check_duration,
    check_duration_ns,
    check_instance,
    check_number,
    expected,
    field_check,
)
from streaminfer._runtime.stack_clock import StackClock
from streaminfer.errors import CircuitOpen, InvalidInput, Overloaded
from streaminfer.telemetry.objectives._budget_cy import SLOTS, BudgetState
from streaminfer.telemetry.objectives.alerts import Alert, AlertPair, AlertStates, check_rate, workbook_pairs

if TYPE_CHECKING:
    from streaminfer.telemetry.objectives._budget_cy import BudgetState as _State
    from streaminfer.telemetry.statistics import SloStatistics
else:
    _State = thread_safe(BudgetState, (*public_methods(BudgetState), "_ages", "_use_clock"))

__all__ = ["SLO", "BurnSignal"]

_REACHABLE = 0.8
_MAX_INTEGER = 2**62  # fits a C integer, even if as much is added
_CALLBACK = "a callable that takes an Alert"
_LONGEST_S = 100 * 365 * 86400.0
_FINEST_SHARE = 64  # a bucket is at most the shortest window of an alert or signal divided by this
_Callback = TypeVar("_Callback", bound=Callable[[Alert], Any])


@attrs.frozen(kw_only=True)
class BurnSignal:
    """Settings of the signal :meth:`SLO.burning`.

    Args:
        window_s: seconds of the long window; the signal starts at most once per window, and lasts at least one window.
        short_s: seconds of the short window; ``None``: a twelfth of the long window, as in the SRE workbook.
        starts_at: burn rate of both windows at which the signal starts.
        ends_at: burn rate of the long window below which the signal ends, at most ``starts_at``.
        minimum_events: fewest events in the long window for the signal to start; unless this is 1, it also needs at
            least two bad events.
        grace_s: seconds after the first event in which events do not count for the signal, so that late responses
            after a cold start do not start it. They count for the budget and the alerts. 0.0: all events count.

    Raises:
        ValueError: a value is impossible.
        TypeError: a value is not a number.
    """

    window_s: float = attrs.field(default=60.0, validator=field_check(check_duration, positive=True))
    short_s: float | None = attrs.field(
        default=None, validator=field_check(check_duration, positive=True, optional=True)
    )
    starts_at: float = attrs.field(default=6.0, validator=field_check(check_rate))
    ends_at: float = attrs.field(default=1.0, validator=field_check(check_rate))
    minimum_events: int = attrs.field(default=30, validator=field_check(check_count, at_most=_MAX_INTEGER))
    grace_s: float = attrs.field(default=0.0, validator=field_check(check_duration))

    def __attrs_post_init__(self) -> None:
        if self.short_s is not None and self.short_s > self.window_s:
            raise ValueError(expected("short_s", f"at most window_s={self.window_s!r}", self.short_s))
        if self.ends_at > self.starts_at:
            raise ValueError(expected("ends_at", f"at most starts_at={self.starts_at!r}", self.ends_at))


class SLO(_State, StackClock):
    """Share of requests that must have a response within a time, over a rolling period.

    A request is a *good event* if its response comes within ``threshold_s``, degraded or not. It is a *bad event* if
    the response comes later, or if the request ends with an error: `Overloaded`, `CircuitOpen`, `DeadlineExceeded`,
    `BackendError`, `Closed` or any other ``Exception``. Outcomes that the caller caused are not events, and only count
    in ``ignored``: `InvalidInput`, cancellation before the deadline, `DeadlineExceeded` if the caller gave less time
    than any good response took, and the classes in ``ignore``. Exceptions that are not an ``Exception``, such as
    ``KeyboardInterrupt``, count there too, because the process ends.

    The *budget* is the share of bad events that the objective allows. Windows are sums of a ring of buckets in bounded
    memory (about 60 KiB). A window is never shorter than requested, and longer by at most 1/63, or by ``resolution_s``
    if that is more.

    Args:
        name: name of the objective, for reports and alerts.
        threshold_s: seconds within which a response is good, > 0.
        objective: share of events that must be good, above 0 and below 1.
        period_s: seconds over which the budget is counted, from 1 second to a hundred years.
        alert_pairs: alert pairs for :meth:`alerts`; ``None``: the pairs of the SRE workbook, scaled to the period;
            ``()``: no alerts.
        minimum_events: fewest events in the long window of a pair for its alert.
        signal: settings of :meth:`burning`; ``None``: the defaults of :class:`BurnSignal`, with a window no longer than
            the period.
        ignore: further exception classes that are not events.
        clock: returns monotonic nanoseconds; ``None``: the clock of the `Stack` or `Telemetry` that the objective is
            part of, or else the system's monotonic clock, read in C.

    Raises:
        ValueError: a value is impossible, or a window is longer than the period.
        TypeError: an argument has the wrong type.

    Threads: in the compiled build under the interpreter lock any number of threads may record and read at once;
    recorders never wait for a lock. In an uncompiled run, or without the interpreter lock, each call takes a lock.
    Callbacks run in the thread that finds the change.

    Example:
        >>> slo = SLO("faces", threshold_s=0.050, objective=0.99)
        >>> for _ in range(999):
        ...     slo.record(0.020)
        >>> slo.record(0.300)
        >>> round(slo.budget_remaining(), 3), round(slo.burn_rate(3600.0), 3)
        (0.9, 0.1)
    """

    # no instance dictionary: without it, the look-up of `record` is a third faster
    __slots__ = (
        "_alert_lock",
        "_changes",
        "_clock_given",
        "_listeners",
        "_states",
        "alert_pairs",
        "name",
        "objective",
        "period_s",
        "signal",
        "threshold_s",
    )

    def __init__(
        self,
        name: str,
        *,
        threshold_s: float,
        objective: float = 0.99,
        period_s: float = 30 * 86400.0,
        alert_pairs: Iterable[AlertPair] | None = None,
        minimum_events: int = 100,
        signal: BurnSignal | None = None,
        ignore: Iterable[type[BaseException]] = (),
        clock: Callable[[], int] | None = None,
    ) -> None:
        check_instance("name", name, str, "a string")
        clock = self._accept_clock(clock)
        threshold_ns = check_duration_ns("threshold_s", threshold_s, positive=True, longest_ns=_MAX_INTEGER)
        allowed = _allowed(objective)
        if not 1.0 <= check_duration("period_s", period_s) <= _LONGEST_S:
            raise ValueError(expected("period_s", "from 1 second to a hundred years", period_s))
        minimum_events = check_count("minimum_events", minimum_events)
        self.name: str = name
        self.threshold_s = float(threshold_s)
        self.objective = float(objective)
        self.period_s = float(period_s)
        highest = _REACHABLE / allowed
        self.alert_pairs = tuple(
            attrs.evolve(pair, burn_rate=min(pair.burn_rate, highest))
            for pair in _checked_pairs(workbook_pairs(period_s) if alert_pairs is None else alert_pairs, self.period_s)
        )
        self.signal = _signal(signal, self.period_s, highest)
        short_s = cast("float", self.signal.short_s)
        ignoring: tuple[type[BaseException], ...] = (
            InvalidInput,
            concurrent.futures.CancelledError,
            *_checked("ignore", ignore, _is_error_class, "exception classes, as in a tuple"),
        )
        width_ns, levels = _levels(period_s, min([short_s, *(pair.short_s for pair in self.alert_pairs)]))
        super().__init__(
            clock,
            threshold_ns,
            allowed,
            round(period_s * 1e9),
            width_ns,
            levels,
            (Overloaded, CircuitOpen),
            ignoring,
            self.signal,
            # between two checks of the alert pairs from records
            round(min((pair.short_s for pair in self.alert_pairs), default=3600.0) / _FINEST_SHARE * 1e9),
        )
        self._states = AlertStates(name, self.alert_pairs, minimum_events)
        self._alert_lock = new_lock()
        self._changes: deque[Alert] = deque()
        self._listeners: Listeners[Alert] = Listeners("streaminfer.slo", f"SLO {name!r}", _CALLBACK)

    @property
    def resolution_s(self) -> float:
        """Width of the finest bucket in seconds; windows are exact to this, or to 1/63 of their length."""
        return self.width_ns / 1e9

    def budget_remaining(self) -> float:
        """Return the share of the period's budget that is left: 1.0 untouched, 0.0 used up, negative if overspent.

        The budget is the allowed share of the events in the period so far. With few events, for example in a new
        object, it therefore changes in large steps.
        """
        return 1.0 - self.burn_over(self.period_ns)

    @property
    def minimum_events(self) -> int:
        """Fewest events in the long window of a pair for its alert."""
        return self._states.minimum_events

    def burn_rate(self, window_s: float) -> float:
        """Return the share of bad events in the latest window, divided by the allowed share.

        1.0 spends the budget of the period in the period; ``1 / (1 - objective)`` is a total outage; 0.0 without
        events.

        Args:
            window_s: seconds, > 0, at most the period.

        Raises:
            ValueError: ``window_s`` is not positive, or longer than the period.
            TypeError: ``window_s`` is not a number.
        """
        # the short check comes first, because policies call this for each request
        if not (type(window_s) is float and 0.0 < window_s <= self.period_s) and (
            check_duration("window_s", window_s, positive=True) > self.period_s
        ):
            raise ValueError(expected("window_s", f"at most the period of {self.period_s!r} seconds", window_s))
        return self.burn_over(max(round(window_s * 1e9), 1))

    def alerts(self) -> tuple[Alert, ...]:
        """Check the alert pairs, call the callbacks with the changes, and return the alerts that fire.

        While there are callbacks, records check the pairs too, at most once per 64th of the shortest window. There is
        no background work: call this method periodically if requests may stop altogether.
        """
        with self._alert_lock:
            self._update_alerts()
            firing = self._states.firing()
        self._deliver()
        return firing

    def on_alert(self, callback: _Callback) -> _Callback:
        """Register a callback for each :class:`Alert` that starts or, with ``firing=False``, ends.

        The callback runs in the call that finds the change, often inside a request, so it should start long work
        elsewhere and return. Its exceptions are logged (logger ``streaminfer.slo``), counted in ``callback_errors``,
        and affect no request. The method can be used as a decorator.

        Args:
            callback: takes one alert.

        Returns:
            The callback.

        Raises:
            TypeError: ``callback`` cannot be called.
        """
        check_instance("callback", callback, callable, _CALLBACK)
        self._listeners.add(callback)
        self._watch()
        return callback

    def remove_callback(self, callback: Callable[[Alert], Any]) -> None:
        """Remove a callback that :meth:`on_alert` registered; do nothing if it is unknown."""
        self._listeners.discard(callback)

    @property
    def callback_errors(self) -> int:
        """Number of exceptions that callbacks raised."""
        return self._listeners.errors

    def statistics(self) -> SloStatistics:
        """Return a frozen snapshot: events and budget of the period, burn rates, alerts."""
        from streaminfer.telemetry.statistics import SloStatistics  # noqa: PLC0415 - serving does not need it

        alerts = self.alerts()
        windows_s = sorted({seconds for pair in self.alert_pairs for seconds in (pair.short_s, pair.long_s)})
        events, bad, rejected = self.window(self.period_ns)
        total, late, failed, rejected_ever = self.totals()
        return SloStatistics(
            name=self.name,
            threshold_s=self.threshold_s,
            objective=self.objective,
            period_s=self.period_s,
            good=events - bad,
            bad=bad,
            rejected=rejected,
            ignored=self.ignored,
            budget_remaining=1.0 - bad / events / self.allowed if events else 1.0,
            burn_rates={seconds: self.burn_rate(seconds) for seconds in windows_s},
            burning=self.burning(),
            alerts=alerts,
            callback_errors=self.callback_errors,
            totals={
                "good": total - late - failed - rejected_ever,
                "late": late,
                "failed": failed,
                "rejected": rejected_ever,
            },
        )

    def plot(self, ax: Any = None) -> Any:
        """Draw the remaining budget over the period, and the burn rate.

        Args:
            ax: a matplotlib ``Axes`` to draw on; ``None``: a new figure.

        Returns:
            The axes of the budget; the burn rate has twin axes.

        Raises:
            MissingExtra: matplotlib is not installed (``pip install 'streaminfer[plot]'``).
        """
        from streaminfer.telemetry.objectives import slo_plot  # noqa: PLC0415 - serving does not need it

        return slo_plot.plot_budget(ax, self.name, *self.history(), self.allowed)

    def __repr__(self) -> str:
        return (
            f"<SLO {self.name!r}: {self.objective:.6g} within {self.threshold_s:g} s, "
            f"{self.budget_remaining():.1%} of the budget left>"
        )

    def _repr_html_(self) -> str:
        from streaminfer._internal.display.figures import inline_svg  # noqa: PLC0415 - serving does not need it

        return inline_svg(self.plot, f"Error budget over time: {self!r}") + self.statistics()._repr_html_()

    def burn_history(self) -> list[tuple[int, float]]:
        """Return the burn rates between the stored instants of the period, at most 257.

        Returns:
            Instants on the objective's clock, ascending, each with the burn rate since the instant before.
        """
        points, _ = self.history()
        elapsed_ns, now_ns = self._ages()
        rates = []
        for (_, total, bad), (at_ns, total_after, bad_after) in pairwise(points):
            events = total_after - total
            rates.append((at_ns - elapsed_ns + now_ns, (bad_after - bad) / events / self.allowed if events else 0.0))
        return rates

    # -- alerts -------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Check the alert pairs from a record, unless another thread is checking them."""
        if not self._listeners or not self._alert_lock.acquire(blocking=False):
            return
        try:
            self._update_alerts()
        finally:
            self._alert_lock.release()
        self._deliver()

    def _update_alerts(self) -> None:
        elapsed_ns, now_ns = self._ages()
        self._changes.extend(self._states.update(now_ns, elapsed_ns / 1e9, self._events_and_rate))

    def _events_and_rate(self, window_s: float) -> tuple[int, float]:
        events, bad, _ = self.window(max(round(window_s * 1e9), 1))
        return events, bad / events / self.allowed if events else 0.0

    def _deliver(self) -> None:
        while self._changes and self._listeners.deliver(self._take_changes):
            pass  # another thread may have left a change to this one

    def _take_changes(self) -> Iterator[Alert]:
        while self._changes:
            yield self._changes.popleft()


def _allowed(objective: object) -> float:
    """Return the share of events that may be bad."""

    def bad_share(share: float) -> float:
        return round(1.0 - share, 12)  # rounded to twelve places, so that 1 - 0.99 is 0.01

    expectation = "a share above 0 and below 1"
    return bad_share(check_number("objective", objective, expectation, lambda it: 0.0 < bad_share(it) < 1.0))


def _checked(argument: str, values: Any, fits: Callable[[Any], bool], expectation: str) -> tuple[Any, ...]:
    """Return the values as a tuple, after checking each."""
    check_instance(argument, values, Iterable, expectation)
    checked = tuple(values)
    for each in checked:
        check_instance(argument, each, fits, expectation)
    return checked


def _checked_pairs(pairs: Iterable[AlertPair], period_s: float) -> tuple[AlertPair, ...]:
    checked = _checked("alert_pairs", pairs, lambda value: isinstance(value, AlertPair), "AlertPair objects")
    for pair in checked:
        if pair.long_s > period_s:
            raise ValueError(expected("alert_pairs", f"windows of at most the period of {period_s!r} seconds", pair))
    return checked


def _is_error_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _signal(signal: BurnSignal | None, period_s: float, highest: float) -> BurnSignal:
    """Return the settings, with the short window set and burn rates within reach."""
    if signal is None:
        signal = BurnSignal(window_s=min(60.0, period_s))
    check_instance("signal", signal, BurnSignal, "a BurnSignal or None")
    if signal.window_s > period_s:
        raise ValueError(expected("signal", f"a window of at most the period of {period_s!r} seconds", signal))
    short_s = signal.window_s / 12 if signal.short_s is None else signal.short_s
    starts_at, ends_at = min(signal.starts_at, highest), min(signal.ends_at, highest)
    return attrs.evolve(signal, short_s=short_s, starts_at=starts_at, ends_at=ends_at)


def _levels(period_s: float, shortest_s: float) -> tuple[int, int]:
    """Return the width of the finest bucket in nanoseconds, and the number of levels that cover the period."""
    levels = 1
    while True:
        width_ns = math.ceil(period_s * 1e9 / ((SLOTS - 1) * 4 ** (levels - 1)))
        if width_ns * _FINEST_SHARE <= shortest_s * 1e9 or width_ns <= 1000:
            return width_ns, levels
        levels += 1

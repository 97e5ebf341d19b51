"""SLO: a latency and availability objective, the error budget it leaves, and what follows when that burns.

The ring of buckets, its error bound and the decision ``burning`` are explained in ``_budget_cy``, whose compiled state
this class extends without overriding what runs once a request; the alerts are those of ``alerts``.
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
from streaminfer._internal.locking import thread_safe
from streaminfer._internal.validation import check_count, check_duration, check_instance, check_number, expected
from streaminfer._runtime.stack_clock import StackClock
from streaminfer.errors import CircuitOpen, InvalidInput, Overloaded
from streaminfer.telemetry.objectives._budget_cy import SLOTS, BudgetState
from streaminfer.telemetry.objectives.alerts import Alert, AlertPair, AlertStates, check_rate, workbook_pairs

if TYPE_CHECKING:
    from streaminfer.telemetry.objectives._budget_cy import BudgetState as _State
    from streaminfer.telemetry.statistics import SloStatistics
else:
    _OPERATIONS = ("record", "_ages", "_take", "burn_over", "burning", "count_ns", "history", "totals", "window")
    _State = thread_safe(BudgetState, _OPERATIONS)

__all__ = ["SLO", "BurnSignal"]

_REACHABLE = 0.8
_FAR = 2**62  # fits a C integer, also when as much is added
_CALLBACK = "a callable that takes an Alert"
_LONGEST_S = 100 * 365 * 86400.0
_FINEST_SHARE = 64  # a bucket is at most this part of the shortest window that is watched
_Callback = TypeVar("_Callback", bound=Callable[[Alert], Any])


@attrs.frozen(kw_only=True)
class BurnSignal:
    """When :meth:`SLO.burning` says yes: settings.

    Args:
        window_s: seconds of the long window; it starts at most once in each, and lasts at least one.
        short_s: seconds of the short window; ``None``: a twelfth of the long one, the workbook's proportion.
        starts_at: burn rate of both windows at which it starts.
        ends_at: burn rate of the long window below which it ends, at most ``starts_at``.
        minimum_events: fewer events in the long window do not start it, nor does one bad event alone unless this is 1.
        grace_s: seconds after the first event whose events do not count towards it, so that a cold start's late
            responses do not start it; they count in the budget and for the alerts. 0.0: all events count.

    Raises:
        ValueError: an impossible value.
        TypeError: not a number.
    """

    window_s: float = 60.0
    short_s: float | None = None
    starts_at: float = 6.0
    ends_at: float = 1.0
    minimum_events: int = 30
    grace_s: float = 0.0

    def __attrs_post_init__(self) -> None:
        check_duration("window_s", self.window_s, positive=True)
        if self.short_s is not None and check_duration("short_s", self.short_s, positive=True) > self.window_s:
            raise ValueError(expected("short_s", f"at most window_s={self.window_s!r}", self.short_s))
        for name in ("starts_at", "ends_at"):
            check_rate(name, getattr(self, name))
        if self.ends_at > self.starts_at:
            raise ValueError(expected("ends_at", f"at most starts_at={self.starts_at!r}", self.ends_at))
        check_count("minimum_events", self.minimum_events, at_most=_FAR)
        check_duration("grace_s", self.grace_s)


class SLO(StackClock, _State):
    """Share of requests that must have a response within a time, over a rolling period.

    A request is a *good event* when its response came within ``threshold_s``, a degraded response included, and a *bad*
    one when it came later or when the request ended with an error: `Overloaded`, `CircuitOpen`, `DeadlineExceeded`,
    `BackendError`, `Closed` and any other ``Exception``. What the caller did is no event and only counted in
    ``ignored``: `InvalidInput`, cancellation before the deadline, whatever is named in ``ignore``, and exceptions that
    are no ``Exception`` (``KeyboardInterrupt``: the process ends).

    The *budget* is the share of bad events that the objective allows. Windows are sums of a ring of buckets in bounded
    memory (about 60 KiB): at most 1/63 longer than requested, or by ``resolution_s`` where that is more, never shorter.

    Args:
        name: for reports and alerts.
        threshold_s: seconds within which a response is good, > 0.
        objective: share of events that must be good, above 0 and below 1.
        period_s: seconds over which the budget is counted, from 1 second to a hundred years.
        alert_pairs: what :meth:`alerts` watches; ``None``: those of the SRE workbook, scaled to the period; ``()``:
            nothing.
        minimum_events: with fewer in its long window a pair does not fire.
        signal: when :meth:`burning` says yes; ``None``: the defaults of :class:`BurnSignal`, no longer than the period.
        ignore: exception classes that are no events either.
        clock: returns monotonic nanoseconds; ``None``: that of the `Stack` or `Telemetry` it is given to, else the
            system's, read in C.

    Raises:
        ValueError: an impossible value, or a window longer than the period.
        TypeError: of the wrong type.

    Threads: in the compiled build under the interpreter lock any number may record and read at once; recorders never
    wait for a lock. Run uncompiled, or without the interpreter lock, each call takes a lock. Callbacks run in the
    thread that found the change.

    Example:
        >>> slo = SLO("faces", threshold_s=0.050, objective=0.99)
        >>> for _ in range(999):
        ...     slo.record(0.020)
        >>> slo.record(0.300)
        >>> round(slo.budget_remaining(), 3), round(slo.burn_rate(3600.0), 3)
        (0.9, 0.1)
    """

    # no dictionary: looking up `record` is a third faster without
    __slots__ = (
        "_changes",
        "_clock_given",
        "_listeners",
        "_looking",
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
        check_instance("name", name, lambda value: isinstance(value, str), "a string")
        self._accept_clock(clock)
        threshold_ns = round(check_duration("threshold_s", threshold_s, positive=True) * 1e9)
        allowed = _allowed(objective)
        if not 1.0 <= check_duration("period_s", period_s) <= _LONGEST_S:
            raise ValueError(expected("period_s", "from 1 second to a hundred years", period_s))
        check_count("minimum_events", minimum_events)
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
            min(threshold_ns, _FAR),
            allowed,
            round(period_s * 1e9),
            width_ns,
            levels,
            (Overloaded, CircuitOpen),
            ignoring,
            self.signal,
            _every(self.alert_pairs),
        )
        self._states = AlertStates(name, self.alert_pairs, minimum_events)
        self._looking = new_lock()
        self._changes: deque[Alert] = deque()
        self._listeners: Listeners[Alert] = Listeners("streaminfer.slo", f"SLO {name!r}", _CALLBACK)

    def _use_clock(self, clock: Callable[[], int]) -> None:
        self._take(clock)  # time goes on from where it stands

    @property
    def resolution_s(self) -> float:
        """Seconds of the finest bucket: windows are told apart to that, or to 1/63 of their length."""
        return self.width_ns / 1e9

    def budget_remaining(self) -> float:
        """The share of the period's budget that is left: 1.0 untouched, 0.0 used up, negative when overspent.

        The budget is the allowed share of the events that the period has seen so far, so that of a young object, or of
        a service with few requests, moves in large steps.
        """
        return 1.0 - self.burn_over(self.period_ns)

    @property
    def minimum_events(self) -> int:
        """Fewer events in the long window of a pair do not fire."""
        return self._states.minimum_events

    def burn_rate(self, window_s: float) -> float:
        """The share of bad events in the latest window over the share that is allowed.

        1.0 spends the budget of the period in the period; ``1 / (1 - objective)`` is a total outage; 0.0 without
        events.

        Args:
            window_s: seconds, > 0, at most the period.

        Raises:
            ValueError: not positive, or longer than the period.
            TypeError: not a number.
        """
        # the check in full only where a short one is not enough: policies call this at each request
        if not (type(window_s) is float and 0.0 < window_s <= self.period_s) and (
            check_duration("window_s", window_s, positive=True) > self.period_s
        ):
            raise ValueError(expected("window_s", f"at most the period of {self.period_s!r} seconds", window_s))
        return self.burn_over(max(round(window_s * 1e9), 1))

    def alerts(self) -> tuple[Alert, ...]:
        """Looks at the pairs now, tells the callbacks what changed, and gives the alerts that fire.

        While there are callbacks, records look too, at most every 64th part of the shortest window. Nothing runs in
        the background: call this now and then where requests may cease altogether.
        """
        with self._looking:
            self._look()
            firing = self._states.firing()
        self._deliver()
        return firing

    def on_alert(self, callback: _Callback) -> _Callback:
        """Has a function called with each :class:`Alert` that begins and, with ``firing=False``, that ends.

        It runs where the change was found, often inside a request: it should start its work elsewhere and return. Its
        exceptions are logged (logger ``streaminfer.slo``), counted in ``callback_errors``, and affect no request. Can
        be used as a decorator.

        Args:
            callback: takes one alert.

        Returns:
            The callback.

        Raises:
            TypeError: it cannot be called.
        """
        check_instance("callback", callback, callable, _CALLBACK)
        self._listeners.add(callback)
        self._watch()
        return callback

    def remove_callback(self, callback: Callable[[Alert], Any]) -> None:
        """No longer calls a function that :meth:`on_alert` was given; one that is unknown is left alone."""
        self._listeners.discard(callback)

    @property
    def callback_errors(self) -> int:
        """Exceptions of callbacks."""
        return self._listeners.errors

    def statistics(self) -> SloStatistics:
        """A frozen snapshot: events and budget of the period, burn rates, alerts."""
        from streaminfer.telemetry.statistics import SloStatistics  # noqa: PLC0415 - serving does not need it

        alerts = self.alerts()
        windows_s = sorted({seconds for pair in self.alert_pairs for seconds in (pair.short_s, pair.long_s)})
        seen, bad, rejected = self.window(self.period_ns)
        total, late, failed, rejected_ever = self.totals()
        return SloStatistics(
            name=self.name,
            threshold_s=self.threshold_s,
            objective=self.objective,
            period_s=self.period_s,
            good=seen - bad,
            bad=bad,
            rejected=rejected,
            ignored=self.ignored,
            budget_remaining=1.0 - bad / seen / self.allowed if seen else 1.0,
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
        """Draws the budget that is left over the period, and the burn rate beside it.

        Args:
            ax: a matplotlib ``Axes`` to draw on; ``None``: a new figure.

        Returns:
            The axes of the budget; the burn rate has a twin of its own.

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
        """Return the burn rate between the instants that the period's record holds, at most 257 of them.

        Returns:
            Instants on the objective's clock, ascending, each with the burn rate since the one before it.
        """
        noted, _ = self.history()
        elapsed_ns, now_ns = self._ages()
        rates = []
        for (_, seen, bad), (at_ns, seen_after, bad_after) in pairwise(noted):
            events = seen_after - seen
            rates.append((at_ns - elapsed_ns + now_ns, (bad_after - bad) / events / self.allowed if events else 0.0))
        return rates

    # -- alerts -------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Looks, from a record, unless another thread does."""
        if not self._listeners or not self._looking.acquire(blocking=False):
            return
        try:
            self._look()
        finally:
            self._looking.release()
        self._deliver()

    def _look(self) -> None:
        elapsed_ns, now_ns = self._ages()
        self._changes.extend(self._states.update(now_ns, elapsed_ns / 1e9, self._events_and_rate))

    def _events_and_rate(self, window_s: float) -> tuple[int, float]:
        seen, bad, _ = self.window(max(round(window_s * 1e9), 1))
        return seen, bad / seen / self.allowed if seen else 0.0

    def _deliver(self) -> None:
        while self._changes and self._listeners.deliver(self._take_changes):
            pass  # a change that came before the return was left to this thread

    def _take_changes(self) -> Iterator[Alert]:
        while self._changes:
            yield self._changes.popleft()


def _allowed(objective: object) -> float:
    """The share of events that may be bad."""

    def bad(share: float) -> float:
        return round(1.0 - share, 12)  # to twelve places: 1 - 0.99 is to be 0.01

    what = "a share above 0 and below 1"
    return bad(check_number("objective", objective, what, lambda it: 0.0 < bad(it) < 1.0))


def _checked(argument: str, values: Any, fits: Callable[[Any], bool], what: str) -> tuple[Any, ...]:
    """Return what is given as a tuple, each of which fits."""
    check_instance(argument, values, lambda value: isinstance(value, Iterable), what)
    checked = tuple(values)
    for each in checked:
        check_instance(argument, each, fits, what)
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
    """The settings, with a short window and rates that can be reached."""
    if signal is None:
        signal = BurnSignal(window_s=min(60.0, period_s))
    check_instance("signal", signal, lambda value: isinstance(value, BurnSignal), "a BurnSignal or None")
    if signal.window_s > period_s:
        raise ValueError(expected("signal", f"a window of at most the period of {period_s!r} seconds", signal))
    short_s = signal.window_s / 12 if signal.short_s is None else signal.short_s
    starts_at, ends_at = min(signal.starts_at, highest), min(signal.ends_at, highest)
    return attrs.evolve(signal, short_s=short_s, starts_at=starts_at, ends_at=ends_at)


def _levels(period_s: float, shortest_s: float) -> tuple[int, int]:
    """Nanoseconds of the finest bucket, and the levels that it takes to cover the period."""
    levels = 1
    while True:
        width_ns = math.ceil(period_s * 1e9 / ((SLOTS - 1) * 4 ** (levels - 1)))
        if width_ns * _FINEST_SHARE <= shortest_s * 1e9 or width_ns <= 1000:
            return width_ns, levels
        levels += 1


def _every(pairs: tuple[AlertPair, ...]) -> int:
    """Nanoseconds between two looks of the records."""
    return round(min((pair.short_s for pair in pairs), default=3600.0) / _FINEST_SHARE * 1e9)

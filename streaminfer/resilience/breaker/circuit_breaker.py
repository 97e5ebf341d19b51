"""`CircuitBreaker`: its settings, and the wrapping of services, backends and functions."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, overload

from streaminfer._internal.locking import thread_safe
from streaminfer._internal.units import NEVER_NS
from streaminfer._internal.validation import check_count, check_duration_ns, check_instance, check_number, expected
from streaminfer._runtime.stack_clock import StackClock
from streaminfer.errors import CircuitOpen, Closed, InvalidInput, Overloaded
from streaminfer.protocols import Backend, Clock, P, R, Service
from streaminfer.resilience._targets import exception_classes, reject_copy, wrap_by_kind
from streaminfer.resilience.breaker._guard_cy import BreakerCore
from streaminfer.resilience.breaker._guarded_function_cy import GuardedFunction
from streaminfer.resilience.breaker._outcome_window_cy import OutcomeWindow
from streaminfer.resilience.breaker._state_machine_cy import MODES, STATES, BreakerMachine
from streaminfer.resilience.breaker.events import BreakerEvent, BreakerEvents
from streaminfer.resilience.breaker.layers import GuardedBackend, GuardedService, guard_async

if TYPE_CHECKING:
    from streaminfer.resilience.breaker.statistics import BreakerStatistics

__all__ = ["CircuitBreaker"]

_ALWAYS_IGNORED = (CircuitOpen, Closed, InvalidInput, Overloaded)
_MAX_WINDOW_S = 3600.0
_MIN_SLICES = 10
_MAX_CALLS = 1_000_000
_MAX_PROBES = 1024
_SEEDS = 2**31
_SECONDS = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*s\s*")

_Machine: type[BreakerMachine] = thread_safe(BreakerMachine)


class CircuitBreaker(StackClock, BreakerCore):
    """Stops sending requests to a failing or slow backend and probes it until it recovers.

    A closed breaker lets calls pass and judges the latest of them. When enough calls failed or were slow, it opens and
    rejects calls at once with `CircuitOpen`. After a while it lets a few probes pass; their outcomes close or reopen
    it. The documentation has the rules as a table.

    Wrap a service, a backend or a function with :meth:`wrap` or as a decorator, or a block with :meth:`guard`; or call
    :meth:`try_acquire` and :meth:`record` by hand. All uses of one object share its state.

    Args:
        failure_rate_threshold: share of failed calls at which it trips, above 0 and at most 1.
        slow_call_s: a call that takes longer is slow; ``None``: no call is slow.
        slow_rate_threshold: share of slow calls at which it trips, above 0 and at most 1.
        window: outcomes that it judges: a number of the last calls, or as text the last seconds, ``"10s"``, up to an
            hour, in slices of a tenth of the window and of at most a second.
        minimum_calls: fewest outcomes that it judges, unless the window, or ``half_open_calls``, is smaller.
        open_s: seconds that it rejects calls after the first trip. Jitter shortens this by up to a tenth, so that
            clients do not return together.
        max_open_s: longest open time. The open time doubles trip by trip, until it closes; never less than ``open_s``.
        half_open_calls: how many probes may pass while half open.
        half_open_s: how long half-open may wait for its probes; ``None``: ``max_open_s``. Longer than any healthy call.
        ramp_up_s: how long it takes to let all calls pass after its probes have closed it. The share of calls that pass
            grows evenly from a tenth; the others are rejected with `CircuitOpen`. 0.0: all pass at once.
        ignore: exceptions that do not count as outcomes: classes, or a function of the exception. `Overloaded`,
            `Closed`, `InvalidInput` and `CircuitOpen` never count, because they say nothing about the backend.
        failure_result: a function that returns whether a result is a failure. The result is a service's `Response`, a
            single row of a backend, or the result of a function.
        ignore_result: a function that returns whether a result does not count as an outcome.
        name: for reports and events.
        seed: seed of the jitter, for runs that replay; ``None``: from the operating system.
        clock: returns monotonic nanoseconds; ``None``: the `Stack`'s clock, else the monotonic clock, read in C.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Threads: any number may use it at once, and no lock is held while a call runs. In the compiled build under the
    interpreter lock no lock is taken at all; run uncompiled, or without that lock, each operation takes one.

    Example:
        >>> breaker = CircuitBreaker(minimum_calls=2, open_s=5.0)
        >>> @breaker
        ... def divide(x, y):
        ...     return x / y
        >>> for _ in range(3):
        ...     try:
        ...         divide(1, 0)
        ...     except Exception as error:
        ...         print(type(error).__name__)
        ZeroDivisionError
        ZeroDivisionError
        CircuitOpen
        >>> breaker.state
        'open'
    """

    def __init__(
        self,
        *,
        failure_rate_threshold: float = 0.5,
        slow_call_s: float | None = None,
        slow_rate_threshold: float = 1.0,
        window: int | str = 100,
        minimum_calls: int = 10,
        open_s: float = 5.0,
        max_open_s: float = 60.0,
        half_open_calls: int = 3,
        half_open_s: float | None = None,
        ramp_up_s: float = 0.0,
        ignore: type[BaseException] | Iterable[type[BaseException]] | Callable[[BaseException], Any] = (),
        failure_result: Callable[[Any], Any] | None = None,
        ignore_result: Callable[[Any], Any] | None = None,
        name: str = "",
        seed: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        open_ns = check_duration_ns("open_s", open_s, positive=True)
        max_open_ns = max(check_duration_ns("max_open_s", max_open_s, positive=True), open_ns)
        for argument, function in (("failure_result", failure_result), ("ignore_result", ignore_result)):
            check_instance(argument, function, lambda it: it is None or callable(it), "a function of a result or None")
        check_instance("name", name, str, "a string")
        clock = self._accept_clock(clock)
        ignored, ignores = exception_classes("ignore", ignore)
        seed = random.getrandbits(31) if seed is None else check_count("seed", seed, at_least=0) % _SEEDS
        machine = _Machine(
            _share("failure_rate_threshold", failure_rate_threshold),
            _share("slow_rate_threshold", slow_rate_threshold),
            NEVER_NS if slow_call_s is None else check_duration_ns("slow_call_s", slow_call_s, positive=True),
            _window(window),
            check_count("minimum_calls", minimum_calls, at_most=_MAX_CALLS),
            open_ns,
            max_open_ns,
            check_count("half_open_calls", half_open_calls, at_most=_MAX_PROBES),
            max_open_ns if half_open_s is None else check_duration_ns("half_open_s", half_open_s, positive=True),
            check_duration_ns("ramp_up_s", ramp_up_s),
            seed,
        )
        self.name = name
        self._events = BreakerEvents(name, machine)
        super().__init__(
            machine, clock, (*_ALWAYS_IGNORED, *ignored), ignores, failure_result, ignore_result, self._events.deliver
        )

    @overload
    def wrap(self, inner: Service | Backend) -> Any: ...
    @overload
    def wrap(self, inner: Callable[P, R]) -> Callable[P, R]: ...
    def wrap(self, inner: Any) -> Any:
        """Wrap a service, a backend or a function; also as a decorator, ``@breaker``.

        Args:
            inner: a service (an object with ``call``), a backend (an object with ``infer``; a failed batch is one
                outcome), or a sync or async function, which stays sync or async.

        Returns:
            The same kind of object. A guarded service or backend has ``inner`` and ``admission``.

        Raises:
            TypeError: ``inner`` is none of these, or is a generator function: its call ends before its work begins. Use
                :meth:`guard` inside it.
        """
        return wrap_by_kind(self, inner, GuardedService, GuardedBackend, guard_async, GuardedFunction)

    __call__ = wrap

    @property
    def state(self) -> str:
        """``"closed"``, ``"open"`` or ``"half_open"`` (from the end of the open time on); reading changes nothing.

        A breaker that is forced open is ``"open"``; a disabled or metrics-only one is ``"closed"``. See :attr:`mode`.
        """
        return STATES[self._machine.state(self.now())]

    @property
    def mode(self) -> str:
        """``"automatic"``, or the mode set by hand: ``"metrics_only"``, ``"disabled"`` or ``"forced_open"``."""
        return MODES[self._machine.mode]

    @property
    def retry_after_s(self) -> float:
        """Seconds until a call may pass; 0.0 while all calls pass."""
        return self.retry_after_ns(self.now()) / 1e9

    def force_open(self) -> None:
        """Reject every call until :meth:`reset`, :meth:`disable` or :meth:`metrics_only`."""
        self._set("forced_open")

    def disable(self) -> None:
        """Let every call pass and count no outcome, until :meth:`reset` or another mode."""
        self._set("disabled")

    def metrics_only(self) -> None:
        """Let every call pass and judge as if closed, but only notify listeners when a threshold is reached."""
        self._set("metrics_only")

    def reset(self) -> None:
        """Close the circuit, with an empty window and the first open time; keep the counters of :meth:`statistics`."""
        self._set("automatic")

    def listen(self, listener: Callable[[BreakerEvent], object]) -> Callable[[], None]:
        """Call ``listener`` with each :class:`BreakerEvent` from now on.

        The call that caused or noticed the event calls the listener in its own thread. If another thread is delivering
        an event at that moment, it delivers this one too. Events come in order, with no lock held. The listener should
        be quick and may use the breaker. Its errors are logged (``streaminfer.resilience``) and change nothing.

        Args:
            listener: a function of the event.

        Returns:
            A function that removes the listener.
        """
        return self._events.listen(listener)

    def statistics(self) -> BreakerStatistics:
        """Return a frozen snapshot."""
        from streaminfer.resilience.breaker.statistics import COUNTED, BreakerStatistics  # noqa: PLC0415 - serving needs none

        now_ns = self.now()
        retry_after_s = self.retry_after_ns(now_ns) / 1e9
        state, mode, *counts = self._machine.snapshot(now_ns)
        return BreakerStatistics(
            name=self.name,
            state=STATES[state],
            mode=MODES[mode],
            retry_after_s=retry_after_s,
            share=self._machine.share(now_ns),
            **dict(zip(COUNTED, counts, strict=True)),
        )

    def _set(self, mode: str) -> None:
        self._machine.set_mode(MODES.index(mode), self.now())
        self._events.deliver()

    __reduce__ = reject_copy

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        mode = "" if self.mode == "automatic" else f", {self.mode}"
        return f"<CircuitBreaker({name}{self.state}{mode})>"


def _share(name: str, value: object) -> float:
    return check_number(name, value, "a share above 0 and at most 1", lambda it: 0.0 < it <= 1.0)


def _window(window: object) -> OutcomeWindow:
    expectation = (
        f'a number of calls from 1 to {_MAX_CALLS:,}, or seconds as text, as in "10s", up to {_MAX_WINDOW_S:.0f}'
    )
    if isinstance(window, str):
        match = _SECONDS.fullmatch(window)
        seconds = float(match[1]) if match else 0.0
        if not 0.0 < seconds <= _MAX_WINDOW_S:
            raise ValueError(expected("window", expectation, window))
        slices = max(_MIN_SLICES, math.ceil(seconds))
        return OutcomeWindow(slices, max(round(seconds * 1e9) // slices, 1))
    if isinstance(window, bool) or not hasattr(window, "__index__"):
        raise TypeError(expected("window", expectation, window))
    calls = int(window.__index__())
    if not 1 <= calls <= _MAX_CALLS:
        raise ValueError(expected("window", expectation, window))
    return OutcomeWindow(calls, 0)

"""What happened to a circuit breaker, told to whoever listens: in order, with no lock held, and never its undoing.

The state machine writes events into a ring of numbers; the call that caused one, or noticed it, tells it afterwards.
One thread at a time tells, so that listeners hear events in their order. A thread that finds another one telling leaves
its event to that one and goes on, so nobody waits: a listener may call the breaker, which is heard when the listener
has returned, and one that never returns holds up no other call.
"""

import threading
from collections.abc import Callable

import attrs

from streaminfer._internal.listener_failures import LISTENER_ERRORS, ListenerFailures
from streaminfer._internal.validation import check_instance
from streaminfer.resilience.breaker._state_machine_cy import REASONS, STATES, BreakerMachine

__all__ = ["BreakerEvent", "BreakerEvents"]


@attrs.frozen
class BreakerEvent:
    """A change of a circuit breaker's state or mode, or a threshold that was passed in metrics-only mode.

    Attributes:
        breaker: its name.
        before: ``"closed"``, ``"open"`` or ``"half_open"``.
        after: the same; like ``before`` where only the mode changed, and in metrics-only mode.
        reason: ``"failure_rate"``, ``"slow_rate"``, ``"open_time_passed"``, ``"probes_succeeded"``,
            ``"probes_failed"``, ``"probes_slow"``, ``"half_open_time_passed"``, ``"forced_open"``, ``"disabled"``,
            ``"metrics_only"`` or ``"reset"``.
        at_ns: when, on the breaker's clock; what the clock alone changed is told by the next call, with its own
            instant.
        calls: how many outcomes it was judged by; 0 where none were.
        failures: how many of them failed.
        slow: how many of them were slow.
    """

    breaker: str
    before: str
    after: str
    reason: str
    at_ns: int
    calls: int
    failures: int
    slow: int


class BreakerEvents:
    """Tells the events of one machine. Thread-safe."""

    def __init__(self, name: str, machine: BreakerMachine) -> None:
        self._name = name
        self._failures = ListenerFailures("streaminfer.resilience", f"circuit breaker {name!r}")
        self._machine = machine
        self._listeners: tuple[Callable[[BreakerEvent], object], ...] = ()
        self._changing = threading.Lock()
        self._telling = threading.Lock()  # never waited for

    def listen(self, listener: Callable[[BreakerEvent], object]) -> Callable[[], None]:
        """Tells every event from now on to ``listener``; what it returns ends that.

        Raises:
            TypeError: not a callable.
        """
        check_instance("listener", listener, callable, "a function of a BreakerEvent")
        with self._changing:
            self._listeners = (*self._listeners, listener)
            self._machine.listening = True

        def stop() -> None:
            nonlocal listener
            with self._changing:
                self._listeners = tuple(other for other in self._listeners if other is not listener)
                self._machine.listening = bool(self._listeners)

        return stop

    def deliver(self) -> None:
        """Tells what is pending, unless somebody does already."""
        while self._machine.transitions.pending and self._telling.acquire(blocking=False):
            try:
                event = self._machine.next_event()
                while event is not None:
                    self._tell(event)
                    event = self._machine.next_event()
            finally:
                self._telling.release()
            # one that came between the last look and the release was left to this thread: look again

    def _tell(self, event: tuple[int, ...]) -> None:
        before, after, reason, *numbers = event
        told = BreakerEvent(self._name, STATES[before], STATES[after], REASONS[reason], *numbers)
        for listener in self._listeners:
            try:
                listener(told)
            except LISTENER_ERRORS as failure:
                self._failures.report(listener, told, failure)

"""Delivery of a circuit breaker's events to listeners: in order, and with no lock held.

The state machine writes transitions into a ring of numbers. The call that caused or noticed a transition delivers it
afterwards. Only one thread delivers at a time, so that listeners get events in order. If another thread is delivering,
a thread leaves its event to that thread and does not wait. So a listener can call the breaker, and a listener that
never returns delays no other call.
"""

from collections.abc import Callable, Iterator

import attrs

from streaminfer._internal.listeners import Listeners
from streaminfer.resilience.breaker._state_machine_cy import REASONS, STATES, BreakerMachine

__all__ = ["BreakerEvent", "BreakerEvents"]


@attrs.frozen
class BreakerEvent:
    """A change of a circuit breaker's state or mode, or a threshold that was passed in metrics-only mode.

    Attributes:
        breaker: name of the breaker.
        before: state before the event: ``"closed"``, ``"open"`` or ``"half_open"``.
        after: state after it; the same as ``before`` if only the mode changed, and in metrics-only mode.
        reason: ``"failure_rate"``, ``"slow_rate"``, ``"open_time_passed"``, ``"probes_succeeded"``,
            ``"probes_failed"``, ``"probes_slow"``, ``"half_open_time_passed"``, ``"forced_open"``, ``"disabled"``,
            ``"metrics_only"`` or ``"reset"``.
        at_ns: instant of the event, on the breaker's clock. If only time caused the change, the next call delivers it,
            with the instant of the change.
        calls: number of outcomes that were judged; 0: none.
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
    """Delivers the events of one machine. Thread-safe."""

    def __init__(self, name: str, machine: BreakerMachine) -> None:
        self._name = name
        self._machine = machine
        self._listeners: Listeners[BreakerEvent] = Listeners(
            "streaminfer.resilience", f"circuit breaker {name!r}", "a function of a BreakerEvent"
        )

    def listen(self, listener: Callable[[BreakerEvent], object]) -> Callable[[], None]:
        """Add a listener for all later events; the result removes it.

        Raises:
            TypeError: ``listener`` is not callable.
        """
        return self._listeners.add(listener)

    def deliver(self) -> None:
        """Deliver the pending events, unless another thread does."""
        while self._machine.transitions.pending and self._listeners.deliver(self._take):
            pass  # other threads left events to this thread until the delivery returned

    def _take(self) -> Iterator[BreakerEvent]:
        # events from a listener's own calls wait for another round, so that this delivery ends
        for _ in range(self._machine.transitions.pending):
            if (event := self._machine.next_event()) is None:
                return
            before, after, reason, *numbers = event
            yield BreakerEvent(self._name, STATES[before], STATES[after], REASONS[reason], *numbers)

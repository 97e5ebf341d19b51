"""The attempts in flight of a `FallbackRouter`, and when each is interrupted, with one timer for all of them.

*Design.* A request waits for its route in its caller's task, without a separate task or timer. An attempt holds the
task and the instant at which it is interrupted; one timer is set for the earliest instant. When it fires, the router
interrupts the attempts that are due as ``asyncio.timeout`` does: by a cancellation that it takes back later. Most
attempts end long before and leave the timer unchanged, so it fires about once per time limit and not once per request.

*Complexity.* O(1) per request; an interruption is O(attempts in flight).

*Invariants.* An attempt is listed from :meth:`Attempts.enter` to :meth:`Attempts.leave` and interrupted at most once.
The timer is never set later than the earliest attempt that has not been interrupted.

One source, compiled with the C types of ``_attempts_cy.pxd`` or run uncompiled. Needs no loop and no clock; tasks are
objects with ``cancel`` and ``cancelling``. Not thread-safe.
"""

from __future__ import annotations

from typing import Any

from streaminfer._internal.units import NEVER_NS

__all__ = ["Attempt", "Attempts", "switch_at"]


def switch_at(now_ns: int, deadline_ns: int, finish_ns: int, reserve_ns: int, default_ns: int) -> int:
    """Return when to interrupt an attempt so that the next route still has time.

    The next route's time is reserved before the deadline. If this route's own prediction and a quarter more show that
    it needs this time itself, it gets all of it. If an attempt overruns its prediction by the predicted time and by a
    quarter of the time limit, the prediction was wrong, and the next route gets the request at once. So requests that
    hang together move on in the order of their arrival, while they still have time left.

    Args:
        now_ns: the present instant.
        deadline_ns: deadline of the request.
        finish_ns: when this route is predicted to respond; 0: unknown.
        reserve_ns: the time that the next route needs; 0: no next route.
        default_ns: the time that is always reserved for a default response.

    Returns:
        An instant after now, at most ``deadline_ns - default_ns``.
    """
    last_ns = deadline_ns - default_ns
    switch_ns = min(deadline_ns - reserve_ns, last_ns)
    if finish_ns > 0:
        if finish_ns + ((finish_ns - now_ns) >> 2) > switch_ns:
            switch_ns = last_ns
        elif reserve_ns > 0:
            overrun_ns = max(finish_ns - now_ns, (deadline_ns - now_ns) >> 2)
            switch_ns = min(switch_ns, finish_ns + overrun_ns)
    return max(switch_ns, now_ns + 1)


class Attempt:
    """One request at one route.

    Attributes:
        cancellations: ``task.cancelling()`` when the attempt began.
        started_ns: when the attempt began.
        switch_ns: when the router interrupts it.
        deadline_ns: deadline of the request.
        interrupted: the router has interrupted it.
    """

    def __init__(self, task: Any, cancellations: int, started_ns: int, switch_ns: int, deadline_ns: int) -> None:
        self._task = task
        self.cancellations = cancellations
        self.started_ns = started_ns
        self.switch_ns = switch_ns
        self.deadline_ns = deadline_ns
        self.interrupted = False

    def was_interrupted_early(self) -> bool:
        """Return whether more than half of the time was left: a reserve is shorter, so it overran its prediction."""
        return self.switch_ns - self.started_ns < self.deadline_ns - self.switch_ns


class Attempts:
    """The attempts in flight.

    Attributes:
        timer_ns: when the timer fires; the router sets the timer after :meth:`enter` and :meth:`interrupt_due`.
    """

    def __init__(self) -> None:
        self._in_flight: dict[Attempt, None] = {}
        self.timer_ns = NEVER_NS

    @property
    def count(self) -> int:
        """Number of attempts in flight."""
        return len(self._in_flight)

    def enter(self, task: Any, cancellations: int, now_ns: int, switch_ns: int, deadline_ns: int) -> Attempt:
        """Begin an attempt; set the timer if ``switch_ns`` is before ``timer_ns``.

        Args:
            task: task of the caller.
            cancellations: ``task.cancelling()`` now.
            now_ns: the present instant.
            switch_ns: when to interrupt the attempt; ``NEVER_NS``: not at all.
            deadline_ns: deadline of the request; ``NEVER_NS``: none.
        """
        attempt = Attempt(task, cancellations, now_ns, switch_ns, deadline_ns)
        self._in_flight[attempt] = None
        return attempt

    def leave(self, attempt: Attempt) -> None:
        """End an attempt."""
        self._in_flight.pop(attempt, None)  # absent if its loop was closed
        attempt._task = None  # it may hold the error, whose traceback holds frames that refer to the attempt

    def interrupt_due(self, now_ns: int) -> int:
        """Interrupt the attempts that are due, in the order in which they began.

        Returns:
            The instant for which to set the timer next; ``NEVER_NS``: not at all.
        """
        earliest_ns = NEVER_NS
        for attempt in [*self._in_flight]:
            if not attempt.interrupted:
                if attempt.switch_ns <= now_ns:
                    attempt.interrupted = True
                    attempt._task.cancel()  # does not run the task, which wakes in a later turn
                elif attempt.switch_ns < earliest_ns:
                    earliest_ns = attempt.switch_ns
        self.timer_ns = earliest_ns
        return earliest_ns

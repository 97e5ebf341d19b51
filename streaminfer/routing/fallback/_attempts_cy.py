"""The attempts in flight of a `FallbackRouter`: who is to be interrupted when, with one timer for all of them.

*Idea.* A request waits for its route in its caller's own task: no task and no timer of its own. The task is kept with
the instant at which it is to give up on the route; one alarm is set for the earliest. When that rings, whoever is due
is interrupted the way ``asyncio.timeout`` does it, by a cancellation that the router takes back. Most attempts have
ended long before: they unlink themselves and leave the alarm alone, so that it rings about once for each time limit
and not once for each request.

*Invariants.* An attempt is linked from :meth:`Attempts.enter` to :meth:`Attempts.leave` and interrupted at most once.
The alarm is never set later than the earliest attempt that has not been interrupted.

*Cost.* O(1) for each request; an interruption is O(attempts in flight).

One source, compiled with the C types of ``_attempts_cy.pxd`` or run as it is. It knows no loop and no clock; tasks are
objects with ``cancel`` and ``cancelling``. Not thread-safe.
"""

from __future__ import annotations

from typing import Any

from streaminfer._internal.instants import NEVER_NS

__all__ = ["Attempt", "Attempts", "switch_at"]

_NEVER = NEVER_NS


def switch_at(now_ns: int, deadline_ns: int, finish_ns: int, reserve_ns: int, keep_ns: int) -> int:
    """When to give up on a route so that the next one still has time.

    The next route's time is reserved at the end of the time limit, unless this route's own prediction, and a quarter
    more, says that it needs it itself: then it has all. A prediction that is overrun by as much as was predicted, and
    by a quarter of the time limit, was wrong: then the next route gets the request at once, with the others of its herd
    in the order of their arrival, and not when none of them has time left.

    Args:
        now_ns: the present instant.
        deadline_ns: of the request.
        finish_ns: when this route is predicted to answer; 0: unknown.
        reserve_ns: what the next route is predicted to take; 0: there is none.
        keep_ns: what is kept in any case, for a default answer.

    Returns:
        An instant after now, at most ``deadline_ns - keep_ns``.
    """
    last_ns = deadline_ns - keep_ns
    wanted_ns = deadline_ns - reserve_ns
    if wanted_ns > last_ns:
        wanted_ns = last_ns
    if finish_ns > 0:
        if finish_ns + ((finish_ns - now_ns) >> 2) > wanted_ns:
            wanted_ns = last_ns
        elif reserve_ns > 0:
            overrun_ns = finish_ns - now_ns
            if overrun_ns < (deadline_ns - now_ns) >> 2:
                overrun_ns = (deadline_ns - now_ns) >> 2
            if finish_ns + overrun_ns < wanted_ns:
                wanted_ns = finish_ns + overrun_ns
    return wanted_ns if wanted_ns > now_ns else now_ns + 1


class Attempt:
    """One request at one route.

    Attributes:
        started_ns: when it went there.
        switch_ns: when it is interrupted.
        deadline_ns: of the request.
        interrupted: it was.
    """

    __slots__ = (
        "_cancellations",
        "_next",
        "_previous",
        "_task",
        "deadline_ns",
        "interrupted",
        "started_ns",
        "switch_ns",
    )

    def __init__(self, task: Any, cancellations: int, started_ns: int, switch_ns: int, deadline_ns: int) -> None:
        self._task = task
        self._cancellations = cancellations
        self._previous: Attempt | None = None
        self._next: Attempt | None = None
        self.started_ns = started_ns
        self.switch_ns = switch_ns
        self.deadline_ns = deadline_ns
        self.interrupted = False

    def was_given_up_early(self) -> bool:
        """Whether more than half of its time was left: no reserve is so long, so it overran its prediction."""
        return self.switch_ns - self.started_ns < self.deadline_ns - self.switch_ns

    def was_cancelled_too(self, cancellations: int) -> bool:
        """Whether, beside the interruption, somebody else asked for the task's cancellation since it began.

        Args:
            cancellations: how many the task still has to answer for, the interruption taken back.
        """
        return cancellations > self._cancellations


class Attempts:
    """Those in flight.

    Attributes:
        count: how many.
        timer_ns: for when an alarm is set; the shell sets it when :meth:`enter` says so, and after
        :meth:`interrupt_due`.
    """

    __slots__ = ("_head", "count", "timer_ns")

    def __init__(self) -> None:
        self._head: Attempt | None = None
        self.count = 0
        self.timer_ns = NEVER_NS

    def enter(self, task: Any, cancellations: int, now_ns: int, switch_ns: int, deadline_ns: int) -> Attempt:
        """A request goes to a route; set the alarm if its ``switch_ns`` is before ``timer_ns``.

        Args:
            task: where it waits.
            cancellations: what ``task.cancelling()`` says now.
            now_ns: the present instant.
            switch_ns: when to interrupt it; ``NEVER_NS``: not at all.
            deadline_ns: of the request; ``NEVER_NS``: none.
        """
        attempt = Attempt(task, cancellations, now_ns, switch_ns, deadline_ns)
        attempt._next = self._head
        if self._head is not None:
            self._head._previous = attempt
        self._head = attempt
        self.count += 1
        return attempt

    def leave(self, attempt: Attempt) -> None:
        """It has ended there."""
        if attempt._previous is None:
            self._head = attempt._next
        else:
            attempt._previous._next = attempt._next
        if attempt._next is not None:
            attempt._next._previous = attempt._previous
        attempt._previous = None
        attempt._next = None
        self.count -= 1

    def interrupt_due(self, now_ns: int) -> int:
        """Interrupts those that are due.

        Returns:
            For when the alarm is to be set next; ``NEVER_NS``: not at all.
        """
        earliest_ns = _NEVER
        attempt = self._head
        while attempt is not None:
            following = attempt._next
            if not attempt.interrupted:
                if attempt.switch_ns <= now_ns:
                    attempt.interrupted = True
                    attempt._task.cancel()  # runs nothing of the task: it is woken in a later turn
                elif attempt.switch_ns < earliest_ns:
                    earliest_ns = attempt.switch_ns
            attempt = following
        self.timer_ns = earliest_ns
        return earliest_ns

    def interrupt_all(self) -> None:
        """Interrupts whoever is there: the router stops."""
        self.interrupt_due(_NEVER)

    def __repr__(self) -> str:
        return f"<Attempts: {self.count} in flight>"

"""Promotion of background batches to the usual priority: those that would be late, and those that would wait."""

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from weakref import WeakKeyDictionary

import attrs

from streaminfer.batching.device.member import DeviceMember
from streaminfer.batching.queue._ticket_cy import NEVER, Execution

__all__ = ["Promotions"]

_SHARE = 4
"""Duration of a batch at the usual priority, relative to alone: it shares the core with the loop and a thread."""

_FORGET = 0.1
"""Share by which the longest CPU time of a batch size decays with each further batch."""

_MIN_CHECK_NS = 1_000_000

_WHOLE_CORE = 0.9
"""Cores that this process uses at least while a background batch runs, unless other processes want them too."""

_MOST_BACKOFF = 32
"""Most batches that begin at the usual priority after a wait."""


class Promotions:
    """Promotes batches of one device's background to the usual priority.

    A batch is checked after half of the time from its begin to its earliest deadline. The CPU time that it still needs
    is that of earlier batches of its size, less the time that it has used. If it has four times as long until its
    deadline, it stays lowered, and is checked again when it no longer has. Otherwise, or if its CPU time is unknown, it
    is *promoted*. A batch without a deadline is promoted after ``max_wait_ns``. So neither another process nor the
    foreground can take a core from the background for ever.

    Other processes get a core before a lowered batch does. If this process used less than a core until the check, the
    batch waited for them, and is promoted at once. The next batches would wait too, so they begin at the usual
    priority: first one batch, then twice as many each time that the next lowered batch has to wait again (exponential
    back-off).

    Args:
        max_wait_ns: nanoseconds after which a batch without a deadline is promoted.
        count: called with the model of each promoted batch.
        process_time_ns: returns the CPU time of this process in nanoseconds.
    """

    def __init__(
        self,
        max_wait_ns: int,
        count: Callable[[DeviceMember], object],
        process_time_ns: Callable[[], int] = time.process_time_ns,
    ) -> None:
        self._max_wait_ns = max_wait_ns
        self._count = count
        self._process_time_ns = process_time_ns
        self._lowered: dict[Execution, _Lowered] = {}
        # number of batches that begin at the usual priority after the last wait, and how many of them remain
        self._backoffs: WeakKeyDictionary[DeviceMember, tuple[int, int]] = WeakKeyDictionary()
        self._longest_ns: WeakKeyDictionary[DeviceMember, dict[int, int]] = WeakKeyDictionary()  # by size of the batch

    def begin(self, loop: asyncio.AbstractEventLoop, execution: Execution, member: DeviceMember, now_ns: int) -> None:
        """Note that a background batch begins, and tell its backend whether it is lowered."""
        batches, remaining = self._backoffs.get(member, (0, 0))
        member.claim.runs.set_background(not remaining)
        if remaining:
            self._backoffs[member] = batches, remaining - 1
            return
        deadline_ns = min(ticket.deadline_ns for ticket in execution.tickets)
        time_ns = None if deadline_ns == NEVER else max(deadline_ns - now_ns, 0)
        lowered = _Lowered(loop, member, time_ns, self._process_time_ns())
        self._lowered[execution] = lowered
        self._check_after(self._max_wait_ns if time_ns is None else time_ns // 2, execution, lowered)

    def end(self, execution: Execution, member: DeviceMember) -> bool:
        """Note that a batch ended; return whether it was promoted because it would have been late."""
        lowered = self._lowered.pop(execution, None)
        if lowered is None:
            return False
        if (used_ns := member.claim.runs.ended_ns()) is not None:
            longest_ns = self._longest_ns.setdefault(member, {})
            size = len(execution.tickets)
            longest_ns[size] = max(used_ns, round((1 - _FORGET) * longest_ns.get(size, 0)))
        if lowered.timer is None:
            return lowered.time_ns is not None
        lowered.timer.cancel()
        self._backoffs.pop(member, None)  # it ran lowered to its end
        return False

    def forget(self) -> None:
        """Forget the running batches, because their loop was closed."""
        self._lowered.clear()

    def _check_after(self, wait_ns: int, execution: Execution, lowered: "_Lowered") -> None:
        lowered.timer = lowered.loop.call_later(wait_ns / 1e9, self._check, execution, lowered, context=Context())

    def _check(self, execution: Execution, lowered: "_Lowered") -> None:
        elapsed_ns = round((lowered.loop.time() - lowered.began_s) * 1e9)
        used_full_core = self._process_time_ns() - lowered.process_time_ns >= _WHOLE_CORE * elapsed_ns
        if used_full_core and lowered.time_ns is not None:
            needed_ns = self._needed_ns(execution, lowered.member)
            spare_ns = 0 if needed_ns is None else lowered.time_ns - elapsed_ns - _SHARE * needed_ns
            if spare_ns > 0:
                self._check_after(max(spare_ns, _MIN_CHECK_NS), execution, lowered)
                return
        lowered.timer, member = None, lowered.member
        self._count(member)
        member.claim.runs.raise_running()
        if used_full_core:  # so the foreground delayed it, not other processes
            self._backoffs.pop(member, None)
        else:
            batches = min(max(2 * self._backoffs.get(member, (0, 0))[0], 1), _MOST_BACKOFF)
            self._backoffs[member] = batches, batches

    def _needed_ns(self, execution: Execution, member: DeviceMember) -> int | None:
        """Return the CPU time that a batch still needs; ``None``: unknown."""
        longest_ns = self._longest_ns.get(member, {}).get(len(execution.tickets))
        used_ns = member.claim.runs.running_ns()
        if longest_ns is None or used_ns is None:
            return None
        return max(longest_ns - used_ns, longest_ns // 10)  # not 0: a batch that has exceeded the longest still runs


@attrs.define(eq=False)
class _Lowered:
    """A batch that began at the lowest priority; its timer is ``None`` after its promotion."""

    loop: asyncio.AbstractEventLoop
    member: DeviceMember
    time_ns: int | None  # from its begin to its deadline
    process_time_ns: int
    timer: asyncio.TimerHandle | None = None
    began_s: float = attrs.Factory(lambda it: it.loop.time(), takes_self=True)

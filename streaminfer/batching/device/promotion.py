"""Batches of a device's background at the usual priority: those that have waited too long, and those that would."""

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from weakref import WeakKeyDictionary

import attrs

from streaminfer.batching.device.member import DeviceMember
from streaminfer.batching.queue._ticket_cy import NEVER, Execution

__all__ = ["Promotions"]

_WHOLE_CORE = 0.9
"""Cores that this process uses at least while a batch of the background runs, unless other processes want them too."""

_MOST_BACKOFF = 32
"""Batches."""


class Promotions:
    """Which batches of one device's background run at the usual priority.

    A batch is *promoted* when half of the time from its begin to its earliest deadline has passed, or ``max_wait_ns``
    where it has none. So no other process, and no foreground, keeps a core from the background for good.

    Other processes have a core before a lowered batch has it. A batch that was promoted although this process used less
    than a core meanwhile had to wait for them, and the next ones would too. So these begin at the usual priority: one,
    and twice as many each time that the lowered batch after them has to wait again (exponential back-off).

    Args:
        max_wait_ns: until a batch without a deadline is promoted.
        count: called with the model of each batch that is promoted.
        process_time_ns: returns the CPU time that this process has used, in nanoseconds.
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
        self._timers: dict[Execution, asyncio.TimerHandle] = {}
        self._backoffs: WeakKeyDictionary[DeviceMember, _Backoff] = WeakKeyDictionary()

    def begin(self, loop: asyncio.AbstractEventLoop, execution: Execution, member: DeviceMember, now_ns: int) -> None:
        """Note that a batch of the background begins, and say to its backend whether it is lowered."""
        backoff = self._backoffs.get(member)
        is_lowered = backoff is None or not backoff.left
        member.claim.set_background(is_lowered)
        if backoff is not None and not is_lowered:
            backoff.left -= 1
            return
        deadline_ns = min(ticket.deadline_ns for ticket in execution.tickets)
        patience_ns = self._max_wait_ns if deadline_ns == NEVER else max(deadline_ns - now_ns, 0) // 2
        self._timers[execution] = loop.call_later(
            patience_ns / 1e9, self._promote, execution, member, patience_ns, self._process_time_ns(), context=Context()
        )

    def end(self, execution: Execution, member: DeviceMember) -> None:
        """Note that a batch ended."""
        timer = self._timers.pop(execution, None)
        if timer is not None:  # lowered to its end
            timer.cancel()
            self._backoffs.pop(member, None)

    def forget(self) -> None:
        """Forget the batches that run: their loop was closed."""
        self._timers.clear()

    def _promote(self, execution: Execution, member: DeviceMember, patience_ns: int, used_ns: int) -> None:
        del self._timers[execution]
        self._count(member)
        member.claim.raise_running()
        if self._process_time_ns() - used_ns >= _WHOLE_CORE * patience_ns:
            self._backoffs.pop(member, None)  # the foreground had the core
        else:
            self._backoffs.setdefault(member, _Backoff()).grow()


@attrs.define
class _Backoff:
    """How many batches of one model begin at the usual priority, and how many of them are left."""

    batches: int = 0
    left: int = 0

    def grow(self) -> None:
        self.batches = self.left = min(max(2 * self.batches, 1), _MOST_BACKOFF)

"""Batches of a device's background at the usual priority: those that would be late, and those that would wait."""

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
"""How much longer a batch may take at the usual priority than alone: it shares the core with the loop and a thread."""

_FORGET = 0.1
"""Share by which the longest CPU time of a batch of one size is forgotten with each further one."""

_NEXT_LOOK_NS = 1_000_000

_WHOLE_CORE = 0.9
"""Cores that this process uses at least while a batch of the background runs, unless other processes want them too."""

_MOST_BACKOFF = 32
"""Batches."""


class Promotions:
    """Which batches of one device's background run at the usual priority.

    Half of the time from a batch's begin to its earliest deadline is a time to look at it. What it still needs is the
    CPU time of such batches before it, less what it has used. If it has four times as long until its deadline, it stays
    lowered, and is looked at again when it has not. Otherwise, and where its CPU time is not known, it is *promoted*. A
    batch without a deadline is promoted after ``max_wait_ns``. So no other process, and no foreground, keeps a core
    from the background for good.

    Other processes have a core before a lowered batch has it. If this process used less than a core until a batch is
    looked at, it waited for them: it is promoted at once. The next ones would wait too, so these begin at the usual
    priority: one, and twice as many each time that the lowered batch after them has to wait again (exponential
    back-off).

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
        self._lowered: dict[Execution, _Lowered] = {}
        self._backoffs: WeakKeyDictionary[DeviceMember, _Backoff] = WeakKeyDictionary()
        self._longest_ns: WeakKeyDictionary[DeviceMember, dict[int, int]] = WeakKeyDictionary()  # by size of the batch

    def begin(self, loop: asyncio.AbstractEventLoop, execution: Execution, member: DeviceMember, now_ns: int) -> None:
        """Note that a batch of the background begins, and say to its backend whether it is lowered."""
        backoff = self._backoffs.get(member)
        is_lowered = backoff is None or not backoff.left
        member.claim.set_background(is_lowered)
        if backoff is not None and not is_lowered:
            backoff.left -= 1
            return
        deadline_ns = min(ticket.deadline_ns for ticket in execution.tickets)
        time_ns = None if deadline_ns == NEVER else max(deadline_ns - now_ns, 0)
        lowered = _Lowered(loop, member, time_ns, self._process_time_ns())
        self._lowered[execution] = lowered
        self._look_in(self._max_wait_ns if time_ns is None else time_ns // 2, execution, lowered)

    def end(self, execution: Execution, member: DeviceMember) -> bool:
        """Note that a batch ended; return whether it was promoted because it would have been late."""
        lowered = self._lowered.pop(execution, None)
        if lowered is None:
            return False
        if (used_ns := member.claim.ended_ns()) is not None:
            longest_ns = self._longest_ns.setdefault(member, {})
            size = len(execution.tickets)
            longest_ns[size] = max(used_ns, round((1 - _FORGET) * longest_ns.get(size, 0)))
        if lowered.timer is None:
            return lowered.time_ns is not None
        lowered.timer.cancel()
        self._backoffs.pop(member, None)  # it was lowered to its end
        return False

    def forget(self) -> None:
        """Forget the batches that run: their loop was closed."""
        self._lowered.clear()

    def _look_in(self, wait_ns: int, execution: Execution, lowered: "_Lowered") -> None:
        lowered.timer = lowered.loop.call_later(wait_ns / 1e9, self._look, execution, lowered, context=Context())

    def _look(self, execution: Execution, lowered: "_Lowered") -> None:
        elapsed_ns = lowered.elapsed_ns()
        had_core = self._process_time_ns() - lowered.process_time_ns >= _WHOLE_CORE * elapsed_ns
        if had_core and lowered.time_ns is not None:
            needed_ns = self._needed_ns(execution, lowered.member)
            spare_ns = 0 if needed_ns is None else lowered.time_ns - elapsed_ns - _SHARE * needed_ns
            if spare_ns > 0:
                self._look_in(max(spare_ns, _NEXT_LOOK_NS), execution, lowered)
                return
        lowered.timer = None
        self._promote(lowered, had_core)

    def _needed_ns(self, execution: Execution, member: DeviceMember) -> int | None:
        """Return the CPU time that a batch still needs; ``None``: it is not known."""
        longest_ns = self._longest_ns.get(member, {}).get(len(execution.tickets))
        used_ns = member.claim.running_ns()
        if longest_ns is None or used_ns is None:
            return None
        return max(longest_ns - used_ns, longest_ns // 10)  # one that takes longer is never at its end

    def _promote(self, lowered: "_Lowered", had_core: bool) -> None:
        member = lowered.member
        self._count(member)
        member.claim.raise_running()
        if had_core:  # and so the foreground held it up
            self._backoffs.pop(member, None)
        else:
            self._backoffs.setdefault(member, _Backoff()).grow()


@attrs.define(eq=False)
class _Lowered:
    """A batch that began at the lowest priority, and when it is looked at; ``None``: it is promoted."""

    loop: asyncio.AbstractEventLoop
    member: DeviceMember
    time_ns: int | None  # until its deadline
    process_time_ns: int
    timer: asyncio.TimerHandle | None = None
    began_s: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.began_s = self.loop.time()

    def elapsed_ns(self) -> int:
        return round((self.loop.time() - self.began_s) * 1e9)


@attrs.define
class _Backoff:
    """How many batches of one model begin at the usual priority, and how many of them are left."""

    batches: int = 0
    left: int = 0

    def grow(self) -> None:
        self.batches = self.left = min(max(2 * self.batches, 1), _MOST_BACKOFF)

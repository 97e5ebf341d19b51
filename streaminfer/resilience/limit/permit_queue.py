"""Queue of the calls that wait for a permit of a `ConcurrencyLimit`.

*Design.* The queue has the order in which calls get permits: the most urgent call first, equal ones in the order of
arrival. A permit that comes back is given at once to the first call, before any later call can take it. A new call may
not overtake a queued call, or a call that has a permit and continues in the next turn of the loop; it joins the queue
instead. A less urgent call sees fewer permits (``reserve``), so if there is none for the first call, there is none for
the others.

*Invariants.* While calls wait, there is no permit for the first of them. Each waiting call ends with a permit, an error
or its cancellation. If a call is cancelled at the moment when it gets a permit, the permit is given back.

Threads: calls wait on one event loop at a time; permits may come back from any thread.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import operator
from typing import TYPE_CHECKING, Any

import attrs

from streaminfer._internal.units import NEVER_NS
from streaminfer.errors import DeadlineExceeded
from streaminfer.resilience.limit._state_machine_cy import FULL

if TYPE_CHECKING:
    from streaminfer.resilience.limit._guard_cy import LimitCore

__all__ = ["PermitQueue"]


_priority_of = operator.itemgetter(0)


class PermitQueue:
    """The calls that wait for permits of one limit.

    Args:
        limit: the limit that gives the permits.
        max_wait_ns: how long a call may wait, > 0.
        max_waiting: how many calls may wait.

    Attributes:
        cancelled: calls that were cancelled while they were queued.
    """

    def __init__(self, limit: LimitCore, max_wait_ns: int, max_waiting: int) -> None:
        self._limit = limit
        self._max_wait_ns = max_wait_ns
        self._max_waiting = max_waiting
        self._waiting: list[tuple[int, int, _Waiter]] = []  # by priority, then by number
        self._leaving: set[_Waiter] = set()  # calls that have a permit and continue in the next turn of the loop
        self._serial = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.cancelled = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def accepts(self, priority: int, deadline_ns: int, now_ns: int) -> bool:
        """Return whether one more call may wait, and should get a permit in time; changes nothing."""
        if len(self._waiting) >= self._max_waiting:
            return False
        ahead = bisect.bisect_right(self._waiting, priority, key=_priority_of)
        wait_ns = self._limit._machine.wait_ns(priority, ahead, now_ns)
        return wait_ns <= self._max_wait_ns and now_ns + wait_ns < deadline_ns

    async def enter(self, priority: int, deadline_ns: int | None, request: Any, admission: Any) -> int:
        """Return a permit, as ``LimitCore.enter``, if necessary after a wait.

        Raises:
            Overloaded: there was no permit in the time that a call may wait, or too many calls wait.
            DeadlineExceeded: there was no permit before the deadline, or the call would be late.
            RuntimeError: calls of another event loop wait.
        """
        deadline_ns = NEVER_NS if deadline_ns is None else deadline_ns
        waits_behind = bool(self._waiting) and self._waiting[0][0] <= priority
        waits = waits_behind or bool(self._leaving) or self._is_full(priority, deadline_ns)
        if not waits or len(self._waiting) >= self._max_waiting:
            return self._limit.enter(priority, deadline_ns, request, admission)  # which rejects it in the second case
        loop = self._bind_loop()
        left_ns = deadline_ns - self._limit.now()
        ends_at_deadline = left_ns <= self._max_wait_ns
        waiter = _Waiter(loop.create_future(), ends_at_deadline, priority, deadline_ns, request, admission)
        timer = loop.call_later(max(min(left_ns, self._max_wait_ns), 0) / 1e9, self._expire, waiter)
        entry = (priority, next(self._serial), waiter)
        bisect.insort(self._waiting, entry)
        self._grant_permits()  # another thread may have given a permit back before this call was in the queue
        try:
            if waiter.future.done():  # at once: calls that waited before it have not continued yet
                await asyncio.sleep(0)
            return await waiter.future
        except BaseException:
            if not waiter.future.done() or waiter.future.cancelled():
                self.cancelled += 1
            elif waiter.future.exception() is None:  # cancelled after it got a permit and before it continued
                self._limit.fail(waiter.future.result(), None, None)
            raise
        finally:
            timer.cancel()
            self._leaving.discard(waiter)
            place = bisect.bisect_left(self._waiting, entry[:2], key=lambda it: it[:2])
            if place < len(self._waiting) and self._waiting[place] is entry:
                del self._waiting[place]
            del waiter, entry  # they hold the error, whose traceback holds this frame

    def forget(self) -> None:
        """Forget all calls in a forked process: they wait in the parent."""
        self._waiting.clear()
        self._leaving.clear()
        self._loop = None

    def freed(self) -> None:
        """Give a permit that came back to the first call that waits. Thread-safe."""
        loop = self._loop
        if not self._waiting or loop is None or loop.is_closed():
            return
        if asyncio._get_running_loop() is loop:
            self._grant_permits()
        else:
            loop.call_soon_threadsafe(self._grant_permits)

    def _grant_permits(self) -> None:
        while self._waiting:
            priority, _, waiter = self._waiting[0]
            if not waiter.future.done():
                if self._is_full(priority, waiter.deadline_ns):
                    return
                self._try(waiter)
            self._waiting.pop(0)

    def _is_full(self, priority: int, deadline_ns: int) -> bool:
        return self._limit._machine.check(priority, deadline_ns, self._limit.now()) == FULL

    def _expire(self, waiter: _Waiter) -> None:
        """Reject a waiting call at the end of its time, or try once more to give it a permit."""
        if waiter.future.done():
            return
        if waiter.ends_at_deadline:
            self._limit._machine.reject_infeasible()
            name = self._limit.called()
            waiter.future.set_exception(DeadlineExceeded(f"{name} had no permit for a call before its deadline"))
        else:
            self._try(waiter)

    def _try(self, waiter: _Waiter) -> None:
        try:
            permit = self._limit.enter(waiter.priority, waiter.deadline_ns, waiter.request, waiter.admission)
        except Exception as error:  # noqa: BLE001 - it is raised where the call waits
            waiter.future.set_exception(error.with_traceback(None))  # its frames refer to the waiter
        else:
            waiter.future.set_result(permit)
            self._leaving.add(waiter)

    def _bind_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._waiting and self._loop is not None and not self._loop.is_closed():
                raise RuntimeError(f"calls of another event loop wait for {self._limit.called()}")
            self._waiting.clear()  # entries of a closed loop
            self._leaving.clear()
            self._loop = loop
        return loop


@attrs.frozen(eq=False)
class _Waiter:
    """One call that waits."""

    future: asyncio.Future[int]
    ends_at_deadline: bool
    priority: int
    deadline_ns: int
    request: Any
    admission: Any

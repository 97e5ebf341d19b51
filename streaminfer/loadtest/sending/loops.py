"""Callers of a load test: an open loop, which sends each request when it is due, and a closed one.

*Design.* The open loop never waits for a response before it sends: a slow service does not slow down its callers, so
the requests that a pause would have hit are sent, and their latencies count from the instant at which they were due.
All requests that are due at one wake-up of the timer are sent at once.

*Cost.* A request costs its task, one compiled coroutine around the call, two reads of the clock and two writes to
arrays. Where a service tells of the end of a request, it costs neither task nor coroutine. The arrays hold machine
integers, which the garbage collector does not visit.

References: G. Tene, "How NOT to measure latency", 2013 (coordinated omission); B. Schroeder, A. Wierman,
M. Harchol-Balter, "Open versus closed: a cautionary tale", NSDI 2006.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from streaminfer._internal.validation import check_count, check_duration
from streaminfer._runtime.timers import make_timer
from streaminfer.loadtest.sending._requests_cy import DueRequests
from streaminfer.testing import VirtualLoop

__all__ = ["Begin", "Call", "OpenLoop", "Receive", "clock_of", "closed_loop", "complete"]

Call = Callable[[int], Awaitable[Any]]
"""Sends the request of a number."""
Receive = Callable[[Any, BaseException | None], None]
"""Told once how a request ended: its response, or ``None`` and the error."""
Begin = Callable[[int, Receive], Any]
"""Begins the request of a number, and tells of its end; returns what has ``cancel``."""
_CANCELLING_S = 5.0
"""For which a cancelled call is waited for; one that ignores its cancellation is left behind."""


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], int]:
    """Return the clock, monotonic nanoseconds, that the timers of a loop follow."""
    return loop.clock if isinstance(loop, VirtualLoop) else time.monotonic_ns


class OpenLoop(DueRequests):
    """Sends each request when it is due, whatever became of the others.

    Args:
        call: sends a request.
        due_ns: instants of ``time.monotonic_ns``, or of the clock of a virtual loop, ascending.
        errors: with which a request may end; any other one ends the run, and is raised.
        on_result: is called with the number of a request and what its call returned; its own errors end the run.
        begin: begins a request, in place of ``call``, so that it needs no task.

    Attributes:
        due_ns: as given.
        sent_ns: when each request was sent; 0: it was not.
        completed_ns: when each was answered; 0: it was not.
        failures: what the others raised, the first error of each class for all of it; `asyncio.CancelledError` where a
            service cancelled its own call.
        sent: how many were sent.
    """

    def __init__(
        self,
        call: Call,
        due_ns: Sequence[int],
        *,
        errors: tuple[type[BaseException], ...] = (Exception,),
        on_result: Callable[[int, Any], None] | None = None,
        begin: Begin | None = None,
    ) -> None:
        super().__init__(call, begin, due_ns, errors, on_result, time.monotonic_ns, self._stop)
        self.due_ns = due_ns
        self._ended: asyncio.Future[None] | None = None

    @property
    def in_flight(self) -> int:
        """How many requests are sent and not completed."""
        return len(self.pending)

    async def run(self, *, drain_s: float | None = None) -> None:
        """Send all requests and wait for their ends.

        Args:
            drain_s: seconds after the last send at which requests in flight are cancelled, and count as neither
                answered nor failed; ``None``: never.

        Raises:
            BaseException: what a call raised that is not among ``errors``.
        """
        loop = asyncio.get_running_loop()
        clock = self.clock = clock_of(loop)
        ended = self._ended = loop.create_future()

        def send_due() -> None:
            now_ns = clock()
            next_ns = self.send_due(loop.create_task, now_ns)
            if next_ns:
                timer.set(max(next_ns, now_ns + timer.resolution_ns), now_ns)
            elif not self.pending:
                self._stop(None)
            elif drain_s is not None:
                limits.append(loop.call_later(drain_s, self._cancel))
                limits.append(loop.call_later(drain_s + _CANCELLING_S, self._stop, None))

        limits: list[asyncio.TimerHandle] = []
        timer = make_timer(loop, clock, send_due)
        try:
            if self.due_ns:
                timer.set(self.due_ns[0], clock())
                await ended
        finally:
            timer.close()
            for limit in limits:
                limit.cancel()
            if self.pending:  # this run was cancelled, or ended by an error
                self._cancel()
                left = [call for call in self.pending.values() if isinstance(call, asyncio.Task)]
                if left:
                    await asyncio.wait(left, timeout=_CANCELLING_S)

    def _cancel(self) -> None:
        self.cancelling = True
        for call in list(self.pending.values()):
            if call is not None:
                call.cancel()

    def _stop(self, error: BaseException | None) -> None:
        if self._ended is not None:
            complete(self._ended, None, error, "open loop")


def complete(done: Any, result: Any, error: BaseException | None, what: str) -> None:
    """Tell a future, or what stands for one, how something ended; nothing if its caller was cancelled.

    Args:
        done: is told.
        result: of what ended.
        error: why there is none; ``None``: there is one.
        what: ended, for messages.
    """
    if done.done():
        return
    if error is None:
        done.set_result(result)
        return
    if isinstance(error, StopIteration):  # no future takes it
        error = RuntimeError(f"{what}: {error!r}")
    done.set_exception(error)
    if isinstance(done, asyncio.Future):
        done.exception()  # a caller that has gone does not read it


async def closed_loop(call: Call, callers: int, seconds: float) -> list[float]:
    """Return the latencies that callers see who each send again as soon as they have a response.

    While the service pauses, so do its callers: the requests that the pause would have delayed are never sent.

    Args:
        call: sends a request.
        callers: how many.
        seconds: for how long.

    Returns:
        Seconds, in the order in which the requests were completed.

    Raises:
        TypeError, ValueError: an argument.
        BaseException: what a call raised; it ends all callers.
    """
    check_count("callers", callers)
    check_duration("seconds", seconds)
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds

    async def caller(number: int) -> None:
        while (sent := loop.time()) < ends:
            await asyncio.create_task(_call(call, number))  # a task per request, as in a server and the open loop
            latencies.append(loop.time() - sent)
            number += callers

    tasks = [loop.create_task(caller(number)) for number in range(callers)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_CANCELLING_S)
    return latencies


async def _call(call: Call, number: int) -> Any:
    return await call(number)

"""Callers of a load test: an open loop, which sends each request when it is due, and a closed loop.

*Design.* The open loop never waits for a response before it sends the next request, so a slow service does not slow
down its callers. Requests that are due during a pause of the service are sent, and their latency counts from the
instant at which they were due. When its timer fires, the loop sends all due requests at once.

*Cost.* A request costs a task, one compiled coroutine around the call, two reads of the clock and two writes to arrays.
If the service has ``begin_call``, a request needs neither task nor coroutine. The arrays hold machine integers, which
the garbage collector does not visit.

References: G. Tene, "How NOT to measure latency", 2013 (coordinated omission); B. Schroeder, A. Wierman,
M. Harchol-Balter, "Open versus closed: a cautionary tale", NSDI 2006.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from streaminfer._internal.validation import check_count, check_instance, check_number
from streaminfer._runtime.timers import make_timer
from streaminfer.loadtest.sending._requests_cy import DueRequests
from streaminfer.testing import VirtualLoop

__all__ = ["Begin", "Call", "OpenLoop", "Receive", "clock_of", "closed_loop", "complete"]

Call = Callable[[int], Awaitable[Any]]
"""Sends the request with a number."""
Receive = Callable[[Any, BaseException | None], None]
"""Called once when a request ends, with its response, or with ``None`` and the error."""
Begin = Callable[[int, Receive], Any]
"""Begins the request with a number, and calls back when it ends; returns an object with ``cancel``."""
_CANCELLING_S = 5.0
"""Seconds to wait for a cancelled call; the run abandons a call that ignores its cancellation."""
_MAX_CALLERS = 100_000
_WEEK_S = 7 * 86_400


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], int]:
    """Return the clock of a loop's timers, in monotonic nanoseconds."""
    return loop.clock if isinstance(loop, VirtualLoop) else time.monotonic_ns


class OpenLoop(DueRequests):
    """Sends each request when it is due, whatever the outcome of the others.

    Args:
        call: sends a request.
        due_ns: due times on ``time.monotonic_ns``, or on the clock of a virtual loop, ascending.
        errors: errors that count as the failure of a request; any other error ends the run and is raised.
        on_result: called with the number of a request and the result of its call; an error that it raises ends the run.
        begin: begins a request, in place of ``call``, so that the request needs no task.

    Attributes:
        due_ns: as given.
        sent_ns: send time of each request; 0 if it was not sent.
        completed_ns: time of each response; 0 without a response.
        failures: errors of failed requests, by number; all errors of a class share the first one. The error is
            `asyncio.CancelledError` if the service itself cancelled the call.
        sent: number of requests sent.
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
        check_instance("due_ns", due_ns, Sequence, "a sequence of nanoseconds")
        check_instance("errors", errors, tuple, "a tuple of exception classes")
        check_instance("on_result", on_result, lambda it: it is None or callable(it), "a function or None")
        super().__init__(call, begin, due_ns, errors, on_result, time.monotonic_ns, self._stop)
        self.due_ns = due_ns
        self._ended: asyncio.Future[None] | None = None

    @property
    def in_flight(self) -> int:
        """Number of requests that are sent and not completed."""
        return len(self.pending)

    async def run(self, *, drain_s: float | None = None) -> None:
        """Send all requests and wait until they have ended.

        Args:
            drain_s: seconds after the last send until the run cancels the requests in flight, which then count as
                ``unanswered``, not as failed; ``None``: never.

        Raises:
            BaseException: an error of a call that is not in ``errors``.
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
                tasks = [call for call in self.pending.values() if isinstance(call, asyncio.Task)]
                if tasks:
                    await asyncio.wait(tasks, timeout=_CANCELLING_S)

    def _cancel(self) -> None:
        self.cancelling = True
        for call in list(self.pending.values()):
            if call is not None:
                call.cancel()

    def _stop(self, error: BaseException | None) -> None:
        if self._ended is not None:
            complete(self._ended, None, error, "open loop")


def complete(done: Any, result: Any, error: BaseException | None, operation: str) -> None:
    """Set the result or the error of a future, or of a similar object; do nothing if it is done already.

    Args:
        done: the future.
        result: the result, if there is no error.
        error: the error; ``None``: there is a result.
        operation: name of the operation, for messages.
    """
    if done.done():
        return
    if error is None:
        done.set_result(result)
        return
    if isinstance(error, StopIteration):  # a future rejects it
        error = RuntimeError(f"{operation}: {error!r}")
    done.set_exception(error)
    if isinstance(done, asyncio.Future):
        done.exception()  # marks the error as read, in case the caller has gone


async def closed_loop(call: Call, callers: int, seconds: float) -> list[float]:
    """Return the latencies of callers that each send the next request as soon as they have a response.

    While the service pauses, its callers pause too: the requests that the pause would have delayed are never sent.

    Args:
        call: sends a request.
        callers: number of callers, at most 100,000.
        seconds: duration of the run, at most a week: the latency of each request is kept.

    Returns:
        Latencies in seconds, in the order in which the requests completed.

    Raises:
        TypeError, ValueError: an argument is wrong.
        BaseException: an error of a call; it ends all callers.
    """
    check_instance("call", call, callable, "an async function of the request's number")
    callers = check_count("callers", callers, at_most=_MAX_CALLERS)
    seconds = check_number("seconds", seconds, f"seconds from 0 to {_WEEK_S:,}", lambda it: 0 <= it <= _WEEK_S)
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds

    async def caller(number: int) -> None:
        while (sent := loop.time()) < ends:
            await asyncio.ensure_future(call(number))  # a task per request, as in a server and the open loop
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

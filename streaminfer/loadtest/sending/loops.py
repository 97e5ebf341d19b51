"""Callers of a load test: an open loop, which sends each request when it is due, and a closed one.

*Design.* The open loop never waits for a response before it sends: a slow service does not slow down its callers, so
the requests that a pause would have hit are sent, and their latencies count from the instant at which they were due.
All requests that are due at one wake-up of the timer are sent at once, each in a task of its own, as in a server.

*Cost.* A request costs its task, one coroutine around the call, two reads of the clock and two writes to arrays. The
arrays hold machine integers, which the garbage collector does not visit.

References: G. Tene, "How NOT to measure latency", 2013 (coordinated omission); B. Schroeder, A. Wierman,
M. Harchol-Balter, "Open versus closed: a cautionary tale", NSDI 2006.
"""

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from streaminfer.loadtest.sending.timers import clock_of, make_timer

__all__ = ["Call", "OpenLoop", "closed_loop"]

Call = Callable[[int], Awaitable[Any]]
"""Sends the request of a number."""
_CANCELLING_S = 5.0
"""For which a cancelled call is waited for; one that ignores its cancellation is left behind."""


class OpenLoop:
    """Sends each request when it is due, whatever became of the others.

    Args:
        call: sends a request.
        due_ns: instants of ``time.monotonic_ns``, or of the clock of a virtual loop, ascending.
        errors: with which a request may end; any other one ends the run, and is raised.
        on_result: is called with the number of a request and what its call returned; its own errors end the run.

    Attributes:
        due_ns: as given.
        sent_ns: when each request was sent; 0: it was not.
        completed_ns: when each was answered; 0: it was not.
        failures: what the others raised; `asyncio.CancelledError` where a service cancelled its own call.
        sent: how many were sent.
    """

    def __init__(
        self,
        call: Call,
        due_ns: Sequence[int],
        *,
        errors: tuple[type[BaseException], ...] = (Exception,),
        on_result: Callable[[int, Any], None] | None = None,
    ) -> None:
        self.due_ns = due_ns
        self.sent_ns = array("q", bytes(8 * len(due_ns)))
        self.completed_ns = array("q", bytes(8 * len(due_ns)))
        self.failures: dict[int, BaseException] = {}
        self.sent = 0
        self._call, self._errors, self._on_result = call, errors, on_result
        self._pending: dict[int, asyncio.Task[None]] = {}
        self._cancelling = False

    @property
    def in_flight(self) -> int:
        """How many requests are sent and not completed."""
        return len(self._pending)

    async def run(self, *, drain_s: float | None = None) -> None:
        """Send all requests and wait for their ends.

        Args:
            drain_s: seconds after the last send at which requests in flight are cancelled, and count as neither
                answered nor failed; ``None``: never.

        Raises:
            BaseException: what a call raised that is not among ``errors``.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        due_ns, clock, pending, create_task = self.due_ns, clock_of(loop), self._pending, loop.create_task
        count = len(due_ns)
        one = self._sender(ended, clock)

        def send_due() -> None:
            number = self.sent
            now = clock()
            while number < count and due_ns[number] <= now:
                task = create_task(one(number))
                if not task.done():  # an eager task may be
                    pending[number] = task
                number += 1
            self.sent = number
            if number < count:
                timer.set(max(due_ns[number], now + timer.resolution_ns), now)
            elif not pending:
                _end(ended)
            elif drain_s is not None:
                limits.append(loop.call_later(drain_s, self._cancel))
                limits.append(loop.call_later(drain_s + _CANCELLING_S, _end, ended))

        limits: list[asyncio.TimerHandle] = []
        timer = make_timer(loop, send_due)
        try:
            if count:
                timer.set(due_ns[0], clock())
                await ended
        finally:
            timer.close()
            for limit in limits:
                limit.cancel()
            if pending:  # this run was cancelled, or ended by an error
                left = list(pending.values())
                self._cancel()
                await asyncio.wait(left, timeout=_CANCELLING_S)

    def _sender(self, ended: "asyncio.Future[None]", clock: Callable[[], int]) -> Callable[[int], Any]:
        call, on_result, errors = self._call, self._on_result, self._errors
        sent_ns, completed_ns, pending, count = self.sent_ns, self.completed_ns, self._pending, len(self.due_ns)

        async def one(number: int) -> None:
            sent_ns[number] = clock()
            try:
                try:
                    result = await call(number)
                except asyncio.CancelledError as error:
                    if not self._cancelling:  # the service's own
                        self.failures[number] = error.with_traceback(None)
                except errors as error:
                    self.failures[number] = error.with_traceback(None)
                else:
                    completed_ns[number] = clock()
                    if on_result is not None:
                        on_result(number, result)
            except BaseException as error:  # noqa: BLE001 - raised by the run
                _end(ended, error)
            pending.pop(number, None)
            if not pending and self.sent == count:
                _end(ended)

        return one

    def _cancel(self) -> None:
        self._cancelling = True
        for task in list(self._pending.values()):
            task.cancel()


def _end(ended: "asyncio.Future[None]", error: BaseException | None = None) -> None:
    if ended.done():
        return
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error)


async def closed_loop(call: Call, callers: int, seconds: float) -> list[float]:
    """Return the latencies that callers see who each send again as soon as they have a response.

    While the service pauses, so do its callers: the requests that the pause would have delayed are never sent.

    Args:
        call: sends a request.
        callers: how many.
        seconds: for how long.

    Returns:
        Seconds, in the order in which the requests were completed.
    """
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds

    async def caller(number: int) -> None:
        while (sent := loop.time()) < ends:
            await asyncio.create_task(_awaited(call(number)))  # a task per request, as in a server and the open loop
            latencies.append(loop.time() - sent)
            number += callers

    await asyncio.gather(*map(caller, range(callers)))
    return latencies


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable

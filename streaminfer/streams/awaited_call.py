"""`AwaitedCall`: awaits the request of a frame at a service without ``begin_call``."""

import asyncio
from collections.abc import Callable
from typing import Any

from streaminfer.errors import DeadlineExceeded
from streaminfer.protocols import Clock
from streaminfer.request import Request, Response, time_left_s

__all__ = ["AwaitedCall"]


class AwaitedCall:
    """Task that awaits a request and reports its outcome.

    Args:
        service: receives the request.
        request: request of a frame.
        receive: called once with the outcome: the response, or ``None`` and the error.
        deadline_ns: instant at which the task is cancelled; ``None``: the service enforces the deadline, if any.
        clock: returns monotonic nanoseconds.
    """

    __slots__ = ("_has_begun", "_receive", "_task")

    def __init__(
        self,
        service: Any,
        request: Request,
        receive: Callable[[Response | None, BaseException | None], None],
        deadline_ns: int | None,
        clock: Clock,
    ) -> None:
        self._receive = receive
        self._has_begun = False
        running = self._run(service, request, deadline_ns, clock)
        self._task = asyncio.get_running_loop().create_task(running, name="streaminfer-frame")

    def cancel(self) -> None:
        """Cancel the task; ``receive`` is called when the service has ended the request."""
        self._task.cancel()
        if not self._has_begun:  # then the task never runs
            self._has_begun = True
            self._receive(None, asyncio.CancelledError())

    async def _run(self, service: Any, request: Request, deadline_ns: int | None, clock: Clock) -> None:
        self._has_begun = True
        try:
            if deadline_ns is None:
                response = await service.call(request)
            else:
                response = await _call_until(service, request, time_left_s(deadline_ns, clock()))
        except GeneratorExit:  # the loop was closed before the request ended
            raise
        except BaseException as error:
            self._receive(None, error)
            if not isinstance(error, (Exception, asyncio.CancelledError)):
                raise
        else:
            self._receive(response, None)


async def _call_until(service: Any, request: Request, left_s: float | None) -> Response:
    limit = asyncio.timeout(left_s)
    try:
        async with limit:
            response: Response = await service.call(request)
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded("the frame was too old before the service had responded") from None
    return response

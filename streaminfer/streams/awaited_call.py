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

    __slots__ = ("_receive", "_task")

    def __init__(
        self,
        service: Any,
        request: Request,
        receive: Callable[[Response | None, BaseException | None], None],
        deadline_ns: int | None,
        clock: Clock,
    ) -> None:
        self._receive = receive
        calling = _call(service, request, deadline_ns, clock)
        self._task = asyncio.get_running_loop().create_task(calling, name="streaminfer-frame")
        self._task.add_done_callback(self._end)

    def cancel(self) -> None:
        """Cancel the task; ``receive`` is called when the service has ended the request."""
        self._task.cancel()

    def _end(self, task: "asyncio.Task[Response]") -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        self._receive(task.result() if error is None else None, error)


async def _call(service: Any, request: Request, deadline_ns: int | None, clock: Clock) -> Response:
    limit = asyncio.timeout(time_left_s(deadline_ns, clock()))
    try:
        async with limit:
            response: Response = await service.call(request)
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded("the frame was too old before the service had responded") from None
    return response

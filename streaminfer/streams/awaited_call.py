"""`await_call`: awaits the request of a frame at a service without ``begin_call``."""

import asyncio
from collections.abc import Callable
from typing import Any

from streaminfer.errors import DeadlineExceeded
from streaminfer.protocols import Clock
from streaminfer.request import Request, Response, time_left_s

__all__ = ["await_call"]


def await_call(
    service: Any,
    request: Request,
    receive: Callable[[Response | None, BaseException | None], None],
    *,
    ends_in_time: bool,
    clock: Clock,
) -> "asyncio.Task[Response]":
    """Return a task that awaits a request and reports its outcome.

    Args:
        service: receives the request.
        request: request of a frame.
        receive: called once with the outcome: the response, or ``None`` and the error.
        ends_in_time: the service enforces the deadline; otherwise the call is cancelled then.
        clock: returns monotonic nanoseconds.
    """

    def report(task: "asyncio.Task[Response]") -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        receive(task.result() if error is None else None, error)

    calling = _call(service, request, None if ends_in_time else request.deadline_ns, clock)
    task = asyncio.get_running_loop().create_task(calling, name="streaminfer-frame")
    task.add_done_callback(report)
    return task


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

"""Responses of a service that has many per request; at the request's deadline they end, whatever is awaited then.

While a response is awaited, the timer cancels the task that awaits it. While a response is sent to a client that reads
slowly or not at all, no task awaits, and the timer closes the iterator: otherwise the service would hold its resources
as long as the client likes. If a service never waits, no timer can fire, so the clock is read too.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Self

from streaminfer._runtime.closing import close_answers, close_soon
from streaminfer.errors import DeadlineExceeded
from streaminfer.request import Response, time_left_s

__all__ = ["TimedAnswers"]


class TimedAnswers:
    """Asynchronous iterator over responses that ends, and is closed, at a deadline.

    Args:
        response: its outputs are the iterator of the service.
        deadline_ns: deadline of the request; ``None``: no deadline.
        clock: returns monotonic nanoseconds.
    """

    def __init__(self, response: Response, deadline_ns: int | None, clock: Callable[[], int]) -> None:
        self._response = response
        self._deadline_ns = deadline_ns
        self._clock = clock
        self._is_over = False
        self._task: asyncio.Task[Any] | None = None  # the task that awaits a response
        self._closing: asyncio.Task[None] | None = None
        left_s = time_left_s(deadline_ns, clock())
        loop = asyncio.get_running_loop()
        self._timer = None if left_s is None else loop.call_later(max(left_s, 0.0), self._end)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        self._check_time()
        task = self._task = asyncio.current_task()
        assert task is not None  # noqa: S101 - without a task, the timer could cancel nothing
        cancelling, outputs = task.cancelling(), None
        try:
            outputs = await anext(self._response.outputs)
        except (asyncio.CancelledError, StopAsyncIteration) as error:
            # a cancellation by others has priority; a service that ends because of the timer has not reached its end
            if not self._is_over or (isinstance(error, asyncio.CancelledError) and task.cancelling() > cancelling + 1):
                raise
        finally:
            self._task = None
            if self._is_over:
                task.uncancel()
        self._check_time()
        return outputs

    async def aclose(self) -> None:
        """Close the iterator of the service, if it can be closed."""
        if self._timer is not None:
            self._timer.cancel()
        if self._closing is None:
            await close_answers(self._response)
        else:
            await asyncio.shield(self._closing)  # else a client that leaves now could cancel it before it begins

    def _check_time(self) -> None:
        if self._is_over or (self._deadline_ns is not None and self._clock() > self._deadline_ns):
            raise DeadlineExceeded("the deadline passed between two answers")

    def _end(self) -> None:
        self._is_over = True
        if self._task is None:
            self._closing = close_soon(self._response)
        else:
            self._task.cancel()

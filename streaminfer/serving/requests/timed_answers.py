"""The answers of a service that has many to one request: they end at its deadline, whatever is awaited then.

While an answer is awaited, the timer cancels who awaits it. While one is sent to a client that reads slowly or not at
all, the next is not asked for: the service would hold what it needs for it for as long as the client likes. A service
that never waits lets no timer fire, so the clock is read too.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Self

from streaminfer._runtime.closing import close_answers, close_soon
from streaminfer.errors import DeadlineExceeded
from streaminfer.request import Response, time_left_s

__all__ = ["TimedAnswers"]


class TimedAnswers:
    """Asynchronous iterator over answers that ends, and is closed, at a deadline.

    Args:
        response: whose outputs are the iterator.
        deadline_ns: of the request; ``None``: there is none.
        clock: returns monotonic nanoseconds.
    """

    def __init__(self, response: Response, deadline_ns: int | None, clock: Callable[[], int]) -> None:
        self._response = response
        self._deadline_ns = deadline_ns
        self._clock = clock
        self._is_over = False
        self._task: asyncio.Task[Any] | None = None  # that awaits an answer
        self._closing: asyncio.Task[None] | None = None
        left_s = time_left_s(deadline_ns, clock())
        loop = asyncio.get_running_loop()
        self._timer = None if left_s is None else loop.call_later(max(left_s, 0.0), self._end)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        self._check_time()
        task = self._task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a timer could cancel nothing else
        cancelling, outputs = task.cancelling(), None
        try:
            outputs = await anext(self._response.outputs)
        except (asyncio.CancelledError, StopAsyncIteration) as error:
            # a cancellation by others comes first; a service that ends when it is cancelled has not come to its end
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
            await asyncio.shield(self._closing)  # a client that leaves in this very turn would keep it from beginning

    def _check_time(self) -> None:
        if self._is_over or (self._deadline_ns is not None and self._clock() > self._deadline_ns):
            raise DeadlineExceeded("the deadline passed between two answers")

    def _end(self) -> None:
        self._is_over = True
        if self._task is None:
            self._closing = close_soon(self._response)
        else:
            self._task.cancel()

"""The answers of a service that has many to one request: they end at its deadline, also where the client does not read.

While an answer is awaited, who awaits it limits the time. While one is sent to a client that reads slowly or not at
all, the next is not asked for: the service would hold what it needs for it for as long as the client likes.
"""

import asyncio
from typing import Any, Self

from streaminfer._runtime.closing import AsyncClosable
from streaminfer.errors import DeadlineExceeded
from streaminfer.request import Response

__all__ = ["DEADLINE_PASSED", "TimedAnswers", "close_answers"]

DEADLINE_PASSED = "the deadline passed between two answers"


class TimedAnswers:
    """Asynchronous iterator over answers that is closed at a deadline.

    Args:
        response: whose outputs are the iterator.
        left_s: seconds until the deadline; ``None``: there is none.
    """

    def __init__(self, response: Response, left_s: float | None) -> None:
        self._response = response
        self._is_awaited = self._is_over = False
        self._closing: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        self._timer = None if left_s is None else loop.call_later(max(left_s, 0.0), self._end)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        self._check_time()
        self._is_awaited = True
        try:
            outputs = await anext(self._response.outputs)
        finally:
            self._is_awaited = False
        self._check_time()
        return outputs

    async def aclose(self) -> None:
        """Close the iterator of the service, if it can be closed."""
        if self._timer is not None:
            self._timer.cancel()
        await (self._closing or close_answers(self._response))

    def _check_time(self) -> None:
        if self._is_over:
            raise DeadlineExceeded(DEADLINE_PASSED)

    def _end(self) -> None:
        self._is_over = True
        if not self._is_awaited:
            self._closing = asyncio.ensure_future(close_answers(self._response))


async def close_answers(response: Response) -> None:
    """Close the iterator of a response, if it can be closed."""
    if isinstance(response.outputs, AsyncClosable):
        await response.outputs.aclose()

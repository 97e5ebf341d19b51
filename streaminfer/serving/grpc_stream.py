"""One call of ``ModelStreamInfer``: requests of one stream, and their answers."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

__all__ = ["Answers", "StreamCall"]

Answers = bytes | AsyncGenerator[bytes, None]
"""The response to one request, or the responses of a model that has many."""

_MAX_STREAMED = 64
"""Requests of one call in flight, and further responses that wait to be sent; a client that sends faster, or reads
slower, is held up by gRPC's flow control."""


class StreamCall:
    """Answers each request of a call, several at a time.

    Responses come in the order of the requests. Those of a model that has many to one request are sent as they come,
    between the others.

    Args:
        answer: answers one request, and never raises.
    """

    def __init__(self, answer: Callable[[bytes], Awaitable[Answers]]) -> None:
        self._answer = answer
        self._requests = asyncio.Semaphore(_MAX_STREAMED)
        self._further = asyncio.Semaphore(_MAX_STREAMED)
        self._answers: asyncio.Queue[asyncio.Task[Answers] | None] = asyncio.Queue()
        self._sending: asyncio.Queue[tuple[bytes, asyncio.Semaphore] | None] = asyncio.Queue()

    async def responses(self, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Yield the responses until all requests are answered; whatever ends it ends all of them."""
        running = asyncio.ensure_future(self._run(messages))
        try:
            while (one := await self._sending.get()) is not None:
                response, place = one
                yield response
                place.release()
            await running  # raises what ended it
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _run(self, messages: AsyncIterator[bytes]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send_in_order(group))
                async for message in messages:
                    await self._requests.acquire()
                    self._answers.put_nowait(group.create_task(self._answered(message)))
                self._answers.put_nowait(None)
        finally:
            self._sending.put_nowait(None)

    async def _answered(self, message: bytes) -> Answers:
        return await self._answer(message)

    async def _send_in_order(self, group: asyncio.TaskGroup) -> None:
        while (task := await self._answers.get()) is not None:
            answers = await task
            if isinstance(answers, bytes):
                self._sending.put_nowait((answers, self._requests))
            else:
                group.create_task(self._send_each(answers))

    async def _send_each(self, answers: AsyncGenerator[bytes, None]) -> None:
        async with contextlib.aclosing(answers):
            async for response in answers:
                await self._further.acquire()
                self._sending.put_nowait((response, self._further))
        self._requests.release()

"""One call of ``ModelStreamInfer``: requests of one stream, and their answers."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable

__all__ = ["StreamCall"]

_MAX_STREAMED = 64
"""Requests of one call in flight, and responses that wait to be sent; a client that sends faster, or reads slower, is
held up by gRPC's flow control."""


class StreamCall:
    """Answers each request of a call, several at a time.

    First responses come in the order of the requests. Further ones of a model that has many to one request are sent as
    they come, between the others.

    Args:
        answer: yields the responses to one request, if it has any, and never raises.
    """

    def __init__(self, answer: Callable[[bytes], AsyncGenerator[bytes, None]]) -> None:
        self._answer = answer
        self._requests = asyncio.Semaphore(_MAX_STREAMED)
        self._unsent = asyncio.Semaphore(_MAX_STREAMED)
        self._sending: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def responses(self, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Yield the responses until all requests are answered; whatever ends it ends all of them."""
        running = asyncio.ensure_future(self._run(messages))
        try:
            while (response := await self._sending.get()) is not None:
                yield response
                self._unsent.release()
            await running  # raises what ended it
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _run(self, messages: AsyncIterator[bytes]) -> None:
        turn = asyncio.Event()
        turn.set()
        try:
            async with asyncio.TaskGroup() as group:
                async for message in messages:
                    await self._requests.acquire()
                    before, turn = turn, asyncio.Event()
                    group.create_task(self._respond(message, before, turn))
        finally:
            self._sending.put_nowait(None)

    async def _respond(self, message: bytes, turn: asyncio.Event, next_turn: asyncio.Event) -> None:
        async with contextlib.aclosing(self._answer(message)) as responses:
            async for response in responses:
                await turn.wait()
                await self._unsent.acquire()
                self._sending.put_nowait(response)
                next_turn.set()
        await turn.wait()
        next_turn.set()  # also behind a request without responses
        self._requests.release()

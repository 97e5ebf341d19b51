"""One call of ``ModelStreamInfer``: requests of one stream, and their responses."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable

__all__ = ["StreamCall"]

_MAX_STREAMED = 64
"""Limit of requests in flight, and of responses to send, per call; gRPC's flow control slows down a client that sends
faster, or reads slower."""


class StreamCall:
    """Responds to each request of a call, several at a time.

    The first response to each request is sent in the order of the requests. If a request has further responses, they
    are sent as they come, between the others.

    Args:
        answer: yields the responses to one request, possibly none, and never raises.
    """

    def __init__(self, infer: Callable[[bytes], AsyncGenerator[bytes, None]]) -> None:
        self._infer = infer
        self._requests = asyncio.Semaphore(_MAX_STREAMED)
        self._unsent = asyncio.Semaphore(_MAX_STREAMED)
        self._sending: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def responses(self, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Yield the responses until all requests are complete; an error ends all of them."""
        running = asyncio.ensure_future(self._run(messages))
        try:
            while (response := await self._sending.get()) is not None:
                yield response
                self._unsent.release()
            await running  # raises the error that ended the requests
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
                    previous, turn = turn, asyncio.Event()
                    group.create_task(self._respond(message, previous, turn))
        finally:
            self._sending.put_nowait(None)

    async def _respond(self, message: bytes, turn: asyncio.Event, next_turn: asyncio.Event) -> None:
        async with contextlib.aclosing(self._infer(message)) as responses:
            async for response in responses:
                await turn.wait()
                await self._unsent.acquire()
                self._sending.put_nowait(response)
                next_turn.set()
        await turn.wait()
        next_turn.set()  # also after a request without responses
        self._requests.release()

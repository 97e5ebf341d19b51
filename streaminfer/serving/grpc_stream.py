"""One call of ``ModelStreamInfer``: requests of one stream, and their responses."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable

__all__ = ["stream_responses"]

_MAX_STREAMED = 64
"""Limit of requests in flight, and of responses to send, per call; gRPC's flow control slows down a client that sends
faster, or reads slower."""


async def stream_responses(
    infer: Callable[[bytes], AsyncGenerator[bytes, None]], messages: AsyncIterator[bytes]
) -> AsyncGenerator[bytes, None]:
    """Yield the responses to the requests of a call, several at a time, until all requests are complete.

    The first response to each request is sent in the order of the requests. If a request has further responses, they
    are sent as they come, between the others. An error ends all requests.

    Args:
        infer: yields the responses to one request, possibly none, and never raises.
        messages: the requests.
    """
    requests, unsent = asyncio.Semaphore(_MAX_STREAMED), asyncio.Semaphore(_MAX_STREAMED)
    sending: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def respond(message: bytes, turn: asyncio.Event, next_turn: asyncio.Event) -> None:
        async with contextlib.aclosing(infer(message)) as responses:
            async for response in responses:
                await turn.wait()
                await unsent.acquire()
                sending.put_nowait(response)
                next_turn.set()
        await turn.wait()
        next_turn.set()  # also after a request without responses
        requests.release()

    async def respond_to_all() -> None:
        turn = asyncio.Event()
        turn.set()
        try:
            async with asyncio.TaskGroup() as group:
                async for message in messages:
                    await requests.acquire()
                    previous, turn = turn, asyncio.Event()
                    group.create_task(respond(message, previous, turn))
        finally:
            sending.put_nowait(None)

    running = asyncio.ensure_future(respond_to_all())
    try:
        while (response := await sending.get()) is not None:
            yield response
            unsent.release()
        await running  # raises the error that ended the requests
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

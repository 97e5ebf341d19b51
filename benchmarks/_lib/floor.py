"""Baseline of the batching overhead, and the measurement of both: CPU time in a closed loop of callers.

This module imports only the standard library, so that the peers' environment can use it too.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

WARM_UP = 30
"""Rounds before the measurement, because some batchers learn at first."""


class MinimalBatcher:
    """The obvious batcher: a list, a future per item, and a flush in the next iteration of the loop."""

    def __init__(self, function: Callable[[list[Any]], list[Any]], max_batch_size: int) -> None:
        self.function = function
        self.max_batch_size = max_batch_size
        self.items: list[tuple[Any, asyncio.Future[Any]]] = []
        self.scheduled = False

    async def __call__(self, item: Any) -> Any:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self.items.append((item, future))
        if not self.scheduled:
            self.scheduled = True
            loop.call_soon(self.flush, loop)
        return await future

    def flush(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self.items = self.items[: self.max_batch_size], self.items[self.max_batch_size :]
        self.scheduled = bool(self.items)
        if self.scheduled:
            loop.call_soon(self.flush, loop)
        results = self.function([item for item, _ in batch])
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)


class MinimalGreedy:
    """The obvious batcher of an async batch function: when a batch ends, the next one has all queued items.

    A batch has at most ``max_batch_size`` items.
    """

    def __init__(self, function: Callable[[list[Any]], Awaitable[Sequence[Any]]], max_batch_size: int) -> None:
        self.function = function
        self.max_batch_size = max_batch_size
        self.items: list[tuple[Any, asyncio.Future[Any]]] = []
        self.worker: asyncio.Task[None] | None = None

    async def __call__(self, item: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        self.items.append((item, future))
        if self.worker is None:
            self.worker = asyncio.create_task(self.work())
        return await future

    async def work(self) -> None:
        while self.items:
            batch, self.items = self.items[: self.max_batch_size], self.items[self.max_batch_size :]
            results = await self.function([item for item, _ in batch])
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
        self.worker = None


def no_op(items: Any) -> Any:
    """Return the items: a batch function that costs nothing."""
    return items


async def cpu_per_request(call: Callable[[Any], Awaitable[Any]], callers: int, requests: int) -> float:
    """Return CPU seconds per request, of callers that each send the next request as soon as they have a response."""

    async def caller() -> None:
        for _ in range(requests // callers):
            await call(1.0)

    for _ in range(WARM_UP):
        await asyncio.gather(*(call(1.0) for _ in range(callers)))
    started = time.process_time()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return (time.process_time() - started) / (requests // callers * callers)

"""Baseline of the batching overhead, and the measurement of both: CPU time in a closed loop of callers.

This module imports only the standard library, so that the peers' environment can use it too.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

WARM_UP = 30
"""Rounds before the measurement: some batchers learn at first."""


class MinimalBatcher:
    """The obvious batcher: a list, a future for each item, one flush at the end of the loop's turn."""

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
    """The same in front of an async batch function: whenever a batch ends, all that wait go, up to the cap."""

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
    """A batch function that costs nothing."""
    return items


async def cpu_per_request(call: Callable[[Any], Awaitable[Any]], callers: int, requests: int) -> float:
    """CPU seconds for each request, of ``callers`` that each ask again as soon as they are answered."""

    async def caller() -> None:
        for _ in range(requests // callers):
            await call(1.0)

    for _ in range(WARM_UP):
        await asyncio.gather(*(call(1.0) for _ in range(callers)))
    started = time.process_time()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return (time.process_time() - started) / (requests // callers * callers)

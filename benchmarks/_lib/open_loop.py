"""Callers of a benchmark: an open loop, which sends each request when it is due, and a closed one.

It imports nothing of streaminfer, so that a process of the minimal batcher does not.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

__all__ = ["closed_loop", "open_loop"]

Call = Callable[[int], Awaitable[Any]]
"""Sends the request of a number."""


async def open_loop(
    call: Call, due_ns: Sequence[int], errors: tuple[type[BaseException], ...]
) -> tuple[list[int], list[float]]:
    """Send each request when it is due, whatever became of the others; all that are due at one wake-up go at once.

    Args:
        call: sends a request.
        due_ns: monotonic instants, in order.
        errors: with which a request may end; any other one ends the run, and is raised.

    Returns:
        When each request was answered, 0: it was not; and by how many seconds each was sent late.
    """
    answered_ns = [0] * len(due_ns)
    lags: list[float] = []
    clock = time.monotonic_ns
    running = number = 0
    ended = asyncio.get_running_loop().create_future()

    async def one(number: int) -> None:
        nonlocal running
        try:
            await call(number)
        except errors:
            pass
        except BaseException as error:
            if not ended.done():
                ended.set_exception(error)
            return
        else:
            answered_ns[number] = clock()
        running -= 1
        if not running and len(lags) == len(due_ns) and not ended.done():
            ended.set_result(None)

    # tasks are not kept, since the garbage collector would look at all of them again and again: each is referred to
    # by the future that it waits for
    while number < len(due_ns) and not ended.done():
        now = clock()
        while number < len(due_ns) and due_ns[number] <= now:
            running += 1
            asyncio.create_task(one(number))  # noqa: RUF006 - see above
            lags.append((now - due_ns[number]) / 1e9)
            number += 1
        if number < len(due_ns):
            await asyncio.sleep((due_ns[number] - now) / 1e9)
    if running:
        await ended
    return answered_ns, lags


async def closed_loop(call: Call, callers: int, seconds: float) -> float:
    """Return the answers a second of callers that each ask again as soon as they are answered."""
    answered = 0
    ends = time.monotonic() + seconds

    async def one(number: int) -> None:
        nonlocal answered
        await call(number)
        answered += 1

    async def caller(number: int) -> None:
        while time.monotonic() < ends:
            await asyncio.create_task(one(number))  # a task a request, as in a server and in the open loop
            number += callers

    started = time.monotonic()
    await asyncio.gather(*map(caller, range(callers)))
    return answered / (time.monotonic() - started)

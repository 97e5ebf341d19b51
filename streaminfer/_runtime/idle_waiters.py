"""Coroutines that wait until nothing is in flight."""

import asyncio

__all__ = ["IdleWaiters"]


class IdleWaiters:
    """Who waits for the end of what is in flight; of one event loop at a time."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    async def wait(self, timeout_s: float | None) -> None:
        """Wait until all are woken; ``None``: any time."""
        idle = asyncio.get_running_loop().create_future()
        self._waiting.append(idle)
        try:
            await asyncio.wait({idle}, timeout=timeout_s)
        finally:
            if idle in self._waiting:  # not after another loop has taken over
                self._waiting.remove(idle)

    def wake(self) -> None:
        """Nothing is in flight now."""
        for idle in self._waiting:
            if not idle.done():
                idle.set_result(None)

    def forget(self) -> None:
        """Another event loop takes over; the waiting of a closed one ends with it."""
        self._waiting.clear()

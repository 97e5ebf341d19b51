"""Coroutines that wait until nothing is in flight."""

import asyncio

__all__ = ["IdleWaiters"]


class IdleWaiters:
    """Who waits for the end of what is in flight; of one event loop at a time."""

    def __init__(self) -> None:
        self._idle: asyncio.Future[None] | None = None

    def __bool__(self) -> bool:
        return self._idle is not None

    async def wait(self, timeout_s: float | None) -> None:
        """Wait until all are woken; ``None``: any time."""
        if self._idle is None:
            self._idle = asyncio.get_running_loop().create_future()
        await asyncio.wait({self._idle}, timeout=timeout_s)

    def wake(self) -> None:
        """Nothing is in flight now."""
        if self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    def forget(self) -> None:
        """Another event loop takes over; the waiting of a closed one ends with it."""
        self._idle = None

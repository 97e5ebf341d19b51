"""Coroutines that wait until nothing is in flight, or for what another thread brings about."""

import asyncio
import contextlib

__all__ = ["IdleWaiters", "wake_from_thread"]


class IdleWaiters:
    """Who waits for the end of what is in flight; of one event loop at a time.

    Attributes:
        future: what they wait for; ``None``: there are none.
    """

    def __init__(self) -> None:
        self.future: asyncio.Future[None] | None = None

    async def wait(self, timeout_s: float | None) -> None:
        """Wait until all are woken; ``None``: any time."""
        if self.future is None:
            self.future = asyncio.get_running_loop().create_future()
        await asyncio.wait({self.future}, timeout=timeout_s)

    def wake(self) -> None:
        """Nothing is in flight now."""
        if self.future is not None:
            self.future.set_result(None)
            self.future = None

    def forget(self) -> None:
        """Another event loop takes over; the waiting of a closed one ends with it."""
        self.future = None


def wake_from_thread(waiter: "asyncio.Future[None]") -> None:
    """Wake what awaits a future, in its event loop; nothing if that was closed, and its waiters with it."""
    with contextlib.suppress(RuntimeError):
        waiter.get_loop().call_soon_threadsafe(_wake, waiter)


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)

"""Coroutines that wait until no request is in flight, or until another thread wakes them."""

import asyncio
import contextlib

__all__ = ["IdleWaiters", "wake_from_thread"]


class IdleWaiters:
    """Coroutines that wait until no request is in flight; for one event loop at a time.

    Attributes:
        future: future that they await; ``None`` if none wait.
    """

    def __init__(self) -> None:
        self.future: asyncio.Future[None] | None = None

    async def wait(self, timeout_s: float | None) -> None:
        """Wait for :meth:`wake`, at most ``timeout_s`` seconds; ``None``: no limit."""
        if self.future is None:
            self.future = asyncio.get_running_loop().create_future()
        await asyncio.wait({self.future}, timeout=timeout_s)

    def wake(self) -> None:
        """Wake all waiters, because no request is in flight."""
        if self.future is not None:
            self.future.set_result(None)
            self.future = None

    def forget(self) -> None:
        """Drop the waiters of a closed event loop, because another loop takes over."""
        self.future = None


def wake_from_thread(waiter: "asyncio.Future[None]") -> None:
    """Wake the waiters of a future from another thread; do nothing if their event loop is closed."""
    with contextlib.suppress(RuntimeError):
        waiter.get_loop().call_soon_threadsafe(_wake, waiter)


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)

"""Coroutines that wait for something that any thread may bring about."""

import asyncio
import contextlib

__all__ = ["wake_from_thread"]


def wake_from_thread(waiter: "asyncio.Future[None]") -> None:
    """Wake what awaits a future, in its event loop; nothing if that was closed, and its waiters with it."""
    with contextlib.suppress(RuntimeError):
        waiter.get_loop().call_soon_threadsafe(_wake, waiter)


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)

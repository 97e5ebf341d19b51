"""Waiting until nothing is in flight."""

import asyncio

from streaminfer._runtime.waiters import IdleWaiters


async def test_all_waiters_are_woken(loop):
    waiters = IdleWaiters()
    assert waiters.future is None
    waiting = [asyncio.create_task(waiters.wait(None)) for _ in range(3)]
    await asyncio.sleep(0)
    assert waiters.future is not None
    waiting[0].cancel()
    waiters.wake()
    waiters.wake()  # a second wake does nothing
    assert [type(ended) for ended in await asyncio.gather(*waiting, return_exceptions=True)] == [
        asyncio.CancelledError,
        type(None),
        type(None),
    ]
    assert waiters.future is None


async def test_the_wait_ends_with_its_time(loop):
    waiters = IdleWaiters()
    began_ns = loop.clock()
    await waiters.wait(2.5)
    assert loop.clock() - began_ns == 2_500_000_000
    waiters.wake()
    assert waiters.future is None


async def test_waiters_of_another_loop_are_forgotten(loop):
    waiters = IdleWaiters()
    waiting = asyncio.create_task(waiters.wait(1.0))
    await asyncio.sleep(0)
    waiters.forget()
    assert waiters.future is None
    waiters.wake()
    began_ns = loop.clock()
    await waiting
    assert loop.clock() > began_ns  # the wait was not woken and ended at its own timeout

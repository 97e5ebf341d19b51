"""Event loop whose time passes only when the test lets it, while threads, processes and sockets are real.

A test on it does not depend on the speed of the machine: a timer fires when the test has let its time pass, and no real
time makes a timer fire before or after what the test waits for.
"""

import asyncio
import threading
import time

from waiting import PATIENCE_S, PERIOD_S

__all__ = ["HeldLoop", "run_held", "until"]


class HeldLoop(asyncio.SelectorEventLoop):
    """Event loop whose time stands still except in `pass_time` and `stall`.

    Unlike a `VirtualLoop` it waits for threads, processes and sockets, and none of its timers fires meanwhile.
    """

    _now_s = 0.0

    def time(self):
        return self._now_s

    def clock(self):
        """Return the time in nanoseconds; pass it as ``clock=``."""
        return round(self._now_s * 1e9)

    async def pass_time(self, seconds):
        """Let time pass: the timers that are due fire in order, each with the callbacks that follow from it."""
        end_s = self._now_s + seconds
        await self.settle()
        while due_s := [timer.when() for timer in self._scheduled if not timer.cancelled() and timer.when() <= end_s]:
            self._now_s = max(self._now_s, min(due_s))
            await self.settle()
        self._now_s = end_s

    async def stall(self, seconds):
        """Let time pass at once, as if the machine had stopped the process: all timers that are due fire in one turn."""
        await self.settle()
        self._now_s += seconds
        await self.settle()

    async def in_real_time(self, awaitable):
        """Await something that takes an unknown time, such as a clean-up: time passes as fast as real time meanwhile."""
        task = asyncio.ensure_future(awaitable)
        while not task.done():
            await asyncio.to_thread(time.sleep, PERIOD_S)
            await self.pass_time(PERIOD_S)
        return await task

    async def settle(self):
        """Return when no callback is ready."""
        await asyncio.sleep(0)
        while self._ready:
            await asyncio.sleep(0)


def run_held(main):
    """Run ``main(loop)`` on a `HeldLoop`; cancel it after `PATIENCE_S` real seconds, which only a test that fails takes."""
    with asyncio.Runner(loop_factory=HeldLoop) as runner:
        return runner.run(_bounded(main(runner.get_loop())))


async def _bounded(main):
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    guard = threading.Timer(PATIENCE_S, lambda: loop.call_soon_threadsafe(task.cancel))
    guard.start()
    try:
        return await main
    finally:
        guard.cancel()
        guard.join()


async def until(condition):
    """Check a condition every millisecond of real time, and return once it is true; `run_held` bounds the wait."""
    while not condition():
        await asyncio.to_thread(time.sleep, PERIOD_S)

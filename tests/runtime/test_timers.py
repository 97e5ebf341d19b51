"""Timers of an event loop, which other threads can set too."""

import asyncio
import os
import signal
import sys
import threading
import time

import pytest

from streaminfer._runtime import timers


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="timers as files are Linux's")
@pytest.mark.parametrize("kind", [timers.LoopTimer, timers.ExactTimer], ids=["loop", "file"])
def test_another_thread_sets_the_timer(kind):
    """A timer that another thread sets fires once, in the thread of the loop, and not before its instant."""
    fired = []

    async def main():
        ended = asyncio.Event()

        def fire():
            fired.append((time.monotonic_ns(), threading.current_thread()))
            ended.set()

        timer = kind(asyncio.get_running_loop(), fire)
        now_ns = time.monotonic_ns()
        try:
            setting = threading.Thread(target=timer.set_from_thread, args=(now_ns + 10_000_000, now_ns))
            setting.start()
            setting.join()
            await ended.wait()
        finally:
            timer.close()
        return now_ns

    now_ns = asyncio.run(main())

    assert [thread for _, thread in fired] == [threading.main_thread()]
    assert fired[0][0] >= now_ns + 10_000_000 - 1_000_000  # asyncio's own timers have whole milliseconds


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="timers as files are Linux's")
def test_forked_process_leaves_timer_to_parent():
    """If a forked process cancels and closes the timer, the timer of its parent still fires."""

    async def main():
        rung = asyncio.Event()
        timer = timers.exact_timer(asyncio.get_running_loop(), time.monotonic_ns, rung.set)
        timer.set(time.monotonic_ns() + 5_000_000, 0)
        child = os.fork()
        if child == 0:
            timer.cancel()
            timer.close()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        await rung.wait()
        timer.close()
        timer.close()  # a second close does nothing

    asyncio.run(main())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="timers as files are Linux's")
def test_instant_set_while_the_timer_fires_is_not_lost():
    """An instant that is set while the loop is about to call the function for the earlier one replaces that one."""
    calls = []

    async def main():
        loop = asyncio.get_running_loop()
        due_ns = 0
        ended = asyncio.Event()

        def fire():
            now_ns = time.monotonic_ns()
            calls.append(now_ns >= due_ns)
            while time.monotonic_ns() < due_ns:
                pass
            if now_ns >= due_ns:
                ended.set()

        def set_again():  # the loop has seen the file, and calls `fire` after this
            nonlocal due_ns
            due_ns = time.monotonic_ns() + 20_000_000
            timer.set(due_ns, 0)

        timer = timers.exact_timer(loop, time.monotonic_ns, fire)
        timer.set(1, 0)
        loop.call_soon(set_again)
        try:
            await asyncio.wait_for(ended.wait(), 10)
        finally:
            timer.close()

    asyncio.run(main())

    assert calls == [True]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="timers as files are Linux's")
def test_timer_cancelled_in_its_due_turn_stays_silent():
    """A timer that is cancelled in the turn in which it is due makes no call.

    The loop has seen the file, and another callback cancels the timer before its own callback runs.
    """
    calls = []

    async def main():
        loop = asyncio.get_running_loop()
        timer = timers.exact_timer(loop, time.monotonic_ns, lambda: calls.append(True))
        timer.set(1, 0)
        loop.call_soon(timer.cancel)
        for _ in range(3):
            await asyncio.sleep(0)
        timer.close()

    asyncio.run(main())

    assert calls == []


def test_other_clock_uses_timer_of_loop():
    """There is no exact timer for a clock other than the monotonic one."""

    async def main():
        return timers.exact_timer(asyncio.get_running_loop(), time.perf_counter_ns, list)

    assert asyncio.run(main()) is None


async def test_virtual_loop_uses_its_own_timer(loop):
    """A virtual loop uses its own timer, whatever the clock."""
    assert timers.exact_timer(loop, loop.clock, list) is None
    assert timers.exact_timer(loop, time.monotonic_ns, list) is None
    assert isinstance(timers.make_timer(loop, loop.clock, list), timers.LoopTimer)

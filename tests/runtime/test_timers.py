"""Timers of a loop, also those that another thread sets."""

import asyncio
import sys
import threading
import time

import pytest

from streaminfer._runtime import timers


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="timers as files are Linux's")
@pytest.mark.parametrize("kind", [timers.LoopTimer, timers.ExactTimer], ids=["loop", "file"])
def test_another_thread_sets_the_timer(kind):
    """It fires once, in the thread of the loop, and not before its instant."""
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

"""Services of load tests, in virtual time."""

import asyncio

import pytest

from streaminfer.testing import run


@pytest.fixture
def virtually():
    """Run ``main()`` on a virtual loop."""
    return lambda main: run(lambda _loop: main())


class Device:
    """One request at a time, each of which takes ``duration_s()``; a pause holds all of them up.

    Args:
        duration_s: of a request.
        pause: begin and end of a pause, loop time.
    """

    def __init__(self, duration_s, pause=(0.0, 0.0)):
        self.duration_s, self.pause, self.free_s = duration_s, pause, 0.0

    async def __call__(self, inputs):
        loop = asyncio.get_running_loop()
        begin, end = self.pause
        start = max(loop.time(), self.free_s)
        if begin <= start < end:
            start = end
        self.free_s = start + (self.duration_s() if callable(self.duration_s) else self.duration_s)
        await asyncio.sleep(self.free_s - loop.time())
        return inputs


@pytest.fixture
def device():
    """Make a device."""
    return Device

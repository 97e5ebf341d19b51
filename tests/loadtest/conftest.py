"""Services of load tests, in virtual time."""

import asyncio

import pytest

from streaminfer.testing import run


@pytest.fixture
def virtually():
    """Return a function that runs ``main()`` on a virtual loop."""
    return lambda main: run(lambda _loop: main())


class Device:
    """Service that runs one request at a time; no request starts during its pause.

    Args:
        duration_s: seconds of a request, or a function that returns them.
        pause: begin and end of the pause, in seconds of the loop's time.
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
    """Return the class `Device`."""
    return Device

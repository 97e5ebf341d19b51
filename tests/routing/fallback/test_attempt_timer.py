"""The timer of a router's attempts is exact where the system has such timers, and is closed with the router."""

import asyncio
import time

import streaminfer as si
from streaminfer.batching import alarm
from streaminfer.protocols import adapt
from streaminfer.routing import FallbackRouter, Route
from streaminfer.testing import run


class Hanging:
    """Service that never responds."""

    async def call(self, request):
        await asyncio.sleep(3600.0)


class Exact:
    """Fake of the system's timer, which records its instants and never fires."""

    def __init__(self, loop, clock, wake):
        self.loop, self.wake = loop, wake
        self.instants_ns, self.is_open = [], True

    def set(self, at_ns, now_ns):
        self.instants_ns.append(at_ns)

    def cancel(self):
        self.instants_ns.append(None)

    def close(self):
        self.is_open = False


def test_an_attempt_is_interrupted_by_an_exact_timer(monkeypatch, clock):
    """An exact timer interrupts an attempt in time for the default response.

    The default has a 64th of the request's time, at least a millisecond, which the timer of a loop would round away.
    """
    made = []
    monkeypatch.setattr(alarm, "exact_timer", lambda *args: made.append(Exact(*args)) or made[-1])

    async def main():
        router = FallbackRouter(Route("only", Hanging()), default="none")
        adapt(router).bind_clock(clock)
        await router.start()
        call = asyncio.ensure_future(router.call(si.Request(1.0, deadline_ns=clock() + 32_000_000_000)))
        await asyncio.sleep(0)
        (timer,) = made
        assert timer.instants_ns == [clock() + 31_500_000_000]
        call.cancel()
        await router.stop()
        assert not timer.is_open

    asyncio.run(main())


def test_each_loop_has_a_timer_of_its_own(monkeypatch):
    """If a loop ended without a stop of the router, its timer is closed when the next loop sends a request."""
    made = []
    monkeypatch.setattr(alarm, "exact_timer", lambda *args: made.append(Exact(*args)) or made[-1])
    router = FallbackRouter(Route("only", Hanging()), default="none")

    async def main():
        call = asyncio.ensure_future(router.call(si.Request(1.0, deadline_ns=time.monotonic_ns() + 10**10)))
        await asyncio.sleep(0)
        call.cancel()

    asyncio.run(main())
    asyncio.run(main())

    first, second = made
    assert (first.is_open, second.is_open) == (False, True)
    assert first.loop is not second.loop
    assert len(second.instants_ns) == 1


def test_default_responds_in_time_in_virtual_time():
    """In virtual time, a default responds before the deadline. There the loop's own timer is as exact."""

    async def main(loop):
        router = FallbackRouter(Route("only", Hanging()), default="none")
        async with si.Stack(router, clock=loop.clock) as service:
            assert await service(1.0, timeout_s=0.01) == "none"
            assert loop.now_ns == 9_000_000

    run(main)

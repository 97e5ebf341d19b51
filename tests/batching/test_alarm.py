"""`Alarm`, the timer of a dispatcher: it fires once, at the instant that was set last, in the context it was given."""

import asyncio
import contextvars
import sys
import time
from pathlib import Path

import pytest

from streaminfer.batching import alarm as alarms
from streaminfer.batching.alarm import Alarm

MS = 1_000_000
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="timers as files are Linux's")
variable = contextvars.ContextVar("variable", default="none")


def files():
    """Return the number of open file descriptors of this process, including the one that lists them."""
    return len(list(Path("/proc/self/fd").iterdir()))


class Rings:
    """An `Alarm`, the instants at which it fired, and the value of the context variable at each."""

    def __init__(self, loop):
        self.at_ns, self.seen, self.ringing = [], [], asyncio.Event()
        self.alarm = Alarm(self.ring)
        self.alarm.bind_loop(loop, contextvars.copy_context())

    def ring(self):
        self.at_ns.append(time.monotonic_ns())
        self.seen.append(variable.get())
        self.ringing.set()

    def set(self, in_ns, *, is_exact=True, clock=time.monotonic_ns):
        at_ns = clock() + in_ns
        self.alarm.set(at_ns, clock, is_exact=is_exact)
        return at_ns


def in_real_time(scene):
    """Run a scene with an alarm on a real event loop, and close the alarm at the end."""

    async def main():
        rings = Rings(asyncio.get_running_loop())
        try:
            return await scene(rings)
        finally:
            rings.alarm.close()

    return asyncio.run(main())


@pytest.mark.parametrize("is_exact", [False, True])
def test_timer_fires_once_and_not_early(is_exact):
    async def scene(rings):
        at_ns = rings.set(2 * MS, is_exact=is_exact)
        await rings.ringing.wait()
        rings.ringing.clear()
        then_ns = rings.set(2 * MS, is_exact=is_exact)
        await rings.ringing.wait()
        return rings.at_ns, at_ns, then_ns

    rung, at_ns, then_ns = in_real_time(scene)

    assert len(rung) == 2
    assert rung[0] >= at_ns - 1000  # the resolution of a loop
    assert rung[1] >= then_ns - 1000


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_setting_the_timer_again_replaces_the_instant(first, second):
    async def scene(rings):
        rings.set(10_000 * MS, is_exact=first)
        rings.set(MS, is_exact=second)
        await rings.ringing.wait()
        return rings.at_ns

    assert len(in_real_time(scene)) == 1


@pytest.mark.parametrize("is_exact", [False, True])
def test_a_cancelled_timer_does_not_fire(is_exact):
    async def scene(rings):
        rings.set(0, is_exact=is_exact)
        rings.alarm.cancel()
        other = Rings(asyncio.get_running_loop())
        other.set(3 * MS, is_exact=False)
        await other.ringing.wait()
        return rings.at_ns

    assert in_real_time(scene) == []


@linux
def test_due_alarm_that_is_set_again_uses_new_instant():
    """A due alarm that is set again before its callback runs fires only at the new instant.

    The test calls the callback as an event loop does that saw the previous instant pass.
    """

    async def scene(rings):
        rings.set(-MS)
        later_ns = rings.set(3 * MS)
        rings.alarm._exact._wake()
        early = len(rings.at_ns)
        await rings.ringing.wait()
        return early, rings.at_ns, later_ns

    early, rung, later_ns = in_real_time(scene)

    assert early == 0
    assert len(rung) == 1
    assert rung[0] >= later_ns


@pytest.mark.parametrize("is_exact", [False, True])
def test_alarm_rings_in_its_own_context(is_exact):
    """The alarm calls its function in the context that it was given, not in that of the caller who sets it."""

    async def scene(rings):
        variable.set("of a caller")
        rings.set(0, is_exact=is_exact)
        await rings.ringing.wait()
        return rings.seen

    assert in_real_time(scene) == ["none"]


@linux
def test_timer_can_be_set_from_its_own_context():
    async def scene(rings):
        asyncio.get_running_loop().call_soon(rings.set, MS, context=rings.alarm._context)
        await rings.ringing.wait()
        return len(rings.at_ns)

    assert in_real_time(scene) == 1


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), NotImplementedError()])
def test_loop_timer_is_used_without_an_exact_timer(monkeypatch, error):
    """If no exact timer can be made, the alarm uses the timer of the event loop and does not try again."""
    tried = []

    def none_is_left(*_arguments):
        tried.append(None)
        raise error

    monkeypatch.setattr(alarms, "exact_timer", none_is_left)

    async def scene(rings):
        for _ in range(2):
            rings.ringing.clear()
            rings.set(MS)
            await rings.ringing.wait()
        return len(rings.at_ns)

    assert in_real_time(scene) == 2
    assert len(tried) == 1


async def test_timer_fires_exactly_on_a_virtual_loop(loop):
    rings = Rings(loop)

    at_ns = rings.set(250_000, clock=loop.clock)
    await rings.ringing.wait()

    assert loop.clock() == at_ns


@linux
def test_closed_alarm_holds_no_file_and_can_be_set():
    """A closed alarm has no open file descriptor and can be set again."""

    async def scene(rings):
        before = files()
        rings.set(0)
        await rings.ringing.wait()
        held = files()
        rings.alarm.close()
        closed = files()
        rings.ringing.clear()
        rings.set(0)
        await rings.ringing.wait()
        return held - before, closed - before, len(rings.at_ns)

    assert in_real_time(scene) == (1, 0, 2)


@linux
def test_alarm_of_a_closed_loop_leaves_no_file():
    """An alarm whose loop was closed while it was set has no open file descriptor after it is bound to another loop."""
    before = files()

    async def main():
        rings = Rings(asyncio.get_running_loop())
        rings.set(10_000 * MS)
        return rings.alarm

    alarm = asyncio.run(main())
    loop = asyncio.new_event_loop()
    alarm.bind_loop(loop, contextvars.copy_context())
    loop.close()

    assert files() == before

"""Outlets wake their consumers with one callback for a whole batch, and lose no result."""

import asyncio
from contextvars import Context

import pytest

from streaminfer.streams._outlet_cy import Outlet, WakeUps
from streaminfer.streams._stream_cy import make_source_failure
from streaminfer.testing import VirtualLoop

pytestmark = pytest.mark.uncompiled


def make_wake_ups(loop, then=lambda: None):
    return WakeUps(loop, Context(), then)


class Stream:
    """Stream whose results are ready as soon as they are put."""

    def __init__(self, outlet):
        self.outlet, self.is_announced, self.results = outlet, False, []
        outlet.streams[self] = None

    def put(self, result):
        self.results.append(result)
        self.outlet.announce(self)

    def take(self, now_ns):
        return self.results.pop(0) if self.results else None


class Consumers:
    """Tasks that each read one stream through an outlet of their own."""

    def __init__(self, loop, count):
        self.wake_ups, self.read = make_wake_ups(loop), []
        self.streams = [Stream(Outlet(lambda: 0, self.wake_ups)) for _ in range(count)]
        self.tasks = [loop.create_task(self.consume(stream)) for stream in self.streams]

    async def consume(self, stream):
        while True:
            self.read.append(await stream.outlet.get(self, False))


@pytest.fixture
def results():
    """Return nine results; any kind will do, because an outlet inspects a result only if it raises errors."""

    return [make_source_failure(number, ValueError(), 0) for number in range(9)]


async def test_one_callback_wakes_all_consumers(loop, results, monkeypatch):
    """One callback wakes all consumers that have a result, and they read it in the next turn of the loop."""
    consumers = Consumers(loop, 8)
    await asyncio.sleep(0)
    callbacks, call_soon = [], loop.call_soon

    def count(callback, *arguments, context=None):
        callbacks.append(callback)
        return call_soon(callback, *arguments, context=context)

    monkeypatch.setattr(loop, "call_soon", count)
    for stream, result in zip(consumers.streams, results, strict=False):
        stream.put(result)
    assert len(callbacks) == 1
    monkeypatch.undo()
    await asyncio.sleep(0)

    assert [result.stream_id for result in consumers.read] == list(range(8))
    for task in consumers.tasks:
        task.cancel()
    await asyncio.wait(consumers.tasks)


@pytest.mark.parametrize("cancel_first", [False, True])
async def test_consumer_cancelled_on_wakeup_takes_no_result(loop, results, cancel_first):
    """A consumer that is cancelled in the turn in which it is woken takes no result.

    The next consumer gets that result.
    """
    consumers = Consumers(loop, 1)
    (task,), (stream,) = consumers.tasks, consumers.streams
    await asyncio.sleep(0)
    for step in (task.cancel, lambda: stream.put(results[0]))[:: 1 if cancel_first else -1]:
        step()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert consumers.read == []
    assert await stream.outlet.get(None, False) is results[0]


async def test_a_result_is_awaited_once(loop, results):
    stream = Stream(Outlet(loop.clock, make_wake_ups(loop)))
    stream.put(results[0])
    awaited = stream.outlet.get(None, False)

    assert await awaited is results[0]
    with pytest.raises(RuntimeError, match="awaited before"):
        await awaited


async def test_asyncio_functions_accept_the_awaitable(loop, results):
    """`create_task`, `wait_for` and `gather` accept the awaitable as they accept a coroutine."""
    stream = Stream(Outlet(loop.clock, make_wake_ups(loop)))
    task = asyncio.create_task(stream.outlet.get(None, False))
    with pytest.raises(RuntimeError, match="has a consumer already"):
        await asyncio.gather(asyncio.sleep(0), stream.outlet.get("reader", False))
    stream.put(results[0])
    assert await task is results[0]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stream.outlet.get(None, False), 1.0)
    stream.put(results[1])

    assert await asyncio.wait_for(stream.outlet.get(None, False), 1.0) is results[1]


def test_interrupt_of_consumer_leaves_others_awake(results):
    """A `KeyboardInterrupt` out of one consumer leaves the others awake.

    The caller of the loop gets the interrupt; the other consumers continue when the loop runs again.
    """
    loop = VirtualLoop()
    consumers = Consumers(loop, 3)

    async def interrupt():
        await consumers.streams[0].outlet.get(None, False)
        raise KeyboardInterrupt

    consumers.tasks[0].cancel()
    first = loop.create_task(interrupt())
    loop.run_until_complete(asyncio.sleep(0.001))
    for stream, result in zip(consumers.streams, results, strict=False):
        stream.put(result)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    loop.run_until_complete(asyncio.sleep(0.001))

    assert [result.stream_id for result in consumers.read] == [1, 2]
    assert isinstance(first.exception(), KeyboardInterrupt)
    for task in consumers.tasks:
        task.cancel()
    loop.run_until_complete(asyncio.wait(consumers.tasks))
    loop.close()

"""Closing a session at each step of the event loop around the completion of a request."""

import asyncio

import pytest
from live_sources import Camera, Service, echo, others, settle
from sleeper import Sleeper

import streaminfer as si
from streaminfer.protocols import Wrapper
from streaminfer.streams import Block, LatestOnly, StreamSession
from streaminfer.testing import ScriptedBackend, run


async def endless():
    while True:
        yield 1.0
        await asyncio.sleep(0.004)


@pytest.mark.parametrize("streams", [1, 5])
@pytest.mark.parametrize("steps", range(6))
def test_close_just_after_a_request_completes(streams, steps):
    """A session can be closed at any step of the event loop after a request has completed.

    A sender that becomes free after the last stream has ended also ends.
    """

    async def main(loop):
        layers = (si.AdaptiveBatcher(max_batch_size=1), ScriptedBackend(duration_s=0.01))
        async with si.Stack(*layers, clock=loop.clock) as service:
            session = StreamSession(service, policy=LatestOnly())
            for _ in range(streams):
                session.add(endless())
            consumer = asyncio.create_task(consume(session))
            await asyncio.sleep(0.02)  # the second request completes at this instant
            for _ in range(steps):
                await asyncio.sleep(0)
            async with asyncio.timeout(5.0):
                await session.aclose()
            await consumer
        return session.statistics()

    async def consume(session):
        async for _ in session:
            pass

    counters = run(main)
    assert counters.open_streams == 0
    assert counters.received == counters.delivered + sum(counters.dropped.values())


async def test_close_cancelled_at_once_ends_each_stream(loop):
    """A close of the session that is cancelled at once still ends each stream."""
    session = StreamSession(Service(echo), clock=loop.clock)
    for _ in range(2):
        session.add(Camera(loop))
    await asyncio.sleep(0.05)

    closing = asyncio.create_task(session.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await settle()

    assert session.streams == ()
    assert not others()


@pytest.mark.parametrize("steps", range(1, 9))
def test_close_cancelled_at_any_step_ends_each_stream(steps):
    """A close of the session can be cancelled at each of its steps."""

    async def main(loop):
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=1), ScriptedBackend(), clock=loop.clock) as service:
            session = StreamSession(service)
            for _ in range(2):
                session.add(endless())
            await asyncio.sleep(0.02)
            closing = asyncio.create_task(session.aclose())
            for _ in range(steps):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])
            assert closing.cancelled() or closing.exception() is None
            await asyncio.sleep(0.1)
            assert session.streams == ()

    run(main)


class Connected:
    """Source that is open from the beginning, like a track."""

    def __init__(self):
        self.read = self.closed = 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        self.read += 1
        return 1.0

    async def aclose(self):
        self.closed += 1


@pytest.mark.parametrize("end", ["results", "session"])
async def test_source_of_unstarted_stream_is_closed(loop, end):
    """The source of a stream that is closed before its start is not read, but it is closed."""
    source = Connected()
    session = StreamSession(Service(echo), clock=loop.clock)
    if end == "results":
        await session(source).aclose()
    else:
        session.add(source, stream_id="a")
        await session.remove("a")

    assert (source.read, source.closed) == (0, 1)
    assert session.statistics().ended_streams == 1


async def test_plain_source_of_unstarted_stream_is_not_read(loop):
    """A plain iterable is not read if its stream is closed before it has begun."""
    read = []
    session = StreamSession(Service(echo), clock=loop.clock)

    await session(map(read.append, range(3))).aclose()

    assert read == []


class Unknown(Wrapper):
    """Service whose `capabilities` raises after ``broken`` is set."""

    broken = False

    async def call(self, request):
        return await self.inner.call(request)

    def capabilities(self):
        if self.broken:
            raise LookupError("no route")
        return super().capabilities()


async def test_failing_capabilities_open_no_stream(loop):
    """A service whose `capabilities` raises opens no stream."""
    service = Unknown(Service(echo))
    session, camera = StreamSession(service, clock=loop.clock), Camera(loop)
    assert [result.outputs async for result in session([1.0])] == [1.0]

    service.broken = True
    with pytest.raises(LookupError, match="no route"):
        session.add(camera)
    await asyncio.sleep(0.05)

    assert camera.read == 0
    assert session.streams == ()


async def test_source_cancelled_by_others_has_failed(loop):
    """A source that another task cancels has failed.

    Its frames get their results, and then the consumer gets an error. The cancellation ends neither the source normally
    nor the consumer.
    """

    async def interrupted():
        yield 1.0
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    results = StreamSession(Service(echo), clock=loop.clock)(interrupted())

    assert (await anext(results)).outputs == 1.0
    with pytest.raises(RuntimeError, match="the source: CancelledError"):
        await anext(results)


@pytest.mark.parametrize("end", ["session", "stream"])
async def test_a_source_may_close_its_session_at_its_end(loop, end):
    """A close by a source at its end waits for all streams except that of the source, which waits for the source."""
    session = StreamSession(Service(echo), clock=loop.clock)

    async def source():
        try:
            yield 1.0
            await asyncio.Event().wait()
        finally:
            await session.aclose()
            assert session.statistics().ended_streams == 1

    session.add(Camera(loop, period_s=1e9))
    async with session(source(), stream_id="a") as results, asyncio.timeout(1.0):
        await anext(results)
        await (session.aclose() if end == "session" else results.aclose())

    assert session.statistics().ended_streams == 2


class Answering:
    """Service that opens an iterator of responses in each call, also if the call is cancelled."""

    many_answers = True

    def __init__(self, took_s):
        self.took_s = took_s
        self.opened = []

    async def call(self, request):
        try:
            await asyncio.sleep(self.took_s)
        except asyncio.CancelledError:
            asyncio.current_task().uncancel()
        self.opened.append(Answers())
        return si.Response(self.opened[-1])


class Answers:
    is_closed = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        raise StopAsyncIteration

    async def aclose(self):
        self.is_closed = True


@pytest.mark.parametrize("took_s", [0.001, 0.1], ids=["not delivered", "in flight"])
def test_session_close_closes_dropped_responses(took_s):
    """A session that closes also closes the iterators of responses that it drops.

    They are those that were ready, and those that requests return when the close cancels them.
    """
    service = Answering(took_s)

    async def main(loop):
        session = StreamSession(service, policy=LatestOnly(), max_in_flight=3, clock=loop.clock)
        async with session(endless()):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.01)
        return session.statistics()

    assert run(main).delivered == 0
    assert len(service.opened) == 3
    assert all(answers.is_closed for answers in service.opened)


def test_a_close_ends_requests_in_order():
    """A close cancels requests in order, not by addresses in memory, so a run in virtual time is repeatable."""
    service = Sleeper()

    async def frames():
        for number in range(20):
            yield number
        await asyncio.sleep(100.0)

    async def main(loop):
        session = StreamSession(service, policy=Block(20), max_in_flight=20, clock=loop.clock)
        session.add(frames())
        await asyncio.sleep(1.0)
        await session.aclose()

    run(main)

    assert service.cancelled == list(range(20))

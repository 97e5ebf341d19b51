"""Sending of the frames of a session: the newest ones, in full batches, each stream in its turn."""

import asyncio
from itertools import pairwise
from random import Random

import pytest
from live_sources import Camera, Service, add_up, stack_of

import streaminfer as si
from streaminfer.protocols import Admission, NextBatch
from streaminfer.routing import Replica, Replicas
from streaminfer.streams import Block, Frame, LatestOnly, StreamSession
from streaminfer.testing import HANG, ScriptedBackend

pytestmark = pytest.mark.uncompiled


async def collect(results):
    return [result async for result in results]


async def test_batch_is_pipelined_if_no_frame_is_dropped(loop):
    """If the policy drops no frames, one batch is queued while another batch runs.

    The model does not wait for the event loop between two batches, and no more than one batch is queued.
    """
    batcher = si.AdaptiveBatcher(max_batch_size=2)
    async with si.Stack(batcher, ScriptedBackend(duration_s=0.1, example=1.0), clock=loop.clock) as service:
        session = StreamSession(service, policy=Block())
        for _ in range(8):
            session.add(Camera(loop, 40))
        reading = asyncio.ensure_future(collect(session))
        for _ in range(3):
            await asyncio.sleep(0.1)
            statistics = batcher.statistics()
            assert (statistics.running, statistics.queued) == (2, 2)
        await session.aclose()
        await reading


async def test_each_batch_has_newest_frames_of_its_streams(loop):
    """With eight cameras and two rows per batch, each frame sent has arrived since the batch before began."""
    model = ScriptedBackend(duration_s=0.1, example=1.0)
    async with stack_of(loop, model, max_batch_size=2) as service:
        session = StreamSession(service, policy=LatestOnly())
        for _ in range(8):
            session.add(Camera(loop, 80))
        results = [result async for result in session if result.number < 70]

    assert {len(batch) for batch in model.batches} == {2}
    assert max(result.age_s for result in results) <= 0.1 + 0.01  # its batch, and the interval to the next frame


@pytest.mark.parametrize("each", [False, True], ids=["one consumer", "a consumer each"])
async def test_batch_takes_all_streams_that_fit(loop, each):
    """Streams that just received results join the next batch; otherwise two halves of them would alternate forever."""
    model = ScriptedBackend(duration_s=0.05, example=1.0)
    async with stack_of(loop, model, max_batch_size=8) as service:
        session = StreamSession(service, policy=LatestOnly())
        cameras = [Camera(loop, 200, period_s=0.004 + 0.0001 * number) for number in range(4)]
        if each:
            await asyncio.gather(*(collect(session(camera)) for camera in cameras))
        else:
            for camera in cameras:
                session.add(camera)
            await collect(session)

    sizes = [len(batch) for batch in model.batches]
    assert sizes[2:-2] == [4] * len(sizes[2:-2])
    assert len(sizes) > 12


async def test_frames_are_pipelined_by_time_for_results(loop):
    """Batches are pipelined by the time that the event loop takes for the results.

    A consumer that computes for 10 ms per batch would otherwise let the model idle for as long after each batch.
    """
    spent_ns = 0

    def clock():
        return loop.clock() + spent_ns

    batcher = si.AdaptiveBatcher(max_batch_size=2)
    model = ScriptedBackend(duration_s=0.1, example=1.0)
    async with si.Stack(batcher, model, clock=clock) as service:
        session = StreamSession(service, policy=LatestOnly())
        for _ in range(8):
            session.add(Camera(loop, 400))

        async def read():
            nonlocal spent_ns
            async for _ in session:
                spent_ns += 5_000_000

        reading = asyncio.ensure_future(read())
        queued = []
        for _ in range(300):
            await asyncio.sleep(0.01)
            queued.append(batcher.statistics().queued)
        await session.aclose()
        await reading

    assert set(queued[:10]) == {0}
    assert 0 < queued[200:].count(2) < 40  # of 100: in the last 20 ms of each 100 ms or so
    assert {len(batch) for batch in model.batches} == {2}


@pytest.mark.parametrize(("takes_s", "is_held"), [(0.004, False), (0.04, True)])
async def test_timer_holds_frames_only_if_much_fresher(loop, monkeypatch, takes_s, is_held):
    """Frames wait for a timer only if that makes them much fresher.

    A timer of a real event loop can be late, and after each short batch the model would wait for the timer.
    """
    monkeypatch.setattr("streaminfer.streams._sender_cy.is_virtual", lambda _: False)
    batcher = si.AdaptiveBatcher(max_batch_size=2)
    async with si.Stack(batcher, ScriptedBackend(duration_s=takes_s, example=1.0), clock=loop.clock) as service:
        session = StreamSession(service, policy=LatestOnly())
        for _ in range(8):
            session.add(Camera(loop, 400, period_s=0.001))
        reading = asyncio.ensure_future(collect(session))
        queued = []
        for _ in range(100):
            await asyncio.sleep(0.001)
            queued.append(batcher.statistics().queued)
        await session.aclose()
        await reading

    assert (queued[10:].count(0) > 50) is is_held
    assert (queued[10:].count(2) > 50) is not is_held


async def test_requests_of_others_hold_no_frame_back(loop):
    """Requests of other callers in every worker hold no frame back.

    A session gets no event of their end, so it sends its frame, which the batcher runs before those without a deadline.
    """
    model = ScriptedBackend(duration_s=0.1, example=1.0)
    async with stack_of(loop, model, max_batch_size=1) as service:
        backlog = [asyncio.ensure_future(service(1.0)) for _ in range(4)]
        await asyncio.sleep(0)
        session = StreamSession(service, policy=LatestOnly(), max_age_s=0.25)
        results = await collect(session(Camera(loop, 1)))
        await asyncio.gather(*backlog)

    assert [result.age_s for result in results] == [pytest.approx(0.19)]


@pytest.mark.parametrize(
    ("cameras", "takes_ns", "dropped"),
    [(5, 10_200_000, {"first": 1}), (5, 10_000_000, {"last": 1}), (4, 10_200_000, {})],
    ids=["late", "in time", "room for all"],
)
async def test_frame_too_late_for_full_batch_goes_last(loop, cameras, takes_ns, dropped):
    """A frame that has no time for a full batch is sent after the others.

    Two frames are in flight. When they complete, the oldest frame that arrived meanwhile has 10.1 ms left.

    Three frames are more than the two places, so the last frame waits until it is too late. But if a batch takes longer
    than 10.1 ms, the younger frames are sent first, and the oldest frame is dropped.
    """

    async def answer(request):
        await asyncio.sleep(0.01)
        return request.inputs

    service = Service(answer)
    service.max_in_flight, service.full_load, service.slow_batch_ns = 1, lambda: 2, lambda rows: takes_ns
    service.admission = lambda request, now_ns: Admission(True)
    service.next_batch = lambda now_ns: NextBatch(now_ns, 2)
    session = StreamSession(service, policy=LatestOnly(), max_age_s=0.02, clock=loop.clock)
    periods_s = [0.01, 0.01, 0.0101, 0.0103, 0.0104][:cameras]
    ids = [session.add(Camera(loop, 1, period_s=period_s)) for period_s in periods_s]
    results = await collect(session)

    assert len(results) == 4
    lost = set(ids) - {result.stream_id for result in results}
    assert lost == {ids[2] if name == "first" else ids[4] for name in dropped}
    assert sum(session.statistics().dropped.values()) == len(dropped)


@pytest.mark.parametrize("seed", range(3))
async def test_equal_rate_cameras_all_served_in_overload(loop, seed):
    """Cameras of one rate are all served under overload.

    Their frames arrive in the same order each time; without turns for streams whose frames were too late, some streams
    would never be served.
    """
    random, cameras, period_s, takes_s = Random(seed), 16, 0.02, 0.005
    model = ScriptedBackend(duration_s=takes_s, example=1.0)

    async def source(phase_s):
        for number in range(100):
            await asyncio.sleep(max(0.0, phase_s + number * period_s - loop.time()))
            yield Frame(1.0, loop.clock())

    async with stack_of(loop, model, max_batch_size=1) as service:
        session = StreamSession(service, policy=LatestOnly(), max_age_s=0.011)
        for number in range(cameras):
            session.add(source(random.uniform(0.0, period_s)), stream_id=number)
        results = await collect(session)

    delivered = [sum(result.stream_id == number for result in results) for number in range(cameras)]
    share = 100 * period_s / takes_s / cameras
    assert sum(delivered) == pytest.approx(share * cameras, rel=0.02)
    assert min(delivered) >= share / 2
    assert add_up(session.statistics())
    assert max(result.age_s for result in results) <= 0.011


def microphones(loop, count, per_s, seconds, random):
    """Return sources of chunks at one rate that begin at random instants."""

    async def source(phase_s):
        for number in range(round(seconds * per_s)):
            await asyncio.sleep(max(0.0, phase_s + number / per_s - loop.time()))
            yield Frame(1.0, loop.clock())

    return [source(loop.time() + random.uniform(0.0, 1.0 / per_s)) for _ in range(count)]


@pytest.mark.parametrize("max_in_flight", [1, 3])
async def test_waiting_streams_fill_batches_in_overload(loop, max_in_flight):
    """Streams that wait fill their batches under overload, although their frames have age limits.

    The oldest chunks of backlogs have no time left; younger chunks take their turns, or batches would be half empty.
    """
    model = ScriptedBackend(duration_s=0.05, example=1.0)
    async with stack_of(loop, model, max_batch_size=4) as service:
        session = StreamSession(service, policy=Block(64), max_age_s=0.4, max_in_flight=max_in_flight)
        for source in microphones(loop, 4, 30, 20.0, Random(1)):
            session.add(source)
        results = await collect(session)

    assert len([result for result in results if result.error is None]) >= 0.95 * 4 * 20.0 / 0.05
    assert max(result.age_s for result in results) <= 0.4
    assert add_up(session.statistics())


async def test_waiting_streams_all_served_in_overload(loop):
    """Streams that wait are all served under overload, although their frames have age limits.

    Some streams always have too old a chunk at their turn; their next chunk takes the turn, or they would starve.
    """
    model = ScriptedBackend(duration_s=0.05, example=1.0)
    async with stack_of(loop, model, max_batch_size=8) as service:
        session = StreamSession(service, policy=Block(64), max_age_s=0.4)
        for number, source in enumerate(microphones(loop, 32, 7.5, 20.0, Random(1))):
            session.add(source, stream_id=number)
        results = await collect(session)

    delivered = [sum(result.stream_id == number for result in results) for number in range(32)]
    assert sum(delivered) >= 0.95 * 8 * 20.0 / 0.05
    assert min(delivered) >= 0.8 * sum(delivered) / 32
    assert add_up(session.statistics())


@pytest.mark.parametrize(("workers", "max_in_flight"), [(1, 1), (1, 2), (2, 2)])
async def test_few_streams_with_age_limits_fill_batches(loop, workers, max_in_flight):
    """Three streams, which cannot fill 16 rows, keep all workers busy with the batches that they can fill."""
    rows = 3 * max_in_flight // workers
    takes_s = 0.03 + 0.002 * rows
    model = ScriptedBackend(duration_s=lambda size: 0.03 + 0.002 * size, example=1.0)
    async with stack_of(loop, model, max_batch_size=16, max_in_flight=workers) as service:
        session = StreamSession(service, policy=Block(8), max_age_s=0.2, max_in_flight=max_in_flight)
        for number, source in enumerate(microphones(loop, 3, 1.08 * max_in_flight / takes_s, 20.0, Random(1))):
            session.add(source, stream_id=number)
        results = await collect(session)

    delivered = [sum(result.stream_id == number for result in results) for number in range(3)]
    assert sum(delivered) >= 0.95 * rows * workers * 20.0 / takes_s
    assert min(delivered) >= 0.9 * sum(delivered) / 3
    assert add_up(session.statistics())


async def captured_on_time(loop, period_s, phase=0.0):
    """Yield the frames of a camera that captures for 20 seconds at its own rate, however late they are read."""
    for number in range(round(20.0 / period_s)):
        captured_s = (number + phase) * period_s
        await asyncio.sleep(max(0.0, captured_s - loop.time()))
        yield Frame(1.0, captured_ns=round(captured_s * 1e9))


async def in_time_of_each(loop, service, period_s, phases, policy, max_age_s):
    """Return the number of results that each camera has in 20 seconds."""
    session = StreamSession(service, policy=policy, max_age_s=max_age_s)
    for number, phase in enumerate(phases):
        session.add(captured_on_time(loop, period_s, phase), stream_id=number)
    results = await collect(session)
    assert add_up(session.statistics())
    return [sum(result.stream_id == number for result in results) for number in range(len(phases))]


@pytest.mark.parametrize("policy", [LatestOnly(), Block()], ids=["latest", "block"])
@pytest.mark.parametrize(("cameras", "workers"), [(1, 1), (4, 4)])
async def test_frame_late_even_alone_holds_up_no_stream(loop, cameras, workers, policy):
    """A frame that would be late even alone is dropped, and holds up neither its stream nor another one.

    Each camera has a worker that is a little too slow: one frame in 20 has no time left, and the next one has plenty.
    """
    model = ScriptedBackend(duration_s=0.03, example=1.0)
    random = Random(1)
    phases = [random.random() for _ in range(cameras)]
    async with stack_of(loop, model, max_batch_size=4, max_in_flight=workers) as service:
        delivered = await in_time_of_each(loop, service, 0.0285, phases, policy, max_age_s=0.045)

    assert min(delivered) >= 0.9 * 20.0 / 0.03


@pytest.mark.parametrize("policy", [LatestOnly(), Block()], ids=["latest", "block"])
@pytest.mark.parametrize("cameras", [4, 7])
async def test_lone_free_worker_leaves_no_stream_out(loop, cameras, policy):
    """If only one worker is free, it serves all streams in turn.

    One batch of all waiting streams would be late, and the planner would leave out the same streams each time.
    """
    model = ScriptedBackend(duration_s=lambda size: 0.02 + 0.008 * size, example=1.0)
    rows = -(-cameras // 2)
    takes_s = 0.02 + 0.008 * rows
    random = Random(1)
    phases = [random.random() for _ in range(cameras)]
    async with stack_of(loop, model, max_batch_size=8, max_in_flight=2) as service:
        period_s = takes_s / 1.2
        delivered = await in_time_of_each(loop, service, period_s, phases, policy, max_age_s=1.5 * takes_s)

    assert min(delivered) >= 0.8 * sum(delivered) / cameras


async def test_other_callers_worker_holds_no_frames_back(loop):
    """Frames wait for the next worker only if a frame of the session is in flight, whose end wakes the session."""
    model = ScriptedBackend(duration_s=lambda size: 0.02 + 0.008 * size, example=1.0)
    async with stack_of(loop, model, max_batch_size=8, max_in_flight=2) as service:
        for size in [1, 2, 3, 4, 5, 6, 7, 8] * 8:
            await asyncio.gather(*(service(1.0) for _ in range(size)))
        other = asyncio.ensure_future(service(1.0))
        await asyncio.sleep(0.02)
        session = StreamSession(service, policy=LatestOnly(), max_age_s=0.06, clock=loop.clock)

        async def camera():
            await asyncio.sleep(0.001)
            yield Frame(1.0, loop.clock())
            await asyncio.sleep(1.0)

        for _ in range(6):
            session.add(camera())
        assert len(await collect(session)) == 6
        await other


@pytest.mark.parametrize("period_s", [0.01, 0.35])
async def test_backlog_of_others_starves_no_stream(loop, period_s):
    """Frames queue behind other callers that always fill the next batch, even while another worker has a slow frame."""

    class Model:
        async def infer(self, batch):
            await asyncio.sleep(5.0 if -1.0 in batch.inputs else 0.02)
            return batch.inputs

    async def slow_frame():
        yield -1.0

    async def send_forever():
        while True:
            await service(0.0)

    async with stack_of(loop, Model(), max_batch_size=1, max_in_flight=2) as service:
        others = [asyncio.ensure_future(send_forever()) for _ in range(2)]
        session = StreamSession(service, policy=LatestOnly())
        session.add(slow_frame())
        await asyncio.sleep(0.1)
        camera = session.add(Camera(loop, int(4.0 / period_s), period_s))
        results = await collect(session)
        for other in others:
            other.cancel()

    delivered = [result.delivered_ns / 1e9 for result in results if result.stream_id == camera]
    assert max(later - one for one, later in pairwise(delivered)) < period_s + 0.08


@pytest.mark.parametrize("max_age_s", [None, 0.2])
@pytest.mark.parametrize(
    ("cameras", "workers", "setup_s", "row_s", "rows"),
    [
        (4, 4, 0.005, 0.01, 1),
        (8, 8, 0.005, 0.01, 1),
        (4, 4, 0.02, 0.002, 4),
        (4, 4, 0.04, 0, 4),
    ],
)
async def test_free_workers_share_frames_of_one_instant(loop, cameras, workers, setup_s, row_s, rows, max_age_s):
    """Free workers share the frames of cameras that capture at the same instants, if smaller batches are worth it.

    The cameras are a little faster than their share of the workers. In one batch, their frames would all complete at
    once and be in one batch again, beside idle workers. One batch is right only if smaller batches are hardly shorter,
    or use much more of the workers' time.
    """
    model = ScriptedBackend(duration_s=lambda size: setup_s + row_s * size, example=1.0)
    takes_s = setup_s + row_s * rows
    async with stack_of(loop, model, max_batch_size=4, max_in_flight=workers) as service:
        delivered = await in_time_of_each(loop, service, takes_s / 1.1, [0.0] * cameras, LatestOnly(), max_age_s)

    sizes = [len(batch) for batch in model.batches[8:]]
    assert sum(sizes) / len(sizes) == pytest.approx(rows, rel=0.05)
    assert min(delivered) >= 0.95 * 20.0 / takes_s


async def test_only_the_free_workers_share_frames(loop):
    """If other callers hold three of four workers, eight cameras fill batches of the fourth, even while it is idle."""
    model = ScriptedBackend(*[HANG] * 3, duration_s=lambda size: 0.005 + 0.01 * size)
    async with stack_of(loop, model, max_batch_size=8, max_in_flight=4) as service:
        others = []
        for _ in range(3):
            others.append(asyncio.ensure_future(service(1.0)))
            await asyncio.sleep(0.001)
        delivered = await in_time_of_each(loop, service, 0.03, [0.0] * 8, LatestOnly(), None)
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    assert min(delivered) >= 0.95 * 20.0 / 0.09


@pytest.mark.parametrize("rates", [(50,), (20, 80), (10, 30, 30, 90)], ids=str)
@pytest.mark.parametrize("max_waiting", [1, 4])
async def test_late_sources_are_read_ahead(loop, max_waiting, rates):
    """If chunks wait in a queue of the user, the session reads ahead to the chunks whose results can be in time."""
    takes_s, seconds = 0.08, 20.0
    model = ScriptedBackend(duration_s=takes_s, example=1.0)

    async def queue(per_s, begin_s):
        for number in range(round(seconds * per_s)):
            captured_s = begin_s + number / per_s
            await asyncio.sleep(max(0.0, captured_s - loop.time()))
            yield Frame(1.0, round(captured_s * 1e9))

    async with stack_of(loop, model, max_batch_size=16) as service:
        session = StreamSession(service, policy=Block(max_waiting), max_age_s=1.0)
        for number, per_s in enumerate(rates):
            session.add(queue(per_s, loop.time()), stream_id=number)
        results = await collect(session)

    delivered = [sum(result.stream_id == number for result in results) for number in range(len(rates))]
    assert delivered == pytest.approx([min(per_s * seconds, seconds / takes_s) for per_s in rates], rel=0.15)
    assert add_up(session.statistics())


@pytest.mark.parametrize("tells", [True, False], ids=["batcher", "other service"])
async def test_single_late_source_is_read_ahead(loop, tells):
    """A single late source is read ahead; the session measures the time of a frame if the service reports none."""

    async def answer(request):
        await asyncio.sleep(0.08)
        return request.inputs

    async def queue():
        for number in range(1000):
            await asyncio.sleep(max(0.0, number / 50 - loop.time()))
            yield Frame(1.0, number * 20_000_000)

    async with stack_of(loop, ScriptedBackend(duration_s=0.08, example=1.0)) as service:
        session = StreamSession(service if tells else Service(answer), max_age_s=1.0, clock=loop.clock)
        results = await collect(session(queue()))

    assert len([result for result in results if result.error is None]) >= 0.85 * 20.0 / 0.08
    assert add_up(session.statistics())


async def test_source_of_old_frames_does_not_block_loop(loop):
    """A source that yields frames that are too old, without waiting, does not block other tasks of the event loop."""
    turns = 0

    async def old():
        for _ in range(1000):
            yield Frame(1.0, loop.clock() - 10**9)

    async def others_run():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with stack_of(loop, ScriptedBackend(duration_s=0.01, example=1.0)) as service:
        task = asyncio.ensure_future(others_run())
        session = StreamSession(service, max_age_s=0.1)
        assert await collect(session(old())) == []
        task.cancel()

    assert turns >= 200
    assert session.statistics().dropped == {"deadline_exceeded": 1000}


async def test_frame_of_wrong_time_costs_no_other_frame(loop):
    """A frame captured long ago is dropped alone; the other frames of its stream, which are in time, have results."""
    model = ScriptedBackend(duration_s=0.1)
    async with stack_of(loop, model, max_batch_size=1) as service:
        session = StreamSession(service, policy=Block(4), max_age_s=2.0)

        async def frames():
            for number in range(20):
                back_s = 9 if number % 5 == 4 else 0
                yield Frame(float(number), loop.clock() - back_s * 1_000_000_000)

        numbers = [result.number async for result in session(frames())]
    assert numbers == [number for number in range(20) if number % 5 != 4]
    assert session.statistics().dropped == {"deadline_exceeded": 4}


async def test_short_queue_of_many_in_flight_loses_nothing(loop):
    """If more frames can be in flight than can wait, frames that wait for a place are not dropped."""
    model = ScriptedBackend(duration_s=0.1)
    async with stack_of(loop, model, max_batch_size=1) as service:
        session = StreamSession(service, policy=Block(1), max_in_flight=4, max_age_s=4.0)
        for _ in range(3):
            session.add(Camera(loop, 20, period_s=0.025))
        assert len(await collect(session)) == 60


@pytest.mark.parametrize("load", [1.2, 3.0])
@pytest.mark.parametrize("max_age_s", [0.3, 1.0])
async def test_one_overloaded_stream_fills_its_batches(loop, load, max_age_s):
    """A source that is ahead of the model is not held for a frame that is too late; its next frames fill the batch."""
    model = ScriptedBackend(duration_s=lambda size: 0.02 + 0.005 * size, example=1.0)
    async with stack_of(loop, model, max_batch_size=4) as service:
        session = StreamSession(service, policy=Block(4), max_in_flight=4, max_age_s=max_age_s)
        results = await collect(session(captured_on_time(loop, 0.01 / load)))

    assert len(results) >= 0.95 * 2000
    assert add_up(session.statistics())


async def test_list_is_not_read_ahead_for_a_slow_model(loop):
    """The items of a list count as captured when they are read, so reading ahead would only make them older."""
    async with stack_of(loop, ScriptedBackend(duration_s=0.1, example=1.0)) as service:
        session = StreamSession(service, policy=Block(2), max_age_s=0.25)
        results = await collect(session([1.0] * 40))

    assert len(results) >= 25


@pytest.mark.parametrize("max_waiting", [1, 2, 3, 4])
async def test_old_frame_holds_no_source_in_overload(loop, max_waiting):
    """Under overload, no frame that is too old holds its source.

    Other streams fill each batch. A frame that is too old is dropped even if no younger frame waits after it, because
    its source yields none before.
    """
    model = ScriptedBackend(duration_s=0.03, example=1.0)
    async with stack_of(loop, model, max_batch_size=1) as service:
        session = StreamSession(service, policy=Block(max_waiting), max_age_s=0.3)
        for number in range(16):
            session.add(Camera(loop, 10_000, period_s=0.01 if number < 4 else 0.1), stream_id=number)
        delivered = [0] * 16
        async for result in session:
            delivered[result.stream_id] += 1
            if loop.time() > 20.0:
                await session.aclose()

    assert min(delivered) >= 0.8 * sum(delivered) / 16
    assert sum(delivered) >= 0.95 * 20.0 / 0.03
    assert add_up(session.statistics())


async def test_a_stream_ends_with_its_source_under_overload(loop):
    """A stream ends soon after its source: its last frame is soon too old, and the end does not wait for room."""
    model = ScriptedBackend(duration_s=0.03, example=1.0)
    ended_s = {}
    async with stack_of(loop, model, max_batch_size=1) as service:
        session = StreamSession(service, policy=LatestOnly(), max_age_s=0.1)

        async def watch(number, frames):
            await collect(session(Camera(loop, frames, period_s=0.03)))
            ended_s[number] = loop.time()

        await asyncio.gather(*(watch(number, 20 if number < 4 else 200) for number in range(12)))

    assert max(ended_s[number] for number in range(4)) <= 20 * 0.03 + 0.1 + 13 * 0.03  # and a round of all turns
    assert add_up(session.statistics())


@pytest.mark.parametrize("max_waiting", [1, 8])
@pytest.mark.parametrize("kind", ["limit", "queue"])
async def test_full_limit_or_queue_starves_no_stream(loop, kind, max_waiting):
    """A rejected frame is sent again when another frame has ended, before frames that arrive later."""
    model = ScriptedBackend(duration_s=0.03, example=1.0)
    batcher = si.AdaptiveBatcher(max_batch_size=4, max_queue_size=2 if kind == "queue" else 100)
    layers = [si.ConcurrencyLimit(limit=3), batcher] if kind == "limit" else [batcher]
    async with si.Stack(*layers, model, clock=loop.clock) as service:
        session = StreamSession(service, policy=Block(max_waiting))
        for number in range(18):
            session.add(Camera(loop, 10_000, period_s=[0.01, 0.033, 0.1][number % 3]), stream_id=number)
        delivered = [0] * 18
        async for result in session:
            assert result.error is None
            delivered[result.stream_id] += 1
            if loop.time() > 12.0:
                await session.aclose()

    assert min(delivered) >= 0.7 * sum(delivered) / 18
    assert add_up(session.statistics())


async def test_chunk_backlog_has_turns_on_shared_device(loop):
    """A backlog of chunks has its turns on a device that two models share.

    A batch has chunks of 8 of the 96 microphones; the device must see the others too, or it would give the other model
    their turns.
    """
    device, random = si.Device("core"), Random(1)
    small = ScriptedBackend(duration_s=lambda rows: 0.0005 + 0.00007 * rows, example=1.0)
    large = ScriptedBackend(duration_s=lambda rows: 0.03 * random.uniform(0.8, 1.2), example=2.0)
    async with (
        si.Stack(si.AdaptiveBatcher(max_batch_size=8, device=device), small, clock=loop.clock) as hear,
        si.Stack(si.AdaptiveBatcher(max_batch_size=4, device=device), large, clock=loop.clock) as see,
    ):
        sound = StreamSession(hear, policy=Block(64), max_age_s=0.07)
        for source in microphones(loop, 96, 31.25, 4.0, random):
            sound.add(source)
        pictures = StreamSession(see, policy=LatestOnly())
        pictures.add(Camera(loop, 120, period_s=1 / 30))
        heard, seen = await asyncio.gather(collect(sound), collect(pictures))

    assert len(heard) >= 0.99 * 96 * 125
    assert len(seen) > 60
    assert add_up(sound.statistics())


async def test_excess_of_best_route_goes_to_next(loop):
    """Frames to which the best route cannot respond in time go to the next route.

    The load is nearly twice the capacity of the best route; without places for the next route, that route would idle
    while frames are dropped.
    """

    def route(name, quality):
        model = ScriptedBackend(duration_s=0.05, example=1.0)
        service = si.Stack(si.AdaptiveBatcher(max_batch_size=4), model, clock=loop.clock)
        return si.Route(name, service, device=name, quality=quality)

    router = si.FallbackRouter(route("best", 1.0), route("spare", 0.8))
    async with si.Stack(router, clock=loop.clock) as service:
        session = StreamSession(service, policy=Block(64), max_age_s=0.4)
        for source in microphones(loop, 24, 6.0, 20.0, Random(1)):
            session.add(source)
        results = await collect(session)

    assert len(results) >= 0.95 * 24 * 120
    assert 0.3 < sum(result.degraded for result in results) / len(results) < 0.6
    assert add_up(session.statistics())


@pytest.mark.parametrize("policy", [LatestOnly(), Block()])
async def test_open_streams_follow_new_max_batch_size(loop, policy):
    """Open streams use the places that a batcher has after a change of its `max_batch_size`.

    Sixteen cameras share a batch every 10 ms: first of one row, then of all frames that arrive, then of one row again.
    """
    batcher = si.AdaptiveBatcher(max_batch_size=1)
    model = ScriptedBackend(duration_s=0.01, example=1.0)
    async with si.Stack(batcher, model, clock=loop.clock) as service:
        session = StreamSession(service, policy=policy)
        for _ in range(16):
            session.add(Camera(loop, period_s=0.02))
        reading, rates, before = asyncio.ensure_future(collect(session)), [], 0
        for size in (1, 16, 1):
            batcher.reconfigure(max_batch_size=size)
            await asyncio.sleep(1.0)
            delivered = session.statistics().delivered
            rates.append(delivered - before)
            before = delivered
        assert batcher.statistics().queued <= 2
        await session.aclose()
        await reading

    assert rates[0] < 110
    assert rates[1] > 700
    assert rates[2] < 130


async def test_best_route_of_unknown_load_has_a_fallback(loop):
    """A best route of unknown load can have another route after it.

    Replicas accept any number of frames of a session, so places for the other route add nothing.
    """

    def stack():
        return si.Stack(si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(duration_s=0.01))

    best = Replicas(Replica("only", stack()))
    router = si.FallbackRouter(si.Route("best", best), si.Route("spare", stack(), quality=0.8))
    async with si.Stack(router, clock=loop.clock) as service:
        session = StreamSession(service, policy=Block(), max_age_s=1.0)
        assert len(await collect(session([1.0, 2.0, 3.0]))) == 3


async def test_nearly_free_worker_sets_no_endless_timers(loop):
    """A worker that is always about to become free does not cause an endless series of timers.

    For example, a batch of no duration that is queued after one that hangs is always expected to end in a nanosecond.
    """
    looks = 0

    async def answer(request):
        await asyncio.sleep(0.01)
        return request.inputs

    def next_batch(now_ns):
        nonlocal looks
        looks += 1
        assert looks < 100
        return NextBatch(now_ns + 1, 2)

    service = Service(answer)
    service.full_load, service.next_batch = lambda: 2, next_batch
    session = StreamSession(service, policy=LatestOnly(), clock=loop.clock)
    session.add(Camera(loop, 1))
    session.add(Camera(loop, 1, period_s=0.015))
    assert len(await collect(session)) == 2


async def test_urgent_chunks_take_all_remaining_room(loop):
    """Chunks without time for a full batch take all the room that is left.

    A stream can have four chunks in flight, and none of them waits for another turn of the event loop.
    """
    sizes, sent = [], []

    async def answer(request):
        sent.append(loop.time())
        return request.inputs

    service = Service(answer)
    service.max_in_flight, service.full_load, service.slow_batch_ns = 8, lambda: 8, lambda rows: 10**9
    service.admission = lambda request, now_ns: Admission(True)
    service.next_batch = lambda now_ns: sizes.append(len(sent)) or NextBatch(now_ns, 8, workers=8)
    session = StreamSession(service, policy=Block(8), max_age_s=0.1, max_in_flight=4, clock=loop.clock)

    async def source():
        await asyncio.sleep(0.01)  # all chunks arrive before the first one is sent
        for _ in range(4):
            yield 1.0

    session.add(source())
    assert len(await collect(session)) == 4
    assert sizes == [0]


async def test_the_timer_of_a_session_ends_with_it(loop):
    """A session that closes cancels its timer and does not wait for a worker that is busy for an hour."""
    model = ScriptedBackend(duration_s=3600.0)
    async with stack_of(loop, model, max_batch_size=1) as service:
        session = StreamSession(service, policy=LatestOnly())
        for _ in range(2):
            session.add(Camera(loop, 3))
        reading = asyncio.ensure_future(collect(session))
        await asyncio.sleep(1.0)
        await session.aclose()
        assert await reading == []
        assert loop.time() < 2.0
        assert not any(not timer.cancelled() and "Sender" in repr(timer) for timer in loop._scheduled)
        assert add_up(session.statistics())


async def test_worker_free_early_or_late_loses_no_frame(loop):
    """A batch that is shorter or longer than expected loses no frame of a stream, and no frame is sent twice."""
    seconds = [0.02, 0.1, 0.005, 0.05, 0.2, 0.01] * 20
    model = ScriptedBackend(duration_s=lambda size: seconds.pop() if seconds else 0.01)
    async with stack_of(loop, model, max_batch_size=2) as service:
        session = StreamSession(service, policy=LatestOnly())
        ids = [session.add(Camera(loop, 300)) for _ in range(6)]
        results = await collect(session)

    assert add_up(session.statistics())
    for stream_id in ids:
        numbers = [result.number for result in results if result.stream_id == stream_id]
        assert numbers[-1] == 299
        assert all(one < other for one, other in pairwise(numbers))

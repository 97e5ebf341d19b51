"""`StreamSession` in its steady state: order, ages, backpressure, drops, several sources."""

import asyncio
import math
from random import Random

import pytest
from live_sources import Camera, Service, add_up, echo, others, settle, stack_of

import streaminfer as si
from streaminfer.protocols import Admission
from streaminfer.streams import Block, EveryNth, Frame, LatestOnly, StreamSession, TargetRate
from streaminfer.testing import ScriptedBackend

pytestmark = pytest.mark.uncompiled


async def collect(results):
    return [result async for result in results]


async def test_results_come_in_order_with_their_instants(loop):
    async with stack_of(loop, ScriptedBackend(duration_s=0.004)) as service:
        session = StreamSession(service, stream_id="door")
        results = await collect(session(Camera(loop, 5)))

    assert [float(result.outputs) for result in results] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [result.number for result in results] == [0, 1, 2, 3, 4]
    for number, result in enumerate(results):
        captured_ns = (number + 1) * 10_000_000
        assert (result.captured_ns, result.arrived_ns) == (captured_ns, captured_ns)
        assert (result.completed_ns, result.delivered_ns) == (captured_ns + 4_000_000, captured_ns + 4_000_000)
        assert result.age_s == pytest.approx(0.004)
        assert result.position_s == pytest.approx(number * 0.01)
        assert (result.stream_id, result.error, result.degraded, result.source_failed) == ("door", None, False, False)
    assert not others()


@pytest.mark.parametrize(("tells", "tasks_a_frame"), [(True, 0), (False, 1)], ids=["batcher", "other service"])
async def test_frame_costs_no_task_if_service_reports_end(loop, tells, tasks_a_frame):
    """A frame costs no task if the service reports the end of its request.

    Each request to another service is awaited in a task of its own.
    """
    made = []

    def factory(loop, coroutine, **options):
        task = asyncio.Task(coroutine, loop=loop, **options)
        made.append(task)
        return task

    async with stack_of(loop, ScriptedBackend(duration_s=0.004)) as service:
        session = StreamSession(service if tells else Service(echo), clock=loop.clock)
        loop.set_task_factory(factory)
        results = await collect(session(Camera(loop, 5)))

    names = [task.get_name() for task in made]
    assert len(results) == 5
    assert names.count("streaminfer-frame") == 5 * tasks_a_frame
    assert len([name for name in names if name.startswith("streaminfer")]) == 1 + 5 * tasks_a_frame


async def test_bare_inputs_are_captured_when_they_arrive(loop):
    async def source():
        for x in (1.0, 2.0):
            await asyncio.sleep(0.5)
            yield x

    results = await collect(StreamSession(Service(echo), clock=loop.clock)(source()))

    assert [(result.outputs, result.captured_ns) for result in results] == [(1.0, 500_000_000), (2.0, 1_000_000_000)]


async def test_a_list_is_a_source_for_policies_that_wait(loop):
    async with stack_of(loop, ScriptedBackend(duration_s=0.01)) as service:
        results = await collect(StreamSession(service)([1.0, Frame(2.0, 0), 3.0]))
        assert [float(result.outputs) for result in results] == [1.0, 2.0, 3.0]

        with pytest.raises(TypeError, match="source: expected an asynchronous iterable, since the policy drops"):
            StreamSession(service, policy=LatestOnly())([1.0])
        for source in (7, "door.mp4", b"door.mp4"):
            with pytest.raises(TypeError, match="source: expected an asynchronous or plain iterable of frames"):
                StreamSession(service)(source)


async def test_latest_only_sends_the_newest_frame(loop):
    """At 3.5 frames per batch, each result is of the frame that was the newest when the service became free."""
    async with stack_of(loop, ScriptedBackend(duration_s=0.035)) as service:
        session = StreamSession(service, policy=LatestOnly())
        results = await collect(session(Camera(loop, 20)))

    assert [result.number for result in results][:4] == [0, 3, 7, 10]
    assert max(result.age_s for result in results[:-1]) <= 0.045 + 1e-9
    statistics = session.statistics()
    assert statistics.received == 20
    assert statistics.dropped == {"stale": 20 - len(results)}
    assert add_up(statistics)


async def test_block_loses_nothing_and_holds_the_source(loop):
    """A source is read no further ahead than the policy allows, and a slow consumer holds it too."""
    async with stack_of(loop, ScriptedBackend(duration_s=0.01)) as service:
        camera = Camera(loop, 30, period_s=0)
        session = StreamSession(service, policy=Block(max_waiting=3))
        ahead = 0
        async for result in session(camera):
            await asyncio.sleep(0.1)
            ahead = max(ahead, camera.read - result.number)

    assert session.statistics().delivered == 30
    assert ahead <= 3 + 1 + 2  # waiting frames, one in flight, one that is ready and this one


async def test_rate_policies_count_skipped_frames(loop):
    """`EveryNth` and `TargetRate` count the frames that they leave out."""
    async with stack_of(loop, ScriptedBackend(duration_s=0.001)) as service:
        session = StreamSession(service, policy=EveryNth(4, then=Block()))
        results = await collect(session(Camera(loop, 10)))
        assert [result.number for result in results] == [0, 4, 8]
        assert session.statistics().dropped == {"skipped": 7}

        session = StreamSession(service, policy=TargetRate(20))
        results = await collect(session(Camera(loop, 21)))
        assert [result.number for result in results] == [0, 5, 10, 15, 20]


async def test_frames_in_flight_are_bounded_and_in_order(loop):
    """A stream has up to ``max_in_flight`` requests; they end in any order, and results come in the order of frames."""

    async def answer(request):
        await asyncio.sleep(0.05 if request.inputs % 3 == 0 else 0.01)
        return request.inputs

    service = Service(answer)
    session = StreamSession(service, max_in_flight=3, clock=loop.clock)
    results = await collect(session([float(number) for number in range(20)]))

    assert [result.outputs for result in results] == list(range(20))
    assert service.most == 3


async def test_an_error_is_the_result_of_its_frame(loop):
    model = ScriptedBackend([0.0], ValueError("broken"), si.BackendError("no"), duration_s=0.001)
    async with stack_of(loop, model) as service:
        session = StreamSession(service)
        results = await collect(session(Camera(loop, 5)))

    assert [type(result.error).__name__ for result in results] == ["NoneType", *["BackendError"] * 2, *["NoneType"] * 2]
    assert results[1].outputs is None
    assert "BackendError" in repr(results[1])
    statistics = session.statistics()
    assert (statistics.delivered, statistics.failed, statistics.ages.count) == (3, 2, 3)


async def test_a_frame_that_is_too_old_costs_nothing(loop):
    """A frame that arrives past its age limit is dropped before it is sent; a sent frame has the limit as deadline."""
    model = ScriptedBackend(duration_s=0.01)

    async def source():
        yield Frame(1.0, loop.clock() - 300_000_000)
        yield Frame(2.0, loop.clock() - 40_000_000)

    async with stack_of(loop, model) as service:
        session = StreamSession(service, max_age_s=0.1)
        results = await collect(session(source()))

    assert [float(result.outputs) for result in results] == [2.0]
    assert session.statistics().dropped == {"deadline_exceeded": 1}
    assert [batch.deadline_ns for batch in model.batches] == [60_000_000]


async def test_a_result_that_would_be_too_old_is_dropped(loop):
    """A hanging model costs each frame no more than its age limit, and the stream continues."""
    model = ScriptedBackend(*[lambda batch: batch.inputs] * 2, duration_s=lambda _: 0.01 if loop.time() < 0.2 else 9.0)
    async with stack_of(loop, model) as service:
        session = StreamSession(service, policy=LatestOnly(), max_age_s=0.05)
        results = await collect(session(Camera(loop, 100)))

    statistics = session.statistics()
    assert len(results) == statistics.delivered >= 15
    assert set(statistics.dropped) == {"stale", "deadline_exceeded", "infeasible"}
    assert add_up(statistics)
    assert all(result.age_s <= 0.05 for result in results)


async def test_infeasible_frame_is_dropped_by_reason(loop):
    """A frame that cannot be on time because of a backlog is dropped as infeasible, and never reaches the model."""
    model = ScriptedBackend(duration_s=0.1, example=1.0)
    async with stack_of(loop, model, max_batch_size=1) as service:
        backlog = [asyncio.ensure_future(service(1.0)) for _ in range(4)]
        await asyncio.sleep(0)
        session = StreamSession(service, policy=LatestOnly(), max_age_s=0.15)
        results = await collect(session(Camera(loop, 10)))
        await asyncio.gather(*backlog)

    statistics = session.statistics()
    assert (statistics.dropped["infeasible"], results) == (2, [])
    assert [batch.inputs.tolist() for batch in model.batches] == [[1.0]] * 4
    assert add_up(statistics)


async def test_predicted_lateness_drops_no_frame(loop):
    """A predicted lateness drops no frame, because it can be wrong; only the planner of the service rejects frames."""

    async def answer(request):
        await asyncio.sleep(0.005)
        return request.inputs

    service = Service(answer)
    service.admission = lambda request, now_ns: Admission(False, "infeasible")
    session = StreamSession(service, policy=LatestOnly(), max_age_s=0.1, clock=loop.clock)

    both = await asyncio.gather(*(collect(session(Camera(loop, 5))) for _ in range(2)))

    assert [len(results) for results in both] == [5, 5]
    assert not session.statistics().dropped


async def test_infeasible_frame_yields_to_waiting_ones(loop):
    """If more frames wait than can be sent, a frame that is expected to be late yields its place to another one."""

    async def answer(request):
        await asyncio.sleep(0.02)
        return request.inputs

    service = Service(answer)
    service.max_in_flight, service.full_load = 1, lambda: 4
    service.admission = lambda request, now_ns: Admission(request.stream_id != "late", "infeasible")
    session = StreamSession(service, policy=LatestOnly(), max_age_s=1.0, clock=loop.clock)
    for stream_id in ["late", *range(15)]:
        session.add(Camera(loop, 20, period_s=0.02), stream_id=stream_id)
    results = await collect(session)

    late = sum(result.stream_id == "late" for result in results)
    assert session.statistics().dropped["infeasible"] >= 5
    assert late <= 1  # after the other streams have ended
    assert {result.stream_id for result in results} >= set(range(15))


async def test_overload_is_served_at_speed_of_model(loop):
    """Under overload, frames are served as fast as the model can.

    Frames that are only just in time make batches small, and would be late if a batch takes longer than expected.
    """
    random, streams, period_s, full_s = Random(1), 139, 0.032, 0.0044

    def duration_s(size):
        return (0.0009 + 0.0035 * size / 16) * random.lognormvariate(0, 0.15)

    async def source(phase):
        began_s = loop.time() + phase * period_s
        for number in range(50):
            await asyncio.sleep(max(0.0, began_s + number * period_s - loop.time()))
            yield Frame(1.0, loop.clock())

    model = ScriptedBackend(duration_s=duration_s, example=0.0)
    async with stack_of(loop, model, max_batch_size=16, slo_s=period_s, max_queue_size=1000) as service:
        session = StreamSession(service, policy=LatestOnly(), max_age_s=period_s)
        for _ in range(streams):
            session.add(source(random.random()))
        await collect(session)

    overload = streams / period_s * full_s / 16
    assert overload == pytest.approx(1.19, abs=0.01)
    statistics = session.statistics()
    assert statistics.delivered >= 0.97 / overload * statistics.received
    assert add_up(statistics)


async def test_a_frame_is_sent_as_soon_as_there_is_a_place(loop):
    """A frame is sent as soon as the service has a place: of ten frames, only the last two wait for one of eight."""

    async def answer(request):
        await asyncio.sleep(0.02)
        return request.inputs

    service = Service(answer)
    service.max_in_flight, service.full_load = 1, lambda: 8
    session = StreamSession(service, policy=LatestOnly(), max_age_s=1.0, clock=loop.clock)
    for number in range(10):
        session.add(Camera(loop, 1, period_s=0.001 * (number + 1)), stream_id=number)
    results = await collect(session)

    took_s = {result.stream_id: (result.completed_ns - result.captured_ns) / 1e9 for result in results}
    assert [took_s[number] for number in range(8)] == pytest.approx([0.02] * 8)
    assert [took_s[number] for number in (8, 9)] == pytest.approx([0.032] * 2)  # they waited for the first to end


@pytest.mark.parametrize("max_age_s", [None, 5.0])
async def test_block_waits_for_a_place_where_others_drop(loop, max_age_s):
    """A full queue holds a stream whose policy waits; a stream whose policy drops frames drops them as queue_full."""
    model = ScriptedBackend(duration_s=0.05)
    async with stack_of(loop, model, max_batch_size=1, max_queue_size=1, policy="greedy") as service:
        others_calls = [asyncio.ensure_future(service(1.0)) for _ in range(2)]
        await asyncio.sleep(0.001)
        dropping = StreamSession(service, policy=LatestOnly())
        assert await collect(dropping(Camera(loop, 2))) == []
        assert dropping.statistics().dropped == {"queue_full": 2}

        blocking = StreamSession(service, max_age_s=max_age_s)
        assert len(await collect(blocking([1.0, 2.0, 3.0]))) == 3
        await asyncio.gather(*others_calls)


async def test_streams_above_their_rate_take_no_places(loop):
    """Frames that wait for the rate limit of their own stream leave the places of the session to other streams."""
    inner = si.Stack(si.AdaptiveBatcher(max_batch_size=2), ScriptedBackend(duration_s=0.001))
    limit = si.RateLimit(0.2, burst=1)
    async with si.Stack(limit.wrap(inner, by=lambda request: request.stream_id), clock=loop.clock) as service:
        session = StreamSession(service, policy=Block())
        begin_s = loop.time()
        greedy = [asyncio.ensure_future(collect(session([1.0] * 3, stream_id=number))) for number in range(8)]
        await asyncio.sleep(1.0)
        slow = await collect(session([1.0], stream_id="slow"))
        assert slow[0].age_s < 0.1
        assert [len(results) for results in await asyncio.gather(*greedy)] == [3] * 8
    assert loop.time() - begin_s == pytest.approx(10.0, rel=0.01)  # the rate is kept


async def test_unannounced_rejections_are_dropped_or_retried(loop):
    """A frame whose call raises `Overloaded` is dropped as shed, or sent again if the policy waits."""
    rejections = [si.Overloaded("full", retry_after_s=0.2)] * 2

    async def answer(request):
        if rejections:
            raise rejections.pop()
        return request.inputs

    dropping = StreamSession(Service(answer), policy=LatestOnly(), clock=loop.clock)
    assert [result.number for result in await collect(dropping(Camera(loop, 3)))] == [2]
    assert dropping.statistics().dropped == {"shed": 2}

    rejections += [si.Overloaded("full", retry_after_s=0.2)] * 2
    begun_s = loop.time()
    assert len(await collect(StreamSession(Service(answer), clock=loop.clock)([1.0]))) == 1
    assert loop.time() - begun_s == pytest.approx(0.4)


async def test_open_breaker_drops_frames_as_circuit_open(loop):
    breaker = si.CircuitBreaker(minimum_calls=1, open_s=0.055)
    model = ScriptedBackend(ValueError("broken"))
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=2), breaker, model, clock=loop.clock) as service:
        session = StreamSession(service, policy=LatestOnly())
        results = await collect(session(Camera(loop, 12)))

    statistics = session.statistics()
    assert statistics.failed == 1
    assert 4 <= statistics.dropped["circuit_open"] <= 6
    assert statistics.delivered == 12 - 1 - statistics.dropped["circuit_open"]
    assert results[-1].error is None


async def test_an_infinite_age_means_no_deadline(loop):
    """A stream with an infinite age has no deadline; a stream without an age limit has the batcher's objective."""
    for max_age_s, failed in [(math.inf, 0), (None, 2)]:
        async with stack_of(loop, ScriptedBackend(duration_s=0.2), slo_s=0.1, policy="greedy") as service:
            session = StreamSession(service, max_age_s=max_age_s)
            results = await collect(session([1.0, 2.0]))
            assert [isinstance(result.error, si.DeadlineExceeded) for result in results] == [failed > 0] * 2


async def test_age_limit_holds_if_service_has_no_deadlines(loop):
    """If the service enforces no deadline, the session ends its request at the age limit."""

    async def answer(request):
        await asyncio.sleep(0.01 if request.inputs else 1e9)
        return request.inputs

    session = StreamSession(Service(answer), max_age_s=0.05, clock=loop.clock)
    results = await collect(session(Camera(loop, 4, period_s=0.03)))

    assert [result.number for result in results] == [1, 2, 3]
    assert session.statistics().dropped == {"deadline_exceeded": 1}


async def test_routers_and_replicas_are_services(loop):
    good = si.Stack(si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(then=lambda b: [x + 1 for x in b.inputs]))
    bad = si.Stack(si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(*[ValueError()] * 50))
    async with si.Stack(
        si.FallbackRouter(si.Route("bad", bad), si.Route("good", good, quality=0.5)), clock=loop.clock
    ) as service:
        results = await collect(StreamSession(service)(Camera(loop, 4)))
        assert [(result.outputs, result.degraded) for result in results] == [(x + 1.0, True) for x in range(4)]

    replicas = [
        si.Stack(si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(duration_s=0.005), clock=loop.clock)
        for _ in range(2)
    ]
    async with si.Stack(
        si.Replicas(*(si.Replica(str(number), one) for number, one in enumerate(replicas))), clock=loop.clock
    ) as service:
        session = StreamSession(service, max_age_s=0.1, policy=LatestOnly())
        assert len(await collect(session(Camera(loop, 9)))) == 9


async def test_frames_wait_in_streams_behind_router(loop):
    """Frames for a router wait in their streams too.

    Results are as fresh as without the router, because no frame ages in the queue of the best route.
    """

    async def oldest_s(wrap):
        model = ScriptedBackend(duration_s=0.02)
        service = wrap(si.Stack(si.AdaptiveBatcher(max_batch_size=2), model, clock=loop.clock))
        async with si.Stack(service, clock=loop.clock) as stack, StreamSession(stack, policy=LatestOnly()) as session:
            for _ in range(8):
                session.add(Camera(loop, 60))
            return max([result.age_s async for result in session if result.number < 50])

    bare_s = await oldest_s(lambda service: service)
    spare = si.Stack(si.AdaptiveBatcher(max_batch_size=2), ScriptedBackend())
    assert await oldest_s(lambda one: si.FallbackRouter(si.Route("a", one), si.Route("b", spare))) == bare_s


async def test_many_sources_have_one_consumer(loop):
    """Streams are added and removed while results of others arrive, and the loop ends with the last of them."""
    async with stack_of(loop, ScriptedBackend(duration_s=0.004)) as service, StreamSession(service) as session:
        a = session.add(Camera(loop, 10), stream_id="a")
        endless = Camera(loop)
        b = session.add(endless)
        assert session.streams == ("a", b)
        counts = {}
        async for result in session:
            counts[result.stream_id] = counts.get(result.stream_id, 0) + 1
            if result.stream_id == a and result.number == 4:
                c = session.add(Camera(loop, 20, period_s=0.003), stream_id=("c", 1))
            if counts.get(b) == 12:
                await session.remove(b)
                await session.remove("unknown")
        assert counts == {"a": 10, b: 12, c: 20}
        assert endless.closed == 1
        assert session.streams == ()
        session.add([5.0])
        assert [float(result.outputs) async for result in session] == [5.0]
        statistics = session.statistics()
    assert (statistics.open_streams, statistics.ended_streams) == (0, 4)
    assert add_up(statistics)


async def test_batches_below_the_maximum_keep_shares(loop):
    """Results are shared by weight if the batcher sends one row at a time, because larger batches bring nothing."""
    weights = [1.0, 2.0, 3.0]
    delivered = [0] * len(weights)
    model = ScriptedBackend(duration_s=lambda rows: 0.005 * rows)
    async with stack_of(loop, model, max_batch_size=8) as service:
        session = StreamSession(service, policy=LatestOnly())
        for number, weight in enumerate(weights):
            session.add(Camera(loop, period_s=0.003), stream_id=number, weight=weight)
        async for result in session:
            delivered[result.stream_id] += loop.time() > 2
            if loop.time() > 8:
                break
    share = sum(delivered) / sum(weights)
    assert delivered == pytest.approx([share * weight for weight in weights], rel=0.1)


async def test_streams_take_turns_by_weight(loop):
    async def answer(request):
        await asyncio.sleep(0.01)
        return request.inputs

    limited = si.Stack(si.AdaptiveBatcher(max_batch_size=1), ScriptedBackend(duration_s=0.01), clock=loop.clock)
    async with limited as service, StreamSession(service) as session:
        for weight in (1.0, 3.0):
            session.add(Camera(loop, period_s=0), stream_id=weight, weight=weight)
        session.add(Camera(loop, period_s=0.4), stream_id="seldom")
        counts = {1.0: 0, 3.0: 0, "seldom": 0}
        async for result in session:
            counts[result.stream_id] += 1
            if result.stream_id == "seldom":
                assert result.age_s <= 0.041
            if loop.time() > 4:
                break
    # with one frame in flight each, the heavier one can be sent every other time at best
    assert 1.0 <= counts[3.0] / counts[1.0] <= 3.5
    assert counts["seldom"] == 9


async def test_results_are_shared_by_weight_under_overload(loop):
    """Under overload, results are shared by weight if no share is more than one frame of each batch."""
    weights = [1.0] * 12 + [0.5, 2.0, 4.0]
    async with stack_of(loop, ScriptedBackend(duration_s=0.04), max_batch_size=2) as service:
        session = StreamSession(service, policy=LatestOnly())
        for number, weight in enumerate(weights):
            session.add(Camera(loop, 2_000, period_s=0.03), stream_id=number, weight=weight)
        delivered = [0] * len(weights)
        async for result in session:
            delivered[result.stream_id] += 1
    share = sum(delivered) / sum(weights)
    assert delivered == pytest.approx([share * weight for weight in weights], rel=0.05)


@pytest.mark.parametrize(("rate", "least"), [(1.0, 1.0), (5.0, 1.5)])
async def test_a_slow_camera_has_its_share_among_fast_ones(loop, rate, least):
    """If 21 streams have 2.4 frames per second each, a stream with 1 loses none, and one with 5 gets at least 1.5."""
    async with stack_of(loop, ScriptedBackend(duration_s=0.02), max_batch_size=1) as service:
        session = StreamSession(service, policy=LatestOnly(), max_age_s=0.2)

        async def watch(period_s):
            return len(await collect(session(Camera(loop, round(20 / period_s), period_s=period_s))))

        slow, *fast = await asyncio.gather(watch(1 / rate), *(watch(1 / (30 + number / 100)) for number in range(20)))
    assert slow >= 20 * least - 1
    assert min(fast) >= 20 * 2.3


async def test_no_task_is_made_per_frame(loop):
    """In the steady state, a frame creates no task."""
    made = []

    def factory(loop, coroutine, **options):
        made.append(getattr(coroutine, "__qualname__", ""))
        return asyncio.Task(coroutine, loop=loop, **options)

    async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), si.CpuBackend(lambda x: x, executor="inline")) as service:
        session = StreamSession(service, policy=LatestOnly(), clock=loop.clock)
        loop.set_task_factory(factory)
        results = session(Camera(loop, 500))
        for _ in range(3):
            await anext(results)
        made.clear()
        assert len(await collect(results)) == 497
        assert made == []
        loop.set_task_factory(None)


async def test_statistics_list_streams_with_most_drops(loop):
    """Statistics list at most 64 streams, those with the most drops; the totals count all streams."""
    async with stack_of(loop, ScriptedBackend(duration_s=0.5)) as service:
        async with StreamSession(service, policy=LatestOnly()) as session:
            for number in range(70):
                session.add(Camera(loop, period_s=0.1 if number % 10 else 0.02), stream_id=number)
            await asyncio.sleep(0.35)
            statistics = session.statistics()
            assert statistics.open_streams == 70
            assert len(statistics.streams) == 64
            assert set(list(statistics.streams)[:7]) == {str(number) for number in range(0, 70, 10)}
            assert all(add_up(one) for one in statistics.streams.values())
            assert add_up(statistics)
            assert statistics.to_dict()["streams"]["0"]["dropped"]["stale"] >= 10
        results = session.statistics()
    assert (results.open_streams, results.ended_streams, results.waiting, results.in_flight) == (0, 70, 0, 0)
    assert add_up(results)


async def test_statistics_tell_ids_of_the_same_text_apart(loop):
    """Statistics list a stream 1 and a stream "1" separately."""
    async with stack_of(loop, ScriptedBackend(duration_s=0.5)) as service, StreamSession(service) as session:
        for stream_id in (1, "1"):
            session.add(Camera(loop), stream_id=stream_id)
        await asyncio.sleep(0.1)
        statistics = session.statistics()

    assert set(statistics.streams) == {"1", "1#2"}
    assert sum(one.received for one in statistics.streams.values()) == statistics.received > 0


async def test_statistics_are_taken_while_streams_open(loop):
    """A scrape in another thread can take statistics at any moment of the event loop, also while streams open."""
    meanwhile = []

    class Name(str):
        __slots__ = ()

        def __hash__(self):
            if meanwhile:
                meanwhile.pop()()
            return super().__hash__()

    async with stack_of(loop, ScriptedBackend()) as service, StreamSession(service) as session:
        for stream_id in (Name("a"), Name("b")):
            session.add(Camera(loop), stream_id=stream_id)
        meanwhile.append(lambda: session.add(Camera(loop)))
        assert set(session.statistics().streams) == {"a", "b"}
        assert session.statistics().open_streams == 3


class Endless:
    """Policy whose ``max_waiting`` is too large for the counters."""

    max_waiting, waits = 1 << 63, True

    def make_selector(self):
        return None


async def test_requests_have_session_tenant_and_priority(loop):
    """Requests have the tenant and the priority of their session."""
    service = Service(echo)
    session = StreamSession(service, tenant="acme", priority=-3, clock=loop.clock)

    assert len([result async for result in session([1.0, 2.0])]) == 2
    assert [(request.tenant, request.priority) for request in service.requests] == [("acme", -3)] * 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_in_flight": 0}, ValueError, "max_in_flight: expected a whole number ≥ 1"),
        ({"max_in_flight": 1 << 63}, ValueError, "max_in_flight: expected a whole number ≥ 1 and ≤ 2147483647"),
        ({"policy": Endless()}, ValueError, r"policy\.max_waiting: expected a whole number ≥ 1 and ≤ 2147483647"),
        ({"max_age_s": 0}, ValueError, "max_age_s: expected a number of seconds > 0"),
        ({"max_age_s": "1"}, TypeError, "max_age_s"),
        ({"max_age_s": math.nan}, ValueError, "max_age_s"),
        ({"policy": LatestOnly}, TypeError, r"policy: expected a frame policy, such as LatestOnly\(\)"),
        ({"stream_id": []}, TypeError, "stream_id: expected a hashable"),
        ({"resets_after_gap": 1}, TypeError, "resets_after_gap"),
        ({"priority": 0.5}, ValueError, "priority"),
        ({"tenant": 7}, TypeError, "tenant"),
        ({"clock": 7}, TypeError, "clock"),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        StreamSession(Service(echo), **options)


async def test_wrong_use_of_a_session_raises(loop):
    with pytest.raises(TypeError, match="service: expected a service"):
        StreamSession(len)
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(duration_s=0.1), clock=loop.clock)
    with pytest.raises(TypeError, match="BlockingStreamSession"):
        StreamSession(stack.blocking())
    async with stack:
        session = StreamSession(stack)
        with pytest.raises(RuntimeError, match="add"):
            await anext(session)
        with pytest.raises(ValueError, match="weight: expected a number from"):
            session.add([1.0], weight=0)
        for unhashable in ([], (1, [2])):
            with pytest.raises(TypeError, match="stream_id: expected a hashable"):
                session.add([1.0], stream_id=unhashable)
            with pytest.raises(TypeError, match="stream_id: expected a hashable"):
                await session.remove(unhashable)
        session.add(Camera(loop), stream_id="a")
        with pytest.raises(ValueError, match="stream_id: expected an id of which no stream is open, got 'a'"):
            session(Camera(loop), stream_id="a")
        waiting = asyncio.ensure_future(anext(session))
        await settle()
        with pytest.raises(RuntimeError, match="has a consumer already"):
            await anext(session)
        await waiting
        await session.aclose()
        with pytest.raises(si.Closed, match="this session was closed"):
            session.add(Camera(loop))
        assert "0 streams open" in repr(session)

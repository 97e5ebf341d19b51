"""Ends of streams, of every kind: nothing hangs, nothing is left, each frame is counted."""

import asyncio
import contextlib
import gc

import numpy as np
import pytest
from live_sources import Camera, Service, States, add_up, echo, others, settle, stack_of
from recurrent import recurrent

import streaminfer as si
from streaminfer.protocols import Admission
from streaminfer.streams import Frame, LatestOnly, StreamSession
from streaminfer.testing import HANG, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


async def collect(results):
    return [result async for result in results]


async def test_consumer_leaving_its_loop_closes_stream(loop):
    """A consumer that leaves its `async for` loop closes the stream."""
    async with stack_of(loop, ScriptedBackend(duration_s=0.004)) as service:
        session, camera = StreamSession(service), Camera(loop)
        async for result in session(camera):
            if result.number == 3:
                break
        del result
        await settle()

        assert camera.closed == 1
        assert not others()
    statistics = session.statistics()
    assert (statistics.delivered, statistics.open_streams) == (4, 0)
    assert add_up(statistics)


async def test_results_close_by_hand_or_at_end_of_block(loop):
    """Results are closed by `aclose`, or at the end of an `async with` block."""
    async with stack_of(loop, ScriptedBackend(HANG)) as service:
        session, camera = StreamSession(service), Camera(loop)
        async with session(camera) as results:
            await asyncio.sleep(0.055)
            assert results.statistics().in_flight == 1
            assert results.stream_id in repr(results)
        assert not others()
        assert camera.closed == 1
        assert await collect(results) == []
        await results.aclose()
    assert session.statistics().dropped == {"closed": session.statistics().received}


async def test_a_cancelled_consumer_leaves_nothing(loop):
    async with stack_of(loop, ScriptedBackend(HANG)) as service:
        session, camera = StreamSession(service), Camera(loop)
        consumer = asyncio.ensure_future(collect(session(camera)))
        await asyncio.sleep(0.055)
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        del consumer
        gc.collect()
        await settle()
        assert not others()
        assert camera.closed == 1
    assert add_up(session.statistics())


async def test_source_error_comes_after_its_results(loop):
    """An error of the source is raised after the results of its frames."""
    async with stack_of(loop, ScriptedBackend(duration_s=0.1)) as service:
        session = StreamSession(service)
        results = session(Camera(loop, 3, error=OSError("unplugged")))
        assert [(await anext(results)).number for _ in range(3)] == [0, 1, 2]
        with pytest.raises(OSError, match="unplugged"):
            await anext(results)
        with pytest.raises(StopAsyncIteration):
            await anext(results)
        await settle()
        assert not others()


async def test_source_error_is_a_result_among_streams(loop):
    """In a session of several streams, the error of a source is a result."""
    async with stack_of(loop, ScriptedBackend(duration_s=0.001)) as service, StreamSession(service) as session:
        session.add(Camera(loop, 2, error=OSError("unplugged")), stream_id="bad")
        session.add(Camera(loop, 5), stream_id="good")
        results = await collect(session)
        statistics = session.statistics()

    (failure,) = [result for result in results if result.source_failed]
    assert (failure.stream_id, str(failure.error)) == ("bad", "unplugged")
    assert [result.stream_id for result in results].count("bad") == 3
    assert (statistics.received, statistics.delivered, statistics.failed) == (7, 7, 0)


@pytest.mark.parametrize("captured_ns", [1764135000.25, None, "now"])
async def test_capture_not_in_whole_nanoseconds_raises(loop, captured_ns):
    """A capture instant that is no whole number of nanoseconds raises a `TypeError`.

    With seconds, for example from `time.time`, every age would be wrong.
    """

    async def source():
        yield Frame(1.0, captured_ns)

    with pytest.raises(TypeError, match="captured_ns: expected whole nanoseconds on the clock of the Stack, got"):
        await collect(StreamSession(Service(echo), clock=loop.clock)(source()))


@pytest.mark.parametrize("captured_ns", [1 << 62, -(1 << 62), 1 << 70])
async def test_a_capture_beyond_all_clocks_is_named(loop, captured_ns):
    """A capture instant whose age would overflow raises an error that ends the stream, like any error of its source."""
    with pytest.raises(ValueError, match="captured_ns: expected whole nanoseconds on the clock of the Stack, got"):
        await collect(StreamSession(Service(echo), clock=loop.clock)([Frame(1.0, captured_ns)]))


async def test_a_stream_that_is_closed_at_once_ends(loop):
    """A stream that is closed before its task has taken a step ends, and its id is free again."""
    async with stack_of(loop, ScriptedBackend()) as service:
        session = StreamSession(service)
        await session([1.0], stream_id="a").aclose()
        session.add([1.0], stream_id="a")
        await session.remove("a")

        assert session.streams == ()
        assert session.statistics().ended_streams == 2
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(session), 5.0)


class Goodbye:
    """Source with some frames and a close that takes 0.1 s, like that of a socket that says goodbye."""

    def __init__(self, steps, frames):
        self.steps, self.frames = steps, frames

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.frames:
            raise StopAsyncIteration
        self.frames -= 1
        return 1.0

    async def aclose(self):
        self.steps.append("begun")
        await asyncio.sleep(0.1)
        self.steps.append("complete")


async def waiting(goodbye):
    """Yield a frame, and wait until the generator is closed."""
    try:
        yield 1.0
        await asyncio.Event().wait()
    finally:
        await goodbye.aclose()


@pytest.mark.parametrize("make", [lambda it: it, waiting], ids=["ended", "closed twice"])
async def test_ending_source_is_not_cancelled_by_a_close(loop, make):
    """A stream that is closed while its source ends waits for the source and does not cancel it."""
    steps = []

    async with stack_of(loop, ScriptedBackend()) as service:
        session = StreamSession(service)
        session.add(make(Goodbye(steps, 1)), stream_id="a")
        await asyncio.sleep(0.01)
        closing = asyncio.ensure_future(session.remove("a"))
        await asyncio.sleep(0.01)
        await session.aclose()
        await closing

    assert steps == ["begun", "complete"]
    assert session.streams == ()


async def test_a_generator_is_closed_with_its_stream(loop):
    """A close of the stream closes a generator that is its source, so that it does not hold a file open."""
    closed = []

    def frames():
        try:
            while True:
                yield 1.0
        finally:
            closed.append(True)

    async with stack_of(loop, ScriptedBackend()) as service:
        results = StreamSession(service)(frames())
        await anext(results)
        await results.aclose()

    assert closed


async def test_close_cancels_a_source_that_hangs(loop):
    async with stack_of(loop, ScriptedBackend()) as service:
        camera = Camera(loop, period_s=1e9)
        async with StreamSession(service) as session:
            session.add(camera)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(session), 5.0)
        assert not others()
        assert camera.closed == 1


async def test_remove_abandons_a_call_that_hangs(loop):
    """Removing a stream frees its id, even if the service never responds to its frame."""
    async with stack_of(loop, ScriptedBackend(HANG, duration_s=0.01)) as service:
        async with StreamSession(service) as session:
            session.add(Camera(loop), stream_id="a")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(session), 5.0)
            await session.remove("a")
            session.add(Camera(loop, 2), stream_id="a")  # the id is free, and the service continues
            assert len(await collect(session)) == 2
        assert not others()


async def test_the_stop_of_the_service_ends_the_streams(loop):
    """If the service stops, frames in flight get their outcome, and the last result has the error `Closed`."""
    model = ScriptedBackend(duration_s=0.015)
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=4), model, clock=loop.clock)
    await stack.start()
    session = StreamSession(stack)
    cameras = [Camera(loop), Camera(loop)]
    consumers = [asyncio.ensure_future(collect(session(camera))) for camera in cameras]
    await asyncio.sleep(0.1)
    await stack.stop()
    results = await asyncio.gather(*consumers)

    for one, camera in zip(results, cameras, strict=True):
        assert [result.error is None for result in one] == [True] * (len(one) - 1) + [False]
        assert isinstance(one[-1].error, si.Closed)
        assert camera.closed == 1
    await settle()
    assert not others()
    assert add_up(session.statistics())


async def test_stop_of_service_completes_frames_in_flight(loop):
    """When the service stops, each of several frames in flight gets its outcome."""
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=1), ScriptedBackend(duration_s=0.1), clock=loop.clock)
    await stack.start()
    session = StreamSession(stack, max_in_flight=3)
    consumer = asyncio.ensure_future(collect(session(Camera(loop))))
    await asyncio.sleep(0.15)
    await stack.stop()
    results = await consumer

    errors = [result.error for result in results]
    assert errors[:3] == [None] * 3
    assert errors[3:]
    assert all(isinstance(error, si.Closed) for error in errors[3:])
    await settle()
    assert not others()
    assert add_up(session.statistics())


async def test_stopped_service_ends_stream_of_hung_source(loop):
    """A stopped service ends the stream of a source that hangs, also if an earlier frame has its outcome last."""
    hanging = asyncio.Event()

    async def source():
        yield 1.0
        yield 2.0
        await hanging.wait()

    async def answer(request):
        if request.inputs == 2.0:
            raise si.Closed("stopped")
        await asyncio.sleep(0.1)
        return request.inputs

    results = await collect(StreamSession(Service(answer), max_in_flight=2, clock=loop.clock)(source()))

    assert [type(result.error) for result in results] == [type(None), si.Closed]
    await settle()
    assert not others()


async def test_swallowed_cancellation_keeps_no_stream_open(loop):
    """A service that swallows a cancellation keeps no stream open."""

    async def answer(request):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)
        return request.inputs

    async with StreamSession(Service(answer), clock=loop.clock) as session:
        for name in ("a", "b"):
            session.add(Camera(loop), stream_id=name)
        consumer = asyncio.ensure_future(collect(session))
        await asyncio.sleep(0.13)
        async with asyncio.timeout(0.01):
            await session.remove("a")
        before = session.statistics().delivered
        await asyncio.sleep(0.2)
        assert session.statistics().delivered > before
    await consumer
    assert not others()


async def test_frame_rejected_until_too_old_is_dropped(loop):
    """A frame that is rejected until it is too old is dropped.

    This holds also if the service has no `admission` and only raises `Overloaded`.
    """

    async def answer(request):
        raise si.Overloaded("no place")

    service = Service(answer)
    session = StreamSession(service, max_age_s=0.1, clock=loop.clock)
    assert await collect(session(Camera(loop, 3))) == []
    assert session.statistics().dropped == {"deadline_exceeded": 3}
    assert len(service.requests) < 150


async def test_a_hard_stop_of_the_service_ends_the_streams(loop):
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(HANG), clock=loop.clock)
    await stack.start()
    consumer = asyncio.ensure_future(collect(StreamSession(stack, policy=LatestOnly())(Camera(loop))))
    await asyncio.sleep(0.1)
    await stack.stop(drain=False)
    (result,) = await consumer
    assert isinstance(result.error, si.Closed)


async def test_session_on_a_new_stack_ends_with_closed(loop):
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(), clock=loop.clock)
    (result,) = await collect(StreamSession(stack)(Camera(loop)))
    assert isinstance(result.error, si.Closed)


async def test_request_cancelled_by_service_fails_its_frame(loop):
    """A service that cancels its own request fails that frame and not the stream."""

    async def answer(request):
        if request.inputs == 1.0:
            raise asyncio.CancelledError
        return request.inputs

    results = await collect(StreamSession(Service(answer), clock=loop.clock)(Camera(loop, 3)))
    assert [type(result.error) for result in results] == [type(None), asyncio.CancelledError, type(None)]


async def test_an_error_of_the_admission_ends_the_stream(loop):
    service = Service(echo)
    service.admission = lambda request, now_ns: 1 / 0
    session = StreamSession(service, policy=LatestOnly(), clock=loop.clock)
    with pytest.raises(ZeroDivisionError):
        await collect(session(Camera(loop, 3)))
    assert session.statistics().dropped == {"closed": 1}
    await settle()
    assert not others()


async def test_admission_error_after_rejection_ends_stream(loop):
    """An `admission` that raises when it is called for the reason of a rejection ends the stream with its error.

    A second stream, whose frame ended at the same time, ends with its own error.
    """
    asked = []

    def admission(request, now_ns):
        asked.append(request.stream_id)
        return Admission(True) if asked.count(request.stream_id) == 1 else 1 / 0

    async def answer(request):
        raise si.Overloaded("no place")

    service = Service(answer)
    service.admission = admission
    session = StreamSession(service, policy=LatestOnly(), clock=loop.clock)
    for number in range(2):
        session.add(Camera(loop, 1), stream_id=number)
    results = await collect(session)

    assert [(type(result.error), result.source_failed) for result in results] == [(ZeroDivisionError, True)] * 2
    assert session.statistics().dropped == {"closed": 2}


def test_loop_shutdown_ends_the_streams():
    """The shutdown of an event loop ends its streams.

    The tasks that the runner cancels end, and the session works on another loop afterwards.
    """
    service = Service(echo)
    session = StreamSession(service)
    cameras = []

    async def first(loop):
        cameras.append(Camera(loop))
        session.add(cameras[0], stream_id="a")
        await asyncio.sleep(0.1)

    run(first)
    assert cameras[0].closed == 1

    async def second(loop):
        return [result.outputs async for result in session([1.0], stream_id="a")]

    assert run(second) == [1.0]
    assert add_up(session.statistics())


@pytest.mark.parametrize("end", ["aclose", "remove"])
def test_streams_of_closed_loop_can_be_closed(end):
    """Streams that a closed event loop left open can be closed from another loop."""

    async def hold(_request):
        await asyncio.Event().wait()

    async def open_stream():
        session.add(["frame"] * 3, stream_id="lost")
        await settle()
        return others()

    async def close():
        await (session.aclose() if end == "aclose" else session.remove("lost"))

    session = StreamSession(Service(hold))
    loop = asyncio.new_event_loop()
    tasks = loop.run_until_complete(open_stream())
    loop.close()
    asyncio.run(close())

    assert session.streams == ()
    statistics = session.statistics()
    assert (statistics.received, statistics.dropped) == (3, {"closed": 3})
    for task in tasks:  # the loop should have done this before it was closed
        task._log_destroy_pending = False
        with contextlib.suppress(RuntimeError):
            task.get_coro().close()


async def test_a_session_belongs_to_one_loop_at_a_time(loop):
    session = StreamSession(Service(echo))
    session.add(Camera(loop))

    async def other():
        session.add([1.0])

    with pytest.raises(RuntimeError, match="open streams on another event loop"):
        await _in_thread(other)
    await session.aclose()


async def _in_thread(function):
    """Run a coroutine function on an event loop in another thread, wait for the thread, and raise its error."""
    import threading

    outcome = []

    def work():
        try:
            asyncio.run(function())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if outcome:
        raise outcome[0]


async def test_a_session_that_is_forgotten_ends_its_streams(loop):
    async with stack_of(loop, ScriptedBackend(HANG)) as service:
        camera = Camera(loop)
        session = StreamSession(service)
        session.add(camera)
        await asyncio.sleep(0.05)
        del session
        gc.collect()
        await settle()
        assert camera.closed == 1
        assert not others()


class Stubborn:
    """Source that swallows its cancellation."""

    def __init__(self, loop):
        self.loop = loop

    async def __aiter__(self):
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1.0)
            yield 1.0


async def test_source_swallowing_cancellation_is_abandoned(loop):
    """A source that swallows its cancellation is abandoned, and the session closes."""
    async with StreamSession(Service(echo), clock=loop.clock) as session:
        session.add(Stubborn(loop))
        assert (await anext(session)).outputs == 1.0
    await settle()
    assert not others()
    assert add_up(session.statistics())


async def test_undeliverable_end_errors_reach_the_loop(loop):
    """Errors at the end of a stream that no consumer can get are passed to the loop's exception handler.

    Here the close of the source fails, and the model fails to end a state; the stream ends nevertheless.
    """

    class Failing(States):
        def end_stream(self, stream_id):
            raise ValueError("no such row")

    async def source():
        try:
            await asyncio.Event().wait()
            yield 1.0
        finally:
            raise OSError("the device is gone")

    told = []
    loop.set_exception_handler(lambda _, context: told.append((context["message"], str(context["exception"]))))
    session = StreamSession(Service(echo, Failing()), clock=loop.clock, stream_id="cam")
    async with session(source()):
        await settle()

    assert told == [
        ("stream 'cam': its source failed when it was closed", "the device is gone"),
        ("stream 'cam': the model could not end its state", "no such row"),
    ]
    assert session.streams == ()
    assert not others()


async def test_a_policy_that_fails_opens_no_stream(loop):
    class Broken:
        max_waiting, waits = 1, True

        def make_selector(self):
            raise ValueError("broken")

    session = StreamSession(Service(echo), policy=Broken(), clock=loop.clock)
    with pytest.raises(ValueError, match="broken"):
        session.add([1.0])
    await settle()
    assert not others()
    assert session.streams == ()


# -- recurrent models ------------------------------------------------------------------------------------------------


async def test_state_is_reset_at_discontinuity_and_ended(loop):
    """A state is reset at a discontinuity and ends with its stream.

    The reset comes after the frames before the discontinuity, and before the frame that has it.
    """
    states = States()

    async def answer(request):
        await asyncio.sleep(0.025)
        states.calls.append(request.inputs)
        return request.inputs

    session = StreamSession(Service(answer, states), max_in_flight=2, stream_id="mic", clock=loop.clock)
    await collect(session(Camera(loop, 5, discontinuities=(0, 3))))

    assert states.calls == [
        *[("reset", "mic"), 0.0, 1.0, 2.0],
        *[("reset", "mic"), 3.0, 4.0, ("end", "mic")],
    ]


async def test_a_reset_survives_the_drop_of_its_frame(loop):
    states = States()

    async def answer(request):
        await asyncio.sleep(0.035)
        states.calls.append(request.inputs)
        return request.inputs

    session = StreamSession(Service(answer, states), policy=LatestOnly(), stream_id=1, clock=loop.clock)
    await collect(session(Camera(loop, 6, discontinuities=(2,))))  # 0 is sent, then 3 instead of 2

    assert states.calls == [0.0, ("reset", 1), 3.0, 5.0, ("end", 1)]


async def test_sent_frame_resets_the_state_once(loop):
    """A sent frame resets the state once: if it fails, later frames continue from the frame that ran beside it."""
    states = States()

    async def answer(request):
        await asyncio.sleep(0.005)
        if request.inputs == 0.0:
            raise ValueError
        return request.inputs

    service = Service(answer, states)
    session = StreamSession(service, policy=LatestOnly(), max_in_flight=2, stream_id="mic", clock=loop.clock)
    results = await collect(session(Camera(loop, 5, 0.004, discontinuities=(0,))))

    assert [result.number for result in results if result.error is not None] == [0]
    assert states.calls == [("reset", "mic"), ("end", "mic")]


@pytest.mark.parametrize(("resets", "expected"), [(False, 0), (True, 4)])
async def test_gap_resets_only_with_resets_after_gap(loop, resets, expected):
    """Frames dropped as stale, and a failed frame, reset the state only with ``resets_after_gap``."""
    states = States()

    async def answer(request):
        await asyncio.sleep(0.035)
        if request.inputs == 3.0:
            raise ValueError
        return request.inputs

    service = Service(answer, states)
    session = StreamSession(service, policy=LatestOnly(), resets_after_gap=resets, clock=loop.clock)
    results = await collect(session(Camera(loop, 14)))

    assert [result.number for result in results] == [0, 3, 7, 10, 13]
    assert len([call for call in states.calls if call[0] == "reset"]) == expected


async def test_recurrent_model_gets_resent_frame_in_order(loop):
    """If the policy waits, a rejected frame is sent again, and no later frame overtakes it at a recurrent model."""
    states, rejections = States(), [si.Overloaded("full", retry_after_s=0.05)]

    async def answer(request):
        if rejections:
            raise rejections.pop()
        states.calls.append(request.inputs)
        return request.inputs

    session = StreamSession(Service(answer, states), max_in_flight=2, stream_id="mic", clock=loop.clock)
    await collect(session([0.0, 1.0, 2.0]))

    assert states.calls == [0.0, 1.0, 2.0, ("end", "mic")]


async def test_stream_without_a_place_delays_no_other(loop):
    """A stream without a place in the model delays no other stream.

    It is tried less and less often while other streams have all places, and runs when one of them has ended.
    """
    model = si.streams.StatefulBackend(recurrent(duration_s=0.01), state={"h": "h2"}, max_streams=1)
    batcher = si.AdaptiveBatcher(max_batch_size=1, max_in_flight=1)
    async with si.Stack(batcher, model, clock=loop.clock) as service:
        session = StreamSession(service, max_in_flight=3)

        async def source(frames):
            for number in range(frames):
                await asyncio.sleep(0.001)
                yield np.int64(number)

        session.add(source(50), stream_id="first")
        await asyncio.sleep(0.005)
        for number in range(4):
            session.add(source(3), stream_id=number)
        async with asyncio.timeout(30):
            results = [result async for result in session]

    assert [result.error for result in results] == [None] * 62
    assert model.statistics().rejected < 100


async def test_states_end_when_a_stream_is_closed(loop):
    states = States()

    async def answer(request):
        try:
            await asyncio.Event().wait()
        finally:
            states.calls.append("cancelled")

    async with StreamSession(Service(answer, states), clock=loop.clock) as session:
        session.add(Camera(loop), stream_id="a")
        await asyncio.sleep(0.05)
    assert states.calls == ["cancelled", ("end", "a")]

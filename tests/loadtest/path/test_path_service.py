"""A path under `run`: age at the viewer, stages, labels, CPU and accuracy in the report."""

import asyncio
from itertools import pairwise

import attrs
import numpy as np
import pytest

import streaminfer as si
from streaminfer.loadtest.devices import Delivery
from streaminfer.loadtest.path import MediaPath, NetworkProfile, PathService
from streaminfer.loadtest.runner import run as run_load
from streaminfer.streams.sources.formats import VideoFormat
from streaminfer.testing import ScriptedBackend, run

PICTURES = VideoFormat(size=(32, 24), pixel_format="gray")
NEAR, FAR = NetworkProfile(name="near", delay_s=0.01), NetworkProfile(name="far", delay_s=0.1, loss=0.2, retransmits=0)


class Brightness:
    """Service that responds to a picture at once."""

    def __init__(self):
        self.streams = set()

    async def call(self, request):
        self.streams.add(request.stream_id)
        return si.Response(float(request.inputs.mean()))


def report_of(scene, networks=(NEAR, FAR), *, service=None, seconds=3.0, score=None, seed=0):
    async def main(loop):
        paths = [
            MediaPath(scene, network, wanted=PICTURES, clock=loop.clock, start=number, seed=number)
            for number, network in enumerate(networks)
        ]
        async with PathService(service or Brightness(), paths, score=score, seed=seed) as over:
            due_s = over.schedule(seconds)
            return await run_load(
                over, arrivals=due_s, inputs=over.samples, duration_s=seconds, slo_s=0.05, drain_s=1.0
            )

    return run(main)


def test_latency_is_the_age_at_the_viewer(camera_scene):
    report = report_of(camera_scene(codec="mjpeg"))
    near, far = {tail.name: tail for tail in report.by_label("network")}["near"], report.means("network")["far"]

    assert near.quantiles_s["p50"] == pytest.approx(0.01, abs=1e-3)
    assert {tail.name for tail in report.by_stage()} == {"capture", "encode", "uplink", "decode", "service"}
    assert {"encode_cpu_s", "decode_cpu_s", "prepare_cpu_s", "bytes"} == set(far)
    assert report.outcomes["LostInNetwork"] > 0


def test_devices_take_turns(camera_scene):
    """Two cameras with 24 pictures per second send 48 evenly spaced requests per second."""
    report = report_of(camera_scene(), (NEAR, NEAR))

    assert report.requests == 3 * 48
    assert np.allclose(np.diff(report.record.due_s), 1 / 48, atol=1e-6)


def test_frames_that_a_device_loses_are_no_requests(camera_scene):
    scene = camera_scene(delivery=Delivery(loss=0.5))

    assert 72 * 0.25 < report_of(scene, (NEAR,)).requests < 72 * 0.75


def test_jitter_of_a_device_is_a_stage(camera_scene):
    report = report_of(camera_scene(delivery=Delivery(jitter_s=0.01)), (NEAR,))
    stages = {tail.name: tail.quantiles_s for tail in report.by_stage()}

    assert 0.005 < stages["capture"]["p50"] < 0.02


def test_report_has_accuracy_of_direct_evaluation(camera_scene):
    """The report has the same accuracy as a direct evaluation of the same outputs."""
    scene = camera_scene(codec="mjpeg")
    direct = {}

    def score(outputs, position_s):
        direct[round(position_s * 24)] = outputs > 80.0
        return float(outputs > 80.0)

    report = report_of(scene, (NEAR,), score=score)

    assert report.means("device")["camera"]["accuracy"] == np.mean(list(direct.values()))


def test_measurements_of_a_service_are_in_the_report(camera_scene):
    """Stages, values and labels of the service are beside those of the path; the score gets the outputs only."""

    async def service(picture):
        brightness = float(picture.mean())
        return si.loadtest.Measured(
            brightness, stages_s={"resize": 0.25}, values={"faces": 2.0}, labels={"model": "small"}
        )

    scored = []
    report = report_of(camera_scene(), (NEAR,), service=service, score=lambda *it: scored.append(it) or 1.0)

    assert {tail.name: tail.quantiles_s["p50"] for tail in report.by_stage()}["resize"] == pytest.approx(0.25, rel=0.01)
    assert report.means("model")["small"]["faces"] == 2.0
    assert report.means("network")["near"]["bytes"] > 0
    assert all(isinstance(outputs, float) for outputs, _ in scored)


def test_streams_have_their_path_as_id(camera_scene):
    service = Brightness()
    report_of(camera_scene(), (NEAR, NEAR), service=service)

    assert len(service.streams) == 2


def test_stack_responds_within_the_path(camera_scene):
    """A stack that serves several devices in shared batches responds once to each frame, with its own outputs."""
    scene, backend, frames = camera_scene(codec="raw"), ScriptedBackend(duration_s=0.03), []
    starts = {0, 5, 10}

    def score(outputs, position_s):
        number = round(position_s * 24)
        for start in starts:
            frame = scene.frame(start + number).reformat(*PICTURES.size, "gray", interpolation="AREA").to_ndarray()
            if np.array_equal(np.squeeze(outputs), frame):
                frames.append((start, number))
        return 1.0

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=4, slo_s=0.1)
        async with si.Stack(batcher, backend, clock=loop.clock) as stack:
            paths = [MediaPath(scene, NEAR, wanted=PICTURES, clock=loop.clock, start=start) for start in starts]
            async with PathService(stack, paths, score=score) as over:
                due_s = over.schedule(0.5)
                return await run_load(over, arrivals=due_s, inputs=over.samples, duration_s=0.5, slo_s=0.1)

    assert run(main).outcomes == {"ok": 36}
    assert sorted(frames) == [(start, number) for start in sorted(starts) for number in range(12)]
    assert max(backend.batch_sizes) > 1


def test_frame_needs_no_task(camera_scene):
    """Neither the path nor its stack creates a task for a frame; a service that is awaited has one task per frame."""

    async def main(loop, service):
        made = []

        def factory(loop, coroutine, **settings):
            made.append(coroutine)
            return asyncio.Task(coroutine, loop=loop, **settings)

        stack = si.Stack(
            si.AdaptiveBatcher(max_batch_size=4), si.CpuBackend(lambda batch: batch.mean((1, 2)), executor="inline")
        )
        async with stack, PathService(service or stack, [path(loop, camera_scene())]) as over:
            due_s = over.schedule(0.5)
            loop.set_task_factory(factory)
            report = await run_load(over, arrivals=due_s, inputs=over.samples, duration_s=0.5, slo_s=0.1)
            loop.set_task_factory(None)
        return report.outcomes, len(made)

    assert run(lambda loop: main(loop, None)) == ({"ok": 12}, 0)
    assert run(lambda loop: main(loop, brightness)) == ({"ok": 12}, 12)


async def brightness(picture):
    return float(picture.mean())


def path(loop, scene):
    return MediaPath(scene, NEAR, wanted=PICTURES, clock=loop.clock)


async def frame_call(loop, scene, service, **settings):
    """Return a path service, and a task that sends its first frame."""
    over = PathService(service, [path(loop, scene)], clock=loop.clock, **settings)
    over.schedule(0.1)
    return over, asyncio.create_task(over.call(si.Request(over.samples[0].inputs)))


def test_awaited_call_returns_one_frame(camera_scene):
    """An awaited call returns the outputs, stages and values of one frame."""

    async def main(loop):
        over, call = await frame_call(loop, camera_scene(), brightness, score=lambda _answer, _position_s: 0.5)
        async with over:
            return (await call).outputs

    measured = run(main)

    assert len(measured.outputs) == 1
    assert measured.values["accuracy"] == 0.5
    assert list(measured.stages_s) == ["capture", "encode", "uplink", "decode", "service"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [(ValueError("no such position"), ValueError), (StopIteration("no such position"), RuntimeError)],
    ids=["error", "iterator that is over"],
)
def test_error_of_the_score_fails_the_frame(camera_scene, error, raised):
    """An error of the score fails the frame with that error; `StopIteration` becomes a `RuntimeError`."""

    def score(_answer, _position_s):
        raise error

    async def main(loop):
        over, call = await frame_call(loop, camera_scene(), brightness, score=score)
        async with over:
            await call

    with pytest.raises(raised, match="no such position"):
        run(main)


@pytest.mark.parametrize("said", [None, "good", np.ones(1)], ids=["nothing", "text", "array"])
def test_score_that_is_no_number_fails_the_frame(camera_scene, said):
    """A score that is no number fails its frame at once."""

    async def main(loop):
        over, call = await frame_call(loop, camera_scene(), brightness, score=lambda _answer, _position_s: said)
        async with over:
            await call

    with pytest.raises(TypeError, match="score: expected a function that returns a number, got"):
        run(main)


@pytest.mark.parametrize("error", [ValueError("broken"), asyncio.CancelledError()], ids=["error", "cancels itself"])
def test_error_of_the_service_fails_the_frame(camera_scene, error):
    async def broken(_picture):
        raise error

    async def main(loop):
        over, call = await frame_call(loop, camera_scene(), broken)
        async with over:
            await call

    with pytest.raises(type(error)):
        run(main)


@pytest.mark.parametrize("after_s", [0.005, 0.015], ids=["on its way", "at the service"])
def test_cancelled_frame_cancels_the_service_call(camera_scene, after_s):
    """A cancelled frame ends at once, its service call is cancelled, and the next frame gets a response."""
    events = []

    async def slow(picture):
        events.append("begun")
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            events.append("cancelled")
            raise
        return picture.mean()

    async def main(loop):
        over, call = await frame_call(loop, camera_scene(codec="raw"), slow)
        async with over:
            await asyncio.sleep(after_s)
            call.cancel()
            await asyncio.wait([call])
            await asyncio.sleep(0.02)
            later = await over.call(si.Request(over.samples[1].inputs))
        return call.cancelled(), len(later.outputs.outputs)

    assert run(main) == (True, 1)
    assert events == (["begun"] if after_s < 0.01 else ["begun", "cancelled", "begun"])


def test_runs_repeat_by_seed(camera_scene):
    scene = camera_scene(delivery=Delivery(jitter_s=0.005, loss=0.1))
    first, again, other = (report_of(scene, seed=seed).latencies_s for seed in (1, 1, 2))

    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_frames_arrive_in_capture_order(camera_scene):
    class Order:
        def __init__(self):
            self.seen = []

        async def call(self, request):
            self.seen.append(request.inputs.mean())
            return si.Response(None)

    order = Order()
    report_of(camera_scene(codec="raw"), (attrs.evolve(NEAR, jitter_s=0.05),), service=order, seconds=0.9)
    scene = camera_scene(codec="raw")
    expected = [
        scene.frame(number).reformat(32, 24, "gray", interpolation="AREA").to_ndarray().mean()
        for number in range(len(order.seen))
    ]

    assert order.seen == expected
    assert all(before != after for before, after in pairwise(expected))


@pytest.mark.parametrize("raised", [RuntimeError("it does not end"), asyncio.CancelledError()])
def test_every_path_is_closed(camera_scene, raised):
    """Every path is closed, even if closing an earlier path fails or is cancelled."""
    closed = []

    class Path(MediaPath):
        async def aclose(self):
            closed.append(self)
            await super().aclose()
            if self is closed[0]:
                raise raised

    async def main(loop):
        paths = [Path(camera_scene(), NEAR, wanted=PICTURES, clock=loop.clock) for _ in range(3)]
        with pytest.raises(type(raised)):
            async with PathService(Brightness(), paths):
                pass
        assert closed == paths

    run(main)


def test_service_that_cannot_be_called_is_rejected(camera_scene):
    with pytest.raises(TypeError, match="service: expected"):
        PathService(object(), [])


def test_endless_schedule_is_rejected(camera_scene):
    """A schedule of more seconds than fit 64 bits of nanoseconds is an error that names the argument."""
    service = PathService(Brightness(), [MediaPath(camera_scene(), NEAR, wanted=PICTURES)])

    with pytest.raises(ValueError, match="duration_s: expected seconds > 0 and ≤ 1,000,000,000"):
        service.schedule(1e300)


def test_at_least_one_path_is_required():
    with pytest.raises(ValueError, match="paths: expected"):
        PathService(Brightness(), [])

"""A device over WebRTC: exact instants of capture, also after losses, and no task or thread left at the end."""

import asyncio
import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import streaminfer as si
from streaminfer.loadtest.devices import MicrophoneProfile
from streaminfer.loadtest.devices.delivery import Capture, Delivery
from streaminfer.loadtest.path import (
    DeviceGroup,
    Link,
    NetworkProfile,
    PathService,
    WebRtcLeg,
    WebRtcPath,
    run_devices,
)

DELAY_S = 0.02
SPEECH = Path(__file__).parents[4] / "examples" / "assets" / "librivox_0870.wav"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of aiortc's own dependencies


def receive(scene, network, **wanted):
    """Return the age and instant of capture of each frame of a second, the leg, and the number of tasks left."""

    async def main():
        async with WebRtcLeg(scene, network, seconds=1.0, seed=3) as leg:
            frames = [
                ((time.monotonic_ns() - frame.captured_ns) / 1e9, frame.captured_ns)
                async for frame in leg.frames(**wanted)
            ]
        return frames, leg, len(asyncio.all_tasks())

    return asyncio.run(main())


@pytest.fixture
def patient(monkeypatch):
    """Let frames that the processes of a busy machine delay by seconds not count as lost."""
    monkeypatch.setattr("streaminfer.loadtest.path.webrtc.webrtc_path.LOST_S", 20.0)


def test_a_leg_begins_when_both_ends_are_connected(camera_scene):
    """Entering a leg waits for the connection; earlier frames would queue during the set-up and arrive together."""

    async def main():
        async with WebRtcLeg(camera_scene(codec="vp8"), NetworkProfile(name="n", delay_s=DELAY_S), seconds=1.0) as leg:
            return leg._sender.connectionState, leg._receiver.connectionState

    assert asyncio.run(main()) == ("connected", "connected")


@pytest.mark.parametrize("state", ["failed", "closed"])
def test_a_leg_that_cannot_connect_ends(camera_scene, monkeypatch, state):
    """A leg whose connection is failed or closed raises an error and leaves no task.

    The test sets the state, which aiortc derives from ICE and DTLS, because the leg's transport does not get that far.
    """

    async def main():
        leg = WebRtcLeg(camera_scene(codec="vp8"), NetworkProfile(name="n"), seconds=1.0)
        monkeypatch.setattr(leg._aiortc.RTCPeerConnection, "connectionState", state)
        with pytest.raises(OSError, match=f"WebRTC: expected a connection, got one that is {state}"):
            await leg.__aenter__()
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(main()) == set()


def test_pictures_are_as_old_as_the_network_is_long(camera_scene):
    frames, leg, tasks = receive(
        camera_scene(codec="vp8"), NetworkProfile(name="n", delay_s=DELAY_S), pixel_format="gray"
    )

    assert len(frames) > 12
    assert all(age_s >= DELAY_S for age_s, _ in frames)
    assert all(round((captured_ns - leg._start_ns) / 1e9 * 24, 1) % 1 == 0 for _, captured_ns in frames)
    assert leg.relay.lost == 0
    assert tasks == 1


def test_pictures_arrive_over_a_slow_network(camera_scene):
    """The stream ends after its last picture, even if that arrives long after the device has ended."""

    async def main():
        async with WebRtcLeg(camera_scene(codec="vp8"), NetworkProfile(name="n"), seconds=0.2) as leg:
            far = NetworkProfile(name="far", delay_s=0.9)  # only after the set-up, which would take long over it
            leg.relay._links = (Link(far), Link(far))
            return [frame.captured_ns - leg._start_ns async for frame in leg.frames(pixel_format="gray")]

    assert asyncio.run(main())[-1] == pytest.approx(4 / 24 * 1e9, abs=1e6)


def test_loss_does_not_shift_the_instants_of_capture(camera_scene):
    network = NetworkProfile(name="n", delay_s=DELAY_S, loss=0.1)
    frames, leg, tasks = receive(camera_scene(codec="vp8"), network, pixel_format="gray")

    assert leg.relay.lost > 0
    assert all(age_s >= DELAY_S for age_s, _ in frames)
    assert tasks == 1


def test_sound_arrives_in_chunks(microphone_scene):
    frames, _, tasks = receive(microphone_scene(codec="opus"), NetworkProfile(name="n", delay_s=DELAY_S))

    assert len(frames) > 15
    assert all(age_s >= DELAY_S for age_s, _ in frames)
    assert tasks == 1


def test_codec_must_be_one_of_webrtc(camera_scene):
    with pytest.raises(ValueError, match="scene: expected a device whose codec"):
        WebRtcLeg(camera_scene(codec="mjpeg"), "wifi", seconds=1.0)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "1", True])
def test_seconds_of_a_leg_are_checked(camera_scene, seconds):
    with pytest.raises((TypeError, ValueError), match="seconds: expected a finite number of seconds > 0"):
        WebRtcLeg(camera_scene(codec="vp8"), "wifi", seconds=seconds)


def test_leg_of_any_duration_is_accepted(camera_scene):
    WebRtcLeg(camera_scene(codec="vp8"), "wifi", seconds=1e300)


def test_frames_are_planned_as_they_are_played(camera_scene, monkeypatch):
    """A leg plans a frame when its track reads it; the track ends after the last frame, however often it is read."""
    planned = []

    def plan(_delivery, _period_s, _seed):
        for number in itertools.count():
            planned.append(number)
            yield Capture(number, number, None if number == 0 else number)

    monkeypatch.setattr("streaminfer.loadtest.path.webrtc.webrtc_leg.captures", plan)

    async def main():
        scene = camera_scene(codec="vp8")
        leg = WebRtcLeg(scene, "wifi", seconds=3 * scene.profile.period_s)
        assert planned == []
        return [await asyncio.wait_for(leg._next_frame_time(), 1.0) for _ in range(4)]

    assert asyncio.run(main()) == [(1, 1, 1), (2, 2, 2), None, None]


class Shape:
    async def call(self, request):
        return si.Response(request.inputs.shape)


@pytest.mark.usefixtures("patient")
def test_load_test_has_the_stages_of_each_picture(camera_scene):
    """The stages of a picture add up to no more than its age; lost pictures fail, and no task is left."""
    network = NetworkProfile(name="far", delay_s=DELAY_S, loss=0.02)

    async def main():
        path = WebRtcPath(camera_scene(codec="vp8"), network, seed=3, size=(32, 24), pixel_format="gray")
        async with path, PathService(Shape(), [path]) as service:
            report = await si.loadtest.run(
                service, arrivals=service.schedule(1.0), inputs=service.samples, duration_s=1.0, slo_s=1.0
            )
        return report, len(asyncio.all_tasks())

    report, tasks = asyncio.run(main())
    record = report.record
    answered = record.outcome == "ok"

    assert tasks == 1
    assert set(report.outcomes) <= {"ok", "LostInNetwork"}
    assert answered.sum() > 12
    assert list(record.stages) == ["capture", "encode", "uplink", "decode", "service"]
    assert (record.stages["uplink"][answered] >= DELAY_S).all()
    assert (sum(record.stages.values())[answered] <= record.latency_s[answered]).all()
    assert report.by_label("network")[0].name == "far"


@pytest.mark.parametrize(
    ("device", "chunk"),
    [
        ({}, 512),
        ({}, 160),
        ({"frame_s": 0.0025}, 512),
        ({"frame_s": 0.06}, 512),
        ({"delivery": Delivery(loss=0.2)}, 512),
    ],
    ids=["usual", "two chunks in a frame", "eight frames in a packet", "three packets in a frame", "lossy device"],
)
@pytest.mark.usefixtures("patient")
def test_sound_that_arrives_is_not_lost(device, chunk):
    """Each frame gets a response and the service gets every chunk, whatever the lengths of frames and chunks."""
    group = DeviceGroup(
        source=SPEECH,
        device=MicrophoneProfile(name="headset", codec="opus", **device),
        network=NetworkProfile(name="far", delay_s=DELAY_S),
        transport="webrtc",
        seconds=0.6,
        chunk=chunk,
    )
    served = []

    async def serve(inputs):
        served.append(inputs.shape)

    report = asyncio.run(run_devices(serve, [group], duration_s=0.6, slo_s=1.0, seed=4))

    assert set(report.outcomes) == {"ok"}
    assert (report.record.stages["uplink"] >= DELAY_S).all()
    assert served == [(chunk,)] * ((9_600 - 32) // chunk)  # the resampler holds back a few samples


def test_late_first_frame_of_sound_shifts_no_other(microphone_scene):
    """If a busy loop sends the first frame late, each frame still has its own packet, because RTP counts samples."""

    async def main():
        network = NetworkProfile(name="far", delay_s=DELAY_S)
        path = WebRtcPath(microphone_scene(codec="opus"), network)
        async with path:
            due_ns = [path.clock() + ms * 1_000_000 for ms in (15, *range(20, 200, 20))]
            return await asyncio.gather(*[path.send(at_ns) for at_ns in due_ns])

    transfers = asyncio.run(main())

    assert [it.lost for it in transfers] == [None] * 10
    assert all(it.stages_s["uplink"] >= DELAY_S for it in transfers)


@pytest.mark.parametrize(("skew_ppm", "pause_s"), [(0.0, 30.0), (-50_000.0, 0.0)], ids=["a pause", "a slow clock"])
def test_instants_of_capture_follow_the_device(microphone_scene, skew_ppm, pause_s):
    """Neither the rest of a device between two runs nor its slow clock counts as time before the encoder."""
    scene = microphone_scene(codec="opus", delivery=Delivery(skew_ppm=skew_ppm))
    path = WebRtcPath(scene, NetworkProfile(name="n"))
    period_s = scene.profile.period_s / (1 + skew_ppm / 1e6)
    given_ns = [round((1 + number * period_s + (pause_s if number >= 50 else 0)) * 1e9) for number in range(100)]

    captured_ns = [path._paced_ns(number, at_ns) for number, at_ns in enumerate(given_ns)]

    assert captured_ns == pytest.approx(given_ns, abs=1_000)


@pytest.mark.usefixtures("patient")
def test_devices_speak_over_webrtc():
    """A frame that completes a chunk sends it to the service, prepared; other frames complete without a chunk."""
    headset = MicrophoneProfile(name="headset", codec="opus", sample_rate=48_000)
    network = NetworkProfile(name="far", delay_s=DELAY_S, loss=0.05)
    sizes = []

    class Sizes:
        async def call(self, request):
            sizes.append(request.inputs)
            return si.Response(None)

    group = DeviceGroup(
        source=SPEECH, device=headset, network=network, transport="webrtc", seconds=1.0, count=2, prepare=np.size
    )
    report = asyncio.run(run_devices(Sizes(), [group], duration_s=1.0, slo_s=1.0, seed=4))
    record = report.record
    answered = record.outcome == "ok"
    with_chunk = answered & ~np.isnan(record.stages["service"])

    assert set(report.outcomes) == {"ok", "LostInNetwork"}
    assert set(sizes) == {512}
    assert with_chunk.sum() <= len(sizes)  # a frame after a lost one may complete two
    assert with_chunk.sum() / answered.sum() == pytest.approx(0.02 / 0.032, abs=0.1)
    assert (record.stages["uplink"][answered] >= DELAY_S).all()
    assert {tail.name for tail in report.by_label("device")} == {"headset"}


def test_frames_that_a_busy_loop_sends_at_once_all_end(camera_scene):
    """Frames that a busy loop sends at once have the instants of the device, so that none replaces another."""

    async def main():
        path = WebRtcPath(camera_scene(codec="vp8"), NetworkProfile(name="n"), pixel_format="gray")
        async with path:
            now_ns = path.clock()
            sent = [path.send(now_ns) for _ in range(4)]
            return await asyncio.gather(*sent)

    transfers = asyncio.run(main())

    steps_ms = np.diff([it.captured_ns for it in transfers]) / 1e6
    assert (steps_ms >= 1).all()
    assert any(it.frames for it in transfers)


@pytest.mark.parametrize(
    ("wanted", "error"), [({"size": (0, 24)}, ValueError), ({"chunk": 512}, TypeError), ({"sizes": (8, 8)}, TypeError)]
)
def test_unusable_format_is_named_when_path_is_made(camera_scene, wanted, error):
    """A format that no model can take is named when the path is made.

    Otherwise each frame would fail with `Closed`, and the report would not say why.
    """
    with pytest.raises(error, match=next(iter(wanted))):
        WebRtcPath(camera_scene(codec="vp8"), "wifi", **wanted)


def test_error_of_prepare_fails_one_picture(camera_scene):
    def prepare(picture):
        raise ZeroDivisionError

    async def main():
        path = WebRtcPath(camera_scene(codec="vp8"), NetworkProfile(name="n"), prepare=prepare, pixel_format="gray")
        async with path:
            sent = [path.send(path.clock())]
            await asyncio.sleep(path.scene.profile.period_s)
            sent.append(path.send(path.clock()))
            return await asyncio.gather(*sent, return_exceptions=True)

    assert ZeroDivisionError in {type(it) for it in asyncio.run(main())}


def test_error_of_the_receiver_ends_the_path(camera_scene, monkeypatch):
    """An error of the receiver fails the frames in flight, and is the cause of the `Closed` of later frames."""

    async def broken(self, **wanted):
        yield await asyncio.get_running_loop().run_in_executor(None, fail)

    def fail():
        raise ZeroDivisionError

    async def main():
        monkeypatch.setattr(WebRtcLeg, "frames", broken)
        async with WebRtcPath(camera_scene(codec="vp8"), NetworkProfile(name="n")) as path:
            with pytest.raises(ZeroDivisionError):
                await path.send(path.clock())
            with pytest.raises(si.errors.Closed) as caught:
                path.send(path.clock())
            return caught.value.__cause__

    assert isinstance(asyncio.run(main()), ZeroDivisionError)


@pytest.mark.parametrize("rounds", [1, 8, 11])
def test_close_that_is_cancelled_ends_all_the_same(camera_scene, rounds):
    """A cancelled close still ends the peers; otherwise each peer would keep a thread, and thus the process."""

    async def main():
        path = await WebRtcPath(camera_scene(codec="vp8"), NetworkProfile(name="n")).__aenter__()
        closing = asyncio.create_task(path.aclose())
        for _ in range(rounds):
            await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await path.aclose()  # again
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(main()) == set()
    assert not [thread for thread in threading.enumerate() if "decoder" in thread.name]

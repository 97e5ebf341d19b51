"""Frames from device to decoder in virtual time: the link's delay is exact, and each frame completes once."""

import asyncio
import itertools
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import streaminfer as si
from streaminfer.loadtest.devices import CameraProfile
from streaminfer.loadtest.path import CodecThread, DelayTrace, MediaPath, NetworkProfile, Scene, Transfer
from streaminfer.loadtest.path.codec import Codecs
from streaminfer.streams.sources.formats import AudioFormat, VideoFormat
from streaminfer.testing import run

ASSETS = Path(__file__).parents[3] / "examples" / "assets"
PICTURES = VideoFormat(size=(32, 24), pixel_format="gray")
PERFECT = NetworkProfile(name="perfect", delay_s=0.05)
MS = 1_000_000


def play(scene, network=PERFECT, *, frames=24, wanted=PICTURES, **options):
    """Send frames in virtual time, and return their transfers."""

    async def main(loop):
        async with MediaPath(scene, network, wanted=wanted, clock=loop.clock, **options) as path:
            sent = []
            for _ in range(frames):
                sent.append(path.send(loop.clock()))
                await asyncio.sleep(scene.profile.period_s)
            return await asyncio.gather(*sent)

    return run(main)


@pytest.mark.parametrize("codec", ["h264", "vp8", "vp9", "mjpeg", "raw"])
def test_picture_comes_through_each_codec(camera_scene, codec):
    transfers = play(camera_scene(codec=codec))
    received = np.array([it.frames[0].inputs for it in transfers], float)
    original = np.array(
        [
            camera_scene(codec="raw").frame(number).reformat(32, 24, "gray", interpolation="AREA").to_ndarray()
            for number in range(24)
        ],
        float,
    )

    assert [it.lost for it in transfers] == [None] * 24
    assert np.abs(received - original).mean() < (1 if codec == "raw" else 12)
    assert all(it.stages_s["uplink"] == pytest.approx(0.05) for it in transfers)
    assert [it.frames[0].captured_ns for it in transfers] == [it.captured_ns for it in transfers]


@pytest.mark.parametrize(
    "options",
    [{"codec": "opus"}, {"codec": "aac"}, {"codec": "pcm", "sample_rate": 16_000}],
    ids=lambda it: it["codec"],
)
def test_sound_comes_through_each_codec(microphone_scene, options):
    scene = microphone_scene(**options)
    transfers = play(scene, frames=60, wanted=AudioFormat(sample_rate=16_000, chunk=512))
    chunks = [frame for it in transfers for frame in it.frames]

    assert len(chunks) == pytest.approx(60 * scene.profile.period_s / 0.032, abs=2)
    assert all(chunk.inputs.shape == (512,) for chunk in chunks)
    assert max(np.abs(chunk.inputs).max() for chunk in chunks) > 0.02
    assert not any(chunk.discontinuity for chunk in chunks)


def test_runs_repeat_by_seed(camera_scene):
    network = NetworkProfile(name="bad", delay_s=0.02, jitter_s=0.01, loss=0.05)

    def stages(seed):
        return [(it.lost, it.stages_s) for it in play(camera_scene(), network, seed=seed)]

    assert stages(1) == stages(1)
    assert stages(1) != stages(2)


@pytest.mark.parametrize("codec", ["h264", "vp8", "vp9", "mjpeg"])
def test_encoder_output_does_not_depend_on_load(codec):
    """An encoder makes the same units twice: if its effort followed the clock, pictures and accuracies would vary."""
    camera = CameraProfile(name="c", width=640, height=480, rate=24.0, codec=codec, bitrate=500_000)
    scene = Scene(ASSETS / "astronaut_pan.mp4", camera, seconds=1.0)

    def units():
        codecs = Codecs(scene, VideoFormat(), None)
        return [codecs.encode(Transfer(0), number, number, key=False).data for number in range(len(scene))]

    assert units() == units()


def test_lost_unit_is_followed_by_a_key_frame(camera_scene):
    """The receiver ignores the units after a lost one until the key frame that it requested."""
    network = NetworkProfile(name="bad", delay_s=0.05, loss=0.1, retransmits=0)
    transfers = play(camera_scene(key_interval_s=60.0), network, frames=200, seed=4)
    lost = [it.lost for it in transfers]

    assert {"network", "undecodable", None} == set(lost)
    for before, after in itertools.pairwise(transfers):
        if before.lost == "network" and after.lost is None:  # the requested key frame
            assert after.size > 2 * np.median([it.size for it in transfers])
        if before.lost is not None and after.lost is None:
            assert after.frames[0].discontinuity
    assert sum(it is None for it in lost) > 100


def test_key_frame_request_takes_the_delay_of_a_trace(camera_scene):
    """A trace with one constant delay loses the same frames as a network with that delay."""
    steady = DelayTrace([0.0, 1.0], [0.05, 0.05])

    def lost(**delay):
        network = NetworkProfile(name="bad", loss=0.1, retransmits=0, **delay)
        return [it.lost for it in play(camera_scene(key_interval_s=60.0), network, frames=200, seed=4)]

    assert lost(trace=steady) == lost(delay_s=0.05)


def test_loss_behind_a_queue_is_noticed_behind_it(camera_scene):
    """The receiver requests a key frame only after the first frame left the queue: the lost unit waits behind it."""
    network = NetworkProfile(name="bad", rate=100_000, delay_s=0.05, loss=0.1, queue_s=60.0, retransmits=0)
    scene = camera_scene(key_interval_s=60.0)

    transfers = play(scene, network, frames=50, seed=3)

    lost = [it.lost for it in transfers]
    first = lost.index("network")
    again = lost.index(None, first)
    assert 0 < first < 10
    assert again * scene.profile.period_s > transfers[0].size * 8 / network.rate + 2 * network.delay_s


def test_overloaded_network_loses_sound(microphone_scene):
    """PCM of 256 kbit/s over a lossless 50 kbit/s network: at most the rate and the queue arrive."""
    network = NetworkProfile(name="narrow", rate=50_000, queue_s=0.5)
    scene = microphone_scene(codec="pcm", sample_rate=16_000)

    transfers = play(scene, network, frames=100, wanted=AudioFormat())

    duration_s = 100 * scene.profile.period_s
    arrived = sum(it.size for it in transfers if it.lost is None)
    assert {it.lost for it in transfers} == {None, "network"}
    assert arrived * 8 <= network.rate * (duration_s + network.queue_s)


def test_intra_only_pictures_survive_a_loss(camera_scene):
    network = NetworkProfile(name="bad", loss=0.1, retransmits=0)
    lost = Counter(it.lost for it in play(camera_scene(codec="mjpeg"), network, frames=100))

    assert set(lost) == {None, "network"}


def test_lost_sound_becomes_silence(microphone_scene):
    network = NetworkProfile(name="bad", loss=0.1, retransmits=0)
    scene = microphone_scene(codec="pcm", sample_rate=16_000)
    transfers = play(scene, network, frames=100, wanted=AudioFormat(), seed=5)
    chunks = [frame for it in transfers for frame in it.frames]

    assert any(it.lost == "network" for it in transfers)
    assert len(chunks) == pytest.approx(100 * 0.02 / 0.032, abs=2)  # none is missing
    assert not any(chunk.discontinuity for chunk in chunks)


class Held:
    """Codec thread that runs a job only when the test calls ``run_next``."""

    def __init__(self):
        self.jobs = []

    def submit(self, job, argument):
        self.jobs.append((job, argument))

    def run_next(self):
        job, argument = self.jobs.pop(0)
        job(argument)


def test_encoder_that_is_behind_drops_frames(camera_scene):
    """If one frame is in the encoder and four wait, the encoder drops the next frame."""

    async def main(loop):
        held = Held()
        async with MediaPath(camera_scene(), PERFECT, wanted=PICTURES, clock=loop.clock, thread=held) as path:
            sent = [path.send(loop.clock()) for _ in range(6)]
            while held.jobs:
                held.run_next()
                await asyncio.sleep(0.001)
            await asyncio.wait(sent)
            return [each.result().lost for each in sent]

    assert run(main) == [None] * 5 + ["encoder"]


def test_frames_in_slow_device_do_not_wait_for_encoder(camera_scene):
    """Frames that a slow device delays do not count as waiting for the encoder."""

    async def main(loop):
        async with MediaPath(camera_scene(), PERFECT, wanted=PICTURES, clock=loop.clock) as path:
            return await asyncio.gather(*(path.send(loop.clock(), loop.clock() + 10 * MS) for _ in range(12)))

    assert [it.lost for it in run(main)] == [None] * 12


def test_close_waits_for_the_jobs_of_the_thread(camera_scene):
    """Closing a path fails the frames in flight with `Closed` at once, and waits until no job uses the codecs."""
    used = []

    async def main(loop):
        held = Held()
        path = MediaPath(camera_scene(), PERFECT, wanted=PICTURES, clock=loop.clock, thread=held, prepare=used.append)
        sent = [path.send(loop.clock()) for _ in range(3)]
        closing = asyncio.create_task(path.aclose())
        await asyncio.sleep(0)
        ended = [type(each.exception()) for each in sent], closing.done()
        while held.jobs:
            held.run_next()
        await closing
        return ended, used

    assert run(main) == (([si.Closed] * 3, False), [])


@pytest.mark.skipif(sys.platform != "linux", reason="timers have files on Linux only")
def test_a_close_that_is_cancelled_leaves_no_timer(camera_scene):
    """A cancelled close does not wait for the jobs of the thread, but the timer is closed after them."""

    async def main():
        held = Held()
        path = MediaPath(camera_scene(), PERFECT, wanted=PICTURES, thread=held)
        before = len(list(Path("/proc/self/fd").iterdir()))
        sent = path.send(path.clock())
        closing = asyncio.create_task(path.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        while held.jobs:
            held.run_next()
        await asyncio.sleep(0)
        return closing.cancelled(), type(sent.exception()), len(list(Path("/proc/self/fd").iterdir())) - before

    assert asyncio.run(main()) == (True, si.Closed, 0)


def test_cancelled_close_does_not_end_the_thread(camera_scene):
    """After a cancelled close, the remaining jobs raise no error in the thread, although their loop may be closed."""
    held = Held()

    async def main():
        path = MediaPath(camera_scene(), PERFECT, wanted=PICTURES, thread=held)
        sent = path.send(path.clock())
        closing = asyncio.create_task(path.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing, sent])

    asyncio.run(main())
    while held.jobs:
        held.run_next()  # it must not raise


def test_arrivals_during_close_do_not_reach_the_edge(camera_scene):
    """A frame that arrives while the path closes is not carried by the edge.

    The frame's caller already has `Closed`, and the close would wait for the edge.
    """
    carried = []

    class Edge:
        async def carry(self, _path, number, _data):
            carried.append(number)
            await asyncio.Event().wait()

    async def main(loop):
        held, options = Held(), {"wanted": PICTURES, "clock": loop.clock, "edge": Edge()}
        path = MediaPath(camera_scene(), PERFECT, thread=held, **options)
        sent = [path.send(loop.clock()) for _ in range(2)]
        held.run_next()
        closing = asyncio.create_task(path.aclose())
        await asyncio.sleep(0.1)  # the first frame arrives
        while held.jobs:
            held.run_next()
        await asyncio.wait_for(closing, 1.0)
        return [type(each.exception()) for each in sent]

    assert run(main) == [si.Closed] * 2
    assert carried == []


def test_frame_waits_for_its_turn_at_the_edge(camera_scene):
    """If the edge is slower than the frames, the wait for it counts as `edge`, and `uplink` stays the network's."""

    class Edge:
        async def carry(self, _path, _number, data):
            await asyncio.sleep(0.1)
            return data

    transfers = play(camera_scene(), frames=4, edge=Edge())

    period_s = camera_scene().profile.period_s
    waits_s = [number * (0.1 - period_s) for number in range(4)]
    assert [it.stages_s["uplink"] for it in transfers] == pytest.approx([0.05] * 4)
    assert [it.stages_s["edge"] for it in transfers] == pytest.approx([0.1 + wait_s for wait_s in waits_s])


def test_frame_without_a_unit_crosses_no_edge(microphone_scene):
    """The first frame of AAC fills the encoder only, so there is nothing for the edge to carry."""
    sizes = []

    class Edge:
        async def carry(self, _path, _number, data):
            sizes.append(len(data))
            return data

    transfers = play(microphone_scene(codec="aac"), frames=10, wanted=AudioFormat(), edge=Edge())

    assert transfers[0].size == 0
    assert sizes == [it.size for it in transfers if it.size]


def test_edge_that_was_cancelled_fails_the_frame(camera_scene):
    """A cancellation inside the edge fails the frame, which would otherwise never complete."""

    class Edge:
        async def carry(self, _path, number, data):
            if number == 1:
                raise asyncio.CancelledError
            return data

    async def main(loop):
        async with MediaPath(camera_scene(), PERFECT, wanted=PICTURES, clock=loop.clock, edge=Edge()) as path:
            sent = [path.send(loop.clock()) for _ in range(3)]
            await asyncio.wait(sent, timeout=10.0)
            return [type(each.exception()) for each in sent if each.done()]

    assert run(main) == [type(None), RuntimeError, type(None)]


def test_thread_that_has_ended_fails_the_frame(camera_scene):
    async def main():
        with CodecThread() as thread:
            pass
        async with MediaPath(camera_scene(), PERFECT, wanted=PICTURES, thread=thread) as path:
            with pytest.raises(si.Closed, match="codec thread 'codec' has ended"):
                await path.send(path.clock())

    asyncio.run(main())


def test_stop_iteration_of_prepare_ends_the_frame(camera_scene):
    def prepare(_picture):
        raise StopIteration

    async def main(loop):
        async with MediaPath(camera_scene(), PERFECT, wanted=PICTURES, clock=loop.clock, prepare=prepare) as path:
            with pytest.raises(RuntimeError, match="StopIteration"):
                await path.send(loop.clock())

    run(main)


def test_prepare_makes_the_input_of_the_model(camera_scene):
    transfers = play(camera_scene(), frames=2, prepare=lambda picture: picture.astype(np.float32) / 255)

    assert transfers[0].frames[0].inputs.dtype == np.float32
    assert set(transfers[0].cpu_s) == {"encode", "decode", "prepare"}


def test_error_of_prepare_fails_one_frame(camera_scene):
    def prepare(picture):
        raise ZeroDivisionError

    async def main(loop):
        async with MediaPath(camera_scene(), PERFECT, wanted=PICTURES, prepare=prepare, clock=loop.clock) as path:
            return await asyncio.gather(*(path.send(loop.clock()) for _ in range(2)), return_exceptions=True)

    assert [type(it) for it in run(main)] == [ZeroDivisionError] * 2


def test_close_fails_frames_on_their_way(camera_scene):
    async def main(loop):
        path = MediaPath(camera_scene(), PERFECT, wanted=PICTURES, clock=loop.clock)
        sent = [path.send(loop.clock()) for _ in range(3)]
        await asyncio.sleep(0.01)
        await path.aclose()
        answers = await asyncio.gather(*sent, return_exceptions=True)
        with pytest.raises(si.Closed):
            path.send(loop.clock())
        return answers, len(asyncio.all_tasks())

    answers, tasks = run(main)
    assert [type(it) for it in answers] == [si.Closed] * 3
    assert tasks == 1


def test_codecs_run_in_a_thread(camera_scene):
    """Codecs run in the given thread, and a cancelled caller leaves no gap in the stream."""
    names = set()

    def prepare(picture):
        names.add(threading.current_thread().name)
        return picture

    async def main():
        network = NetworkProfile(name="none")
        with CodecThread("codec-7") as thread:
            async with MediaPath(camera_scene(), network, wanted=PICTURES, prepare=prepare, thread=thread) as path:
                sent = [path.send(path.clock()) for _ in range(4)]
                sent[1].cancel()
                return [it.lost for it in await asyncio.gather(sent[0], *sent[2:])]

    assert asyncio.run(main()) == [None] * 3
    assert names == {"codec-7"}


def test_frame_from_a_thread_takes_its_time(camera_scene):
    """A frame is delivered after its device's jitter and the delay of the network, although a job sets the timer."""
    network = NetworkProfile(name="far", delay_s=0.03)

    async def main():
        with CodecThread() as thread:
            async with MediaPath(camera_scene(), network, wanted=PICTURES, thread=thread) as path:
                captured_ns = path.clock()
                sent = [path.send(captured_ns, captured_ns + number * 5 * MS) for number in (1, 2, 3)]
                transfers = await asyncio.gather(*sent)
                return transfers, path.clock() - captured_ns

    transfers, elapsed_ns = asyncio.run(main())

    assert elapsed_ns >= 45 * MS
    assert all(it.stages_s["capture"] >= number * 0.005 for number, it in enumerate(transfers, 1))
    assert all(it.stages_s["uplink"] >= 0.03 for it in transfers)


def test_camera_needs_a_video_format(camera_scene):
    with pytest.raises(TypeError, match="wanted: expected a VideoFormat"):
        MediaPath(camera_scene(), PERFECT, wanted=AudioFormat())

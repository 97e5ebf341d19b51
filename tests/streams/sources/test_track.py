"""Sources of WebRTC tracks of aiortc: frames, ends, errors, lost packets, cancellation."""

import asyncio
import gc
import threading
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection
from aiortc.mediastreams import MediaStreamError

from streaminfer.streams import from_track
from streaminfer.testing import FakeClock

MS = 1_000_000


def picture(value, pts, size=(16, 8)):
    frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), value, np.uint8), "rgb24")
    frame.pts, frame.time_base = pts, Fraction(1, 90_000)
    return frame


def sound(first, pts, samples=960, rate=48_000):
    frame = av.AudioFrame.from_ndarray(np.arange(first, first + samples, dtype=np.int16)[np.newaxis], "s16", "mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, pts, Fraction(1, rate)
    return frame


class Scripted(MediaStreamTrack):
    """Track that delivers frames and raises exceptions, and then ends or waits forever."""

    def __init__(self, kind, items, *, then=MediaStreamError):
        super().__init__()
        self.kind = kind
        self._items = iter(items)
        self._then = then

    async def recv(self):
        item = next(self._items, self._then)
        if item is None:
            await asyncio.Event().wait()
        if isinstance(item, Exception) or item is MediaStreamError:
            raise item
        return item


def collect(track, **options):
    async def main():
        source = from_track(track, **options)
        async with source:
            return [frame async for frame in source], source.statistics()

    return asyncio.run(main())


def test_pictures_of_a_slow_reader_are_the_newest():
    """The source takes frames from the track at once, so none pile up there, and a slow reader gets the newest."""
    frames, statistics = collect(Scripted("video", [picture(n, 3_600 * n) for n in range(20)]))
    assert [(frame.inputs == 19).all() for frame in frames] == [True]
    assert frames[0].inputs.shape == (8, 16, 3)
    assert (statistics.delivered, statistics.dropped) == (1, 19)


def test_frames_have_the_requested_size_and_rate():
    track = Scripted("video", [picture(n, 3_600 * n) for n in range(20)])
    frames, statistics = collect(track, size=(4, 2), pixel_format="gray", rate=5)
    assert frames[-1].inputs.shape == (2, 4)
    assert statistics.skipped == 16


def test_sound_is_resampled_and_cut():
    """Packets of 20 ms at 48 kHz become chunks of 512 samples at 16 kHz."""
    tone = np.sin(np.arange(9_600) * (2 * np.pi * 440 / 48_000)) * 16_384
    items = []
    for number in range(10):
        samples = tone[960 * number : 960 * (number + 1)].astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.repeat(samples, 2)[np.newaxis], "s16", "stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 960 * number, Fraction(1, 48_000)
        items.append(frame)
    frames, statistics = collect(Scripted("audio", items))
    heard = np.concatenate([frame.inputs for frame in frames])[:3_200]
    expected = np.sin(np.arange(3_200) * (2 * np.pi * 440 / 16_000)) / 2
    np.testing.assert_allclose(heard[200:-200], expected[200:-200], atol=0.01)
    assert (statistics.delivered, statistics.dropped, statistics.silence_s) == (7, 0, 0.0)


def test_lost_packets_become_silence_of_their_length():
    """Silence fills a short gap, so the sound after it keeps its position; a long gap is a discontinuity."""
    places = [0, 1, 4, 5, 60]
    items = [sound(1 + 320 * n, 320 * at, 320, 16_000) for n, at in enumerate(places)]
    frames, statistics = collect(Scripted("audio", items), chunk=320, dtype="int16")
    heard = [int(frame.inputs[0]) for frame in frames]
    assert heard == [1, 321, 0, 0, 641, 961, 1_281]
    assert [frame.discontinuity for frame in frames] == [False] * 6 + [True]
    assert [round(frame.position_s / 0.02) for frame in frames] == [0, 1, 2, 3, 4, 5, 60]
    assert statistics.silence_s == pytest.approx(0.04)


def test_silence_is_as_old_as_the_packet_behind_it():
    """The silence for a lost packet has the capture instant of that packet, although the next packet shows the loss."""
    clock = FakeClock(0)

    class Timed(Scripted):
        async def recv(self):
            item = await super().recv()
            clock.now_ns = 1_000_000 * (item.pts // 16 + 20)
            return item

    items = [sound(1, 320 * at, 320, 16_000) for at in (0, 1, 3, 4)]
    frames, _ = collect(Timed("audio", items), chunk=320, clock=clock)
    assert [frame.captured_ns // 1_000_000 for frame in frames] == [20, 40, 60, 80, 100]


@pytest.mark.parametrize("error", [OSError("device gone"), ValueError("bad")])
def test_track_error_reaches_the_reader(error):
    async def main():
        async with from_track(Scripted("video", [picture(0, 0), error])) as source:
            await anext(source)
            with pytest.raises(type(error), match=str(error)):
                await anext(source)
            with pytest.raises(StopAsyncIteration):
                await anext(source)

    asyncio.run(main())


def test_close_of_a_waiting_reader_ends_track_and_task():
    async def main():
        track = Scripted("audio", [], then=None)
        source = from_track(track)
        reader = asyncio.ensure_future(anext(source))
        await asyncio.sleep(0)
        await source.aclose()
        with pytest.raises(StopAsyncIteration):
            await reader
        assert track.readyState == "ended"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_cancelled_close_stops_the_track():
    """A cancelled close stops the track, also before the source's task has begun, which then cannot stop it."""

    async def main():
        track = Scripted("audio", [], then=None)
        source = from_track(track)
        reader = asyncio.ensure_future(anext(source))
        closing = asyncio.ensure_future(source.aclose())
        asyncio.get_running_loop().call_soon(closing.cancel)
        with pytest.raises(StopAsyncIteration):
            await reader
        await asyncio.wait([closing])
        assert closing.cancelled()
        assert track.readyState == "ended"

    asyncio.run(main())


def test_close_before_the_start_stops_the_track():
    async def main():
        track = Scripted("audio", [], then=None)
        async with from_track(track):
            pass
        assert track.readyState == "ended"

    asyncio.run(main())


def test_cancelled_reader_leaves_its_frame_to_the_next():
    """A conversion continues after its reader is cancelled, and at most one runs at a time."""

    async def main():
        pictures = [picture(1, 0), picture(2, 9_000)]
        async with from_track(Scripted("video", pictures, then=None)) as source:
            while not source.statistics().waiting:
                reader = asyncio.ensure_future(anext(source))
                await asyncio.sleep(0)
                reader.cancel()
                await asyncio.wait([reader])
            running = most = 0
            readers_came = threading.Event()
            convert = source._convert

            def counted(frame):
                nonlocal running, most
                running += 1
                most = max(most, running)
                assert readers_came.wait(30.0)
                running -= 1
                return convert(frame)

            source._convert = counted
            reader = asyncio.ensure_future(anext(source))
            for _ in range(20):
                await asyncio.sleep(0)
                reader.cancel()
                await asyncio.wait([reader])
                reader = asyncio.ensure_future(anext(source))
            readers_came.set()
            frame = await reader
            statistics = source.statistics()
            assert most == 1
            assert statistics.delivered + statistics.dropped + statistics.waiting == 2
            assert statistics.delivered == 1
            assert (frame.inputs == 2).all()

    asyncio.run(main())


def test_close_counts_a_frame_in_conversion():
    """A close counts a frame in conversion as dropped, and its reader's iteration ends."""

    async def main():
        source = from_track(Scripted("video", [picture(1, 0)], then=None))
        reader = asyncio.ensure_future(anext(source))
        while source._converting is None:
            await asyncio.sleep(0)
        assert source.statistics().waiting == 1
        await source.aclose()
        with pytest.raises(StopAsyncIteration):
            await reader
        assert (source.statistics().dropped, source.statistics().waiting) == (1, 0)

    asyncio.run(main())


def test_forgotten_source_stops_its_track():
    """The task of a source without references ends at the next frame and stops the track."""

    async def main():
        track = Scripted("video", [picture(n, 3_600 * n) for n in range(3)], then=None)
        receive, more = track.recv, asyncio.Event()

        async def recv():
            frame = await receive()
            await more.wait()
            return frame

        track.recv = recv
        source = from_track(track)
        reader = asyncio.ensure_future(anext(source))
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.wait([reader])
        del source, reader
        gc.collect()
        (task,) = asyncio.all_tasks() - {asyncio.current_task()}
        more.set()
        await asyncio.wait([task], timeout=10.0)
        assert task.done()
        assert track.readyState == "ended"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [("video", {"chunk": 512}, "chunk"), ("audio", {"rate": 5}, "rate"), ("data", {}, "track: expected")],
)
def test_wrong_arguments_are_named(kind, options, match):
    with pytest.raises((TypeError, ValueError), match=match):
        from_track(Scripted(kind, []), **options)


def test_real_connection_from_offer_to_close():
    """Pictures and sound between two aiortc peers on this machine arrive, and end with the connection."""

    class Camera(MediaStreamTrack):
        kind = "video"
        sent = 0

        async def recv(self):
            await asyncio.sleep(0.02)
            self.sent += 1
            return picture(100, 1_800 * self.sent, (64, 48))

    class Microphone(MediaStreamTrack):
        kind = "audio"
        sent = 0

        async def recv(self):
            await asyncio.sleep(0.02)
            self.sent += 1
            return sound(0, 960 * self.sent)

    async def main():
        here, there = (RTCPeerConnection(RTCConfiguration(iceServers=[])) for _ in range(2))
        tracks = []
        there.add_listener("track", tracks.append)
        for track in (Camera(), Microphone()):
            here.addTrack(track)
        await here.setLocalDescription(await here.createOffer())
        await there.setRemoteDescription(here.localDescription)
        await there.setLocalDescription(await there.createAnswer())
        await here.setRemoteDescription(there.localDescription)
        sources = {track.kind: from_track(track) for track in tracks}
        for _ in range(10):
            frame, chunk = [await anext(sources[kind]) for kind in ("video", "audio")]
            assert frame.inputs.shape == (48, 64, 3)
            assert chunk.inputs.shape == (512,)
            assert max(frame.captured_ns, chunk.captured_ns) <= time.monotonic_ns()
        await here.close()
        await there.close()
        for source in sources.values():
            async for _ in source:  # frames that had already arrived
                pass
            await source.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("track", "clock", "message"),
    [
        (3, None, r"track: expected a track of aiortc, got 3"),
        (None, time.monotonic, r"clock\(\): expected a whole number"),
    ],
    ids=["track", "clock"],
)
def test_invalid_track_or_clock_raises_at_once(track, clock, message):
    """An invalid track or clock raises when the source is made, before it could fail or give wrong ages."""
    with pytest.raises(TypeError, match=message):
        from_track(track, clock=clock)

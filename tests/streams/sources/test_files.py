"""Sources that read files: each picture and sample once, in order, at any pace; all their ends."""

import asyncio
import gc
import sys
import threading
import time
import weakref
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import until

import streaminfer as si
from streaminfer.streams import AudioSource, Frame, Reconnect, VideoSource, audio_from_messages


async def read(source):
    async with source:
        return [frame async for frame in source]


def gray(frame):
    return round(frame.inputs.mean())


VALUES = [20 * (n % 12) for n in range(40)]


def test_file_gives_each_picture_once(video):
    """A file gives each picture once, in order and with its position, and then ends."""
    source = VideoSource(video(VALUES))
    frames = asyncio.run(read(source))
    assert [abs(gray(frame) - value) <= 2 for frame, value in zip(frames, VALUES, strict=True)] == [True] * 40
    assert [round(frame.position_s * 25) for frame in frames] == list(range(40))
    assert {(frame.inputs.shape, frame.inputs.dtype.name) for frame in frames} == {((48, 64, 3), "uint8")}
    statistics = source.statistics()
    assert (statistics.delivered, statistics.dropped, statistics.waiting, statistics.corrupt) == (40, 0, 0, 0)
    assert not statistics.connected


def test_source_without_a_thread_can_be_read_again(video, monkeypatch):
    """If the process can start no thread, the reader gets the error and can read again."""
    start, failures = threading.Thread.start, [RuntimeError("can't start new thread")]

    def start_unless_full(thread):
        if failures:
            raise failures.pop()
        start(thread)

    async def main():
        async with VideoSource(video(VALUES)) as source:
            monkeypatch.setattr(threading.Thread, "start", start_unless_full)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await anext(source)
            return gray(await asyncio.wait_for(anext(source), 30))

    assert asyncio.run(main()) <= 2


@pytest.mark.parametrize(
    ("pixel_format", "shape"),
    [("rgb24", (16, 32, 3)), ("bgra", (16, 32, 4)), ("gray", (16, 32)), ("yuv420p", (24, 32))],
)
def test_frames_have_the_requested_size_and_format(video, pixel_format, shape):
    frames = asyncio.run(read(VideoSource(video([0, 9]), size=(32, 16), pixel_format=pixel_format)))
    assert [frame.inputs.shape for frame in frames] == [shape] * 2


@pytest.mark.parametrize(("pixel_format", "shape"), [("rgb24", (17, 33, 3)), ("gray", (17, 33)), ("yuv420p", (27, 34))])
def test_odd_sizes_are_contiguous_arrays(video, pixel_format, shape):
    """Rows of an odd length have no padding; a format whose pixels share colors in pairs rounds the size up."""
    odd = video([0, 90], "odd.avi", codec="mjpeg", size=(33, 17))
    frames = asyncio.run(read(VideoSource(odd, pixel_format=pixel_format)))
    assert [(frame.inputs.shape, frame.inputs.flags.c_contiguous) for frame in frames] == [(shape, True)] * 2


def test_metadata_need_not_be_utf_8(tmp_path, audio):
    whole = audio(np.ones((1, 600), np.int16)).read_bytes()
    title = b"INFOINAM\4\0\0\0caf\xe9"
    data = whole.index(b"data")
    tagged = tmp_path / "tagged.wav"
    tagged.write_bytes(whole[:data] + b"LIST" + len(title).to_bytes(4, "little") + title + whole[data:])
    assert len(asyncio.run(read(AudioSource(tagged)))) == 2


def test_rate_skips_before_conversion(video):
    source = VideoSource(video(VALUES), rate=5)
    frames = asyncio.run(read(source))
    assert [round(frame.position_s * 25) for frame in frames] == list(range(0, 40, 5))
    assert (source.statistics().delivered, source.statistics().skipped) == (8, 32)


@pytest.mark.parametrize("size", [None, (20, 10)])
def test_resolution_change_within_a_file(video, tmp_path, size):
    """If the resolution changes within a file, the arrays follow it, or keep the size that the caller set."""
    parts = [video([9] * 3, name=f"{w}.mjpeg", codec="mjpeg", size=(w, 48), container="mjpeg") for w in (64, 128)]
    both = tmp_path / "both.mjpeg"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = asyncio.run(read(VideoSource(both, size=size)))
    shapes = [frame.inputs.shape[:2] for frame in frames]
    assert shapes == ([(10, 20)] * 6 if size else [(48, 64)] * 3 + [(48, 128)] * 3)
    assert not any(frame.discontinuity for frame in frames)


def test_truncated_packet_ends_the_file(video, tmp_path):
    """The pictures before a truncated packet are delivered, and then the file ends."""
    whole = video(VALUES, name="whole.ts").read_bytes()
    cut = tmp_path / "cut.ts"
    cut.write_bytes(whole[: len(whole) * 2 // 3 + 77])
    frames = asyncio.run(read(VideoSource(cut)))
    assert 10 < len(frames) < 40
    assert all(abs(gray(frame) - value) <= 2 for frame, value in zip(frames, VALUES, strict=False))


def test_corrupt_packets_are_counted_and_skipped(video, tmp_path):
    """Corrupt packets are counted, and the pictures before and after them are delivered."""
    whole = video(VALUES, name="whole.avi", codec="mjpeg")
    broken = bytearray(whole.read_bytes())
    places = [at for at in range(len(broken) - 2) if broken[at : at + 3] == b"\xff\xd8\xff"]
    assert len(places) == 40
    for number in (10, 11, 25):
        picture = slice(places[number], places[number + 1] - 16)  # up to the header of the next chunk
        broken[picture] = bytes(picture.stop - picture.start)
    path = tmp_path / "broken.avi"
    path.write_bytes(broken)
    source = VideoSource(path)
    frames = asyncio.run(read(source))
    kept = [value for number, value in enumerate(VALUES) if number not in (10, 11, 25)]
    assert [abs(gray(frame) - value) <= 2 for frame, value in zip(frames, kept, strict=True)] == [True] * 37
    assert source.statistics().corrupt == 3


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_noise_in_a_file_never_hangs_or_leaks(make_video, tmp_path_factory, seed, flips):
    """A file with changed bytes at any place ends, or raises the error of FFmpeg."""
    folder = tmp_path_factory.getbasetemp()
    whole = folder / "noise-whole.ts"
    if not whole.exists():
        make_video(whole, VALUES)
    chance = np.random.default_rng(seed)
    broken = np.frombuffer(whole.read_bytes(), np.uint8).copy()
    broken[chance.integers(0, len(broken), flips)] = chance.integers(0, 256, flips)
    path = folder / "noise.ts"
    path.write_bytes(broken.tobytes())
    source = VideoSource(path)
    try:
        frames = asyncio.run(read(source))
    except (OSError, ValueError):
        assert not source.statistics().connected
    else:
        assert len(frames) == source.statistics().delivered


@pytest.mark.parametrize(("content", "error"), [(b"noise" * 99, ValueError), (None, OSError)])
def test_open_error_names_the_file(tmp_path, content, error):
    """Invalid data raise a ``ValueError`` and errors of the system an ``OSError``; both name the file."""
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=r"clip\.mp4"):
        asyncio.run(read(VideoSource(path)))


def test_sound_is_cut_into_chunks(audio):
    """Samples are unchanged if the rate, type and channels are those of the file."""
    sound = np.arange(5_000, dtype=np.int16)[np.newaxis]
    frames = asyncio.run(read(AudioSource(audio(sound), chunk=512, dtype="int16")))
    np.testing.assert_array_equal(np.concatenate([frame.inputs for frame in frames])[:5_000], sound[0])
    assert [frame.position_s for frame in frames] == [pytest.approx(n * 512 / 16_000) for n in range(10)]
    assert {frame.inputs.shape for frame in frames} == {(512,)}
    assert not frames[-1].inputs[5_000 - 9 * 512 :].any()


def test_chunks_overlap_by_chunk_less_hop(audio):
    sound = np.arange(4_000, dtype=np.int16)[np.newaxis]
    frames = asyncio.run(read(AudioSource(audio(sound), chunk=576, hop=512, dtype="int16")))
    for before, after in pairwise(frames):
        np.testing.assert_array_equal(before.inputs[512:], after.inputs[:64])


@pytest.mark.parametrize(("channels", "dtype"), [(1, "float32"), (2, "float32"), (1, "int16"), (2, "int16")])
def test_sound_is_resampled(audio, channels, dtype):
    """A tone of 48 kHz keeps its pitch and its loudness at 16 kHz."""
    tone = np.sin(np.arange(48_000) * (2 * np.pi * 440 / 48_000)) * 16_384
    path = audio(np.stack([tone, tone]).astype(np.int16), rate=48_000)
    frames = asyncio.run(read(AudioSource(path, channels=channels, dtype=dtype)))
    assert {(frame.inputs.shape, frame.inputs.dtype.name) for frame in frames} == {
        ((512,) if channels == 1 else (2, 512), dtype)
    }
    sound = np.concatenate([np.atleast_2d(frame.inputs)[0] for frame in frames])[:16_000].astype(float)
    expected = np.sin(np.arange(16_000) * (2 * np.pi * 440 / 16_000)) * (16_384 if dtype == "int16" else 0.5)
    np.testing.assert_allclose(sound[500:-500], expected[500:-500], atol=expected.max() * 0.02)


def test_real_time_follows_the_timestamps(audio):
    """With ``realtime``, no chunk is delivered before its last sample would have been spoken."""
    source = AudioSource(audio(np.zeros((1, 6_400), np.int16)), realtime=True, chunk=640)

    async def main():
        async with source:
            return [(frame, time.monotonic_ns()) async for frame in source]

    frames = asyncio.run(main())
    assert all(frame.captured_ns <= now_ns for frame, now_ns in frames)
    steps = [after.captured_ns - before.captured_ns for (before, _), (after, _) in pairwise(frames)]
    assert len(steps) == 9
    assert min(steps) >= 40_000_000 - 1_000


def test_live_file_repeats_in_real_time(audio):
    """A live file is played in real time and starts again at its end."""
    path = audio(np.zeros((1, 1_920), np.int16))
    reconnect = Reconnect(first_s=0.001, max_s=0.001)
    source = AudioSource(path, live=True, realtime=True, when_slow="wait", chunk=640, reconnect=reconnect)

    async def main():
        async with source:
            return [await anext(source) for _ in range(9)]

    instants_ns = [frame.captured_ns for frame in asyncio.run(main())]
    steps = [after - before for before, after in pairwise(instants_ns)]
    assert min(steps) >= 40_000_000 - 1_000
    assert source.statistics().reconnects == 2


def test_slow_reader_makes_a_file_wait(video):
    """At most 4 pictures of a file wait for a slow reader, and the reader gets all pictures."""
    source = VideoSource(video(VALUES))

    async def main():
        async with source:
            first = await anext(source)
            for _ in range(1_000):
                await asyncio.sleep(0)
                assert source.statistics().waiting <= 4
            return [first] + [frame async for frame in source]

    assert len(asyncio.run(main())) == 40


def test_slow_reader_gets_the_newest_picture(video):
    """With ``when_slow="drop"``, pictures that a newer one replaces before they are read are dropped and counted."""
    source = VideoSource(video(VALUES), when_slow="drop")

    async def main():
        async with source:
            await anext(source)
            while source.statistics().connected:
                await asyncio.sleep(0)
            return [frame async for frame in source]

    frames = asyncio.run(main())
    assert [round(frame.position_s * 25) for frame in frames] == [39]
    statistics = source.statistics()
    assert statistics.delivered + statistics.dropped == 40


def test_sound_after_dropped_chunks_is_a_discontinuity(audio):
    """A chunk is a discontinuity exactly if it does not continue the chunk before it."""
    source = AudioSource(audio(np.arange(16_000, dtype=np.int16)[np.newaxis]), dtype="int16", when_slow="drop")

    async def main():
        async with source:
            first = await anext(source)
            while source.statistics().connected:
                await asyncio.sleep(0)
            return [first] + [frame async for frame in source]

    frames = asyncio.run(main())
    for before, after in pairwise(frames):
        contiguous = int(after.inputs[0]) == int(before.inputs[-1]) + 1
        assert after.discontinuity != contiguous
    # one gap, or two if chunks were also dropped before the first one was read
    assert any(frame.discontinuity for frame in frames)


@pytest.mark.parametrize("state", ["new", "waiting for its reader", "waiting for its time", "ended", "failed"])
def test_close_in_every_state(video, tmp_path, state):
    """In every state a source can be closed, also twice; its iteration ends, and waiting frames count as dropped."""
    options = {}
    path = video(VALUES)
    if state == "waiting for its time":
        path = video([0, 20], name="gap.mkv", pts=[0, 25 * 50])
        options = {"realtime": True}
    elif state == "failed":
        path = tmp_path / "missing"

    async def main():
        source = VideoSource(path, **options)
        if state == "failed":
            with pytest.raises(FileNotFoundError):
                await anext(source)
        elif state == "ended":
            assert len([frame async for frame in source]) == 40
        elif state != "new":
            await anext(source)
        if state == "waiting for its reader":
            while source.statistics().waiting < 4:
                await asyncio.sleep(0)
        await source.aclose()
        await source.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(source)
        return source.statistics()

    statistics = asyncio.run(main())
    assert (statistics.waiting, statistics.connected) == (0, False)
    if state == "waiting for its reader":
        assert statistics.dropped in {4, 5}  # 5 if the decoder already holds the next picture


def test_forgotten_source_ends_its_thread(video):
    """The thread of a source ends if the source has no references, although it was not closed."""
    before = set(threading.enumerate())

    async def main():
        source = VideoSource(video(VALUES))
        await anext(source)
        (thread,) = set(threading.enumerate()) - before
        return thread, weakref.ref(source)

    thread, source = asyncio.run(main())
    gc.collect()
    assert source() is None
    thread.join(10.0)
    assert not thread.is_alive()


async def silent():
    yield bytes(1024)
    await asyncio.Event().wait()


@pytest.mark.parametrize("kind", ["file", "messages"])
def test_source_is_closed_after_its_loop_has_ended(video, caplog, kind):
    """A source can be closed after its event loop has ended: its thread and iteration end, and nothing is logged."""
    source = VideoSource(video(VALUES)) if kind == "file" else audio_from_messages(silent(), sent_rate=16_000)
    before = set(threading.enumerate())
    asyncio.run(source.__anext__())

    asyncio.run(source.aclose())

    for thread in set(threading.enumerate()) - before:
        thread.join(10.0)
    assert set(threading.enumerate()) == before
    assert not caplog.records
    with pytest.raises(StopAsyncIteration):
        asyncio.run(source.__anext__())


def test_cancelled_read_loses_no_picture(video):
    """A cancelled read loses no picture, whether the first picture had arrived or not."""
    source = VideoSource(video(VALUES))

    async def main():
        async with source:
            reader = asyncio.ensure_future(anext(source))
            await asyncio.sleep(0)
            reader.cancel()
            got = [it for it in await asyncio.gather(reader, return_exceptions=True) if isinstance(it, Frame)]
            return got + [frame async for frame in source]

    assert len(asyncio.run(main())) == 40


def test_read_error_names_the_cause(audio, tmp_path):
    """A read raises the cause, for example a missing file or one without pictures, and then the iteration is over."""
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(bytes(1_000))
    cut = tmp_path / "cut.opus"
    cut.write_bytes(b"OggS")

    async def fails(source, error, match):
        with pytest.raises(error, match=match):
            await anext(source)
        with pytest.raises(StopAsyncIteration):
            await anext(source)
        await source.aclose()

    async def main():
        await fails(VideoSource(tmp_path / "none.mp4"), FileNotFoundError, "No such file")
        await fails(VideoSource(noise), ValueError, "Invalid data")
        await fails(AudioSource(cut), OSError, "End of file")
        await fails(VideoSource(audio(np.zeros((1, 100), np.int16))), si.InvalidInput, "has no video")
        await fails(VideoSource("nothing://host/x"), OSError, "Protocol not found")

    asyncio.run(main())


@pytest.mark.parametrize("source", [VideoSource, AudioSource])
def test_timeout_can_be_any_real_number(source):
    """A timeout can be a fraction."""
    assert source("x", timeout_s=Fraction(1, 3)).statistics().delivered == 0


@pytest.mark.parametrize(
    ("source", "argument", "options"),
    [
        (VideoSource, "rate", {"rate": 0}),
        (VideoSource, "rate", {"rate": 1e-300}),
        (VideoSource, "rate", {"rate": "25"}),
        (VideoSource, "size", {"size": 64}),
        (VideoSource, "size", {"size": (64, 0)}),
        (VideoSource, "size", {"size": (64, 47), "pixel_format": "yuv420p"}),
        (VideoSource, "pixel_format", {"pixel_format": "jpeg"}),
        (VideoSource, "timeout_s", {"timeout_s": 0}),
        (VideoSource, "when_slow", {"when_slow": "block"}),
        (VideoSource, "reconnect", {"reconnect": True}),
        (VideoSource, "live", {"live": "no"}),
        (VideoSource, "realtime", {"realtime": "no"}),
        (VideoSource, "format", {"format": 7}),
        (VideoSource, "options", {"options": 7}),
        (AudioSource, "clock", {"clock": 7}),
        (AudioSource, "sample_rate", {"sample_rate": 0}),
        (AudioSource, "chunk", {"chunk": 1.5}),
        (AudioSource, "hop", {"hop": 513}),
        (AudioSource, "hop", {"hop": 0}),
        (AudioSource, "channels", {"channels": 3}),
        (AudioSource, "dtype", {"dtype": "float64"}),
    ],
)
def test_wrong_arguments_are_named(source, argument, options):
    with pytest.raises((TypeError, ValueError), match=f"{argument}: expected"):
        source("x", **options)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"options": {"framerate": 30}}, TypeError, "options: expected a mapping of text to text"),
        ({"options": {5: "30"}}, TypeError, "options: expected a mapping of text to text"),
        ({"format": "abacus"}, ValueError, "format: expected a device or container .* FFmpeg reads, got 'abacus'"),
    ],
)
@pytest.mark.parametrize("source", [VideoSource, AudioSource])
def test_invalid_ffmpeg_arguments_raise_at_once(source, wrong, error, message):
    with pytest.raises(error, match=message):
        source("x", **wrong)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(si.MissingExtra, match=r"VideoSource needs av.*streaminfer\[media\]"):
        VideoSource("x")


def test_device_formats_are_live():
    """A device format, here FFmpeg's own test picture, delivers frames in order, and a slow reader loses some."""
    source = VideoSource("testsrc2=size=64x48:rate=25", format="lavfi", rate=5)

    async def main():
        async with source:
            first = await anext(source)
            dropped = source.statistics().dropped
            await until(lambda: source.statistics().dropped > dropped)
            return first, await anext(source)

    first, second = asyncio.run(main())
    assert first.inputs.shape == second.inputs.shape == (48, 64, 3)
    assert second.position_s - first.position_s > 1.5 / 5  # at least one frame is missing

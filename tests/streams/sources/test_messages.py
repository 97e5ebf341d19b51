"""Sources of sound and pictures that arrive as messages of a WebSocket."""

import asyncio
import gc
import threading
import time
from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.streams import audio_from_messages, video_from_messages
from streaminfer.testing import FakeClock


async def stream(messages):
    for message in messages:
        yield message


def encode(picture, codec):
    context = av.CodecContext.create(codec, "w")
    frame = av.VideoFrame.from_ndarray(picture, "rgb24")
    context.pix_fmt = {"mjpeg": "yuvj444p", "png": "rgb24"}[codec]
    context.width, context.height, context.time_base = frame.width, frame.height, Fraction(1, 25)
    return b"".join(bytes(it) for it in context.encode(frame.reformat(format=context.pix_fmt)) + context.encode(None))


def collect(source):
    async def main():
        async with source:
            return [frame async for frame in source]

    return asyncio.run(main())


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.sampled_from([1, 2]))
def test_messages_of_any_size_become_chunks(sizes, channels):
    """Every sample of every whole message is in the chunks, in order."""
    sound = np.arange(sum(sizes) * channels, dtype="<i2")
    cuts = np.cumsum(sizes)[:-1] * channels
    source = audio_from_messages(
        stream([part.tobytes() for part in np.split(sound, cuts)]),
        sent_rate=16_000, sent_channels=channels, channels=channels, chunk=100, dtype="int16", clock=FakeClock(5),
    )  # fmt: skip
    frames = collect(source)
    heard = np.concatenate([np.atleast_2d(frame.inputs) for frame in frames], axis=1)
    np.testing.assert_array_equal(heard.T.reshape(-1)[: len(sound)], sound)
    assert len(frames) == -(-sum(sizes) // 100)


def test_floats_of_another_rate_are_resampled():
    """Floats at 48 kHz, which browsers send, are resampled to 16 kHz."""
    tone = np.sin(np.arange(9_600) * (2 * np.pi * 440 / 48_000)).astype("<f4") / 2
    source = audio_from_messages(
        stream([part.tobytes() for part in np.split(tone, 75)]), sent_rate=48_000, sent_dtype="float32"
    )
    heard = np.concatenate([frame.inputs for frame in collect(source)])[:3_200]
    expected = np.sin(np.arange(3_200) * (2 * np.pi * 440 / 16_000)) / 2
    np.testing.assert_allclose(heard[200:-200], expected[200:-200], atol=0.01)


@pytest.mark.parametrize("message", [b"\x00", b"", "text", None, memoryview(b"abc")])
def test_other_messages_are_counted_as_corrupt(message):
    """A message that is empty, no bytes or no whole samples is counted as corrupt, and the stream continues."""
    whole = np.ones(512, "<i2").tobytes()
    source = audio_from_messages(stream([whole, message, bytearray(whole)]), sent_rate=16_000)
    assert len(collect(source)) == 2
    assert source.statistics().corrupt == 1


def test_chunk_is_as_old_as_its_last_sample():
    """Each chunk is as old as its last sample, for packets of any length.

    A sender sends a packet when it is full, so the sound of a long packet is not older than that of short ones before.
    """
    clock, arrivals = FakeClock(0), []

    async def speak():
        for length_ms in (10, 60, 20, 60):
            clock.now_ns += length_ms * 1_000_000
            arrivals.append(clock.now_ns // 1_000_000)
            yield np.ones(16 * length_ms, "<i2").tobytes()

    frames = collect(audio_from_messages(speak(), sent_rate=16_000, chunk=160, clock=clock))
    captured_ms = [frame.captured_ns // 1_000_000 for frame in frames]
    assert captured_ms == list(range(10, 151, 10))
    assert set(arrivals) <= set(captured_ms)


def test_sound_after_a_sender_pause_is_a_discontinuity():
    """The first sound after a pause, in which a muted microphone sends nothing, is fresh and a discontinuity."""
    clock = FakeClock(0)

    async def speak():
        for pause_ms in (0, 32, 32, 5_000, 32):
            clock.now_ns += pause_ms * 1_000_000
            yield np.ones(512, "<i2").tobytes()

    frames = collect(audio_from_messages(speak(), sent_rate=16_000, clock=clock))
    assert [frame.discontinuity for frame in frames] == [False, False, False, True, False]
    assert [frame.captured_ns // 1_000_000 for frame in frames] == [0, 32, 64, 5_064, 5_096]


def ages_ms(arrivals_ms):
    """Return the ages of chunks of 20 ms, one per message, that arrive at these instants."""
    clock = FakeClock(0)

    async def speak():
        for arrival_ms in arrivals_ms:
            clock.now_ns = arrival_ms * 1_000_000
            yield np.ones(320, "<i2").tobytes()
            for _ in range(5):
                await asyncio.sleep(0)  # the reader takes it

    source = audio_from_messages(speak(), sent_rate=16_000, chunk=320, clock=clock)
    frames = collect(source)
    assert not any(frame.discontinuity for frame in frames)
    return [round(arrival - frame.captured_ns / 1e6) for arrival, frame in zip(arrivals_ms, frames, strict=True)]


@pytest.mark.parametrize("pause_ms", [120, 500, 990])
def test_sound_after_short_pause_is_soon_fresh(pause_ms):
    """Sound after a short pause of the sender is fresh again after 0.25 s.

    The sound arrives at the speed of speech, and pauses do not add up.
    """
    arrivals, now = [], 0
    for number in range(200):
        now += 20 + (pause_ms if number % 40 == 39 else 0)
        arrivals.append(now)
    ages = ages_ms(arrivals)
    old = [number for number, age in enumerate(ages) if age]
    assert {number % 40 for number in old} == {39, *range(12)}  # 0.25 s
    assert max(ages) == pause_ms


@pytest.mark.parametrize("burst_ms", [0, 2, 6])
def test_sound_delayed_by_a_stall_has_its_true_age(burst_ms):
    """Sound that was spoken in a stall of 0.8 s has its true age, if it arrives at once or within a third of that."""
    spoken = [20 * (number + 1) for number in range(120)]
    arrivals = []
    for at in spoken:
        held_until = 800 + 400 if 400 < at <= 1_200 else at
        arrivals.append(max(held_until, arrivals[-1] + burst_ms if arrivals else 0))
    assert ages_ms(arrivals) == [arrival - at for arrival, at in zip(arrivals, spoken, strict=True)]


@pytest.mark.parametrize("codec", ["mjpeg", "png"])
def test_pictures_are_decoded(codec):
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:, 15:] = (200, 100, 50)
    source = video_from_messages(stream([encode(picture, codec)]))
    before_ns = time.monotonic_ns()
    (frame,) = collect(source)
    assert before_ns <= frame.captured_ns <= time.monotonic_ns()
    np.testing.assert_allclose(frame.inputs.astype(int), picture.astype(int), atol=8)


def test_picture_is_copied_on_arrival():
    """A picture is copied on arrival, so its sender can write the next message to the same memory."""
    memory = bytearray(encode(np.full((8, 8, 3), 7, np.uint8), "png"))

    async def speak():
        yield memoryview(memory)
        memory[:] = bytes(len(memory))

    (frame,) = collect(video_from_messages(speak()))
    assert (frame.inputs == 7).all()


def test_memoryview_of_samples_is_counted_in_bytes():
    """Sound in a memoryview of samples is counted in bytes: 513 samples are whole, although their number is odd."""
    samples = np.ones(513, np.int16)
    source = audio_from_messages(stream([samples.data, samples[:511].data]), sent_rate=16_000)
    assert len(collect(source)) == 2
    assert source.statistics().corrupt == 0


def test_a_picture_has_one_reader(monkeypatch):
    """A second task that reads while a picture is decoded gets an error and not the same picture."""
    picture = encode(np.full((8, 8, 3), 7, np.uint8), "png")
    begun, goes_on = threading.Event(), threading.Event()
    context = av.CodecContext

    class Contexts:
        @staticmethod
        def create(*arguments):
            begun.set()
            assert goes_on.wait(30)
            return context.create(*arguments)

    monkeypatch.setattr(av, "CodecContext", Contexts)

    async def main():
        async with video_from_messages(stream([picture])) as source:
            reader = asyncio.ensure_future(anext(source))
            assert await asyncio.to_thread(begun.wait, 30)
            with pytest.raises(RuntimeError, match="another task already waits"):
                await anext(source)
            goes_on.set()
            assert ((await reader).inputs == 7).all()
            return source.statistics()

    assert asyncio.run(main()).delivered == 1


def test_only_the_newest_picture_waits():
    """Pictures that a newer one replaces before they are read are dropped and counted, but not decoded."""
    corrupt = b"\x89P: counts as corrupt if it is decoded"
    newest = encode(np.full((8, 8, 3), 3, np.uint8), "png")
    source = video_from_messages(stream([corrupt, corrupt, newest]), size=(4, 4))
    (frame,) = collect(source)
    assert (frame.inputs == 3).all()
    assert frame.inputs.shape == (4, 4, 3)
    statistics = source.statistics()
    assert (statistics.delivered, statistics.dropped, statistics.corrupt) == (1, 2, 0)


def test_invalid_pictures_are_counted_and_skipped():
    """Noise, half a picture and a picture of 4 gigapixels are counted, and the next picture is delivered."""
    good = encode(np.full((8, 8, 3), 7, np.uint8), "png")
    huge = bytearray(good)
    huge[16:24] = (65_000).to_bytes(4, "big") * 2
    arrived = asyncio.Queue()

    async def speak():
        while (message := await arrived.get()) is not None:
            yield message

    async def main():
        async with video_from_messages(speak()) as source:
            for message in (b"GIF89a", b"\xff\xd8" + bytes(50), b"\xff\xd8\xff", good[:40], bytes(huge), "text"):
                arrived.put_nowait(message)
                reader = asyncio.ensure_future(anext(source))
                while source.statistics().corrupt + source.statistics().dropped < 1:
                    await asyncio.sleep(0)
                arrived.put_nowait(good)
                assert ((await reader).inputs == 7).all()
                source._feeder.counters.corrupt = 0
            return source.statistics()

    assert asyncio.run(main()).delivered == 6


def test_iterable_error_reaches_the_reader():
    """A connection that breaks ends the source with its error, after the sound that arrived."""

    async def breaks():
        yield np.ones(512, "<i2").tobytes()
        raise ConnectionResetError("gone")

    async def main():
        async with audio_from_messages(breaks(), sent_rate=16_000) as source:
            assert (await anext(source)).inputs.shape == (512,)
            with pytest.raises(ConnectionResetError, match="gone"):
                await anext(source)

    asyncio.run(main())


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), asyncio.CancelledError()])
def test_sound_before_an_error_is_heard(error):
    """If the connection breaks within a chunk, the chunk is padded and delivered before the error."""

    async def breaks():
        yield np.ones(300, "<i2").tobytes()
        raise error

    async def main():
        async with audio_from_messages(breaks(), sent_rate=16_000, dtype="int16") as source:
            assert (await anext(source)).inputs.tolist() == [1] * 300 + [0] * 212
            with pytest.raises((ConnectionResetError, RuntimeError), match=r"gone|the source"):
                await anext(source)

    asyncio.run(main())


def test_cancelled_error_from_messages_is_a_failure():
    """A ``CancelledError`` that the iterable raises is a failure, neither an end nor a cancellation of the reader."""

    async def breaks():
        yield np.ones(512, "<i2").tobytes()
        raise asyncio.CancelledError

    async def main():
        async with audio_from_messages(breaks(), sent_rate=16_000) as source:
            await anext(source)
            with pytest.raises(RuntimeError, match="the source: CancelledError"):
                await anext(source)

    asyncio.run(main())


def test_close_cancels_the_wait_for_a_message():
    """A close ends the wait for a message, closes the iterable and leaves no task."""
    waits, closed = [], []

    async def silent():
        try:
            waits.append(True)
            await asyncio.Event().wait()
            yield b""
        finally:
            closed.append(True)

    async def main():
        source = audio_from_messages(silent(), sent_rate=16_000)
        reader = asyncio.ensure_future(anext(source))
        while not waits:
            await asyncio.sleep(0)
        await source.aclose()
        await source.aclose()
        with pytest.raises(StopAsyncIteration):
            await reader
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert closed == [True]


@pytest.mark.parametrize("options", [{"sent_rate": 0}, {"sent_channels": 3}, {"sent_dtype": "int32"}, {"chunk": 0}])
def test_wrong_arguments_are_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
        audio_from_messages(stream([]), **{"sent_rate": 16_000, **options})


@pytest.mark.parametrize("error", ["ExternalError", "PatchWelcomeError", "InvalidDataError"])
def test_any_decoder_error_counts_as_a_corrupt_picture(error, monkeypatch):
    """Any error of the decoder counts its picture as corrupt, and the next picture is delivered."""
    good = encode(np.zeros((8, 16, 3), np.uint8), "png")
    context = av.CodecContext

    class Fails:
        def decode(self, _packet):
            raise getattr(av.error, error)(1, "broken")

    class Contexts:
        made = 0

        @classmethod
        def create(cls, *arguments):
            cls.made += 1
            return Fails() if cls.made == 1 else context.create(*arguments)

    monkeypatch.setattr(av, "CodecContext", Contexts)

    async def main():
        more = asyncio.Event()

        async def messages():
            yield good
            await more.wait()
            yield good

        async with video_from_messages(messages()) as source:
            reader = asyncio.ensure_future(anext(source))
            while not source.statistics().corrupt:
                await asyncio.sleep(0)
            more.set()
            await reader
            return source.statistics()

    statistics = asyncio.run(main())
    assert (statistics.corrupt, statistics.delivered) == (1, 1)


def test_unread_picture_error_ends_with_its_source(monkeypatch):
    """If the reader of a picture was cancelled, the event loop does not log the picture's decoding error."""
    began, goes_on, logged = threading.Event(), threading.Event(), []

    def create(*_):
        began.set()
        goes_on.wait()
        raise av.InvalidDataError(1, "broken")

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
        monkeypatch.setattr(av, "CodecContext", SimpleNamespace(create=create))
        async with video_from_messages(stream([b"\xff\xd8"])) as source:
            reader = asyncio.ensure_future(anext(source))
            while not began.is_set():
                await asyncio.sleep(0)
            reader.cancel()
            await asyncio.wait([reader])
            goes_on.set()
        del source, reader
        gc.collect()

    asyncio.run(main())
    assert not logged


@pytest.mark.parametrize("make", [partial(audio_from_messages, sent_rate=16_000), video_from_messages])
def test_a_wrong_clock_or_iterable_is_named(make):
    with pytest.raises(TypeError, match="clock: expected a callable or None, got 7"):
        make(stream([]), clock=7)
    with pytest.raises(TypeError, match="messages: expected an asynchronous iterable of bytes, got "):
        make([b""])

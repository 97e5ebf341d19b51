"""Live URLs that end, stall, respond with an error or send noise: the source reconnects, and closes in any state."""

import asyncio
import contextlib
import io
import logging
import time
from fractions import Fraction

import av
import numpy as np
import pytest

from streaminfer.streams import AudioSource, Reconnect, VideoSource

SOON = Reconnect(first_s=0.01, max_s=0.05)
BOUNDARY = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
OK = b"HTTP/1.0 200 OK\r\nConnection: close\r\n"
HEAD = OK + b"Content-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"


def jpeg(value):
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt = 32, 16, "yuvj420p"
    codec.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(np.full((16, 32), value, np.uint8), "gray").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in codec.encode(frame) + codec.encode(None))


def part(picture):
    return BOUNDARY % len(picture) + picture + b"\r\n"


PICTURES = [part(jpeg(20 * n)) for n in range(12)]


@contextlib.asynccontextmanager
async def camera(*scripts):
    """Serve an HTTP camera; each connection runs the next script, and the last script repeats."""
    connections, open_now = 0, set()

    async def serve(reader, writer):
        nonlocal connections
        script = scripts[min(connections, len(scripts) - 1)]
        connections += 1
        open_now.add(asyncio.current_task())
        try:
            await reader.readuntil(b"\r\n\r\n")
            await script(writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            open_now.discard(asyncio.current_task())

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/camera"
    finally:
        server.close()
        for task in set(open_now):
            task.cancel()
        while open_now:
            await asyncio.sleep(0)
        await server.wait_closed()


def sends(*data, then=None):
    async def script(writer):
        for piece in data:
            writer.write(piece)
        await writer.drain()
        if then is not None:
            await then()
        writer.close()
        await writer.wait_closed()

    return script


async def forever():
    await asyncio.Event().wait()


NOT_FOUND = sends(b"HTTP/1.0 404 Not Found\r\n\r\n")


def gray(frame):
    return round(frame.inputs.mean() / 20)


def test_end_stall_and_error_end_in_a_reconnect(caplog):
    """Each new connection begins with a complete picture, and the log has each kind of failure once."""

    async def main():
        ends = sends(HEAD, *PICTURES)
        stalls = sends(HEAD, *PICTURES, then=forever)
        async with camera(ends, stalls, NOT_FOUND, NOT_FOUND, stalls) as url:
            source = VideoSource(url, reconnect=SOON, timeout_s=1.5, when_slow="wait")
            frames = []
            async with source:
                while sum(frame.discontinuity for frame in frames) < 2:
                    frames.append(await anext(source))
            return frames, source.statistics()

    with caplog.at_level(logging.WARNING, "streaminfer.streams"):
        frames, statistics = asyncio.run(main())
    discontinuities = [number for number, frame in enumerate(frames) if frame.discontinuity]
    assert [gray(frame) for frame in frames[: discontinuities[0]]] == list(range(12))
    second = [gray(frame) for frame in frames[discontinuities[0] : discontinuities[1]]]
    assert second == list(range(len(second)))
    assert len(second) >= 11  # the end of the last picture shows only when the next one begins
    assert gray(frames[-1]) == 0
    assert statistics.reconnects == 2
    assert statistics.last_error.startswith("HTTPNotFoundError")
    reasons = [record.getMessage().split(": ", 1)[1].split(";")[0] for record in caplog.records]
    assert reasons == [
        "OSError: Input/output error",
        "TimeoutError: no video for 1.5 s",
        "HTTPNotFoundError: Server returned 404 Not Found",
    ]
    instants = [frame.captured_ns for frame in frames]
    assert instants == sorted(instants)


def test_noise_on_the_line_never_ends_a_live_stream():
    """Pictures that cannot be decoded are counted, and the next ones are delivered."""

    async def main():
        async with (
            camera(sends(HEAD, *PICTURES[:6], part(b"\xff\xd8" + bytes(300)), *PICTURES[6:], then=forever)) as url,
            VideoSource(url, reconnect=SOON, timeout_s=1.5, when_slow="wait") as source,
        ):
            frames = [await anext(source) for _ in range(11)]
            return [gray(frame) for frame in frames], source.statistics()

    values, statistics = asyncio.run(main())
    assert values == list(range(11))
    assert (statistics.corrupt, statistics.reconnects) == (1, 0)


@pytest.mark.parametrize("attempts", [1, 3])
def test_attempts_end_with_the_last_error(attempts, caplog):
    """The source reconnects ``attempts`` times and then raises the last error; the log states the number."""

    async def main():
        connections = 0

        async def refuse(writer):
            nonlocal connections
            connections += 1
            await NOT_FOUND(writer)

        async with camera(refuse) as url:
            source = VideoSource(url, reconnect=Reconnect(first_s=0.01, attempts=attempts))
            with pytest.raises(OSError, match="404 Not Found"):
                await anext(source)
            await source.aclose()
        return connections

    with caplog.at_level(logging.WARNING, "streaminfer.streams"):
        assert asyncio.run(main()) == attempts + 1
    assert [record.getMessage().split("; ")[1] for record in caplog.records] == [
        f"connects again up to {attempts} times in a row"
    ]


def test_without_reconnect_an_error_ends_the_stream():
    """Without ``reconnect``, an error ends the stream after the pictures before it.

    FFmpeg reports the end of a multipart stream as an error.
    """

    async def main():
        frames = []
        async with camera(sends(HEAD, *PICTURES)) as url, VideoSource(url, reconnect=None, when_slow="wait") as source:
            with pytest.raises(OSError, match="Input/output error"):
                while True:
                    frames.append(gray(await anext(source)))
        return frames

    assert asyncio.run(main()) == list(range(12))


def test_error_does_not_have_the_password():
    """The error names the URL without user, password and query."""

    async def main():
        async with camera(NOT_FOUND) as url:
            source = VideoSource(url.replace("//", "//me:se@cret@") + "?key=secret", reconnect=None)
            with pytest.raises(OSError, match="404 Not Found") as raised:
                await anext(source)
            await source.aclose()
        return str(raised.value), url

    text, url = asyncio.run(main())
    assert url in text
    assert "cret" not in text
    assert "se@" not in text


def test_slow_reader_is_no_stall(tmp_path):
    """Time in which the reader takes no frame does not count as a stall, whichever stream has the next packet."""
    path = tmp_path / "both.ts"
    with av.open(str(path), "w") as file:
        pictures, sound = file.add_stream("mpeg2video", rate=25), file.add_stream("mp2", rate=16_000, layout="mono")
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64), 90, np.uint8), "gray").reformat(format="yuv420p")
            frame.pts = number
            file.mux(pictures.encode(frame))
            heard = av.AudioFrame.from_ndarray(np.zeros((1, 640), np.int16), "s16", "mono")
            heard.sample_rate, heard.pts = 16_000, 640 * number
            file.mux(sound.encode(heard))
        file.mux(pictures.encode())
        file.mux(sound.encode())
    late_ns = 0

    async def main():
        nonlocal late_ns
        send = sends(OK + b"\r\n", path.read_bytes())
        async with camera(send) as url:
            source = VideoSource(
                url, when_slow="wait", timeout_s=5.0, reconnect=None, clock=lambda: time.monotonic_ns() + late_ns
            )
            async with source:
                for _ in range(20):
                    await anext(source)
                    while not source._handoff._changed._waiters and source.statistics().connected:
                        await asyncio.sleep(0)  # until the thread waits for this reader and not for a packet
                    late_ns += 10_000_000_000

    asyncio.run(main())


@pytest.mark.parametrize(
    ("state", "timeout_s"),
    [("connecting", 0.3), ("stalled", 3.0), ("between attempts", 30.0), ("waiting for its reader", 30.0)],
)
def test_close_in_every_state(state, timeout_s):
    """A close leaves no thread, socket or task, whatever the decoder waits for."""

    async def main():
        silent = sends(then=forever)
        scripts = {
            "connecting": silent,
            "stalled": sends(HEAD, *PICTURES, then=forever),
            "between attempts": NOT_FOUND,
            "waiting for its reader": sends(HEAD, *PICTURES, then=forever),
        }
        reconnect = Reconnect(first_s=100.0, max_s=100.0)
        async with camera(scripts[state]) as url:
            source = VideoSource(url, reconnect=reconnect, timeout_s=timeout_s, when_slow="wait")
            reader = asyncio.ensure_future(anext(source))
            if state in {"connecting", "between attempts"}:
                done, _ = await asyncio.wait([reader], timeout=0.1)
                assert not done
            else:
                await reader
            if state == "stalled":
                for _ in range(10):
                    await anext(source)
                reader = asyncio.ensure_future(anext(source))
                await asyncio.sleep(0)
            await source.aclose()
            if not reader.done():
                with pytest.raises(StopAsyncIteration):
                    await reader
            return source.statistics()

    statistics = asyncio.run(main())
    assert (statistics.connected, statistics.waiting) == (False, 0)


def wav(samples):
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
    return file.getvalue()


WAV = wav(np.full((1, 1_000), 700, np.int16))
SOUND = sends(OK + b"Content-Length: %d\r\n\r\n" % len(WAV), WAV)


@pytest.mark.parametrize("options", [{"reconnect": None}, {"live": False}])
def test_recording_behind_a_url_ends(options):
    async def main():
        async with camera(SOUND) as url, AudioSource(url, when_slow="wait", **options) as source:
            return [frame async for frame in source]

    assert len(asyncio.run(main())) == 2


def test_sound_after_a_reconnect_is_a_discontinuity():
    """The last chunk before a reconnect is padded with silence, and the chunks after it have none of its sound."""

    async def main():
        options = {"reconnect": SOON, "chunk": 512, "dtype": "int16", "when_slow": "wait"}
        async with camera(SOUND) as url, AudioSource(url, **options) as source:
            return [await anext(source) for _ in range(4)]

    frames = asyncio.run(main())
    assert [frame.discontinuity for frame in frames] == [False, False, True, False]
    assert [int((frame.inputs == 700).sum()) for frame in frames] == [512, 488, 512, 488]
    assert frames[2].position_s > frames[1].position_s

"""Sources: CPU per picture beside a bare PyAV loop, a minute of churn, WebRTC through a lossy network.

The churn opens and closes files and URLs at random. They are cut, stall, jump in time, repeat timestamps, change
resolution or are noise. The benchmark counts threads, descriptors and memory before and after.

The network runs without loss and with 5 % loss, in turn, each with 50 ms of jitter; the baseline is aiortc alone. The
age of pictures counts from the instant at which the sender made them; the age of sound counts from the capture that the
source reports. This part needs root, TUN and network namespaces; without them the benchmark prints what is missing.
"""

import argparse
import asyncio
import logging
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from _lib.figures import Figure
from _lib.stream_churn import resources
from servers import lossy_network
from servers.webrtc_peers import RATE, run_peers

import streaminfer as si
from streaminfer.streams import LatestOnly, Reconnect, StreamSession, VideoSource

CLIP = Path(__file__).parents[2] / "examples" / "assets" / "astronaut_pan.mp4"
SIZE = (320, 240)
DELAY_MS, JITTER_MS, LOSS = 20.0, 50.0, 5.0
ADDED_AGE = Figure(
    "p99 age that 5 % loss and 50 ms of jitter add to WebRTC frames, from_track", form="{:+.0f} ms", at_most=100.0
)
UNCOUNTED_TRACK = Figure(
    "WebRTC frames through the lossy network neither delivered nor counted as dropped", form="{:.0f}", at_most=0
)
CPU = Figure("CPU per picture of VideoSource", over="a bare PyAV loop")
LEFT = Figure("tasks, threads and descriptors left by churn of files and URLs", form="{:.0f}", at_most=0)
UNCOUNTED = Figure("frames of files and URLs not counted exactly once", form="{:.0f}", at_most=0)


def ages_ms(kind: str, result: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return the age of each frame when the reader got it, in milliseconds."""
    frames = np.array(result["frames"], np.int64)
    captured_ns = result["start_ns"] + frames[:, 0] * (1e9 / RATE) if kind == "video" else frames[:, 1]
    return (frames[:, 2] - captured_ns) / 1e6


def measure_network(kind: str, rounds: int, seconds: float) -> None:
    """Print ages without and with loss, of a source and of aiortc alone."""
    cases = [(recovery, loss) for recovery in (True, False) for loss in (0.0, LOSS)]
    p99s: dict[tuple[bool, float], list[float]] = {case: [] for case in cases}
    medians: dict[tuple[bool, float], list[float]] = {case: [] for case in cases}
    uncounted = arrived = 0
    for _ in range(rounds):
        for recovery, loss in cases:
            result = run_peers(kind, seconds, loss=loss, delay_ms=DELAY_MS, jitter_ms=JITTER_MS, recovery=recovery)
            ages = ages_ms(kind, result)
            p99s[recovery, loss].append(float(np.quantile(ages, 0.99)))
            medians[recovery, loss].append(float(np.median(ages)))
            if kind == "video":
                arrived += result["arrived"]
                uncounted += result["arrived"] - result["delivered"] - result["dropped"]
    for recovery, loss in cases:
        name = "from_track(connection=…)" if recovery else "aiortc alone"
        p99, median = p99s[recovery, loss], medians[recovery, loss]
        print(
            f"{kind:>6} {name:>24}, loss {loss:.0f} %: age p50 {statistics.median(median):6.0f} ms, "
            f"p99 {statistics.median(p99):6.0f} ms ({min(p99):.0f} to {max(p99):.0f})"
        )
    ours, alone = (
        [lossy - whole for lossy, whole in zip(p99s[recovery, LOSS], p99s[recovery, 0.0], strict=True)]
        for recovery in (True, False)
    )
    ADDED_AGE.report(ours, case=kind, note=f"aiortc alone {statistics.median(alone):+.0f} ms")
    if kind == "video":
        UNCOUNTED_TRACK.report(uncounted, of=arrived)


def play_bare() -> int:
    """Decode and convert a clip with PyAV alone; return the number of pictures."""
    count = 0
    with av.open(str(CLIP)) as container:
        for frame in container.decode(video=0):
            frame.to_ndarray(format="rgb24", width=SIZE[0], height=SIZE[1])
            count += 1
    return count


async def play_source() -> int:
    count = 0
    async with VideoSource(CLIP, size=SIZE) as source:
        async for _ in source:
            count += 1
    return count


def measure_cpu(rounds: int) -> None:
    """Print the CPU of a picture through a source, over that of a bare loop."""
    ratios, costs = [], []
    for _ in range(rounds):
        taken = []
        for play in (play_bare, lambda: asyncio.run(play_source())):
            cpu_s = time.process_time()
            count = play()
            taken.append((time.process_time() - cpu_s) / count * 1e6)
        costs.append(taken)
        ratios.append(taken[1] / taken[0])
    bare, ours = (statistics.median(column) for column in zip(*costs, strict=True))
    CPU.report(ratios, note=f"{ours:.0f} µs, bare PyAV {bare:.0f} µs")


# -- churn of media ----------------------------------------------------------------------------------------------------


def write_broken_media(folder: Path) -> list[Path]:
    """Write clips that jump in time, repeat timestamps, change resolution, are cut, or are noise; return the paths."""
    whole = folder / "whole.ts"
    jumps: dict[str, Callable[[int], int]] = {
        "repeat": lambda n: n // 2,
        "forward": lambda n: n + 2_500 * (n > 20),
        "steady": lambda n: n,
    }
    for name, position in jumps.items():
        with av.open(str(folder / f"{name}.mkv"), "w") as file:
            stream: Any = file.add_stream("mjpeg", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
            for index in range(50):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64), 5 * index, np.uint8), "gray")
                (packet,) = stream.encode(frame.reformat(format="yuvj420p"))
                packet.pts = packet.dts = position(index)
                file.mux(packet)
    parts = []
    for size in ((64, 48), (128, 96)):
        with av.open(str(whole), "w") as file:
            stream = file.add_stream("mpeg2video", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            for index in range(50):
                frame = av.VideoFrame.from_ndarray(np.full(size[::-1], 5 * index, np.uint8), "gray")
                file.mux(stream.encode(frame.reformat(format="yuv420p")))
            file.mux(stream.encode())
        parts.append(whole.read_bytes())
    (folder / "resized.ts").write_bytes(b"".join(parts))  # its timestamps also jump back
    (folder / "cut.ts").write_bytes(parts[1][: len(parts[1]) * 2 // 3 + 77])
    noise = np.frombuffer(parts[0], np.uint8).copy()
    chance = np.random.default_rng(1)
    noise[chance.integers(0, len(noise), len(noise) // 100)] = chance.integers(0, 256, len(noise) // 100)
    (folder / "noise.ts").write_bytes(noise.tobytes())
    return sorted(folder.glob("*.*"))


async def serve_clip(clips: list[Path], chance: random.Random, reader: Any, writer: Any) -> None:
    """Send a clip over HTTP: whole, cut, or stalled in the middle."""
    try:
        await reader.readuntil(b"\r\n\r\n")
        data = chance.choice(clips).read_bytes()
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + data[: chance.choice([len(data), len(data) // 2])])
        await writer.drain()
        await asyncio.sleep(chance.choice([0.0, 0.5, 5.0]))
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.transport.abort()


async def view_media(service: "si.Stack", targets: list[Any], chance: random.Random, end_s: float) -> list[int]:
    """Open, read, leave and fail at random until ``end_s``.

    Returns:
        The numbers of sources, of frames, of failures, and of frames that are not counted exactly once.
    """
    counts = [0, 0, 0, 0]
    while time.monotonic() < end_s:
        target = chance.choice(targets)
        live = isinstance(target, str)
        source = VideoSource(
            target,
            size=(32, 32),
            timeout_s=1.0,
            reconnect=Reconnect(first_s=0.05, max_s=0.2, attempts=3) if live else None,
            realtime=not live and chance.random() < 0.5,
        )
        session = StreamSession(service, policy=LatestOnly())
        left = chance.choice([1, 10, 1_000])
        try:
            async with source, asyncio.timeout(chance.choice([0.2, 1.0, 4.0])):
                async for _ in session(source):
                    left -= 1
                    if not left:
                        break
        except (OSError, ValueError, av.FFmpegError):
            counts[2] += 1
        await session.aclose()
        seen = session.statistics()
        counts[3] += abs(seen.received - seen.delivered - seen.failed - sum(seen.dropped.values()))
        counts[0] += 1
        counts[1] += seen.received
    return counts


async def churn_media(seconds: float, places: int) -> list[int]:
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as name:
        clips = write_broken_media(Path(name))
        connections: set[asyncio.Task[None]] = set()

        async def serve(reader: Any, writer: Any) -> None:
            task = asyncio.current_task()
            if task is not None:
                connections.add(task)
                task.add_done_callback(connections.discard)
            await serve_clip(clips, chance, reader, writer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        targets = [
            *clips,
            Path(name, "missing"),
            *[f"http://127.0.0.1:{port}/live"] * len(clips),
            "http://127.0.0.1:9/",
        ]
        end_s = time.monotonic() + seconds
        async with si.Stack(
            si.AdaptiveBatcher(max_batch_size=32), si.CpuBackend(lambda x: x.mean((1, 2, 3)))
        ) as service:
            counts = await asyncio.gather(*(view_media(service, targets, chance, end_s) for _ in range(places)))
        server.close()
        await asyncio.gather(*connections)
        await server.wait_closed()
        left = len(asyncio.all_tasks()) - 1
    return [*(sum(column) for column in zip(*counts, strict=True)), left]


def measure_churn(seconds: float, places: int) -> None:
    """Report the tasks, threads and descriptors that files and URLs leave after random opens, stalls and failures."""
    logging.getLogger("streaminfer.streams").setLevel(logging.ERROR)  # the many reconnects are not logged
    asyncio.run(churn_media(min(seconds, 10.0), places))  # warm-up: modules and pools of the first use are no leak
    before = resources()
    sources, frames, errors, uncounted, tasks = asyncio.run(churn_media(seconds, places))
    after = resources()
    print(
        f"churn of {places} files and URLs for {seconds:g} s: {sources} sources, {errors} of them failed; "
        + ", ".join(f"{name} {before[name]} before, {after[name]} after" for name in before)
    )
    grown = sum(max(after[name] - before[name], 0) for name in ("threads", "descriptors"))
    LEFT.report(tasks + grown, note=f"{sources:,} sources")
    UNCOUNTED.report(uncounted, of=frames)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--churn", type=float, default=60.0, help="seconds of churn; 0 leaves it out")
    parser.add_argument("--places", type=int, default=50, help="sources that are open at the same time")
    parser.add_argument("--media", nargs="+", choices=["video", "audio"], default=["video", "audio"])
    arguments = parser.parse_args()
    measure_cpu(2 * arguments.rounds + 1)
    if arguments.churn:
        measure_churn(arguments.churn, arguments.places)
    if missing := lossy_network.missing_parts():
        print(f"left out: WebRTC through a lossy network, which needs {', '.join(missing)}")
    else:
        for medium in arguments.media:
            measure_network(medium, arguments.rounds, arguments.seconds)

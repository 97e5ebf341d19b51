"""Sources: WebRTC through a network that loses and delays packets, and CPU per picture beside a bare PyAV loop.

The network runs without loss and with 5 % of it, in turn, each with 50 ms of jitter, and with aiortc alone beside it.
The age of pictures counts from the instant at which the sender made them; that of sound is as the source says. It needs
root, TUN and network namespaces; without, that part is left out and said so.
"""

import argparse
import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
from servers import lossy_network
from servers.webrtc_peers import RATE, run_peers

from streaminfer.streams import VideoSource

CLIP = Path(__file__).parents[2] / "examples" / "assets" / "astronaut_pan.mp4"
SIZE = (320, 240)
DELAY_MS, JITTER_MS, LOSS = 20.0, 50.0, 5.0
BAR_MS = 100.0


def ages_ms(kind: str, result: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Age of each frame when the reader got it."""
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
    for recovery, name in ((True, "from_track(connection=…)"), (False, "aiortc alone")):
        added = statistics.median(p99s[recovery, LOSS]) - statistics.median(p99s[recovery, 0.0])
        print(f"{kind:>6} {name:>24}: loss adds {added:.0f} ms to the p99 (bar for the first: {BAR_MS:.0f} ms)")
    if kind == "video":
        print(f"{kind:>6} frames that arrived: {arrived}; neither delivered nor counted as dropped: {uncounted}")


def play_bare() -> int:
    """Decode and convert with PyAV alone."""
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
    print(
        f"CPU per picture: bare PyAV {bare:.0f} µs, VideoSource {ours:.0f} µs; "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--media", nargs="+", choices=["video", "audio"], default=["video", "audio"])
    arguments = parser.parse_args()
    measure_cpu(2 * arguments.rounds + 1)
    if missing := lossy_network.missing_parts():
        print(f"left out: WebRTC through a lossy network, which needs {', '.join(missing)}")
    else:
        for medium in arguments.media:
            measure_network(medium, arguments.rounds, arguments.seconds)

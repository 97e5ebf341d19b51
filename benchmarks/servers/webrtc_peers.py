"""Two aiortc peers in separate processes, with a network between them that loses and delays packets.

The sender's pictures show their number, and its sound is a tone; both are due at known instants of the machine's
monotonic clock, so the age of a delivered frame is measured from its capture.
"""

import asyncio
import contextlib
import fractions
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription

import streaminfer as si
from streaminfer.streams import from_track
from streaminfer.streams.sources.loss_recovery import recover_losses

__all__ = ["RATE", "read_number", "run_peers"]

RATE = 25
SIZE = (320, 240)
BITS = 12
BLOCK = 16
SOUND_RATE = 48_000
CHUNK = 512
NETWORK = Path(__file__).with_name("lossy_network.py")
ROOT = Path(__file__).parents[2]


def draw_number(number: int) -> np.ndarray[Any, Any]:
    """Return a picture with a number as light and dark blocks, which survive any compression."""
    picture = np.full((SIZE[1], SIZE[0]), 128, np.uint8)
    for bit in range(BITS):
        picture[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 if number >> bit & 1 else 0
    return picture


def read_number(picture: np.ndarray[Any, Any]) -> int:
    """Return the number that a gray picture shows."""
    inner = slice(BLOCK // 4, BLOCK * 3 // 4)
    return sum(
        int(picture[inner, bit * BLOCK : (bit + 1) * BLOCK][:, inner].mean() > 128) << bit for bit in range(BITS)
    )


class Paced(MediaStreamTrack):
    """Track of frames that are due at regular instants; it ends after a given number of frames."""

    def __init__(self, kind: str, period: fractions.Fraction, count: int) -> None:
        super().__init__()
        self.kind = kind
        self.start_ns = 0
        self._period = period
        self._count = count
        self._number = 0

    async def recv(self) -> Any:
        number = self._number
        if not self.start_ns:
            self.start_ns = time.monotonic_ns()
        if number >= self._count:
            self.stop()
        self._number += 1
        due_ns = self.start_ns + round(number * self._period * 1_000_000_000)
        await asyncio.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
        if self.kind == "video":
            frame: Any = av.VideoFrame.from_ndarray(draw_number(number), "gray").reformat(format="yuv420p")
            frame.time_base = fractions.Fraction(1, 90_000)
        else:
            samples = round(self._period * SOUND_RATE)
            tone = np.sin(np.arange(number * samples, (number + 1) * samples) * (2 * np.pi * 440 / SOUND_RATE)) * 8_000
            frame = av.AudioFrame.from_ndarray(tone.astype(np.int16)[np.newaxis], "s16", "mono")
            frame.sample_rate = SOUND_RATE
            frame.time_base = fractions.Fraction(1, SOUND_RATE)
        frame.pts = round(number * self._period / frame.time_base)
        return frame


class Counted:
    """Track that counts the frames that arrive."""

    def __init__(self, track: MediaStreamTrack) -> None:
        self.kind = track.kind
        self.arrived = 0
        self._track = track
        self.stop = track.stop

    async def recv(self) -> Any:
        frame = await self._track.recv()
        self.arrived += 1
        return frame


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


async def hear() -> dict[str, Any]:
    line = await asyncio.to_thread(sys.stdin.readline)
    return dict(json.loads(line))


async def send(kind: str, seconds: float) -> None:
    """Offer a track; once all frames are sent, report the instant at which the first was due."""
    period = fractions.Fraction(1, RATE) if kind == "video" else fractions.Fraction(20, 1_000)
    track = Paced(kind, period, round(seconds / period))
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    peer.addTrack(track)
    await peer.setLocalDescription(await peer.createOffer())
    say(sdp=peer.localDescription.sdp)
    await peer.setRemoteDescription(RTCSessionDescription((await hear())["sdp"], "answer"))
    ended = asyncio.Event()
    track.add_listener("ended", ended.set)
    await ended.wait()
    await asyncio.sleep(1.0)  # time to send lost packets again
    say(start_ns=track.start_ns)
    await hear()
    await peer.close()


async def receive(kind: str, recovery: str) -> None:
    """Answer an offer, and report the frames that a source delivered from the track."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    tracks: asyncio.Queue[MediaStreamTrack] = asyncio.Queue()
    peer.add_listener("track", tracks.put_nowait)
    await peer.setRemoteDescription(RTCSessionDescription((await hear())["sdp"], "offer"))
    await peer.setLocalDescription(await peer.createAnswer())
    say(sdp=peer.localDescription.sdp)
    remote = await tracks.get()
    if recovery == "recovery":
        recover_losses(peer, remote)
    track = Counted(remote)
    wanted = {"pixel_format": "gray"} if kind == "video" else {"chunk": CHUNK}
    frames: list[tuple[int, int, int]] = []
    first = 0

    async def read(source: "si.streams.Source") -> None:
        nonlocal first
        async for frame in source:
            now_ns = time.monotonic_ns()
            number = round((frame.position_s or 0.0) * (RATE if kind == "video" else SOUND_RATE))
            if kind == "video" and not frames:
                first = read_number(frame.inputs) - number  # from a whole picture; later ones may lack lost packets
            number += first
            frames.append((number, frame.captured_ns, now_ns))

    source = from_track(track, **wanted)
    reader = asyncio.create_task(read(source))
    cpu_s = time.process_time()
    await hear()
    cpu_s = time.process_time() - cpu_s
    await peer.close()
    await reader
    await source.aclose()
    statistics = source.statistics()
    say(
        frames=frames,
        arrived=track.arrived,
        delivered=statistics.delivered,
        dropped=statistics.dropped,
        silence_s=statistics.silence_s,
        cpu_s=cpu_s,
        tasks=len(asyncio.all_tasks()) - 1,
    )


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    folders = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    running = subprocess.Popen(
        arguments, env=os.environ | {"PYTHONPATH": folders}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def run_peers(
    kind: str, seconds: float, *, loss: float, delay_ms: float, jitter_ms: float, recovery: bool = True
) -> dict[str, Any]:
    """Send for some seconds through a network; return the receiver's report, and when the first frame was due.

    Without ``recovery``, the receiver has only the loss recovery of aiortc.
    """
    peer = ("unshare", "--net", sys.executable, __file__)
    with (
        process(*peer, "send", kind, str(seconds)) as sender,
        process(*peer, "receive", kind, "recovery" if recovery else "alone") as receiver,
    ):

        def tell(to: subprocess.Popen[str], line: str) -> None:
            assert to.stdin is not None
            to.stdin.write(line)
            to.stdin.flush()

        def line_of(of: subprocess.Popen[str]) -> str:
            assert of.stdout is not None
            if not (line := of.stdout.readline()):
                raise RuntimeError("a peer has ended")
            return line

        ready = [line_of(sender), line_of(receiver)]
        assert ready == ['{"ready": true}\n'] * 2
        pids = [str(sender.pid), str(receiver.pid)]
        network = (sys.executable, str(NETWORK), *pids, "--loss", str(loss), "--delay", str(delay_ms))
        with process(*network, "--jitter", str(jitter_ms)) as carrier:
            assert line_of(carrier) == "up\n"
            tell(sender, "{}\n")
            tell(receiver, line_of(sender))
            tell(sender, line_of(receiver))
            sent = json.loads(line_of(sender))
            tell(receiver, "{}\n")
            received = json.loads(line_of(receiver))
            tell(sender, "{}\n")
            return dict(received | sent)


async def main(role: str, kind: str, option: str) -> None:
    say(ready=True)
    if role == "send":
        await hear()  # the network is up
        await send(kind, float(option))
    else:
        await receive(kind, option)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

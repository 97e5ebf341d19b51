"""`WebRtcLeg`: a device over WebRTC, with real RTP, jitter buffer and retransmission, through a lossy relay.

*Design.* Two aiortc peers in this process, with a relay between their sockets. RTP headers are not encrypted: the relay
reads the timestamp of the first packet, so that the instant of capture of each frame is known at the receiver, whatever
was lost.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs

from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_count, check_instance, expected
from streaminfer.loadtest.devices.delivery import captures
from streaminfer.loadtest.devices.profile import CameraProfile, MicrophoneProfile
from streaminfer.loadtest.path.network import NetworkProfile, network_profile
from streaminfer.loadtest.path.scene import Scene
from streaminfer.loadtest.path.webrtc.udp_relay import UdpRelay
from streaminfer.streams.frame import Frame
from streaminfer.streams.sources.loss_recovery import recover_losses
from streaminfer.streams.sources.track import from_track

__all__ = ["WebRtcLeg"]

CANDIDATE = re.compile(
    r"^a=candidate:(\S+) 1 udp (\d+) (\d+\.\d+\.\d+\.\d+) (\d+) typ host.*$", re.IGNORECASE | re.MULTILINE
)
MIME_TYPES = {"vp8": "video/VP8", "h264": "video/H264", "opus": "audio/opus"}
CLOCK_RATES = {"video": 90_000, "audio": 48_000}
LINGER_S = 0.5
RTP_WRAP = 1 << 32
RTCP_TYPES = range(192, 224)


class WebRtcLeg:
    """One device whose stream comes over WebRTC, in real time.

    ::

        async with WebRtcLeg(scene, "wifi-busy", seconds=10.0) as leg:
            async for result in session(leg.frames(size=(192, 192))):
                ...

    The encoder is aiortc's, for VP8, H.264 or Opus; it chooses the bitrate.

    Args:
        scene: what the device captures.
        network: profile of its network, or its name.
        seconds: how long it sends; ``None``: it sends what :meth:`send` gets.
        seed: of jitter and loss, of the device and of the network.
        on_packet: is called with the ticks of a picture, from the first one, when a packet of it is sent or arrives.

    Attributes:
        network: profile of its network.
        clock_rate: ticks per second of RTP.
        relay: between the peers; it counts packets.

    Raises:
        MissingExtra: aiortc is not installed.
        ValueError: WebRTC has no such codec.
    """

    def __init__(
        self,
        scene: Scene,
        network: str | Path | NetworkProfile,
        *,
        seconds: float | None,
        seed: int = 0,
        on_packet: Callable[..., None] | None = None,
    ) -> None:
        self._aiortc = require("aiortc", extra="webrtc", purpose="WebRtcLeg")
        check_instance("scene", scene, lambda it: isinstance(it, Scene), "a Scene")
        codec = scene.profile.codec
        if codec not in MIME_TYPES:
            raise ValueError(expected("scene", "a device whose codec is one of " + ", ".join(MIME_TYPES), codec))
        self._scene = scene
        self._camera = isinstance(scene.profile, CameraProfile)
        self.clock_rate = CLOCK_RATES["video" if self._camera else "audio"]
        self._seed = check_count("seed", seed, at_least=0)
        self._moments = _Moments(scene, seconds, self._seed)
        self._on_packet = on_packet
        self.network = network_profile(network)
        self.relay = UdpRelay(self.network, seed=seed, on_forward=self._look, on_arrival=self._look_again)
        self._first_timestamp: int | None = None
        self._first_pts: int | None = None
        self._sender: Any = None
        self._receiver: Any = None
        self._remote: Any = None
        self._track: Any = None
        self._ending: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def frames(self, **wanted: Any) -> AsyncIterator[Frame]:
        """Yield what the model takes, with the true instants of capture.

        Args:
            wanted: as for `from_track`.
        """
        source = from_track(_Noted(self._remote, self._note), connection=None, **wanted)
        recover_losses(self._receiver, self._remote)
        async with source:
            async for frame in source:
                after_s = 0.0
                if not self._camera:  # the last sample counts; a packet is sent when its own last one was captured
                    after_s = frame.inputs.shape[-1] / wanted.get("sample_rate", 16_000) - self._scene.profile.period_s
                yield attrs.evolve(frame, captured_ns=self._captured_ns((frame.position_s or 0.0) + after_s))

    def send(self, number: int, captured_ns: int, handed_ns: int) -> int:
        """Send a picture, of a leg without ``seconds``; return its ticks.

        Args:
            number: of the picture in the scene.
            captured_ns: instant of capture, by the monotonic clock.
            handed_ns: instant at which the encoder gets it.
        """
        start_ns = self._moments.start_ns = self._moments.start_ns or captured_ns
        self._moments.queue.put_nowait((number, captured_ns - start_ns, handed_ns - start_ns))
        return round((captured_ns - start_ns) * self.clock_rate / 1e9)

    async def __aenter__(self) -> Self:
        make = self._aiortc.RTCPeerConnection
        settings = self._aiortc.RTCConfiguration(iceServers=[])
        self._sender, self._receiver = make(settings), make(settings)
        tracks: asyncio.Queue[Any] = asyncio.Queue()
        self._receiver.add_listener("track", tracks.put_nowait)
        await self.relay.__aenter__()
        try:
            self._track = _scene_track(self._aiortc, self._scene, self._moments)
            transceiver = self._sender.addTransceiver(self._track, direction="sendonly")
            self._prefer(transceiver)
            await self._sender.setLocalDescription(await self._sender.createOffer())
            await self._receiver.setRemoteDescription(self._through_relay(0, self._sender.localDescription))
            await self._receiver.setLocalDescription(await self._receiver.createAnswer())
            await self._sender.setRemoteDescription(self._through_relay(1, self._receiver.localDescription))
            self._remote = await tracks.get()
            self._ending = asyncio.get_running_loop().create_task(self._end())
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _end(self) -> None:
        """End the stream at the receiver once what was lost has been sent again."""
        ended = asyncio.Event()
        self._track.add_listener("ended", ended.set)
        if self._track.readyState == "live":
            await ended.wait()
        await asyncio.sleep(LINGER_S)
        await asyncio.shield(self._close_receiver())

    def _close_receiver(self) -> asyncio.Task[None]:
        """Return the one task that closes it: aiortc cannot close again what was cancelled while it closed."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._receiver.close())
        return self._closing

    async def _close(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            await asyncio.wait([self._ending])
        await asyncio.gather(self._sender.close(), self._close_receiver())
        await self.relay.__aexit__(None, None, None)

    def _prefer(self, transceiver: Any) -> None:
        kind = "video" if self._camera else "audio"
        known = self._aiortc.RTCRtpSender.getCapabilities(kind).codecs
        wanted = MIME_TYPES[self._scene.profile.codec].lower()
        transceiver.setCodecPreferences([codec for codec in known if codec.mimeType.lower() == wanted])

    def _through_relay(self, side: int, description: Any) -> Any:
        """Return a description whose only candidate is an address of the relay."""
        found = CANDIDATE.search(description.sdp)
        if found is None:
            raise OSError("WebRTC: this machine has no IPv4 address other than loopback")
        host, port = self.relay.connect(side, (found[3], int(found[4])))
        line = f"a=candidate:{found[1]} 1 udp {found[2]} {host} {port} typ host"
        lines = [it for it in description.sdp.split("\r\n") if not it.startswith("a=candidate:")]
        place = next(number for number, it in enumerate(lines) if it.startswith("m=")) + 1
        sdp = "\r\n".join([*lines[:place], *lines[place:-1], line, *lines[-1:]])
        return self._aiortc.RTCSessionDescription(sdp, description.type)

    def _look(self, packet: bytes, *, arrived: bool = False) -> None:
        """Note the timestamp of an RTP packet."""
        is_rtp = len(packet) >= 12 and packet[0] >> 6 == 2 and packet[1] not in RTCP_TYPES
        if not is_rtp:
            return
        timestamp = int.from_bytes(packet[4:8], "big")
        if self._first_timestamp is None:
            self._first_timestamp = timestamp
        if self._on_packet is not None:
            self._on_packet((timestamp - self._first_timestamp) % RTP_WRAP, arrived=arrived)

    def _look_again(self, packet: bytes) -> None:
        self._look(packet, arrived=True)

    def _note(self, pts: int) -> None:
        if self._first_pts is None:
            self._first_pts = pts

    def _captured_ns(self, position_s: float) -> int:
        # aiortc counts from the first timestamp that it received, which it keeps; those before it were lost
        (receiver,) = self._receiver.getReceivers()
        origin = receiver._RTCRtpReceiver__timestamp_mapper._origin
        ticks = (origin - (self._first_timestamp or 0)) % RTP_WRAP + (self._first_pts or 0)
        captured_ns: int = self._moments.start_ns + round((ticks / self.clock_rate + position_s) * 1e9)
        return captured_ns


class _Noted:
    """A track that tells the timestamps of its frames."""

    def __init__(self, track: Any, note: Any) -> None:
        self.kind = track.kind
        self.stop = track.stop
        self._track = track
        self._note = note

    async def recv(self) -> Any:
        frame = await self._track.recv()
        self._note(frame.pts)
        return frame


class _Moments:
    """When frames are captured and handed over, from the start: of a device, or as they are given."""

    def __init__(self, scene: Scene, seconds: float | None, seed: int) -> None:
        self.start_ns = 0
        self.queue: asyncio.Queue[tuple[int, int, int]] = asyncio.Queue()
        period_s = scene.profile.period_s
        self._captures = None if seconds is None else captures(scene.profile.delivery, period_s, seed)
        self._count = max(1, round((seconds or 0.0) / period_s))

    async def next(self) -> tuple[int, int, int] | None:
        """Return number, capture and delivery of the next frame; ``None``: there is none."""
        if self._captures is None:
            return await self.queue.get()
        self.start_ns = self.start_ns or time.monotonic_ns()
        capture = next(it for it in self._captures if it.delivered_ns is not None)
        return (
            None if capture.number >= self._count else (capture.number, capture.captured_ns, capture.delivered_ns or 0)
        )


def _scene_track(aiortc: Any, scene: Scene, moments: _Moments) -> Any:
    """Return a track that plays a scene at these moments."""

    class SceneTrack(aiortc.MediaStreamTrack):  # type: ignore[misc] # aiortc is there at run time only
        """Paced frames of a scene."""

        kind = "video" if isinstance(scene.profile, CameraProfile) else "audio"

        async def recv(self) -> Any:
            moment = await moments.next()
            if moment is None:
                self.stop()
                raise aiortc.mediastreams.MediaStreamError
            number, captured_ns, handed_ns = moment
            await asyncio.sleep(max(0, moments.start_ns + handed_ns - time.monotonic_ns()) / 1e9)
            frame = scene.frame(number)
            profile = scene.profile
            ticks = profile.sample_rate if isinstance(profile, MicrophoneProfile) else CLOCK_RATES["video"]
            frame.time_base = Fraction(1, ticks)
            frame.pts = round(captured_ns * ticks / 1e9)
            return frame

    return SceneTrack()

"""`WebRtcLeg`: a device over WebRTC, with real RTP, jitter buffer and retransmission, through a lossy relay.

*Design.* Two aiortc peers run in this process, with a relay between their sockets. RTP headers are not encrypted, so
the relay can read the timestamp of the first packet. The receiver therefore knows the instant of capture of each frame,
whatever was lost.
"""

import asyncio
import itertools
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import attrs
import numpy as np

from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_count, check_duration_ns, check_instance, expected
from streaminfer.loadtest.devices.delivery import Capture, captures
from streaminfer.loadtest.devices.profile import CameraProfile, MicrophoneProfile
from streaminfer.loadtest.path.network import NetworkProfile, network_profile
from streaminfer.loadtest.path.scene import Scene
from streaminfer.loadtest.path.webrtc.udp_relay import UdpRelay
from streaminfer.streams.frame import Frame
from streaminfer.streams.sources.loss_recovery import recover_losses
from streaminfer.streams.sources.track import from_track

__all__ = ["PACKET_SAMPLES", "WebRtcLeg"]

CANDIDATE = re.compile(
    r"^a=candidate:(\S+) 1 udp (\d+) (\d+\.\d+\.\d+\.\d+) (\d+) typ host.*$", re.IGNORECASE | re.MULTILINE
)
MIME_TYPES = {"vp8": "video/VP8", "h264": "video/H264", "opus": "audio/opus"}
CLOCK_RATES = {"video": 90_000, "audio": 48_000}
PACKET_SAMPLES = 960
"""Samples per packet of aiortc's encoder, which joins shorter frames."""
LINGER_S = 0.5
"""Seconds after the end of the device in which lost packets are sent again."""
DECODING_S = 0.25
"""Seconds for decoding after the last packet, which may take long to arrive."""
RTP_WRAP = 1 << 32
RTCP_TYPES = range(192, 224)


class WebRtcLeg:
    """Stream of one device over WebRTC, in real time.

    ::

        async with WebRtcLeg(scene, "wifi-busy", seconds=10.0) as leg:
            async for result in session(leg.frames(size=(192, 192))):
                ...

    The encoder is aiortc's, for VP8, H.264 or Opus; it chooses the bitrate. Entering waits until both ends are
    connected, so the set-up does not count in a frame's age; if the connection fails, it raises an ``OSError``.

    Args:
        scene: the scene that the device captures.
        network: profile of the network, or its name.
        seconds: how long the device sends; ``None``: it sends the frames given to :meth:`send`.
        seed: seed of jitter and loss of the device and of the network.
        on_packet: called when a packet is sent or arrives, with the RTP ticks of its picture or sound, counted from the
            first packet.

    Attributes:
        network: profile of the network.
        clock_rate: RTP ticks per second.
        relay: relay between the peers; it counts packets.

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
        check_instance("scene", scene, Scene, "a Scene")
        codec = scene.profile.codec
        if codec not in MIME_TYPES:
            raise ValueError(expected("scene", "a device whose codec is one of " + ", ".join(MIME_TYPES), codec))
        self._scene = scene
        self._camera = isinstance(scene.profile, CameraProfile)
        self._kind = "video" if self._camera else "audio"
        self.clock_rate = CLOCK_RATES[self._kind]
        self._seed = check_count("seed", seed, at_least=0)
        self._start_ns = 0
        self._frame_times: asyncio.Queue[tuple[int, int, int]] = asyncio.Queue()  # of the frames given to `send`
        self._captures: Iterator[Capture] | None = None
        if seconds is not None:
            period_s = scene.profile.period_s
            all_frames = captures(scene.profile.delivery, period_s, self._seed)
            duration_s = check_duration_ns("seconds", seconds, positive=True) / 1e9
            self._captures = itertools.islice(all_frames, max(1, round(duration_s / period_s)))
        self._on_packet = on_packet
        self.network = network_profile(network)
        self.relay = UdpRelay(self.network, seed=seed, on_packet=self._read_packet)
        self._first_timestamp: int | None = None
        self._sender: Any = None
        self._receiver: Any = None
        self._remote_track: Any = None
        self._track: Any = None
        self._end_task: asyncio.Task[None] | None = None
        self._receiver_close_task: asyncio.Task[None] | None = None  # of the receiver
        self._close_task: asyncio.Task[None] | None = None
        self._connecting: list[asyncio.Task[None]] = []

    async def frames(self, **wanted: Any) -> AsyncIterator[Frame]:
        """Yield frames for the model, with the true instants of capture.

        Args:
            wanted: format of the frames, as for `from_track`.
        """
        track = _FirstPtsTrack(self._remote_track)
        source = from_track(track, connection=None, **wanted)
        recover_losses(self._receiver, self._remote_track)
        async with source:
            async for frame in source:
                after_s = 0.0
                if not self._camera:  # a chunk counts from its last sample, as a packet does
                    after_s = frame.inputs.shape[-1] / wanted.get("sample_rate", 16_000) - self._scene.profile.period_s
                position_s = self._ticks(track.first_pts or 0) / self.clock_rate + (frame.position_s or 0.0) + after_s
                yield attrs.evolve(frame, captured_ns=self._start_ns + round(position_s * 1e9))

    async def sound(self) -> AsyncIterator[tuple[int, Any]]:
        """Yield the ticks of each packet of sound, counted from the first packet sent, and the decoded frame."""
        recover_losses(self._receiver, self._remote_track)
        while True:
            try:
                frame = await self._remote_track.recv()
            except self._aiortc.mediastreams.MediaStreamError:
                return
            yield self._ticks(frame.pts) % RTP_WRAP, frame

    def send(self, number: int, captured_ns: int, handed_ns: int) -> int:
        """Send a frame of a leg without ``seconds``, and return its RTP ticks, which wrap around at 2**32.

        Args:
            number: number of the frame in the scene.
            captured_ns: instant of capture on the monotonic clock.
            handed_ns: instant at which the encoder gets the frame.
        """
        start_ns = self._start_ns = self._start_ns or captured_ns
        self._frame_times.put_nowait((number, captured_ns - start_ns, handed_ns - start_ns))
        return round((captured_ns - start_ns) * self.clock_rate / 1e9) % RTP_WRAP

    async def __aenter__(self) -> Self:
        make = self._aiortc.RTCPeerConnection
        settings = self._aiortc.RTCConfiguration(iceServers=[])
        self._sender, self._receiver = make(settings), make(settings)
        for peer in (self._sender, self._receiver):
            self._record_connecting(peer)
        tracks: asyncio.Queue[Any] = asyncio.Queue()
        self._receiver.add_listener("track", tracks.put_nowait)
        await self.relay.__aenter__()
        try:
            self._track = self._scene_track()
            transceiver = self._sender.addTransceiver(self._track, direction="sendonly")
            self._prefer_codec(transceiver)
            await self._sender.setLocalDescription(await self._sender.createOffer())
            await self._receiver.setRemoteDescription(self._through_relay(0, self._sender.localDescription))
            await self._receiver.setLocalDescription(await self._receiver.createAnswer())
            await self._sender.setRemoteDescription(self._through_relay(1, self._receiver.localDescription))
            self._remote_track = await tracks.get()
            await asyncio.gather(_connected(self._sender), _connected(self._receiver))
            self._end_task = asyncio.get_running_loop().create_task(self._end())
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _end(self) -> None:
        """End the stream at the receiver once all packets have arrived, retransmissions included."""
        ended = asyncio.Event()
        self._track.add_listener("ended", ended.set)
        if self._track.readyState == "live":
            await ended.wait()
        await asyncio.sleep(LINGER_S)
        await asyncio.sleep(max(0.0, self.relay.remaining_s() + DECODING_S))
        await asyncio.shield(self._close_receiver())

    def _close_receiver(self) -> asyncio.Task[None]:
        """Return the only task that closes the receiver: aiortc cannot close again after a cancelled close."""
        if self._receiver_close_task is None:
            self._receiver_close_task = asyncio.get_running_loop().create_task(self._receiver.close())
        return self._receiver_close_task

    def _record_connecting(self, peer: Any) -> None:
        """Record the tasks in which a peer connects: aiortc leaves them running when the peer is closed."""
        connect = peer._RTCPeerConnection__connect

        def begin() -> asyncio.Task[None]:
            self._connecting.append(asyncio.get_running_loop().create_task(connect()))
            return self._connecting[-1]

        peer._RTCPeerConnection__connect = begin

    async def _close(self) -> None:
        """Close in one task that ends even if the caller is cancelled: peers that stay open run forever."""
        if self._sender is None:
            return  # never entered
        if self._close_task is None:
            self._close_task = asyncio.get_running_loop().create_task(self._close_all())
        try:
            await asyncio.shield(self._close_task)
        finally:
            await asyncio.wait([self._close_task])

    async def _close_all(self) -> None:
        if self._end_task is not None:
            self._end_task.cancel()
            await asyncio.wait([self._end_task])
        for connecting in self._connecting:
            connecting.cancel()
        if self._connecting:
            await asyncio.wait(self._connecting)
        await asyncio.gather(self._sender.close(), self._close_receiver())
        await self.relay.__aexit__(None, None, None)

    def _prefer_codec(self, transceiver: Any) -> None:
        codecs = self._aiortc.RTCRtpSender.getCapabilities(self._kind).codecs
        mime_type = MIME_TYPES[self._scene.profile.codec].lower()
        transceiver.setCodecPreferences([codec for codec in codecs if codec.mimeType.lower() == mime_type])

    def _through_relay(self, side: int, description: Any) -> Any:
        """Return a description with an address of the relay as its only candidate."""
        candidate = CANDIDATE.search(description.sdp)
        if candidate is None:
            raise OSError("WebRTC: this machine has no IPv4 address other than loopback")
        host, port = self.relay.connect(side, (candidate[3], int(candidate[4])))
        line = f"a=candidate:{candidate[1]} 1 udp {candidate[2]} {host} {port} typ host"
        lines = [it for it in description.sdp.split("\r\n") if not it.startswith("a=candidate:")]
        sdp = "\r\n".join([*lines[:-1], line, *lines[-1:]])
        return self._aiortc.RTCSessionDescription(sdp, description.type)

    def _read_packet(self, packet: bytes, *, arrived: bool) -> None:
        """Read the timestamp of an RTP packet, and report the packet to ``on_packet``."""
        is_rtp = len(packet) >= 12 and packet[0] >> 6 == 2 and packet[1] not in RTCP_TYPES
        if not is_rtp:
            return
        timestamp = int.from_bytes(packet[4:8], "big")
        if self._first_timestamp is None:
            self._first_timestamp = timestamp
        if self._on_packet is not None:
            self._on_packet((timestamp - self._first_timestamp) % RTP_WRAP, arrived=arrived)

    def _ticks(self, pts: int) -> int:
        # aiortc counts from the first timestamp that it received; packets before that were lost
        (receiver,) = self._receiver.getReceivers()
        origin: int = receiver._RTCRtpReceiver__timestamp_mapper._origin
        return (origin - (self._first_timestamp or 0)) % RTP_WRAP + pts

    async def _next_frame_time(self) -> tuple[int, int, int] | None:
        """Return number, capture and delivery of the next frame, counted from the start; ``None`` after the last."""
        if self._captures is None:
            return await self._frame_times.get()
        for capture in self._captures:
            if capture.delivered_ns is not None:
                return capture.number, capture.captured_ns, capture.delivered_ns
        return None

    def _parts_of(self, number: int) -> list[Any]:
        """Return a picture, or the sound of each packet: aiortc gives all packets of one frame the same timestamp."""
        frame = self._scene.frame(number)
        step = CLOCK_RATES["audio"] // PACKET_SAMPLES
        if self._camera or frame.samples * step <= frame.sample_rate:
            return [frame]
        samples, parts = frame.to_ndarray(), []
        for start in range(0, frame.samples, frame.sample_rate // step):
            part = np.ascontiguousarray(samples[:, start : start + frame.sample_rate // step])
            parts.append(type(frame).from_ndarray(part, frame.format.name, frame.layout.name))
            parts[-1].sample_rate = frame.sample_rate
        return parts

    def _scene_track(self) -> Any:
        """Return a track that plays the scene at its moments."""
        leg, profile = self, self._scene.profile
        clock_rate = profile.sample_rate if isinstance(profile, MicrophoneProfile) else CLOCK_RATES["video"]
        base: Any = self._aiortc.MediaStreamTrack  # known at run time only

        class SceneTrack(base):  # type: ignore[misc] # known at run time only
            """Paced frames of a scene."""

            kind = leg._kind

            def __init__(self) -> None:
                super().__init__()
                self._parts: deque[Any] = deque()  # rest of the current frame

            async def recv(self) -> Any:
                if self._parts:
                    return self._parts.popleft()
                frame_time = await leg._next_frame_time()
                if frame_time is None:
                    self.stop()
                    raise leg._aiortc.mediastreams.MediaStreamError
                number, captured_ns, handed_ns = frame_time
                leg._start_ns = leg._start_ns or time.monotonic_ns()
                await asyncio.sleep(max(0, leg._start_ns + handed_ns - time.monotonic_ns()) / 1e9)
                self._parts.extend(leg._parts_of(number))
                pts = round(captured_ns * clock_rate / 1e9)
                for part in self._parts:
                    part.time_base, part.pts = Fraction(1, clock_rate), pts
                    pts += 0 if leg._camera else part.samples
                return self._parts.popleft()

        return SceneTrack()


class _FirstPtsTrack:
    """Wrapper of a track that records the timestamp of its first frame."""

    def __init__(self, track: Any) -> None:
        self.kind = track.kind
        self.stop = track.stop
        self._track = track
        self.first_pts: int | None = None

    async def recv(self) -> Any:
        frame = await self._track.recv()
        if self.first_pts is None:
            self.first_pts = frame.pts
        return frame


async def _connected(peer: Any) -> None:
    """Wait until a peer is connected, so that no frame waits for the set-up."""
    state_changed = asyncio.Event()
    peer.add_listener("connectionstatechange", state_changed.set)
    while peer.connectionState != "connected":
        if peer.connectionState in {"failed", "closed"}:
            raise OSError(f"WebRTC: expected a connection, got one that is {peer.connectionState}")
        await state_changed.wait()
        state_changed.clear()

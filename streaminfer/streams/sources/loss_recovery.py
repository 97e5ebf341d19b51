"""Recovery of a WebRTC receiver from lost packets, in time.

*Design.* aiortc's jitter buffer returns at most one frame per packet that arrives, and waits for a lost packet until
the buffer is full: 16 packets of sound, 512 of pictures. So frames that a loss delayed stay late, and losses add up to
seconds (aiortc issue 543). The buffer also holds back four packets of sound, for an even playback. This module makes a
receiver do three more things with each packet:

* decode every complete frame: a picture at its last packet, which is marked, and not at the next one; sound at each
  packet;
* request a lost packet of a picture again, because the first request or the repeated packet may be lost too;
* skip a lost packet after a time, with the rest of its picture, and request a whole picture. Sound is not sent again,
  so its time is short: just enough for packets that overtake each other. A packet that comes later is ignored. aiortc
  would take a packet that is 100 behind for a sender that has restarted.

The module reads and changes private attributes of ``RTCRtpReceiver`` and ``JitterBuffer``; `recover_losses` rejects a
receiver without them.
"""

import time
from typing import Any, Literal

from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import expected
from streaminfer.streams.sources.source import Clock

__all__ = ["GapPolicy", "recover_losses"]

MAX_WAIT_NS = {"video": 100_000_000, "audio": 40_000_000}
NACK_INTERVAL_NS = 40_000_000
LATE_TICKS = 900_000
"""How far the timestamp of a late packet may be behind; after a restart of the sender it can be anywhere."""
HALF_RANGE = 0x8000
"""Half of all sequence numbers: a number that is further ahead counts as behind."""

NAL_KIND, FIRST_BIT = 0x1F, 0x80
AGGREGATE, FRAGMENT, SLICES = 24, 28, (1, 5)
"""Types of H.264 units: several units in a packet, a part of a unit, slices of a picture."""

Action = Literal["wait", "ask", "skip"]


class GapPolicy:
    """Decides when to request a missing packet again, and when to skip it.

    Args:
        max_wait_ns: the longest wait for a packet.
    """

    def __init__(self, max_wait_ns: int) -> None:
        self._max_wait_ns = max_wait_ns
        self._missing = -1
        self._last_nack_ns = 0

    def decide(self, missing: int, detected_ns: int, now_ns: int) -> Action:
        """Return the action for the first missing packet; a later packet revealed it at ``detected_ns``."""
        if missing != self._missing:
            self._missing, self._last_nack_ns = missing, detected_ns  # the receiver sent the first request then
        if now_ns - detected_ns >= self._max_wait_ns:
            return "skip"
        if now_ns - self._last_nack_ns >= NACK_INTERVAL_NS:
            self._last_nack_ns = now_ns
            return "ask"
        return "wait"


def recover_losses(connection: Any, track: Any, clock: Clock = time.monotonic_ns) -> None:
    """Let the receiver of a track recover from lost packets in time.

    Args:
        connection: the ``RTCPeerConnection`` that the track came from.
        track: the track.
        clock: returns monotonic nanoseconds.

    Raises:
        ValueError: the track belongs to another connection, or this version of aiortc works differently.
    """
    receivers = [receiver for receiver in connection.getReceivers() if receiver.track is track]
    if not receivers:
        raise ValueError(expected("connection", "the connection that the track came from", connection))
    (receiver,) = receivers
    try:
        _Recovery(receiver, clock)
    except AttributeError as error:
        raise ValueError(f"connection: this version of aiortc is not known: {error}") from error


class _Recovery:
    def __init__(self, receiver: Any, clock: Clock) -> None:
        self._clock = clock
        self._receiver = receiver
        self._is_video = receiver.track.kind == "video"
        self._policy = GapPolicy(MAX_WAIT_NS[receiver.track.kind])
        self._buffer = receiver._RTCRtpReceiver__jitter_buffer
        self._codecs = receiver._RTCRtpReceiver__codecs
        self._decoder = receiver._RTCRtpReceiver__decoder_queue
        self._timestamps = receiver._RTCRtpReceiver__timestamp_mapper
        self._nacks = receiver._RTCRtpReceiver__nack_generator
        self._make_frame = require("aiortc.jitterbuffer", extra="webrtc", purpose="from_track").JitterFrame
        self._codec: Any = None
        self._ssrc = 0
        self._detected_ns: dict[int, int] = {}  # when a later packet showed that one is missing
        self._newest = (0, 0)  # number and timestamp
        self._add, self._buffer.add = self._buffer.add, self._add_in_time
        self._handle = receiver._handle_rtp_packet
        receiver._handle_rtp_packet = self._on_packet

    async def _on_packet(self, packet: Any, arrival_time_ms: int) -> None:
        await self._handle(packet, arrival_time_ms)
        codec = self._codecs.get(packet.payload_type)
        if codec is not None and codec.name.lower() != "rtx":  # packets that are sent again have a separate codec
            self._codec, self._ssrc = codec, packet.ssrc
        buffer = self._buffer
        if self._codec is None or buffer._origin is None:
            return
        now_ns = self._clock()
        self._drain()
        missing = self._find_missing()
        self._detected_ns = {number: self._detected_ns.get(number, now_ns) for number in missing}
        while missing:
            action = self._policy.decide(missing[0], self._detected_ns[missing[0]], now_ns)
            if action != "skip":
                if action == "ask" and self._nacks is not None and self._nacks.missing:
                    await self._receiver._send_rtcp_nack(self._ssrc, sorted(self._nacks.missing))
                return
            await self._skip((missing[0] - buffer._origin) & 0xFFFF)
            self._drain()
            missing = self._find_missing()

    def _add_in_time(self, packet: Any) -> tuple[bool, Any]:
        """Add a packet to aiortc's buffer, unless its picture was dropped; return the buffer's result.

        The result says whether to request a picture, and has the frame that the packet completes, or ``None``.
        """
        origin, number, timestamp = self._buffer._origin, packet.sequence_number, packet.timestamp
        is_behind = origin is not None and 0 < (origin - number) & 0xFFFF < HALF_RANGE
        if is_behind and (self._newest[1] - timestamp) & 0xFFFFFFFF < LATE_TICKS:
            return False, None
        if is_behind or origin is None or (number - self._newest[0]) & 0xFFFF < HALF_RANGE:
            self._newest = number, timestamp
        if number == origin and not _begins_frame(self._codecs[packet.payload_type].name.lower(), packet.payload):
            self._buffer.remove(1)  # the packets before it, and so its frame, were dropped
            return False, None
        added: tuple[bool, Any] = self._add(packet)
        return added

    async def _skip(self, ahead: int) -> None:
        """Skip the missing packet that is ``ahead`` packets after the first one."""
        buffer = self._buffer
        if not self._is_video:
            buffer.remove(1)  # it is the first one
            return
        buffer.smart_remove(ahead + 1)  # with the rest of its picture
        dropped = {number for number in self._nacks.missing if (number - buffer._origin) & 0xFFFF >= HALF_RANGE}
        self._nacks.missing -= dropped  # otherwise each later request includes them too
        await self._receiver._send_rtcp_pli(self._ssrc)

    def _drain(self) -> None:
        """Decode every frame that is complete."""
        while True:
            self._remove_headless()
            frame = self._buffer._remove_frame(0) or self._pop_marked()
            if frame is None:
                return
            frame.timestamp = self._timestamps.map(frame.timestamp)
            self._decoder.put((self._codec, frame))

    def _remove_headless(self) -> None:
        """Remove packets that begin no frame: padding, which would end a decoder, and packets after a lost one."""
        buffer = self._buffer
        while (packet := buffer._packets[buffer._origin % buffer.capacity]) is not None:
            if _begins_frame(self._codec.name.lower(), packet.payload):
                return
            buffer.remove(1)

    def _pop_marked(self) -> Any:
        """Return the first frame if its last packet has arrived, else ``None``."""
        buffer = self._buffer
        packets: list[Any] = []
        while len(packets) < buffer.capacity:
            packet = buffer._packets[(buffer._origin + len(packets)) % buffer.capacity]
            if packet is None:
                return None
            packets.append(packet)
            if packet.marker or not self._is_video:
                buffer.remove(len(packets))
                return self._make_frame(b"".join(part._data for part in packets), packets[0].timestamp)
        return None

    def _find_missing(self) -> list[int]:
        """Return the sequence numbers that are missing before the newest packet in the buffer."""
        packets, origin, capacity = self._buffer._packets, self._buffer._origin, self._buffer.capacity
        present = [ahead for ahead in range(capacity) if packets[(origin + ahead) % capacity] is not None]
        missing = set(range(present[-1])).difference(present) if present else ()
        return [(origin + ahead) & 0xFFFF for ahead in sorted(missing)]


def _begins_frame(codec: str, payload: bytes) -> bool:
    """Return whether a packet is the first one of a frame; a packet of sound always is."""
    if codec == "vp8":
        return bool(payload) and payload[0] & 0x17 == 0x10  # start of partition 0
    if codec == "h264" and payload:
        kind = payload[0] & NAL_KIND
        offset = {FRAGMENT: 1, AGGREGATE: 3}.get(kind, 0)  # of the first unit, behind which a slice has its position
        unit = payload[offset : offset + 2]
        if len(unit) < 2 or (kind == FRAGMENT and not unit[0] & FIRST_BIT):
            return False
        return unit[0] & NAL_KIND not in SLICES or bool(unit[1] & FIRST_BIT)
    return bool(payload)

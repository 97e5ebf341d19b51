"""Recovery of a WebRTC receiver from lost packets, in bounded time, with aiortc's own jitter buffer."""

import asyncio
import queue
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from aiortc import RTCPeerConnection
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder
from aiortc.jitterbuffer import JitterBuffer
from aiortc.rtcrtpreceiver import NackGenerator, TimestampMapper
from aiortc.rtp import RtpPacket
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.streams import from_track
from streaminfer.streams.sources.loss_recovery import (
    MAX_WAIT_NS,
    NACK_INTERVAL_NS,
    GapPolicy,
    _begins_frame,
    recover_losses,
)
from streaminfer.testing import FakeClock

MS = 1_000_000
FIRST = 65_500  # sequence numbers wrap on the way
PERIOD = {"audio": 20 * MS, "video": 40 * MS}
CAPACITY = {"audio": (16, 4), "video": (512, 0)}


class Receiver:
    """The part of an ``RTCRtpReceiver`` that the recovery uses."""

    def __init__(self, kind):
        self.track = SimpleNamespace(kind=kind)
        capacity, prefetch = CAPACITY[kind]
        self._RTCRtpReceiver__jitter_buffer = JitterBuffer(capacity, prefetch, is_video=kind == "video")
        self._RTCRtpReceiver__codecs = {96: SimpleNamespace(name="VP8")}
        self._RTCRtpReceiver__decoder_queue = queue.Queue()
        self._RTCRtpReceiver__timestamp_mapper = TimestampMapper()
        self._RTCRtpReceiver__nack_generator = NackGenerator() if kind == "video" else None
        self.requests = []

    async def _handle_rtp_packet(self, packet, arrival_time_ms):
        if self._RTCRtpReceiver__nack_generator is not None:
            self._RTCRtpReceiver__nack_generator.add(packet)
        _, frame = self._RTCRtpReceiver__jitter_buffer.add(packet)
        if frame is not None:
            frame.timestamp = self._RTCRtpReceiver__timestamp_mapper.map(frame.timestamp)
            self._RTCRtpReceiver__decoder_queue.put((None, frame))

    async def _send_rtcp_nack(self, ssrc, missing):
        self.requests.append(("nack", ssrc, tuple(missing)))

    async def _send_rtcp_pli(self, ssrc):
        self.requests.append(("pli", ssrc))


def receive(kind, arrivals, *, per_frame=1):
    """Send packets through a receiver; return its decoded frames ``(frame, data, instant)`` and its requests.

    A packet is ``(number, instant)``, with frame and data that follow from its number, or
    ``(number, instant, frame, data)``.
    """
    clock, receiver = FakeClock(0), Receiver(kind)
    connection = SimpleNamespace(getReceivers=lambda: [receiver])
    recover_losses(connection, receiver.track, clock)
    decoded = []

    async def main():
        for number, instant_ns, *own in arrivals:
            clock.now_ns = instant_ns
            frame, data = own or (number // per_frame, bytes([number % per_frame]))
            packet = RtpPacket(
                payload_type=96,
                marker=int(kind == "video" and number % per_frame == per_frame - 1 and data != b""),
                sequence_number=(FIRST + number) & 0xFFFF,
                timestamp=frame,
            )
            packet.ssrc, packet._data = 7, data
            packet.payload = bytes([0x10 if number % per_frame == 0 else 0]) if data else b""
            await receiver._handle_rtp_packet(packet, 0)
            while not receiver._RTCRtpReceiver__decoder_queue.empty():
                _, frame = receiver._RTCRtpReceiver__decoder_queue.get()
                decoded.append((frame.timestamp, frame.data, instant_ns))

    asyncio.run(main())
    return decoded, receiver.requests


@given(st.sampled_from(["audio", "video"]), st.sets(st.integers(1, 150), max_size=40))
def test_every_packet_that_arrives_is_decoded_in_time(kind, lost):
    """A loss costs only the lost frame, and no other frame waits longer for it than the limit and two packets.

    Without a loss no frame waits: neither for the next packet, nor for the 4 packets of sound that aiortc holds back.
    """
    period = PERIOD[kind]
    there = [number for number in range(200) if number not in lost]
    decoded, _ = receive(kind, [(number, number * period) for number in there])
    numbers = [frame for frame, _, _ in decoded]
    assert numbers == there
    for frame, _, instant_ns in decoded:
        # the gaps near this frame can delay it by the limit and by the packets that show the gaps
        gaps = [gap for gap in lost if abs(frame - gap) <= len(lost) + MAX_WAIT_NS[kind] // period]
        waits = MAX_WAIT_NS[kind] + (len(gaps) + 2) * period if gaps else 0
        assert frame * period <= instant_ns <= frame * period + waits


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 20)))
def test_padding_is_no_frame(padded, lost):
    """Padding packets, which senders send after a picture with its timestamp, do not become a frame.

    An empty frame would end the decoder.
    """
    sent = []
    for number in range(31):
        sent += [(number, b"picture"), *([(number, b"")] if number in padded else [])]
    arrivals = [(at, at * PERIOD["video"], *it) for at, it in enumerate(sent) if at not in lost]
    decoded, _ = receive("video", arrivals)
    pictures = [number for _, _, number, data in arrivals if data]
    assert {data for _, data, _ in decoded} <= {b"picture"}
    assert [frame for frame, _, _ in decoded] == [number - pictures[0] for number in pictures]


def test_packet_resent_in_time_loses_no_frame():
    """If a lost packet is sent again in time, no frame is lost, and all frames that waited for it are released."""
    decoded, requests = receive("video", [(0, 0), (1, 40 * MS), (3, 120 * MS), (4, 160 * MS), (2, 190 * MS)])
    assert [(frame, instant // MS) for frame, _, instant in decoded] == [(0, 0), (1, 40), (2, 190), (3, 190), (4, 190)]
    assert requests == [("nack", 7, ((FIRST + 2) & 0xFFFF,))]


@pytest.mark.parametrize("lost", [{3}, {4}, {5}, {3, 4}, {4, 5}, {3, 4, 5}])
def test_picture_with_lost_packet_is_left_out_whole(lost):
    """A picture of which a packet is lost is left out whole.

    The receiver requests a whole picture, and decodes the pictures after the lost one.
    """
    # the packets of picture 1 are 3, 4, 5
    decoded, requests = receive("video", [(n, n * 10 * MS) for n in range(30) if n not in lost], per_frame=3)
    assert [(frame, data) for frame, data, _ in decoded] == [(it, bytes([0, 1, 2])) for it in [0, *range(2, 10)]]
    assert requests[-1] == ("pli", 7)


@given(st.sets(st.integers(0, 90)), st.lists(st.tuples(st.integers(0, 90), st.sampled_from([0, 60, 400])), max_size=9))
def test_only_whole_pictures_are_decoded_in_order(lost, again):
    """Only whole pictures are decoded, in order, whichever packets are lost, repeated or late."""
    sent = [(n * 10 * MS, n) for n in range(91) if n not in lost] + [((n * 10 + late) * MS, n) for n, late in again]
    clean = [(n * 10 * MS + 1_000 * MS, n) for n in range(91, 121)]
    decoded, _ = receive("video", [(n, at_ns) for at_ns, n in [*sorted(sent), *clean]], per_frame=3)
    frames = [frame for frame, _, _ in decoded]
    assert {data for _, data, _ in decoded} == {bytes([0, 1, 2])}
    assert frames == sorted(set(frames))
    assert len([at_ns for _, _, at_ns in decoded if at_ns > clean[0][0]]) >= 9  # it continues


@pytest.mark.parametrize("per_frame", [1, 3])
@pytest.mark.parametrize("late", [40, 99, 100, 101, 140, 300])
def test_packet_after_the_wait_for_it_is_ignored(late, per_frame):
    """A packet that arrives after the receiver ceased to wait for it changes nothing.

    On a path with a long delay it arrives more than 100 packets late, and aiortc would take it for a restarted sender.
    """
    sent = sorted([(n * 3 * MS, n) for n in range(600) if n != 48] + [((48 + late) * 3 * MS + 1, 48)])
    decoded, requests = receive("video", [(n, at_ns) for at_ns, n in sent], per_frame=per_frame)
    frames = range(600 // per_frame)
    assert [frame for frame, _, _ in decoded] == [it for it in frames if it != 48 // per_frame]
    assert [name for name, *_ in requests].count("pli") == 1


def test_packet_that_comes_twice_changes_nothing():
    """A repeated packet changes nothing, also after a resent packet has released the frames that waited for it."""
    sent = [(n * MS // 4, n) for n in range(400) if n != 48] + [(75 * MS + 10, 48), (75 * MS + 20, 60)]
    decoded, _ = receive("video", [(n, at_ns) for at_ns, n in sorted(sent)], per_frame=2)
    assert [(frame, data) for frame, data, _ in decoded] == [(it, bytes([0, 1])) for it in range(200)]


def test_late_end_of_skipped_picture_is_left_out():
    """The last packet of a picture that was already skipped is left out.

    It was lost as well, and arrives before the receiver ceases to wait for it.
    """
    sent = [(n * 10 * MS, n) for n in range(60) if n not in {30, 32}] + [(30 * 10 * MS + 115 * MS, 32)]
    decoded, _ = receive("video", [(n, at_ns) for at_ns, n in sorted(sent)], per_frame=3)
    assert [(frame, data) for frame, data, _ in decoded] == [(it, bytes([0, 1, 2])) for it in range(20) if it != 10]


def test_skipped_packet_is_not_requested_again():
    """A packet for which the receiver ceased to wait is not requested again.

    A later request for another packet names only that packet.
    """
    _, requests = receive("video", [(n, n * 10 * MS) for n in range(60) if n not in {10, 40}])
    asked = [
        {(it - FIRST) & 0xFFFF for it in missing} for name, _, *rest in requests for missing in rest if name == "nack"
    ]
    assert asked == [{10}, {10}, {40}, {40}]


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_restarted_sender_is_decoded(kind):
    """A restarted sender is decoded, although its sequence numbers and timestamps are before the last ones."""
    before = [(n, n * PERIOD[kind]) for n in range(2_000, 2_020)]
    again = [(n, (n + 2_020) * PERIOD[kind], n + 3_000_000_000, b"new") for n in range(20)]
    decoded, _ = receive(kind, [*before, *again])
    assert [data for _, data, _ in decoded] == [bytes([0])] * 20 + [b"new"] * 20


@pytest.mark.parametrize("codec", ["vp8", "h264"])
def test_first_packets_of_pictures_are_known(codec):
    """``_begins_frame`` knows the first packet of each picture of aiortc's encoders.

    The pictures are key frames and others, in one packet or in many.
    """
    encoder = {"vp8": Vp8Encoder, "h264": H264Encoder}[codec]()
    noise, most = np.random.default_rng(0), 0
    for number in range(6):
        picture = av.VideoFrame.from_ndarray(noise.integers(0, 256, (240, 320, 3), np.uint8), "rgb24")
        picture.pts, picture.time_base = number * 3_000, Fraction(1, 90_000)
        payloads, _ = encoder.encode(picture)
        slices = payloads[1:] if codec == "h264" and number == 0 else payloads  # after the parameter sets
        most = max(most, len(slices))
        assert [_begins_frame(codec, it) for it in slices] == [True] + [False] * (len(slices) - 1)
        assert _begins_frame(codec, payloads[0])
    assert most > 2
    assert not _begins_frame(codec, b"")


def test_gap_policy_waits_then_requests_then_skips():
    """The policy waits for a lost packet, requests it again every 40 ms and skips it after its limit."""
    policy = GapPolicy(100 * MS)
    steps = [(5, 10, 10), (5, 10, 30), (5, 10, 50), (5, 10, 60), (5, 10, 95), (5, 10, 110), (6, 20, 110), (7, 9, 110)]
    actions = [policy.decide(missing, shown_ms * MS, now_ms * MS) for missing, shown_ms, now_ms in steps]
    assert NACK_INTERVAL_NS == 40 * MS
    assert actions == ["wait", "wait", "ask", "wait", "ask", "skip", "ask", "skip"]


def test_track_of_another_connection_is_an_error():
    async def main():
        connection = RTCPeerConnection()
        track = SimpleNamespace(kind="video")
        with pytest.raises(ValueError, match="connection: expected the connection that the track came from"):
            from_track(track, connection=connection)
        await connection.close()

    asyncio.run(main())


def test_unknown_version_of_aiortc_is_an_error():
    receiver = SimpleNamespace(track=SimpleNamespace(kind="video"))
    with pytest.raises(ValueError, match="connection: this version of aiortc is not known"):
        recover_losses(SimpleNamespace(getReceivers=lambda: [receiver]), receiver.track)

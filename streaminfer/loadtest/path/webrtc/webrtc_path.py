"""`WebRtcPath`: path of a load test over WebRTC, with the time of each stage."""

import asyncio
from pathlib import Path
from typing import Any, Self

import attrs

from streaminfer._internal.loading.extras import require
from streaminfer.errors import Closed
from streaminfer.loadtest.devices.profile import CameraProfile
from streaminfer.loadtest.path.codec import Prepare
from streaminfer.loadtest.path.network import NetworkProfile
from streaminfer.loadtest.path.scene import Scene
from streaminfer.loadtest.path.transfer import DevicePath, Transfer, TransferEnd
from streaminfer.loadtest.path.webrtc.webrtc_leg import PACKET_SAMPLES, WebRtcLeg
from streaminfer.streams.frame import Frame
from streaminfer.streams.sources.conversion import AudioAssembler
from streaminfer.streams.sources.formats import AudioFormat, VideoFormat
from streaminfer.streams.sources.timestamps import Stamp

__all__ = ["WebRtcPath"]

STAGES = ("capture", "encode", "uplink", "decode")
LOST_S = 2.0
"""Seconds after which a missing frame counts as lost, even if no later frame has arrived."""
LEAST_STEP_NS = 1_000_000
"""Shortest time between the capture instants of two frames."""


@attrs.define(slots=True, eq=False)
class _Sent:
    """A picture or a frame of sound in flight; a frame of sound can be a part of a packet, or several packets."""

    transfer: Transfer
    handed_ns: int
    end: TransferEnd
    number: int
    first_ns: int = 0
    last_ns: int = 0
    first_sample: int = 0
    packets: range = range(0)


class WebRtcPath(DevicePath):
    """Path of one device over a `WebRtcLeg`, for `PathService`, in real time.

    ::

        async with WebRtcPath(scene, "wifi-busy", size=(192, 192)) as path, PathService(stack, [path]) as service:
            report = await si.loadtest.run(
                service, arrivals=service.schedule(10.0), inputs=service.samples, duration_s=10.0, slo_s=0.5
            )

    The path accepts frames once both ends are connected. The stages are ``capture``, ``encode``, ``uplink`` and
    ``decode``. ``encode`` ends when the first packet is sent, ``uplink`` when the last packet arrives, retransmissions
    included. ``decode`` covers the jitter buffer, the decoder and the conversion. aiortc does not report the CPU time
    of its codecs.

    A chunk of sound comes with the frame that has its last sample. Other frames of sound complete when they are
    decoded, without a chunk.

    Args:
        scene: the scene that the device captures.
        network: profile of the network, or its name.
        prepare: makes an input of the model from an array; runs in the executor of the loop.
        start: position in the scene at which the device begins.
        seed: seed of jitter and loss.
        wanted: ``size`` and ``pixel_format`` of the pictures that the model takes, or ``sample_rate`` and ``chunk`` of
            the sound; as for `from_track`.

    Raises:
        MissingExtra: aiortc is not installed.
        ValueError: WebRTC has no such codec.
        TypeError, ValueError: ``wanted`` does not fit the kind of the device, or is out of range.
    """

    def __init__(
        self,
        scene: Scene,
        network: str | Path | NetworkProfile,
        *,
        prepare: Prepare | None = None,
        start: int = 0,
        seed: int = 0,
        **wanted: Any,
    ) -> None:
        self._leg = WebRtcLeg(scene, network, seconds=None, seed=seed, on_packet=self._note_packet)
        super().__init__(scene, self._leg.network, kind="-webrtc", start=start)
        self._camera = isinstance(scene.profile, CameraProfile)
        self._format = VideoFormat(**wanted) if self._camera else AudioFormat(**wanted)
        self._prepare = prepare
        skew = scene.profile.delivery.skew_ppm / 1e6
        self._period_ns = round(scene.profile.period_s * 1e9 / (1.0 + skew))
        self._nominal_ns = round(scene.profile.period_s * 1e9)  # on the clock of the device
        self._sent: dict[int, _Sent] = {}
        self._last_ns = 0
        self._pace_start_ns: int | None = None
        self._first_ns = 0  # of sound: start of the device, computed from its first frame
        self._samples = self._next_packet = 0  # of sound, so far
        self._packets: dict[int, int] = {}  # of sound: ticks of a packet to its number, after the last decoded one
        self._reader: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    def begin(self, captured_ns: int, handed_ns: int | None, end: TransferEnd, *, skipped: int = 0) -> None:
        """Send the next frame; see :meth:`DevicePath.begin`."""
        if self._reader is None or self._reader.done():
            raise Closed(f"media path {self.name!r} does not run") from self._failure
        loop = asyncio.get_running_loop()
        number = self._next_number(skipped)
        handed_ns = handed_ns or captured_ns
        captured_ns = self._paced_ns(number, captured_ns)
        sent = _Sent(Transfer(captured_ns), handed_ns, end, number)
        if not self._camera:
            self._first_ns = self._first_ns or captured_ns - number * self._nominal_ns
            captured_ns = self._first_ns + number * self._nominal_ns  # RTP counts samples
            sent.first_sample = self._samples
            self._samples += round(self._nominal_ns * self._leg.clock_rate / 1e9)
            sent.packets = range(sent.first_sample // PACKET_SAMPLES, -(-self._samples // PACKET_SAMPLES))
        ticks = self._leg.send(self._start + number, captured_ns, handed_ns)
        self._sent[ticks] = sent
        loop.call_later(LOST_S, self._mark_lost, ticks)

    async def aclose(self) -> None:
        """End the path; the calls of frames in flight raise `Closed`."""
        reader, self._reader = self._reader, None
        self._end_all(Closed(f"media path {self.name!r} was closed"))
        try:
            if reader is not None:
                reader.cancel()
                await asyncio.wait([reader])
        finally:
            await self._leg.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        await self._leg.__aenter__()
        self._reader = asyncio.get_running_loop().create_task(self._read())
        return self

    # -- inside -----------------------------------------------------------------------------------------------------

    def _paced_ns(self, number: int, captured_ns: int) -> int:
        """Return the instant of capture at the pace of the device, because a busy loop sends several frames at once.

        A frame that is early, or `LOST_S` or more late, starts the pace again, for example after a pause between runs.
        """
        pace_start_ns = captured_ns - number * self._period_ns
        if self._pace_start_ns is None or not 0 < pace_start_ns - self._pace_start_ns < LOST_S * 1e9:
            self._pace_start_ns = pace_start_ns
        self._last_ns = max(self._pace_start_ns + number * self._period_ns, self._last_ns + LEAST_STEP_NS)
        return self._last_ns

    async def _read(self) -> None:
        try:
            target = self._format
            await (self._read_pictures(target) if isinstance(target, VideoFormat) else self._read_sound(target))
        except Exception as error:  # noqa: BLE001 - the callers get the receiver's error, later ones as a cause
            self._failure = error
            self._end_all(error)

    async def _read_pictures(self, target: VideoFormat) -> None:
        async for frame in self._leg.frames(size=target.size, pixel_format=target.pixel_format):
            self._take(frame.captured_ns, [await self._prepared(frame)], self._period_ns // 2)

    async def _read_sound(self, target: AudioFormat) -> None:
        assembler = AudioAssembler(require("av", extra="webrtc", purpose="WebRtcPath"), target)
        chunks: list[Frame | Exception] = []  # they come with the next frame
        async for ticks, sound in self._leg.sound():
            packet = self._packets[ticks]
            self._packets = {at: number for at, number in self._packets.items() if number > packet}
            sent = next((it for it in self._sent.values() if packet in it.packets), None)
            if sent is None:
                continue  # its frame counts as lost already
            offset_ns = (packet * PACKET_SAMPLES - sent.first_sample) * 1_000_000_000 // self._leg.clock_rate
            position_ns = sent.number * self._nominal_ns + max(0, offset_ns)
            frames = assembler.push(sound, Stamp(position_ns, sent.transfer.captured_ns, discontinuity=False))
            chunks += [await self._prepared(frame) for frame in frames]
            chunks = self._take(packet, chunks)

    async def _prepared(self, frame: Frame) -> Frame | Exception:
        if self._prepare is None:
            return frame
        try:
            inputs = await asyncio.get_running_loop().run_in_executor(None, self._prepare, frame.inputs)
            return attrs.evolve(frame, inputs=inputs)
        except Exception as error:  # noqa: BLE001 - of prepare: the caller of this frame gets it
            return error

    def _take(self, position: int, frames: list[Frame | Exception], tolerance: int = 0) -> list[Frame | Exception]:
        """Complete the transfer that ends at a position; earlier ones count as lost, because a later one came.

        Args:
            position: instant of capture of a picture, or number of a packet of sound.
            frames: frames for the model.
            tolerance: largest distance of the position from that of the transfer.

        Returns:
            The frames for a later transfer.
        """
        for ticks, sent in list(self._sent.items()):
            ends = sent.transfer.captured_ns if self._camera else sent.packets[-1]
            if ends > position + tolerance:
                break
            if ends < position - tolerance:
                self._mark_lost(ticks)
            else:
                self._complete(ticks, sent, frames)
                frames = []
                if self._camera:  # a packet of sound can have several frames
                    break
        return frames

    def _complete(self, ticks: int, sent: _Sent, frames: list[Frame | Exception]) -> None:
        transfer, ready_ns = sent.transfer, self.clock()
        first_ns, last_ns = sent.first_ns or sent.handed_ns, sent.last_ns or ready_ns
        for frame in frames:
            if isinstance(frame, Exception):
                self._end(ticks, frame)
                return
            transfer.frames.append(attrs.evolve(frame, captured_ns=transfer.captured_ns))
        instants = (transfer.captured_ns, sent.handed_ns, first_ns, last_ns, ready_ns)
        for stage, start_ns, end_ns in zip(STAGES, instants, instants[1:], strict=False):
            transfer.stages_s[stage] = max(0, end_ns - start_ns) / 1e9
        self._end(ticks)

    def _mark_lost(self, ticks: int) -> None:
        if ticks in self._sent:
            self._sent[ticks].transfer.lost = "network"
            self._end(ticks)

    def _end(self, ticks: int, error: Exception | None = None) -> None:
        sent = self._sent.pop(ticks)
        sent.end(sent.transfer if error is None else None, error)

    def _end_all(self, error: Exception) -> None:
        for ticks in list(self._sent):
            self._end(ticks, error)

    def _note_packet(self, ticks: int, *, arrived: bool) -> None:
        if self._camera:
            sent = self._sent.get(ticks)
            frames = [] if sent is None else [sent]
        else:
            if not arrived:
                self._packets[ticks] = self._next_packet
                self._next_packet += 1
            packet = self._packets.get(ticks)  # None: its frame counts as lost already
            frames = [it for it in self._sent.values() if packet in it.packets]
        for sent in frames:
            if arrived:
                sent.last_ns = self.clock()
            elif not sent.first_ns:
                sent.first_ns = self.clock()

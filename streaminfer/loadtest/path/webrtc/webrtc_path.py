"""`WebRtcPath`: a device over WebRTC as a path of a load test, with the stages of each frame."""

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
from streaminfer.loadtest.sending.loops import complete
from streaminfer.streams.frame import Frame
from streaminfer.streams.sources.conversion import AudioAssembler
from streaminfer.streams.sources.formats import AudioFormat, VideoFormat
from streaminfer.streams.sources.timestamps import Stamp

__all__ = ["WebRtcPath"]

STAGES = ("capture", "encode", "uplink", "decode")
LOST_S = 2.0
"""After which a frame that has not come is lost, where no later one shows it."""
LEAST_STEP_NS = 1_000_000
"""From the instant of one frame to that of the next."""


@attrs.define(slots=True, eq=False)
class _Sent:
    """A picture, or a frame of sound, on its way; its sound is in one or more packets, or in a part of one."""

    transfer: Transfer
    handed_ns: int
    done: TransferEnd
    number: int
    first_ns: int = 0
    last_ns: int = 0
    first_sample: int = 0
    packets: range = range(0)


class WebRtcPath(DevicePath):
    """One device whose stream comes over a `WebRtcLeg`, for `PathService`, in real time.

    ::

        async with WebRtcPath(scene, "wifi-busy", size=(192, 192)) as path, PathService(stack, [path]) as service:
            report = await si.loadtest.run(
                service, arrivals=service.schedule(10.0), inputs=service.samples, duration_s=10.0, slo_s=0.5
            )

    It takes frames from when both ends are connected. The stages are ``capture``; ``encode``, until the first packet is
    sent; ``uplink``, until the last one arrived, with what was sent again; ``decode``, which has the jitter buffer, the
    decoder and the conversion. aiortc does not tell the CPU of its codecs.

    A chunk of sound comes with the frame that has its last sample. Other frames of sound are answered when they have
    been decoded, without a chunk.

    Args:
        scene: what the device captures.
        network: profile of its network, or its name.
        prepare: makes an input of the model from an array; runs in the executor of the loop.
        start: place in the scene at which the device begins.
        seed: of jitter and loss.
        wanted: ``size`` and ``pixel_format`` of the pictures that the model takes, or ``sample_rate`` and ``chunk`` of
            the sound; as for `from_track`.

    Raises:
        MissingExtra: aiortc is not installed.
        ValueError: WebRTC has no such codec.
        TypeError, ValueError: ``wanted`` is nothing that the model can take from the device, or out of range.
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
        self._wanted = VideoFormat(**wanted) if self._camera else AudioFormat(**wanted)
        self._prepare = prepare
        skew = scene.profile.delivery.skew_ppm / 1e6
        self._period_ns = round(scene.profile.period_s * 1e9 / (1.0 + skew))
        self._nominal_ns = round(scene.profile.period_s * 1e9)  # on the clock of the device
        self._sent: dict[int, _Sent] = {}
        self._last_ns = 0
        self._begun_ns: int | None = None
        self._first_ns = 0  # of sound: when the device began, by its first frame
        self._samples = self._next_packet = 0  # of sound, so far
        self._packets: dict[int, int] = {}  # numbers of packets of sound by their ticks, from the last one decoded on
        self._reader: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    def begin(self, captured_ns: int, handed_ns: int | None, done: TransferEnd, *, skipped: int = 0) -> None:
        """Send the next frame, as :meth:`DevicePath.begin`."""
        if self._reader is None or self._reader.done():
            raise Closed(f"media path {self.name!r} does not run") from self._failure
        loop = asyncio.get_running_loop()
        number = self._next_number(skipped)
        handed_ns = handed_ns or captured_ns
        captured_ns = self._regular(number, captured_ns)
        sent = _Sent(Transfer(captured_ns), handed_ns, done, number)
        if not self._camera:
            self._first_ns = self._first_ns or captured_ns - number * self._nominal_ns
            captured_ns = self._first_ns + number * self._nominal_ns  # RTP counts samples
            sent.first_sample = self._samples
            self._samples += round(self._nominal_ns * self._leg.clock_rate / 1e9)
            sent.packets = range(sent.first_sample // PACKET_SAMPLES, -(-self._samples // PACKET_SAMPLES))
        ticks = self._leg.send(self._start + number, captured_ns, handed_ns)
        self._sent[ticks] = sent
        loop.call_later(LOST_S, self._lose, ticks)

    async def aclose(self) -> None:
        """End the path; frames on their way get `Closed`."""
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

    def _regular(self, number: int, captured_ns: int) -> int:
        """Return when a frame was captured by the pace of the device: a busy loop sends several at one instant.

        One that is too late for that begins after a pause, as that between two runs.
        """
        begun_ns = captured_ns - number * self._period_ns
        if self._begun_ns is None or not 0 < begun_ns - self._begun_ns < LOST_S * 1e9:
            self._begun_ns = begun_ns
        self._last_ns = max(self._begun_ns + number * self._period_ns, self._last_ns + LEAST_STEP_NS)
        return self._last_ns

    async def _read(self) -> None:
        try:
            wanted = self._wanted
            await (self._read_pictures(wanted) if isinstance(wanted, VideoFormat) else self._read_sound(wanted))
        except Exception as error:  # noqa: BLE001 - of the receiver: the callers get it, later ones as a cause
            self._failure = error
            self._end_all(error)

    async def _read_pictures(self, wanted: VideoFormat) -> None:
        async for frame in self._leg.frames(size=wanted.size, pixel_format=wanted.pixel_format):
            self._take_picture(frame.captured_ns, [await self._prepared(frame)])

    async def _read_sound(self, wanted: AudioFormat) -> None:
        assembler = AudioAssembler(require("av", extra="webrtc", purpose="WebRtcPath"), wanted)
        chunks: list[Frame | Exception] = []  # that come with the next frame
        async for ticks, sound in self._leg.sound():
            packet = self._packets[ticks]
            self._packets = {at: number for at, number in self._packets.items() if number > packet}
            sent = next((it for it in self._sent.values() if packet in it.packets), None)
            if sent is None:
                continue  # its frame counts as lost already
            before_ns = (packet * PACKET_SAMPLES - sent.first_sample) * 1_000_000_000 // self._leg.clock_rate
            position_ns = sent.number * self._nominal_ns + max(0, before_ns)
            made = assembler.push(sound, Stamp(position_ns, sent.transfer.captured_ns, discontinuity=False))
            chunks += [await self._prepared(frame) for frame in made]
            chunks = self._take_sound(packet, chunks)

    async def _prepared(self, frame: Frame) -> Frame | Exception:
        if self._prepare is None:
            return frame
        try:
            inputs = await asyncio.get_running_loop().run_in_executor(None, self._prepare, frame.inputs)
            return attrs.evolve(frame, inputs=inputs)
        except Exception as error:  # noqa: BLE001 - of prepare: the caller of this frame gets it
            return error

    def _take_picture(self, captured_ns: int, frames: list[Frame | Exception]) -> None:
        """End the transfer of what was captured at an instant, and those before it."""
        least_ns = captured_ns - self._period_ns // 2
        most_ns = least_ns + self._period_ns
        for ticks, sent in list(self._sent.items()):
            sent_ns = sent.transfer.captured_ns
            if sent_ns > most_ns:
                return
            if sent_ns >= least_ns:
                self._complete(ticks, sent, frames)
                return
            self._lose(ticks)  # a later one came

    def _take_sound(self, packet: int, chunks: list[Frame | Exception]) -> list[Frame | Exception]:
        """End the transfers whose sound ends with a packet or before it; return the chunks for a later one."""
        for ticks, sent in list(self._sent.items()):
            last = sent.packets[-1]
            if last > packet:
                break
            if last < packet:
                self._lose(ticks)  # a later one came
            else:
                self._complete(ticks, sent, chunks)
                chunks = []
        return chunks

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

    def _lose(self, ticks: int) -> None:
        if ticks in self._sent:
            self._sent[ticks].transfer.lost = "network"
            self._end(ticks)

    def _end(self, ticks: int, error: Exception | None = None) -> None:
        sent = self._sent.pop(ticks)
        complete(sent.done, sent.transfer, error, f"media path {self.name!r}")

    def _end_all(self, error: Exception) -> None:
        for ticks in list(self._sent):
            self._end(ticks, error)

    def _note_packet(self, ticks: int, *, arrived: bool) -> None:
        if self._camera:
            sent = self._sent.get(ticks)
            carried = [] if sent is None else [sent]
        else:
            if not arrived:
                self._packets[ticks] = self._next_packet
                self._next_packet += 1
            packet = self._packets.get(ticks)  # None: its frame counts as lost already
            carried = [it for it in self._sent.values() if packet in it.packets]
        for sent in carried:
            if arrived:
                sent.last_ns = self.clock()
            elif not sent.first_ns:
                sent.first_ns = self.clock()

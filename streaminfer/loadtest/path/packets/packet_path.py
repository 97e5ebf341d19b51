"""`PacketPath`: one device whose units cross two network namespaces in real packets, with the time of each stage."""

import asyncio
import struct
from pathlib import Path
from typing import Any, Self

import attrs

from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_count
from streaminfer.errors import Closed
from streaminfer.loadtest.devices.profile import CameraProfile
from streaminfer.loadtest.path.codec import Decoded, Prepare, Unit, UnitDecoder, UnitEncoder
from streaminfer.loadtest.path.codec_thread import CodecThread
from streaminfer.loadtest.path.media_path import MAX_WAITING
from streaminfer.loadtest.path.network import NetworkProfile, network_profile
from streaminfer.loadtest.path.packets.packet_connection import PacketConnection
from streaminfer.loadtest.path.scene import Scene
from streaminfer.loadtest.path.transfer import DevicePath, Loss, Transfer, TransferEnd, complete
from streaminfer.streams.sources.formats import AudioFormat, VideoFormat

__all__ = ["PacketPath"]

HEADER = struct.Struct("!IQ")
"""Of a unit: its length, and the number of its frame."""


@attrs.define(slots=True, eq=False)
class _Passage:
    """A frame on its way."""

    transfer: Transfer
    handed_ns: int
    done: TransferEnd
    unit: Unit | None = None
    sent_ns: int = 0
    arrived_ns: int = 0


class PacketPath(DevicePath):
    """One device whose units go over a `PacketConnection`, for `PathService`, in real time; it needs root.

    ::

        with CodecThread() as thread:
            path = PacketPath(scene, "wifi-busy", wanted=wanted, thread=thread)
            async with path, PathService(stack, [path]) as service:
                report = await si.loadtest.run(
                    service, arrivals=service.schedule(10.0), inputs=service.samples, duration_s=10.0, slo_s=0.5
                )

    The kernel's TCP carries the units, as those of RTMP: a lost packet delays what is behind it. Frames that wait for
    the network longer than its ``queue_s`` are dropped as ``"network"``, and a key frame follows.

    Args:
        scene: what the device captures.
        network: profile of its network, or its name.
        wanted: what the model takes.
        prepare: makes an input of the model from an array; runs where the decoder does.
        thread: for the codecs.
        start: place in the scene at which the device begins.
        seed: of the network.

    Attributes:
        name: of its stream, unique in the process.
        labels: the names of device and network.
        clock: that it uses.
        cpu_s: CPU seconds of each stage so far.
    """

    def __init__(
        self,
        scene: Scene,
        network: str | Path | NetworkProfile,
        *,
        wanted: VideoFormat | AudioFormat,
        thread: CodecThread,
        prepare: Prepare | None = None,
        start: int = 0,
        seed: int = 0,
    ) -> None:
        av = require("av", extra="media", purpose="PacketPath")
        profile = network_profile(network)
        super().__init__(scene, profile, kind="-packets", start=start)
        self.cpu_s: dict[str, float] = dict.fromkeys(("encode", "decode", "prepare"), 0.0)
        self._encoder = UnitEncoder(av, scene)
        self._decoder = UnitDecoder(av, scene, self._encoder, wanted, prepare)
        self._thread = thread
        self._connection = PacketConnection(profile, seed=check_count("seed", seed, at_least=0))
        self._queue_ns = round((profile.queue_s + profile.delay_s) * 1e9)
        self._inter_coded = isinstance(scene.profile, CameraProfile) and scene.profile.codec != "mjpeg"
        self._passages: dict[int, _Passage] = {}
        self._coding = 0
        self._key_wanted = self._gap = False
        self._closed = True
        self._streams: tuple[Any, ...] = ()  # asyncio closes those without a reference
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    def begin(self, captured_ns: int, handed_ns: int | None, done: TransferEnd, *, skipped: int = 0) -> None:
        """Send the next frame, as :meth:`DevicePath.begin`."""
        if self._closed:
            raise Closed(f"media path {self.name!r} does not run")
        loop = asyncio.get_running_loop()
        number = self._next_number(skipped)
        passage = _Passage(Transfer(captured_ns), handed_ns or captured_ns, done)
        self._passages[number] = passage
        loop.call_later(max(0, passage.handed_ns - self.clock()) / 1e9, self._hand_over, loop, number)

    async def aclose(self) -> None:
        """End the path; frames on their way get `Closed`."""
        if self._closed:
            return
        self._closed = True
        self._fail_all(Closed(f"media path {self.name!r} was closed"))
        loop, codecs_rest = asyncio.get_running_loop(), asyncio.Event()
        self._thread.submit(lambda _none: loop.call_soon_threadsafe(codecs_rest.set), None)
        await codecs_rest.wait()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        await self._connection.stop()
        for writer in self._streams[1::2]:
            writer.transport.abort()
        await asyncio.sleep(0)  # asyncio closes the sockets in the next round

    async def __aenter__(self) -> Self:
        connection = await self._connection.__aenter__()
        unread, self._writer = await asyncio.open_connection(sock=connection.sender)
        reader, unwritten = await asyncio.open_connection(sock=connection.receiver)
        self._streams = unread, self._writer, reader, unwritten
        self._reading = asyncio.get_running_loop().create_task(self._read(reader))
        self._closed = False
        return self

    # -- inside -----------------------------------------------------------------------------------------------------

    def _hand_over(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        passage = self._passages.get(number)
        if passage is None:
            return
        oldest = next(iter(self._passages.values()))
        if self._coding > MAX_WAITING:
            self._lose(number, "encoder")
        elif oldest.sent_ns and not oldest.arrived_ns and self.clock() - oldest.sent_ns > self._queue_ns:
            self._lose(number, "network")
            self._key_wanted = self._gap = self._inter_coded
        else:
            key, self._key_wanted = self._key_wanted, False
            self._coding += 1
            self._thread.submit(self._encode, (loop, number, passage, key))

    def _encode(self, job: tuple[asyncio.AbstractEventLoop, int, _Passage, bool]) -> None:
        """Run in the thread."""
        loop, number, passage, key = job
        error: BaseException | None = None
        began_ns = self.clock()
        passage.transfer.stages_s["capture"] = max(0, began_ns - passage.transfer.captured_ns) / 1e9
        try:
            passage.unit = self._encoder.encode(self._start + number, number, key=key)
        except Exception as raised:  # noqa: BLE001 - the caller gets it
            error = raised
        passage.transfer.stages_s["encode"] = (self.clock() - began_ns) / 1e9
        loop.call_soon_threadsafe(self._transmit, number, error)

    def _transmit(self, number: int, error: BaseException | None) -> None:
        self._coding -= 1
        passage = self._passages.get(number)
        if passage is None or self._writer is None:
            return
        if error is not None or passage.unit is None:
            self._end(number, error)
            return
        unit = passage.unit
        passage.transfer.charge(self.cpu_s, encode=unit.cpu_s)
        passage.transfer.size, passage.sent_ns = len(unit.data), self.clock()
        self._writer.write(HEADER.pack(len(unit.data), number) + unit.data)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                size, number = HEADER.unpack(await reader.readexactly(HEADER.size))
                data = await reader.readexactly(size)
                passage = self._passages.get(number)
                if passage is not None and passage.unit is not None:
                    passage.arrived_ns = self.clock()
                    passage.transfer.stages_s["uplink"] = (passage.arrived_ns - passage.sent_ns) / 1e9
                    gap, self._gap = self._gap and passage.unit.key, self._gap and not passage.unit.key
                    self._thread.submit(self._decode, (loop, number, passage, data, gap))
        except (OSError, EOFError, Closed) as error:
            self._fail_all(error)

    def _decode(self, job: tuple[asyncio.AbstractEventLoop, int, _Passage, bytes, bool]) -> None:
        """Run in the thread."""
        loop, number, passage, data, gap = job
        pts = passage.unit.pts if passage.unit is not None else 0
        decoded: Decoded | Exception
        try:
            decoded = self._decoder.decode(data, pts, passage.transfer.captured_ns, discontinuity=gap)
        except Exception as error:  # noqa: BLE001 - the caller gets it
            decoded = error
        loop.call_soon_threadsafe(self._deliver, number, passage, decoded)

    def _deliver(self, number: int, passage: _Passage, decoded: Decoded | Exception) -> None:
        if isinstance(decoded, Exception):
            self._end(number, decoded)
            return
        passage.transfer.frames = decoded.frames
        passage.transfer.stages_s["decode"] = (self.clock() - passage.arrived_ns) / 1e9
        passage.transfer.charge(self.cpu_s, decode=decoded.decode_cpu_s, prepare=decoded.prepare_cpu_s)
        self._end(number)

    def _lose(self, number: int, where: Loss) -> None:
        self._passages[number].transfer.lost = where
        self._end(number)

    def _end(self, number: int, error: BaseException | None = None) -> None:
        passage = self._passages.pop(number, None)
        if passage is not None:
            complete(passage.done, passage.transfer, error, self.name)

    def _fail_all(self, error: BaseException) -> None:
        for number in list(self._passages):
            self._end(number, error)

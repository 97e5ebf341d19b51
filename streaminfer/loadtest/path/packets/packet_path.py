"""`PacketPath`: path of one device over real packets between two network namespaces, with the time of each stage."""

import asyncio
import concurrent.futures
import functools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from streaminfer._internal.validation import check_count, check_duration_ns
from streaminfer.errors import Closed
from streaminfer.loadtest.path.codec import Codecs, Prepare, Unit
from streaminfer.loadtest.path.codec_thread import CodecThread
from streaminfer.loadtest.path.media_path import MAX_WAITING
from streaminfer.loadtest.path.network import NetworkProfile, network_profile
from streaminfer.loadtest.path.packets.packet_connection import PacketConnection
from streaminfer.loadtest.path.scene import Scene
from streaminfer.loadtest.path.transfer import DevicePath, Transfer, TransferEnd
from streaminfer.streams.sources.formats import AudioFormat, VideoFormat

__all__ = ["PacketPath"]

HEADER = struct.Struct("!IQ")
"""Header of a unit: its length, and the number of its frame."""


class PacketPath(DevicePath):
    """Path of one device over a `PacketConnection`, for `PathService`, in real time; needs root.

    ::

        with CodecThread() as thread:
            path = PacketPath(scene, "wifi-busy", wanted=wanted, thread=thread)
            async with path, PathService(stack, [path]) as service:
                report = await si.loadtest.run(
                    service, arrivals=service.schedule(10.0), inputs=service.samples, duration_s=10.0, slo_s=0.5
                )

    The kernel's TCP carries the units, as in RTMP: a lost packet delays all later ones. If the oldest unit has been in
    the network for longer than ``queue_s`` plus ``delay_s``, the path drops new frames as ``"network"``. The next frame
    that it sends is a key frame.

    Args:
        scene: the scene that the device captures.
        network: profile of the network, or its name.
        wanted: input format of the model.
        prepare: makes an input of the model from an array; runs in the thread of the decoder.
        thread: thread for the codecs.
        start: position in the scene at which the device begins.
        seed: seed of the network.

    Attributes:
        name: name of the stream, unique in the process.
        labels: the names of device and network.
        clock: the clock of the path.
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
        profile = network_profile(network)
        super().__init__(scene, profile, kind="-packets", start=start)
        self._codecs = Codecs(scene, wanted, prepare)
        self.cpu_s = self._codecs.cpu_s
        self._thread = thread
        self._connection = PacketConnection(profile, seed=check_count("seed", seed, at_least=0))
        self._queue_ns = check_duration_ns("queue_s", profile.queue_s + profile.delay_s)
        self._frames: set[asyncio.Task[None]] = set()
        self._in_flight: dict[int, tuple[int, asyncio.Future[tuple[bytes, int]]]] = {}  # by number, the oldest first
        self._send_order = asyncio.Lock()
        self._encoding = 0
        self._needs_key_frame = self._gap = False
        self._error: BaseException | None = Closed(f"media path {self.name!r} does not run")
        self._streams: tuple[Any, ...] = ()  # asyncio closes streams that are not referenced
        self._reading: asyncio.Task[None] | None = None

    def begin(self, captured_ns: int, handed_ns: int | None, end: TransferEnd, *, skipped: int = 0) -> None:
        """Send the next frame; see :meth:`DevicePath.begin`."""
        if self._error is not None:
            raise Closed(f"media path {self.name!r} does not run") from self._error
        transfer = Transfer(captured_ns)
        coroutine = self._carry(self._next_number(skipped), transfer, handed_ns or captured_ns)
        frame = asyncio.get_running_loop().create_task(coroutine)
        self._frames.add(frame)
        frame.add_done_callback(functools.partial(self._end, transfer, end))

    async def aclose(self) -> None:
        """End the path; the calls of frames in flight raise `Closed`."""
        if self._reading is None:
            return
        reading, self._reading = self._reading, None
        self._stop(Closed(f"media path {self.name!r} was closed"))
        reading.cancel()
        try:
            await asyncio.wait([*self._frames, reading])
            await self._in_thread(lambda: None)  # wait for its jobs for cancelled frames
        finally:
            await self._disconnect()

    async def __aenter__(self) -> Self:
        connection = await self._connection.__aenter__()
        try:
            for end in (connection.sender, connection.receiver):
                self._streams += await asyncio.open_connection(sock=end)
        except BaseException:
            await self._disconnect()
            raise
        self._reading = asyncio.get_running_loop().create_task(self._read(self._streams[2]))
        self._error = None
        return self

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _disconnect(self) -> None:
        await self._connection.stop()
        for writer in self._streams[1::2]:
            writer.transport.abort()
        self._streams = ()
        await asyncio.sleep(0)  # asyncio closes the sockets in the next iteration of the loop
        await self._connection.__aexit__()

    async def _carry(self, number: int, transfer: Transfer, handed_ns: int) -> None:
        """Take one frame from the device to the model."""
        async with self._send_order:  # keeps the order: timers with equal instants do not
            await asyncio.sleep(max(0, handed_ns - self.clock()) / 1e9)
        if self._encoding > MAX_WAITING:
            transfer.lost = "encoder"
            return
        oldest_ns = next((sent_ns for sent_ns, _ in self._in_flight.values()), self.clock())
        if self.clock() - oldest_ns > self._queue_ns:
            transfer.lost = "network"
            self._needs_key_frame = self._gap = self._codecs.is_inter_coded
            return
        key, self._needs_key_frame = self._needs_key_frame, False
        self._encoding += 1
        try:
            unit = await self._in_thread(functools.partial(self._encode, transfer, number, key=key))
        finally:
            self._encoding -= 1
        if unit is None:
            return
        sent_ns, transfer.size = self.clock(), len(unit.data)
        arrival: asyncio.Future[tuple[bytes, int]] = asyncio.get_running_loop().create_future()
        self._in_flight[number] = sent_ns, arrival
        self._streams[1].write(HEADER.pack(len(unit.data), number) + unit.data)
        data, arrived_ns = await arrival
        transfer.stages_s["uplink"] = (arrived_ns - sent_ns) / 1e9
        gap, self._gap = self._gap and unit.key, self._gap and not unit.key
        await self._in_thread(functools.partial(self._codecs.decode, transfer, data, unit.pts, discontinuity=gap))
        transfer.stages_s["decode"] = (self.clock() - arrived_ns) / 1e9

    def _encode(self, transfer: Transfer, number: int, *, key: bool) -> Unit | None:
        began_ns = self.clock()
        transfer.stages_s["capture"] = max(0, began_ns - transfer.captured_ns) / 1e9
        unit = self._codecs.encode(transfer, self._start + number, number, key=key)
        transfer.stages_s["encode"] = (self.clock() - began_ns) / 1e9
        return unit

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        """Run a function in the thread of the codecs, and return its result."""
        job: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def work(_none: object) -> None:
            if job.set_running_or_notify_cancel():
                try:
                    job.set_result(function())
                except StopIteration as error:  # an asyncio future rejects it, and would never complete
                    job.set_exception(RuntimeError(f"media path {self.name!r}: {error!r}"))
                except Exception as error:  # noqa: BLE001 - the caller gets it
                    job.set_exception(error)

        self._thread.submit(work, None)
        return await asyncio.wrap_future(job)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                size, number = HEADER.unpack(await reader.readexactly(HEADER.size))
                data = await reader.readexactly(size)
                _, arrival = self._in_flight.pop(number)
                if not arrival.done():
                    arrival.set_result((data, self.clock()))
        except (OSError, EOFError) as error:
            self._stop(error)

    def _stop(self, error: BaseException) -> None:
        """Cancel the frames in flight, and accept no more frames."""
        self._error = error
        for frame in self._frames:
            frame.cancel()

    def _end(self, transfer: Transfer, end: TransferEnd, frame: asyncio.Task[None]) -> None:
        self._frames.discard(frame)
        error = (self._error or asyncio.CancelledError()) if frame.cancelled() else frame.exception()
        end(transfer if error is None else None, error)

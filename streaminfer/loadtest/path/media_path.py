"""`MediaPath`: one device through its encoder, a network and a CDN to a decoder, with the time and CPU of each stage.

*Design.* Each frame is one job, in a thread or in the event loop. The job encodes the frame and sends the unit over the
simulated link, a state machine that returns the arrival time. Then the job decodes the unit at once, ahead of time.
Encoding counts from the instant at which the device delivers the frame. The path delivers the frame to its caller at
the arrival time plus the duration of the decoding. The job itself sets the timer that wakes the event loop for the
delivery, so a frame takes one callback of the loop and no task. One job of a path runs at a time, so both codecs work
in order, and a cancelled caller leaves no gap in the stream. With an edge, one task per frame carries the unit through
the edge, between arrival and decoder.

When a receiver of inter-coded pictures misses a unit, it requests a key frame, which takes the delay of the network. It
ignores all units until the key frame arrives. Sound continues after a loss, with silence in place of the lost units.

*Invariants.* Each frame that is sent completes exactly once, as delivered or lost. An encoder that is behind by more
than `MAX_WAITING` frames drops the next one, as live encoders do.
"""

import asyncio
import functools
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import attrs

from streaminfer._internal.validation import check_count
from streaminfer._runtime.timers import Timer, make_timer
from streaminfer.errors import BackendError, Closed
from streaminfer.loadtest.path.codec import Codecs, Prepare, Unit
from streaminfer.loadtest.path.codec_thread import CodecThread
from streaminfer.loadtest.path.network import NetworkProfile, network_profile
from streaminfer.loadtest.path.scene import Scene
from streaminfer.loadtest.path.transfer import DevicePath, Loss, Transfer, TransferEnd
from streaminfer.loadtest.path.uplink import Uplink
from streaminfer.protocols import Clock
from streaminfer.streams.sources.formats import AudioFormat, VideoFormat

__all__ = ["Edge", "MediaPath"]

MAX_WAITING = 4


class Edge(Protocol):
    """A hop between uplink and decoder."""

    async def carry(self, path: str, number: int, data: bytes) -> bytes:
        """Return the bytes of a unit as a consumer of the hop gets them."""


@attrs.define(slots=True, eq=False)
class _TransferState:
    """A transfer in progress."""

    transfer: Transfer
    number: int
    handed_ns: int
    end: TransferEnd
    encoded_ns: int = 0
    arrives_ns: int = 0
    received_ns: int = 0
    decode_ns: int = 0
    due_ns: int = 0
    data: bytes = b""
    error: BaseException | None = None


class MediaPath(DevicePath):
    """One device, its network, and the receiver of its stream.

    The path starts at its first frame; ``async with`` or :meth:`aclose` ends it.

    Args:
        scene: the scene that the device captures.
        network: profile of the network, or its name.
        wanted: input format of the model.
        prepare: makes an input of the model from an array; runs in the thread of the decoder.
        edge: a hop between uplink and decoder, such as a `CdnEdge`.
        thread: thread for the codecs; ``None``: they run in the event loop.
        start: position in the scene at which the device begins.
        seed: seed of the network.
        clock: returns monotonic nanoseconds; ``None``: ``time.monotonic_ns``.

    Attributes:
        name: name of the stream, unique in the process.
        labels: the names of device and network.
        clock: the clock of the path.
        cpu_s: CPU seconds of each stage so far, lost frames included.
    """

    def __init__(
        self,
        scene: Scene,
        network: str | Path | NetworkProfile,
        *,
        wanted: VideoFormat | AudioFormat,
        prepare: Prepare | None = None,
        edge: Edge | None = None,
        thread: CodecThread | None = None,
        start: int = 0,
        seed: int = 0,
        clock: Clock | None = None,
    ) -> None:
        profile = network_profile(network)
        super().__init__(scene, profile, start=start, clock=clock)
        self._codecs = Codecs(scene, wanted, prepare)
        self.cpu_s = self._codecs.cpu_s
        self._uplink = Uplink(profile, check_count("seed", seed, at_least=0))
        self._edge = edge
        self._thread = thread
        self._submitted = self._processed = 0  # counters of the loop and of the jobs
        self._arriving: deque[_TransferState] = deque()
        self._timer: Timer | None = None
        self._in_flight: set[_TransferState] = set()
        self._edge_lock = asyncio.Lock()
        self._encoded_ns = self._free_ns = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._key_frame_due_ns: int | None = None
        self._is_undecodable = self._discontinuity = self._closed = False

    def begin(self, captured_ns: int, handed_ns: int | None, end: TransferEnd, *, skipped: int = 0) -> None:
        """Send the next frame; see :meth:`DevicePath.begin`."""
        if self._closed:
            raise Closed(f"media path {self.name!r} is closed")
        if self._timer is None:
            self._timer = make_timer(asyncio.get_running_loop(), self.clock, self._deliver_due)
        passage = _TransferState(Transfer(captured_ns), self._next_number(skipped), handed_ns or captured_ns, end)
        if self._submitted - self._processed > MAX_WAITING:
            passage.transfer.lost = "encoder"
            end(passage.transfer, None)
            return
        self._in_flight.add(passage)
        try:
            if self._thread is None:
                self._work(passage)
            else:
                self._thread.submit(self._work, passage)
            self._submitted += 1
        except Closed as error:
            self._end(passage, error)

    async def aclose(self) -> None:
        """End the path; the calls of frames in flight raise `Closed`."""
        self._closed = True
        for passage in list(self._in_flight):
            self._end(passage, Closed(f"media path {self.name!r} was closed"))
        for task in self._tasks:
            task.cancel()
        released = asyncio.Event()
        if self._thread is not None and self._submitted > self._processed:
            self._thread.submit(functools.partial(self._release_later, asyncio.get_running_loop()), released)
        else:
            self._release(released)
        await released.wait()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _release(self, released: asyncio.Event) -> None:
        """Close the timer, after the last job has set it."""
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        released.set()

    def _release_later(self, loop: asyncio.AbstractEventLoop, released: asyncio.Event) -> None:
        """Call `_release` from the thread, after its jobs, even if the task that closes the path is cancelled."""
        with suppress(RuntimeError):  # the loop was closed, and needs no timer
            loop.call_soon_threadsafe(self._release, released)

    def _work(self, passage: _TransferState) -> None:
        """Encode, transport and decode a frame, in the codec thread if there is one."""
        if not self._closed:
            try:
                self._code(passage)
            except BaseException as error:  # noqa: BLE001 - of a codec or of prepare: the caller gets it
                passage.error = error
            # the decoder takes frames one by one; with equal instants the timers could change their order
            self._free_ns = max(passage.arrives_ns, self._free_ns + 1) + passage.decode_ns
            passage.due_ns = self._free_ns - (passage.decode_ns if passage.data else 0)
            self._arriving.append(passage)
            if len(self._arriving) == 1:
                self._set_timer(passage)
        self._processed += 1

    def _set_timer(self, passage: _TransferState) -> None:
        if self._timer is not None:
            self._timer.set_from_thread(passage.due_ns, self.clock())

    def _deliver_due(self) -> None:
        if self._closed:
            return  # the frames in flight have ended
        arriving, now_ns = self._arriving, self.clock()
        while arriving and arriving[0].due_ns <= now_ns:
            passage = arriving.popleft()
            if self._edge is not None and passage.data:
                task = asyncio.get_running_loop().create_task(self._cross_edge(self._edge, passage))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                self._deliver(passage)
        if arriving:
            self._set_timer(arriving[0])

    def _code(self, passage: _TransferState) -> None:
        """Encode a frame, send its unit, and decode what arrives."""
        transfer, began_ns = passage.transfer, self.clock()
        # the job may run ahead of time; if the thread is behind, the delay counts as time before the encoder
        handed_ns = passage.arrives_ns = max(began_ns, passage.handed_ns, self._encoded_ns)
        transfer.stages_s["capture"] = max(0, handed_ns - transfer.captured_ns) / 1e9
        key = self._key_frame_due_ns is not None and handed_ns >= self._key_frame_due_ns
        if key:
            self._key_frame_due_ns = None
        unit = self._codecs.encode(transfer, self._start + passage.number, passage.number, key=key)
        encoded_ns = handed_ns + self.clock() - began_ns
        self._encoded_ns = passage.encoded_ns = passage.arrives_ns = encoded_ns
        transfer.stages_s["encode"] = (encoded_ns - handed_ns) / 1e9
        if unit is None:
            return
        arrival = self._uplink.send(len(unit.data), encoded_ns)
        transfer.size, transfer.resent = len(unit.data), arrival.resent
        # the receiver notices a lost unit when it should have arrived
        passage.arrives_ns = self._uplink.due_ns(encoded_ns) if arrival.at_ns is None else arrival.at_ns
        if arrival.at_ns is None:
            self._mark_lost(passage, "network")
        elif self._is_undecodable and not unit.key:
            self._mark_lost(passage, "undecodable")
        else:
            self._decode(passage, unit)

    def _decode(self, passage: _TransferState, unit: Unit) -> None:
        discontinuity, self._discontinuity, self._is_undecodable = self._discontinuity, False, False
        transfer, started_ns = passage.transfer, self.clock()
        self._codecs.decode(transfer, unit.data, unit.pts, discontinuity=discontinuity)
        passage.decode_ns = self.clock() - started_ns
        if self._edge is not None:
            passage.data = unit.data  # only what can be decoded crosses the edge

    def _mark_lost(self, passage: _TransferState, lost: Loss) -> None:
        passage.transfer.lost = lost
        if self._codecs.is_inter_coded:
            self._is_undecodable = self._discontinuity = True
            if self._key_frame_due_ns is None:
                self._key_frame_due_ns = passage.arrives_ns + self._uplink.delay_ns(passage.arrives_ns)

    async def _cross_edge(self, edge: Edge, passage: _TransferState) -> None:
        async with self._edge_lock:  # in order
            try:
                received = await edge.carry(self.name, passage.number, passage.data)
            except asyncio.CancelledError as error:
                if self._closed:
                    raise
                self._end(passage, RuntimeError(f"media path {self.name!r}, the edge: {error!r}"))
                return
            except Exception as error:  # noqa: BLE001 - of the edge: the caller gets it
                self._end(passage, error)
                return
            if received != passage.data:
                self._end(passage, BackendError(f"media path {self.name!r}: the edge changed unit {passage.number}"))
                return
            passage.received_ns = self.clock()
            await asyncio.sleep(passage.decode_ns / 1e9)
            self._deliver(passage)

    def _deliver(self, passage: _TransferState) -> None:
        transfer = passage.transfer
        if passage.error is None and transfer.lost is None and transfer.size:
            transfer.stages_s["uplink"] = (passage.arrives_ns - passage.encoded_ns) / 1e9
            received_ns = passage.received_ns or passage.arrives_ns
            if self._edge is not None:  # a frame waits there until the frame before it has crossed the edge
                transfer.stages_s["edge"] = (received_ns - passage.arrives_ns) / 1e9
            transfer.stages_s["decode"] = (self.clock() - received_ns) / 1e9
        self._end(passage, passage.error)

    def _end(self, passage: _TransferState, error: BaseException | None = None) -> None:
        if passage in self._in_flight:
            self._in_flight.remove(passage)
            passage.end(passage.transfer if error is None else None, error)

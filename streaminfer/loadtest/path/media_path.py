"""`MediaPath`: one device through its encoder, a network and a CDN to a decoder, with the time and CPU of each stage.

*Design.* Two tasks per path, each a loop over a queue: the sender waits for a frame to be handed over, encodes it and
gives it to the link; the receiver waits until the link says that it arrived, takes it through the edge and decodes it.
So both codecs work in order, and a caller that is cancelled leaves no gap in the stream. Codecs run in an executor, or
in the event loop where there is none. The link is a state machine: it tells when a unit arrives, and the receiver
sleeps until then.

A receiver of pictures that misses a unit asks for a key frame, which takes the delay of the network, and ignores what
comes before it. Sound continues behind a loss, with silence in place of what is missing.

*Invariants.* Each frame that is sent completes exactly once, as delivered or lost. An encoder that is behind by
`MAX_WAITING` frames drops the next one, as live encoders do.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar

import attrs

from streaminfer._internal.extras import require
from streaminfer._internal.validation import check_count, check_instance, expected
from streaminfer.errors import Closed
from streaminfer.loadtest.devices.profile import CameraProfile
from streaminfer.loadtest.path.codec import Decoded, Prepare, Unit, UnitDecoder, UnitEncoder
from streaminfer.loadtest.path.network import NetworkProfile, network_profile
from streaminfer.loadtest.path.scene import Scene
from streaminfer.loadtest.path.uplink import Uplink
from streaminfer.streams.frame import Frame
from streaminfer.streams.sources.formats import AudioFormat, VideoFormat

__all__ = ["Edge", "Loss", "MediaPath", "Transfer"]

MAX_WAITING = 4
Loss = Literal["encoder", "network", "undecodable"]
T = TypeVar("T")


class Edge(Protocol):
    """A hop between uplink and decoder."""

    async def carry(self, path: str, number: int, data: bytes) -> bytes:
        """Return the bytes of a unit as a consumer behind the hop gets them."""


@attrs.define(slots=True)
class Transfer:
    """One frame of a device, and how it came.

    Attributes:
        captured_ns: instant of capture.
        frames: for the model: one picture, any number of chunks of sound; none if it was lost.
        lost: where: ``"encoder"``: it was behind; ``"network"``; ``"undecodable"``: it needs one that was lost.
        stages_s: seconds of each stage that it passed: ``capture``, ``encode``, ``uplink``, ``edge``, ``decode``.
        cpu_s: CPU seconds of ``encode``, ``decode`` and ``prepare``.
        size: bytes of its unit.
        resent: packets that were sent again.
    """

    captured_ns: int
    frames: list[Frame] = attrs.field(factory=list)
    lost: Loss | None = None
    stages_s: dict[str, float] = attrs.field(factory=dict)
    cpu_s: dict[str, float] = attrs.field(factory=dict)
    size: int = 0
    resent: int = 0


@attrs.define(slots=True)
class _Passage:
    """A transfer in progress."""

    transfer: Transfer
    number: int
    handed_ns: int
    done: asyncio.Future[Transfer]
    unit: Unit | None = None  # the network lost it
    arrives_ns: int = 0


class MediaPath:
    """One device, its network, and the receiver of its stream.

    It starts at its first frame; ``async with`` or :meth:`aclose` ends it.

    Args:
        scene: what the device captures.
        network: profile of its network, or its name.
        wanted: what the model takes.
        prepare: makes an input of the model from an array; runs where the decoder does.
        edge: a hop between uplink and decoder, such as a `CdnEdge`.
        executor: for the codecs; ``None``: they run in the event loop.
        start: place in the scene at which the device begins.
        seed: of the network.
        clock: returns monotonic nanoseconds; ``None``: ``time.monotonic_ns``.

    Attributes:
        name: of its stream, unique in the process.
        labels: the names of device and network.
        clock: that it uses.
        cpu_s: CPU seconds of each stage so far, also of frames that were lost.
    """

    _numbers = iter(range(2**63))

    def __init__(
        self,
        scene: Scene,
        network: str | Path | NetworkProfile,
        *,
        wanted: VideoFormat | AudioFormat,
        prepare: Prepare | None = None,
        edge: Edge | None = None,
        executor: Executor | None = None,
        start: int = 0,
        seed: int = 0,
        clock: Callable[[], int] | None = None,
    ) -> None:
        av = require("av", extra="media", purpose="MediaPath")
        check_instance("scene", scene, lambda it: isinstance(it, Scene), "a Scene")
        camera = isinstance(scene.profile, CameraProfile)
        if not isinstance(wanted, VideoFormat if camera else AudioFormat):
            raise TypeError(expected("wanted", "a VideoFormat for a camera, an AudioFormat for a microphone", wanted))
        profile = network_profile(network)
        self.scene = scene
        self.name = f"{scene.profile.name}-{next(self._numbers)}"
        self.labels: Mapping[str, str] = {"device": scene.profile.name, "network": profile.name}
        self._encoder = UnitEncoder(av, scene)
        self._decoder = UnitDecoder(av, scene, self._encoder, wanted, prepare)
        self._uplink = Uplink(profile, check_count("seed", seed, at_least=0))
        self._request_ns = round(profile.delay_s * 1e9)  # of a key frame
        self._inter_coded = camera and scene.profile.codec != "mjpeg"
        self._edge = edge
        self._executor = executor
        self._start = check_count("start", start, at_least=0)
        self.clock = clock or time.monotonic_ns
        self.cpu_s: dict[str, float] = dict.fromkeys(("encode", "decode", "prepare"), 0.0)
        self._captured: asyncio.Queue[_Passage] = asyncio.Queue()
        self._sent: asyncio.Queue[_Passage] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._key_wanted_ns: int | None = None
        self._broken = self._discontinuity = self._closed = False
        self._number = 0

    def send(self, captured_ns: int, handed_ns: int | None = None, *, skipped: int = 0) -> asyncio.Future[Transfer]:
        """Send the next frame; the future completes when it was decoded, or is known to be lost.

        Args:
            captured_ns: instant of capture, not before that of the frame before it.
            handed_ns: instant at which the encoder gets it; ``None``: at once.
            skipped: frames before it that the device lost.

        Raises:
            Closed: the path was closed.
        """
        if self._closed:
            raise Closed(f"media path {self.name!r} is closed")
        loop = asyncio.get_running_loop()
        if not self._tasks:
            self._tasks = [loop.create_task(self._send_units()), loop.create_task(self._receive_units())]
        number, self._number = self._number + skipped, self._number + skipped + 1
        passage = _Passage(Transfer(captured_ns), number, handed_ns or captured_ns, loop.create_future())
        if self._captured.qsize() >= MAX_WAITING:
            passage.transfer.lost = "encoder"
            passage.done.set_result(passage.transfer)
        else:
            self._captured.put_nowait(passage)
        return passage.done

    async def aclose(self) -> None:
        """End the path; frames on their way get `Closed`."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for queue in (self._captured, self._sent):
            while not queue.empty():
                self._fail(queue.get_nowait(), Closed(f"media path {self.name!r} was closed"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- the two ends ---------------------------------------------------------------------------------------------

    async def _send_units(self) -> None:
        while True:
            passage = await self._captured.get()
            with self._failing(passage):
                await self._encode(passage)

    async def _encode(self, passage: _Passage) -> None:
        await self._sleep_until(passage.handed_ns)
        transfer, handed_ns = passage.transfer, self.clock()
        transfer.stages_s["capture"] = max(0, handed_ns - transfer.captured_ns) / 1e9
        key = self._key_wanted_ns is not None and handed_ns >= self._key_wanted_ns
        if key:
            self._key_wanted_ns = None
        number = passage.number
        unit = await self._run(lambda: self._encoder.encode(self._start + number, number, key=key))
        encoded_ns = self.clock()
        transfer.stages_s["encode"] = (encoded_ns - handed_ns) / 1e9
        if unit is None:
            self._complete(passage)
            return
        arrival = self._uplink.send(len(unit.data), encoded_ns)
        transfer.size, transfer.resent = len(unit.data), arrival.resent
        self._charge(transfer, encode=unit.cpu_s)
        passage.handed_ns = encoded_ns
        if arrival.at_ns is None:
            passage.arrives_ns = encoded_ns + self._request_ns  # when its absence shows
        else:
            passage.unit, passage.arrives_ns = unit, arrival.at_ns
        self._sent.put_nowait(passage)

    async def _receive_units(self) -> None:
        while True:
            passage = await self._sent.get()
            with self._failing(passage):
                await self._receive(passage)

    async def _receive(self, passage: _Passage) -> None:
        await self._sleep_until(passage.arrives_ns)
        transfer, unit, arrived_ns = passage.transfer, passage.unit, self.clock()
        if unit is None:
            self._lose(passage, "network", arrived_ns)
            return
        transfer.stages_s["uplink"] = (arrived_ns - passage.handed_ns) / 1e9
        if self._broken and not unit.key:
            self._lose(passage, "undecodable", arrived_ns)
            return
        data = unit.data
        if self._edge is not None:
            data = await self._edge.carry(self.name, passage.number, data)
            arrived_ns, before_ns = self.clock(), arrived_ns
            transfer.stages_s["edge"] = (arrived_ns - before_ns) / 1e9
        gap, self._discontinuity, self._broken = self._discontinuity, False, False
        captured_ns = transfer.captured_ns
        decoded: Decoded = await self._run(lambda: self._decoder.decode(data, unit.pts, captured_ns, discontinuity=gap))
        transfer.stages_s["decode"] = (self.clock() - arrived_ns) / 1e9
        self._charge(transfer, decode=decoded.decode_cpu_s, prepare=decoded.prepare_cpu_s)
        transfer.frames = decoded.frames
        self._complete(passage)

    # -- helpers ----------------------------------------------------------------------------------------------------

    def _lose(self, passage: _Passage, lost: Loss, now_ns: int) -> None:
        passage.transfer.lost = lost
        if self._inter_coded:
            self._broken = True
            if self._key_wanted_ns is None:
                self._key_wanted_ns = now_ns + self._request_ns
            self._discontinuity = True
        self._complete(passage)

    def _charge(self, transfer: Transfer, **cpu_s: float) -> None:
        for stage, seconds in cpu_s.items():
            transfer.cpu_s[stage] = seconds
            self.cpu_s[stage] += seconds

    def _complete(self, passage: _Passage) -> None:
        if not passage.done.done():  # its caller may have been cancelled
            passage.done.set_result(passage.transfer)

    def _fail(self, passage: _Passage, error: BaseException) -> None:
        if not passage.done.done():
            passage.done.set_exception(error)
            passage.done.exception()  # a caller that has gone does not read it

    @contextlib.contextmanager
    def _failing(self, passage: _Passage) -> Any:
        """Fail one frame, not the stream; a path that closes takes its frame with it."""
        try:
            yield
        except asyncio.CancelledError:
            self._fail(passage, Closed(f"media path {self.name!r} was closed"))
            raise
        except Exception as error:  # noqa: BLE001 - of a codec or an edge: the caller gets it
            self._fail(passage, error)

    async def _run(self, job: Callable[[], T]) -> T:
        if self._executor is None:
            return job()
        return await asyncio.get_running_loop().run_in_executor(self._executor, job)

    async def _sleep_until(self, instant_ns: int) -> None:
        left_ns = instant_ns - self.clock()
        if left_ns > 0:
            await asyncio.sleep(left_ns / 1e9)

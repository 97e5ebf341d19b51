"""`WebRtcPath`: a camera over WebRTC as a path of a load test, with the stages of each picture."""

import asyncio
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import attrs

from streaminfer._internal.validation import check_instance
from streaminfer.errors import Closed
from streaminfer.loadtest.devices.profile import CameraProfile
from streaminfer.loadtest.path.media_path import Transfer
from streaminfer.loadtest.path.network import NetworkProfile
from streaminfer.loadtest.path.scene import Scene
from streaminfer.loadtest.path.webrtc_leg import WebRtcLeg
from streaminfer.streams.frame import Frame

__all__ = ["WebRtcPath"]

STAGES = ("capture", "encode", "uplink", "decode")
LOST_S = 2.0
"""After which a picture that has not come is lost, where no later one shows it."""


@attrs.define(slots=True, eq=False)
class _Sent:
    """A picture on its way."""

    transfer: Transfer
    handed_ns: int
    done: asyncio.Future[Transfer]
    first_ns: int = 0
    last_ns: int = 0


class WebRtcPath:
    """One camera whose stream comes over a `WebRtcLeg`, for `PathService`, in real time.

    ::

        async with WebRtcPath(scene, "wifi-busy", size=(192, 192)) as path, PathService(stack, [path]) as service:
            report = await si.loadtest.run(
                service, arrivals=service.schedule(10.0), inputs=service.samples, duration_s=10.0, slo_s=0.5
            )

    The stages are ``capture``; ``encode``, until the first packet is sent; ``uplink``, until the last one arrived, with
    what was sent again; ``decode``, which has the jitter buffer, the decoder and the conversion. aiortc does not tell
    the CPU of its codecs.

    Args:
        scene: what the camera captures.
        network: profile of its network, or its name.
        seed: of jitter and loss.
        wanted: ``size`` and ``pixel_format`` of the pictures that the model takes.

    Raises:
        MissingExtra: aiortc is not installed.
        TypeError: the device is no camera.
        ValueError: WebRTC has no such codec.
    """

    def __init__(self, scene: Scene, network: str | NetworkProfile, *, seed: int = 0, **wanted: Any) -> None:
        check_instance("scene", scene, _is_of_camera, "the Scene of a camera")
        self._leg = WebRtcLeg(scene, network, seconds=None, seed=seed, on_packet=self._note_packet)
        self._wanted = wanted
        self.scene = scene
        self.clock = time.monotonic_ns
        self.name = f"{scene.profile.name}-webrtc-{seed}"
        self.labels: Mapping[str, str] = {"device": scene.profile.name, "network": self._leg.network.name}
        self._sent: dict[int, _Sent] = {}
        self._number = 0
        self._reader: asyncio.Task[None] | None = None

    def send(self, captured_ns: int, handed_ns: int | None = None, *, skipped: int = 0) -> asyncio.Future[Transfer]:
        """Send the next picture; the future completes when it was decoded, or is known to be lost.

        Args:
            captured_ns: instant of capture.
            handed_ns: instant at which the encoder gets it; ``None``: at once.
            skipped: pictures before it that the device lost.

        Raises:
            Closed: the path does not run.
        """
        if self._reader is None or self._reader.done():
            raise Closed(f"media path {self.name!r} does not run")
        loop = asyncio.get_running_loop()
        number, self._number = self._number + skipped, self._number + skipped + 1
        handed_ns = handed_ns or captured_ns
        sent = _Sent(Transfer(captured_ns), handed_ns, loop.create_future())
        ticks = self._leg.send(number, captured_ns, handed_ns)
        self._sent[ticks] = sent
        loop.call_later(LOST_S, self._lose, ticks)
        return sent.done

    async def aclose(self) -> None:
        """End the path; pictures on their way get `Closed`."""
        reader, self._reader = self._reader, None
        self._end_all(Closed(f"media path {self.name!r} was closed"))
        if reader is not None:
            reader.cancel()
            try:
                await asyncio.wait([reader])
            finally:
                await self._leg.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        await self._leg.__aenter__()
        self._reader = asyncio.get_running_loop().create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            async for frame in self._leg.frames(**self._wanted):
                self._arrive(frame)
        except Exception as error:  # noqa: BLE001 - of the receiver: the callers get it
            self._end_all(error)

    def _arrive(self, frame: Frame) -> None:
        ready_ns, half_ns = self.clock(), round(self.scene.profile.period_s * 5e8)
        for ticks, sent in list(self._sent.items()):
            captured_ns = sent.transfer.captured_ns
            if captured_ns > frame.captured_ns + half_ns:
                return
            if captured_ns < frame.captured_ns - half_ns:
                self._lose(ticks)  # a later one came
                continue
            first_ns, last_ns = sent.first_ns or sent.handed_ns, sent.last_ns or ready_ns
            sent.transfer.frames = [attrs.evolve(frame, captured_ns=captured_ns)]
            instants = (captured_ns, sent.handed_ns, first_ns, last_ns, ready_ns)
            for stage, start_ns, end_ns in zip(STAGES, instants, instants[1:], strict=False):
                sent.transfer.stages_s[stage] = max(0, end_ns - start_ns) / 1e9
            self._end(ticks)
            return

    def _lose(self, ticks: int) -> None:
        if ticks in self._sent:
            self._sent[ticks].transfer.lost = "network"
            self._end(ticks)

    def _end(self, ticks: int, error: Exception | None = None) -> None:
        sent = self._sent.pop(ticks)
        if sent.done.done():  # its caller was cancelled
            return
        if error is None:
            sent.done.set_result(sent.transfer)
        else:
            sent.done.set_exception(error)
            sent.done.exception()  # a caller that has gone does not read it

    def _end_all(self, error: Exception) -> None:
        for ticks in list(self._sent):
            self._end(ticks, error)

    def _note_packet(self, ticks: int, *, arrived: bool) -> None:
        sent = self._sent.get(ticks)
        if sent is None:
            return
        if arrived:
            sent.last_ns = self.clock()
        elif not sent.first_ns:
            sent.first_ns = self.clock()


def _is_of_camera(value: object) -> bool:
    return isinstance(value, Scene) and isinstance(value.profile, CameraProfile)

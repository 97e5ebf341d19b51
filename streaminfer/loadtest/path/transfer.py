"""`Transfer`: one frame of a device on its way to the model; `DevicePath`: base class of the paths that carry it."""

import asyncio
import functools
import itertools
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal

import attrs

from streaminfer._internal.validation import check_count, check_instance
from streaminfer._runtime.closing import AsyncClosing
from streaminfer.loadtest.path.network import NetworkProfile
from streaminfer.loadtest.path.scene import Scene
from streaminfer.loadtest.sending.loops import complete
from streaminfer.protocols import Clock
from streaminfer.streams.frame import Frame

__all__ = ["DevicePath", "Loss", "Transfer", "TransferEnd"]

Loss = Literal["encoder", "network", "undecodable"]


@attrs.define(slots=True)
class Transfer:
    """One frame of a device, with the times of its stages.

    Attributes:
        captured_ns: instant of capture.
        frames: frames for the model: one picture, or any number of chunks of sound; empty if the frame was lost.
        lost: where the frame was lost: ``"encoder"``: the encoder was behind; ``"network"``; ``"undecodable"``: the
            frame needs another one that was lost. ``None``: it was not lost.
        stages_s: seconds of each completed stage: ``capture``, ``encode``, ``uplink``, ``edge``, ``decode``.
        cpu_s: CPU seconds of ``encode``, ``decode`` and ``prepare``.
        size: bytes of the unit.
        resent: packets that were sent again.
    """

    captured_ns: int
    frames: list[Frame] = attrs.field(factory=list)
    lost: Loss | None = None
    stages_s: dict[str, float] = attrs.field(factory=dict)
    cpu_s: dict[str, float] = attrs.field(factory=dict)
    size: int = 0
    resent: int = 0


TransferEnd = Callable[[Transfer | None, BaseException | None], None]
"""Called once with the transfer, or with the error in which it ended."""


class DevicePath(AsyncClosing):
    """Path of the frames of one device to the model.

    Args:
        scene: the scene that the device captures.
        network: profile of the network.
        kind: kind of the path, a part of its name.
        start: position in the scene at which the device begins.
        clock: returns monotonic nanoseconds; ``None``: ``time.monotonic_ns``.

    Attributes:
        scene: as above.
        name: name of the stream, unique in the process.
        labels: the names of device and network.
        clock: the clock of the path.
    """

    _names = itertools.count()

    def __init__(
        self, scene: Scene, network: NetworkProfile, *, kind: str = "", start: int, clock: Clock | None = None
    ) -> None:
        check_instance("scene", scene, Scene, "a Scene")
        self.scene = scene
        self.name = f"{scene.profile.name}{kind}-{next(self._names)}"
        self.labels: Mapping[str, str] = {"device": scene.profile.name, "network": network.name}
        self.clock: Clock = clock or time.monotonic_ns
        self._start = check_count("start", start, at_least=0)
        self._next_frame = 0

    def _next_number(self, skipped: int) -> int:
        """Return the number of the next frame, after the frames that the device lost."""
        number = self._next_frame + skipped
        self._next_frame = number + 1
        return number

    def send(self, captured_ns: int, handed_ns: int | None = None, *, skipped: int = 0) -> asyncio.Future[Transfer]:
        """Send the next frame; the future completes when the frame is decoded, or known to be lost.

        Args:
            captured_ns: instant of capture, not before that of the previous frame.
            handed_ns: instant at which the encoder gets the frame; ``None``: at once.
            skipped: number of frames directly before this one that the device lost.

        Raises:
            Closed: the path is not running.
        """
        ended: asyncio.Future[Transfer] = asyncio.get_running_loop().create_future()
        end = functools.partial(complete, ended, operation=f"media path {self.name!r}")
        self.begin(captured_ns, handed_ns, end, skipped=skipped)
        return ended

    @abstractmethod
    def begin(self, captured_ns: int, handed_ns: int | None, end: TransferEnd, *, skipped: int = 0) -> None:
        """Send the next frame like :meth:`send`, and call ``end`` with its outcome.

        Args:
            captured_ns: as for :meth:`send`.
            handed_ns: as for :meth:`send`.
            end: gets the transfer or the error.
            skipped: as for :meth:`send`.

        Raises:
            Closed: the path is not running.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """End the path; the calls of frames in flight raise `Closed`."""

"""`Transfer`: one frame of a device on its way to the model, and `DevicePath`: what carries it."""

import asyncio
import itertools
import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal, Protocol

import attrs

from streaminfer._internal.validation import check_count, check_instance
from streaminfer._runtime.closing import AsyncClosing
from streaminfer.loadtest.path.network import NetworkProfile
from streaminfer.loadtest.path.scene import Scene
from streaminfer.protocols import Clock
from streaminfer.streams.frame import Frame

__all__ = ["DevicePath", "Loss", "Transfer", "TransferEnd"]

Loss = Literal["encoder", "network", "undecodable"]


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


class TransferEnd(Protocol):
    """What is told of the end of a transfer: a future, or what stands for one where nothing awaits it."""

    def done(self) -> bool:
        """Whether it has ended."""
        ...

    def set_result(self, result: Transfer, /) -> None:
        """Take the transfer."""
        ...

    def set_exception(self, exception: BaseException, /) -> None:
        """Take the error with which it ended."""
        ...


class DevicePath(AsyncClosing):
    """What carries the frames of one device.

    Args:
        scene: what the device captures.
        network: profile of its network.
        kind: of the path, for its name.
        start: place in the scene at which the device begins.
        clock: returns monotonic nanoseconds; ``None``: ``time.monotonic_ns``.

    Attributes:
        scene: as above.
        name: of its stream, unique in the process.
        labels: the names of device and network.
        clock: that it uses.
    """

    _names = itertools.count()

    def __init__(
        self, scene: Scene, network: NetworkProfile, *, kind: str = "", start: int, clock: Clock | None = None
    ) -> None:
        check_instance("scene", scene, lambda it: isinstance(it, Scene), "a Scene")
        self.scene = scene
        self.name = f"{scene.profile.name}{kind}-{next(self._names)}"
        self.labels: Mapping[str, str] = {"device": scene.profile.name, "network": network.name}
        self.clock: Clock = clock or time.monotonic_ns
        self._start = check_count("start", start, at_least=0)
        self._numbered = 0

    def _next_number(self, skipped: int) -> int:
        """Return the number of the next frame, behind those that the device lost."""
        number = self._numbered + skipped
        self._numbered = number + 1
        return number

    def send(self, captured_ns: int, handed_ns: int | None = None, *, skipped: int = 0) -> asyncio.Future[Transfer]:
        """Send the next frame; the future completes when it was decoded, or is known to be lost.

        Args:
            captured_ns: instant of capture, not before that of the frame before it.
            handed_ns: instant at which the encoder gets it; ``None``: at once.
            skipped: frames before it that the device lost.

        Raises:
            Closed: the path does not run.
        """
        done: asyncio.Future[Transfer] = asyncio.get_running_loop().create_future()
        self.begin(captured_ns, handed_ns, done, skipped=skipped)
        return done

    @abstractmethod
    def begin(self, captured_ns: int, handed_ns: int | None, done: TransferEnd, *, skipped: int = 0) -> None:
        """Send the next frame, as :meth:`send`, and tell of its end.

        Args:
            captured_ns: as above.
            handed_ns: as above.
            done: told of the end.
            skipped: as above.

        Raises:
            Closed: the path does not run.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """End the path; frames on their way get `Closed`."""

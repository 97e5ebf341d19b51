"""Live loads: a task that lets models leave a device's memory, and brings another one there."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from streaminfer.errors import BackendError
from streaminfer.protocols import Residency

if TYPE_CHECKING:
    from streaminfer.batching.device.device import Device, DeviceMember

__all__ = ["LiveResidence", "LoadListener"]


class LoadListener(Protocol):
    """Who is told of the loads of one batcher's model: its dispatcher."""

    source: str

    def begin_load(self) -> Any:
        """Note that a load begins; what it returns is given to ``end_load``."""
        ...

    def end_load(self, told: Any, failure: BackendError | None) -> None:
        """Go on after a load; where it failed, the next batch fails with it, if there is a failure."""
        ...

    def schedule(self) -> None:
        """Ask the device for a turn."""
        ...


class LiveResidence:
    """How the model of one batcher comes into memory; the device says when.

    A load belongs to no request: it goes on when all callers have left, so what is in memory is always known.

    Args:
        residency: of the backend.
        listener: the batcher's dispatcher.
        now_ns: returns monotonic nanoseconds.

    Attributes:
        memory_bytes: what the model takes.
        task: the load that runs; ``None``: none does.
    """

    def __init__(self, residency: Residency, listener: LoadListener, now_ns: Callable[[], int]) -> None:
        self.memory_bytes = residency.memory_bytes
        self.task: asyncio.Task[None] | None = None
        self._residency = residency
        self._listener = listener
        self._now_ns = now_ns
        self._awaited: asyncio.Future[None] | None = None

    @asynccontextmanager
    async def held(self, device: "Device", member: "DeviceMember") -> AsyncIterator[None]:
        """Keep the model in the memory of the device, which may have to load it.

        Raises:
            BackendError: that failed.
        """
        device.hold(member)
        try:
            if not device.holds(member):
                self._awaited = asyncio.get_running_loop().create_future()
                self._listener.schedule()
                await self._awaited
            yield
        finally:
            self._awaited = None
            device.release(member)
            self._listener.schedule()  # others may wait for the memory

    def load(self, leaving: Sequence[Any], done: Callable[[int, bool, int], None]) -> None:
        """Load the model when others have left."""
        self.task = asyncio.get_running_loop().create_task(self._load(leaving, done))

    async def _load(self, leaving: Sequence["LiveResidence"], done: Callable[[int, bool, int], None]) -> None:
        told = self._listener.begin_load()
        error: BaseException | None = None
        stayed = len(leaving)
        try:
            for other in leaving:
                await other._residency.unload()
                stayed -= 1
            await self._residency.load()
        except BaseException as raised:
            error = raised
            if not isinstance(raised, Exception):
                raise
        finally:
            self.task = None
            done(self._now_ns(), error is None, stayed)
            self._end(told, error)

    def _end(self, told: Any, error: BaseException | None) -> None:
        failure = None
        if error is not None:
            failure = BackendError(f"{self._listener.source} could not be loaded: {type(error).__name__}: {error}")
            failure.__cause__ = error
        if self._awaited is not None and not self._awaited.done():
            if failure is None:
                self._awaited.set_result(None)
            else:
                self._awaited.set_exception(failure)
                failure = None  # which who awaits it gets
        self._listener.end_load(told, failure)

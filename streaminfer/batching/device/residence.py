"""Live loads: a task that evicts models from a device's memory and loads another one."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any

from streaminfer._internal.validation import check_count, check_instance
from streaminfer._runtime.batch_observer import BatchWork
from streaminfer._runtime.lifecycle import BegunTask
from streaminfer.errors import BackendError, text_of_error
from streaminfer.protocols import Residency

if TYPE_CHECKING:
    from streaminfer.batching.device.device import Device
    from streaminfer.batching.dispatcher import Dispatcher

__all__ = ["LiveResidence"]


class LiveResidence:
    """Loads and evicts the model of one batcher; the device decides when.

    A load belongs to no request: it continues when all callers have left, so the contents of the memory are always
    known. Two objects are equal if they share one `Residency`, or methods of one object: they are the same model, even
    if one of the batchers has stopped.

    Args:
        residency: residency of the backend.
        dispatcher: the batcher's dispatcher.
        device: the device.
        now_ns: returns monotonic nanoseconds.

    Attributes:
        source: name of the model.
        memory_bytes: bytes of the model.
        load_at_start: the backend does not know the model before it is loaded.
        task: the running load; ``None``: there is none.

    Raises:
        TypeError, ValueError: the backend offers no `Residency`, or a part of it has the wrong type or is out of range.
    """

    def __init__(
        self, residency: Residency, dispatcher: "Dispatcher", device: "Device", now_ns: Callable[[], int]
    ) -> None:
        check_instance("residency", residency, Residency, "a Residency")
        self.memory_bytes = check_count("residency.memory_bytes", residency.memory_bytes)
        check_instance("residency.load", residency.load, callable, "an async function")
        check_instance("residency.unload", residency.unload, callable, "an async function")
        self.source = dispatcher.source
        self.load_at_start = residency.load_at_start
        self.task: asyncio.Task[None] | None = None
        self._residency = residency
        self._model = residency.load if isinstance(residency.load, MethodType) else id(residency)
        self._dispatcher = dispatcher
        self._device = device
        self._now_ns = now_ns
        self._load_waiter: asyncio.Future[None] | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LiveResidence) and self._model == other._model

    def __hash__(self) -> int:
        return hash(self._model)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Keep the model in the memory of the device, which may have to load it.

        Raises:
            BackendError: the load failed.
        """
        is_there = self._device.hold(self._dispatcher, self._on_loaded)
        try:
            if not is_there:
                self._load_waiter = asyncio.get_running_loop().create_future()
                self._dispatcher.schedule()
                await self._load_waiter
            yield
        finally:
            self._load_waiter = None
            self._device.release(self._dispatcher)
            self._dispatcher.schedule()  # other models may wait for the memory

    def load(self, leaving: Sequence[Any], done: Callable[[int, bool, int], None]) -> None:
        """Load the model after others have left."""
        self.task = BegunTask(self._load(leaving, done))

    def _on_loaded(self) -> None:
        if self._load_waiter is not None and not self._load_waiter.done():
            self._load_waiter.set_result(None)

    async def _load(self, leaving: Sequence["LiveResidence"], done: Callable[[int, bool, int], None]) -> None:
        observers = self._dispatcher.observers
        tokens = [] if observers is None else observers.notify_begin([], self._now_ns())
        error: BaseException | None = None
        retained = len(leaving)
        try:
            for other in leaving:
                await _awaitable("residency.unload", other._residency.unload())
                retained -= 1
            await _awaitable("residency.load", self._residency.load())
        except BaseException as raised:
            error = raised
            if not isinstance(raised, Exception):
                raise
        finally:
            self.task = None
            done(self._now_ns(), error is None, retained)
            if observers is not None:
                observers.notify_end(tokens, BatchWork(setup_share=1.0), self._now_ns())
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        failure = None
        if error is not None:
            failure = BackendError(f"{self._dispatcher.source} could not be loaded: {text_of_error(error)}")
            failure.__cause__ = error
            if self._load_waiter is not None and not self._load_waiter.done():
                self._load_waiter.set_exception(failure)
                failure = None  # the code that awaits the load gets it
        self._dispatcher.after_load(failure)


def _awaitable(name: str, returned: Awaitable[None]) -> Awaitable[None]:
    check_instance(name, returned, inspect.isawaitable, "an async function, which returns an awaitable")
    return returned

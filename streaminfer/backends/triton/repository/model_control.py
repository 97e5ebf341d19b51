"""Loads and unloads a model of a server that allows its clients to do so.

Triton responds to an unload before the model has left memory, and a second load call loads the model again. The state
in the repository's index therefore decides what to send, and when the action is complete.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from streaminfer._internal.error_log import Log
from streaminfer._internal.validation import expected
from streaminfer._runtime.lifecycle import end_tasks
from streaminfer.backends.triton.errors import ServerError, from_status
from streaminfer.backends.triton.settings import Settings, Transport
from streaminfer.errors import BackendError, DeadlineExceeded, StreamInferError

__all__ = ["ModelControl"]

_NOT_ALLOWED = "load / unload is not allowed"
_IN_MEMORY = ("READY", "LOADING", "UNLOADING")
"""States of a version that is wholly or partly in memory; the first one that any version has is the model's state."""

_MIN_POLL_S = 0.005
_MAX_POLL_S = 0.1  # the most time that polling adds to a load or unload

T = TypeVar("T")

_log = Log("streaminfer")


class ModelControl:
    """Loads and unloads one model of a server, each time over a new connection, whether or not the backend is started.

    One call acts at a time. Belongs to one event loop at a time.

    Args:
        settings: settings of the backend.
        loaded: called when the model is in memory; the argument says whether this load brought it there.
    """

    def __init__(self, settings: Settings, loaded: Callable[[bool], Awaitable[None]]) -> None:
        self._settings = settings
        self._model, self._name = settings.model, settings.name
        self._loaded = loaded
        self._should_be_loaded = False
        self._restoring: asyncio.Task[None] | None = None
        self._loop_lock: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    async def load(self) -> None:
        """Load the model if it is not in memory; return when it is ready.

        If that fails, the model is unloaded: the server may continue a load whose response did not come.

        Raises:
            ValueError: the server has no such model; or a file of ``tls`` is invalid.
            OSError: a file of ``tls`` cannot be read.
            BackendError, DeadlineExceeded: the model cannot be loaded, or the server does not respond in time.
        """
        async with self._connection() as transport:
            await self._add(transport)
            self._should_be_loaded = True

    async def unload(self) -> None:
        """Unload the model if it is in memory; return when it has left memory.

        Raises:
            ValueError, OSError: a file of ``tls`` is invalid, or cannot be read.
            BackendError, DeadlineExceeded: the model cannot be unloaded, or the server does not respond in time.
        """
        async with self._connection() as transport:
            self._should_be_loaded = False
            await self._remove(transport)

    def restore(self) -> None:
        """Load the model again in the background, if it was loaded and a restarted server has lost it."""
        restoring = self._restoring
        if self._should_be_loaded and (restoring is None or restoring.done() or restoring.get_loop().is_closed()):
            self._restoring = asyncio.get_running_loop().create_task(self._restore())

    async def stop(self) -> None:
        """End the background load."""
        restoring, self._restoring = self._restoring, None
        if restoring is not None:
            await end_tasks([restoring])

    async def _restore(self) -> None:
        try:
            async with self._connection() as transport:
                if self._should_be_loaded:  # no unload came first
                    await self._add(transport)
        except (StreamInferError, ValueError, OSError) as error:  # batches fail and report their own error
            _log.warning("%s was lost by its server and could not be loaded again: %s", self._name, error)

    async def _add(self, transport: Transport) -> None:
        rows = await self._until(transport, lambda rows: _state(rows, self._model) not in _IN_MEMORY[1:], "loading")
        state = _state(rows, self._model)
        if state is None:
            names = ", ".join(sorted({repr(str(row.get("name"))) for row in rows})) or "none"
            raise ValueError(expected("model", f"a model of the server's repository ({names})", self._model))
        try:
            if state != "READY":
                await self._call(transport.load(self._model, self._settings.load_timeout_s), "loading")
            await self._loaded(state != "READY")
        except Exception as error:
            if state != "READY":
                try:
                    await self._remove(transport)
                except StreamInferError as failure:
                    error.add_note(f"the model may still take memory: {failure}")
            raise

    async def _remove(self, transport: Transport) -> None:
        rows = await self._index(transport, "unloading")
        state = _state(rows, self._model)
        unloading = _unloading(rows)
        if state not in _IN_MEMORY:
            return
        if state != "UNLOADING":
            await self._call(transport.unload(self._model, self._settings.load_timeout_s), "unloading")

        def is_unloaded(rows: _Index) -> bool:  # models that only it needed leave too: the parts of an ensemble
            return _state(rows, self._model) not in _IN_MEMORY and _unloading(rows) <= unloading

        await self._until(transport, is_unloaded, "unloading")

    async def _until(self, transport: Transport, is_done: Callable[["_Index"], bool], action: str) -> "_Index":
        """Poll the index until it fulfills a condition, and return it."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._settings.load_timeout_s
        pause_s = _MIN_POLL_S
        while not is_done(rows := await self._index(transport, action)):
            if loop.time() >= end_s:
                state = _state(rows, self._model)
                raise DeadlineExceeded(
                    f"{action} {self._name}: not done after {self._settings.load_timeout_s} s; it is {state}"
                )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_POLL_S)
        return rows

    async def _index(self, transport: Transport, action: str) -> "_Index":
        index = transport.index(self._settings.timeout_s)
        return list(await self._call(index, action, unsupported={"NOT_FOUND", "UNIMPLEMENTED"}))

    async def _call(self, call: Awaitable[T], action: str, unsupported: Container[str] = ()) -> T:
        """Return the result of a call; ``unsupported`` are the states that say that the server has no such call."""
        try:
            return await call
        except ServerError as failure:
            if failure.says([_NOT_ALLOWED]):
                hint = "start it with --model-control-mode=explicit"
            elif failure.status in unsupported:
                hint = "it has no extension for that"
            else:
                raise from_status(failure, f"{action} {self._name}", has_inputs=False) from failure.__cause__
            error = BackendError(
                f"{action} {self._name}: the server does not let its clients do that; {hint} ({failure.text})"
            )
            error.retryable = False  # type: ignore[attr-defined]
            raise error from failure

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Transport]:
        """Wait until earlier calls have ended, and connect."""
        loop = asyncio.get_running_loop()
        if self._loop_lock is None or self._loop_lock[0] is not loop:
            self._loop_lock = loop, asyncio.Lock()
        async with self._loop_lock[1]:
            transport = self._settings.connect()
            try:
                yield transport
            finally:
                await transport.close()


_Index = list[Mapping[str, Any]]


def _state(rows: Iterable[Mapping[str, Any]], model: str) -> str | None:
    """Return the state of a model over all its versions; ``None`` if it is not in the repository."""
    states = {str(row.get("state", "")) for row in rows if row.get("name") == model}
    return next((state for state in (*_IN_MEMORY, *sorted(states)) if state in states), None)


def _unloading(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    return {str(row.get("name")) for row in rows if row.get("state") == "UNLOADING"}

"""Life cycle of a backend's session: a start opens it, or a load of a model that was not in memory at the start."""

import asyncio
import contextlib
from collections.abc import Callable

from streaminfer._runtime.lifecycle import seconds_left, stop_together, until_limit
from streaminfer.backends.triton.errors import ModelNotReady
from streaminfer.backends.triton.repository.model_control import ModelControl
from streaminfer.backends.triton.request_splitter import RequestSplitter
from streaminfer.backends.triton.server_statistics import StatisticsReader
from streaminfer.backends.triton.session import Session
from streaminfer.backends.triton.settings import Settings
from streaminfer.errors import Closed

__all__ = ["SessionLifecycle"]


class SessionLifecycle:
    """Opens and closes the sessions of a backend, and loads and unloads its model.

    Args:
        settings: settings of the backend.
        changed: called with the session when the model's description is known, and when it changes.

    Attributes:
        control: loads and unloads the model.
        reader: reads the server's statistics.
        splitter: sends the requests; ``None``: there is no session.
    """

    def __init__(self, settings: Settings, changed: Callable[[Session], None]) -> None:
        self._settings = settings
        self._changed = changed
        self._is_opening = self._is_started = False
        self.splitter: RequestSplitter | None = None
        self.reader = StatisticsReader(settings.name)
        self.control = ModelControl(settings, self._describe)

    async def start(self) -> None:
        """Open a session unless there is one; :meth:`described_splitter` raises until the model is in memory.

        Raises:
            ModelNotReady: the model is not in memory, although the settings require it.
            Exception: like `Session.open`.
            RuntimeError: another loop started it.
        """
        if self._own_splitter() is not None:
            return
        try:
            await self._open()
        except ModelNotReady:
            if not self._settings.may_be_unloaded:
                raise
        self._is_started = True

    async def stop(self, *, drain: bool) -> None:
        """Close the session.

        Args:
            drain: wait for running calls first.

        Raises:
            RuntimeError: another loop started it.
        """
        self._is_started = False
        splitter = self._own_splitter()
        if splitter is None:
            return
        session = splitter.session
        self.splitter = None
        try:
            await stop_together([self.reader.stop(), self.control.stop()])
            if drain:
                with contextlib.suppress(TimeoutError):
                    left_s = seconds_left(self._settings.timeout_s)
                    async with asyncio.timeout(min(self._settings.timeout_s, left_s or 0.0)):
                        await session.streams.wait_idle()
                await until_limit(session.calls.wait_idle())
        finally:
            await session.close()
            await session.stream_reads.wait_idle()
            await session.calls.wait_idle()  # so that their callers get the errors before this returns

    async def load(self) -> None:
        """Load the model unless the server has it in memory, and read its description.

        Raises:
            Exception: like `ModelControl.load` and `Session.open`.
            RuntimeError: another loop started it.
        """
        self._own_splitter()
        await self.control.load()

    def running(self) -> RequestSplitter:
        """Return the splitter, for requests from this event loop.

        Raises:
            ModelNotReady, Closed: like :meth:`described_splitter`.
            RuntimeError: another loop started it.
        """
        splitter = self.described_splitter()
        self._check_loop(splitter)
        return splitter

    def described_splitter(self) -> RequestSplitter:
        """Return the splitter, which knows the model's description.

        Raises:
            ModelNotReady: the model was not in memory since the start.
            Closed: the backend is not started, or stopped.
        """
        if self.splitter is not None:
            return self.splitter
        if self._is_started:
            raise ModelNotReady(f"{self._settings.name} is not loaded; await its load(), or let a Device load it")
        raise Closed(f"{self._settings.name} is not started, or stopped")

    async def _open(self) -> None:
        if self._is_opening:
            raise RuntimeError(f"{self._settings.name} is starting already")
        self._is_opening = True
        try:
            session = await Session.open(self._settings, self._changed, self.reader.counts)
        finally:
            self._is_opening = False
        self.splitter = RequestSplitter(session, self._settings, self.control.restore)
        self._changed(session)
        self.reader.start(self.splitter, self._settings.statistics_every_s)

    async def _describe(self, is_new: bool) -> None:
        """Read the description of a model that is in memory.

        Args:
            is_new: whether the model was loaded just now, so that its files may have changed.
        """
        if self.splitter is not None:
            session = self.splitter.session
            if is_new:
                await session.refresh_model(session.changes)
        elif self._is_started:
            await self._open()
            if not self._is_started:  # `stop` was called meanwhile
                await self.stop(drain=False)

    def _own_splitter(self) -> RequestSplitter | None:
        """Return the splitter; forget that of an event loop that has ended.

        Raises:
            RuntimeError: another loop started it.
        """
        if self.splitter is not None and self.splitter.session.loop.is_closed():
            self.splitter = None
            self.reader.forget()
        if self.splitter is not None:
            self._check_loop(self.splitter)
        return self.splitter

    def _check_loop(self, splitter: RequestSplitter) -> None:
        if asyncio.get_running_loop() is not splitter.session.loop:
            raise RuntimeError(f"{self._settings.name} belongs to the event loop that started it")

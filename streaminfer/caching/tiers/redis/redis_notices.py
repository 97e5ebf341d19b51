"""Notices of a `RedisTier` by publish and subscribe: what one process deleted, the memory of the others drops.

One connection listens. When it is lost it is made again, after pauses from 0.1 to 5 s; when the server is silent for
5 s it is sent a ping, and 5 s without a reply are a loss as well. What is published meanwhile is missed: the server
keeps nothing of it. Notices are records as entries are, sealed where the tier has keys; one that cannot be read is
passed over.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from streaminfer._internal.error_log import Log
from streaminfer._runtime.lifecycle import keep_running
from streaminfer.caching.codec import CorruptRecord
from streaminfer.caching.tiers._records import Records
from streaminfer.caching.tiers.protocol import Entry, Notice

__all__ = ["RedisNotices"]

_LOGGER = Log("streaminfer.caching")
_NAME = b"notice"
_QUIET_S = 5.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


class RedisNotices:
    """The notices of one tier.

    Args:
        channel: where they are published.
        records: what makes records of them.
        blocking: runs what may block, as a key provider may.

    Attributes:
        listening: is set while others' notices are heard.
        heard: how many were heard.
        missed: how often the connection was lost, so that some may have been missed.
    """

    def __init__(self, channel: bytes, records: Records, blocking: Callable[..., Awaitable[Any]]) -> None:
        self.channel = channel
        self.listening = asyncio.Event()
        self.heard = self.missed = 0
        self._records = records
        self._blocking = blocking
        self._own = b""
        self._listeners: list[Callable[[Notice], object]] = []
        self._client: Any = None
        self._task: asyncio.Task[None] | None = None

    def hear(self, listener: Callable[[Notice], object]) -> None:
        """Call ``listener`` with each notice of others."""
        self._listeners.append(listener)

    def start(self, client: Any) -> None:
        """Begin to listen.

        Args:
            client: of connections of its own, at least one.
        """
        self._client = client
        self._own = os.urandom(16)  # not before a fork: its children are others
        self.listening = asyncio.Event()  # of this event loop
        self._task = keep_running(self._listen, "the listener to notices of a Redis tier", _LOGGER.name)

    async def stop(self) -> None:
        """End it; idempotent."""
        task, self._task = self._task, None
        self.listening.clear()
        if task is not None:
            task.cancel()
            try:
                await asyncio.gather(task, return_exceptions=True)
            finally:
                await self._client.aclose()

    async def record(self, notice: Notice) -> bytes:
        """Return what to publish."""
        value = (self._own, notice.key, notice.subject, notice.tag)
        record: bytes = await self._blocking(self._records.pack, _NAME, Entry(value=value, stored_ns=time.time_ns()))
        return record

    async def _listen(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._subscribe()
            except Exception as error:  # whatever a broken server leads to
                if self.listening.is_set():
                    self.listening.clear()
                    self.missed += 1
                    pause_s = _FIRST_PAUSE_S
                if pause_s == _FIRST_PAUSE_S:  # the first attempt that failed, since the start or since it listened
                    text = "notices of others may be missed: %s: %s"
                    _LOGGER.warning(text, type(error).__name__, error, exc_info=error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _subscribe(self) -> None:
        """Listen until the connection is lost, which raises."""
        pubsub = self._client.pubsub()
        try:
            async with asyncio.timeout(_QUIET_S):
                await pubsub.subscribe(self.channel)
            pinged = False
            while True:
                message = await pubsub.get_message(timeout=_QUIET_S)
                if message is None and pinged:
                    raise TimeoutError(f"no reply to a ping within {_QUIET_S:g} s")
                pinged = message is None
                if pinged:
                    await pubsub.ping()
                elif message["type"] == "subscribe":
                    self.listening.set()
                elif message["type"] == "message":
                    await self._hear(message["data"])
        finally:
            await pubsub.aclose()

    async def _hear(self, record: Any) -> None:
        try:
            entry = await self._blocking(self._records.unpack, _NAME, record)
            own, key, subject, tag = entry.value
        except (CorruptRecord, TypeError, ValueError) as error:
            _LOGGER.warning("a notice could not be read: %s: %s", type(error).__name__, error)
            return
        if own == self._own:
            return
        self.heard += 1
        for listener in self._listeners:
            try:
                listener(Notice(key=key, subject=subject, tag=tag))
            except Exception:
                _LOGGER.exception("what another process deleted could not be dropped here")

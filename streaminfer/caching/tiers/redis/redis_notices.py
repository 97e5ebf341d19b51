"""Notices of a `RedisTier` by publish and subscribe: other processes remove from memory what one process deleted.

One connection listens. If it is lost, it is opened again after pauses from 0.1 to 5 s. If the server is silent for 5 s,
the listener sends a ping; 5 s without a reply also count as a loss. Notices that are published meanwhile are missed,
because the server does not store them. Notices are records like entries, sealed if the tier has keys; unreadable ones
are skipped.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from streaminfer._internal.error_log import Log
from streaminfer._runtime.lifecycle import end_tasks, keep_running
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
    """Notices of one tier.

    Args:
        channel: channel on which they are published.
        records: turns them into records.
        blocking: runs functions that may block, such as those of a key provider.

    Attributes:
        listening: event that is set while the tier receives notices.
        heard: number of received notices of others.
        missed: number of lost connections, during which notices may have been missed.
        listeners: get each notice of another process.
    """

    def __init__(self, channel: bytes, records: Records, blocking: Callable[..., Awaitable[Any]]) -> None:
        self.channel = channel
        self.listening = asyncio.Event()
        self.heard = self.missed = 0
        self._records = records
        self._blocking = blocking
        self._sender_id = b""
        self.listeners: list[Callable[[Notice], object]] = []
        self._client: Any = None
        self._task: asyncio.Task[None] | None = None

    def start(self, client: Any) -> None:
        """Begin to listen.

        Args:
            client: a client with at least one connection for the listener alone.
        """
        self._client = client
        self._sender_id = os.urandom(16)  # after any fork, so that forked processes differ
        self.listening = asyncio.Event()  # belongs to this event loop
        self._task = keep_running(self._listen, "the listener to notices of a Redis tier", _LOGGER.name)

    async def stop(self) -> None:
        """Stop listening; idempotent."""
        task, self._task = self._task, None
        self.listening.clear()
        if task is not None:
            try:
                await end_tasks([task])
            finally:
                await self._client.aclose()

    async def record(self, notice: Notice) -> bytes:
        """Return the record of a notice to publish."""
        value = (self._sender_id, notice.key, notice.subject, notice.tag)
        record: bytes = await self._blocking(self._records.pack, _NAME, Entry(value=value, stored_ns=time.time_ns()))
        return record

    async def _listen(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._subscribe()
            except Exception as error:  # a broken server can cause any error
                if self.listening.is_set():
                    self.listening.clear()
                    self.missed += 1
                    pause_s = _FIRST_PAUSE_S
                if pause_s == _FIRST_PAUSE_S:  # first failure since the start or since it last listened
                    text = "notices of others may be missed: %s: %s"
                    _LOGGER.warning(text, type(error).__name__, error, exc_info=error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _subscribe(self) -> None:
        """Listen until the connection is lost, then raise."""
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
                    await self._receive(message["data"])
        finally:
            await pubsub.aclose()

    async def _receive(self, record: Any) -> None:
        try:
            entry = await self._blocking(self._records.unpack, _NAME, record)
            sender_id, key, subject, tag = entry.value
        except (CorruptRecord, TypeError, ValueError) as error:
            _LOGGER.warning("a notice could not be read: %s: %s", type(error).__name__, error)
            return
        if sender_id == self._sender_id:
            return
        self.heard += 1
        for listener in self.listeners:
            try:
                listener(Notice(key=key, subject=subject, tag=tag))
            except Exception:
                _LOGGER.exception("what another process deleted could not be dropped here")

"""Destruction of a subject's keys in a thread, by a key provider that may hang."""

import asyncio
import os
import threading
import weakref
from concurrent.futures import Future

from streaminfer.caching.erasure.erasure import PendingErasure
from streaminfer.caching.tiers.encryption import KeyProvider
from streaminfer.caching.tiers.time_limit import within

__all__ = ["KeyDestruction"]


class KeyDestruction:
    """Destroys keys, one call of the provider at a time.

    A call that hangs is not repeated; its erasure takes the result when the call returns. Until then all other attempts
    fail at once, so that they delay no writes.

    Args:
        keys: the provider.

    For one task at a time; it may be used on several event loops in turn.
    """

    def __init__(self, keys: KeyProvider) -> None:
        self._keys = keys
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._latest: Future[int] = Future()
        self._latest.set_result(0)
        self._calls: weakref.WeakKeyDictionary[PendingErasure, Future[int]] = weakref.WeakKeyDictionary()

    async def make(self, erasing: PendingErasure, limit_s: float) -> None:
        """Destroy the keys of an erasure's subject.

        Args:
            erasing: the erasure.
            limit_s: seconds to wait for the provider.

        Raises:
            TimeoutError: the provider has not returned.
            Exception: the error of the provider.
        """
        if self._pid != os.getpid():  # a forked process lacks the threads of the calls
            self._forget()
        if not self._latest.done():
            raise TimeoutError("the key provider has not returned from an earlier call")
        call = self._calls.pop(erasing, None)
        if call is None:
            call = self._latest = self._begin(str(erasing.subject))
        try:
            await within(limit_s, asyncio.wrap_future(call))
        except TimeoutError as error:
            if call.done():
                raise
            raise TimeoutError(f"the key provider took longer than {limit_s:g} s") from error
        finally:
            if not call.done():
                self._calls[erasing] = call

    def _begin(self, subject: str) -> Future[int]:
        call: Future[int] = Future()
        call.set_running_or_notify_cancel()  # running calls cannot be cancelled, so they outlive their caller

        def run() -> None:
            try:
                call.set_result(self._keys.destroy(subject))
            except BaseException as error:  # noqa: BLE001 - for the caller that waits
                call.set_exception(error)

        # a daemon thread: a hanging provider must not delay the exit of the process or occupy a pool
        threading.Thread(target=run, name="streaminfer-keys", daemon=True).start()
        return call

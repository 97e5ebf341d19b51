"""Destruction of a subject's keys, once per erasure, by a key provider that may hang.

*Once.* Tiers that share a provider carry out an erasure at different times, and retry it. After the first destruction,
a tier that has made the erasure stores new values of the subject. A second destruction would make them unreadable.

*Not too early.* While an erasure is registered, tiers begin no put that it matches. But a put that was already running
may seal a value from before the erasure with a key that was made after the destruction. Its tier therefore calls
`KeyDestruction.repeat` when the put has ended.
"""

import asyncio
import threading
import weakref
from concurrent.futures import Future

from streaminfer._internal.forking import call_in_child
from streaminfer.caching.erasure.erasure import PendingErasure
from streaminfer.caching.tiers.encryption import KeyProvider
from streaminfer.caching.tiers.time_limit import within

__all__ = ["KeyDestruction"]


class KeyDestruction:
    """Destroys keys, once for each erasure, for all tiers of a cache that use the same provider.

    A call that hangs is not repeated; its erasure takes the result when the call returns. Until then all other attempts
    fail at once, so that they delay no writes.

    Args:
        keys: the provider; ``None``: there is nothing to destroy.

    For the tasks of one event loop at a time; any thread may use it while no loop does.
    """

    def __init__(self, keys: KeyProvider | None) -> None:
        self.keys = keys
        self._forget()
        call_in_child(self._forget)  # a forked process lacks the threads of the calls

    def _forget(self) -> None:
        self._overdue: set[Future[int]] = set()  # calls that exceeded their time limit
        # calls that run or succeeded
        self._calls: weakref.WeakKeyDictionary[PendingErasure, Future[int]] = weakref.WeakKeyDictionary()

    async def make(self, erasing: PendingErasure, limit_s: float) -> None:
        """Destroy the keys of an erasure's subject, unless that was done for this erasure or it is by tag.

        Args:
            erasing: the erasure.
            limit_s: seconds to wait for the provider.

        Raises:
            TimeoutError: the provider has not returned.
            Exception: the error of the provider.
        """
        if self.keys is None or erasing.subject is None:
            return
        if not all(call.done() for call in self._overdue):
            raise TimeoutError("the key provider has not returned from an earlier call")
        self._overdue.clear()
        call = self._calls.get(erasing)
        if call is None:
            call = self._calls[erasing] = _begin(self.keys, erasing.subject)
        try:
            await within(limit_s, asyncio.wrap_future(call))
        except Exception as error:
            if not call.done():
                self._overdue.add(call)
                raise TimeoutError(f"the key provider took longer than {limit_s:g} s") from error
            if call.exception() is not None and self._calls.get(erasing) is call:
                del self._calls[erasing]
            raise

    def make_now(self, erasing: PendingErasure) -> None:
        """Destroy the keys as `make` does, but in the caller's thread and without a limit; for a stopped tier."""
        if self.keys is None or erasing.subject is None:
            return
        if erasing not in self._calls:
            call: Future[int] = Future()
            call.set_result(self.keys.destroy(erasing.subject))
            self._calls[erasing] = call

    def repeat(self, erasing: PendingErasure) -> None:
        """Let the next attempt destroy the keys again, because a value from before the erasure may have a new key."""
        self._calls.pop(erasing, None)


def _begin(keys: KeyProvider, subject: str) -> Future[int]:
    call: Future[int] = Future()
    call.set_running_or_notify_cancel()  # running calls cannot be cancelled, so they outlive their caller

    def run() -> None:
        try:
            call.set_result(keys.destroy(subject))
        except BaseException as error:  # noqa: BLE001 - for the caller that waits
            call.set_exception(error)

    # a daemon thread: a hanging provider must not delay the exit of the process or occupy a pool
    threading.Thread(target=run, name="streaminfer-keys", daemon=True).start()
    return call

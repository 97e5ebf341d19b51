"""Thread that frees the expired entries of idle caches.

*Design.* A cache frees up to four due entries whenever a value is stored. One daemon thread for all caches (``THREAD``)
frees the others, also in idle caches. The thread sleeps until the next entry is due, as each memory states in
``wake_ns``. It keeps no cache alive, and ends when no cache has an entry that will expire. A store that brings an
earlier instant wakes the thread through a ``SimpleQueue``, which a finalizer can re-enter, so storing a value waits for
no lock.

*Bound.* The thread looks at the caches at most every :data:`GRAIN_S` = 0.1 s. An expired entry therefore leaves memory
0.1 s after its time (stale time included), plus the delay of the scheduler and the time to free the entries that are
due with it; the stated bound is 0.25 s. The thread frees 256 entries at a time and then sleeps for 0.2 ms, so that a
waiting event loop can take the interpreter lock.

*Clocks.* The thread skips a cache with a clock of the user or of a `Stack`, because it cannot know how that clock runs:
a fake clock stands still. There, storing a value and ``expire()`` free the due entries.
"""

from __future__ import annotations

import threading
import time
import weakref
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from streaminfer._internal.forking import at_fork
from streaminfer.caching.table._slots_cy import NEVER

if TYPE_CHECKING:
    from streaminfer.caching.memory import Memory

__all__ = ["GRAIN_S", "THREAD", "ExpiryThread"]

GRAIN_S = 0.1
_BATCH = 256
_PAUSE_S = 0.0002


class ExpiryThread:
    """One daemon thread for every cache on the monotonic clock. Thread-safe."""

    def __init__(self) -> None:
        self._memories: set[weakref.ref[Memory]] = set()
        self._wakeups: SimpleQueue[None] = SimpleQueue()
        self._starting = threading.RLock()
        self._running = False

    def wake(self, memory: Memory) -> None:
        """Schedule a look at a memory at its ``wake_ns``; start the thread if it does not run."""
        self._memories.add(weakref.ref(memory))
        self._wakeups.put(None)
        if not self._running:
            with self._starting:
                if not self._running:
                    thread = threading.Thread(target=self._run, name="streaminfer-expiry", daemon=True)
                    try:
                        thread.start()
                        self._running = True
                    except RuntimeError:  # no thread can start, or the interpreter ends: the next store tries again
                        memory.wake_ns = NEVER

    def _run(self) -> None:
        while True:
            due_ns = min(map(self._expire_due, list(self._memories)), default=NEVER)
            if due_ns == NEVER:
                with self._starting:
                    self._running = False  # before the check: a `wake` after this line starts another thread
                    if self._wakeups.empty():
                        return
                    self._running = True
            with suppress(Empty):  # wait until the next entry is due, or `wake` reports an earlier one
                left_s = max((due_ns - time.monotonic_ns()) / 1e9, 0.0)
                self._wakeups.get(timeout=min(left_s, threading.TIMEOUT_MAX))
                while True:
                    self._wakeups.get_nowait()
            time.sleep(GRAIN_S)

    def _expire_due(self, reference: weakref.ref[Memory]) -> int:
        """Free the due entries of one memory; return the instant of the next look."""
        memory = reference()
        if memory is None:
            self._memories.discard(reference)
        if memory is None or memory.wake_ns < 0:  # the cache got a clock that this thread cannot read
            return NEVER
        now_ns = memory.now()
        if memory.wake_ns > now_ns:
            return memory.wake_ns
        try:
            # with NEVER, each entry stored from here on calls `wake`
            memory.wake_ns = NEVER
            while (next_ns := memory.expire_due(now_ns, _BATCH)) <= now_ns:
                time.sleep(_PAUSE_S)
        except Exception:
            from streaminfer._internal.error_log import Log  # noqa: PLC0415 - loaded by the first failure

            logger = Log("streaminfer.caching")
            logger.exception("expired entries could not be freed; the next one that expires begins another attempt")
            return NEVER
        if next_ns < memory.wake_ns:  # noqa: PLR1730 - in a call another thread could store what is due earlier
            memory.wake_ns = next_ns
        return memory.wake_ns

    def begin_again(self) -> None:
        """Start again in a forked child, which has the entries but not the thread."""
        was_running, memories = self._running, [reference() for reference in self._memories]
        self.__init__()  # type: ignore[misc]
        for memory in memories if was_running else ():
            if memory is not None and memory.wake_ns >= 0:
                memory.wake_ns = 0  # the parent's thread may have set it to NEVER during a look
                self.wake(memory)


THREAD = ExpiryThread()
at_fork(after_in_child=THREAD.begin_again)

"""Thread that frees the expired entries of idle caches.

*Design.* A cache frees what is due whenever a value is stored. One daemon thread for all caches (``THREAD``) does the
same for idle caches. It sleeps until the next entry is due, as each memory says (``wake_ns``), keeps no cache alive,
and ends when no entry is due any more. A queue that a finalizer may enter again tells it of an earlier instant, so
storing a value waits for no lock.

*Bound.* The thread looks at the caches at most every :data:`GRAIN_S` = 0.1 s. An expired entry therefore leaves memory
0.1 s after its time (its stale time included), plus what the scheduler takes and what it takes to free the entries that
are due with it; 0.25 s is the stated bound. Entries are freed 256 at a time. Between these the thread sleeps for
0.2 ms, so that an event loop that waits for the interpreter gets it.

*Clocks.* The thread leaves out a cache that has a clock of its own, or of its `Stack`, because it cannot know how that
clock runs: a fake one stands still. Storing a value and ``expire()`` free what is due there.
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
        self._told: SimpleQueue[None] = SimpleQueue()
        self._starting = threading.RLock()
        self._running = False

    def wake(self, memory: Memory) -> None:
        """Have it look at a memory at its ``wake_ns``; it starts if it does not run, and if it can."""
        self._memories.add(weakref.ref(memory))
        self._told.put(None)
        if not self._running:
            with self._starting:
                if not self._running:
                    thread = threading.Thread(target=self._run, name="streaminfer-expiry", daemon=True)
                    try:
                        thread.start()
                        self._running = True
                    except RuntimeError:  # no more threads, or the interpreter ends: the next store wakes it again
                        memory.wake_ns = NEVER

    def _run(self) -> None:
        while True:
            due_ns = min(map(self._look, list(self._memories)), default=NEVER)
            if due_ns == NEVER:
                with self._starting:
                    self._running = False  # before the look: who tells from here on starts another
                    if self._told.empty():
                        return
                    self._running = True
            with suppress(Empty):  # until the next is due, or an earlier one came
                left_s = max((due_ns - time.monotonic_ns()) / 1e9, 0.0)
                self._told.get(timeout=min(left_s, threading.TIMEOUT_MAX))
                while True:
                    self._told.get_nowait()
            time.sleep(GRAIN_S)

    def _look(self, reference: weakref.ref[Memory]) -> int:
        """Free what is due in one memory; return when to look again."""
        memory = reference()
        if memory is None:
            self._memories.discard(reference)
        if memory is None or memory.wake_ns < 0:  # it was given a clock that this thread cannot read
            return NEVER
        now_ns = memory.now()
        if memory.wake_ns > now_ns:
            return memory.wake_ns
        try:
            # an entry that is stored from here on calls `wake`, because the memory knows of no next look
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
        """Start again in a forked child, which has the entries and not the thread."""
        was_running, memories = self._running, [reference() for reference in self._memories]
        self.__init__()  # type: ignore[misc]
        for memory in memories if was_running else ():
            if memory is not None and memory.wake_ns >= 0:
                memory.wake_ns = 0  # the parent's thread may have been at work, and known of no next look
                self.wake(memory)


THREAD = ExpiryThread()
at_fork(after_in_child=THREAD.begin_again)

"""Thread that frees the expired entries of idle caches.

*Design.* A cache frees what is due whenever a value is stored. One daemon thread for all caches (``THREAD``) does the
same for idle caches. It sleeps until the next entry is due, keeps no cache alive, and ends when no entry is due any
more. Its state is its own: a queue that a finalizer may enter again tells it, so storing a value waits for no
lock.

*Bound.* The thread looks at a cache at most every :data:`GRAIN_S` = 0.1 s. An expired entry therefore leaves memory
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
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from streaminfer._internal.forking import at_fork
from streaminfer.caching.table._slots_cy import NEVER

if TYPE_CHECKING:
    from streaminfer.caching.memory import Memory

__all__ = ["GRAIN_S", "THREAD", "ExpiryThread"]

GRAIN_S = 0.1
_GRAIN_NS = round(GRAIN_S * 1e9)
_BATCH = 256
_PAUSE_S = 0.0002


class ExpiryThread:
    """One daemon thread for every cache on the monotonic clock. Thread-safe."""

    def __init__(self) -> None:
        self._told: SimpleQueue[tuple[weakref.ref[Memory], int, int]] = SimpleQueue()
        self._starting = threading.RLock()
        self._running = False

    @property
    def running(self) -> bool:
        """Whether it waits for an entry to expire."""
        return self._running

    def wake(self, memory: Memory, at_ns: int) -> None:
        """Have it look at a memory at an instant on the monotonic clock; it starts if it does not run."""
        self._told.put((weakref.ref(memory), id(memory), at_ns))
        if not self._running:
            with self._starting:
                if not self._running:
                    self._running = True
                    threading.Thread(target=self._run, name="streaminfer-expiry", daemon=True).start()

    def _run(self) -> None:
        # by the id of each memory: a reference to it, and when to look
        waiting: dict[int, tuple[weakref.ref[Memory], int]] = {}
        while True:
            due_ns = min((at_ns for _, at_ns in waiting.values()), default=NEVER)
            try:
                if due_ns == NEVER:
                    reference, number, at_ns = self._told.get_nowait()
                else:
                    left_s = max((due_ns - time.monotonic_ns()) / 1e9, 0.0)
                    reference, number, at_ns = self._told.get(timeout=min(left_s, threading.TIMEOUT_MAX))
            except Empty:
                if due_ns == NEVER:
                    with self._starting:
                        if self._told.empty():
                            self._running = False
                            return
                    continue
            else:
                soonest_ns = max(at_ns, time.monotonic_ns() + _GRAIN_NS)
                known, known_ns = waiting.get(number, (reference, NEVER))
                waiting[number] = reference, min(soonest_ns, known_ns if known is reference else NEVER)
                continue
            now_ns = time.monotonic_ns()
            for number, (reference, at_ns) in list(waiting.items()):
                if at_ns <= now_ns:
                    next_ns = self._look(reference)
                    if next_ns == NEVER:
                        del waiting[number]
                    else:
                        waiting[number] = reference, next_ns

    def _look(self, reference: weakref.ref[Memory]) -> int:
        memory = reference()
        if memory is None or memory.wake_ns < 0:  # it was given a clock that this thread cannot read
            return NEVER
        try:
            now_ns = memory.now()
            # an entry that is stored from here on calls `wake`, because the memory knows of no next look
            memory.wake_ns = NEVER
            next_ns = memory.expire_due(now_ns, _BATCH)
        except Exception:
            import logging  # noqa: PLC0415 - loaded by the first failure

            logger = logging.getLogger("streaminfer.caching")
            logger.exception("expired entries could not be freed; the next one that expires begins another attempt")
            return NEVER
        if next_ns <= now_ns:
            time.sleep(_PAUSE_S)
        elif next_ns < NEVER:
            next_ns = max(next_ns, now_ns + _GRAIN_NS)
        memory.wake_ns = min(memory.wake_ns, next_ns)
        return next_ns

    def forget(self) -> None:
        """Begin empty in a forked child, which has no such thread; the next wake starts one."""
        self.__init__()  # type: ignore[misc]


THREAD = ExpiryThread()
at_fork(in_child=THREAD.forget)

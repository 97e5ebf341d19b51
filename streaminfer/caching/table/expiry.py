"""The thread that frees entries which expire while their cache is idle.

A cache frees what is due whenever a value is stored. One daemon thread for all caches (``THREAD``) does the same for
caches that lie idle. It sleeps until the next entry is due, holds no cache alive, and ends when there is nothing to
wait for.

**The bound.** It looks at a cache at most every :data:`GRAIN_S` = 0.1 s, so an expired entry is out of memory 0.1 s
after its time (its stale time included), plus what the scheduler takes and what it takes to free the entries that are
due with it: 0.25 s is the stated bound. Entries go 256 at a time; between these the thread sleeps for 0.2 ms, so that
an event loop that waits for the interpreter gets it.

A cache with a clock of its own, or of its `Stack`, is not swept by the thread, which could not know how that clock
runs: a fake one stands still. Storing a value and ``expire()`` free what is due there.

The thread keeps its state to itself and is told by a queue that may be entered again from a finaliser, so that storing
a value waits for no lock.
"""

from __future__ import annotations

import threading
import time
import weakref
from queue import Empty, SimpleQueue
from typing import Any

from streaminfer._internal.forking import at_fork

__all__ = ["GRAIN_S", "THREAD", "ExpiryThread"]

GRAIN_S = 0.1
_GRAIN_NS = round(GRAIN_S * 1e9)
_AT_ONCE = 256
_PAUSE_S = 0.0002
_NEVER = 2**63 - 1


class ExpiryThread:
    """One daemon thread for every cache on the monotonic clock. Thread-safe."""

    def __init__(self) -> None:
        self._told: SimpleQueue[tuple[weakref.ref[Any], int, int]] = SimpleQueue()
        self._starting = threading.RLock()
        self._running = False

    @property
    def running(self) -> bool:
        """Whether it waits for something."""
        return self._running

    def wake(self, cache: Any, at_ns: int) -> None:
        """Asks it to look at a cache at an instant on the monotonic clock; it starts if it does not run."""
        self._told.put((weakref.ref(cache), id(cache), at_ns))
        if not self._running:
            with self._starting:
                if not self._running:
                    self._running = True
                    threading.Thread(target=self._run, name="streaminfer-sweep", daemon=True).start()

    def _run(self) -> None:
        # by the id of each cache: a reference to it, and when to look (a mapping has no hash)
        waiting: dict[int, tuple[weakref.ref[Any], int]] = {}
        while True:
            due_ns = min((at_ns for _, at_ns in waiting.values()), default=_NEVER)
            try:
                if due_ns == _NEVER:
                    reference, number, at_ns = self._told.get_nowait()
                else:
                    left_s = max((due_ns - time.monotonic_ns()) / 1e9, 0.0)
                    reference, number, at_ns = self._told.get(timeout=min(left_s, threading.TIMEOUT_MAX))
            except Empty:
                if due_ns == _NEVER:
                    with self._starting:
                        if self._told.empty():
                            self._running = False
                            return
                    continue
            else:
                soonest_ns = max(at_ns, time.monotonic_ns() + _GRAIN_NS)
                known, known_ns = waiting.get(number, (reference, _NEVER))
                waiting[number] = reference, min(soonest_ns, known_ns if known is reference else _NEVER)
                continue
            now_ns = time.monotonic_ns()
            for number, (reference, at_ns) in list(waiting.items()):
                if at_ns <= now_ns:
                    next_ns = self._look(reference)
                    if next_ns == _NEVER:
                        del waiting[number]
                    else:
                        waiting[number] = reference, next_ns

    def _look(self, reference: weakref.ref[Any]) -> int:
        cache = reference()
        if cache is None or cache.wake_ns < 0:  # it was given a clock that this thread cannot read
            return _NEVER
        try:
            now_ns: int = cache.now()
            # an entry that comes from here on calls, since the cache knows of no next look
            cache.wake_ns = _NEVER
            next_ns: int = cache.sweep(now_ns, _AT_ONCE)
        except Exception:
            import logging  # noqa: PLC0415 - a cache that can be swept does without

            logger = logging.getLogger("streaminfer.caching")
            logger.exception("a cache could not be swept; it is tried again when the next entry asks for it")
            return _NEVER
        if next_ns <= now_ns:
            time.sleep(_PAUSE_S)
        elif next_ns < _NEVER:
            next_ns = max(next_ns, now_ns + _GRAIN_NS)
        cache.wake_ns = min(cache.wake_ns, next_ns)
        return next_ns

    def forget(self) -> None:
        """In a forked child, where the thread is not: the next wake starts another."""
        self.__init__()  # type: ignore[misc]


THREAD = ExpiryThread()
at_fork(in_child=THREAD.forget)

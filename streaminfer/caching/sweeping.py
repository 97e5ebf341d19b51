"""Who looks after entries that expire while nobody uses their cache.

A cache sees to what is due whenever a value is stored. One that lies idle needs to be woken: by the event loop of the
layer that uses it (:class:`LoopSweep`, no thread), or else by one daemon thread for all caches (``THREAD``), which
sleeps until the next entry is due, holds no cache alive, and ends when there is nothing to wait for.

**The bound.** Either looks at a cache at most every :data:`GRAIN_S` = 0.1 s, so an expired entry is out of memory
0.1 s after its time (its stale time included), plus what the scheduler takes and what it takes to free the entries that
are due with it: 0.25 s is the stated bound. Entries go 256 at a time, and others run in between.

A cache with a ``clock=`` of its own is not looked after by the thread, which could not know how that clock runs: a fake
one stands still. ``expire()`` sees to it, or its layer on the loop.

The thread keeps its state to itself and is told by a queue that may be entered again from a finaliser, so that storing
a value waits for no lock.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextvars import Context
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio

__all__ = ["GRAIN_S", "THREAD", "LoopSweep", "SweepThread", "Swept"]

GRAIN_S = 0.1
_GRAIN_NS = round(GRAIN_S * 1e9)
_AT_ONCE = 256
_NEVER = 2**63 - 1


class Swept(Protocol):
    """What a sweeper needs of a cache.

    Attributes:
        wake_ns: when the sweeper looks next; the cache calls it for anything that is due before.
    """

    wake_ns: int

    def sweep(self, now_ns: int, limit: int) -> int:
        """Frees what is due; says when to come again."""
        ...

    def now(self) -> int:
        """The cache's present instant."""
        ...


def look_after(cache: Swept) -> int:
    """Frees some of what is due in a cache, and tells it when the next look is.

    Returns:
        That instant on the cache's clock: now if more is due, 2^63 - 1 if nothing ever is.
    """
    now_ns = cache.now()
    # an entry that comes from here on calls, since the cache knows of no next look
    cache.wake_ns = _NEVER
    next_ns = cache.sweep(now_ns, _AT_ONCE)
    if now_ns < next_ns < _NEVER:
        next_ns = max(next_ns, now_ns + _GRAIN_NS)
    cache.wake_ns = min(cache.wake_ns, next_ns)
    return next_ns


class SweepThread:
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
        if cache is None:
            return _NEVER
        try:
            return look_after(cache)
        except Exception:
            import logging  # noqa: PLC0415 - a cache that can be swept does without

            logger = logging.getLogger("streaminfer.caching")
            logger.exception("a cache could not be swept; it is tried again when the next entry asks for it")
            return _NEVER

    def forget(self) -> None:
        """In a forked child, where the thread is not: the next wake starts another."""
        self.__init__()  # type: ignore[misc]


THREAD = SweepThread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=THREAD.forget)


class LoopSweep:
    """Looks after one cache from an event loop: a timer where something is due, no thread.

    Args:
        cache: an `EdgeCache`; it is held for as long as this runs.
        loop: whose timers to use.
    """

    def __init__(self, cache: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._cache = cache
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._at_ns = _NEVER
        self._stopped = False
        self._thread = threading.get_ident()

    def start(self) -> None:
        """Takes over from the thread. Call it in the loop's thread."""
        self._cache.swept_by(self)
        self._look()

    @property
    def is_over(self) -> bool:
        """Whether its event loop was closed without having stopped it: another may take over."""
        return self._loop.is_closed()

    def stop(self) -> None:
        """Gives the cache back to the thread, unless another took over. Call it in the loop's thread."""
        if self._stopped:
            return
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        present = self._cache.sweeper
        if present is None or present is self:
            self._cache.swept_by(None)

    def wake(self, cache: Any, at_ns: int) -> None:  # noqa: ARG002 - the same for one cache as for all
        """Asks it to look at an instant on the cache's clock; from any thread."""
        if self._loop.is_closed():
            self.stop()  # the loop ended without it: the cache is the thread's again
        elif threading.get_ident() == self._thread:
            self._arm(at_ns)
        else:
            self._loop.call_soon_threadsafe(self._arm, at_ns)

    def _arm(self, at_ns: int) -> None:
        if self._stopped or at_ns >= self._at_ns:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at_ns = at_ns
        delay_s = max((at_ns - self._cache.now()) / 1e9, GRAIN_S)
        # in a context of its own: that of who stored something holds what is being computed
        self._timer = self._loop.call_later(delay_s, self._look, context=Context())

    def _look(self) -> None:
        self._timer = None
        self._at_ns = _NEVER
        if self._stopped:
            return
        next_ns = look_after(self._cache)
        if next_ns == _NEVER:
            return
        if next_ns <= self._cache.now():
            self._loop.call_soon(self._look)  # the rest, after others
        else:
            self._arm(next_ns)

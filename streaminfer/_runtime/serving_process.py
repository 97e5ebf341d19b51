"""Garbage collection that stays short while stacks serve.

A full collection visits every object that could be part of a cycle: imported modules, models, settings. They
outlive every request, and a visit to all of them holds up the event loop for 5 to 50 ms. While stacks serve, what
existed when the first of them started is left out (``gc.freeze``). It is still freed when nothing refers to it; only
cycles among it stay until the last stop. So a stack enters before its layers open connections, which do not outlive
every request. A process that froze objects itself manages its collector, and is left alone.

The youngest objects are collected after 700 more allocations than releases, in CPython's default. What some dozens of
requests in flight refer to is more than that: collections would visit it over and over, though nearly all of it is
freed without them. So while stacks serve, that threshold is higher, but not by much: a collection holds up every
thread, and visits objects that have left the processor's caches.

A stack whose event loop was closed without a stop does not count: the next stack that starts or stops finds that out.
"""

import asyncio
import gc
import threading

from streaminfer._internal.forking import at_fork
from streaminfer._runtime.loops import is_virtual

__all__ = ["enter", "leave"]

_FROZEN_BY_APPLICATIONS = 1000
"""Frozen objects from which on an application froze them: CPython 3.12 begins with 375, of more than 4,000."""

_YOUNG_OBJECTS = 2_000
"""Threshold of the youngest generation: 50 requests in flight, each with 40 objects.

A visit takes 0.3 to 0.7 ms while a model runs beside it, and one to 10,000 objects 2 to 8 ms. With 64 connections over
HTTP, one collection remains where there are 595 at 700, and 46 of 814 with 256.
"""

_lock = threading.Lock()
_holds: dict[object, asyncio.AbstractEventLoop] = {}  # by stack: the settings last until its loop is closed
_froze = False
_thresholds = (0, 0, 0)  # those of before


def enter(loop: asyncio.AbstractEventLoop) -> object:
    """Apply the settings, for a stack of an event loop, until :func:`leave`; thread-safe.

    Returns:
        What to leave with; ``None`` in virtual time, where nothing takes long and nothing is done.
    """
    global _froze, _thresholds  # noqa: PLW0603 - one heap per process
    if is_virtual(loop):
        return None
    hold = object()
    with _lock:
        _drop({other for other, its in _holds.items() if its.is_closed()})
        _holds[hold] = loop
        if len(_holds) > 1:
            return hold  # what a second stack adds may be connections, and stays in the collector's care
        _froze = gc.get_freeze_count() < _FROZEN_BY_APPLICATIONS
        if _froze:
            gc.collect()
            gc.freeze()
            _thresholds = gc.get_threshold()
            if 0 < _thresholds[0] < _YOUNG_OBJECTS:  # 0: the application collects by itself
                gc.set_threshold(_YOUNG_OBJECTS, *_thresholds[1:])
    return hold


def leave(hold: object) -> None:
    """Undo one :func:`enter`; the last one restores what the process had; thread-safe, may be repeated."""
    with _lock:
        _drop({other for other, loop in _holds.items() if other is hold or loop.is_closed()})


def _drop(holds: set[object]) -> None:
    for hold in holds:
        del _holds[hold]
    if _holds or not holds:
        return
    if _froze:
        gc.unfreeze()
        if gc.get_threshold()[0] == _YOUNG_OBJECTS:  # the application has set none meanwhile
            gc.set_threshold(*_thresholds)


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - it may be held in the parent
    _lock = threading.Lock()
    _drop(set(_holds))  # the parent's stacks do not run here


at_fork(after_in_child=_after_fork)

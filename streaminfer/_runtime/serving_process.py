"""Garbage collection that stays short while stacks serve.

A full collection visits every object that could be part of a cycle: imported modules, models, settings. These outlive
every request, and visiting them all delays the event loop for 5 to 50 ms. While stacks serve, the collector therefore
ignores objects that existed when the first stack started (``gc.freeze``). They are still freed when nothing refers to
them; only cycles among them stay until the last stop. A stack must enter before its layers open connections, which are
shorter-lived. A process that froze objects itself manages its own collector, and is left alone.

In CPython's default, the youngest objects are collected after 700 more allocations than releases. A few dozen requests
in flight refer to more objects than that. Collections would visit these over and over, although nearly all of them are
freed without a collection. While stacks serve, the threshold is therefore higher, but not by much: a collection delays
every thread, and visits objects that have left the processor's caches.

A stack whose event loop was closed without a stop does not count any more when the next stack starts or stops.
"""

import asyncio
import gc

from streaminfer._internal.forking import at_fork, new_reentrant_lock
from streaminfer._runtime.loops import is_virtual

__all__ = ["enter", "leave"]

_FROZEN_BY_APPLICATIONS = 1000
"""Frozen objects from which the application must have frozen some; CPython 3.12 begins with 375 of over 4,000."""

_YOUNG_OBJECTS = 2_000
"""Threshold of the youngest generation: 50 requests in flight, each with 40 objects.

A collection takes 0.3 to 0.7 ms while a model runs beside it; one of 10,000 objects takes 2 to 8 ms. With 64
connections over HTTP, 1 collection remains of the 595 at a threshold of 700; with 256 connections, 46 remain of 814.
"""

_lock = new_reentrant_lock()
_holds: dict[object, asyncio.AbstractEventLoop] = {}  # by stack: its loop; the hold ends when the loop is closed
_is_frozen = False
_thresholds = (0, 0, 0)  # thresholds before `enter`


def enter(loop: asyncio.AbstractEventLoop) -> object:
    """Apply the settings for a stack on an event loop, until :func:`leave`. Thread-safe.

    Returns:
        The argument for :func:`leave`; ``None`` in virtual time, where this does nothing because speed is irrelevant.
    """
    global _is_frozen, _thresholds  # noqa: PLW0603 - one heap per process
    if is_virtual(loop):
        return None
    hold = object()
    with _lock:
        _drop({other for other, its in _holds.items() if its.is_closed()})
        _holds[hold] = loop
        if len(_holds) > 1:
            return hold  # a second stack may have added connections, so nothing more is frozen
        _is_frozen = gc.get_freeze_count() < _FROZEN_BY_APPLICATIONS
        if _is_frozen:
            gc.collect()
            gc.freeze()
            _thresholds = gc.get_threshold()
            if 0 < _thresholds[0] < _YOUNG_OBJECTS:  # 0: the application has switched automatic collection off
                gc.set_threshold(_YOUNG_OBJECTS, *_thresholds[1:])
    return hold


def leave(hold: object) -> None:
    """Undo one :func:`enter`; the last call restores the settings of the process. Thread-safe; may be repeated."""
    with _lock:
        _drop({other for other, loop in _holds.items() if other is hold or loop.is_closed()})


def _drop(holds: set[object]) -> None:
    for hold in holds:
        del _holds[hold]
    if _holds or not holds:
        return
    if _is_frozen:
        gc.unfreeze()
        if gc.get_threshold()[0] == _YOUNG_OBJECTS:  # the application has not set another one
            gc.set_threshold(*_thresholds)


at_fork(after_in_child=lambda: _drop(set(_holds)))  # the parent's stacks do not run here

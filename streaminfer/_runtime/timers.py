"""One-shot timers of an event loop.

The timeout of epoll, and therefore asyncio's own timers, have a resolution of 1 ms, which can be a whole batch of a
fast model. On Linux, a timer file descriptor wakes the loop to the microsecond. Elsewhere, and in virtual time, the
loop's own timer does.
"""

import asyncio
import ctypes
import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from streaminfer._internal.forking import call_in_child
from streaminfer._internal.units import NEVER_NS
from streaminfer._runtime.loops import is_virtual

__all__ = ["ExactTimer", "LoopTimer", "Timer", "exact_timer", "make_timer"]

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1


def make_timer(loop: asyncio.AbstractEventLoop, clock: Callable[[], int], function: Callable[[], None]) -> "Timer":
    """Return the finest timer that the loop can wait for.

    Args:
        loop: the running event loop.
        clock: returns monotonic nanoseconds; the instants are on this clock.
        function: called by the loop at the instant.
    """
    return exact_timer(loop, clock, function) or LoopTimer(loop, function)


def exact_timer(
    loop: asyncio.AbstractEventLoop, clock: Callable[[], int], function: Callable[[], None]
) -> "ExactTimer | None":
    """Return a timer that is exact to the microsecond. The arguments are those of :func:`make_timer`.

    Returns:
        The timer; ``None`` if the system has none, the loop has virtual time, or the instants are on another clock.

    Raises:
        OSError: the process has reached its limit of open files.
    """
    if is_virtual(loop) or clock is not time.monotonic_ns or not sys.platform.startswith("linux"):
        return None
    return ExactTimer(loop, function)


class LoopTimer:
    """Timer of the event loop itself.

    Attributes:
        resolution_ns: instants closer together than this are not worth separate wake-ups.
    """

    resolution_ns = 0

    def __init__(self, loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
        self._loop, self._function, self._thread = loop, function, threading.get_ident()
        self._handle: asyncio.TimerHandle | None = None

    def set(self, at_ns: int, now_ns: int) -> None:
        """Call the function at this instant, instead of the one set before."""
        self.close()
        self._handle = self._loop.call_later(max(0, at_ns - now_ns) / 1e9, self._function)

    def set_from_thread(self, at_ns: int, now_ns: int) -> None:
        """Call the function at this instant; callable in any thread."""
        if threading.get_ident() == self._thread:
            self.set(at_ns, now_ns)
        else:
            self._loop.call_soon_threadsafe(self.set, at_ns, now_ns)

    def close(self) -> None:
        """Release the timer; it calls the function no more."""
        if self._handle is not None:
            self._handle.cancel()


class ExactTimer:
    """Timer on a Linux file descriptor that becomes readable at an instant of the monotonic clock, as a `LoopTimer`.

    Attributes:
        is_set: whether the set instant is still to come.
    """

    resolution_ns = 650_000  # at 20,000 requests/s, 13 requests share a wake-up, which costs as much as two requests

    def __init__(self, loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
        self._loop, self._function = loop, function
        self._settime = _libc().timerfd_settime
        self._spec = _Spec()
        self._reference = ctypes.byref(self._spec)
        self.is_set = self._from_threads = False
        self._at_ns = 0
        self._fd: int = _libc().timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        call_in_child(self._close)  # setting it there would change the timer of the parent
        loop.add_reader(self._fd, self._wake)

    def set(self, at_ns: int, now_ns: int) -> None:  # noqa: ARG002 - the instant is one of the kernel's clock
        self.is_set = True
        self._at_ns = at_ns
        self._spec.at_s, self._spec.at_ns = divmod(at_ns, 1_000_000_000)
        self._settime(self._fd, _ABSOLUTE, self._reference, None)

    def set_from_thread(self, at_ns: int, now_ns: int) -> None:  # noqa: ARG002 - likewise
        self._from_threads = True
        # a new record, because two threads could write to a shared one
        self._settime(self._fd, _ABSOLUTE, ctypes.byref(_Spec(0, 0, *divmod(at_ns, 1_000_000_000))), None)

    def cancel(self) -> None:
        """Do not call the function until an instant is set again."""
        self.is_set = False
        self._at_ns = NEVER_NS
        self._spec.at_s = self._spec.at_ns = 0
        self._settime(self._fd, _ABSOLUTE, self._reference, None)

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    __del__ = _close  # for a loop that was closed before the timer

    def _wake(self) -> None:
        if self._from_threads:  # cleared first, so that an instant set by a thread meanwhile is not lost
            self._clear()
            self._function()
            return
        if time.monotonic_ns() < self._at_ns:
            return  # set again or cancelled after the loop saw the file; clearing could lose the new instant
        self.is_set = False
        self._function()
        if not self.is_set and self._fd >= 0:  # setting it again would have cleared the file already
            self._clear()

    def _clear(self) -> None:
        try:  # noqa: SIM105 - `suppress` takes longer than the call
            os.read(self._fd, 8)
        except BlockingIOError:
            pass  # a thread has set the timer again


Timer = ExactTimer | LoopTimer


class _Spec(ctypes.Structure):
    """C's ``struct itimerspec``."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("interval_s", "interval_ns", "at_s", "at_ns"))


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)

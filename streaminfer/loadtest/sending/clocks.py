"""Which clock the timers of a loop follow."""

import asyncio
import time
from collections.abc import Callable

from streaminfer.testing import VirtualLoop

__all__ = ["clock_of"]


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], int]:
    """Return the clock, monotonic nanoseconds, that the loop's timers follow."""
    return loop.clock if isinstance(loop, VirtualLoop) else time.monotonic_ns

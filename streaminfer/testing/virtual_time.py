"""A clock, an event loop and a runner for tests: time passes only when the test lets it."""

import asyncio
import math
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from streaminfer._internal.validation import check_count, check_duration_ns

__all__ = ["FakeClock", "VirtualLoop", "run"]

T = TypeVar("T")


class FakeClock:
    """Clock that moves only on :meth:`advance`; pass it as ``clock=``.

    Args:
        now_ns: the first instant, monotonic nanoseconds ≥ 0.
    """

    def __init__(self, now_ns: int = 0) -> None:
        self.now_ns = check_count("now_ns", now_ns, at_least=0)

    def __call__(self) -> int:
        """Return the current instant, nanoseconds."""
        return self.now_ns

    def advance(self, seconds: float) -> None:
        """Move the clock forward.

        Args:
            seconds: ≥ 0; more than 31 years count as 31 years.
        """
        self.now_ns += check_duration_ns("seconds", seconds)

    def __repr__(self) -> str:
        return f"FakeClock({self.now_ns})"


class VirtualLoop(asyncio.SelectorEventLoop):
    """Event loop whose time is an integer that jumps to the next timer when no callback is ready.

    If no callback or timer is left, the run ends with ``RuntimeError`` instead of hanging, so that a lost wake-up fails
    a test at once. A thread or process takes real time, so ``run_in_executor`` raises. The loop does not wait for
    sockets or other threads.

    Args:
        now_ns: the first instant, nanoseconds ≥ 0.
    """

    is_virtual = True
    """Tells ``start`` methods to work on this loop instead of in a thread, so that a run repeats exactly."""

    _closed = True  # until the base class starts: if ``now_ns`` is invalid, there is nothing to close

    def __init__(self, now_ns: int = 0) -> None:
        self.now_ns = check_count("now_ns", now_ns, at_least=0)
        super().__init__(_NoWaiting(self))
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self.now_ns / 1e9

    def clock(self) -> int:
        """Return the virtual time in nanoseconds; pass it as ``clock=``."""
        return self.now_ns

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override] # noqa: ARG002
        """Raise: a thread takes real time.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "a VirtualLoop has no executors: a thread or process takes real time, which does not pass here"
        )


class _NoWaiting(selectors.SelectSelector):
    """Moves the loop's time forward instead of waiting."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        timers = self._loop._scheduled  # type: ignore[attr-defined]
        # asyncio waits a day at most and then polls again, so a timer at infinity would poll for ever
        if timeout is None or (timeout > 0 and timers[0].when() == math.inf):
            raise RuntimeError(
                "nothing will ever happen on this virtual loop again: a task waits for a lost wake-up, or for what "
                "takes real time, such as a socket, a process or another thread"
            )
        if timeout > 0 or not self._loop._ready:  # type: ignore[attr-defined]
            # a timer that is due may lie a rounding error ahead: a float of years in seconds cannot hold nanoseconds
            self._loop.now_ns += max(1, math.ceil(timeout * 1e9 - 1e-3))
        return []


def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]], *, now_ns: int = 0) -> T:
    """Run ``main(loop)`` in virtual time, cancel its remaining tasks and close the loop.

    Args:
        main: returns the coroutine; ``loop.clock`` is the clock for the objects under test.
        now_ns: the first instant, nanoseconds ≥ 0.

    Returns:
        The coroutine's result.

    Raises:
        RuntimeError: an event loop already runs in this thread.
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(
            "testing.run makes an event loop of its own, and one runs in this thread already: call it from a "
            "synchronous function, or in a thread (await asyncio.to_thread(run, main))"
        )
    loop = VirtualLoop(now_ns)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main(loop))

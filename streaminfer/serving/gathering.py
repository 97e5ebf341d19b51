"""Requests that come close together through ``grpc.aio`` go on together, so that the batcher sees them at once.

*Why.* A server of ``grpc.aio`` accepts one call at a time: the next one is asked for when the event loop has come to
the last one, and each takes a round trip through the library's own thread and several turns of the loop. Requests that
wait behind it are invisible. A request that goes on at once is a batch of its own, whose work on the loop delays the
next acceptance, so that one comes alone too: the server stays at its worst throughput while a backlog is in front of
it.

*Design.* Where requests come often, one that has come is held for a few turns of the loop, and then as long as another
one is accepted whose message has not come. Each further request begins the count again, up to a limit of time. A turn
of an idle loop takes microseconds, of a busy one as long as the backlog's work, so the hold adapts by itself. Where
requests are rare nothing is held, because no other one would come within a hold.

*Invariants.* A held request goes on at the latest when the timer fires. The count of accepted calls is a hint, as one
that is cancelled before its message came is never taken off it; the timer forgets it.
"""

import asyncio
import time
from collections.abc import Callable

__all__ = ["Gatherer"]

MAX_GAP_NS = 2_000_000
"""Mean time between requests up to which they are held: less often, too few come within a hold."""
MAX_HOLD_S = 0.002
HOLD_TURNS = 10
"""Between the message of a call and the look-up of the next one's handler ``grpc.aio`` 1.85 needs seven turns."""
_GAP_SHIFT = 4  # the mean is over about 16 requests
_MAX_COUNTED_GAP_NS = 4 * MAX_GAP_NS  # after a pause, the mean is right again after some twenty requests


class Gatherer:
    """Holds requests for a moment, while others are likely to come.

    Not thread-safe: it belongs to one event loop at a time.

    Args:
        clock: returns monotonic nanoseconds.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._accepted = 0  # calls whose message has not come
        self._gap_ns = _MAX_COUNTED_GAP_NS
        self._last_ns = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._turns_left = 0  # 0: no turn is counted

    def accept(self) -> None:
        """Note a call that was accepted; its message follows."""
        self._accepted += 1

    def arrive(self) -> "asyncio.Future[None] | None":
        """Note that the message of a call has come.

        Returns:
            What the request awaits before it goes on; ``None``: nothing.
        """
        now_ns = self._clock()
        self._gap_ns += (min(now_ns - self._last_ns, _MAX_COUNTED_GAP_NS) - self._gap_ns) >> _GAP_SHIFT
        self._last_ns = now_ns
        if self._accepted:
            self._accepted -= 1
        if self._gap_ns > MAX_GAP_NS and not self._held:
            return None
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # what a closed loop left behind is never awaited
            self._loop = loop
            self._held, self._turns_left = [], 0
        future = loop.create_future()
        self._held.append(future)
        if len(self._held) == 1:
            self._timer = loop.call_later(MAX_HOLD_S, self._release)
        if not self._turns_left:
            loop.call_soon(self._turn)
        self._turns_left = HOLD_TURNS
        return future

    def _turn(self) -> None:
        if not self._held or self._loop is None:
            self._turns_left = 0
        elif self._accepted:
            self._turns_left = 0  # its message begins the count again
        else:
            self._turns_left -= 1
            if self._turns_left:
                self._loop.call_soon(self._turn)
            else:
                self._release()

    def _release(self) -> None:
        """Let the held requests go on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._accepted = 0
        held, self._held = self._held, []
        for future in held:
            if not future.done():  # its call was cancelled
                future.set_result(None)

"""Holds requests that arrive close together through ``grpc.aio``, so that the batcher sees them at once.

*Why.* A server of ``grpc.aio`` accepts one call at a time. It requests the next call only after the event loop has
handled the previous one. Each call takes a round trip through the library's own thread and several turns of the loop.
Requests that wait behind it are invisible to the batcher. A request that continues at once becomes a batch of one.
The work of this batch on the loop delays the next acceptance, so that the next request comes alone too. The server
stays at its worst throughput while a backlog is in front of it.

*Design.* If requests come often, an arriving request is held for a few turns of the loop, and then as long as the
message of another accepted call has not arrived. Each further request restarts the count, up to a time limit. A turn
takes microseconds on an idle loop, and as long as the backlog's work on a busy one, so the hold adapts to the load. If
requests are rare, none is held, because no other request would arrive within a hold.

*Invariants.* A held request continues at the latest when the timer fires. The count of accepted calls is a hint: if a
call is cancelled before its message arrives, the count stays too high until the timer or the next release resets it.
"""

import asyncio
import time
from collections.abc import Callable

__all__ = ["Gatherer"]

MAX_GAP_NS = 2_000_000
"""Longest mean time between requests at which they are held: with longer gaps, too few arrive within a hold."""
MAX_HOLD_S = 0.002
HOLD_TURNS = 10
"""``grpc.aio`` 1.85 needs seven turns between the message of a call and the look-up of the next one's handler."""
_GAP_SHIFT = 4  # the mean is over about 16 requests
_MAX_COUNTED_GAP_NS = 4 * MAX_GAP_NS  # after a pause, the mean is right again after some twenty requests


class Gatherer:
    """Holds requests for a moment while others are likely to arrive.

    Not thread-safe: it belongs to one event loop at a time.

    Args:
        clock: returns monotonic nanoseconds.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._accepted = 0  # calls whose message has not arrived
        self._gap_ns = _MAX_COUNTED_GAP_NS
        self._last_ns = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._turns_left = 0  # 0: no turns are being counted

    def accept(self) -> None:
        """Note an accepted call; its message follows."""
        self._accepted += 1

    def arrive(self) -> "asyncio.Future[None] | None":
        """Note that the message of a call has arrived.

        Returns:
            A future for the request to await before it continues; ``None`` if it is not held.
        """
        now_ns = self._clock()
        self._gap_ns += (min(now_ns - self._last_ns, _MAX_COUNTED_GAP_NS) - self._gap_ns) >> _GAP_SHIFT
        self._last_ns = now_ns
        if self._accepted:
            self._accepted -= 1
        if self._gap_ns > MAX_GAP_NS and not self._held:
            return None
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # futures of a closed loop are dropped
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
        if not self._held or self._accepted or self._loop is None:
            self._turns_left = 0  # the message of the accepted call restarts the count
        else:
            self._turns_left -= 1
            if self._turns_left:
                self._loop.call_soon(self._turn)
            else:
                self._release()

    def _release(self) -> None:
        """Let the held requests continue."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._accepted = 0
        held, self._held = self._held, []
        for future in held:
            if not future.done():  # else the call was cancelled
                future.set_result(None)

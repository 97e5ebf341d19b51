"""Start-time fair queuing: chooses the next stream among those that wait.

*Design.* Each request of a stream has a start tag and a finish tag. The start tag is the later of the virtual time and
the finish tag of the stream's previous request. The finish tag is the start tag plus ``1 / weight``. The request with
the lowest start tag is served, and this tag becomes the virtual time. Of equal start tags, the stream with the lowest
previous finish tag is served first. So a stream that was idle is served next, whatever backlog the others have, but it
cannot save up turns. A turn in which no frame is sent costs nothing.

A stream with a frame in a batch cannot join the next batch too, unless it may have several frames in flight. Meanwhile
the other streams move the virtual time past the finish tag of a stream with a large weight, which would lose a part of
its share each time. So if a served stream already has its next frame, its finish tag is the next start tag, but at most
eight turns before the virtual time. A stream that cannot use its share saves up no more than these eight turns.

A frame can be too old at its turn, or too old to meet its deadline. For each such frame in succession, the next start
tag of the stream is one turn earlier, but not earlier than the last finish tag. Otherwise, among cameras with the same
rate, which send in the same order each time, the same cameras would always be too late.

*Invariants.* Between two streams that both wait all the time, the requests served divided by the weight differ by at
most ``1 / weight`` of the one plus ``1 / weight`` of the other. More urgent priorities are served first; tags compare
streams of the same priority, and streams with equal tags are served in the order of arrival.

*Complexity.* O(log streams that wait) to push and to pop, O(streams that wait) to remove; one entry per stream, not per
request.

*Reference.* P. Goyal, H. M. Vin and H. Cheng, Start-time Fair Queueing, SIGCOMM 1996. Deficit round robin (Shreedhar
and Varghese, 1995) has the same shares, but a stream that was idle waits for a whole round.

One source, compiled with the C types of ``_fair_order_cy.pxd`` or run uncompiled. Not thread-safe: for one event loop.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any

__all__ = ["FairOrder", "Turn"]

_MAX_CREDIT = 8.0
"""Most turns that a stream keeps behind the virtual time: enough for a weight of 8 beside many streams of 1."""


class Turn:
    """Place of one stream in the order.

    Args:
        owner: the stream.
        weight: its share of the turns, relative to the weights of other streams, > 0.
        priority: a lower number is more urgent.

    Attributes:
        owner: as above.
        denied: frames in succession that were too old.
    """

    def __init__(self, owner: Any, weight: float, priority: int) -> None:
        self.owner = owner
        self._cost = 1.0 / weight
        self._start = 0.0
        self._finish = 0.0
        self.denied = 0
        self._queued_finish = 0.0  # the finish tag when it was queued
        self._is_busy = False  # it was served and has had a next frame ever since
        self._priority = priority
        self._number = 0
        self._is_queued = False

    def __lt__(self, other: Turn) -> bool:
        return _is_before(self, other)


class FairOrder:
    """Streams that wait for their turn.

    Attributes:
        queued: their turns, as a heap.
    """

    def __init__(self) -> None:
        self.queued: list[Turn] = []
        self._virtual_time = 0.0
        self._number = 0

    def push(self, turn: Turn, continues: bool = False) -> None:
        """Queue a stream for one turn, unless it is queued.

        Args:
            turn: turn of the stream.
            continues: the stream had its next frame before it could be queued.
        """
        if turn._is_queued:
            return
        turn._is_queued = True
        self._number += 1
        turn._number = self._number
        turn._start = self._virtual_time - turn._cost * turn.denied
        if not continues:
            turn._is_busy = False
        elif turn._is_busy:
            turn._start -= turn._cost * _MAX_CREDIT
        if turn._finish > turn._start:
            turn._start = turn._finish
        turn._queued_finish = turn._finish
        heappush(self.queued, turn)

    def pop(self) -> Turn | None:
        """Remove and return the turn of the next stream; ``None``: no stream waits."""
        if not self.queued:
            return None
        turn: Turn = heappop(self.queued)
        turn._is_queued = False
        if turn._start > self._virtual_time:
            self._virtual_time = turn._start
        return turn

    def charge(self, turn: Turn) -> None:
        """Charge a stream for its turn; called before the stream is queued for its next turn."""
        turn._finish = turn._start + turn._cost
        turn._is_busy = True

    def remove(self, turn: Turn) -> None:
        """Take a stream out of the order."""
        if turn._is_queued:
            turn._is_queued = False
            self.queued.remove(turn)
            heapify(self.queued)


def _is_before(one: Turn, other: Turn) -> bool:
    if one._priority != other._priority:
        return one._priority < other._priority
    if one._start != other._start:
        return one._start < other._start
    if one._queued_finish != other._queued_finish:
        return one._queued_finish < other._queued_finish
    return one._number < other._number

"""Whose turn it is among streams that wait: start-time fair queuing.

*Design.* Each request of a stream has a start tag, the later of the virtual time and the finish tag of the request
before it; its finish tag is ``1 / weight`` behind that. The least start tag is served, and becomes the virtual time.
Of equal ones the first is that of the stream whose finish tag is the furthest behind. A stream that was idle is
therefore served next, whatever backlogs others have, and cannot save up turns either. A turn in which nothing was sent
costs nothing.

A stream with a frame in a batch cannot be in the next one too, unless it may have several in flight. The others move
the virtual time meanwhile, past the finish tag of a stream of large weight, and each time it would lose what it had not
had of its share. So a stream that was served and has its next frame already keeps its finish tag as the next start tag,
up to eight turns behind the virtual time: one that cannot use its share has no more than these to come.

A frame can be too old when its turn comes, or too old to be answered in time. Then the next start tag of its stream is
earlier by one turn for each such frame in succession, though not before the last finish tag. Among cameras of one rate,
whose frames always come in the same order, the same ones would be too late for ever otherwise.

*Invariants.* Between two streams that both wait all the time, the requests served divided by the weight differ by at
most ``1 / weight`` of the one plus ``1 / weight`` of the other. More urgent priorities are served first; tags compare
streams of one priority, and those of equal tags are served in the order of arrival.

*Complexity.* O(log streams that wait) to push and to pop, O(streams that wait) to remove; one entry per stream, not per
request.

*Reference.* P. Goyal, H. M. Vin and H. Cheng, Start-time Fair Queueing, SIGCOMM 1996. Deficit round robin (Shreedhar
and Varghese, 1995) has the same shares, but a stream that was idle waits for a whole round.

One source, compiled with the C types of ``_fair_order_cy.pxd`` or run uncompiled. Not thread-safe: of one event loop.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any

__all__ = ["FairOrder", "Turn"]

_MOST_KEPT = 8.0
"""Turns behind the virtual time that a stream keeps while it is served: those of a weight of 8 beside many of 1."""


class Turn:
    """Place of one stream in the order.

    Args:
        owner: the stream.
        weight: its share of the turns, against the weight of others, > 0.
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
        self._idle_from = 0.0  # the finish tag when it was queued
        self._is_busy = False  # it was served, and had a frame ever since
        self._priority = priority
        self._number = 0
        self._is_queued = False

    def __lt__(self, other: Turn) -> bool:
        return _is_before(self, other)


class FairOrder:
    """Streams that wait for their turn.

    Attributes:
        count: how many wait.
        queued: their turns, as a heap.
    """

    def __init__(self) -> None:
        self.queued: list[Turn] = []
        self._virtual = 0.0
        self._number = 0
        self.count = 0

    def push(self, turn: Turn, continues: bool = False) -> None:
        """Queue a stream for one turn, unless it is queued.

        Args:
            turn: of the stream.
            continues: it had its frame before it could be queued.
        """
        if turn._is_queued:
            return
        turn._is_queued = True
        self._number += 1
        turn._number = self._number
        turn._start = self._virtual - turn._cost * turn.denied
        if not continues:
            turn._is_busy = False
        elif turn._is_busy:
            turn._start -= turn._cost * _MOST_KEPT
        if turn._finish > turn._start:
            turn._start = turn._finish
        turn._idle_from = turn._finish
        heappush(self.queued, turn)
        self.count += 1

    def pop(self) -> Turn | None:
        """Return the stream whose turn it is, which is queued no longer; ``None``: none waits."""
        if self.count == 0:
            return None
        turn: Turn = heappop(self.queued)
        turn._is_queued = False
        self.count -= 1
        if turn._start > self._virtual:
            self._virtual = turn._start
        return turn

    def charge(self, turn: Turn) -> None:
        """Let a stream pay for its turn, before it is queued for the next one."""
        turn._finish = turn._start + turn._cost
        turn._is_busy = True

    def remove(self, turn: Turn) -> None:
        """Take a stream out of the order."""
        if turn._is_queued:
            turn._is_queued = False
            self.queued.remove(turn)
            heapify(self.queued)
            self.count -= 1


def _is_before(one: Turn, other: Turn) -> bool:
    if one._priority != other._priority:
        return one._priority < other._priority
    if one._start != other._start:
        return one._start < other._start
    if one._idle_from != other._idle_from:
        return one._idle_from < other._idle_from
    return one._number < other._number

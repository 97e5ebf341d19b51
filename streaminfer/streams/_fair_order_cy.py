"""Whose turn it is among streams that wait: start-time fair queuing.

*Design.* Each request of a stream has a start tag, the later of the virtual time and the finish tag of the request
before it; its finish tag is ``1 / weight`` behind that. The least start tag is served, and becomes the virtual time. A
stream that was idle is therefore served next, whatever backlog another one has, and cannot save up turns either.

*Invariants.* Between two streams that both wait all the time, the requests served divided by the weight differ by at
most ``1 / weight`` of the one plus ``1 / weight`` of the other. More urgent priorities are served first; tags compare
streams of one priority, and those that are equal are served in the order of arrival.

*Complexity.* O(log streams that wait) to push and to pop; one entry per stream, not per request, and at most
as many again of streams that were removed.

*Reference.* P. Goyal, H. M. Vin and H. Cheng, Start-time Fair Queueing, SIGCOMM 1996. Deficit round robin (Shreedhar
and Varghese, 1995) has the same shares, but a stream that was idle waits for a whole round.

One source, compiled with the C types of ``_fair_order_cy.pxd`` or run uncompiled. Not thread-safe: of one event loop.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any

__all__ = ["FairOrder", "Turn"]

_FEW = 8  # entries that were removed, beyond as many as wait, are left for a pop to find


class Turn:
    """Place of one stream in the order.

    Args:
        owner: the stream.
        weight: its share of the turns, against the weight of others, > 0.
        priority: a lower number is more urgent.

    Attributes:
        owner: as above.
        is_queued: it waits for its turn.
    """

    __slots__ = ("_cost", "_finish", "_number", "_priority", "is_queued", "owner")

    def __init__(self, owner: Any, weight: float, priority: int) -> None:
        self.owner = owner
        self.is_queued = False
        self._cost = 1.0 / weight
        self._finish = 0.0
        self._priority = priority
        self._number = 0


class FairOrder:
    """Streams that wait for their turn.

    Attributes:
        count: how many wait.
    """

    __slots__ = ("_heap", "_number", "_virtual", "count")

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, Turn]] = []
        self._virtual = 0.0
        self._number = 0
        self.count = 0

    def push(self, turn: Turn) -> None:
        """Queue a stream for one turn, unless it is queued."""
        if turn.is_queued:
            return
        turn.is_queued = True
        self._number += 1
        turn._number = self._number
        start = self._virtual
        if turn._finish > start:
            start = turn._finish
        heappush(self._heap, (turn._priority, start, self._number, turn))
        self.count += 1

    def pop(self) -> Turn | None:
        """Return the stream whose turn it is, which is queued no longer; ``None``: none waits."""
        while self._heap:
            entry = heappop(self._heap)
            turn: Turn = entry[3]
            if not turn.is_queued or entry[2] != turn._number:
                continue  # removed since
            turn.is_queued = False
            self.count -= 1
            start: float = entry[1]
            if start > self._virtual:
                self._virtual = start
            turn._finish = start + turn._cost
            return turn
        return None

    def remove(self, turn: Turn) -> None:
        """Take a stream out of the order."""
        if turn.is_queued:
            turn.is_queued = False
            self.count -= 1
            if len(self._heap) > 2 * self.count + _FEW:
                self._leave_out_removed()

    def _leave_out_removed(self) -> None:
        kept: list[tuple[int, float, int, Turn]] = []
        for entry in self._heap:
            turn: Turn = entry[3]
            if turn.is_queued and entry[2] == turn._number:
                kept.append(entry)
        heapify(kept)
        self._heap = kept

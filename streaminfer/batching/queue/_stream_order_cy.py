"""Order within streams: if a model has state per stream, its requests run one at a time and in order of arrival.

A request is *held back* while an earlier one of its stream is live: it is in the line of its stream, and in no list of
the queue. It is queued when the earlier one ends, so no policy, bucket or retry can let one overtake the other. A turn
moves the pointers of the line, and one that leaves before its turn is searched for: O(requests of its stream).

Invariant: the first request of a line is not held back, all others are. One source, compiled with the C types of
``_stream_order_cy.pxd`` or run uncompiled.
"""

from __future__ import annotations

from collections.abc import Hashable

from streaminfer.batching.queue._ticket_cy import Ticket

__all__ = ["StreamOrder"]


class StreamOrder:
    """Lines of the live requests of each stream.

    Attributes:
        held_back: how many requests are held back by an earlier one of their stream.
    """

    def __init__(self) -> None:
        self.held_back = 0
        self._lines: dict[Hashable, list[Ticket]] = {}

    def join(self, ticket: Ticket, stream_id: Hashable) -> bool:
        """Add a new request to its stream; return false if it may run now."""
        ticket._stream_id = stream_id
        line = self._lines.get(stream_id)
        if line is None:
            self._lines[stream_id] = [ticket]
            return False
        line.append(ticket)
        ticket._held = True
        self.held_back += 1
        return True

    def leave(self, ticket: Ticket) -> None:
        """Remove a request that is held back from the line of its stream."""
        self._lines[ticket._stream_id].remove(ticket)
        ticket._held = False
        ticket._stream_id = None
        self.held_back -= 1

    def pass_turn(self, ticket: Ticket) -> Ticket | None:
        """Return the next request of a stream whose request has ended; it is then not held back any more."""
        line = self._lines[ticket._stream_id]
        del line[0]
        if not line:
            del self._lines[ticket._stream_id]
        ticket._stream_id = None
        if not line:
            return None
        after = line[0]
        after._held = False
        self.held_back -= 1
        return after

    def held(self) -> list[Ticket]:
        """Return the requests that are held back."""
        tickets: list[Ticket] = []
        for line in self._lines.values():
            tickets += line[1:]
        return tickets

    def held_in(self, stream_id: Hashable) -> int:
        """Return how many requests of a stream are held back."""
        return len(self._lines[stream_id]) - 1

    def last_held(self, priority: int) -> list[Ticket]:
        """Return the last held request of each stream, of the least urgent priority that is at least ``priority``."""
        tickets: list[Ticket] = []
        least = priority
        if self.held_back:
            for line in self._lines.values():
                ticket = line[-1]
                if ticket._held and ticket.priority >= least:
                    if ticket.priority > least:
                        least = ticket.priority
                        tickets = []
                    tickets.append(ticket)
        return tickets

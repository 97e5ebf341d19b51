"""Order within streams: if a model has state per stream, its requests run one at a time and in order of arrival.

A request is *held back* while an earlier one of its stream is live: it is linked to that one and is in no list of the
queue. It is queued when the earlier one ends, so no policy, bucket or retry can let one overtake the other. O(1) per
request. One source, compiled with the C types of ``_stream_order_cy.pxd`` or run uncompiled.
"""

from __future__ import annotations

from collections.abc import Hashable

from streaminfer.batching.queue._ticket_cy import Ticket

__all__ = ["StreamOrder"]


class StreamOrder:
    """Chains of the requests of each stream.

    Attributes:
        held_back: how many requests are held back by an earlier one of their stream.
    """

    def __init__(self) -> None:
        self.held_back = 0
        self._tails: dict[Hashable, Ticket] = {}

    def join(self, ticket: Ticket, stream_id: Hashable) -> bool:
        """Add a new request to its stream; return false if it may run now."""
        before = self._tails.get(stream_id)
        self._tails[stream_id] = ticket
        ticket._stream_id = stream_id
        if before is None:
            return False
        ticket._held = True
        ticket._previous = before
        before._follower = ticket
        self.held_back += 1
        return True

    def leave(self, ticket: Ticket) -> None:
        """Remove a request that is held back from the chain of its stream."""
        before = ticket._previous
        after = ticket._follower
        if before is not None:
            before._follower = after
        if after is not None:
            after._previous = before
        elif before is not None:
            self._tails[ticket._stream_id] = before
        ticket._previous = None
        ticket._follower = None
        ticket._held = False
        ticket._stream_id = None
        self.held_back -= 1

    def pass_turn(self, ticket: Ticket) -> Ticket | None:
        """Return the next request of a stream whose request has ended; it is then not held back any more."""
        after = ticket._follower
        if after is None:
            del self._tails[ticket._stream_id]
        else:
            ticket._follower = None
            after._previous = None
            after._held = False
            self.held_back -= 1
        ticket._stream_id = None
        return after

    def held(self) -> list[Ticket]:
        """Return the requests that are held back, the last one of each stream first."""
        tickets: list[Ticket] = []
        for tail in self._tails.values():
            ticket: Ticket | None = tail
            while ticket is not None and ticket._held:
                tickets.append(ticket)
                ticket = ticket._previous
        return tickets

    def last_held(self, priority: int) -> list[Ticket]:
        """Return the last held request of each stream, of the least urgent priority that is at least ``priority``."""
        tickets: list[Ticket] = []
        least = priority
        if self.held_back:
            for ticket in self._tails.values():
                if ticket._held and ticket.priority >= least:
                    if ticket.priority > least:
                        least = ticket.priority
                        tickets = []
                    tickets.append(ticket)
        return tickets

"""Whose turn is it: requests of a stream whose model keeps state, one at a time and in order.

A request is *held back* while an earlier one of its stream is live: it hangs on that one, is in no list of the queue,
and is queued when that one ends, so that no policy, bucket or retry can let one overtake the other. O(1) for each
request. One source, compiled with the C types of ``_stream_order_cy.pxd`` or run as it is.
"""

from __future__ import annotations

from collections.abc import Hashable

from streaminfer.batching.queue._ticket_cy import Ticket

__all__ = ["StreamOrder"]


class StreamOrder:
    """The requests of each stream, in a chain.

    Attributes:
        held_back: how many wait for an earlier request of their stream.
    """

    def __init__(self) -> None:
        self.held_back = 0
        self._tails: dict[Hashable, Ticket] = {}

    def join(self, ticket: Ticket, stream_id: Hashable) -> bool:
        """Put a new request behind those of its stream; false where its turn is now."""
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
        """Take one that was held back out of the order of its stream."""
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
        """Return the next request of a stream whose request has ended, which is held back no longer."""
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
        """Return those that are held back; of each stream the last one first."""
        found: list[Ticket] = []
        for tail in self._tails.values():
            ticket: Ticket | None = tail
            while ticket is not None and ticket._held:
                found.append(ticket)
                ticket = ticket._previous
        return found

    def last_held(self, priority: int) -> list[Ticket]:
        """Return the last request of each stream that is held back, of the least urgent priority, or of this one."""
        found: list[Ticket] = []
        least = priority
        if self.held_back:
            for ticket in self._tails.values():
                if ticket._held and ticket.priority >= least:
                    if ticket.priority > least:
                        least = ticket.priority
                        found = []
                    found.append(ticket)
        return found

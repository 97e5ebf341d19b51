"""Order of expiry: the live tickets that have a deadline, in a list by deadline.

With equal time limits, deadlines arrive in ascending order, and a push appends to the list. A ticket with an earlier
deadline than the last one is inserted: O(log n) comparisons, and a move of pointers, a microsecond per ten thousand. A
ticket that ends stays in the list as a dead entry, without its request, inputs and future, until dead entries outnumber
live tickets; then they are removed: O(1) amortized.

Invariant: every live ticket that was pushed is in the list, at or after ``_first``, and the deadlines from there on
ascend. One source, compiled with the C types of ``_deadlines_cy.pxd`` or run uncompiled.
"""

from __future__ import annotations

from streaminfer.batching.queue._ticket_cy import NEVER, Ticket

__all__ = ["DeadlineOrder"]

# C variables in the compiled module, not visible from Python
_NEVER = NEVER
_MAX_DEAD_ENTRIES = 64


class DeadlineOrder:
    """The live tickets with a deadline, earliest first; not thread-safe."""

    def __init__(self) -> None:
        self._tickets: list[Ticket] = []
        self._first = 0  # position of the first entry that may be live
        self._dead_entries = 0

    def earliest(self) -> Ticket | None:
        """Return the live ticket that expires next; ``None`` if there is none."""
        while self._first < len(self._tickets):
            ticket = self._tickets[self._first]
            if ticket._live:
                return ticket
            self._first += 1
        return None

    def next_ns(self) -> int:
        """Return the earliest deadline of a live ticket; ``NEVER`` if there is none."""
        ticket = self.earliest()
        return _NEVER if ticket is None else ticket.deadline_ns

    def ended(self) -> None:
        """Count one ticket that was pushed and has ended."""
        self._dead_entries += 1
        if self._dead_entries <= _MAX_DEAD_ENTRIES or self._dead_entries * 2 <= len(self._tickets):
            return
        live: list[Ticket] = []
        for ticket in self._tickets:
            if ticket._live:
                live.append(ticket)  # noqa: PERF401 - a comprehension has a scope, and types, of its own
        self._tickets = live
        self._first = self._dead_entries = 0

    def push(self, ticket: Ticket) -> None:
        """Add a live ticket that has a deadline."""
        tickets = self._tickets
        low = high = len(tickets)
        if high > self._first:
            other = tickets[high - 1]
            if other.deadline_ns > ticket.deadline_ns:
                low = self._first
        while low < high:
            middle = (low + high) >> 1
            other = tickets[middle]
            if other.deadline_ns <= ticket.deadline_ns:
                low = middle + 1
            else:
                high = middle
        tickets.insert(low, ticket)

"""Order of expiry: a binary heap by deadline over the live tickets that have one.

A ticket that ends stays in the heap as a dead entry, without its request, inputs and future, until it reaches the top
or until dead entries outnumber live tickets; then the heap is rebuilt: O(1) amortized. With equal time limits,
deadlines arrive in ascending order and a push costs one comparison.

Invariant: every live ticket that was pushed is in the heap, and no parent has a later deadline than its child
(J. W. J. Williams, Algorithm 232: Heapsort, 1964). One source, compiled with the C types of ``_deadlines_cy.pxd`` or
run uncompiled.
"""

from __future__ import annotations

from streaminfer.batching.queue._ticket_cy import NEVER, Ticket

__all__ = ["DeadlineHeap"]

# C variables in the compiled module, not visible from Python
_NEVER = NEVER
_MAX_DEAD_ENTRIES = 64


class DeadlineHeap:
    """Heap of the live tickets with a deadline, earliest first; not thread-safe."""

    def __init__(self) -> None:
        self._heap: list[Ticket] = []
        self._dead_entries = 0

    def earliest(self) -> Ticket | None:
        """Return the live ticket that expires next; ``None`` if there is none."""
        while self._heap:
            ticket = self._heap[0]
            if ticket._live:
                return ticket
            self._pop()
            self._dead_entries -= 1
        return None

    def next_ns(self) -> int:
        """Return the earliest deadline of a live ticket; ``NEVER`` if there is none."""
        ticket = self.earliest()
        return _NEVER if ticket is None else ticket.deadline_ns

    def ended(self) -> None:
        """Count one ticket that was pushed and has ended."""
        self._dead_entries += 1
        if self._dead_entries > _MAX_DEAD_ENTRIES and self._dead_entries * 2 > len(self._heap):
            self._rebuild()

    def _rebuild(self) -> None:
        live: list[Ticket] = []
        for ticket in self._heap:
            if ticket._live:
                live.append(ticket)  # noqa: PERF401 - a comprehension has a scope, and types, of its own
        self._heap = live
        self._dead_entries = 0
        for position in range(len(self._heap) // 2 - 1, -1, -1):
            self._sift_down(position)

    def push(self, ticket: Ticket) -> None:
        """Add a live ticket that has a deadline."""
        heap = self._heap
        heap.append(ticket)
        position = len(heap) - 1
        while position > 0:
            parent_position = (position - 1) >> 1
            parent = heap[parent_position]
            if parent.deadline_ns <= ticket.deadline_ns:
                break
            heap[position] = parent
            position = parent_position
        heap[position] = ticket

    def _pop(self) -> None:
        heap = self._heap
        last = heap.pop()
        if heap:
            heap[0] = last
            self._sift_down(0)

    def _sift_down(self, start: int) -> None:
        heap = self._heap
        size = len(heap)
        position = start
        ticket = heap[position]
        while True:
            child_position = 2 * position + 1
            if child_position >= size:
                break
            child = heap[child_position]
            if child_position + 1 < size:
                sibling = heap[child_position + 1]
                if sibling.deadline_ns < child.deadline_ns:
                    child = sibling
                    child_position += 1
            if ticket.deadline_ns <= child.deadline_ns:
                break
            heap[position] = child
            position = child_position
        heap[position] = ticket

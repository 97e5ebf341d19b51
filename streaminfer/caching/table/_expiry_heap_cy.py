# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Binary heap of slots by expiry instant, exact to the nanosecond: finds the entry that expires next.

*Design.* An expired entry must make room before a fresh one does, and must not be counted, so a coarse order is not
enough. The heap orders a slot by a *filed* instant, which is never later than the slot's own instant. To set a later
instant, as replacing a value does, or to remove the instant is therefore one write. When the slot reaches the top, the
heap files it again under its own instant, or removes it. It does so even if that instant is due, because slots must
leave in order: the responses that became stale last are stored longest. Only an earlier instant moves the slot at once.

*Complexity.* A slot reaches the top once per time to live, which takes O(log n). Setting an instant that is the latest
so far, as most are, is O(1). The heap takes 16 bytes per slot, which most operations do not read; instants and marks
lie in ``_slots_cy``.

*Invariants*, which the property tests check. No slot is filed later than its instant, or twice. ``due_ns`` is never
later than the earliest instant.

One source, compiled with the C types of ``_expiry_heap_cy.pxd`` or run as plain Python. Only ``grow`` and the
constructor call Python, drop a reference or allocate, so under the interpreter lock the compiled methods are atomic.
"""

from array import array
from collections.abc import MutableSequence

from streaminfer.caching.table._slots_cy import NEVER, Slots

__all__ = ["ExpiryHeap"]

# C variables in the compiled module, not visible from Python
_IN_HEAP = 16
_STEPS = 64


class ExpiryHeap:
    """Slots in the order of their instants.

    Args:
        slots: the table's slots, with their instants and the mark that they are filed.

    Attributes:
        due_ns: no slot is due before this instant; ``NEVER``: no slot will be due.
        popped_ns: the instant of the slot that was popped last.
    """

    _instants: MutableSequence[int]
    _heap: MutableSequence[int]
    _places: MutableSequence[int]

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._instants = array("q", [0]) * slots.capacity  # by position in the heap: the filed instant
        self._heap = array("i", [0]) * slots.capacity  # by position: the slot
        self._places = array("i", [0]) * slots.capacity  # by slot: its position
        self._count = 0
        self._latest_ns = 0
        self.due_ns = NEVER
        self.popped_ns = 0

    def grow(self, capacity: int) -> None:
        """Make room for ``capacity`` slots; a smaller capacity than the current one changes nothing."""
        # typed in the compiled module: the views of the new arrays exist before this reads the old ones
        filed: MutableSequence[int] = array("q", [0]) * capacity
        heap: MutableSequence[int] = array("i", [0]) * capacity
        places: MutableSequence[int] = array("i", [0]) * capacity
        length = len(self._instants)
        if capacity <= length:
            return
        filed[:length] = self._instants
        heap[:length] = self._heap
        places[:length] = self._places
        self._instants = filed
        self._heap = heap
        self._places = places

    def at(self, slot: int) -> int:
        """Return the instant of a slot; ``NEVER`` if it has none."""
        return self._slots._words[4 * slot + 1]

    def set(self, slot: int, at_ns: int) -> None:
        """Set or replace the instant of a slot; ``NEVER`` removes it."""
        self._slots._words[4 * slot + 1] = at_ns
        if at_ns == NEVER:
            return
        place = self._count
        if self._slots._words[4 * slot] & _IN_HEAP:
            if at_ns >= self._latest_ns or at_ns >= self._instants[self._places[slot]]:
                return
            place = self._places[slot]
        else:
            self._slots._words[4 * slot] |= _IN_HEAP
            self._count += 1
        if at_ns > self._latest_ns:
            self._latest_ns = at_ns
        while place > 0 and self._instants[(place - 1) >> 1] > at_ns:
            self._put(place, self._heap[(place - 1) >> 1], self._instants[(place - 1) >> 1])
            place = (place - 1) >> 1
        self._put(place, slot, at_ns)
        if at_ns < self.due_ns:
            self.due_ns = at_ns

    def pop_due(self, now_ns: int) -> int:
        """Remove the instant of the slot that is due first, if it is due at ``now_ns``.

        Returns:
            The slot; -1 if none is due (then none is before ``due_ns``); -2 if the search stopped early: call again.
        """
        for _ in range(_STEPS):
            self.due_ns = self._instants[0] if self._count else NEVER
            if now_ns < self.due_ns or self._count == 0:
                return -1
            slot = self._heap[0]
            at_ns = self._slots._words[4 * slot + 1]
            if self.due_ns < at_ns and at_ns != NEVER:  # filed too early; another slot may be due before it
                if at_ns > self._latest_ns:
                    self._latest_ns = at_ns
                self._sink(slot, at_ns)
                continue
            self._slots._words[4 * slot] &= ~_IN_HEAP
            self._count -= 1
            if self._count:
                self._sink(self._heap[self._count], self._instants[self._count])
            if at_ns != NEVER:
                self._slots._words[4 * slot + 1] = NEVER
                self.popped_ns = at_ns
                return slot
        return -2

    def _sink(self, slot: int, at_ns: int) -> None:
        """Replace the slot at the top by this one, and sink it to its position."""
        place = 0
        below = 1
        while below < self._count:
            if below + 1 < self._count and self._instants[below + 1] < self._instants[below]:
                below += 1
            if self._instants[below] >= at_ns:
                break
            self._put(place, self._heap[below], self._instants[below])
            place = below
            below = 2 * place + 1
        self._put(place, slot, at_ns)

    def _put(self, place: int, slot: int, at_ns: int) -> None:
        self._heap[place] = slot
        self._instants[place] = at_ns
        self._places[slot] = place

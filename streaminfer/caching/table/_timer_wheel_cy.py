# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Hierarchical timing wheel that is exact to the nanosecond: which entry expires next.

*Design.* Eleven levels of 64 buckets. An instant lies at the level of the highest group of six bits in which it differs
from the wheel's own time, in the bucket that this group names. Level 0 distinguishes nanoseconds, level 5 seconds,
level 7 hours, and a lower level is always due first. When the wheel's time reaches a bucket of a higher level, its
entries move down, or are due already, which is the usual case.

A tick of milliseconds would do for freeing memory, but an expired entry must give its room to another before a fresh
one does, and is not counted. The fine levels cost nothing until they are needed.

A slot is filed under an instant no later than its own. To set a later instant, as replacing a value does, and to remove
it are therefore one write: when the wheel reaches the slot, it files it under its instant of that moment, or forgets
it. Only an earlier instant is filed at once.

*Complexity.* O(1) amortized: a slot is filed at most ten times as it comes due at coarse levels, and once for each time
to live. 16 bytes per slot, which most operations do not read; instants and marks lie in ``_slots_cy``.

*Invariants*, which the property tests check. No slot is filed later than its instant. None is filed earlier than the
wheel's time, unless its instant was when it was set; then it lies in the bucket of the wheel's time. ``due_ns`` is
never later than the earliest instant.

*References.* Varghese and Lauck, 1987; the radix heap's invariant: Ahuja et al., 1990.

One source, compiled with the C types of ``_timer_wheel_cy.pxd`` or run as plain Python. Only ``grow`` and the
constructor call Python, drop a reference or allocate, so under the interpreter lock the compiled methods are atomic.
"""

from __future__ import annotations

from array import array
from collections.abc import MutableSequence

from streaminfer.caching.table._slots_cy import NEVER, Slots

__all__ = ["NEVER", "ExpiryWheel"]

# C variables in the compiled module, not visible from Python
_NEVER = NEVER
_FILED = 16
_LEVELS = 11
_BUCKETS = 64
_BITS = 6
_ONE = 1
_STEPS = 64


class ExpiryWheel:
    """Slots in the order of the instants that were set for them.

    Args:
        slots: with the instants, and whether they are filed.

    Attributes:
        due_ns: nothing is due before this instant; ``NEVER``: nothing ever is.
        popped_ns: the instant that was set for the slot that was popped last.
    """

    _filed: MutableSequence[int]
    _links: MutableSequence[int]

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._filed = array("q", [0]) * slots.capacity
        self._links = array("i", [0]) * (2 * slots.capacity)
        self._heads = array("i", [-1]) * (_LEVELS * _BUCKETS)
        self._bits = array("Q", [0]) * _LEVELS
        self._now_ns = 0
        self._latest_ns = 0
        self._opened = -1
        self.due_ns = _NEVER
        self.popped_ns = 0

    def grow(self, capacity: int) -> None:
        """Make room for more slots; fewer than there are change nothing."""
        filed = array("q", [0]) * capacity
        links = array("i", [0]) * (2 * capacity)
        self._move(filed, links)

    def _move(self, filed: MutableSequence[int], links: MutableSequence[int]) -> None:
        # typed arguments: the views exist before the first look at the old arrays
        held = len(self._filed)
        if len(filed) <= held:
            return
        filed[:held] = self._filed
        links[: 2 * held] = self._links
        self._filed = filed
        self._links = links

    def at(self, slot: int) -> int:
        """Return the instant of a slot; ``NEVER``: it has none."""
        return self._slots._words[4 * slot + 1]

    def set(self, slot: int, at_ns: int) -> None:
        """Set the instant of a slot, in place of the one before; ``NEVER``: it has none."""
        self._slots._words[4 * slot + 1] = at_ns
        if at_ns == _NEVER:
            return
        if self._slots._words[4 * slot] & _FILED:
            if at_ns >= self._latest_ns or at_ns >= self._filed[slot]:
                return
            self._unlink(slot)
        self._link(slot, at_ns)
        if at_ns < self.due_ns:
            self.due_ns = at_ns

    def pop_due(self, now_ns: int) -> int:
        """Remove the instant of one slot whose instant is ``now_ns`` or earlier; in no particular order.

        Returns:
            The slot; -1: there is none, and ``due_ns`` says before when it makes no sense to ask again; -2: none was
            found so far, ask again.
        """
        for _ in range(_STEPS):
            bucket = self._opened
            if bucket < 0 or self._heads[bucket] < 0:
                bucket = self._open_next(now_ns)
                if bucket < 0:
                    return -1
            slot = self._heads[bucket]
            at_ns = self._slots._words[4 * slot + 1]
            self._unlink(slot)
            if at_ns <= now_ns:
                self._slots._words[4 * slot + 1] = _NEVER
                self.popped_ns = at_ns
                return slot
            if at_ns != _NEVER:
                self._link(slot, at_ns)  # elsewhere, since the wheel's time is in this bucket now
        return -2

    def _open_next(self, now_ns: int) -> int:
        """Return the next bucket that begins by ``now_ns``, and move the wheel's time there; -1: none does."""
        self._opened = -1
        bucket = self._first()
        if bucket >= 0:
            shift = _BITS * (bucket >> _BITS)
            begins_ns = ((self._now_ns >> shift >> _BITS << _BITS) + (bucket & (_BUCKETS - 1))) << shift
            if begins_ns <= now_ns:
                if begins_ns > self._now_ns:
                    self._now_ns = begins_ns
                self._opened = bucket
                return bucket
            self.due_ns = begins_ns
        else:
            self.due_ns = _NEVER
        if now_ns > self._now_ns:
            self._now_ns = now_ns  # no bucket begins before it, so all stay where they belong
        return -1

    def _first(self) -> int:
        """Return the bucket with the earliest instants; -1: all are empty."""
        for level in range(_LEVELS):
            bits = self._bits[level]
            if bits:
                bucket = 0
                while not bits & 0xFF:
                    bits >>= 8
                    bucket += 8
                while not bits & 1:
                    bits >>= 1
                    bucket += 1
                return (level << _BITS) + bucket
        return -1

    def _link(self, slot: int, at_ns: int) -> None:
        self._filed[slot] = at_ns
        if at_ns > self._latest_ns:
            self._latest_ns = at_ns
        if at_ns < self._now_ns:
            at_ns = self._now_ns
        differing = at_ns ^ self._now_ns
        level = 0
        while differing >= _BUCKETS:
            differing >>= _BITS
            level += 1
        place = (at_ns >> (_BITS * level)) & (_BUCKETS - 1)
        bucket = (level << _BITS) + place
        head = self._heads[bucket]
        self._links[2 * slot] = -2 - bucket
        self._links[2 * slot + 1] = head
        if head >= 0:
            self._links[2 * head] = slot
        else:
            self._bits[level] |= _ONE << place
        self._heads[bucket] = slot
        self._slots._words[4 * slot] |= _FILED

    def _unlink(self, slot: int) -> None:
        self._slots._words[4 * slot] &= ~_FILED
        before = self._links[2 * slot]
        after = self._links[2 * slot + 1]
        if after >= 0:
            self._links[2 * after] = before
        if before >= 0:
            self._links[2 * before + 1] = after
            return
        bucket = -2 - before  # the first of a bucket names it
        self._heads[bucket] = after
        if after < 0:
            self._bits[bucket >> _BITS] ^= _ONE << (bucket & (_BUCKETS - 1))

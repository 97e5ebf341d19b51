# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True, infer_types=True
"""Open-addressed index from keys to slots, and the list of the objects of each slot.

*Design.* An array of 64-bit words with linear probing, at most five eighths full. A word holds 31 bits of the key's
hash and 32 bits of its slot. The uppermost of these 31 bits give the position of the word, so that

* a miss reads one or two cache lines of the index: the other bits are enough to tell that a key differs;
* a word can be moved without reading its slot: removal moves the words behind the hole back (there are no tombstones),
  and growing reads the old index and writes the new one from front to end.

Hashes are mixed (Fibonacci hashing), because the hash of an integer is the integer itself.

Objects lie in one list: key, value, labels, key, value, labels, ... It grows in place, so no reference count changes.
The garbage collector does not track the list and has nothing to walk. The price is that a cycle
from a cached value back to its own cache is not collected.

*Re-entrancy.* Only ``find``, ``grow`` and ``begin`` call Python or allocate. If the index changed while an
``__eq__`` ran, ``find`` starts again; if it changed during an allocation, ``grow`` changes nothing.

*Complexity.* O(1) amortized. One source, compiled with the C types of ``_index_cy.pxd`` or run as plain Python.
"""

from __future__ import annotations

from array import array
from collections.abc import MutableSequence
from typing import Any

from streaminfer.caching.table._slots_cy import FIRST, Slots

__all__ = ["KeyIndex"]

fetch = hash  # starts to load the cache line at an address; does so only in the compiled module
fetch_item = fetch_object = max  # the same for an item of a list, and for the object that it refers to
untrack = id  # hides an object from the garbage collector; does so only in the compiled module

# C variables in the compiled module, not visible from Python
_MASK64 = 2**64 - 1
_MULTIPLIER = 0x9E3779B97F4A7C15
_LOW32 = 2**32 - 1
_HIGH31 = 0x7FFFFFFF00000000
_HIGH48 = 0x7FFFFFFFFFFF8000
_IN_HEAP = 16
_MAX_BITS = 31  # the hash bits in a word


class KeyIndex:
    """Keys, values and labels by slot; without slots until ``begin``.

    Attributes:
        slots: the remaining state of each slot.
        objects: key, value and labels of each slot in turn.
        top: the first slot that was never taken.
        version: changes with each key that is added or removed.
    """

    _words: MutableSequence[int]
    objects: list[Any]
    slots: Slots

    def __init__(self) -> None:
        self.version = 0
        self.objects = []

    def begin(self, slots: Slots) -> list[Any]:
        """Start empty over empty slots, and return the old objects. Allocates first, then changes all in one step."""
        bits = _index_bits(slots.capacity)
        numbers = _numbers(1 << bits)
        address = numbers.buffer_info()[0]
        words: MutableSequence[int] = numbers
        objects: list[Any] = [None] * (3 * slots.capacity)
        untrack(objects)
        old_objects = self.objects
        self.version += 1
        self.slots = slots
        self.objects = objects
        self._words = words
        self._address = address
        self._free = -1
        self._settle(bits)
        self.top = FIRST
        return old_objects

    def _settle(self, bits: int) -> None:
        self._bits = bits
        self._mask = (1 << bits) - 1
        self._shift = 63 - bits

    def find(self, key: Any, hashed: int) -> int:
        """Return the slot of a key, or -1; the index did not change since the last pass of the search began.

        Args:
            key: hashable.
            hashed: ``hash(key)``.
        """
        mixed = _mixed(hashed)
        while True:
            candidate = None  # may drop the last reference to a key, so it comes before the search
            version = self.version
            position = mixed >> self._shift
            while True:
                word = self._words[position]
                if word == 0:
                    return -1
                if word >> 32 == mixed >> 32:
                    slot = word & _LOW32
                    candidate = self.objects[3 * slot]
                    if candidate is key:
                        return slot
                    if (self.slots._words[4 * slot] ^ mixed) & _HIGH48 == 0:
                        same = candidate == key  # may call Python code that uses this table
                        if version != self.version:
                            break
                        if same:
                            return slot
                position = (position + 1) & self._mask

    def prefetch(self, slot: int) -> None:
        """Start to load the memory that ``detach`` and ``vacate`` will read for a slot, without waiting."""
        fetch(self._address + 8 * (self.slots._words[4 * slot] >> self._shift))
        fetch_item(self.objects, 3 * slot)

    def prefetch_key(self, slot: int) -> None:
        """Start to load the key of a slot after ``prefetch``."""
        fetch_object(self.objects, 3 * slot)

    def is_full(self) -> bool:
        """Return whether the index must grow before a key can be added."""
        return self._free < 0 and self.top >= self.slots.capacity

    def insert(self, key: Any, value: Any, labels: Any, hashed: int) -> int:
        """Take a slot for a key that has none, and return it; call ``is_full`` first."""
        mixed = _mixed(hashed)
        slot = self._free
        if slot >= 0:
            self._free = self.slots._words[4 * slot + 2]
        else:
            slot = self.top
            self.top += 1
        self.version += 1
        self.objects[3 * slot] = key
        self.objects[3 * slot + 1] = value
        self.objects[3 * slot + 2] = labels
        self.slots._words[4 * slot] = (mixed & _HIGH48) | (self.slots._words[4 * slot] & _IN_HEAP)
        position = mixed >> self._shift
        while self._words[position]:
            position = (position + 1) & self._mask
        self._words[position] = (mixed & _HIGH31) | slot
        return slot

    def detach(self, slot: int) -> None:
        """Remove the key of a slot from the index; its objects stay until ``vacate``."""
        self.version += 1
        position = self.slots._words[4 * slot] >> self._shift
        while self._words[position] & _LOW32 != slot:
            position = (position + 1) & self._mask
        gap = position
        while True:
            position = (position + 1) & self._mask
            word = self._words[position]
            if word == 0:
                break
            if (position - (word >> self._shift)) & self._mask >= (position - gap) & self._mask:
                self._words[gap] = word
                gap = position
        self._words[gap] = 0

    def vacate(self, slot: int) -> None:
        """Free a detached slot; the caller must hold references to its objects."""
        place = 3 * slot
        self.objects[place] = None
        self.objects[place + 1] = None
        self.objects[place + 2] = None
        self.slots._words[4 * slot + 2] = self._free
        self._free = slot

    def grow(self, capacity: int, version: int) -> None:
        """Make room for ``capacity`` slots, unless the index changed since ``version`` or during the allocation."""
        bits = _index_bits(capacity)
        larger = Slots(capacity)
        more: list[Any] = [None] * (3 * (capacity - self.slots.capacity))
        numbers = _numbers(0 if bits == self._bits else 1 << bits)
        address = numbers.buffer_info()[0]
        words: MutableSequence[int] = numbers
        if version != self.version:  # checked here because the view of the new words already exists
            return
        self.objects.extend(more)  # this can fail, so it comes first
        self.slots._take_over(larger)
        self.version += 1
        if bits == self._bits:
            return
        for place in range(self._mask + 1):
            word = self._words[place]
            if word:
                position = word >> (63 - bits)
                while words[position]:
                    position = (position + 1) & ((1 << bits) - 1)
                words[position] = word
        self._words = words
        self._address = address
        self._settle(bits)


def _mixed(hashed: int) -> int:
    """Return a hash spread over 63 bits."""
    return (((hashed & _MASK64) * _MULTIPLIER) & _MASK64) >> 1


def _index_bits(capacity: int) -> int:
    """Return the bits of an index that is at most five eighths full, and at least half as full."""
    bits = 3
    while bits < _MAX_BITS and 5 << bits < 8 * capacity:
        bits += 1
    return bits


def _numbers(count: int) -> array[int]:
    return array("q", [0]) * count

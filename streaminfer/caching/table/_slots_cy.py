# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""State of each slot in 32 bytes of one cache line, shared by the parts of the table.

*Design.* A large cache spends nearly all its time waiting for memory, so the number of cache lines that an operation
reads decides its speed. With one array per field a store reads ten. Here it reads the index, the objects, this record
and the neighbors in the queue. Slot *s* has four 64-bit words:

* ``_words[4 * s]``: 48 bits of the key's hash, and below them the marks. Bits 0 and 1: the queue of the slot. Bits 2
  and 3: the hits that S3-FIFO counts (both ``_eviction_cy``). Bit 4: whether the slot is in the expiry heap
  (``_expiry_heap_cy``).
* ``_words[4 * s + 1]``: the instant at which it stops being fresh or, once it is stale, at which it is removed.
* ``_words[4 * s + 2]``: its bytes; in a free slot, the next free slot (``_index_cy``).
* ``_ints[8 * s + 6]`` and ``_ints[8 * s + 7]``: its older and its newer neighbor in the queue.

Both are views of the same memory. The first four slots are the heads of the queues.

One source, compiled with the C types of ``_slots_cy.pxd`` or run as plain Python. For threads see ``_expiry_heap_cy``.
"""

from __future__ import annotations

from array import array
from collections.abc import MutableSequence
from typing import Any

from streaminfer._internal.validation import expected

__all__ = ["FIRST", "MAIN", "NEGATIVE", "NEVER", "SMALL", "STALE", "Slots", "address_of", "aligned"]

MAIN = 0
SMALL = 1
STALE = 2
NEGATIVE = 3
FIRST = 4  # slots below are the heads of the queues
NEVER = 2**63 - 1

# C variables in the compiled module, not visible from Python
_FIRST = FIRST
_NEVER = NEVER


class Slots:
    """Slots, numbered from 0; at first in no queue and without an instant.

    Args:
        capacity: number of slots, at least those below :data:`FIRST`.
    """

    _ints: MutableSequence[int]
    _words: MutableSequence[int]

    def __init__(self, capacity: int) -> None:
        if capacity < FIRST:
            raise ValueError(expected("capacity", f"a whole number ≥ {FIRST}", capacity))
        memory = aligned("q", capacity)
        self._words = memory
        self._ints = memory.cast("B").cast("i")
        self.capacity = capacity
        self._begin()

    def _begin(self) -> None:
        # a method of its own, because the compiler types its variables but not those of a constructor
        for slot in range(self.capacity):
            self._words[4 * slot + 1] = _NEVER
        for head in range(_FIRST):
            self._ints[8 * head + 6] = head
            self._ints[8 * head + 7] = head

    def _take_over(self, other: Slots) -> None:
        """Copy these slots into a larger `Slots` and use its memory. Calls no Python and allocates nothing."""
        length = 4 * self.capacity
        other._words[:length] = self._words
        self._words = other._words
        self._ints = other._ints
        self.capacity = other.capacity

    def name(self, slot: int, mixed: int) -> None:
        """Set the hash of a slot (63 bits, already mixed) and clear its marks."""
        self._words[4 * slot] = mixed >> 15 << 15

    def queue_of(self, slot: int) -> int:
        """Return the queue that a slot is in."""
        return self._words[4 * slot] & 3


def aligned(code: str, rows: int) -> Any:
    """Return zeros in rows of four numbers (32 bytes), aligned so that no row crosses two cache lines.

    Args:
        code: type code of ``array``, for numbers of 8 bytes.
        rows: number of rows.
    """
    numbers = array(code, [0]) * (4 * rows + 4)
    first = -(numbers.buffer_info()[0] >> 3) & 3
    return memoryview(numbers)[first : first + 4 * rows]


def address_of(memory: Any) -> int:
    """Return the address of the memory that :func:`aligned` returned."""
    begins: int = memory.obj.buffer_info()[0]
    return (begins + 31) & -32

"""Memory for batches, written again and again: preallocated buffers that are reused once no reference to them is left.

Idea. A batch of images is megabytes. ``malloc`` gets such blocks from the kernel and gives them back, so that each new
batch faults its pages in again; the pool keeps them. The danger is an answer that is a view of the batch's input, or a
function that keeps its input: written over, it would change in the hands of its owner. So a buffer comes back exactly
when an array from :func:`numpy.empty` would have been freed:

* Each loan is a *new* array over the buffer's memory. Its base is a ``bytearray`` and not an array: numpy lets a
  view refer to the oldest *array* below it, so that every view, view of a view, ``memoryview``, ctypes array, DLPack
  capsule, tensor or ``OrtValue`` refers to the array of this loan.
* The pool has a weak reference to that array, whose callback gives the memory back. An array is never resurrected and
  the cycle collector does not know it, so the callback runs when the last reference has gone and not before. Who holds
  nothing but an address would read freed memory without the pool, too.

The callback runs in whatever thread drops the last reference, also in the middle of anything; it only appends to a
deque, which :meth:`BufferPool.take` empties. No count of references is read: such counts differ between interpreters.
Who finds the pool in use, by another thread or by the very call that a finalizer interrupted, gets an ordinary array.

Sizes are powers of two, and a batch takes the buffer that was used last among those it fits in: batches of varying
size share buffers, and few of them stay warm in the cache.

Where it helps, measured by ``benchmarks/run.py assembly`` (CPU time in a worker thread, batches of 1 to 32 rows
beside a model's other allocations) against ``numpy.array``: 1.1 to 1.3 times as fast for rows of 1.2 MB, 1.3 to 1.7 for
rows of 3 MB. glibc asks the kernel for every block from 32 MB on. Below it keeps pages itself, mostly: for batches up
to 20 MB both are within 15 % of each other, until some pattern of allocations makes malloc give pages back; then 19 MB
took 5.7 ms instead of 1.2. Small batches lose the 3 µs that a loan costs. So buffers are lent from 8 MB on.
"""

import math
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.forking import new_lock
from streaminfer._internal.validation import check_count

__all__ = ["BufferPool"]


class _Loan(weakref.ref[Any]):
    """A weak reference to a lent array that knows its memory."""

    __slots__ = ("memory",)

    memory: bytearray


class BufferPool:
    """Arrays over reused memory; everything may be called from any thread.

    Args:
        max_bytes: the most memory, lent and idle together. What goes beyond it is an ordinary array, and idle memory
            is released first, the longest unused before the others.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = check_count("max_bytes", max_bytes, at_least=0)
        self._lock = new_lock()
        self._idle: list[bytearray] = []
        self._idle_bytes = 0
        self._loans: dict[int, _Loan] = {}
        self._returned: deque[_Loan] = deque()
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Memory lent and idle; at most ``max_bytes``."""
        return self._held_bytes

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An uninitialized C-contiguous array; its memory is reused when nothing refers to it or its views any more.

        Args:
            shape: of the array.
            dtype: of the array, without Python objects.
        """
        size = 1 << max(math.prod(shape) * dtype.itemsize - 1, 0).bit_length()
        if not self._lock.acquire(blocking=False):
            return np.empty(shape, dtype)
        given_up: list[bytearray] = []
        try:
            self._collect()
            memory = self._find(size)
            if memory is None:
                if not self._make_room(size, given_up):
                    return np.empty(shape, dtype)
                given_up.clear()  # before as much is asked for
                memory = bytearray(size)
                self._held_bytes += size
            array: NDArray[Any] = np.ndarray(shape, dtype, buffer=memory)
            loan = _Loan(array, self._returned.append)
            loan.memory = memory
            self._loans[id(loan)] = loan  # a weak reference that is not held calls nothing back
        finally:
            self._lock.release()
        return array

    def _collect(self) -> None:
        while self._returned:
            loan = self._returned.popleft()
            del self._loans[id(loan)]
            self._idle.append(loan.memory)
            self._idle_bytes += len(loan.memory)

    def _find(self, size: int) -> bytearray | None:
        for position in range(len(self._idle) - 1, -1, -1):  # what was written last may still be in the cache
            if len(self._idle[position]) >= size:
                self._idle_bytes -= len(self._idle[position])
                return self._idle.pop(position)
        return None

    def _make_room(self, size: int, given_up: list[bytearray]) -> bool:
        """Gives idle memory up where ``size`` bytes more would be too much; false where that is not enough."""
        if self._held_bytes - self._idle_bytes + size > self._max_bytes:
            return False
        while self._held_bytes + size > self._max_bytes:
            memory = self._idle.pop(0)
            self._idle_bytes -= len(memory)
            self._held_bytes -= len(memory)
            given_up.append(memory)
        return True

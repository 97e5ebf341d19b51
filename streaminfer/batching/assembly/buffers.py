"""Reused memory for batches: preallocated buffers, each reused when no reference to it is left.

*Idea.* A batch of images is megabytes. ``malloc`` gets such blocks from the kernel and returns them, so each new batch
faults its pages in again; the pool keeps them. The danger is a response that is a view of the batch's input, or a
function that stores its input: if the memory were overwritten, the data would change under its owner. So a buffer
returns to the pool exactly when an array from :func:`numpy.empty` would have been freed:

* Each loan is a *new* array over the buffer's memory. Its base is a ``bytearray`` and not an array: NumPy lets a view
  refer to the oldest *array* below it, so every view, view of a view, ``memoryview``, ctypes array, DLPack capsule,
  tensor or ``OrtValue`` refers to the array of this loan.
* The pool has a weak reference to that array, whose callback returns the memory. An array is never resurrected and the
  cycle collector does not track it, so the callback runs exactly when the last reference is gone. Code that stores only
  an address would read freed memory without the pool, too.

The callback runs in the thread that drops the last reference, at any point of its code. It only appends to a deque,
which :meth:`BufferPool.take` empties. The pool reads no reference counts, because these differ between interpreters. A
caller gets an ordinary array if the pool is in use by another thread, or by the call that a finalizer interrupted.

Sizes are powers of two, and a batch gets the most recently used buffer that fits: batches of varying size share
buffers, and few of them stay warm in the cache.

Benefit, measured by ``benchmarks/run.py assembly`` (CPU time in a worker thread, batches of 1 to 32 rows beside a
model's other allocations) against ``numpy.array``: 1.1 to 1.3 times as fast for rows of 1.2 MB, 1.3 to 1.7 for rows of
3 MB. glibc gets every block from 32 MB on from the kernel. Smaller blocks it mostly stores itself: for batches up to
20 MB both are within 15 % of each other, until some pattern of allocations makes malloc return pages; then 19 MB took
5.7 ms instead of 1.2. Small batches lose the 3 µs that a loan costs. So buffers are lent from 8 MB on.
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
    """Arrays over reused memory; all methods may be called from any thread.

    Args:
        max_bytes: the most memory, lent and idle together. Beyond it, callers get ordinary arrays. Idle memory is
            released first, the least recently used before the rest.

    Attributes:
        held_bytes: memory lent and idle; at most ``max_bytes``.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = check_count("max_bytes", max_bytes, at_least=0)
        self._lock = new_lock()
        self._idle: list[bytearray] = []
        self._idle_bytes = 0
        self._loans: dict[int, _Loan] = {}
        self._returned: deque[_Loan] = deque()
        self.held_bytes = 0

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an uninitialized C-contiguous array, whose memory is reused when no reference to it or a view is left.

        Args:
            shape: shape of the array.
            dtype: dtype of the array, without Python objects.
        """
        size = 1 << max(math.prod(shape) * dtype.itemsize - 1, 0).bit_length()
        if not self._lock.acquire(blocking=False):
            return np.empty(shape, dtype)
        freed: list[bytearray] = []
        try:
            self._collect()
            memory = self._find(size)
            if memory is None:
                if not self._make_room(size, freed):
                    return np.empty(shape, dtype)
                freed.clear()  # free this memory before as much is allocated
                memory = bytearray(size)
                self.held_bytes += size
            array: NDArray[Any] = np.ndarray(shape, dtype, buffer=memory)
            loan = _Loan(array, self._returned.append)
            loan.memory = memory
            self._loans[id(loan)] = loan  # stored, because a weak reference that is freed never calls back
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
        for position in range(len(self._idle) - 1, -1, -1):  # the most recently used may still be in the cache
            if len(self._idle[position]) >= size:
                self._idle_bytes -= len(self._idle[position])
                return self._idle.pop(position)
        return None

    def _make_room(self, size: int, freed: list[bytearray]) -> bool:
        """Release idle memory if ``size`` bytes more would exceed the limit; return false if that is not enough."""
        if self.held_bytes - self._idle_bytes + size > self._max_bytes:
            return False
        while self.held_bytes + size > self._max_bytes:
            memory = self._idle.pop(0)
            self._idle_bytes -= len(memory)
            self.held_bytes -= len(memory)
            freed.append(memory)
        return True

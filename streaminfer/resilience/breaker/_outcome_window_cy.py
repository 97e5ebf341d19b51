# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The outcomes that a circuit breaker judges: of the last calls, or of the last seconds.

*Design.* There are three sums (calls, failures, slow calls). An outcome that leaves the window is subtracted from the
sums, so adding and reading are O(1).

* *By count*: a ring of one byte per call, bit 0 for a failure and bit 1 for a slow call.
* *By time*: a ring of slices, each with its three sums. Outcomes are added to the present slice. When its time is up,
  the oldest slice is subtracted and reused. With ``n`` slices the window covers between ``n - 1`` and ``n`` slice
  widths. After a pause of any length, at most ``n`` slices are cleared. If the clock steps back, outcomes are added to
  the present slice.

*Invariants.* Each sum is the sum over the ring. No method calls Python or drops a reference (resilience4j's sliding
windows, with slices of a second or less).

One source, compiled with the C types of ``_outcome_window_cy.pxd`` or run uncompiled. The directives are safe:
every index is kept below its ring's length here.
"""

from __future__ import annotations

from array import array

__all__ = ["OutcomeWindow"]


class OutcomeWindow:
    """Sums over the last ``size`` calls, or over ``size`` slices of time.

    Args:
        size: how many calls, or how many slices; at least 1.
        slice_ns: width of a slice in nanoseconds; 0: a window of calls.

    Attributes:
        capacity: maximum number of outcomes in the window; 0: any number.
        calls: how many outcomes are in the window.
        failures: how many of them failed.
        slow: how many of them were slow.
    """

    def __init__(self, size: int, slice_ns: int) -> None:
        self._size = size
        self.capacity = 0 if slice_ns else size
        self._slice_ns = slice_ns
        self._outcomes = bytearray(1 if slice_ns else size)
        self._slices = array("q", [0]) * (3 * size if slice_ns else 3)
        self._head = 0
        self._end_ns = 0
        self.calls = 0
        self.failures = 0
        self.slow = 0

    def add(self, failed: bool, slow: bool, now_ns: int) -> None:
        """Count one outcome.

        Args:
            failed: whether the call failed.
            slow: whether the call was slow.
            now_ns: when it ended; only a window of time uses this.
        """
        if self._slice_ns:
            if now_ns >= self._end_ns:
                self.advance(now_ns)
            place = 3 * self._head
            self._slices[place] += 1
            if failed:
                self._slices[place + 1] += 1
            if slow:
                self._slices[place + 2] += 1
            self.calls += 1
        else:
            place = self._head
            if self.calls == self._size:
                oldest = self._outcomes[place]
                self.failures -= oldest & 1
                self.slow -= oldest >> 1
            else:
                self.calls += 1
            self._outcomes[place] = (1 if failed else 0) | (2 if slow else 0)
            self._head = place + 1 if place + 1 < self._size else 0
        if failed:
            self.failures += 1
        if slow:
            self.slow += 1

    def advance(self, now_ns: int) -> None:
        """Remove outcomes that are too old; a window of calls never has any."""
        if not self._slice_ns or now_ns < self._end_ns:
            return
        steps = (now_ns - self._end_ns) // self._slice_ns + 1
        if steps >= self._size:
            self.clear()
            self._end_ns = now_ns + self._slice_ns  # no outcome is left, so the slices may begin at any instant
            return
        self._end_ns += steps * self._slice_ns
        while steps > 0:
            self._head = self._head + 1 if self._head + 1 < self._size else 0
            place = 3 * self._head
            self.calls -= self._slices[place]
            self.failures -= self._slices[place + 1]
            self.slow -= self._slices[place + 2]
            self._slices[place] = 0
            self._slices[place + 1] = 0
            self._slices[place + 2] = 0
            steps -= 1

    def clear(self) -> None:
        """Forget all outcomes."""
        if self._slice_ns:
            for place in range(3 * self._size):
                self._slices[place] = 0
        # a ring of calls need not be cleared: with zero sums, it is read only after it was written again
        self._head = 0
        self.calls = 0
        self.failures = 0
        self.slow = 0

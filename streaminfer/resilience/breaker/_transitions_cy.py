# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""A ring of the circuit breaker's transitions, for later delivery to listeners.

*Design.* A transition is written as numbers, so that the operation that causes it calls no Python and allocates
nothing. When the ring is full, the oldest transition is overwritten: a listener that does not return from an event
misses later ones.

One source, compiled with the C types of ``_transitions_cy.pxd`` or run uncompiled. Not thread-safe; its owner
``BreakerMachine`` is. The directives are safe: indexes are taken modulo the length of the ring.
"""

from __future__ import annotations

from array import array

__all__ = ["TransitionRing"]

# C variables in the compiled module, not visible from Python
_CAPACITY = 64  # a power of two
_FIELDS = 7


class TransitionRing:
    """The transitions that were not delivered yet.

    Attributes:
        pending: number of transitions in the ring.
        lost: transitions that were overwritten before they were delivered.
    """

    def __init__(self) -> None:
        self._numbers = array("q", [0]) * (_CAPACITY * _FIELDS)
        self._head = 0
        self.pending = 0
        self.lost = 0

    def add(self, before: int, after: int, reason: int, at_ns: int, calls: int, failures: int, slow: int) -> None:
        """Add a transition; the oldest is lost if the ring is full."""
        if self.pending == _CAPACITY:
            self._head = (self._head + 1) & (_CAPACITY - 1)
            self.pending -= 1
            self.lost += 1
        place = ((self._head + self.pending) & (_CAPACITY - 1)) * _FIELDS
        self._numbers[place] = before
        self._numbers[place + 1] = after
        self._numbers[place + 2] = reason
        self._numbers[place + 3] = at_ns
        self._numbers[place + 4] = calls
        self._numbers[place + 5] = failures
        self._numbers[place + 6] = slow
        self.pending += 1

    def pop(self) -> tuple[int, ...] | None:
        """Remove the oldest transition: before, after, reason, instant, calls, failures, slow; ``None``: none."""
        if self.pending == 0:
            return None
        place = self._head * _FIELDS
        before = self._numbers[place]
        after = self._numbers[place + 1]
        reason = self._numbers[place + 2]
        at_ns = self._numbers[place + 3]
        calls = self._numbers[place + 4]
        failures = self._numbers[place + 5]
        slow = self._numbers[place + 6]
        self._head = (self._head + 1) & (_CAPACITY - 1)
        self.pending -= 1
        return (before, after, reason, at_ns, calls, failures, slow)

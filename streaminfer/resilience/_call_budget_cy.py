# cython: boundscheck=False, wraparound=False, cdivision=True
"""Budget of retries and hedges as a share of the requests.

*Design.* Retries and hedges must not multiply the load just when a service has too much of it. So each request earns a
share of an extra call. Shares expire, because a bucket that never empties would let a quiet night pay for a storm: only
the last ten seconds count, in ten slices, and the oldest slice expires as a whole.

*Invariant.* At each grant, extra calls in the window that were not refunded, itself included, ≤ ``ratio`` · requests in
the window + ``per_s`` · window. An extra call leaves the window no earlier than the requests that came before it.

*Complexity.* O(1); when a slice ends, O(slices passed), at most ten; a refund O(slices).

Sources: Finagle's RetryBudget, in which deposits expire too, and the retry throttling of gRPC (proposal A6).

Threads: in the compiled build under the interpreter lock every method is atomic; otherwise a caller takes a lock.

One source, compiled with the C types of ``_call_budget_cy.pxd`` or run uncompiled. The directives are safe: each index
is taken modulo the number of slices.
"""

from __future__ import annotations

from array import array

__all__ = ["WINDOW_S", "CallBudget"]

_SLICES = 10
_SLICE_NS = 10**9
_TINY = 1e-9  # 20 requests at 0.05 must add up to one

WINDOW_S = 10.0


class CallBudget:
    """Counts requests and grants extra calls as a share of them.

    Args:
        ratio: extra calls per request, ≥ 0.
        per_s: extra calls a second that need no requests, ≥ 0.

    Attributes:
        requests: requests since the budget was made.
        granted: extra calls since then.
        throttled: extra calls that were not granted.
    """

    def __init__(self, ratio: float, per_s: float) -> None:
        self._ratio = ratio
        self._per_window = per_s * (_SLICES * (_SLICE_NS / 1e9))
        self._requests_by_slice = array("q", [0]) * _SLICES
        self._extra_by_slice = array("q", [0]) * _SLICES
        self._requests_in_window = 0
        self._extra_in_window = 0
        self._number = 0
        self.requests = 0
        self.granted = 0
        self.throttled = 0

    def count(self, now_ns: int) -> None:
        """Count a request."""
        self._advance(now_ns)
        self._requests_by_slice[self._number % _SLICES] += 1
        self._requests_in_window += 1
        self.requests += 1

    def grant(self, now_ns: int) -> bool:
        """Return whether one extra call may be made now, and count it if so."""
        if self.left(now_ns) + _TINY < 1.0:
            self.throttled += 1
            return False
        self._extra_by_slice[self._number % _SLICES] += 1
        self._extra_in_window += 1
        self.granted += 1
        return True

    def refund(self, now_ns: int) -> None:
        """Return one granted call to the budget, because it brought what it was made for."""
        self._advance(now_ns)
        for ago in range(_SLICES):
            slot = (self._number + _SLICES - ago) % _SLICES
            if self._extra_by_slice[slot] > 0:
                self._extra_by_slice[slot] -= 1
                self._extra_in_window -= 1
                return

    def left(self, now_ns: int) -> float:
        """Return how many extra calls may be made now: a fraction, negative if requests left the window first."""
        self._advance(now_ns)
        return self._ratio * self._requests_in_window + self._per_window - self._extra_in_window

    def _advance(self, now_ns: int) -> None:
        number = now_ns // _SLICE_NS if now_ns > 0 else 0
        if number <= self._number:
            return  # the same slice, or a clock that jumped back
        for slot in range(max(self._number, number - _SLICES) + 1, number + 1):
            self._requests_in_window -= self._requests_by_slice[slot % _SLICES]
            self._extra_in_window -= self._extra_by_slice[slot % _SLICES]
            self._requests_by_slice[slot % _SLICES] = 0
            self._extra_by_slice[slot % _SLICES] = 0
        self._number = number

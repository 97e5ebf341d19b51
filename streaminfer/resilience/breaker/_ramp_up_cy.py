# cython: boundscheck=False, cdivision=True
"""Ramp-up after a circuit breaker has closed: a growing share of the calls passes.

*Design.* The share grows linearly from a tenth to all calls. Each call adds the present share to a sum. A call that
brings the sum to 1 passes and subtracts 1. So of any few calls in a row the right number passes, without random
numbers. A test that returns false (`would_admit`) counts as a rejected call, because its request goes elsewhere.
Otherwise a router that tests before each request would never see the sum grow. So a router must test once per request.

One source, compiled with the C types of ``_ramp_up_cy.pxd`` or run uncompiled. Not thread-safe; its owner
``BreakerMachine`` is.
"""

from __future__ import annotations

__all__ = ["RampUp"]

# C variables in the compiled module, not visible from Python
_FIRST_SHARE = 0.1
_TINY = 1e-9  # ten tenths must add up to one


class RampUp:
    """The share of the calls that pass.

    Args:
        duration_ns: how long the share takes from a tenth to 1; 0: there is no ramp-up.

    Attributes:
        active: the ramp-up has begun, was not stopped, and no call has found it to be over.
    """

    def __init__(self, duration_ns: int) -> None:
        self._duration_ns = duration_ns
        self._began_ns = 0
        self._sum = 0.0
        self.active = False

    def begin(self, at_ns: int) -> None:
        """Start with the smallest share; the first call passes."""
        self._began_ns = at_ns
        self._sum = 1.0 - _FIRST_SHARE
        self.active = self._duration_ns > 0

    def stop(self) -> None:
        """Let all calls pass."""
        self.active = False

    def share(self, now_ns: int) -> float:
        """Return the share of the calls that pass now, from a tenth to 1.0; changes nothing."""
        if not self.active:
            return 1.0
        elapsed_ns = max(now_ns - self._began_ns, 0)
        return min(_FIRST_SHARE + (1.0 - _FIRST_SHARE) * elapsed_ns / self._duration_ns, 1.0)

    def left_ns(self, now_ns: int) -> int:
        """Return the nanoseconds until all calls pass."""
        return max(self._began_ns + self._duration_ns - now_ns, 0) if self.active else 0

    def admits(self, now_ns: int) -> bool:
        """Count one call and return whether it passes."""
        share = self.share(now_ns)
        if share >= 1.0:
            self.active = False
            return True
        self._sum += share
        if self._sum + _TINY >= 1.0:
            self._sum -= 1.0
            return True
        return False

    def would_admit(self, now_ns: int) -> bool:
        """Return whether the next call would pass; a test that returns false counts like a rejected call."""
        share = self.share(now_ns)
        if share >= 1.0 or self._sum + share + _TINY >= 1.0:
            return True
        self._sum += share
        return False

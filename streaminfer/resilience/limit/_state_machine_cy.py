# cython: cdivision=True, cpow=True
"""The concurrency limit's state machine: permits for calls, and what their outcomes change.

*Design.* ``_adaptation_cy`` learns how many calls may be in flight; this module gives permits and takes them back.

*Deadlines.* A call that has less time than the fastest response of this and the last window is rejected. If no call is
in flight, it is admitted, because otherwise the limit could never unlearn a stall.

*Drain time.* Calls in flight times the measured busy time between completions. If nothing has completed for longer than
that, the time since the last completion.

*Complexity.* O(1).

*Invariants.* ``in_flight`` is the number of permits that are out. Each permit that comes back is counted in exactly one
of ``succeeded``, ``deadline_exceeded``, ``inner_rejected`` and ``ignored``.

One source, compiled with the C types of ``_state_machine_cy.pxd`` or run uncompiled. In the compiled build under the
interpreter lock every method is atomic: none calls Python or drops a reference between its first and last write.
Otherwise a caller takes a lock around each, as ``ConcurrencyLimit`` does.
"""

from __future__ import annotations

from streaminfer._internal.units import NEVER_NS
from streaminfer.resilience.limit._adaptation_cy import LimitAdaptation

__all__ = ["FULL", "INFEASIBLE", "UNKNOWN", "LimitMachine"]

FULL = 0
INFEASIBLE = -1
UNKNOWN = -1

# C variables in the compiled module, not visible from Python
_FULL = FULL
_INFEASIBLE = INFEASIBLE
_PASSES = 1
_TINY = 1e-9  # a fifth of 100 must be 20


class LimitMachine:
    """Permits for calls.

    The arguments are not checked; ``ConcurrencyLimit`` does that.

    Args:
        adaptation: learns how many calls may be in flight.
        reserve: the share of the limit that each step of priority leaves to more urgent calls, 0 ≤ reserve < 1.

    Attributes:
        adaptation: the same.
        in_flight: calls in flight.
        admitted: permits given.
        rejected: calls rejected by the limit.
        infeasible: calls rejected because they would miss their deadline.
        succeeded: permits of calls that succeeded.
        deadline_exceeded: permits of calls that exceeded their deadline.
        inner_rejected: permits of calls that an inner layer rejected.
        ignored: permits of calls from which the limit learns nothing.
        stale_permits: permits that came back although they were not out.
        interval_ns: recent busy time per completion; 0.0 before the first decision.
    """

    def __init__(self, adaptation: LimitAdaptation, reserve: float) -> None:
        self.adaptation = adaptation
        self._reserve = reserve
        self._window_began_ns = 0
        self._idle_ns = 0
        self._idle_since_ns = 0
        self._freed = 0
        self._freed_ns = 0
        self.in_flight = 0
        self.admitted = 0
        self.rejected = 0
        self.infeasible = 0
        self.succeeded = 0
        self.deadline_exceeded = 0
        self.inner_rejected = 0
        self.ignored = 0
        self.stale_permits = 0
        self.interval_ns = 0.0

    # -- calls --------------------------------------------------------------------------------------------------

    def try_acquire(self, priority: int, deadline_ns: int, now_ns: int) -> int:
        """Give a permit for one call, which comes back through one of the next four methods.

        Args:
            priority: a lower number is more urgent; 0 and below may use the whole limit.
            deadline_ns: deadline of the call; ``NEVER_NS``: none.
            now_ns: the present instant.

        Returns:
            The permit, above 0; :data:`FULL` or :data:`INFEASIBLE`.
        """
        verdict = self.check(priority, deadline_ns, now_ns)
        if verdict != _PASSES:
            if verdict == _INFEASIBLE:
                self.infeasible += 1
            else:
                self.rejected += 1
                self.adaptation.reject(self.in_flight, self.rejected, now_ns)
            return verdict
        if self.in_flight == 0:
            if self.admitted == 0:
                self._window_began_ns = now_ns
                self.adaptation.begin(now_ns)
            elif now_ns > self._idle_since_ns:
                self._idle_ns += now_ns - self._idle_since_ns
            self._freed_ns = now_ns
        self.in_flight += 1
        if self.in_flight > self.adaptation._peak:
            self.adaptation._peak = self.in_flight
        self.admitted += 1
        return now_ns if now_ns > 0 else 1

    def check(self, priority: int, deadline_ns: int, now_ns: int) -> int:
        """Return what :meth:`try_acquire` would decide: 1, :data:`FULL` or :data:`INFEASIBLE`; changes nothing."""
        if self.in_flight >= self._permits(priority):
            return _FULL
        if deadline_ns != NEVER_NS and self.in_flight > 0 and deadline_ns < now_ns + self.adaptation.fastest_ns:
            return _INFEASIBLE
        return _PASSES

    def reject_infeasible(self) -> None:
        """Count a call that was rejected because it would miss its deadline in an inner layer."""
        self.infeasible += 1

    def is_tight(self, deadline_ns: int, now_ns: int) -> bool:
        """Return whether a deadline leaves less than twice the mean time of recent calls, while calls are in flight."""
        return deadline_ns != NEVER_NS and self.in_flight > 0 and deadline_ns < now_ns + 2.0 * self.adaptation.mean_ns

    def succeed(self, permit: int, queued_ns: int, batch_ns: int, now_ns: int) -> bool:
        """Take back the permit of a call that succeeded.

        Args:
            permit: its permit.
            queued_ns: how long it was queued before its batch began; :data:`UNKNOWN` if timings do not show it.
            batch_ns: when its batch began, which tells batches apart.
            now_ns: the present instant.

        Returns:
            Whether a window ended.
        """
        self._take_back(now_ns)
        self.succeeded += 1
        duration_ns = max(now_ns - permit, 0)
        ended = self.adaptation.add(permit, duration_ns, queued_ns, batch_ns, self.in_flight, self.rejected, now_ns)
        return self._follow(ended, now_ns)

    def exceed_deadline(self, permit: int, allowed_ns: int, now_ns: int) -> bool:
        """Take back the permit of a call that would have taken longer than ``allowed_ns``, the whole time it had.

        Returns:
            Whether a window ended.
        """
        self._take_back(now_ns)
        self.deadline_exceeded += 1
        ended = self.adaptation.add_late(permit, allowed_ns, self.in_flight, self.rejected, now_ns)
        return self._follow(ended, now_ns)

    def reject_inside(self, permit: int, now_ns: int) -> bool:
        """Take back the permit of a call that an inner layer rejected.

        Returns:
            Whether a window ended.
        """
        self._take_back(now_ns)
        self.inner_rejected += 1
        ended = self.adaptation.add_drop(permit, self.in_flight, self.rejected, now_ns)
        return self._follow(ended, now_ns)

    def release(self, now_ns: int) -> None:
        """Take back the permit of a call that failed, was cancelled or was never made; learn nothing."""
        self._take_back(now_ns)
        self.ignored += 1

    def discard(self) -> None:
        """Count a permit that came back although it was not out; the caller keeps the list of permits."""
        self.stale_permits += 1

    # -- targets ------------------------------------------------------------------------------------------------

    def set_objective(self, objective_ns: float, burning: bool) -> None:
        """Set the latency objective, 0.0 for none, and whether its budget burns."""
        self.adaptation.set_objective(objective_ns, burning)

    def drain_ns(self, now_ns: int) -> int:
        """Return the nanoseconds in which the calls in flight should complete; 0: none in flight, or unknown."""
        if self.in_flight == 0:
            return 0
        drain_ns = self.interval_ns * self.in_flight
        if self.interval_ns == 0.0 and self._freed > 0:  # the first window
            drain_ns = (self._freed_ns - self._window_began_ns - self._idle_ns) * 1.0 / self._freed * self.in_flight
        return int(max(now_ns - self._freed_ns, drain_ns))

    def wait_ns(self, priority: int, ahead: int, now_ns: int) -> int:
        """Return the nanoseconds in which a waiting call should get a permit; 0 if unknown.

        Args:
            priority: priority of the call.
            ahead: how many calls wait before it.
            now_ns: the present instant.
        """
        if self.in_flight == 0:
            return 0
        completions = self.in_flight - self._permits(priority) + 1 + ahead
        return int(self.drain_ns(now_ns) * 1.0 / self.in_flight * completions) if completions > 0 else 0

    # -- inside -------------------------------------------------------------------------------------------------

    def _permits(self, priority: int) -> int:
        """Return how many calls may be in flight for a call of this priority to be admitted."""
        if priority <= 0:
            return self.adaptation.allowed
        permits = self.adaptation.allowed * (1.0 - self._reserve) ** priority + _TINY
        return int(permits) if permits >= 1.0 else 1

    def _take_back(self, now_ns: int) -> None:
        if self.in_flight > 0:  # 0 in a forked child: its thread gives back a permit that was already given back there
            self.in_flight -= 1
        self._freed += 1
        self._freed_ns = now_ns
        if self.in_flight == 0:
            self._idle_since_ns = now_ns
        self.adaptation.resume(self.in_flight, now_ns)

    def _follow(self, ended: bool, now_ns: int) -> bool:
        """Begin a window here too if a window of the adaptation has ended; return whether it has."""
        if not ended:
            return False
        busy_ns = now_ns - self._window_began_ns - self._idle_ns
        if busy_ns > 0:
            interval_ns = busy_ns / self._freed
            self.interval_ns = interval_ns if self.interval_ns == 0.0 else (self.interval_ns + interval_ns) / 2.0
        self._window_began_ns = now_ns
        self._idle_ns = 0
        self._freed = 0
        return True

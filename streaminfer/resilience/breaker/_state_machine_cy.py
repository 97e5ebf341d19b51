# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The circuit breaker's state machine: permits for calls, and what their outcomes change.

*Design* (Nygard's circuit breaker, with resilience4j's rules unless the documentation's table differs). A *closed*
circuit lets calls pass, and their outcomes fill a window. When enough of them failed, or were slow, the circuit *opens*
and rejects calls. After a time, which doubles with each consecutive trip, it is *half open* and lets a few probes pass;
their outcomes close or reopen it. Three rules keep it from getting stuck:

* *Generations.* Each change of state begins a generation, and a permit carries its generation. An outcome that comes
  after the state has changed says nothing about the present state and is ignored.
* *Probes must come back.* Each probe's permit is in a set until it comes back, with or without an outcome. A permit
  that comes back twice is ignored the second time.
* *Half-open ends.* ``half_open_ns`` after the first probe, the known outcomes decide. If a probe is still in flight,
  the circuit reopens, because the probe probably hangs; otherwise the few outcomes so far are judged. Without an
  outcome and without a probe in flight, the next call is a probe like the first one.

After its probes have closed it, the circuit lets a growing share of the calls pass for ``ramp_up_ns``
(``_ramp_up_cy``). There is no timer: changes by time alone follow from instants that are fixed when a state begins.

*Complexity.* O(1).

*Invariants.* Probes in flight + probes judged ≤ ``half_open_calls``, unless outcomes are recorded without a permit; the
generation never falls; ``OPEN`` is left by a call or by force, never by an outcome; a trip happens only in a record or
at the end of half-open.

One source, compiled with the C types of ``_state_machine_cy.pxd`` or run uncompiled. In the compiled build under the
interpreter lock every method is atomic: between its first and its last write none calls Python, drops a reference or
allocates anything that the garbage collector tracks. Otherwise ``CircuitBreaker`` takes a lock around each call.
"""

from __future__ import annotations

from streaminfer._internal.units import NEVER_NS
from streaminfer.resilience.breaker._open_time_cy import OpenTime
from streaminfer.resilience.breaker._outcome_window_cy import OutcomeWindow
from streaminfer.resilience.breaker._probes_cy import HalfOpenProbes
from streaminfer.resilience.breaker._ramp_up_cy import RampUp
from streaminfer.resilience.breaker._recent_durations_cy import RecentDurations
from streaminfer.resilience.breaker._transitions_cy import TransitionRing

__all__ = ["MODES", "REASONS", "STATES", "BreakerMachine"]

STATES = ("closed", "open", "half_open")
MODES = ("automatic", "metrics_only", "disabled", "forced_open")
REASONS = (
    "failure_rate",
    "slow_rate",
    "open_time_passed",
    "probes_succeeded",
    "probes_failed",
    "probes_slow",
    "half_open_time_passed",
    "forced_open",  # the last four are in the opposite order of the modes
    "disabled",
    "metrics_only",
    "reset",
)

# C variables in the compiled module, not visible from Python
_CLOSED = 0
_OPEN = 1
_HALF_OPEN = 2
_AUTOMATIC = 0
_METRICS_ONLY = 1
_DISABLED = 2
_FORCED_OPEN = 3
_BY_FAILURES = 0
_BY_SLOWNESS = 1
_OPEN_TIME_PASSED = 2
_PROBES_SUCCEEDED = 3
_PROBES_FAILED = 4
_HALF_OPEN_TIME_PASSED = 6
_RESET = 10
_NOTHING = -1
_SERIAL_BITS = 20


class BreakerMachine:
    """State machine of a circuit: closed, open or half open.

    Args:
        failure_rate: share of failures at which it trips, above 0 and at most 1.
        slow_rate: share of slow calls at which it trips, above 0 and at most 1.
        slow_ns: a call that takes longer is slow; :data:`NEVER_NS`: no call is slow.
        window: outcomes by which a closed circuit is judged.
        minimum_calls: fewest outcomes that are judged, or all that the window, or half-open, can hold, if fewer.
        open_ns: how long it rejects calls after the first trip.
        max_open_ns: longest open time, which doubles trip by trip; at least ``open_ns``.
        half_open_calls: number of probes that may pass while half open.
        half_open_ns: how long after its first probe half-open ends.
        ramp_up_ns: how long it takes to let all calls pass after its probes have closed it; 0: they pass at once.
        seed: seed of the jitter, 0 ≤ seed < 2^31.

    Attributes:
        mode: 0 automatic, 1 metrics only, 2 disabled, 3 forced open (see :data:`MODES`).
        transitions: transitions that were not delivered yet.
        permitted: permits given.
        rejected: calls rejected.
        succeeded: outcomes that counted as success.
        failed: outcomes that counted as failure.
        slow: outcomes that were slow.
        ignored: permits that came back without an outcome.
        stale_permits: outcomes and permits that came after their state had ended, or twice.
        trips: how often the circuit opened.
        consecutive_trips: how often the circuit opened since it was last closed.
    """

    def __init__(
        self,
        failure_rate: float,
        slow_rate: float,
        slow_ns: int,
        window: OutcomeWindow,
        minimum_calls: int,
        open_ns: int,
        max_open_ns: int,
        half_open_calls: int,
        half_open_ns: int,
        ramp_up_ns: int,
        seed: int,
    ) -> None:
        self._failure_rate = failure_rate
        self._slow_rate = slow_rate
        self._slow_ns = slow_ns
        self._window = window
        self._minimum_calls = min(minimum_calls, window.capacity) if window.capacity else minimum_calls
        self._minimum_probes = min(minimum_calls, half_open_calls)
        self._open_time = OpenTime(open_ns, max_open_ns, seed)
        self._probes = HalfOpenProbes(half_open_calls)
        self._half_open_ns = half_open_ns
        self._ramp = RampUp(ramp_up_ns)
        self.transitions = TransitionRing()
        self._durations = RecentDurations()
        self._generation = 0
        self._state = _CLOSED
        self.mode = _AUTOMATIC
        self.permitted = 0
        self.rejected = 0
        self.succeeded = 0
        self.failed = 0
        self.slow = 0
        self.ignored = 0
        self.stale_permits = 0
        self.trips = 0
        self.consecutive_trips = 0
        self._begin_closed()

    def _begin_closed(self) -> None:
        self._generation += 1
        self._permit = self._generation << _SERIAL_BITS
        self._state = _CLOSED
        self._window.clear()
        self._exceeded = False
        self._probes.clear()
        self._ramp.stop()
        self._until_ns = 0
        self.consecutive_trips = 0
        self._open_time.reset()

    # -- calls --------------------------------------------------------------------------------------------------

    def try_acquire(self, now_ns: int) -> int:
        """Give a permit for one call, which comes back through :meth:`record`, :meth:`cut_off` or :meth:`release`.

        Returns:
            The permit, above 0; 0: the call is rejected.
        """
        if self._state == _CLOSED:
            return self._admit(now_ns)
        return self._acquire_probe(now_ns)

    def record(self, ok: bool, duration_ns: int, permit: int, now_ns: int) -> bool:
        """Record the outcome of a call.

        Args:
            ok: whether the call succeeded.
            duration_ns: how long it took.
            permit: its permit; 0: a call without a permit, which counts in every state but open.
            now_ns: when it ended.

        Returns:
            Whether the outcome counted.
        """
        if self._state == _HALF_OPEN:
            self._settle(now_ns)
        if (permit != 0 and permit >> _SERIAL_BITS != self._generation) or self._state == _OPEN:
            self.stale_permits += 1
            return False
        if self.mode == _DISABLED:
            self.ignored += 1
            return False
        if self._state == _HALF_OPEN and not self._take_probe(permit, now_ns):
            self.stale_permits += 1
            return False
        slow = duration_ns > self._slow_ns
        self._count(ok, slow, duration_ns)
        if self._state == _CLOSED:
            self._window.add(not ok, slow, now_ns)
            self._judge_window(now_ns)
        else:
            self._probes.outcomes.add(not ok, slow, now_ns)
            if self._probes.outcomes.calls >= self._minimum_probes:
                self._conclude(self._verdict_of_probes(), now_ns)
        return True

    def cut_off(self, duration_ns: int, permit: int, now_ns: int) -> bool:
        """Record a call that its deadline ended: a failure if it had run as long as a successful call usually takes.

        A call that had less time proves nothing: its permit comes back without an outcome.

        Returns:
            Whether the call counted.
        """
        if duration_ns >= self._durations.median_ns():
            return self.record(False, duration_ns, permit, now_ns)
        self.release(permit, now_ns)
        return False

    def release(self, permit: int, now_ns: int) -> bool:
        """Take back a permit without an outcome.

        Returns:
            Whether it was a permit of the present state.
        """
        if permit == 0:
            return False
        if self._state == _HALF_OPEN:
            self._settle(now_ns)
        is_current = permit >> _SERIAL_BITS == self._generation
        if not is_current or (self._state == _HALF_OPEN and not self._probes.take_back(permit)):
            self.stale_permits += 1
            return False
        self.ignored += 1
        return True

    # -- reading ------------------------------------------------------------------------------------------------

    def state(self, now_ns: int) -> int:
        """Return 0 closed, 1 open or 2 half open (see :data:`STATES`); changes nothing."""
        if self._state == _OPEN:
            return _HALF_OPEN if now_ns >= self._until_ns else _OPEN
        if self._state == _HALF_OPEN and self._is_over(now_ns):
            if self._verdict_at_limit() == _PROBES_SUCCEEDED:
                return _CLOSED
            return _HALF_OPEN if now_ns - self._until_ns >= self._open_time.next_ns else _OPEN
        return self._state

    def permits(self, now_ns: int) -> bool:
        """Return whether :meth:`try_acquire` would give a permit; changes only the ramp-up (see `RampUp`)."""
        if self._ramp.active and not self._ramp.would_admit(now_ns):
            self.rejected += 1
            return False
        return self._has_room(now_ns)

    def share(self, now_ns: int) -> float:
        """Return the share of the calls that pass while closed; changes nothing."""
        return self._ramp.share(now_ns)

    def retry_after_ns(self, now_ns: int) -> int:
        """Return the nanoseconds until a call may pass; 0 while all calls pass.

        Closed during the ramp-up: until all calls pass. Open: until half-open. Half open with all probes in flight:
        until half-open ends, at most one open time. Forced open, which has no known end: the longest open time.
        """
        if self._has_room(now_ns):
            return self._ramp.left_ns(now_ns)
        if self.mode == _FORCED_OPEN:
            return self._open_time.longest_ns
        left_ns = self._until_ns - now_ns
        if self._state == _HALF_OPEN:
            if left_ns <= 0:
                return left_ns + self._open_time.next_ns  # the circuit reopened at the end of half-open
            return min(left_ns, self._open_time.first_ns)
        return left_ns

    def snapshot(self, now_ns: int) -> tuple[int, ...]:
        """Return state, judged outcomes (calls, failures, slow), probes in flight, and counters at one moment."""
        state = self.state(now_ns)
        self._window.advance(now_ns)
        calls, failures, slow, in_flight = self._window.calls, self._window.failures, self._window.slow, 0
        if self._state == _HALF_OPEN and not self._is_over(now_ns):
            judged = self._probes.outcomes
            calls, failures, slow = judged.calls, judged.failures, judged.slow
            in_flight = len(self._probes.in_flight)
        elif self._state != _CLOSED and state != _OPEN:  # only time has led to this state: nothing is judged yet
            calls = failures = slow = 0
        return (
            state,
            self.mode,
            calls,
            failures,
            slow,
            in_flight,
            self.permitted,
            self.rejected,
            self.succeeded,
            self.failed,
            self.slow,
            self.ignored,
            self.stale_permits,
            self.trips,
            self.consecutive_trips,
            self.transitions.lost,
        )

    def next_event(self) -> tuple[int, ...] | None:
        """Remove the oldest transition: before, after, reason, instant, calls, failures, slow; ``None``: none."""
        return self.transitions.pop()

    # -- by hand ------------------------------------------------------------------------------------------------

    def set_mode(self, mode: int, now_ns: int) -> None:
        """Set a mode: automatic (a reset that keeps only the counters), metrics only, disabled, or forced open."""
        before = self.state(now_ns)
        if mode == _FORCED_OPEN:
            self._begin_open(NEVER_NS)
        else:
            self._begin_closed()
        self.transitions.add(before, self._state, _RESET - mode, now_ns, 0, 0, 0)
        self.mode = mode

    # -- inside -------------------------------------------------------------------------------------------------

    def _admit(self, now_ns: int) -> int:
        if self._ramp.active and not self._ramp.admits(now_ns):
            self.rejected += 1
            return 0
        self.permitted += 1
        return self._permit

    def _acquire_probe(self, now_ns: int) -> int:
        if self._state == _HALF_OPEN:
            self._settle(now_ns)
        if self._state == _CLOSED:
            return self._admit(now_ns)
        if self._state == _OPEN and now_ns >= self._until_ns:
            self._begin_half_open()
        if self._state == _OPEN or self._probes.is_full():
            self.rejected += 1
            return 0
        if self._probes.is_unused():
            self._until_ns = now_ns + self._half_open_ns
        self.permitted += 1
        return self._probes.begin(self._permit)

    def _take_probe(self, permit: int, now_ns: int) -> bool:
        """Return whether an outcome belongs to a probe, or to a call without a permit, which can be the first one."""
        if permit != 0:
            return self._probes.take_back(permit)
        if self._probes.is_unused():
            self._until_ns = now_ns + self._half_open_ns
        return True

    def _count(self, ok: bool, slow: bool, duration_ns: int) -> None:
        if slow:
            self.slow += 1
        if ok:
            self.succeeded += 1
            self._durations.add(duration_ns)
        else:
            self.failed += 1

    def _has_room(self, now_ns: int) -> bool:
        """Return whether the state lets a call pass, regardless of the ramp-up."""
        if self._state == _HALF_OPEN and not self._is_over(now_ns):
            return not self._probes.is_full()
        return self.state(now_ns) != _OPEN

    def _is_over(self, now_ns: int) -> bool:
        """Return whether the time of half-open has passed and there is something to judge."""
        return now_ns >= self._until_ns and not self._probes.is_unused()

    def _settle(self, now_ns: int) -> None:
        """End half-open if its time has passed, with the instant at which it passed."""
        if self._is_over(now_ns):
            self._conclude(self._verdict_at_limit(), self._until_ns)

    def _verdict_at_limit(self) -> int:
        return _HALF_OPEN_TIME_PASSED if self._probes.in_flight else self._verdict_of_probes()

    def _verdict_of_probes(self) -> int:
        probed = self._probes.outcomes
        cause = self._exceeds(probed.calls, probed.failures, probed.slow)
        return _PROBES_SUCCEEDED if cause == _NOTHING else _PROBES_FAILED + cause

    def _conclude(self, reason: int, at_ns: int) -> None:
        probed = self._probes.outcomes
        if reason == _PROBES_SUCCEEDED:
            self.transitions.add(_HALF_OPEN, _CLOSED, reason, at_ns, probed.calls, probed.failures, probed.slow)
            self._begin_closed()  # which forgets the outcomes
            self._ramp.begin(at_ns)
        else:
            self._open(reason, at_ns, probed.calls, probed.failures, probed.slow)

    def _judge_window(self, now_ns: int) -> None:
        window = self._window
        if window.calls < self._minimum_calls:
            return
        cause = self._exceeds(window.calls, window.failures, window.slow)
        if self.mode == _METRICS_ONLY:
            if cause != _NOTHING and not self._exceeded:
                self.transitions.add(_CLOSED, _CLOSED, cause, now_ns, window.calls, window.failures, window.slow)
            self._exceeded = cause != _NOTHING
        elif cause != _NOTHING:
            self._open(cause, now_ns, window.calls, window.failures, window.slow)

    def _exceeds(self, calls: int, failures: int, slow: int) -> int:
        # divide, do not multiply: 7 / 100 equals the 0.07 that a user writes, but 0.07 * 100 is more than 7
        if failures and failures / calls >= self._failure_rate:
            return _BY_FAILURES
        if slow and slow / calls >= self._slow_rate:
            return _BY_SLOWNESS
        return _NOTHING

    def _open(self, reason: int, at_ns: int, calls: int, failures: int, slow: int) -> None:
        before = self._state
        self._begin_open(at_ns + self._open_time.next_ns)
        self.trips += 1
        self.consecutive_trips += 1
        self.transitions.add(before, _OPEN, reason, at_ns, calls, failures, slow)

    def _begin_open(self, until_ns: int) -> None:
        self._generation += 1
        self._state = _OPEN
        self._ramp.stop()
        self._until_ns = until_ns

    def _begin_half_open(self) -> None:
        self._generation += 1
        self._permit = self._generation << _SERIAL_BITS
        self._state = _HALF_OPEN
        self._probes.clear()
        self._open_time.lengthen()
        self.transitions.add(_OPEN, _HALF_OPEN, _OPEN_TIME_PASSED, self._until_ns, 0, 0, 0)

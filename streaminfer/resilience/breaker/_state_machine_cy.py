# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The circuit breaker's state machine: whether a call may pass, and what its outcome changes.

The idea (Nygard's circuit breaker, with resilience4j's rules where the documentation's table does not say otherwise):
*closed*, calls pass and their outcomes fill a window; when enough of them failed, or were slow, the circuit *opens* and
refuses; after a time, which doubles with each trip in a row, it is *half open* and lets a few probes through, whose
outcomes close or reopen it.

Three things keep it from getting stuck:

* *Generations.* Each change of state begins a generation, and a permit carries the one that it was given in. A result
  that comes after the state has changed says nothing about the present one and is ignored.
* *Probes are owed.* Each probe's permit is in a table until it comes back: with an outcome, or unused, when its place
  is free again. One that comes back twice is ignored the second time.
* *Half-open ends.* ``half_open_ns`` after its first probe what is known decides: a probe that is still out speaks for a
  hang, so the circuit reopens; with none out the outcomes so far are judged, few as they are. With no outcome and
  nothing out there is nothing to wait for: the next call is a probe as if it were the first.

No timer: time passes when somebody asks. What the clock alone changes is worked out from instants that are fixed when a
state begins (the jitter of the next open time included), so that reading the state changes nothing and yet is exact.

Invariants: probes out + probes judged ≤ ``half_open_calls``, unless outcomes are recorded without a permit; the
generation never falls; ``OPEN`` is left by a call or by force, never by a result; a trip happens only in a record or at
the limit of half-open.

Cost: O(1) in the closed state, O(``half_open_calls``) for a probe.

Threads: in the compiled build under the interpreter lock every method is atomic; between its first and its last write
none calls Python, drops a reference or allocates anything that the garbage collector tracks. Events are written into a
ring of numbers for the same reason, and told to listeners later by the shell. Run uncompiled, or without an interpreter
lock, a caller takes a lock around each call, as ``CircuitBreaker`` does.

One source, compiled with the C types of ``_state_machine_cy.pxd`` or run as it is. The directives above are safe:
indexes come from loops over a ring's own length or are kept below it.
"""

from __future__ import annotations

from array import array
from collections.abc import MutableSequence

from streaminfer._internal.instants import NEVER_NS
from streaminfer.resilience.breaker._outcome_window_cy import OutcomeWindow

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
    "forced_open",
    "disabled",
    "metrics_only",
    "reset",
)

# C variables in the compiled module, not visible from Python
_NEVER = NEVER_NS
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
_FORCED = 7
_NOTHING = -1
_SERIAL_BITS = 20
_SERIALS = 2**20 - 1
_EVENTS_KEPT = 64
_EVENT_FIELDS = 7
_SUCCESSES_KEPT = 16  # a power of two
_FEWEST_SUCCESSES = 3  # of fewer the median is any of them: one call that loaded the model, for instance
_JITTER = 0.1
_LCG_SPAN = 2**31


class BreakerMachine:
    """Closed, open or half open.

    The arguments are taken as they are; ``CircuitBreaker`` checks them.

    Args:
        failure_rate: share of failures at which it trips, above 0 and at most 1.
        slow_rate: share of slow calls at which it trips, above 0 and at most 1.
        slow_ns: a longer call is slow; :data:`NEVER_NS`: none is.
        window: the outcomes it judges by while closed.
        minimum_calls: below so many outcomes nothing is judged, unless the window, or half-open, cannot hold so many.
        open_ns: how long it refuses after the first trip.
        max_open_ns: to what that doubles, trip by trip; at least ``open_ns``.
        half_open_calls: how many probes half-open lets through.
        half_open_ns: how long after its first probe half-open ends.
        seed: of the jitter, 0 ≤ seed < 2^31.

    Attributes:
        mode: 0 automatic, 1 metrics only, 2 disabled, 3 forced open (see :data:`MODES`).
        listening: whether events are kept for somebody.
        pending: how many events wait to be told.
        lost: how many were overwritten before they were told.
        permitted: permits given.
        refused: calls refused.
        succeeded: outcomes that counted as success.
        failed: outcomes that counted as failure.
        slow: outcomes that were slow.
        released: permits that came back without an outcome.
        stale: outcomes and permits that came after their state, or twice.
        trips: how often it opened.
        consecutive_trips: how often since it was last closed.
    """

    __slots__ = (
        "_base_open_ns",
        "_event_head",
        "_events",
        "_exceeded",
        "_failure_rate",
        "_generation",
        "_half_open_calls",
        "_half_open_ns",
        "_max_open_ns",
        "_minimum_calls",
        "_minimum_probes",
        "_next_open_ns",
        "_open_ns",
        "_out",
        "_permit",
        "_probe_failures",
        "_probe_slow",
        "_probes",
        "_random",
        "_serial",
        "_slots",
        "_slow_ns",
        "_slow_rate",
        "_state",
        "_successes",
        "_took_ns",
        "_until_ns",
        "_window",
        "consecutive_trips",
        "failed",
        "listening",
        "lost",
        "mode",
        "pending",
        "permitted",
        "refused",
        "released",
        "slow",
        "stale",
        "succeeded",
        "trips",
    )

    _slots: MutableSequence[int]
    _took_ns: MutableSequence[int]
    _events: MutableSequence[int]
    _permit: int
    _out: int
    _probes: int
    _probe_failures: int
    _probe_slow: int
    _serial: int
    _until_ns: int
    _base_open_ns: int
    _next_open_ns: int
    _exceeded: bool

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
        seed: int,
    ) -> None:
        self._failure_rate = failure_rate
        self._slow_rate = slow_rate
        self._slow_ns = slow_ns
        self._window = window
        never_full = 0 < window.capacity < minimum_calls
        self._minimum_calls = window.capacity if never_full else minimum_calls
        self._minimum_probes = minimum_calls if minimum_calls < half_open_calls else half_open_calls
        self._open_ns = open_ns
        self._max_open_ns = max_open_ns
        self._half_open_calls = half_open_calls
        self._half_open_ns = half_open_ns
        self._random = seed
        self._slots = array("q", [0]) * half_open_calls
        self._events = array("q", [0]) * (_EVENTS_KEPT * _EVENT_FIELDS)
        self._event_head = 0
        self._took_ns = array("q", [0]) * _SUCCESSES_KEPT
        self._successes = 0
        self._generation = 0
        self._state = _CLOSED
        self.mode = _AUTOMATIC
        self.listening = False
        self.pending = 0
        self.lost = 0
        self.permitted = 0
        self.refused = 0
        self.succeeded = 0
        self.failed = 0
        self.slow = 0
        self.released = 0
        self.stale = 0
        self.trips = 0
        self.consecutive_trips = 0
        self._begin_closed()

    # -- calls --------------------------------------------------------------------------------------------------

    def try_acquire(self, now_ns: int) -> int:
        """A permit for one call, which comes back through :meth:`record`, :meth:`cut_off` or :meth:`release`.

        Returns:
            The permit, above 0; 0: refused.
        """
        if self._state == _CLOSED:
            self.permitted += 1
            return self._permit
        return self._acquire_probe(now_ns)

    def record(self, ok: bool, duration_ns: int, permit: int, now_ns: int) -> bool:
        """The outcome of a call.

        Args:
            ok: it succeeded.
            duration_ns: how long it took.
            permit: its permit; 0: a call without one, which counts in whatever state there is, except open.
            now_ns: when it ended.

        Returns:
            Whether it counted.
        """
        if self._state == _HALF_OPEN:
            self._settle(now_ns)
        if (permit != 0 and permit >> _SERIAL_BITS != self._generation) or self._state == _OPEN:
            self.stale += 1
            return False
        if self.mode == _DISABLED:
            self.released += 1
            return False
        if self._state == _HALF_OPEN and not self._take_probe(permit, now_ns):
            self.stale += 1
            return False
        slow = duration_ns > self._slow_ns
        self._count(ok, slow, duration_ns)
        if self._state == _CLOSED:
            self._window.add(not ok, slow, now_ns)
            self._judge_window(now_ns)
        else:
            self._count_probe(ok, slow)
            if self._probes >= self._minimum_probes:
                self._judge_probes(now_ns)
        return True

    def cut_off(self, duration_ns: int, permit: int, now_ns: int) -> bool:
        """A call that was ended by its deadline: a failure if it had run as long as a successful one usually takes.

        One that had less time than that proves nothing: its permit comes back unused.

        Returns:
            Whether it counted.
        """
        if duration_ns >= self._usual_ns():
            return self.record(False, duration_ns, permit, now_ns)
        self.release(permit, now_ns)
        return False

    def release(self, permit: int, now_ns: int) -> bool:
        """A permit that comes back without an outcome.

        Returns:
            Whether it was one of the present state.
        """
        if permit == 0:
            return False
        if self._state == _HALF_OPEN:
            self._settle(now_ns)
        if permit >> _SERIAL_BITS != self._generation or (self._state == _HALF_OPEN and not self._take_back(permit)):
            self.stale += 1
            return False
        self.released += 1
        return True

    # -- reading ------------------------------------------------------------------------------------------------

    def state(self, now_ns: int) -> int:
        """0 closed, 1 open, 2 half open (see :data:`STATES`); changes nothing."""
        if self._state == _OPEN:
            return _HALF_OPEN if now_ns >= self._until_ns else _OPEN
        if self._state == _HALF_OPEN and self._is_over(now_ns):
            if self._verdict_at_limit() == _PROBES_SUCCEEDED:
                return _CLOSED
            return _HALF_OPEN if now_ns - self._until_ns >= self._next_open_ns else _OPEN
        return self._state

    def permits(self, now_ns: int) -> bool:
        """Whether :meth:`try_acquire` would give a permit; changes nothing."""
        if self._state == _HALF_OPEN and not self._is_over(now_ns):
            return self._out + self._probes < self._half_open_calls
        return self.state(now_ns) != _OPEN

    def retry_after_ns(self, now_ns: int) -> int:
        """Nanoseconds until asking again makes sense; 0 while calls pass.

        Open: until half-open. Half open with all probes out: until it ends, at most one open time. Forced open, which
        nobody knows the end of: the longest open time.
        """
        if self.permits(now_ns):
            return 0
        if self.mode == _FORCED_OPEN:
            return self._max_open_ns
        left_ns = self._until_ns - now_ns
        if self._state == _HALF_OPEN:
            if left_ns <= 0:
                return left_ns + self._next_open_ns  # reopened when its time was up
            if left_ns > self._open_ns:
                return self._open_ns
        return left_ns

    def snapshot(self, now_ns: int) -> tuple[int, ...]:
        """State, outcomes that it is judged by (calls, failures, slow), probes out, and counters, of one moment."""
        state = self.state(now_ns)
        self._window.advance(now_ns)
        probing = self._state == _HALF_OPEN
        return (
            state,
            self.mode,
            self._probes if probing else self._window.calls,
            self._probe_failures if probing else self._window.failures,
            self._probe_slow if probing else self._window.slow,
            self._out if probing else 0,
            self.permitted,
            self.refused,
            self.succeeded,
            self.failed,
            self.slow,
            self.released,
            self.stale,
            self.trips,
            self.consecutive_trips,
            self.lost,
        )

    def next_event(self) -> tuple[int, ...] | None:
        """The oldest event that waits: state before, after, reason, instant, calls, failures, slow; ``None``: none."""
        if self.pending == 0:
            return None
        place = self._event_head * _EVENT_FIELDS
        before = self._events[place]
        after = self._events[place + 1]
        reason = self._events[place + 2]
        at_ns = self._events[place + 3]
        calls = self._events[place + 4]
        failures = self._events[place + 5]
        slow = self._events[place + 6]
        self._event_head = (self._event_head + 1) & (_EVENTS_KEPT - 1)
        self.pending -= 1
        return (before, after, reason, at_ns, calls, failures, slow)

    # -- by hand ------------------------------------------------------------------------------------------------

    def set_mode(self, mode: int, now_ns: int) -> None:
        """Automatic (a reset: closed, nothing remembered but the counters), metrics only, disabled, or forced open."""
        before = self.state(now_ns)
        if mode == _FORCED_OPEN:
            self._generation += 1
            self._state = _OPEN
            self._until_ns = _NEVER
            self._note(before, _OPEN, _FORCED, now_ns, 0, 0, 0)
        else:
            self._begin_closed()
            reason = _FORCED + 3 if mode == _AUTOMATIC else _FORCED + 2 if mode == _METRICS_ONLY else _FORCED + 1
            self._note(before, _CLOSED, reason, now_ns, 0, 0, 0)
        self.mode = mode

    # -- inside -------------------------------------------------------------------------------------------------

    def _acquire_probe(self, now_ns: int) -> int:
        if self._state == _HALF_OPEN:
            self._settle(now_ns)
        if self._state == _CLOSED:
            self.permitted += 1
            return self._permit
        if self._state == _OPEN and now_ns >= self._until_ns:
            self._begin_half_open(now_ns)
        if self._state == _OPEN or self._out + self._probes >= self._half_open_calls:
            self.refused += 1
            return 0
        if self._out == 0 and self._probes == 0:
            self._until_ns = now_ns + self._half_open_ns
        self._serial = self._serial + 1 if self._serial < _SERIALS else 1
        permit = self._permit | self._serial
        for place in range(self._half_open_calls):
            if self._slots[place] == 0:
                self._slots[place] = permit
                break
        self._out += 1
        self.permitted += 1
        return permit

    def _take_back(self, permit: int) -> bool:
        """Strikes a probe off the table, if it is on it."""
        for place in range(self._half_open_calls):
            if self._slots[place] == permit:
                self._slots[place] = 0
                self._out -= 1
                return True
        return False

    def _take_probe(self, permit: int, now_ns: int) -> bool:
        """Whether an outcome is that of a probe, or of a call without a permit, which may be the first to tell."""
        if permit != 0:
            return self._take_back(permit)
        if self._out == 0 and self._probes == 0:
            self._until_ns = now_ns + self._half_open_ns
        return True

    def _count(self, ok: bool, slow: bool, duration_ns: int) -> None:
        if slow:
            self.slow += 1
        if not ok:
            self.failed += 1
            return
        self.succeeded += 1
        self._took_ns[self._successes & (_SUCCESSES_KEPT - 1)] = duration_ns
        self._successes += 1

    def _usual_ns(self) -> int:
        """What half of the last successes took at least; 0: too few are known.

        The median, not the mean: one call that loads a model would raise that above every deadline, and calls that
        hang would count for nothing from then on.
        """
        known = self._successes if self._successes < _SUCCESSES_KEPT else _SUCCESSES_KEPT
        if known < _FEWEST_SUCCESSES:
            return 0
        for place in range(known):
            below = 0
            for other in range(known):
                if self._took_ns[other] < self._took_ns[place] or (
                    self._took_ns[other] == self._took_ns[place] and other < place
                ):
                    below += 1
            if below == known >> 1:
                break
        return self._took_ns[place]

    def _count_probe(self, ok: bool, slow: bool) -> None:
        self._probes += 1
        if not ok:
            self._probe_failures += 1
        if slow:
            self._probe_slow += 1

    def _is_over(self, now_ns: int) -> bool:
        """Half-open's time is up, and there is something to decide by."""
        return now_ns >= self._until_ns and self._out + self._probes > 0

    def _settle(self, now_ns: int) -> None:
        """What the clock alone did to half-open since somebody last asked, at the instant at which it did."""
        if not self._is_over(now_ns):
            return
        reason = self._verdict_at_limit()
        at_ns = self._until_ns
        if reason == _PROBES_SUCCEEDED:
            self._close(at_ns)
        else:
            self._open(reason, at_ns, self._probes, self._probe_failures, self._probe_slow)

    def _verdict_at_limit(self) -> int:
        if self._out:
            return _HALF_OPEN_TIME_PASSED
        return self._verdict_of_probes()

    def _verdict_of_probes(self) -> int:
        why = self._exceeds(self._probes, self._probe_failures, self._probe_slow)
        return _PROBES_SUCCEEDED if why == _NOTHING else _PROBES_FAILED + why

    def _judge_probes(self, now_ns: int) -> None:
        reason = self._verdict_of_probes()
        if reason == _PROBES_SUCCEEDED:
            self._close(now_ns)
        else:
            self._open(reason, now_ns, self._probes, self._probe_failures, self._probe_slow)

    def _judge_window(self, now_ns: int) -> None:
        window = self._window
        if window.calls < self._minimum_calls:
            return
        why = self._exceeds(window.calls, window.failures, window.slow)
        if self.mode == _METRICS_ONLY:
            if why != _NOTHING and not self._exceeded:
                self._note(_CLOSED, _CLOSED, why, now_ns, window.calls, window.failures, window.slow)
            self._exceeded = why != _NOTHING
        elif why != _NOTHING:
            self._open(why, now_ns, window.calls, window.failures, window.slow)

    def _exceeds(self, calls: int, failures: int, slow: int) -> int:
        # a division, not a product: 7 / 100 is the number that a user writes as 0.07, and 0.07 * 100 is more than 7
        if failures and failures / calls >= self._failure_rate:
            return _BY_FAILURES
        if slow and slow / calls >= self._slow_rate:
            return _BY_SLOWNESS
        return _NOTHING

    def _begin_closed(self) -> None:
        self._generation += 1
        self._permit = self._generation << _SERIAL_BITS
        self._state = _CLOSED
        self._window.clear()
        self._exceeded = False
        self._probes = 0
        self._probe_failures = 0
        self._probe_slow = 0
        self._out = 0
        self._serial = 0
        self._until_ns = 0
        self.consecutive_trips = 0
        self._base_open_ns = self._open_ns
        self._draw()

    def _close(self, at_ns: int) -> None:
        calls = self._probes
        failures = self._probe_failures
        slow = self._probe_slow
        self._begin_closed()
        self._note(_HALF_OPEN, _CLOSED, _PROBES_SUCCEEDED, at_ns, calls, failures, slow)

    def _open(self, reason: int, at_ns: int, calls: int, failures: int, slow: int) -> None:
        before = self._state
        self._generation += 1
        self._state = _OPEN
        self._until_ns = at_ns + self._next_open_ns
        self.trips += 1
        self.consecutive_trips += 1
        self._note(before, _OPEN, reason, at_ns, calls, failures, slow)

    def _begin_half_open(self, now_ns: int) -> None:
        self._generation += 1
        self._permit = self._generation << _SERIAL_BITS
        self._state = _HALF_OPEN
        self._probes = 0
        self._probe_failures = 0
        self._probe_slow = 0
        self._out = 0
        for place in range(self._half_open_calls):
            self._slots[place] = 0
        if self._base_open_ns >= self._max_open_ns - self._base_open_ns:
            self._base_open_ns = self._max_open_ns
        else:
            self._base_open_ns *= 2
        self._draw()
        self._note(_OPEN, _HALF_OPEN, _OPEN_TIME_PASSED, now_ns, 0, 0, 0)

    def _draw(self) -> None:
        """The next open time: jitter shortens it by up to a tenth, so that not all clients come back at once."""
        self._random = (self._random * 1103515245 + 12345) & (_LCG_SPAN - 1)
        shorter = _JITTER * self._random / _LCG_SPAN
        self._next_open_ns = self._base_open_ns - int(shorter * self._base_open_ns)

    def _note(self, before: int, after: int, reason: int, at_ns: int, calls: int, failures: int, slow: int) -> None:
        if not self.listening:
            return
        if self.pending == _EVENTS_KEPT:  # a listener that does not come back: the newest events are worth more
            self._event_head = (self._event_head + 1) & (_EVENTS_KEPT - 1)
            self.pending -= 1
            self.lost += 1
        place = ((self._event_head + self.pending) & (_EVENTS_KEPT - 1)) * _EVENT_FIELDS
        self._events[place] = before
        self._events[place + 1] = after
        self._events[place + 2] = reason
        self._events[place + 3] = at_ns
        self._events[place + 4] = calls
        self._events[place + 5] = failures
        self._events[place + 6] = slow
        self.pending += 1

# cython: cdivision=True, cpow=True
"""The concurrency limit's state machine: how many calls may be under way at once, learned from how long they wait.

*Idea.* By Little's law a service that completes ``C`` calls a second has ``C · T`` of them under way when each takes
``T``. So the limit at which a call takes the time that we aim for is ``limit · goal / measured``: that ratio is the
gradient. What is measured matters. Latency alone misleads where calls share batches: a bigger batch takes longer and is
*not* congested, and a limit that shrinks because of that makes batches small and the service slow. Hence a call's time
is split at the instant at which its batch began: it *waited* ``q`` and was then *served* for ``s``. The service time
stands on both sides, ``(s + q_goal) / (s + q)``, so only waiting can lower the limit, and however long a batch takes,
waiting for one batch is not congestion: the next batch must wait while one runs, or the worker would idle. ``q_goal``
is never less than that. Where nothing tells waiting from service, ``s`` is the latency without load: the least mean of
any round lately.

*Rounds.* One decision per round, as TCP decides once a round trip: a round counts only calls that began after the
decision before, so each decision sees what the one before it did. It takes ten samples, or half as many as the limit
where that is less, and ends where a batch ends; up to thirty where nothing tells waiting from service.

*Steps.* Down: at once to where Little's law points, at most by half. Up: towards it, at most ``√limit`` a round, and
only while at least half the limit was in use: what is not used proves nothing. A call that its deadline ended counts as
twice the goal, or as all the time that it had where that is more; if it had less than the service time alone, it says
nothing. A refusal by what stands behind lowers the limit by a tenth.

*No-load latency, where there is no batcher.* It is forgotten after a window, or a model that became slower would be
throttled for ever; and re-measured, when calls take longer than it and the limit has refused more of them than that
costs, by one round at a quarter of the limit: a limit that refuses nothing does no harm. With a goal of twice the
no-load latency, a quarter is a load under which nothing waits. (A half would prove nothing: each measurement would
confirm any standing queue.) When calls take little more than a quarter then, there was a queue even at that, and the
probe goes on at half of it, until calls take no less. What was measured before the first probe stays in doubt until the
limit refuses a call.
A limit that was lowered by a quarter while calls take as long as before found no queue: it is the service that became
slower. Latencies that vary, without waiting, must not lower the limit: the gradient takes the mean less its standard
error, and the least of the means is the least with twice that error added, or the luckiest round would set the goal.

*An SLO that burns* lowers the goal, not the limit: the limit then settles lower and cannot fall without end while the
alarm lasts. Afterwards the goal returns over half a minute.

*Deadlines.* Whoever has less time than the fastest answer of this and the last round is refused, unless nothing is
under way: then it is let through, or one stall could never be unlearned.

*Drain time.* Calls under way times the measured time between completions, both of busy time alone; once nothing has
come back for longer than that, the time since.

Sources: the split is our own; rounds and the unit of increase are TCP Vegas' (Brakmo and Peterson 1995); gradient,
``√limit`` and "half in use" are Gradient2's (Netflix concurrency-limits); the probe is BBR's ProbeRTT (Cardwell et al.
2016).

*Invariants.* ``in_flight`` is the number of permits that are out; ``min_limit ≤ limit ≤ max_limit``; each permit that
comes back is counted in exactly one of ``answered``, ``timed_out``, ``overloaded`` and ``released``.

*Cost.* O(1), and O(priority) for what is not urgent.

Threads: in the compiled build under the interpreter lock every method is atomic: none calls Python or drops a reference
between its first and last write. Otherwise a caller takes a lock around each, as ``ConcurrencyLimit`` does.

One source, compiled with the C types of ``_state_machine_cy.pxd`` or run as it is.
"""

from __future__ import annotations

from streaminfer._internal.instants import NEVER_NS

__all__ = ["FULL", "LATE", "UNKNOWN", "LimitMachine"]

FULL = 0
LATE = -1
UNKNOWN = -1

# C variables in the compiled module, not visible from Python
_NEVER = NEVER_NS
_FULL = FULL
_LATE = LATE
_PASSES = 1
_SAMPLES = 10
_PLAIN_SAMPLES = 30
_LOWEST = 0.5  # to what share one round may lower the limit
_BACK_OFF = 0.9
_OF_OBJECTIVE = 0.7  # the mean; the slowest of a round wait longer than that
_BATCHES = 2.0  # that a call may wait where there is no objective
_UNLOADED = 1.25  # times the no-load latency: no queue worth speaking of
_STILL_QUEUED = 0.375
_STILL_FALLING = 0.75
_LATE_COUNTS = 2.0
_PROBE = 0.25
_LOWERED = 0.75
_AS_BEFORE = 0.9
_WINDOW_NS = 5e9
_WINDOW_CALLS = 100.0  # a window is at least so many latencies, so that probes cost little
_REFUSED_FOR_PROBE = 100  # a probe refuses some 50 calls
_DOUBT = 2.0  # standard errors that are added to a mean before it counts as the least one
_RETURN_NS = 30e9


class LimitMachine:
    """How many calls may be under way at once.

    The arguments are taken as they are; ``ConcurrencyLimit`` checks them.

    Args:
        limit: where it starts, or stays.
        min_limit: it never falls below.
        max_limit: it never rises above.
        adaptive: whether it learns.
        reserve: the share of the limit that each step of priority leaves to more urgent calls, 0 ≤ reserve < 1.
        tighten: to what share of itself the goal falls while the SLO burns, above 0 and at most 1.
        delay_ns: how long a call may wait; negative: from the objective, else from the service time.

    Attributes:
        limit: the limit that it has learned.
        allowed: how many may be under way now: the limit, or less during a probe or while an SLO burns.
        in_flight: how many are.
        admitted: permits given.
        refused: calls refused because there was no place.
        late: calls refused because they could not be on time.
        answered: permits that came back with an answer.
        timed_out: permits of calls that their deadline ended.
        overloaded: permits of calls that were refused further in.
        released: permits that came back with nothing learned.
        stale: permits that came back and were not out.
        rounds: decisions made.
        goal_ns: what a call should take at most, waiting included; 0.0 before the first decision.
        waited_ns: mean wait of the last round; 0.0 where nothing tells it from service.
        service_ns: mean service time of the last round, or the no-load latency.
        interval_ns: recent busy time per completion; 0.0 before the first decision.
        burning: whether the SLO burns.
    """

    __slots__ = (
        "_adaptive",
        "_batch_ns",
        "_began_ns",
        "_delay_ns",
        "_drops",
        "_fastest_before_ns",
        "_fastest_ns",
        "_freed",
        "_freed_ns",
        "_full_ns",
        "_idle_ns",
        "_idle_since_ns",
        "_late_calls",
        "_late_ns",
        "_lowered_at_ns",
        "_lowest_ns",
        "_max_limit",
        "_min_limit",
        "_needed",
        "_needed_plain",
        "_objective_ns",
        "_peak",
        "_plain_calls",
        "_plain_ns",
        "_plain_squares",
        "_probe_share",
        "_probed",
        "_probing",
        "_queued_calls",
        "_queued_ns",
        "_refused_before",
        "_reserve",
        "_round_ns",
        "_served_ns",
        "_settled",
        "_tight",
        "_tighten",
        "_unloaded_ns",
        "_usual_ns",
        "_window_ns",
        "admitted",
        "allowed",
        "answered",
        "burning",
        "goal_ns",
        "in_flight",
        "interval_ns",
        "late",
        "limit",
        "overloaded",
        "refused",
        "released",
        "rounds",
        "service_ns",
        "stale",
        "timed_out",
        "waited_ns",
    )

    _queued_ns: float
    _served_ns: float
    _plain_ns: float
    _plain_squares: float
    _late_ns: float
    _queued_calls: int
    _plain_calls: int
    _late_calls: int
    _drops: int
    _freed: int
    _peak: int
    _began_ns: int
    _needed: int
    _needed_plain: int
    _idle_ns: int
    allowed: int

    def __init__(
        self,
        limit: float,
        min_limit: int,
        max_limit: int,
        adaptive: bool,
        reserve: float,
        tighten: float,
        delay_ns: float,
    ) -> None:
        self.limit = limit
        self._min_limit = min_limit
        self._max_limit = max_limit
        self._adaptive = adaptive
        self._reserve = reserve
        self._tighten = tighten
        self._delay_ns = delay_ns
        self._objective_ns = 0.0
        self._tight = 1.0
        self._probing = False
        self._window_ns = 0.0
        self._lowest_ns = 0.0
        self._unloaded_ns = 0.0
        self._usual_ns = 0.0
        self._lowered_at_ns = 0.0
        self._full_ns = 0.0
        self._settled = False
        self._probed = False
        self._probe_share = _PROBE
        self._refused_before = 0
        self._fastest_ns = 0
        self._fastest_before_ns = 0
        self._batch_ns = 0
        self._idle_since_ns = 0
        self._freed_ns = 0
        self.burning = False
        self.in_flight = 0
        self.admitted = 0
        self.refused = 0
        self.late = 0
        self.answered = 0
        self.timed_out = 0
        self.overloaded = 0
        self.released = 0
        self.stale = 0
        self.rounds = 0
        self.goal_ns = 0.0
        self.waited_ns = 0.0
        self.service_ns = 0.0
        self.interval_ns = 0.0
        self._apply()
        self._begin_round(0)

    # -- calls --------------------------------------------------------------------------------------------------

    def try_acquire(self, priority: int, deadline_ns: int, now_ns: int) -> int:
        """A permit for one call, which comes back through one of the next four methods.

        Args:
            priority: a lower number is more urgent; 0 and below may use the whole limit.
            deadline_ns: of the call; :data:`NEVER_NS`: it has none.
            now_ns: the present instant.

        Returns:
            The permit, above 0; :data:`FULL` or :data:`LATE`.
        """
        verdict = self.look(priority, deadline_ns, now_ns)
        if verdict != _PASSES:
            if verdict == _LATE:
                self.late += 1
            else:
                self.refused += 1
            return verdict
        if self.in_flight == 0:
            if self.admitted == 0:
                self._round_ns = now_ns
            elif now_ns > self._idle_since_ns:
                self._idle_ns += now_ns - self._idle_since_ns
            self._freed_ns = now_ns
        self.in_flight += 1
        if self.in_flight > self._peak:
            self._peak = self.in_flight
        self.admitted += 1
        return now_ns if now_ns > 0 else 1

    def look(self, priority: int, deadline_ns: int, now_ns: int) -> int:
        """What :meth:`try_acquire` would say: 1, :data:`FULL` or :data:`LATE`; changes nothing."""
        if self.in_flight >= self.allowed or (priority > 0 and self.in_flight >= self._places(priority)):
            return _FULL
        if deadline_ns != _NEVER and self.in_flight > 0 and deadline_ns < now_ns + self._fastest_before_ns:
            return _LATE
        return _PASSES

    def refuse_late(self) -> None:
        """Counts a call that was refused since what stands behind cannot answer it in time."""
        self.late += 1

    def is_tight(self, deadline_ns: int, now_ns: int) -> bool:
        """Whether a deadline leaves less than twice the time that calls took lately, while some are under way."""
        return deadline_ns != _NEVER and self.in_flight > 0 and deadline_ns < now_ns + 2.0 * self._usual_ns

    def answer(self, permit: int, queued_ns: int, batch_ns: int, now_ns: int) -> bool:
        """A call that was answered.

        Args:
            permit: its permit.
            queued_ns: how long it waited before its batch began; :data:`UNKNOWN` where nothing tells.
            batch_ns: when its batch began: what tells batches apart.
            now_ns: the present instant.

        Returns:
            Whether a round ended.
        """
        self._take_back(now_ns)
        self.answered += 1
        took_ns = now_ns - permit
        if took_ns < 0:
            took_ns = 0
        if took_ns < self._fastest_ns:
            self._fastest_ns = took_ns
            if took_ns < self._fastest_before_ns:
                self._fastest_before_ns = took_ns
        if permit < self._began_ns:
            return False
        if queued_ns < 0:
            self._plain_ns += took_ns
            self._plain_squares += took_ns * 1.0 * took_ns
            self._plain_calls += 1
            return self._end_if_enough(now_ns)
        if batch_ns != self._batch_ns and self._end_if_enough(now_ns):
            return True
        self._batch_ns = batch_ns
        if queued_ns > took_ns:
            queued_ns = took_ns
        self._queued_ns += queued_ns
        self._served_ns += took_ns - queued_ns
        self._queued_calls += 1
        return False

    def time_out(self, permit: int, allowed_ns: int, now_ns: int) -> bool:
        """A call that its deadline ended: it would have taken longer than ``allowed_ns``, all the time that it had.

        Returns:
            Whether a round ended.
        """
        self._take_back(now_ns)
        self.timed_out += 1
        if permit < self._began_ns or allowed_ns < self.service_ns:
            return False
        least_ns = _LATE_COUNTS * self.goal_ns
        self._late_ns += allowed_ns if allowed_ns > least_ns else least_ns
        self._late_calls += 1
        return self._end_if_enough(now_ns)

    def overload(self, permit: int, now_ns: int) -> bool:
        """A call that was refused further in for want of a place.

        Returns:
            Whether a round ended.
        """
        self._take_back(now_ns)
        self.overloaded += 1
        if permit < self._began_ns:
            return False
        self._drops += 1
        return self._end_if_enough(now_ns)

    def release(self, now_ns: int) -> None:
        """A call of which nothing can be learned: it failed, was cancelled, or never made."""
        self._take_back(now_ns)
        self.released += 1

    def discard(self) -> None:
        """Counts a permit that came back and was not out: the caller keeps a list of them."""
        self.stale += 1

    # -- what it aims for ---------------------------------------------------------------------------------------

    def aim(self, objective_ns: float, burning: bool) -> None:
        """Takes over the latency objective, 0.0 for none, and whether its budget burns."""
        self._objective_ns = objective_ns
        self.burning = burning
        if burning:
            self._tight = self._tighten
        self._apply()

    def drain_ns(self, now_ns: int) -> int:
        """Nanoseconds in which what is under way is expected to be done; 0 with nothing under way."""
        if self.in_flight == 0:
            return 0
        drain_ns = self.interval_ns * self.in_flight
        if self.interval_ns == 0.0 and self._freed > 0:  # the first round
            drain_ns = (self._freed_ns - self._round_ns - self._idle_ns) * 1.0 / self._freed * self.in_flight
        lull_ns = now_ns - self._freed_ns
        return int(lull_ns) if lull_ns > drain_ns else int(drain_ns)

    # -- inside -------------------------------------------------------------------------------------------------

    def _places(self, priority: int) -> int:
        places = self.allowed * 1.0
        while priority > 0 and places > 1.0:
            places *= 1.0 - self._reserve
            priority -= 1
            if self._reserve == 0.0:
                break
        return int(places) if places >= 1.0 else 1

    def _take_back(self, now_ns: int) -> None:
        self.in_flight -= 1
        self._freed += 1
        self._freed_ns = now_ns
        if self.in_flight == 0:
            self._idle_since_ns = now_ns
        if self._probing and self._began_ns == _NEVER and self.in_flight <= self.allowed:
            self._began_ns = now_ns

    def _end_if_enough(self, now_ns: int) -> bool:
        needed = self._needed_plain if self._plain_calls > 0 else self._needed
        if self._queued_calls + self._plain_calls + self._late_calls + self._drops < needed:
            return False
        self._end_round(now_ns)
        return True

    def _end_round(self, now_ns: int) -> None:
        self.rounds += 1
        busy_ns = now_ns - self._round_ns - self._idle_ns
        if busy_ns > 0:
            interval_ns = busy_ns / self._freed
            self.interval_ns = interval_ns if self.interval_ns == 0.0 else (self.interval_ns + interval_ns) / 2.0
        self._return_goal(now_ns)
        calls = self._queued_calls + self._plain_calls + self._late_calls
        if calls > 0:
            mean_ns = (self._queued_ns + self._served_ns + self._plain_ns + self._late_ns) / calls
            self._usual_ns = mean_ns
            least_ns = mean_ns - self._plain_error_ns()
            probed = self._probing
            self._measure(least_ns, now_ns)
            if self._adaptive and not probed and least_ns > 0.0:
                before = self.limit
                self._step(self.goal_ns / least_ns)  # 0 before the first answer: nothing but late calls
                # right after a probe the queue has not filled up to the limit yet: that round compares with nothing
                lowered = self.limit <= _LOWERED * before and not self._probed
                self._lowered_at_ns = mean_ns if lowered else 0.0
            self._probed = probed
        elif self._adaptive:
            self._step(1.0)
        self._apply()
        self._fastest_before_ns = self._fastest_ns if self._fastest_ns != _NEVER else 0
        self._begin_round(now_ns)

    def _plain_error_ns(self) -> float:
        """The standard error of the mean latency; 0.0 where waiting is told from service."""
        if self._plain_calls == 0 or self._queued_calls > 0:
            return 0.0
        mean_ns = self._plain_ns / self._plain_calls
        variance = self._plain_squares / self._plain_calls - mean_ns * mean_ns
        return (variance / self._plain_calls) ** 0.5 if variance > 0.0 else 0.0

    def _return_goal(self, now_ns: int) -> None:
        if not self.burning and self._tight < 1.0:
            self._tight += (now_ns - self._round_ns) / _RETURN_NS * (1.0 - self._tighten)
            if self._tight > 1.0:
                self._tight = 1.0

    def _measure(self, least_ns: float, now_ns: int) -> None:
        """Learns service time and wait, and what a call should take."""
        least = 1.0
        waits = _BATCHES
        if self._queued_calls > 0:
            self.service_ns = self._served_ns / self._queued_calls
            self.waited_ns = self._queued_ns / self._queued_calls
        elif self._plain_calls > 0:
            self._watch_unloaded(self._plain_ns / self._plain_calls, least_ns, now_ns)
            self.service_ns = self._unloaded_ns
            least = _UNLOADED - 1.0
            waits = 1.0
        else:
            return
        delay_ns = self.service_ns * waits
        if self._delay_ns >= 0.0:
            delay_ns = self._delay_ns
        elif self._objective_ns > 0.0:
            delay_ns = self._objective_ns * _OF_OBJECTIVE - self.service_ns
        goal_ns = (self.service_ns + delay_ns) * self._tight
        floor_ns = self.service_ns * (1.0 + least)
        self.goal_ns = goal_ns if goal_ns > floor_ns else floor_ns

    def _watch_unloaded(self, mean_ns: float, least_ns: float, now_ns: int) -> None:
        """Keeps the least mean latency of a round up to date; begins and ends probes."""
        most_ns = mean_ns + _DOUBT * (mean_ns - least_ns)
        if self._probing:
            first = self._probe_share == _PROBE
            deeper = most_ns < (_STILL_QUEUED if first else _STILL_FALLING) * self._full_ns
            self._settled = True
            self._unloaded_ns = mean_ns
            if deeper and self.allowed > self._min_limit:
                self._probe_share *= 0.5
                self._full_ns = mean_ns
            else:
                self._probing = False
                self._begin_window(now_ns, False)
        elif self._unloaded_ns == 0.0 or (self._lowered_at_ns > 0.0 and least_ns >= _AS_BEFORE * self._lowered_at_ns):
            self._unloaded_ns = mean_ns
            self._begin_window(now_ns, True)
        else:
            if most_ns < self._lowest_ns or self._lowest_ns == 0.0:
                self._lowest_ns = most_ns
            if most_ns < self._unloaded_ns:
                self._unloaded_ns = most_ns
            if now_ns >= self._window_ns:
                if self._is_probe_worth_it(mean_ns):
                    self._probing = True
                    self._probe_share = _PROBE
                    self._full_ns = mean_ns
                elif self._settled:
                    self._unloaded_ns = self._lowest_ns
                    self._begin_window(now_ns, False)

    def _is_probe_worth_it(self, mean_ns: float) -> bool:
        """Whether a wrong limit may refuse more calls than a probe does."""
        refused = self.refused - self._refused_before
        if not self._adaptive or refused == 0:
            return False
        if self._window_ns == 0.0:
            return True
        return refused >= _REFUSED_FOR_PROBE and mean_ns > _UNLOADED * self._unloaded_ns

    def _begin_window(self, now_ns: int, doubtful: bool) -> None:
        """Until the next look; 0.0: as soon as the limit refuses a call, whatever the rounds show."""
        window_ns = _WINDOW_CALLS * self._unloaded_ns
        if window_ns < _WINDOW_NS:
            window_ns = _WINDOW_NS
        self._window_ns = 0.0 if doubtful else now_ns + window_ns
        self._lowest_ns = 0.0
        self._refused_before = self.refused

    def _step(self, gradient: float) -> None:
        limit = self.limit
        if self._drops > 0 and gradient > _BACK_OFF:
            gradient = _BACK_OFF
        if gradient < 1.0:
            if limit > 2.0 * self._peak:
                limit = 2.0 * self._peak
            limit *= gradient if gradient > _LOWEST else _LOWEST
        elif 2.0 * self._peak >= limit:
            most = limit + limit**0.5
            limit *= gradient
            if limit > most:
                limit = most
        if limit < self._min_limit:
            limit = self._min_limit
        if limit > self._max_limit:
            limit = self._max_limit
        self.limit = limit

    def _apply(self) -> None:
        limit = self.limit
        if not self._adaptive:
            limit *= self._tight
        elif self._probing:
            limit *= self._probe_share
        if limit < self._min_limit:
            limit = self._min_limit
        self.allowed = int(limit)

    def _begin_round(self, now_ns: int) -> None:
        self._round_ns = now_ns
        self._began_ns = now_ns
        if self._probing and self.in_flight > self.allowed:
            self._began_ns = _NEVER  # until so few are under way as the probe lets through
        self._idle_ns = 0
        self._freed = 0
        self._drops = 0
        self._queued_ns = 0.0
        self._served_ns = 0.0
        self._queued_calls = 0
        self._plain_ns = 0.0
        self._plain_squares = 0.0
        self._plain_calls = 0
        self._late_ns = 0.0
        self._late_calls = 0
        self._fastest_ns = _NEVER
        self._peak = self.in_flight
        self._needed = _SAMPLES
        if self.limit < 2 * _SAMPLES:
            self._needed = int(self.limit / 2.0) if self.limit >= 2.0 else 1
        self._needed_plain = _PLAIN_SAMPLES
        if self.allowed < _SAMPLES:
            self._needed_plain = _SAMPLES + 2 * self.allowed

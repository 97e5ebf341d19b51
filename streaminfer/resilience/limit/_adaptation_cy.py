# cython: cdivision=True, cpow=True
"""Adaptation of the concurrency limit: learns how many calls may be in flight from the time that they are queued.

*Design.* By Little's law a service that completes ``C`` calls a second has ``C · T`` of them in flight when each takes
``T``. So the limit at which a call takes the target time is ``limit · target / measured``: this ratio is the gradient.
If calls share batches, latency alone misleads: a bigger batch takes longer but is *not* congested. A limit that shrinks
because of this makes batches small and the service slow. So a call's time is split at the instant at which its batch
began: the call was *queued* for ``q`` and then *served* for ``s``. The service time is in both terms of
``(s + q_target) / (s + q)``, so only queueing can lower the limit. Queueing for one batch is not congestion: the next
batch must wait while one runs, or the worker would idle. So ``q_target`` is at least the time of a batch. If timings do
not separate queueing from service, ``s`` is the latency without load: the least mean of recent windows.

*Windows.* One decision per window, as TCP decides once per round trip: a window counts only calls that began after the
previous decision, so each decision sees the effect of the previous one. A window takes ten samples, or half the limit
if that is less, and ends at the end of a batch; without timings it takes up to thirty samples.

*Steps.* Down: at once to the limit that Little's law gives, at most by half. Up: towards it, by at most ``√limit`` per
window, and only if at least half the limit was in use, because unused capacity proves nothing. A call that exceeded its
deadline counts as twice the target, or as all the time that it had if that is more. If it had less than the service
time, it is ignored. A rejection by an inner layer lowers the limit by a tenth.

*Latency without load.* The estimate is renewed after an interval in which there was no queue: the limit rejected
nothing, or calls took hardly longer than the estimate. Otherwise a *probe* measures it again: one window at a quarter
of the limit, once the limit has rejected more calls than a probe costs. With a target of twice the latency without
load, nothing queues at a quarter of the limit. (A half would prove nothing: each measurement would confirm any standing
queue.) If calls then take little more than a quarter of their time before, there was a queue even at a quarter, and the
probe continues at half of it, until calls take no less. A call that hangs ends the probe after eight times the time
that it should take. The first estimate stays in doubt until the limit rejects a call. If calls take as long as before
although the limit fell to three quarters of what was in use, there is no queue: the service seems to be slower. This
estimate is in doubt too. Latencies that vary must not lower the limit: the gradient uses the mean minus its standard
error. The least mean is taken with twice this error added, or the luckiest window would set the target.

*A burning SLO budget* lowers the target, not the limit: the limit then settles lower, and cannot fall without end while
the alert lasts. Afterwards the target returns within half a minute.

*Complexity.* O(1) per call.

*Invariants.* ``min_limit ≤ limit ≤ max_limit``.

*References.* The split is our own; windows and the unit of increase are TCP Vegas' (Brakmo and Peterson 1995); the
gradient, ``√limit`` and "half in use" are Gradient2's (Netflix concurrency-limits); the probe is BBR's ProbeRTT
(Cardwell et al. 2016).

One source, compiled with the C types of ``_adaptation_cy.pxd`` or run uncompiled. Not thread-safe; its owner
``LimitMachine`` is.
"""

from __future__ import annotations

from streaminfer._internal.units import NEVER_NS

__all__ = ["LimitAdaptation"]

# C variables in the compiled module, not visible from Python
_SAMPLES = 10
_MAX_UNTIMED_SAMPLES = 30
_MIN_STEP = 0.5  # lowest factor of one window on the limit
_BACK_OFF = 0.9
_TARGET_OF_OBJECTIVE = 0.7  # target of the mean; the slowest calls of a window are queued for longer
_QUEUED_BATCHES = 2.0  # batches that a call may be queued for if there is no objective
_UNLOADED = 1.25  # times the latency without load: up to this there is no significant queue
_STILL_QUEUED = 0.375
_STILL_FALLING = 0.75
_LATE_FACTOR = 2.0
_PROBE_SHARE = 0.25
_LOWERED_RATIO = 0.75
_UNCHANGED_RATIO = 0.9
_PROBE_PATIENCE = 8.0  # times the expected time of its calls: less would end probes of a service that became slower
_PROBE_INTERVAL_NS = 5e9
_PROBE_INTERVAL_CALLS = 100.0  # an interval is at least this many latencies, so that probes cost little
_REJECTED_FOR_PROBE = 100  # a probe rejects some 50 calls
_STANDARD_ERRORS = 2.0  # standard errors that are added to a mean before it is compared with the least mean
_TARGET_RETURN_NS = 30e9


class LimitAdaptation:
    """Learns a limit from samples.

    Args:
        limit: the first limit, or the fixed one.
        min_limit: the lowest limit.
        max_limit: the highest limit.
        adaptive: whether the limit is learned.
        tighten: factor on the target while the SLO burns, above 0 and at most 1.
        queue_delay_ns: how long a call may be queued; negative: from the objective, else from the service time.

    Attributes:
        limit: the limit that it has learned.
        allowed: how many calls may be in flight now: the limit, or less during a probe or while an SLO burns.
        windows: decisions made.
        target_ns: the longest that a call should take, including queueing; 0.0 before the first decision.
        queue_delay_ns: mean time queued in the last window; 0.0 if timings do not separate it from service.
        service_ns: mean service time of the last window, or the latency without load.
        mean_ns: mean time of a call in the last window.
        fastest_ns: the fastest response of this and the last window; 0: unknown.
        burning: whether the SLO burns.
    """

    def __init__(
        self, limit: float, min_limit: int, max_limit: int, adaptive: bool, tighten: float, queue_delay_ns: float
    ) -> None:
        self.limit = limit
        self._min_limit = min_limit
        self._max_limit = max_limit
        self._adaptive = adaptive
        self._tighten = tighten
        self._max_queue_delay_ns = queue_delay_ns
        self._objective_ns = 0.0
        self._target_factor = 1.0
        self._probing = False
        self._probe_due_ns = 0.0
        self._lowest_ns = 0.0
        self._unloaded_ns = 0.0
        self.mean_ns = 0.0
        self._lowered_at_ns = 0.0
        self._full_ns = 0.0
        self._has_probe_result = False
        self._probed = False
        self._probe_ends_ns = 0.0
        self._probe_share = _PROBE_SHARE
        self._rejected_before = 0
        self.fastest_ns = 0
        self._batch_ns = 0
        self.burning = False
        self.windows = 0
        self.target_ns = 0.0
        self.queue_delay_ns = 0.0
        self.service_ns = 0.0
        self._apply()
        self._begin_window(0, 0)

    def _begin_window(self, in_flight: int, now_ns: int) -> None:
        self._window_began_ns = now_ns
        self._began_ns = now_ns
        if self._probing and in_flight > self.allowed:
            self._began_ns = NEVER_NS  # until no more are in flight than the probe allows
        self._drops = 0
        self._queued_ns = 0.0
        self._served_ns = 0.0
        self._queued_calls = 0
        self._untimed_ns = 0.0
        self._untimed_squares = 0.0
        self._untimed_calls = 0
        self._late_ns = 0.0
        self._late_calls = 0
        self._fastest_ns = NEVER_NS
        self._peak = in_flight
        self._needed = min(max(int(self.limit / 2.0), 1), _SAMPLES)
        self._needed_untimed = min(_SAMPLES + 2 * self.allowed, _MAX_UNTIMED_SAMPLES)
        if self._probing:
            self._probe_ends_ns = now_ns + _PROBE_PATIENCE * self._full_ns * (1.0 + self._needed_untimed / self.allowed)

    def begin(self, now_ns: int) -> None:
        """Begin the first window, at the first call."""
        self._window_began_ns = now_ns

    def set_objective(self, objective_ns: float, burning: bool) -> None:
        """Set the latency objective, 0.0 for none, and whether its budget burns."""
        self._objective_ns = objective_ns
        self.burning = burning
        if burning:
            self._target_factor = self._tighten
        self._apply()

    def resume(self, in_flight: int, now_ns: int) -> None:
        """Begin to count calls when no more are in flight than a probe allows."""
        if self._began_ns == NEVER_NS and in_flight <= self.allowed:
            self._began_ns = now_ns

    def reject(self, in_flight: int, rejected: int, now_ns: int) -> None:
        """End a probe that waits for a call that hangs: otherwise it would reject all other calls meanwhile."""
        if self._probing and now_ns > self._probe_ends_ns:
            self._probing = False
            self._probed = True
            self._schedule_probe(rejected, now_ns, False)
            self._apply()
            self._begin_window(in_flight, now_ns)

    def add(
        self, permit: int, duration_ns: int, queued_ns: int, batch_ns: int, in_flight: int, rejected: int, now_ns: int
    ) -> bool:
        """Count a call that succeeded.

        Args:
            permit: when the call began.
            duration_ns: how long it took.
            queued_ns: how long it was queued; negative: not known.
            batch_ns: when its batch began.
            in_flight: calls in flight now.
            rejected: calls that the limit has rejected.
            now_ns: the present instant.

        Returns:
            Whether a window ended.
        """
        self._fastest_ns = min(duration_ns, self._fastest_ns)
        self.fastest_ns = min(duration_ns, self.fastest_ns)
        if permit < self._began_ns:
            return False
        if queued_ns < 0:
            self._untimed_ns += duration_ns
            self._untimed_squares += duration_ns * 1.0 * duration_ns
            self._untimed_calls += 1
            return self._end_window_if_full(in_flight, rejected, now_ns)
        if batch_ns != self._batch_ns and self._end_window_if_full(in_flight, rejected, now_ns):
            return True
        self._batch_ns = batch_ns
        queued_ns = min(queued_ns, duration_ns)
        self._queued_ns += queued_ns
        self._served_ns += duration_ns - queued_ns
        self._queued_calls += 1
        return False

    def add_late(self, permit: int, allowed_ns: int, in_flight: int, rejected: int, now_ns: int) -> bool:
        """Count a call that exceeded its deadline: it would have taken longer than ``allowed_ns``.

        Returns:
            Whether a window ended.
        """
        if permit < self._began_ns or allowed_ns < self.service_ns:
            return False
        self._late_ns += max(allowed_ns, _LATE_FACTOR * self.target_ns)
        self._late_calls += 1
        return self._end_window_if_full(in_flight, rejected, now_ns)

    def add_drop(self, permit: int, in_flight: int, rejected: int, now_ns: int) -> bool:
        """Count a call that an inner layer rejected.

        Returns:
            Whether a window ended.
        """
        if permit < self._began_ns:
            return False
        self._drops += 1
        return self._end_window_if_full(in_flight, rejected, now_ns)

    # -- inside -------------------------------------------------------------------------------------------------

    def _end_window_if_full(self, in_flight: int, rejected: int, now_ns: int) -> bool:
        needed = self._needed_untimed if self._untimed_calls > 0 else self._needed
        if self._queued_calls + self._untimed_calls + self._late_calls + self._drops < needed:
            return False
        self._end_window(in_flight, rejected, now_ns)
        return True

    def _end_window(self, in_flight: int, rejected: int, now_ns: int) -> None:
        self.windows += 1
        self._return_target(now_ns)
        calls = self._queued_calls + self._untimed_calls + self._late_calls
        if calls > 0:
            mean_ns = (self._queued_ns + self._served_ns + self._untimed_ns + self._late_ns) / calls
            self.mean_ns = mean_ns
            least_ns = mean_ns - self._untimed_error_ns()
            probed = self._probing
            self._measure(least_ns, rejected, now_ns)
            if self._adaptive and not probed and least_ns > 0.0:
                in_use = min(self.limit, self._peak)
                self._step(self.target_ns / least_ns)  # 0 before the first success: all calls were late
                # right after a probe the queue is not yet filled up to the limit: that window cannot be compared
                lowered = self.limit <= _LOWERED_RATIO * in_use and not self._probed
                self._lowered_at_ns = mean_ns if lowered else 0.0
            self._probed = probed
        elif self._adaptive:
            self._step(1.0)
        self._apply()
        self.fastest_ns = self._fastest_ns if self._fastest_ns != NEVER_NS else 0
        self._begin_window(in_flight, now_ns)

    def _untimed_error_ns(self) -> float:
        """Return the standard error of the mean latency; 0.0 if timings separate queueing from service."""
        if self._untimed_calls == 0 or self._queued_calls > 0:
            return 0.0
        mean_ns = self._untimed_ns / self._untimed_calls
        variance = self._untimed_squares / self._untimed_calls - mean_ns * mean_ns
        return (variance / self._untimed_calls) ** 0.5 if variance > 0.0 else 0.0

    def _return_target(self, now_ns: int) -> None:
        if not self.burning and self._target_factor < 1.0:
            returned = (now_ns - self._window_began_ns) / _TARGET_RETURN_NS * (1.0 - self._tighten)
            self._target_factor = min(self._target_factor + returned, 1.0)

    def _measure(self, least_ns: float, rejected: int, now_ns: int) -> None:
        """Learn service time and time queued, and set the target."""
        least = 1.0
        batches = _QUEUED_BATCHES
        if self._queued_calls > 0:
            self.service_ns = self._served_ns / self._queued_calls
            self.queue_delay_ns = self._queued_ns / self._queued_calls
        elif self._untimed_calls > 0:
            self._watch_unloaded(self._untimed_ns / self._untimed_calls, least_ns, rejected, now_ns)
            self.service_ns = self._unloaded_ns
            least = _UNLOADED - 1.0
            batches = 1.0
        else:
            return
        delay_ns = self.service_ns * batches
        if self._max_queue_delay_ns >= 0.0:
            delay_ns = self._max_queue_delay_ns
        elif self._objective_ns > 0.0:
            delay_ns = self._objective_ns * _TARGET_OF_OBJECTIVE - self.service_ns
        self.target_ns = max((self.service_ns + delay_ns) * self._target_factor, self.service_ns * (1.0 + least))

    def _watch_unloaded(self, mean_ns: float, least_ns: float, rejected: int, now_ns: int) -> None:
        """Update the least mean latency of a window; begin and end probes."""
        # least_ns counts late calls too: it may exceed the mean
        upper_ns = mean_ns + _STANDARD_ERRORS * self._untimed_error_ns()
        if self._probing:
            first = self._probe_share == _PROBE_SHARE
            deeper = upper_ns < (_STILL_QUEUED if first else _STILL_FALLING) * self._full_ns
            self._has_probe_result = True
            self._unloaded_ns = mean_ns
            if deeper and self.allowed > self._min_limit:
                self._probe_share *= 0.5
                self._full_ns = mean_ns
            else:
                self._probing = False
                self._schedule_probe(rejected, now_ns, False)
        elif self._unloaded_ns == 0.0 or (
            self._lowered_at_ns > 0.0 and least_ns >= _UNCHANGED_RATIO * self._lowered_at_ns
        ):
            self._unloaded_ns = mean_ns
            self._schedule_probe(rejected, now_ns, True)
        else:
            if upper_ns < self._lowest_ns or self._lowest_ns == 0.0:
                self._lowest_ns = upper_ns
            self._unloaded_ns = min(upper_ns, self._unloaded_ns)
            if now_ns >= self._probe_due_ns:
                if self._is_probe_worth_it(mean_ns, rejected):
                    self._probing = True
                    self._probe_share = _PROBE_SHARE
                    self._full_ns = mean_ns
                elif self._is_without_queue(mean_ns, rejected):
                    self._unloaded_ns = self._lowest_ns
                    self._schedule_probe(rejected, now_ns, False)

    def _is_probe_worth_it(self, mean_ns: float, rejected: int) -> bool:
        """Return whether a wrong limit may reject more calls than a probe does."""
        rejected -= self._rejected_before
        if not self._adaptive or rejected == 0:
            return False
        if self._probe_due_ns == 0.0:
            return True
        return rejected >= _REJECTED_FOR_PROBE and mean_ns > _UNLOADED * self._unloaded_ns

    def _is_without_queue(self, mean_ns: float, rejected: int) -> bool:
        """Return whether the least mean since the last probe can replace the latency without load."""
        if not self._has_probe_result or self._probe_due_ns == 0.0:
            return False
        return rejected == self._rejected_before or mean_ns <= _UNLOADED * self._unloaded_ns

    def _schedule_probe(self, rejected: int, now_ns: int, immediately: bool) -> None:
        """Set when a probe is due; 0.0: as soon as the limit rejects a call, whatever the windows show."""
        interval_ns = max(_PROBE_INTERVAL_CALLS * self._unloaded_ns, _PROBE_INTERVAL_NS)
        self._probe_due_ns = 0.0 if immediately else now_ns + interval_ns
        self._lowest_ns = 0.0
        self._rejected_before = rejected

    def _step(self, gradient: float) -> None:
        limit = self.limit
        if self._drops > 0 and gradient > _BACK_OFF:
            gradient = _BACK_OFF
        if gradient < 1.0:
            limit = min(limit, 2.0 * self._peak) * max(gradient, _MIN_STEP)
        elif 2.0 * self._peak >= limit:
            limit = min(limit * gradient, limit + limit**0.5)
        self.limit = min(max(limit, self._min_limit), self._max_limit)

    def _apply(self) -> None:
        limit = self.limit
        if not self._adaptive:
            limit *= self._target_factor
        elif self._probing:
            limit *= self._probe_share
        self.allowed = int(max(limit, self._min_limit))

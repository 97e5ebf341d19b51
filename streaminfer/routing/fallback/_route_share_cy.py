"""The part of the traffic that one route of a `FallbackRouter` is offered, and its outcomes since the last step.

*Design.* Each request adds the share to a sum, and the route is offered a request whenever the sum reaches one
(Bresenham's line): evenly spread, without random numbers. The controller in ``_degradation_cy`` changes the share; its
docstring has the rules.

One source, compiled with the C types of ``_route_share_cy.pxd`` or run uncompiled. Not thread-safe: for one event loop.
"""

from __future__ import annotations

__all__ = ["BAD", "GOOD", "IGNORED", "LATE", "RouteShare", "exceeds"]

GOOD = 0
BAD = 1
LATE = 2
IGNORED = 3

# C variables in the compiled module, not visible from Python
_GOOD = 0
_BAD = 1
_LATE = 2
_MIN_SHARE = 0.01
_REOPEN_SHARE = 0.05
_MAX_FAILURE_RATE = 0.1
_SIGNIFICANCE = 2.8  # square of the standard deviations that chance exceeds once in twenty steps
_MAX_LATE_RATE = 0.01
_SILENT_STEPS = 3  # a cut relieves the device in the next step: by then a route that can respond has responded
_SILENCE_STEPS = 64  # steps for which the share remembers this silence
_MISSED_PER_RESPONSE = 50
_MIN_GAIN = 1.05
_MAX_GAIN = 2.0
_MAX_GROWTH = 0.1
_HEAVY_CUT = 0.5
_CUT_FRACTION_WIDTH = 0.15  # around the share that the last cut found
_CUT_FRACTION_STEPS = 16  # steps for which that share counts
_MAX_HEADROOM = 0.5
_SUSPECT_HEADROOM = 0.25
_MIN_RISE = 0.02
_MAX_RISE = 0.2
_HEADROOM_FALL = 0.0025
_LIGHT_USE_DECAY = 0.5  # of the headroom, in a step


def exceeds(count: int, requests: int, rate: float, cluster_size: float) -> bool:
    """Return whether the part of bad requests of a step exceeds a rate by more than chance explains.

    Args:
        count: bad requests.
        requests: all requests.
        rate: allowed part of bad requests.
        cluster_size: how many bad requests had one common reason, such as a batch that failed.
    """
    excess = count - rate * requests
    return (
        count >= 2 and excess > 0.0 and excess * excess > _SIGNIFICANCE * rate * (1.0 - rate) * requests * cluster_size
    )


class RouteShare:
    """One route's share of the traffic, with the counts of the present step.

    Args:
        device: number of the route's device, from 0.
        costlier_on_device: the route costs more than a later route of its device.
        costlier: the route costs more than a later route.
        last: no route comes after it.
        fixed: the share stays 1.0, because neither a route nor a default comes after it.

    Attributes:
        fraction: the part of the requests that the route is offered.
        closed: the route is offered nothing, because the error budget burns.
        headroom: the part of a request's time that must be left at its predicted finish.
        suspect: the last outcome was not good.
        stalled: an attempt took far longer than predicted and was interrupted, and none has succeeded or failed since.
            Meanwhile one request at a time tests whether the route still hangs.
        in_flight: attempts that have not ended.
        idle_since_ns: when the last attempt ended.
        latency_ns: recent mean time of good responses, exponentially weighted; 0 before the first.
        quickest_ns: the least time of a good response; 0 before the first.
        cuts: how often its share was cut or closed.
        flaps: how often its share was cut or closed from the whole traffic.
        succeeded: responses.
        degraded: how many of them are marked as degraded.
        reserve_ns: the time that a later route needs; 0: no later route; -1: unknown.
        reserve_until_ns: when ``reserve_ns`` must be updated.
    """

    def __init__(self, device: int, costlier_on_device: bool, costlier: bool, last: bool, fixed: bool) -> None:
        self.device = device
        self.costlier_on_device = costlier_on_device
        self.costlier = costlier
        self.last = last
        self.fixed = fixed
        self.fraction = 1.0
        self.closed = False
        self.in_flight = 0
        self.idle_since_ns = 0
        self.latency_ns = 0
        self.quickest_ns = 0
        self.cuts = 0
        self.flaps = 0
        self.succeeded = 0
        self.degraded = 0
        self.reserve_ns = 0
        self.reserve_until_ns = -(2**62)
        self._gain = _MIN_GAIN
        self._cut_fraction = 0.0
        self._steps_since_cut = 0
        self.headroom = 0.0
        self.suspect = False
        self.stalled = False
        self._is_settling = False
        self._in_cooldown = False
        self._was_cut = False
        self._silent = 0
        self._begin_step()

    def _begin_step(self) -> None:
        self._offered = 0
        self._sent = 0
        self._good = 0
        self._bad = 0
        self._late = 0
        self._used = 0.0
        self._run = 0  # length of the last run of failures in one batch
        self._runs = 0
        self._squares = 0  # sum of the squared lengths
        self._batch_ns = 0
        if not self.closed:
            self._credit = 1.0  # one request per step, however small the share

    def offers(self) -> bool:
        """Return whether this request is part of the share; once per request, before :meth:`take`."""
        self._offered += 1
        if self.fraction >= 1.0:
            return True
        self._credit = min(self._credit + self.fraction, 1.0)
        return self._credit >= 1.0

    def take(self) -> None:
        """Count a request that is sent to the route."""
        self._sent += 1
        self.in_flight += 1
        if self.fraction < 1.0:
            self._credit = max(self._credit - 1.0, 0.0)

    def risks(self, now_ns: int, deadline_ns: int, finish_ns: int) -> bool:
        """Return whether a predicted finish leaves too little headroom before the deadline.

        The last route risks nothing: any chance is better than none. If a request would be alone at its route, later
        requests cannot delay it, so it needs headroom only if the last outcome was not good.
        """
        if self.last:
            return False
        headroom = self.headroom
        if self.in_flight == 0:
            headroom = _SUSPECT_HEADROOM if self.suspect else 0.0
        return finish_ns > deadline_ns - headroom * (deadline_ns - now_ns)

    def is_out_of_reach(self, limit_ns: int) -> bool:
        """Return whether a request has less time than any response of the route took: its miss says nothing about load.

        Args:
            limit_ns: the time that the request has; 0: no limit.
        """
        return 0 < limit_ns < self.quickest_ns

    def settle(self, outcome: int, duration_ns: int, limit_ns: int, now_ns: int, batch_ns: int = 0) -> None:
        """Record the outcome of an attempt.

        Args:
            outcome: ``GOOD``, a response on time; ``BAD``, a failure; ``LATE``, a late response or an attempt timeout;
                ``IGNORED``, it counts neither way.
            duration_ns: how long the attempt took.
            limit_ns: how long it could take; 0: no limit.
            now_ns: the present instant.
            batch_ns: when its batch began, which tells batches apart; 0: it was in no batch.
        """
        self.in_flight -= 1
        self.idle_since_ns = now_ns
        if outcome == _GOOD:
            self._good += 1
            self._run = 0
            self.suspect = False
            self.stalled = False
            self._used += duration_ns / limit_ns if limit_ns > 0 else 1.0
            if self.latency_ns == 0:
                self.latency_ns = self.quickest_ns = duration_ns
            else:
                self.quickest_ns = min(self.quickest_ns, duration_ns)
                self.latency_ns += (duration_ns - self.latency_ns) >> 3
        elif outcome == _BAD:
            self._bad += 1
            if self._run == 0 or batch_ns <= 0 or batch_ns != self._batch_ns:
                self._batch_ns = batch_ns
                self._runs += 1
                self._run = 0
            self._run += 1
            self._squares += 2 * self._run - 1
            self.suspect = True
            self.stalled = False
        elif outcome == _LATE and not self.is_out_of_reach(limit_ns):
            self._late += not self.stalled  # an attempt that tests whether a route still hangs says nothing about load
            self.suspect = True

    # -- for the controller -------------------------------------------------------------------------------------

    def _age(self, missed: int, steps: int) -> None:
        """Begin an adjustment.

        Args:
            missed: requests of the step for which the device had no time; 0 if the device is not crowded.
            steps: number of steps that have passed.
        """
        self._was_cut = False
        if _MISSED_PER_RESPONSE * self._good < missed or (self._good == 0 and self._bad + self._late > 0):
            self._silent += 1
            if self._silent >= _SILENT_STEPS:
                self._silent = _SILENT_STEPS + _SILENCE_STEPS
        else:
            self._silent = 0 if self._good else max(self._silent - steps, 0)
        self._steps_since_cut += steps
        if self._steps_since_cut >= _CUT_FRACTION_STEPS:
            self._cut_fraction = 0.0

    def _is_silent(self) -> bool:
        """Return whether the route does not respond, although it has requests or others miss their deadline."""
        return self._silent >= _SILENT_STEPS

    def _cut(self, factor: float) -> None:
        """Reduce the share to a part of what the route really took."""
        self.cuts += 1
        if self.fraction >= 1.0:
            self.flaps += 1
        sent_fraction = min(self.fraction, self._sent / self._offered) if self._offered else self.fraction
        if self.fraction < 1.0 and factor > _HEAVY_CUT:  # in a bad moment the route also takes little
            sent_fraction = max(sent_fraction, 0.75 * self.fraction)
        self._cut_fraction = sent_fraction
        self._steps_since_cut = 0
        self.fraction = max(_MIN_SHARE, sent_fraction * factor)
        self._gain = _MIN_GAIN
        self._in_cooldown = True
        self._was_cut = True

    def _close(self) -> None:
        self.cuts += 1
        if self.fraction >= 1.0:
            self.flaps += 1
        self.closed = True
        self.fraction = 0.0
        self._credit = 0.0

    def _reopen(self) -> None:
        self.closed = False
        self.fraction = _REOPEN_SHARE
        self._gain = _MAX_GAIN
        self._cut_fraction = 0.0
        self._in_cooldown = False

    def _grow(self, lightly_used: bool) -> None:
        fraction = self.fraction
        if lightly_used:
            self.fraction = min(1.0, fraction * _MAX_GAIN, fraction + 2.0 * _MAX_GROWTH)
            return
        low = (1.0 - _CUT_FRACTION_WIDTH) * self._cut_fraction
        if low < fraction < (1.0 + _CUT_FRACTION_WIDTH) * self._cut_fraction:
            self._gain = _MIN_GAIN
            self.fraction = min(1.0, fraction * _MIN_GAIN)
            return
        grown = min(fraction * self._gain, fraction + _MAX_GROWTH)
        if fraction <= low < grown:
            grown = low * 1.0001
        self.fraction = min(1.0, grown)
        self._gain = min(_MAX_GAIN, 1.0 + 2.0 * (self._gain - 1.0))

    def _is_failing(self) -> bool:
        """Return whether more attempts failed than a tenth and chance explain."""
        bad = self._bad
        good = self._good + self._late
        runs = self._runs
        squares = self._squares
        if self.headroom >= _MAX_HEADROOM:  # more headroom does not help
            bad += self._late
            good -= self._late
            runs += self._late
            squares += self._late
        if bad == 0 or (runs < 2 and good > 0):  # one failure, or one batch that failed
            return False
        return exceeds(bad, bad + good, _MAX_FAILURE_RATE, squares / bad)

    def _adjust_headroom(self, lightly_used: bool, steps: int) -> None:
        attempts = self._good + self._bad + self._late
        if exceeds(self._late, attempts, _MAX_LATE_RATE, 1.0):
            if self._is_settling:
                self._is_settling = False
            else:
                rise = self._late / attempts
                self.headroom = min(_MAX_HEADROOM, self.headroom + min(_MAX_RISE, max(_MIN_RISE, rise)))
                self._is_settling = True  # requests that were taken before can still be late
        else:
            self._is_settling = False
            if self._good and not self._late:
                headroom = self.headroom
                if lightly_used and self.fraction >= 1.0:
                    headroom *= _LIGHT_USE_DECAY**steps
                self.headroom = max(0.0, headroom - _HEADROOM_FALL * steps)

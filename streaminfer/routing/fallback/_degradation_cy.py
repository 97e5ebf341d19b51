"""The ladder: how much of the traffic each route of a `FallbackRouter` is offered, and when that changes.

*Idea.* Each route has a *share*, the part of the requests that it is offered, 1.0 while all is well. Whether an offered
request is taken is decided per request, by the route's own ``admission``; the share is for what no single request can
see. It is looked at once a *step*:

1. *Failing.* More than a tenth of what a route took in the step failed: its share is halved.
2. *Crowded.* Routes of one device take time from each other. More than 1 % of the requests had no answer on time
   because a route of that device could not take them in time: the best route there that costs more than a later one
   gives up part of its share, measured from what it really took. Below 0.25 % it may grow again; between the two
   everything stands still, so that the noise of a count does not move it.
   *Late.* More than 1 % of what a route took came too late or was overdue: its *headroom* rises, the part of a
   request's time that has to be left when it is predicted to be answered. A prediction does not know who comes next and
   makes the batch longer; so a full queue is filled just less. Without late ones it falls slowly. Where the route has
   its whole share and the device still cannot be crowded (see 4) it falls by half: then a device that hung has made
   answers late, and headroom only keeps requests away from it. Only where most of the headroom there can be is no help
   either, late counts as failing.
3. *Burning.* The error budget burns too fast: the best route that costs more than a later one is closed, and one more
   for each eight steps in which requests still have no answer on time. When it has ended they come back with 5 %.
4. *Healthy.* A share below 1.0 grows once the route answered in the step: first by 5 %, then by 10, 20, 40, 80 and
   100 % of itself, at most by a tenth of the traffic, and for four seconds' worth of steps by 5 % only near the share
   where it last went wrong. Where answers of the device take less than an eighth of their time it cannot be crowded:
   then the share doubles, by at most a fifth of the traffic. Each step offers a route one request, however small its
   share. On one device a better route waits until the cheaper ones have half of theirs back.

Which request is offered is decided by adding up the share and offering whenever the sum reaches one (Bresenham's
line): evenly spread, without a random number.

*Low traffic.* Nothing is judged by fewer than eight requests before eight steps have passed, and one bad outcome alone
changes nothing. What happens once a step then happens as often as steps have passed, so that time decides the return
and not the number of requests.

*Invariants.* 0.01 ≤ share ≤ 1, and 0 while closed; 0 ≤ headroom ≤ 0.5; the last rung is never closed, and, unless a
default stands behind it, never cut. A share falls at most once a step and does not grow in the step after that.
Whatever happened, a share below 1.0 grows again once its route answers.

*Cost.* A few machine instructions for each request; a step is O(routes + devices).

*Sources.* Chiu and Jain (1989), additive increase and multiplicative decrease; Ha, Rhee, Xu (2008), CUBIC: careful near
the point of the last loss, fast away from it.

One source, compiled with the C types of ``_degradation_cy.pxd`` or run as it is. Not thread-safe: it belongs to one
loop.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["BAD", "GOOD", "LATE", "NEUTRAL", "DegradationController", "RouteShare"]

GOOD = 0
BAD = 1
LATE = 2
NEUTRAL = 3

_GOOD = 0
_BAD = 1
_LATE = 2
_LEAST = 0.01
_RETURNS_WITH = 0.05
_FAILING = 0.1
_CROWDED = 0.01
_CALM = 0.0025
_FEW = 8
_LONGEST = 8
_FIRST_GAIN = 1.05
_LAST_GAIN = 2.0
_MOST_GROWTH = 0.1
_HEAVY = 0.5  # so many are missed that waiting for the last cut to show would cost more
_WIDE = 0.15  # around the share where it last went wrong
_FORGETS = 16
_EASY = 0.12
_TOO_LATE = 0.01
_MOST_HEADROOM = 0.5
_LEAST_RISE = 0.02
_MOST_RISE = 0.2
_FALL = 0.0025
_KEPT_WHEN_EASY = 0.5  # of the headroom, in a step
_SUSPECT_HEADROOM = 0.25


class RouteShare:
    """One route's share of the traffic, and what is counted about it.

    Args:
        device: number of the device that it runs on, from 0.
        dear_there: it costs more than a later route of its device.
        dear: it costs more than a later route.
        last: no other route stands behind it.
        fixed: its share stays 1.0: nothing at all stands behind it.

    Attributes:
        share: the part of the requests that it is offered.
        closed: the error budget burns, and it is offered nothing.
        headroom: the part of a request's time that is to be left when it is predicted to be answered.
        suspect: the last outcome was not good.
        stalled: a request was given up there because it took far longer than predicted, and none was answered since:
            one request at a time finds out whether that is still so.
        in_flight: requests taken that have not ended.
        idle_since_ns: when the last of them ended.
        latency_ns: recent mean time of its good answers, exponentially weighted; 0 before the first.
        cuts: how often its share was cut or closed.
        departures: how often that was from the whole traffic.
    """

    __slots__ = (
        "_bad",
        "_calm",
        "_credit",
        "_gain",
        "_good",
        "_late",
        "_offered",
        "_rests",
        "_settles",
        "_taken",
        "_trouble",
        "_used",
        "_was_cut",
        "closed",
        "cuts",
        "dear",
        "dear_there",
        "departures",
        "device",
        "fixed",
        "headroom",
        "idle_since_ns",
        "in_flight",
        "last",
        "latency_ns",
        "share",
        "stalled",
        "suspect",
    )

    def __init__(self, device: int, dear_there: bool, dear: bool, last: bool, fixed: bool) -> None:
        self.device = device
        self.dear_there = dear_there
        self.dear = dear
        self.last = last
        self.fixed = fixed
        self.share = 1.0
        self.closed = False
        self.in_flight = 0
        self.idle_since_ns = 0
        self.latency_ns = 0
        self.cuts = 0
        self.departures = 0
        self._credit = 0.0
        self._gain = _FIRST_GAIN
        self._trouble = 0.0
        self._calm = 0
        self.headroom = 0.0
        self.suspect = False
        self.stalled = False
        self._late = 0
        self._settles = False
        self._rests = False
        self._was_cut = False
        self._offered = 0
        self._taken = 0
        self._good = 0
        self._bad = 0
        self._used = 0.0

    def offers(self) -> bool:
        """Whether this request is one of its share; ask once for a request, :meth:`take` if it goes there."""
        self._offered += 1
        if self.share >= 1.0:
            return True
        self._credit = min(self._credit + self.share, 1.0)
        return self._credit >= 1.0

    def take(self) -> None:
        """The request goes there."""
        self._taken += 1
        self.in_flight += 1
        if self.share < 1.0:
            self._credit = max(self._credit - 1.0, 0.0)

    def risks(self, now_ns: int, deadline_ns: int, finish_ns: int) -> bool:
        """Whether a request that is predicted to be answered at an instant leaves too little headroom.

        Where nothing stands behind the route any chance is better than none. One that would be alone there has nobody
        behind it to make it later, unless the last one already was.
        """
        if self.last:
            return False
        headroom = self.headroom
        if self.in_flight == 0:
            headroom = _SUSPECT_HEADROOM if self.suspect else 0.0
        return finish_ns > deadline_ns - headroom * (deadline_ns - now_ns)

    def stall(self) -> None:
        """What is there hangs, as far as is known: until an answer or a failure comes from there."""
        self.stalled = True

    def settle(self, outcome: int, duration_ns: int, limit_ns: int, now_ns: int) -> None:
        """The request has ended there.

        Args:
            outcome: ``GOOD``, an answer on time; ``BAD``, a failure; ``LATE``, late or overdue; ``NEUTRAL``: it tells
                nothing.
            duration_ns: how long it was there.
            limit_ns: how long it had; 0: no limit.
            now_ns: the present instant.
        """
        self.in_flight -= 1
        self.idle_since_ns = now_ns
        if outcome == _GOOD:
            self._good += 1
            self.suspect = False
            self.stalled = False
            self._used += duration_ns / limit_ns if limit_ns > 0 else 1.0
            if self.latency_ns == 0:
                self.latency_ns = duration_ns
            else:
                self.latency_ns += (duration_ns - self.latency_ns) >> 3
        elif outcome == _BAD:
            self._bad += 1
            self.suspect = True
            self.stalled = False
        elif outcome == _LATE:
            self._late += not self.stalled  # who finds out whether it still hangs says nothing about its load
            self.suspect = True

    def _grow(self, easy: bool, steps: int) -> None:
        for _ in range(min(steps, _LONGEST)):
            self._grow_once(easy)

    def _grow_once(self, easy: bool) -> None:
        share = self.share
        if easy:
            self.share = min(1.0, share * _LAST_GAIN, share + 2.0 * _MOST_GROWTH)
            return
        if (1.0 - _WIDE) * self._trouble < share < (1.0 + _WIDE) * self._trouble:
            self._gain = _FIRST_GAIN
            self.share = min(1.0, share * _FIRST_GAIN)
            return
        grown = min(share * self._gain, share + _MOST_GROWTH)
        if share <= (1.0 - _WIDE) * self._trouble < grown:
            grown = (1.0 - _WIDE) * self._trouble * 1.0001
        self.share = min(1.0, grown)
        self._gain = min(_LAST_GAIN, 1.0 + 2.0 * (self._gain - 1.0))

    def _failing(self) -> bool:
        bad = self._bad
        if self.headroom >= _MOST_HEADROOM:  # more of it is no help
            bad += self._late
        return bad >= 2 and bad > _FAILING * (self._good + self._bad + self._late)

    def _make_headroom(self, easy: bool, steps: int) -> None:
        if self._late >= 2 and self._late > _TOO_LATE * (self._good + self._bad + self._late):
            if self._settles:
                self._settles = False
            else:
                rise = self._late / (self._good + self._bad + self._late)
                self.headroom = min(_MOST_HEADROOM, self.headroom + min(_MOST_RISE, max(_LEAST_RISE, rise)))
                self._settles = True  # what was taken before comes out late yet
        else:
            self._settles = False
            if self._good and not self._late:
                kept = self.headroom
                if easy and self.share >= 1.0:
                    kept *= _KEPT_WHEN_EASY**steps
                self.headroom = max(0.0, kept - _FALL * steps)

    def __repr__(self) -> str:
        return f"<RouteShare: share={self.share:.3f}, in_flight={self.in_flight}{', closed' if self.closed else ''}>"


class DegradationController:
    """The rungs of one router, best first.

    Args:
        rungs: best first; devices are numbered from 0 without gaps.
        step_ns: how often the shares are looked at.

    Attributes:
        rungs: the same.
        next_step_ns: when :meth:`step` is due.
    """

    __slots__ = (
        "_burning",
        "_burning_steps",
        "_missed",
        "_missed_there",
        "_requests",
        "_steps",
        "next_step_ns",
        "rungs",
        "step_ns",
    )

    def __init__(self, rungs: Sequence[RouteShare], step_ns: int) -> None:
        self.rungs = list(rungs)
        self.step_ns = step_ns
        self.next_step_ns = 0
        self._requests = 0
        self._missed = 0
        self._missed_there = [0] * (max(rung.device for rung in self.rungs) + 1)
        self._steps = 0
        self._burning = False
        self._burning_steps = 0

    def arrive(self, now_ns: int) -> bool:
        """Counts a request that came; whether :meth:`step` is due."""
        self._requests += 1
        return now_ns >= self.next_step_ns

    def missed(self, devices: int) -> None:
        """A request had no answer on time.

        Args:
            devices: bit ``d`` is set for each device that had no time for it.
        """
        self._missed += 1
        for device in range(len(self._missed_there)):
            if devices >> device & 1:
                self._missed_there[device] += 1

    def step(self, now_ns: int, burning: bool) -> None:
        """Looks at the shares, if it is time.

        Args:
            now_ns: the present instant.
            burning: whether the error budget burns too fast.
        """
        if now_ns < self.next_step_ns:
            return
        self._steps += min(1 + (now_ns - self.next_step_ns) // self.step_ns, _LONGEST)
        self.next_step_ns = now_ns + self.step_ns
        if burning != self._burning:
            self._burning = burning
            self._burning_steps = 0
            self._steps = 0
            if burning:
                self._close_one()
            else:
                self._open_all()
        if self._requests < _FEW and self._steps < _LONGEST:
            return
        if burning:
            self._burning_steps += self._steps
            if self._burning_steps >= _LONGEST and self._missed > _CROWDED * self._requests:
                self._burning_steps = 0
                self._close_one()
        self._look()
        for rung in self.rungs:
            rung._offered = 0
            rung._taken = 0
            rung._good = 0
            rung._bad = 0
            rung._late = 0
            rung._used = 0.0
            if not rung.closed:
                rung._credit = 1.0  # one request a step, however small the share
        for device in range(len(self._missed_there)):
            self._missed_there[device] = 0
        self._requests = 0
        self._missed = 0
        self._steps = 0

    def _look(self) -> None:
        for rung in self.rungs:
            rung._was_cut = False
            rung._calm += self._steps
            if rung._calm >= _FORGETS:
                rung._trouble = 0.0
            rung._make_headroom(self._is_easy(rung.device), self._steps)
            if not rung.fixed and not rung.closed and rung._failing():
                self._cut(rung, 0.5)
        for device in range(len(self._missed_there)):
            missed = self._missed_there[device]
            if missed >= 2 and missed > _CROWDED * self._requests:
                self._make_room(device, max(0.5, 0.95 - 2.0 * missed / self._requests))
        for position in range(len(self.rungs)):
            rung = self.rungs[position]
            if rung.share < 1.0 and not rung.closed and not rung._was_cut:
                steps = self._steps
                if rung._rests:
                    rung._rests = False
                    steps -= 1
                if rung._good and self._may_grow(position):
                    rung._grow(self._is_easy(rung.device), steps)

    def _make_room(self, device: int, factor: float) -> None:
        """The best route of a device that costs more than a later one gives up a part, unless one has already."""
        dearest = None
        for rung in self.rungs:
            if rung.device == device:
                if rung._was_cut or (rung._rests and factor > _HEAVY):
                    return
                if dearest is None and rung.dear_there and rung._taken and rung.share > _LEAST:
                    dearest = rung
        if dearest is not None:
            self._cut(dearest, factor)

    def _is_easy(self, device: int) -> bool:
        """Whether answers of a device take so small a part of their time that it cannot be crowded."""
        for rung in self.rungs:  # noqa: SIM110 - compiled, a loop is faster
            if rung.device == device and rung._used > _EASY * rung._good:
                return False
        return True

    def _may_grow(self, position: int) -> bool:
        rung = self.rungs[position]
        if rung._failing():
            return False
        if self._missed_there[rung.device] > _CALM * self._requests:
            return False
        for other in range(position + 1, len(self.rungs)):
            cheaper = self.rungs[other]
            if cheaper.device == rung.device and not cheaper.closed and cheaper.share < 0.5:
                return False
        return True

    def _cut(self, rung: RouteShare, factor: float) -> None:
        """Leaves a rung a part of what it really took."""
        rung.cuts += 1
        if rung.share >= 1.0:
            rung.departures += 1
        taken = min(rung.share, rung._taken / rung._offered) if rung._offered else rung.share
        if rung.share < 1.0 and factor > _HEAVY:  # a bad moment is also one in which little is taken
            taken = max(taken, 0.75 * rung.share)
        rung._trouble = taken
        rung._calm = 0
        rung.share = max(_LEAST, taken * factor)
        rung._gain = _FIRST_GAIN
        rung._rests = True
        rung._was_cut = True

    def _close_one(self) -> None:
        for position in range(len(self.rungs) - 1):
            rung = self.rungs[position]
            if rung.dear and not rung.closed:
                rung.cuts += 1
                if rung.share >= 1.0:
                    rung.departures += 1
                rung.closed = True
                rung.share = 0.0
                rung._credit = 0.0
                return

    def _open_all(self) -> None:
        for rung in self.rungs:
            if rung.closed:
                rung.closed = False
                rung.share = _RETURNS_WITH
                rung._gain = _LAST_GAIN
                rung._trouble = 0.0
                rung._rests = False

    def __repr__(self) -> str:
        return f"<DegradationController: {', '.join(f'{rung.share:.3f}' for rung in self.rungs)}>"

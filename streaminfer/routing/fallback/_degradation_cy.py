"""Control of the shares: how much of the traffic each route of a `FallbackRouter` is offered.

*Design.* Each route has a *share* (``_route_share_cy``): the part of the requests that it is offered, 1.0 in normal
operation. The route's own ``admission`` decides whether it takes an offered request. The share reacts to conditions
that no single request can see. The controller adjusts the shares once per *step*:

1. *Failing.* If more than a tenth of the attempts at a route failed in the step, and chance does not explain this, the
   share of the route is halved. Without the test for chance, a route that fails rarely would be cut in one of several
   steps when a step has few requests, and could not recover in between. Requests that fail with their batch are one
   failure, so chance explains more of them; one failed batch changes nothing while others succeed.
2. *Crowded.* Routes of one device take time from each other. If more than 1 % of the requests missed their deadline
   because a route of that device could not take them in time, the best route there that costs more than a later one
   loses part of its share, measured from what it really took. Below 0.25 % the share may grow again. Between the two
   the share does not change, so that the noise of a count does not move it. A cheaper route that hangs cannot take
   over traffic. So if requests miss their deadline for three steps and none of the cheaper routes responds, the share
   is not cut, because a cut would only lose more, and a share that was cut grows again in spite of the misses.
   *Late.* If more than 1 % of the attempts at a route were late or timed out, its *headroom* rises: the part of a
   request's time that must be left at its predicted finish. A prediction does not know which later requests make the
   batch longer, so the queue is filled a little less. Without late responses, headroom falls slowly. It falls by half
   while the route has its whole share and the device cannot be crowded (see 4): then a device that hung made the
   responses late, and headroom only keeps requests away from it. If even the largest headroom does not help, late
   attempts count as failures.
   *Out of reach.* A request that has less time than any response so far took counts in neither rule. An idle device
   would miss its deadline too, and callers with too short a timeout must not cost the others the best route.
3. *Burning.* If the error budget burns too fast, the best route that costs more than a later one is closed, and one
   more after every eight steps in which requests still miss their deadline. Afterwards the closed routes return with
   5 %. They return at once if none of the other routes responds.
4. *Healthy.* A share below 1.0 grows if the route responded in the step: first by 5 %, then by 10, 20, 40, 80 and 100 %
   of itself, at most by a tenth of the traffic. For 16 steps (four seconds by default) it grows by only 5 % near the
   share where the route last went wrong. If responses of the device use less than an eighth of their time, the device
   cannot be crowded: then the share doubles, by at most a fifth of the traffic. Each step offers a route one request,
   however small its share. On one device, a better route waits until the cheaper ones have half of their traffic back.

*Low traffic.* The controller judges nothing by fewer than eight requests before eight steps have passed, and one bad
outcome alone changes nothing. Rules that apply once per step then apply once for each step that has passed, so that
time decides the return and not the number of requests.

*Complexity.* A few machine instructions per request; a step is O(routes + devices).

*Invariants.* 0.01 ≤ share ≤ 1, and 0 while closed; 0 ≤ headroom ≤ 0.5; the last route is never closed, and cut only
if there is a default response. A share falls at most once per step and does not grow in the step after that. A share
below 1.0 grows again once its route responds.

*References.* Chiu and Jain (1989), additive increase and multiplicative decrease; Ha, Rhee, Xu (2008), CUBIC: careful
near the point of the last loss, fast away from it.

One source, compiled with the C types of ``_degradation_cy.pxd`` or run uncompiled. Not thread-safe: for one event loop.
"""

from __future__ import annotations

from collections.abc import Sequence

from streaminfer.routing.fallback._route_share_cy import RouteShare, exceeds

__all__ = ["DegradationController"]

# C variables in the compiled module, not visible from Python
_CROWDED_MISS_RATE = 0.01
_CALM_MISS_RATE = 0.0025
_MIN_REQUESTS = 8
_MAX_STEPS = 8  # most steps that count after a time without requests
_HEAVY_MISS_FACTOR = 0.5  # then so many requests miss that waiting for the effect of the last cut would cost more
_MIN_SHARE_TO_CUT = 0.01
_LIGHT_USE = 0.12  # of the time that responses could take


class DegradationController:
    """Adjusts the shares of one router's routes.

    Args:
        shares: shares of the routes, best first; devices are numbered from 0 without gaps.
        step_ns: nanoseconds between two adjustments.

    Attributes:
        shares: the same.
        next_step_ns: when :meth:`step` is due.
    """

    def __init__(self, shares: Sequence[RouteShare], step_ns: int) -> None:
        self.shares = list(shares)
        self.step_ns = step_ns
        self.next_step_ns = 0
        self._requests = 0
        self._missed = 0
        self._missed_by_device = [0] * (max(share.device for share in self.shares) + 1)
        self._steps = 0
        self._burning = False
        self._burning_steps = 0

    def arrive(self, now_ns: int) -> bool:
        """Count a request; return whether :meth:`step` is due."""
        self._requests += 1
        return now_ns >= self.next_step_ns

    def missed(self, devices: int, limit_ns: int) -> None:
        """Count a request that got no response on time.

        Args:
            devices: bit ``d`` is set for each device that had no time for the request.
            limit_ns: the time that the request had; 0: no limit.
        """
        self._missed += 1
        for device in range(len(self._missed_by_device)):
            if devices >> device & 1 and not self._is_out_of_reach(device, limit_ns):
                self._missed_by_device[device] += 1

    def step(self, now_ns: int, burning: bool) -> None:
        """Adjust the shares; called when :meth:`arrive` says that it is due.

        Args:
            now_ns: the present instant.
            burning: whether the error budget burns too fast.
        """
        self._steps += min(1 + (now_ns - self.next_step_ns) // self.step_ns, _MAX_STEPS)
        self.next_step_ns = now_ns + self.step_ns
        if burning != self._burning:
            self._burning = burning
            self._burning_steps = 0
            self._steps = 0
            if burning:
                self._close_one()
            else:
                self._reopen_all()
        if self._requests < _MIN_REQUESTS and self._steps < _MAX_STEPS:
            return
        if burning:
            self._burning_steps += self._steps
            if self._burning_steps >= _MAX_STEPS and self._missed > _CROWDED_MISS_RATE * self._requests:
                self._burning_steps = 0
                self._close_one()
        self._adjust()
        if burning and not self._has_open_route():
            self._reopen_all()
        for share in self.shares:
            share._begin_step()
        self._missed_by_device = [0] * len(self._missed_by_device)
        self._requests = 0
        self._missed = 0
        self._steps = 0

    def _adjust(self) -> None:
        for share in self.shares:
            missed = self._missed_by_device[share.device]
            share._age(missed if exceeds(missed, self._requests, _CROWDED_MISS_RATE, 1.0) else 0, self._steps)
            share._adjust_headroom(self._is_lightly_used(share.device), self._steps)
            if not share.fixed and not share.closed and share._is_failing():
                share._cut(0.5)
        for device, missed in enumerate(self._missed_by_device):
            if exceeds(missed, self._requests, _CROWDED_MISS_RATE, 1.0):
                self._relieve(device, max(0.5, 0.95 - 2.0 * missed / self._requests))
        for position, share in enumerate(self.shares):
            if share.fraction < 1.0 and not share.closed and not share._was_cut:
                steps = self._steps
                if share._in_cooldown:
                    share._in_cooldown = False
                    steps -= 1
                if share._good and self._may_grow(position):
                    for _ in range(min(steps, _MAX_STEPS)):
                        share._grow(self._is_lightly_used(share.device))

    def _relieve(self, device: int, factor: float) -> None:
        """Cut the best route of a device that costs more than a later one, unless one was cut already."""
        costliest = -1
        for position, share in enumerate(self.shares):
            if share.device == device:
                if share._was_cut or (share._in_cooldown and factor > _HEAVY_MISS_FACTOR):
                    return
                if costliest < 0 and share.costlier_on_device and share._sent and share.fraction > _MIN_SHARE_TO_CUT:
                    costliest = position
        if costliest >= 0 and not self._is_alone(costliest, device):
            share = self.shares[costliest]
            share._cut(factor)

    def _is_out_of_reach(self, device: int, limit_ns: int) -> bool:
        """Return whether a request has less time than any response of a device took; false before the first one."""
        out_of_reach = False
        for share in self.shares:
            if share.device == device and share.quickest_ns:
                if not share.is_out_of_reach(limit_ns):
                    return False
                out_of_reach = True
        return out_of_reach

    def _is_lightly_used(self, device: int) -> bool:
        """Return whether responses of a device use so little of their time that it cannot be crowded."""
        for share in self.shares:  # noqa: SIM110 - compiled, a loop is faster
            if share.device == device and share._used > _LIGHT_USE * share._good:
                return False
        return True

    def _may_grow(self, position: int) -> bool:
        share = self.shares[position]
        if share._is_failing():
            return False
        if self._is_alone(position, share.device):
            return True
        if self._missed_by_device[share.device] > _CALM_MISS_RATE * self._requests:
            return False
        for other in range(position + 1, len(self.shares)):
            cheaper = self.shares[other]
            if cheaper.device == share.device and not cheaper.closed and cheaper.fraction < 0.5:
                return False
        return True

    def _is_alone(self, position: int, device: int) -> bool:
        """Return whether there are later routes of a device (-1: of any device), and none of them responds."""
        alone = False
        for other in range(position + 1, len(self.shares)):
            later = self.shares[other]
            if device < 0 or later.device == device:
                if not later._is_silent():
                    return False
                alone = True
        return alone

    def _has_open_route(self) -> bool:
        """Return whether a route that is not closed responds, or may do so."""
        for share in self.shares:  # noqa: SIM110 - compiled, a loop is faster
            if not share.closed and not share._is_silent():
                return True
        return False

    def _close_one(self) -> None:
        for position in range(len(self.shares) - 1):
            share = self.shares[position]
            if share.costlier and not share.closed:
                if not self._is_alone(position, -1):
                    share._close()
                return

    def _reopen_all(self) -> None:
        for share in self.shares:
            if share.closed:
                share._reopen()

"""The common case of a `FallbackRouter`: its best route accepts the request and responds.

*Design.* Apart from the await, this case needs only two compiled calls: :meth:`FastPath.take` begins the attempt, and
:meth:`FastPath.respond` counts and marks the response. ``take`` leaves every other case to the router, before it has
changed anything.

*Trust.* A call of ``admission`` costs a microsecond or two. If it predicts a response within a quarter of the request's
time, or predicts nothing, the fast path also uses it for up to seven requests of the next millisecond, each only if the
prediction is within a quarter of its own time too. The requests in between cannot use up the other three quarters, and
a route that rejects an attempt costs nothing but the call. Any response that is not good ends the trust.

One source, compiled with the C types of ``_fast_path_cy.pxd`` or run uncompiled. For one event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streaminfer._internal.units import NEVER_NS
from streaminfer._request_cy import Response
from streaminfer.routing.fallback._attempts_cy import Attempt, Attempts, switch_at
from streaminfer.routing.fallback._degradation_cy import DegradationController
from streaminfer.routing.fallback._route_share_cy import RouteShare

__all__ = ["FastPath"]

_GOOD = 0
_MAX_REUSES = 7  # requests
_REUSE_NS = 1_000_000
_MIN_DEFAULT_RESERVE_NS = 1_000_000


class FastPath:
    """Attempts at the best route.

    Args:
        degradation: the controller of the shares.
        share: share of the best route.
        name: name of the best route.
        admission: ``admission`` of the best route; ``None``: it accepts everything.
        enforces: the best route ends its requests at their deadline.
        has_default: the router has a default response.

    Attributes:
        is_open: requests are accepted.
        attempts: attempts in flight, of all routes.
        requests: requests that took the fast path.
        verdict: the route's ``admission`` of the request of the last :meth:`take`; ``None``: it was not called.
    """

    def __init__(
        self,
        degradation: DegradationController,
        share: RouteShare,
        name: str,
        admission: Callable[[Any, int], Any] | None,
        enforces: bool,
        has_default: bool,
    ) -> None:
        self._degradation = degradation
        self._share = share
        self._name = name
        self._admission = admission
        self._enforces = enforces
        self._has_default = has_default
        self._reuses_left = 0
        self._reused_finish_ns = 0
        self._reuse_until_ns = 0
        self._reused_priority = 0
        self.is_open = True
        self.attempts = Attempts()
        self.requests = 0
        self.verdict: Any = None

    def take(self, request: Any, now_ns: int, task: Any) -> Attempt | None:  # noqa: C901 - a call more costs more
        """Begin an attempt at the best route.

        Returns:
            The attempt. ``None`` if this is not the common case; then only :attr:`verdict` has changed.
        """
        self.verdict = None
        share = self._share
        if not self.is_open or share.fraction < 1.0 or now_ns >= self._degradation.next_step_ns or share.stalled:
            return None
        deadline_ns = NEVER_NS if request.deadline_ns is None else request.deadline_ns
        if deadline_ns <= now_ns or (now_ns >= share.reserve_until_ns and deadline_ns != NEVER_NS):
            return None
        finish_ns = 0
        if self._admission is not None:
            if (
                self._reuses_left > 0
                and now_ns < self._reuse_until_ns
                and self._reused_finish_ns - now_ns <= (deadline_ns - now_ns) >> 2  # this request may have less time
                and request.priority <= self._reused_priority  # or be served after others
            ):
                self._reuses_left -= 1
                finish_ns = self._reused_finish_ns
            else:
                try:
                    verdict = self.verdict = self._admission(request, now_ns)
                except Exception:  # noqa: BLE001 - the selector calls it again, and logs its error
                    verdict = None
                if verdict is None or not verdict[0]:
                    return None
                if verdict[3] is not None:
                    finish_ns = verdict[3]
                    if share.risks(now_ns, deadline_ns, finish_ns):
                        return None
                if finish_ns - now_ns <= (deadline_ns - now_ns) >> 2:
                    self._reuses_left = _MAX_REUSES
                    self._reuse_until_ns = now_ns + _REUSE_NS
                    self._reused_finish_ns = finish_ns
                    self._reused_priority = request.priority
                else:
                    self._reuses_left = 0
        switch_ns = self.switch_ns(now_ns, deadline_ns, finish_ns, share.reserve_ns, self._enforces)
        if switch_ns < self.attempts.timer_ns:
            return None
        self.requests += 1
        self._degradation._requests += 1
        share._offered += 1
        share._sent += 1
        share.in_flight += 1
        return self.attempts.enter(task, task.cancelling(), now_ns, switch_ns, deadline_ns)

    def switch_ns(self, now_ns: int, deadline_ns: int, finish_ns: int, reserve_ns: int, enforces: bool) -> int:
        """Return when an attempt is interrupted; ``NEVER_NS`` if the route itself ends it in time.

        Args:
            now_ns: the present instant.
            deadline_ns: deadline of the request.
            finish_ns: when the route is predicted to respond; 0: unknown.
            reserve_ns: the time that a later route needs; 0: no later route; -1: unknown.
            enforces: the route ends its requests at their deadline.
        """
        if deadline_ns == NEVER_NS:
            return NEVER_NS
        left_ns = deadline_ns - now_ns
        if reserve_ns < 0:
            reserve_ns = left_ns >> 2
        elif reserve_ns > left_ns >> 1:
            reserve_ns = left_ns >> 1
        default_ns = 0
        if self._has_default:
            default_ns = min(max(_MIN_DEFAULT_RESERVE_NS, left_ns >> 6), left_ns >> 1)
        if reserve_ns == 0 and default_ns == 0 and enforces:
            return NEVER_NS
        switch_ns = switch_at(now_ns, deadline_ns, finish_ns, reserve_ns, default_ns)
        if enforces and switch_ns >= deadline_ns:
            return NEVER_NS
        return switch_ns

    def respond(self, attempt: Attempt, response: Any, now_ns: int) -> Response | None:
        """End an attempt with a response.

        Returns:
            The response, marked with the route's name. ``None`` if the attempt is late or interrupted; then nothing has
            changed.
        """
        if attempt.interrupted or now_ns > attempt.deadline_ns:
            return None
        self.attempts.leave(attempt)
        limit_ns = 0
        if attempt.deadline_ns != NEVER_NS:
            limit_ns = attempt.deadline_ns - attempt.started_ns
        self._share.settle(_GOOD, now_ns - attempt.started_ns, limit_ns, now_ns)
        self._share.succeeded += 1
        if response.degraded:
            self._share.degraded += 1
        return Response(response.outputs, response.degraded, self._name, response.timings)

    def discard_verdict(self) -> None:
        """Call ``admission`` for the next request."""
        self._reuses_left = 0

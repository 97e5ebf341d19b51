"""The gate: the common case of a `FallbackRouter`, in which its best route takes the request and answers.

*Idea.* All that this case needs, but for the await, is in two compiled calls: :meth:`FastPath.take` looks and enters,
:meth:`FastPath.answered` counts and marks the answer. Whatever is not common, ``take`` leaves to the router, before it
has changed anything.

*Trust.* A look at ``admission`` costs a microsecond or two. One that said that the request would be answered within a
quarter of its time, or that did not say when, is good for the next seven requests too, within a millisecond: what came
in between cannot have used up the other three quarters, and a route that refuses when it is called costs nothing but
the call. Any answer that is not a good one ends the trust.

One source, compiled with the C types of ``_fast_path_cy.pxd`` or run as it is. It belongs to one loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streaminfer._internal.instants import NEVER_NS
from streaminfer._request_cy import Response
from streaminfer.routing.fallback._attempts_cy import Attempt, Attempts, switch_at
from streaminfer.routing.fallback._degradation_cy import DegradationController, RouteShare

__all__ = ["FastPath", "kept_ns"]

_NEVER = NEVER_NS
_GOOD = 0
_TRUSTED = 7
_TRUSTED_NS = 1_000_000
_LEAST_KEPT_NS = 1_000_000


def kept_ns(left_ns: int) -> int:
    """What is kept of a time limit for a default answer."""
    kept = max(_LEAST_KEPT_NS, left_ns >> 6)
    return min(kept, left_ns >> 1)


class FastPath:
    """In front of the best route.

    Args:
        ladder: the shares.
        rung: the best route's.
        name: the best route's.
        admission: the best route's; ``None``: it takes everything.
        enforces: its requests end at their deadline without help.
        backed: a default answer stands behind it.

    Attributes:
        is_open: requests are accepted.
        attempts: those in flight.
        reserve_ns: what the routes behind the best one need; -1: there is one, and it is unknown.
        reserve_until_ns: when that is to be looked at again.
        taken: requests that passed.
        answered: answers that passed.
        degraded: how many of them the route itself had marked as lesser ones.
    """

    __slots__ = (
        "_admission",
        "_backed",
        "_enforces",
        "_ladder",
        "_name",
        "_rung",
        "_trusted",
        "_trusted_finish_ns",
        "_trusted_until_ns",
        "answered",
        "attempts",
        "degraded",
        "is_open",
        "reserve_ns",
        "reserve_until_ns",
        "taken",
    )

    def __init__(
        self,
        ladder: DegradationController,
        rung: RouteShare,
        name: str,
        admission: Callable[[Any, int], Any] | None,
        enforces: bool,
        backed: bool,
    ) -> None:
        self._ladder = ladder
        self._rung = rung
        self._name = name
        self._admission = admission
        self._enforces = enforces
        self._backed = backed
        self._trusted = 0
        self._trusted_finish_ns = 0
        self._trusted_until_ns = 0
        self.is_open = True
        self.attempts = Attempts()
        self.reserve_ns = 0
        self.reserve_until_ns = -(2**62)
        self.taken = 0
        self.answered = 0
        self.degraded = 0

    def take(self, request: Any, now_ns: int, task: Any) -> Attempt | None:  # noqa: C901 - a call more costs more
        """Sends the request to the best route.

        Returns:
            The attempt; ``None``, and nothing has changed, where the case is not the common one.
        """
        rung = self._rung
        if not self.is_open or rung.share < 1.0 or now_ns >= self._ladder.next_step_ns or rung.stalled:
            return None
        deadline_ns = _NEVER
        if request.deadline_ns is not None:
            deadline_ns = request.deadline_ns
        if deadline_ns <= now_ns or (now_ns >= self.reserve_until_ns and deadline_ns != _NEVER):
            return None
        finish_ns = 0
        if self._admission is not None:
            if self._trusted > 0 and now_ns < self._trusted_until_ns:
                self._trusted -= 1
                finish_ns = self._trusted_finish_ns
            else:
                verdict = self._admission(request, now_ns)
                if not verdict[0]:
                    return None
                if verdict[3] is not None:
                    finish_ns = verdict[3]
                    if rung.risks(now_ns, deadline_ns, finish_ns):
                        return None
                if finish_ns - now_ns <= (deadline_ns - now_ns) >> 2:
                    self._trusted = _TRUSTED
                    self._trusted_until_ns = now_ns + _TRUSTED_NS
                    self._trusted_finish_ns = finish_ns
                else:
                    self._trusted = 0
        switch_ns = self.switch_ns(now_ns, deadline_ns, finish_ns, self.reserve_ns, self._enforces)
        if switch_ns < self.attempts.timer_ns:
            return None
        self.taken += 1
        self._ladder._requests += 1
        rung._offered += 1
        rung._taken += 1
        rung.in_flight += 1
        return self.attempts.enter(task, task.cancelling(), now_ns, switch_ns, deadline_ns)

    def switch_ns(self, now_ns: int, deadline_ns: int, finish_ns: int, reserve_ns: int, enforces: bool) -> int:
        """When a request gives up on a route; ``NEVER_NS`` where the route itself ends it in time.

        Args:
            now_ns: the present instant.
            deadline_ns: of the request.
            finish_ns: when the route is predicted to answer; 0: unknown.
            reserve_ns: what the routes behind it need; -1: there is one, and it is unknown.
            enforces: the route ends its requests at their deadline.
        """
        if deadline_ns == _NEVER:
            return _NEVER
        left_ns = deadline_ns - now_ns
        if reserve_ns < 0:
            reserve_ns = left_ns >> 2
        elif reserve_ns > left_ns >> 1:
            reserve_ns = left_ns >> 1
        keep_ns = 0
        if self._backed:
            keep_ns = kept_ns(left_ns)
        if reserve_ns == 0 and keep_ns == 0 and enforces:
            return _NEVER
        switch_ns = switch_at(now_ns, deadline_ns, finish_ns, reserve_ns, keep_ns)
        if enforces and switch_ns >= deadline_ns:
            return _NEVER
        return switch_ns

    def answered_by(self, attempt: Attempt, response: Any, now_ns: int) -> Response | None:
        """The answer has come.

        Returns:
            It, marked with the route's name; ``None``, and nothing has changed, where it is late or interrupted.
        """
        if attempt.interrupted or now_ns > attempt.deadline_ns:
            return None
        self.attempts.leave(attempt)
        limit_ns = 0
        if attempt.deadline_ns != _NEVER:
            limit_ns = attempt.deadline_ns - attempt.started_ns
        self._rung.settle(_GOOD, now_ns - attempt.started_ns, limit_ns, now_ns)
        self.answered += 1
        if response.degraded:
            self.degraded += 1
        return Response(response.outputs, response.degraded, self._name, response.timings)

    def distrust(self) -> None:
        """The next request is to ask."""
        self._trusted = 0

"""A route in use: its service, its share of the traffic, and its counters."""

from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

from streaminfer._runtime.wrapped_kind import is_async
from streaminfer.errors import InvalidInput, for_caller
from streaminfer.protocols import adapt
from streaminfer.request import Request, Response
from streaminfer.routing.fallback._route_share_cy import IGNORED, RouteShare
from streaminfer.routing.fallback.attempt_outcome import AttemptOutcome
from streaminfer.routing.fallback.route import Route
from streaminfer.routing.fallback.statistics import RouteStatistics

__all__ = ["RouteState", "make_route_states"]

# fields of `RouteStatistics`
_SHARE_COUNTERS = ("closed", "succeeded", "in_flight", "cuts", "flaps")
_COUNTED = ("deadline_misses", "failed", "attempt_timeouts", "rejected", "cancelled", "probes")


class RouteState:
    """One route of one router.

    Attributes:
        route: the settings.
        position: position among the routes; 0 is the best.
        share: its share of the traffic.
        call: serves one request; the service's own ``call`` if nothing must be adapted.
        admission: ``admission`` of the service; ``None``: the service accepts everything.
        enforces: the service ends its requests at their deadline, and ``prepare`` and ``finish`` await nothing.
        is_idempotent: the service may get a request twice.
        degraded: its responses are marked as degraded.
    """

    def __init__(self, route: Route, position: int, share: RouteShare, *, degraded: bool) -> None:
        service = route.service
        self.route = route
        self.position = position
        self.share = share
        self.degraded = degraded
        offered = adapt(service).capabilities()
        self.admission = offered.admission
        self.is_idempotent = offered.idempotent is not False
        self.enforces = offered.enforces_deadline and not (is_async(route.prepare) or is_async(route.finish))
        # the router offers the first route's check to the surrounding stack
        self._validate = None if position == 0 and route.prepare is None else offered.validate
        self._prepare = None if route.prepare is None else _adapter(route.prepare)
        self._finish = None if route.finish is None else _adapter(route.finish)
        self._inner_call: Callable[[Request], Awaitable[Response]] = service.call
        as_it_is = self._prepare is None and self._finish is None and self._validate is None
        self.call = self._inner_call if as_it_is else self._adapted
        self.skipped: Counter[str] = Counter()
        self.deadline_misses = self.failed = self.attempt_timeouts = self.rejected = self.cancelled = self.probes = 0

    async def _adapted(self, request: Request) -> Response:
        if self._prepare is not None:
            request = request.replace(inputs=await self._prepare(request.inputs, f"prepare of {self.route.name}"))
        if self._validate is not None:
            self._validate(request)
        response = await self._inner_call(request)
        if self._finish is None:
            return response
        outputs = await self._finish(response.outputs, f"finish of {self.route.name}")
        return Response(outputs, response.degraded, response.source, response.timings)

    def count(self, outcome: AttemptOutcome) -> None:
        """Count an attempt that gave no response."""
        if outcome.reason == "attempt_timeout":
            self.attempt_timeouts += 1
        elif outcome.reason == "cancelled" or (outcome.final and outcome.reason == "closed"):
            self.cancelled += 1
        elif outcome.effect == IGNORED:
            self.rejected += 1
        else:
            self.failed += 1

    def statistics(self) -> RouteStatistics:
        """Return a frozen snapshot."""
        share = self.share
        return RouteStatistics(
            name=self.route.name,
            quality=self.route.quality,
            share=share.fraction,
            skipped={str(reason): count for reason, count in sorted(self.skipped.items())},
            latency_s=share.latency_ns / 1e9,
            **{name: getattr(share, name) for name in _SHARE_COUNTERS},
            **{name: getattr(self, name) for name in _COUNTED},
        )


def make_route_states(routes: Sequence[Route], *, has_default: bool) -> list[RouteState]:
    """Return the states of a router's routes.

    Args:
        routes: best first.
        has_default: the router has a default response.
    """
    devices: dict[Hashable, int] = {}
    states = []
    for position, route in enumerate(routes):
        device = devices.setdefault(route.device, len(devices))
        cheaper = [other for other in routes[position + 1 :] if route.costs_more_than(other)]
        share = RouteShare(
            device,
            any(other.device == route.device for other in cheaper),
            bool(cheaper),
            position == len(routes) - 1,
            position == len(routes) - 1 and not has_default,
        )
        states.append(RouteState(route, position, share, degraded=route.quality < routes[0].quality))
    return states


def _adapter(function: Callable[[Any], Any]) -> Callable[[Any, str], Awaitable[Any]]:
    """Return a user's function as a coroutine function; its errors name the function."""
    awaits = is_async(function)

    async def adapt(value: Any, context: str) -> Any:
        try:
            return await function(value) if awaits else function(value)
        except InvalidInput:
            raise
        except Exception as error:
            raise for_caller(error, context) from error

    return adapt

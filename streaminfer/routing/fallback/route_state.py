"""A route while it is in use: what was found inward of its service, its rung, and what is counted."""

import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

from streaminfer.errors import InvalidInput, for_caller
from streaminfer.protocols import adapt
from streaminfer.request import Request, Response
from streaminfer.routing.fallback._degradation_cy import NEUTRAL, RouteShare
from streaminfer.routing.fallback.attempt_outcome import AttemptOutcome
from streaminfer.routing.fallback.route import Route
from streaminfer.routing.fallback.statistics import RouteStatistics

__all__ = ["RouteState", "make_route_states"]


class RouteState:
    """One route of one router.

    Attributes:
        route: the settings.
        position: 0 is the best.
        rung: its share of the traffic.
        call: answers one request: the service's own ``call`` where nothing has to be adapted.
        admission: of the service; ``None``: it takes everything.
        enforces: requests end at their deadline without help.
        is_idempotent: its service did not declare that it must not see a request twice.
        degraded: answers are lesser ones.
        reserve_ns: what the routes behind it need, as far as is known; -1: there is one, and it is unknown.
        reserve_until_ns: when that is to be looked at again.
    """

    __slots__ = (
        "_finish", "_inner_call", "_prepare", "_sources", "_validate", "admission", "answered", "call", "degraded",
        "enforces", "failed", "given_up", "is_idempotent",
        "late", "overdue", "position", "probes", "reserve_ns", "reserve_until_ns",
        "route", "rung", "skipped", "turned_away",
    )  # fmt: skip

    def __init__(self, route: Route, position: int, rung: RouteShare, *, degraded: bool) -> None:
        service = route.service
        self.route = route
        self.position = position
        self.rung = rung
        self.degraded = degraded
        offered = adapt(service).capabilities()
        self.admission = offered.admission
        self.is_idempotent = offered.idempotent is not False
        self.enforces = offered.enforces_deadline
        # the first route's check is offered to the stack around the router
        self._validate = None if position == 0 and route.prepare is None else offered.validate
        self._prepare = None if route.prepare is None else _adapter(route.prepare)
        self._finish = None if route.finish is None else _adapter(route.finish)
        self._inner_call: Callable[[Request], Awaitable[Response]] = service.call
        as_it_is = self._prepare is None and self._finish is None and self._validate is None
        self.call = self._inner_call if as_it_is else self._adapted
        self.reserve_ns = 0
        self.reserve_until_ns = -(2**63)
        self._sources: dict[tuple[str, str], str] = {}
        self.skipped: Counter[str] = Counter()
        self.answered = self.late = self.failed = self.overdue = 0
        self.turned_away = self.given_up = self.probes = 0

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

    def source(self, better: str, reason: str) -> str:
        """How its answers are marked: its name, and why the best route did not answer."""
        source = self._sources.get((better, reason))
        if source is None:
            source = self._sources[better, reason] = f"{self.route.name} ({better}: {reason})"
        return source

    def count(self, ending: AttemptOutcome) -> None:
        """Counts an attempt that ended without an answer."""
        if ending.reason == "overdue":
            self.overdue += 1
        elif ending.reason == "cancelled" or (ending.final and ending.reason == "closed"):
            self.given_up += 1
        elif ending.outcome == NEUTRAL:
            self.turned_away += 1
        else:
            self.failed += 1

    def statistics(self, answered: int) -> RouteStatistics:
        """A snapshot.

        Args:
            answered: answers that it gave, those of the common case included.
        """
        rung = self.rung
        return RouteStatistics(
            name=self.route.name,
            quality=self.route.quality,
            share=rung.share,
            closed=rung.closed,
            answered=answered,
            late=self.late,
            failed=self.failed,
            overdue=self.overdue,
            turned_away=self.turned_away,
            given_up=self.given_up,
            in_flight=rung.in_flight,
            skipped=dict(sorted(self.skipped.items())),
            probes=self.probes,
            cuts=rung.cuts,
            departures=rung.departures,
            latency_s=rung.latency_ns / 1e9,
        )


def make_route_states(routes: Sequence[Route], *, backed: bool) -> tuple[list[RouteState], int]:
    """The lanes of a router, and the number of its devices.

    Args:
        routes: best first.
        backed: a default answer stands behind the last one.
    """
    devices: dict[Hashable, int] = {}
    lanes = []
    for position, route in enumerate(routes):
        device = devices.setdefault(route.device, len(devices))
        cheaper = [other for other in routes[position + 1 :] if route.costs_more_than(other)]
        rung = RouteShare(
            device,
            any(other.device == route.device for other in cheaper),
            bool(cheaper),
            position == len(routes) - 1,
            position == len(routes) - 1 and not backed,
        )
        lanes.append(RouteState(route, position, rung, degraded=route.quality < routes[0].quality))
    return lanes, len(devices)


def _adapter(function: Callable[[Any], Any]) -> Callable[[Any, str], Awaitable[Any]]:
    """A function of the user as a coroutine whose failure says what failed."""
    awaits = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)

    async def adapt(value: Any, context: str) -> Any:
        try:
            return await function(value) if awaits else function(value)
        except InvalidInput:
            raise
        except Exception as error:
            raise for_caller(error, context) from error

    return adapt

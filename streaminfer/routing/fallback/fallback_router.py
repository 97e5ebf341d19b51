"""`FallbackRouter`: the best of several routes that answers on time, request by request.

*Idea.* Before a request is enqueued anywhere, each route is asked, best first, whether it would answer it by its
deadline: ``admission`` looks and changes nothing. The first that says yes gets it. What no single request can see, a
route that fails, a device that all routes share, an error budget that burns, moves the *shares* of the ladder
(``_degradation_cy``), once a step. So a request with much time goes to the best route while one with little goes to a
fast one, and nothing has to switch for that.

*Time for the next.* A request that waits at a route is interrupted when the time that is left would no longer do for
the next one (``_attempts_cy``): a route that hangs costs its requests the answer of the best route, and not all answer.
It is not interrupted before the instant, and a quarter more, that the route itself predicted. After a failure all
routes that were not asked yet are looked at again from the best one.

*Probes.* What a route is thought to take is learned from what it does. One that refuses everything as late would never
be asked and never learn that it is fast again. So when such a route has had nothing to do for a step, a copy of a
request is sent there with ten times the time; its answer is thrown away, and the request itself goes elsewhere.

*Invariants.* Every request ends: with an answer, the default, an error, or its caller's cancellation; at its deadline
at the latest, even where a route does not enforce it. A request is at one route at a time, probes aside. What a route
holds of it is given back by cancellation, in the same task.

*Cost.* The common case, the best route takes it, is one look at ``admission``, one at the ladder, and one entry in the
list of attempts: no task and no timer. See ``benchmarks/bench_router.py``.
"""

import asyncio
import inspect
import time
from asyncio import current_task, get_running_loop
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from streaminfer._internal.instants import NEVER_NS
from streaminfer._internal.validation import check_duration, check_instance, expected
from streaminfer._runtime.lifecycle import start_all
from streaminfer._runtime.objective import is_slo_or_none
from streaminfer._runtime.stopping import seconds_left, stop_all, until_limit
from streaminfer.errors import Closed, DeadlineExceeded, for_caller
from streaminfer.protocols import Admission, AdmissionReason, Capabilities, Clock, Node, adapt, sooner
from streaminfer.request import Request, Response
from streaminfer.routing.fallback._attempts_cy import Attempt, Attempts
from streaminfer.routing.fallback._degradation_cy import GOOD, LATE, DegradationController
from streaminfer.routing.fallback._fast_path_cy import FastPath
from streaminfer.routing.fallback.attempt_history import AttemptHistory
from streaminfer.routing.fallback.attempt_outcome import classify
from streaminfer.routing.fallback.route import Route
from streaminfer.routing.fallback.route_selector import TOOK_IT, Chooser, deadline_of
from streaminfer.routing.fallback.route_state import RouteState, make_route_states
from streaminfer.telemetry.objectives.slo_reader import SloReader

if TYPE_CHECKING:
    from streaminfer.routing.fallback.statistics import RouterStatistics
    from streaminfer.telemetry.objectives.slo import SLO

__all__ = ["FallbackRouter"]


class FallbackRouter(Chooser, Node):
    """Several services as one, which answers with the best of them that is on time.

    ::

        router = FallbackRouter(
            Route("full", [batcher_192, full], quality=1.0, cost=3.4),
            Route("front", [batcher_128, front], quality=0.8, cost=1.0, prepare=to_128),
            slo=slo,
        )
        async with Stack(Telemetry("faces", slo=slo), router) as faces:
            boxes = await faces(image, timeout_s=0.1)

    It is a service: the last layer of a `Stack`, which starts and stops it, and so its routes. Used without one, call
    ``start`` and ``stop`` or use it as an async context manager.

    Args:
        *routes: best first, at least one, by quality, with different names.
        default: the last resort, when no route answers in time: a value, or a plain function of the request that runs
            on the event loop and returns one, a cached answer for instance. Its answers are degraded, from
            ``"default"``. ``None``: the request ends with the error of the last route that was asked, or `Overloaded`,
            `CircuitOpen` or `Closed` when none was.
        slo: an objective whose error budget, when it burns, closes the best routes. It is read here and fed elsewhere:
            by the `Telemetry` in front of the router.
        step_s: seconds between two looks at the shares, at least the time that most answers take.
        probes: send copies of requests to a route that promises only late answers and has nothing to do, to see whether
            that is still so. Never a request with a ``stream_id``, and none to a route whose service declares
            ``idempotent = False``.
        clock: returns monotonic nanoseconds; ``None``: that of the `Stack`, else ``time.monotonic_ns``.

    Attributes:
        enforces_deadline: true: every request ends at its deadline.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range, or routes that are not best first.

    Not thread-safe: it belongs to one event loop at a time.
    """

    enforces_deadline = True

    def __init__(
        self,
        *routes: Route,
        default: Any = None,
        slo: "SLO | None" = None,
        step_s: float = 0.25,
        probes: bool = True,
        clock: Clock | None = None,
    ) -> None:
        _check_routes(routes)
        check_instance("slo", slo, is_slo_or_none, "an SLO")
        check_instance("probes", probes, lambda value: isinstance(value, bool), "True or False")
        check_instance(
            "default", default, lambda value: not inspect.iscoroutinefunction(value), "a value or a plain function"
        )
        check_instance("clock", clock, lambda value: value is None or callable(value), "a callable or None")
        step_ns = max(round(check_duration("step_s", step_s, positive=True) * 1e9), 1)
        self.routes = routes
        self.default = default
        self.slo = slo
        self.clock: Clock = clock or time.monotonic_ns
        self._clock_given = clock is not None
        self._lanes, _ = make_route_states(routes, backed=default is not None)
        self._ladder = DegradationController([lane.rung for lane in self._lanes], step_ns)
        first_lane = self._lanes[0]
        self._first_call = first_lane.call
        self._gate = FastPath(
            self._ladder,
            first_lane.rung,
            first_lane.route.name,
            first_lane.admission,
            first_lane.enforces,
            default is not None,
        )
        offered = [adapt(route.service).capabilities() for route in routes]
        self._objective = next((each.slo for each in offered if each.slo is not None), None)
        self.validate = offered[0].validate if routes[0].prepare is None else None
        found = (adapt(service).capabilities().fingerprint_changes for service in self._services())
        self._changes: list[Callable[[], int]] = [changes for changes in found if changes is not None]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._stopping = False
        self._cutting = False
        self._drained: asyncio.Future[None] | None = None
        self._shadows = set()
        self._probes = probes
        self._budget = SloReader(slo, "a fallback router")
        self._reasons: Counter[str] = Counter()
        self._requests = self._degraded = self._defaulted = self._failed = self._cancelled = self._missed = 0
        if clock is not None:
            self._bind(clock)

    # -- callers ------------------------------------------------------------------------------------------------

    def fingerprint_changes(self) -> int:
        """Return how often the models of the routes have changed, for caches in front."""
        return sum(changes() for changes in self._changes)

    @property
    def children(self) -> Mapping[str, Any]:
        """The services of the routes by the name of the route."""
        return {route.name: route.service for route in self.routes}

    def capabilities(self) -> Capabilities:
        """The check of the best route, and what the router does itself."""
        return Capabilities(
            validate=self.validate,
            admission=self.admission,
            slo=self,
            fingerprint_changes=self.fingerprint_changes,
            enforces_deadline=True,
        )

    @property
    def slo_ns(self) -> int | None:
        """The objective of the best route that has one, from which the `Stack` stamps a deadline."""
        return None if self._objective is None else self._objective.slo_ns

    async def call(self, request: Request) -> Response:
        """Answers one request.

        Returns:
            The answer; ``source`` is the route's name, with the best route's reason behind it where another answered:
            ``"front (full: infeasible)"``.

        Raises:
            InvalidInput: what the caller brought does not fit the route that was asked: no other one is.
            DeadlineExceeded, Overloaded, CircuitOpen, BackendError: no route answered, and there is no default.
            Closed: the router stopped.
        """
        loop = get_running_loop()
        if loop is not self._loop:
            self._enter(loop)
        gate = self._gate
        now_ns = self.clock()
        task: asyncio.Task[Any] = current_task(loop)  # type: ignore[assignment]
        attempt = gate.take(request, now_ns, task)
        if attempt is None:
            self._begin(request, now_ns)
            return await self._go_on(request, AttemptHistory(now_ns), task, now_ns)
        try:
            response = await self._first_call(request)
        except BaseException as error:  # noqa: BLE001 - what ends the request is raised again there
            now_ns = self.clock()
            journey = AttemptHistory(attempt.started_ns)
            journey.offered[0] = True
            self._ended_badly(self._lanes[0], journey, attempt, error, task, now_ns)
        else:
            now_ns = self.clock()
            answer = gate.answered_by(attempt, response, now_ns)
            if answer is None:
                return self._answer(self._lanes[0], AttemptHistory(attempt.started_ns), attempt, response, task, now_ns)
            if self._drained is not None:
                self._look_whether_drained()
            return answer
        return await self._go_on(request, journey, task, now_ns)

    async def _go_on(
        self, request: Request, journey: AttemptHistory, task: "asyncio.Task[Any]", now_ns: int
    ) -> Response:
        """Asks one route after the other, until one answers."""
        attempts = self._gate.attempts
        deadline_ns = deadline_of(request)
        cancellations = task.cancelling()
        while True:
            lane = self._choose(request, journey, now_ns)
            if lane is None:
                return self._last_resort(request, journey, now_ns, deadline_ns)
            switch_ns = self._switch_ns(lane, request, journey, now_ns, deadline_ns)
            lane.rung.take()
            attempt = attempts.enter(task, cancellations, now_ns, switch_ns, deadline_ns)
            if switch_ns < attempts.timer_ns:
                self._arm(get_running_loop(), switch_ns, now_ns)
            try:
                response = await lane.call(request)
            except BaseException as error:  # noqa: BLE001 - what ends the request is raised again there
                now_ns = self.clock()
                self._ended_badly(lane, journey, attempt, error, task, now_ns)
            else:
                return self._answer(lane, journey, attempt, response, task, self.clock())

    def admission(self, request: Request, now_ns: int) -> Admission:
        """Whether a request would be answered now, and when by the best route that takes it; changes nothing.

        Routes are asked about the request as it came, before any ``prepare``.
        """
        if self._stopping:
            return Admission(False, AdmissionReason.CLOSED)
        if request.deadline_ns is not None and request.deadline_ns <= now_ns:
            return Admission(False, AdmissionReason.DEADLINE_EXCEEDED)
        refusal: Admission | None = None
        for lane in self._lanes:
            if lane.rung.closed:
                continue
            verdict = TOOK_IT if lane.admission is None else lane.admission(request, now_ns)
            if verdict.ok:
                return verdict
            if refusal is None:
                refusal = verdict
            else:
                refusal = refusal._replace(retry_after_s=sooner(refusal.retry_after_s, verdict.retry_after_s))
        if self.default is not None or refusal is None:
            return Admission(True)
        return refusal

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts the routes' services, each once; what started is stopped again if one fails."""
        self._enter(asyncio.get_running_loop())
        await start_all(self, self._services())
        self._stopping = self._cutting = False
        self._gate.is_open = True

    async def stop(self, *, drain: bool = True) -> None:
        """Accepts nothing more, ends what is in hand and stops the routes' services.

        Args:
            drain: answer what is in hand first; otherwise it ends with ``Closed``. A draining stop that is cancelled
                ends what is left with ``Closed`` and still stops every service.
        """
        self._enter(asyncio.get_running_loop())
        self._stopping = True
        self._gate.is_open = False
        failure: BaseException | None = None
        if drain:
            try:
                await until_limit(self._until_drained())
            except BaseException as error:  # noqa: BLE001 - raised below, after the services have been stopped
                failure = error
        self._cutting = True
        for shadow in self._shadows:
            shadow.cancel()
        self._gate.attempts.interrupt_all()
        if self._shadows:
            await asyncio.wait(self._shadows, timeout=seconds_left())
        await until_limit(self._until_drained())
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._gate.attempts.timer_ns = NEVER_NS
        await stop_all(self, self._services(), drain=drain and failure is None)
        if failure is not None:
            raise failure

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop(drain=error is None)

    def bind_clock(self, clock: Clock) -> None:
        """Takes over the clock of a `Stack`, unless one was given."""
        if not self._clock_given:
            self.clock = clock
            self._clock_given = True
            self._bind(clock)

    def statistics(self) -> "RouterStatistics":
        """A frozen snapshot: how every request ended, and what each route did."""
        from streaminfer.routing.fallback.statistics import RouterStatistics  # noqa: PLC0415 - serving does not need it

        lanes = self._lanes
        requests = self._requests + self._gate.taken
        counts = [lane.answered for lane in lanes]
        counts[0] += self._gate.answered
        answered = sum(counts)
        worth = sum(count * lane.route.quality for count, lane in zip(counts, lanes, strict=True))
        ended = answered + self._defaulted
        return RouterStatistics(
            requests=requests,
            answered=answered,
            degraded=self._degraded + self._gate.degraded,
            defaulted=self._defaulted,
            failed=self._failed,
            cancelled=self._cancelled,
            in_flight=requests - ended - self._failed - self._cancelled,
            missed=self._missed,
            mean_quality=worth / ended if ended else float("nan"),
            cost=sum(count * (lane.route.cost or 0.0) for count, lane in zip(counts, lanes, strict=True)),
            reasons=dict(sorted(self._reasons.items())),
            routes=tuple(lane.statistics(count) for count, lane in zip(counts, lanes, strict=True)),
        )

    def __repr__(self) -> str:
        shares = ", ".join(f"{lane.route.name} {lane.rung.share:.0%}" for lane in self._lanes)
        return f"<FallbackRouter: {shares}>"

    def _repr_html_(self) -> str:
        return self.statistics()._repr_html_()

    # -- choosing -----------------------------------------------------------------------------------------------

    def _begin(self, request: Request, now_ns: int) -> None:
        """What is due before a request whose case is not the common one; raises where it is turned away."""
        self._requests += 1
        if self._ladder.arrive(now_ns):
            self._ladder.step(now_ns, self._budget.burning(self._requests + self._gate.taken))
        deadline_ns = deadline_of(request)
        if self._stopping or deadline_ns <= now_ns:
            self._turn_away(now_ns, deadline_ns)

    # -- endings ------------------------------------------------------------------------------------------------

    def _answer(
        self,
        lane: RouteState,
        journey: AttemptHistory,
        attempt: Attempt,
        response: Response,
        task: "asyncio.Task[Any]",
        now_ns: int,
    ) -> Response:
        """Counts an answer, and marks it."""
        self._leave(attempt)
        if attempt.interrupted:  # the answer came in spite of it
            task.uncancel()
        lane.answered += 1
        duration_ns = now_ns - attempt.started_ns
        if attempt.deadline_ns == NEVER_NS:
            lane.rung.settle(GOOD, duration_ns, 0, now_ns)
        elif now_ns <= attempt.deadline_ns:
            lane.rung.settle(GOOD, duration_ns, attempt.deadline_ns - attempt.started_ns, now_ns)
        else:
            lane.late += 1
            lane.rung.settle(LATE, duration_ns, 0, now_ns)
            self._gate.distrust()
            self._miss(journey.busy | 1 << lane.rung.device)
        source = lane.route.name
        if lane.position:
            reason = journey.reasons.get(0, "")
            self._reasons[reason] += 1
            source = lane.source(self._lanes[0].route.name, reason)
        degraded = lane.degraded or response.degraded
        if degraded:
            self._degraded += 1
        return Response(response.outputs, degraded, source, response.timings)

    def _leave(self, attempt: Attempt) -> None:
        self._gate.attempts.leave(attempt)
        if self._drained is not None:
            self._look_whether_drained()

    def _miss(self, devices: int) -> None:
        self._missed += 1
        self._ladder.missed(devices)

    def _ended_badly(
        self,
        lane: RouteState,
        journey: AttemptHistory,
        attempt: Attempt,
        error: BaseException,
        task: "asyncio.Task[Any]",
        now_ns: int,
    ) -> None:
        """Counts how a route ended without an answer; raises what ends the request with it."""
        self._leave(attempt)
        self._gate.distrust()
        ending = classify(lane.route.name, attempt, error, task, now_ns, cutting=self._cutting)
        lane.rung.settle(ending.outcome, now_ns - attempt.started_ns, 0, now_ns)
        if ending.reason == "overdue" and attempt.was_given_up_early():
            lane.rung.stall()
        lane.count(ending)
        if ending.final:
            if ending.reason == "cancelled":
                self._cancelled += 1
            else:
                self._failed += 1
            raise ending.error
        journey.failed(lane, ending)
        if now_ns >= attempt.deadline_ns:  # no time for another one
            journey.tried.update(range(len(self._lanes)))

    def _last_resort(self, request: Request, journey: AttemptHistory, now_ns: int, deadline_ns: int) -> Response:
        self._miss(journey.busy)
        if self.default is None:
            self._failed += 1
            raise journey.take_error(self._lanes, now_ns, deadline_ns)
        try:
            outputs = self.default(request) if callable(self.default) else self.default
            if hasattr(type(outputs), "__await__"):
                if inspect.iscoroutine(outputs):
                    outputs.close()
                raise TypeError(  # noqa: TRY301 - it ends the request as any other failure of the default does
                    expected("default", "a value or a plain function of the request", self.default)
                )
        except BaseException as error:
            self._failed += 1
            if not isinstance(error, Exception):
                raise
            failure = for_caller(error, "default")
            failure.add_note(str(journey.take_error(self._lanes, now_ns, deadline_ns)))
            raise failure from error
        journey.error = None
        reason = journey.reasons.get(0, "")
        self._reasons[reason] += 1
        self._defaulted += 1
        return Response(outputs, True, f"default ({self._lanes[0].route.name}: {reason})", None)

    def _turn_away(self, now_ns: int, deadline_ns: int) -> None:
        self._failed += 1
        if self._stopping:
            raise Closed("the router has stopped")
        self._miss(0)
        raise DeadlineExceeded(f"the deadline had passed {(now_ns - deadline_ns) / 1e9:.6f} s before arrival")

    # -- timers --------------------------------------------------------------------------------------

    def _arm(self, loop: asyncio.AbstractEventLoop, wanted_ns: int, now_ns: int) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._gate.attempts.timer_ns = wanted_ns
        self._alarm = loop.call_later((wanted_ns - now_ns) / 1e9, self._on_alarm)

    def _on_alarm(self) -> None:
        # loops fire early by their resolution: an alarm for an instant means that the instant has come
        now_ns = max(self.clock(), self._gate.attempts.timer_ns)
        self._alarm = None
        wanted_ns = self._gate.attempts.interrupt_due(now_ns)
        if wanted_ns != NEVER_NS:
            self._arm(get_running_loop(), wanted_ns, now_ns)

    # -- inside -------------------------------------------------------------------------------------------------

    def _services(self) -> list[Any]:
        return list({id(route.service): route.service for route in self.routes}.values())

    def _bind(self, clock: Clock) -> None:
        for bound in (self.slo, *self._services()):
            adapt(bound).bind_clock(clock)

    def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed() and self._gate.attempts.count:
            raise RuntimeError(f"{self!r} serves requests of another event loop; it belongs to one loop at a time")
        self._loop = loop
        self._gate.attempts = Attempts()  # what a closed loop left behind is gone with it
        self._alarm = None

    async def _until_drained(self) -> None:
        if self._gate.attempts.count:
            drained = self._drained = asyncio.get_running_loop().create_future()
            try:
                await drained
            finally:
                self._drained = None

    def _look_whether_drained(self) -> None:
        if self._gate.attempts.count == 0 and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)


def _check_routes(routes: tuple[Route, ...]) -> None:
    if not routes:
        raise TypeError("routes: expected at least one Route, got none")
    for route in routes:
        check_instance("routes", route, lambda value: isinstance(value, Route), "Route objects")
    names = [route.name for route in routes]
    if len(set(names)) < len(names):
        raise ValueError(expected("routes", "different names", names))
    qualities = [route.quality for route in routes]
    if qualities != sorted(qualities, reverse=True):
        raise ValueError(expected("routes", "the best first, by quality", qualities))

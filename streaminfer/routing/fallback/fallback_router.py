"""`FallbackRouter`: the best of several routes that responds on time, request by request.

*Design.* Before the router sends a request, it calls ``admission`` of the routes, best first, which predicts whether a
route would respond by the deadline and changes nothing. The first route that accepts gets the request
(``route_selector``). A single request cannot see a route that fails, a device that routes share, or an error budget
that burns; these change the *shares* of the routes, once per step (``_degradation_cy``). So a request with much time
goes to the best route while a request with little time goes to a fast one, without a switch between modes.

*Time for the next route.* The router interrupts an attempt when the time left is only just enough for the next route
(``_attempts_cy``). So a route that hangs costs its requests the response of the best route, but not every response. The
router does not interrupt an attempt before its predicted finish and a quarter more. After a failure it calls
``admission`` of all untried routes again, best first.

*Complexity.* In the common case, the best route accepts and responds, a request costs one ``admission`` and one entry
in the list of attempts: no task and no timer.

*Invariants.* Every request ends with a response, the default, an error, or its caller's cancellation. It ends at its
deadline at the latest, even if a route does not enforce the deadline. Apart from probes, a request is at one route at a
time. To take a request back from a route, the router cancels the attempt in the same task.
"""

import asyncio
import time
from asyncio import current_task, get_running_loop
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

from streaminfer._internal.units import NEVER_NS
from streaminfer._internal.validation import check_duration_ns, check_instance
from streaminfer._runtime.lifecycle import seconds_left, start_all, stop_all
from streaminfer._runtime.objective import Burns
from streaminfer._runtime.response_source import fallback_source
from streaminfer._runtime.stack_clock import StackClock
from streaminfer._runtime.waiters import IdleWaiters
from streaminfer.errors import Closed, DeadlineExceeded, StreamInferError, for_caller
from streaminfer.protocols import Admission, AdmissionReason, Capabilities, Clock, Node, adapt, are_idempotent
from streaminfer.request import Request, Response, passed_on_arrival
from streaminfer.routing.fallback._attempts_cy import Attempt, Attempts
from streaminfer.routing.fallback._degradation_cy import DegradationController
from streaminfer.routing.fallback._fast_path_cy import FastPath
from streaminfer.routing.fallback._route_share_cy import GOOD, LATE
from streaminfer.routing.fallback.attempt_history import AttemptHistory
from streaminfer.routing.fallback.attempt_outcome import classify
from streaminfer.routing.fallback.attempt_timer import AttemptTimer
from streaminfer.routing.fallback.request_counts import RequestCounts
from streaminfer.routing.fallback.route import Route, announced_tensors, check_default, check_routes, default_outputs
from streaminfer.routing.fallback.route_probes import RouteProbes
from streaminfer.routing.fallback.route_selector import RouteSelector, deadline_of
from streaminfer.routing.fallback.route_state import RouteState, make_route_states
from streaminfer.routing.fallback.statistics import RouterStatistics
from streaminfer.routing.full_loads import full_load_of_all
from streaminfer.routing.stream_states import states_of_all
from streaminfer.telemetry.objectives.slo_reader import SloReader

if TYPE_CHECKING:
    from streaminfer.telemetry.objectives.slo import SLO

__all__ = ["FallbackRouter"]


class FallbackRouter(StackClock, Node):
    """Several services as one; the best service that can be on time responds.

    ::

        router = FallbackRouter(
            Route("full", [batcher_192, full], quality=1.0, cost=3.4),
            Route("front", [batcher_128, front], quality=0.8, cost=1.0, prepare=to_128),
            slo=slo,
        )
        async with Stack(Telemetry("faces", slo=slo), router) as faces:
            boxes = await faces(image, timeout_s=0.1)

    The router is a service: use it as the last layer of a `Stack`, which starts and stops the router and its routes.
    Without a `Stack`, call ``start`` and ``stop`` or use the router as an async context manager.

    Args:
        *routes: at least one route, the best quality first, with different names.
        default: the response when no route responds in time: a value, or a plain function of the request that runs on
            the event loop and returns one, for instance from a cache. These responses are degraded, from ``"default"``.
            ``None``: the request ends with the error of the last attempt; without an attempt, with `Overloaded`,
            `CircuitOpen` or `Closed`.
        slo: an objective; while its error budget burns, the router closes the best routes. The `Telemetry` around the
            router records into it.
        step_s: seconds between two adjustments of the shares, at least the time that most responses take.
        probes: send copies of requests to an idle route that predicts only late responses, to re-measure it. A request
            with a ``stream_id`` is never copied; a route with a service of ``idempotent = False`` gets no copies.
        clock: returns monotonic nanoseconds; ``None``: the clock of the `Stack`, else ``time.monotonic_ns``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range, or routes that are not best first.

    Not thread-safe: one event loop at a time.
    """

    def __init__(
        self,
        *routes: Route,
        default: Any = None,
        slo: "SLO | None" = None,
        step_s: float = 0.25,
        probes: bool = True,
        clock: Clock | None = None,
    ) -> None:
        check_routes(routes)
        check_default(default)
        check_instance("slo", slo, Burns | None, "an SLO")
        check_instance("probes", probes, bool, "True or False")
        step_ns = check_duration_ns("step_s", step_s, positive=True)
        self.routes = routes
        self.default = default
        self.slo = slo
        self.clock: Clock = self._accept_clock(clock) or time.monotonic_ns
        self._states = make_route_states(routes, has_default=default is not None)
        self._degradation = DegradationController([state.share for state in self._states], step_ns)
        best = self._states[0]
        self._best_call = best.call
        self._fast_path = FastPath(
            self._degradation, best.share, best.route.name, best.admission, best.enforces, default is not None
        )
        self._timer = AttemptTimer(self._fast_path, self.clock)
        self._probes = RouteProbes(step_ns, self._now) if probes else None
        self._selector = RouteSelector(self._states, self._fast_path, self._probes)
        offered = [adapt(route.service).capabilities() for route in routes]
        self._objective = next((each.slo for each in offered if each.slo is not None), None)
        self.validate = offered[0].validate if routes[0].prepare is None else None
        counters = (adapt(service).capabilities().fingerprint_changes for service in self._services())
        self._changes: list[Callable[[], int]] = [changes for changes in counters if changes is not None]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._interrupting = False
        self._idle = IdleWaiters()
        self._budget = SloReader(slo, "a fallback router")
        self._counts = RequestCounts()
        if self._clock_given:
            self._bind(self.clock)

    # -- callers ------------------------------------------------------------------------------------------------

    def fingerprint_changes(self) -> int:
        """Return how often the models of the routes have changed, for caches around the router."""
        return sum(changes() for changes in self._changes)

    @property
    def children(self) -> Mapping[str, Any]:
        """The services of the routes by the name of the route."""
        return {route.name: route.service for route in self.routes}

    def capabilities(self) -> Capabilities:
        """Return the check and the load of the best route, and the capabilities of the router itself."""
        offered = [adapt(service).capabilities() for service in self._services()]  # once: routers may nest
        best = offered[0]
        return Capabilities(
            validate=self.validate,
            admission=self.admission,
            slo=self,
            fingerprint_changes=self.fingerprint_changes,
            enforces_deadline=True,
            idempotent=are_idempotent(offered),
            max_in_flight=best.max_in_flight,
            full_load=best.full_load,
            spare_load=lambda: full_load_of_all(route.service for route in self.routes[1:]),
            spread_load=best.spread_load,
            next_batch=best.next_batch,
            slow_batch_ns=best.slow_batch_ns,
            shares_device=best.shares_device,
            stream_states=states_of_all(self._services, offered),
            many_answers=best.many_answers,
            model_tensors=lambda: announced_tensors(self.routes[0]),
        )

    @property
    def slo_ns(self) -> int | None:
        """The objective of the best route that has one, from which the `Stack` stamps a deadline."""
        return None if self._objective is None else self._objective.slo_ns

    async def call(self, request: Request) -> Response:
        """Serve one request.

        Returns:
            The response. Its ``source`` may be ``"front (full: infeasible)"``: the route, and why the best one did not
            respond.

        Raises:
            InvalidInput: the inputs do not fit the route; no other route is tried.
            DeadlineExceeded, Overloaded, CircuitOpen, BackendError: no route or default responded, or the request came
                after its deadline.
            Closed: the router stopped.
        """
        loop = get_running_loop()
        if loop is not self._loop:
            self._enter(loop)
        fast_path = self._fast_path
        now_ns = self.clock()
        attempt = fast_path.take(request, now_ns, current_task(loop))
        if attempt is None:
            self._begin(request, now_ns)
            return await self._try_routes(request, AttemptHistory(now_ns, fast_path.verdict), now_ns)
        try:
            response = await self._best_call(request)
        except BaseException as error:  # noqa: BLE001 - what ends the request is raised again there
            now_ns = self.clock()
            history = AttemptHistory(attempt.started_ns)
            history.offered[0] = True
            self._end_without_response(self._states[0], history, attempt, error, now_ns)
        else:
            now_ns = self.clock()
            marked = fast_path.respond(attempt, response, now_ns)
            if marked is None:
                history = AttemptHistory(attempt.started_ns)
                return self._respond(self._states[0], history, attempt, response, now_ns)
            if self._stopping:
                self._check_drained()
            return marked
        return await self._try_routes(request, history, now_ns)

    async def _try_routes(self, request: Request, history: AttemptHistory, now_ns: int) -> Response:
        """Try one route after the other, until one responds."""
        attempts = self._fast_path.attempts
        deadline_ns = deadline_of(request)
        cancellations = self._caller().cancelling()
        while True:
            state = self._selector.select(request, history, now_ns)
            if state is None:
                return self._respond_with_default(request, history, now_ns, deadline_ns)
            switch_ns = self._selector.switch_ns(state, request, history, now_ns, deadline_ns)
            state.share.take()
            attempt = attempts.enter(self._caller(), cancellations, now_ns, switch_ns, deadline_ns)
            if switch_ns < attempts.timer_ns:
                self._timer.set(switch_ns)
            try:
                response = await state.call(request)
            except BaseException as error:  # noqa: BLE001 - what ends the request is raised again there
                now_ns = self.clock()
                self._end_without_response(state, history, attempt, error, now_ns)
            else:
                return self._respond(state, history, attempt, response, self.clock())

    def admission(self, request: Request, now_ns: int) -> Admission:
        """Return whether a request would be accepted now, and when the best route would respond; changes nothing."""
        if self._stopping:
            return Admission(False, AdmissionReason.CLOSED)
        if request.deadline_ns is not None and request.deadline_ns <= now_ns:
            return Admission(False, AdmissionReason.DEADLINE_EXCEEDED)
        verdict = self._selector.admission(request, now_ns)
        return verdict if verdict.ok or self.default is None else Admission(True)

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the routes' services, each once; if one fails, the started ones are stopped again."""
        self._enter(asyncio.get_running_loop())
        await start_all(self, self._services())
        self._stopping = self._interrupting = False
        self._fast_path.is_open = True

    async def stop(self, *, drain: bool = True) -> None:
        """Accept no more requests, end those in flight and stop the routes' services.

        Args:
            drain: let the requests in flight complete; otherwise they end with ``Closed``. If the stop is cancelled,
                the rest ends with ``Closed`` and every service is still stopped.
        """
        self._enter(asyncio.get_running_loop())
        self._stopping = True
        self._fast_path.is_open = False
        try:
            if drain:
                await self._until_drained()
        except BaseException:
            drain = False
            raise
        finally:
            await self._end(drain)

    async def _end(self, drain: bool) -> None:
        """End the attempts in flight and stop the services, even if this call is cancelled meanwhile."""
        self._interrupting = True
        self._fast_path.attempts.interrupt_due(NEVER_NS)
        try:
            if self._probes is not None:
                await self._probes.end()
            await self._until_drained()
        finally:
            self._timer.close()
            await stop_all(self, self._services(), drain=drain)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        await self.stop(drain=error is None)

    def _use_clock(self, clock: Clock) -> None:
        self.clock = self._timer.clock = clock
        self._bind(clock)

    def statistics(self) -> RouterStatistics:
        """Return a frozen snapshot: every request's outcome, and the attempts at each route."""
        return self._counts.snapshot(self._states, self._fast_path)

    def __repr__(self) -> str:
        shares = ", ".join(f"{state.route.name} {state.share.fraction:.0%}" for state in self._states)
        return f"<FallbackRouter: {shares}>"

    # -- outcomes -----------------------------------------------------------------------------------------------

    def _begin(self, request: Request, now_ns: int) -> None:
        """Count a request that does not take the fast path, or reject it."""
        counts = self._counts
        counts.requests += 1
        if self._degradation.arrive(now_ns):
            self._degradation.step(now_ns, self._budget.burning(counts.requests + self._fast_path.requests))
        deadline_ns = deadline_of(request)
        if self._stopping:
            counts.failed += 1
            raise Closed("the router has stopped")
        if deadline_ns <= now_ns:
            counts.failed += 1
            self._miss(0, 0)
            raise DeadlineExceeded(passed_on_arrival(now_ns, deadline_ns))

    def _respond(
        self, state: RouteState, history: AttemptHistory, attempt: Attempt, response: Response, now_ns: int
    ) -> Response:
        """Count a response, and mark it."""
        self._leave(attempt)
        history.error = None  # its traceback holds frames that refer to the history, and thus the inputs
        if attempt.interrupted:  # the response came in spite of the interruption
            self._caller().uncancel()
        state.share.succeeded += 1
        is_late = now_ns > attempt.deadline_ns
        limit_ns = 0 if attempt.deadline_ns == NEVER_NS else attempt.deadline_ns - attempt.started_ns
        state.share.settle(LATE if is_late else GOOD, now_ns - attempt.started_ns, limit_ns, now_ns)
        if is_late:
            state.deadline_misses += 1
            self._fast_path.discard_verdict()
            self._miss(history.busy | 1 << state.share.device, attempt.deadline_ns - history.began_ns)
        source = state.route.name
        if state.position:
            reason = history.reasons.get(0, "")
            self._counts.reasons[reason] += 1
            source = fallback_source(source, self._states[0].route.name, reason)
        degraded = state.degraded or response.degraded
        state.share.degraded += degraded
        return Response(response.outputs, degraded, source, response.timings)

    def _end_without_response(
        self, state: RouteState, history: AttemptHistory, attempt: Attempt, error: BaseException, now_ns: int
    ) -> None:
        """Count an attempt without response; raise the error if the request ends with it."""
        self._leave(attempt)
        self._fast_path.discard_verdict()
        outcome = classify(state.route.name, attempt, error, self._caller(), now_ns, stopping=self._interrupting)
        limit_ns = attempt.deadline_ns - attempt.started_ns
        timings = error.timings if isinstance(error, StreamInferError) else None
        batch_ns = 0 if timings is None else timings.started_ns
        state.share.settle(outcome.effect, now_ns - attempt.started_ns, limit_ns, now_ns, batch_ns)
        if outcome.reason == "attempt_timeout" and attempt.was_interrupted_early():
            state.share.stalled = True  # until it responds or fails
        state.count(outcome)
        if outcome.final:
            if outcome.reason == "cancelled":
                self._counts.cancelled += 1
            else:
                self._counts.failed += 1
            history.error = None
            try:
                raise outcome.error
            finally:
                del error, outcome  # the error's traceback holds this frame, and thus the inputs
        history.failed(state, outcome)
        if now_ns >= attempt.deadline_ns:  # no time for another route
            history.tried.update(range(len(self._states)))

    def _respond_with_default(
        self, request: Request, history: AttemptHistory, now_ns: int, deadline_ns: int
    ) -> Response:
        counts = self._counts
        self._miss(history.busy, deadline_ns - history.began_ns)
        if self.default is None:
            counts.failed += 1
            raise history.take_error(self._states, now_ns, deadline_ns)
        try:
            outputs = default_outputs(self.default, request)
        except BaseException as error:
            counts.failed += 1
            if not isinstance(error, Exception):
                raise
            failure = for_caller(error, "default")
            failure.add_note(str(history.take_error(self._states, now_ns, deadline_ns)))
            try:
                raise failure from error
            finally:
                del failure  # its traceback holds this frame
        history.error = None
        reason = history.reasons.get(0, "")
        counts.reasons[reason] += 1
        counts.defaulted += 1
        return Response(outputs, True, fallback_source("default", self._states[0].route.name, reason), None)

    def _leave(self, attempt: Attempt) -> None:
        self._fast_path.attempts.leave(attempt)
        if self._stopping:
            self._check_drained()

    def _miss(self, devices: int, limit_ns: int) -> None:
        self._counts.deadline_misses += 1
        self._degradation.missed(devices, limit_ns)

    # -- inside -------------------------------------------------------------------------------------------------

    def _caller(self) -> "asyncio.Task[Any]":
        """Return the caller's task; no frame names it, because a task that fails holds the frames of its error."""
        return current_task(self._loop)  # type: ignore[return-value]

    def _now(self) -> int:
        return self.clock()

    def _services(self) -> list[Any]:
        return list({id(route.service): route.service for route in self.routes}.values())

    def _bind(self, clock: Clock) -> None:
        for bound in (self.slo, *self._services()):
            adapt(bound).bind_clock(clock)

    def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed() and self._fast_path.attempts.count:
            raise RuntimeError(f"{self!r} serves requests of another event loop; it belongs to one loop at a time")
        self._loop = loop
        self._fast_path.attempts = Attempts()  # the attempts of a closed loop ended with the loop
        self._idle.forget()
        self._timer.bind_loop(loop)

    async def _until_drained(self) -> None:
        """Wait until no attempt is in flight, or until the limit of the stop."""
        while self._fast_path.attempts.count and seconds_left() != 0.0:  # after one, a request may try another route
            await self._idle.wait(seconds_left())

    def _check_drained(self) -> None:
        if not self._fast_path.attempts.count:
            self._idle.wake()

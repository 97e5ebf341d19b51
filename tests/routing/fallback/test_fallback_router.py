"""The fallback router as its callers see it, in virtual time."""

import asyncio

import pytest

import streaminfer as si
from streaminfer.protocols import Admission, AdmissionReason
from streaminfer.request import Response
from streaminfer.routing import FallbackRouter, Route
from streaminfer.testing import HANG, ScriptedBackend, run

MS = 1_000_000


class Scripted:
    """Service that responds after a while, rejects, fails or hangs, as the test says."""

    def __init__(self, name, *, takes_s=0.001, verdict=None, enforces=False):
        self.name = name
        self.takes_s = takes_s
        self.verdict = verdict
        self.error = None
        self.hangs = False
        self.asked = []
        self.cancelled = 0
        self.events = []
        self.enforces_deadline = enforces

    async def call(self, request):
        self.asked.append(request)
        try:
            if self.hangs:
                await asyncio.Event().wait()
            await asyncio.sleep(self.takes_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return Response((self.name, request.inputs))

    def admission(self, request, now_ns):
        if callable(self.verdict):
            return self.verdict(request, now_ns)
        return self.verdict or Admission(True)

    async def start(self):
        self.events.append("start")

    async def stop(self, *, drain):
        self.events.append(f"stop {drain}")


def pair(**kwargs):
    best, second = Scripted("best"), Scripted("second")
    router = FallbackRouter(Route("best", best), Route("second", second, quality=0.5), **kwargs)
    return best, second, router


def ask(router, *, timeout_s=0.1, inputs=1.0, **kwargs):
    deadline_ns = None if timeout_s is None else router.clock() + round(timeout_s * 1e9)
    return router.call(si.Request(inputs, deadline_ns=deadline_ns, **kwargs))


def play(main, **kwargs):
    async def on(loop):
        best, second, router = pair(clock=loop.clock, **kwargs)
        return await main(loop, best, second, router)

    return run(on)


def test_the_best_route_answers():
    async def main(loop, best, second, router):
        for _ in range(20):
            response = await ask(router)
            assert (response.outputs, response.source, response.degraded) == (("best", 1.0), "best", False)
        assert not second.asked
        seen = router.statistics()
        assert (seen.requests, seen.succeeded, seen.degraded, seen.in_flight) == (20, 20, 0, 0)
        assert seen.mean_quality == 1.0
        assert "best" in seen._repr_html_()

    play(main)


@pytest.mark.parametrize("reason", ["infeasible", "queue_full", "limit", "circuit_open", "closed", "anything"])
def test_admission_rejection_skips_a_route(reason):
    async def main(loop, best, second, router):
        best.verdict = Admission(False, reason, 1.5)
        response = await ask(router, stream_id="no copies of it")
        assert (response.outputs[0], response.degraded) == ("second", True)
        assert response.source == f"second (best: {reason})"
        assert not best.asked
        assert router.statistics().reasons == {reason: 1}
        assert router.statistics()["best"].skipped == {reason: 1}

    play(main)


@pytest.mark.parametrize("timeout_s", [None, 0.1], ids=["no deadline", "deadline"])
def test_each_admission_is_called_once_per_request(timeout_s):
    """The router calls ``admission`` of a route that rejects a request only once for this request."""

    async def main(loop, best, second, router):
        looks = []
        await ask(router, timeout_s=timeout_s)
        best.verdict = lambda request, now_ns: looks.append(request) or Admission(False, AdmissionReason.QUEUE_FULL)
        for count in (1, 2):
            assert (await ask(router, timeout_s=timeout_s)).source == "second (best: queue_full)"
            assert len(looks) == count

    play(main)


def test_statistics_have_reasons_as_plain_words():
    async def main(loop, best, second, router):
        best.verdict = Admission(False, AdmissionReason.INFEASIBLE)
        await ask(router, stream_id="no copies of it")
        seen = router.statistics()
        assert repr(seen.reasons) == repr(seen["best"].skipped) == "{'infeasible': 1}"

    play(main)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (si.BackendError("broken"), "failed"),
        (RuntimeError("broken"), "failed"),
        (si.Overloaded("full"), "rejected"),
        (si.CircuitOpen("open"), "circuit_open"),
        (si.DeadlineExceeded("rejected early"), "deadline_exceeded"),
        (si.errors.Closed("stopped"), "closed"),
        (asyncio.CancelledError(), "failed"),
    ],
)
def test_error_moves_the_request_to_the_next_route(error, reason):
    """While time remains, a request whose route fails is sent to the next route."""

    async def main(loop, best, second, router):
        best.error = error
        for _ in range(3):
            response = await ask(router)
            assert response.source == f"second (best: {reason})"
        assert router.statistics().failed == router.statistics().cancelled == 0

    play(main)


def test_invalid_input_ends_request():
    """Invalid input is a mistake of the caller: the request fails, and its route keeps its whole share."""

    async def main(loop, best, second, router):
        best.error = si.InvalidInput("shape")
        for _ in range(20):
            with pytest.raises(si.InvalidInput):
                await ask(router)
        assert not second.asked
        assert router.statistics().failed == 20
        assert router.statistics()["best"].share == 1.0

    play(main)


@pytest.mark.parametrize("enforces", [False, True])
def test_a_hanging_route_leaves_the_next_one_its_time(enforces):
    async def main(loop, best, second, router):
        best.enforces_deadline = enforces
        router = FallbackRouter(Route("best", best), Route("second", second, quality=0.5), clock=loop.clock)
        best.verdict = Admission(False, "infeasible")
        assert (await ask(router)).source.startswith("second")  # so the router knows how long the second route takes
        best.verdict, best.hangs = None, True
        for _ in range(5):
            begun = loop.time()
            response = await ask(router)
            assert response.source == "second (best: attempt_timeout)"
            assert 0.09 < loop.time() - begun < 0.1
        assert best.cancelled == 5
        assert asyncio.current_task().cancelling() == 0
        assert router.statistics()["best"].attempt_timeouts == 5

    play(main)


def test_attempt_is_not_interrupted_before_prediction():
    """The router interrupts no attempt before its predicted finish."""

    async def main(loop, best, second, router):
        best.takes_s, second.takes_s = 0.08, 0.04
        second.verdict = lambda request, now_ns: Admission(True, predicted_finish_ns=now_ns + 40 * MS)
        best.verdict = lambda request, now_ns: Admission(True, predicted_finish_ns=now_ns + 81 * MS)
        assert (await ask(router)).source == "best"
        best.verdict = lambda request, now_ns: Admission(True, predicted_finish_ns=now_ns + 5 * MS)
        assert (await ask(router)).source == "second (best: attempt_timeout)"

    play(main)


def test_better_route_is_tried_again_with_time_left():
    """If a worse route fails while time remains, a better one that accepts by then gets the request."""

    async def main(loop, best, second, router):
        best.verdict = Admission(False, "queue_full")
        second.error, second.takes_s = si.BackendError("broken"), 0.01

        async def free_again():
            await asyncio.sleep(0.005)
            best.verdict = None

        waiting = asyncio.ensure_future(free_again())
        response = await ask(router)
        assert (response.outputs[0], response.source, response.degraded) == ("best", "best", False)
        await waiting

    play(main)


def test_route_is_chosen_by_time_of_each_request():
    """The router chooses a route for each request by the time that this request has left."""

    async def main(loop, best, second, router):
        best.takes_s = 0.05
        best.verdict = lambda request, now_ns: Admission(
            now_ns + 50 * MS <= request.deadline_ns, "infeasible", 0.0, now_ns + 50 * MS
        )
        for timeout_s, source in ((0.1, "best"), (0.02, "second (best: infeasible)"), (0.1, "best")):
            assert (await ask(router, timeout_s=timeout_s, stream_id=1)).source == source

    play(main)


def test_every_route_rejects():
    """If every route rejects, the error has their common reason and the shortest time to retry."""

    async def main(loop, best, second, router):
        for reasons, error in (
            (("infeasible", "queue_full"), si.Overloaded),
            (("circuit_open", "circuit_open"), si.CircuitOpen),
            (("closed", "closed"), si.errors.Closed),
        ):
            best.verdict, second.verdict = (Admission(False, reason, 0.5 + at) for at, reason in enumerate(reasons))
            second.hangs = True
            with pytest.raises(error, match="best: ") as caught:
                await ask(router, stream_id=1)
            if hasattr(caught.value, "retry_after_s"):
                assert caught.value.retry_after_s == 0.5
        assert router.admission(si.Request(1.0), 0).reason == "closed"
        assert router.statistics().failed == router.statistics().deadline_misses == 3

    async def with_in_flight(loop, best, second, router):
        best.hangs = True
        other = asyncio.ensure_future(ask(router, timeout_s=None))
        await asyncio.sleep(0)
        await main(loop, best, second, router)
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other

    play(with_in_flight)


def test_error_of_last_route_names_other_routes():
    """The error of the last route carries a note with the outcome of each route."""

    async def main(loop, best, second, router):
        best.verdict = Admission(False, "circuit_open")
        second.error = si.BackendError("broken too")
        with pytest.raises(si.BackendError) as caught:
            await ask(router)
        assert "best: circuit_open, second: failed" in caught.value.__notes__[0]

    play(main)


@pytest.mark.parametrize("default", [("default", 1.0), lambda request: ("default", request.inputs)])
def test_the_default_comes_before_the_deadline(default):
    async def main(loop, best, second, router):
        best.hangs = second.hangs = True
        begun = loop.time()
        response = await ask(router)
        assert response.outputs == ("default", 1.0)
        assert (response.degraded, response.source) == (True, "default (best: attempt_timeout)")
        assert loop.time() - begun < 0.1
        seen = router.statistics()
        assert (seen.defaulted, seen.deadline_misses, seen.mean_quality) == (1, 1, 0.0)
        assert router.admission(si.Request(1.0), loop.now_ns).ok

    play(main, default=default)


def test_a_default_that_fails_is_an_error_that_says_so():
    def broken(request):
        raise ValueError("no cache")

    async def main(loop, best, second, router):
        best.verdict = second.verdict = Admission(False, "queue_full")
        with pytest.raises(si.BackendError, match="default raised ValueError: no cache") as caught:
            await ask(router)
        assert "best: queue_full" in caught.value.__notes__[0]

    play(main, default=broken)


@pytest.mark.parametrize("options", [{}, {"default": 1.0}], ids=["no default", "default"])
def test_a_request_after_its_deadline_is_rejected(options):
    async def main(loop, best, second, router):
        with pytest.raises(si.DeadlineExceeded):
            await ask(router, timeout_s=0)
        assert not best.asked

    play(main, **options)


def test_prepare_and_finish_are_each_routes_own():
    async def double(x):
        await asyncio.sleep(0.001)
        return 2 * x

    async def main(loop):
        best, second = Scripted("best"), Scripted("second")
        router = FallbackRouter(
            Route("best", best, prepare=lambda x: x + 1, finish=lambda outputs: outputs[1]),
            Route("second", second, prepare=double, quality=0.5),
            clock=loop.clock,
        )
        assert (await ask(router, inputs=1)).outputs == 2
        best.verdict = Admission(False, "queue_full")
        request = si.Request(5, deadline_ns=10**9)
        assert (await router.call(request)).outputs == ("second", 10)
        assert request.inputs == 5

    run(main)


@pytest.mark.parametrize("part", ["prepare", "finish"])
def test_an_adapter_that_hangs_ends_at_the_deadline(part):
    """A request whose adapter hangs ends at its deadline, although the service of the route enforces deadlines."""

    async def hang(_):
        await asyncio.sleep(10.0)

    async def main(loop):
        route = Route("only", [si.AdaptiveBatcher(max_batch_size=1), ScriptedBackend()], **{part: hang})
        async with si.Stack(FallbackRouter(route), clock=loop.clock) as stack:
            began_ns = loop.now_ns
            with pytest.raises(si.DeadlineExceeded):
                await stack(1.0, timeout_s=0.25)
            assert loop.now_ns - began_ns == 250_000_000

    run(main)


def test_a_prepare_that_fails_counts_against_its_route():
    async def main(loop):
        best, second = Scripted("best"), Scripted("second")
        router = FallbackRouter(
            Route("best", best, prepare=lambda x: x.missing), Route("second", second), clock=loop.clock
        )
        response = await ask(router)
        assert (response.source, response.degraded) == ("second (best: failed)", False)  # as good, so not degraded
        assert not best.asked

    run(main)


@pytest.mark.parametrize("after_s", [0.0, 0.0005, 0.02])
def test_cancelled_caller_frees_its_route(after_s):
    """If its caller is cancelled, a request ends at once and is not in flight at its route."""

    async def main(loop, best, second, router):
        best.hangs = True
        call = asyncio.ensure_future(ask(router))
        await asyncio.sleep(after_s)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not second.asked
        seen = router.statistics()
        assert seen.in_flight == seen["best"].in_flight == 0

    play(main)


def test_cancellation_wins_over_switch_in_same_turn():
    """A caller that is cancelled in the turn of the loop in which the router would switch routes ends cancelled."""

    async def main(loop, best, second, router):
        best.hangs = True
        call = asyncio.ensure_future(ask(router))
        loop.call_at(0.075, call.cancel)  # the second route's duration is unknown, so it gets a quarter
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not second.asked
        assert router.statistics().cancelled == 1

    play(main)


def test_an_outer_timeout_still_works_around_a_switch():
    async def main(loop, best, second, router):
        best.hangs = second.hangs = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.08):
                await ask(router)
        assert asyncio.current_task().cancelling() == 0

    play(main)


def test_a_draining_stop_waits_and_a_hard_one_does_not():
    async def main(loop, best, second, router):
        async with router:
            best.takes_s = 0.05
            call = asyncio.ensure_future(ask(router))
            await asyncio.sleep(0.01)
        assert (await call).source == "best"
        assert best.events == second.events == ["start", "stop True"]
        with pytest.raises(si.errors.Closed):
            await ask(router)
        assert router.admission(si.Request(1.0), 0).reason == "closed"
        await router.start()
        best.hangs = True
        calls = [asyncio.ensure_future(ask(router, timeout_s=limit)) for limit in (None, 0.1)]
        await asyncio.sleep(0.01)
        await router.stop(drain=False)
        assert loop.time() < 0.08
        for call in calls:
            with pytest.raises(si.errors.Closed):
                await call
        assert router.statistics().in_flight == 0

    play(main)


def test_a_drain_waits_for_the_next_route_too():
    """A request whose route fails during a drain gets the response of the next route."""

    async def main(loop, best, second, router):
        best.takes_s, best.error, second.takes_s = 0.02, si.BackendError("broken"), 0.02
        async with router:
            call = asyncio.ensure_future(ask(router))
            await asyncio.sleep(0.01)
        assert (await call).source == "second (best: failed)"

    play(main)


@pytest.mark.parametrize("timeout_s", [None, 0.1], ids=["no deadline", "deadline"])
def test_a_route_whose_admission_raises_is_called(timeout_s, caplog):
    """If ``admission`` raises, the router calls the route: a response counts, and an error moves the request on."""

    async def main(loop, best, second, router):
        def verdict(request, now_ns):
            raise KeyError("tenant")

        best.verdict = verdict
        assert [(await ask(router, timeout_s=timeout_s)).source for _ in range(3)] == ["best"] * 3
        best.error = KeyError("tenant")
        assert (await ask(router, timeout_s=timeout_s)).source == "second (best: failed)"
        seen = router.statistics()
        assert (seen.requests, seen.succeeded, seen.in_flight) == (4, 4, 0)

    play(main)
    assert [record.message.split(":")[0] for record in caplog.records] == ["admission of route 'best' failed"]


def test_routes_may_have_any_number_of_devices():
    """A request that fails at 70 routes, each on its own device, ends with the error of the last route."""

    async def main(loop):
        routes = [Scripted(str(number)) for number in range(70)]
        for route in routes:
            route.error = si.Overloaded("full")
        router = FallbackRouter(*(Route(it.name, it, device=it.name) for it in routes), clock=loop.clock)
        async with router:
            with pytest.raises(si.Overloaded, match="full"):
                await ask(router)
        assert router.statistics().in_flight == 0

    run(main)


def test_a_hard_stop_tries_no_other_route():
    """If a route turns the cancellation by a stop into its own error, the request ends with this error."""

    class Rough(Scripted):
        async def call(self, request):
            try:
                return await super().call(request)
            except asyncio.CancelledError as error:
                raise si.BackendError("interrupted") from error

    async def main(loop):
        rough, second = Rough("rough", takes_s=1.0), Scripted("second")
        router = FallbackRouter(Route("rough", rough), Route("second", second, quality=0.5), clock=loop.clock)
        await router.start()
        call = asyncio.ensure_future(router.call(si.Request(1.0)))
        await asyncio.sleep(0.01)
        await router.stop(drain=False)
        with pytest.raises(si.BackendError, match="interrupted"):
            await call
        assert second.asked == []

    run(main)


def test_services_start_once_and_stop_if_one_fails():
    """The router starts each service once, and stops it again if another service fails to start."""

    async def main(loop):
        shared, broken = Scripted("shared"), Scripted("broken")

        async def start():
            raise RuntimeError("no device")

        broken.start = start
        router = FallbackRouter(Route("a", shared), Route("b", shared), Route("c", broken), clock=loop.clock)
        with pytest.raises(RuntimeError, match="no device"):
            await router.start()
        assert shared.events == ["start", "stop False"]

    run(main)


def test_burning_budget_closes_best_route():
    """A burning budget closes the best route; afterwards the route returns gradually."""

    class Burning:
        now = False

        def burning(self):
            return self.now

    budget = Burning()

    async def main(loop, best, second, router):
        async def second_of_traffic():
            sources = [(await ask(router)).source]
            for _ in range(99):
                await asyncio.sleep(0.009)
                sources.append((await ask(router)).source)
            return sources

        assert set(await second_of_traffic()) == {"best"}
        budget.now = True
        assert (await second_of_traffic()).count("second (best: burning)") > 70
        budget.now = False
        shares = [sum(source == "best" for source in await second_of_traffic()) for _ in range(4)]
        assert shares[0] < 60
        assert shares == sorted(shares)
        assert shares[-1] == 100
        assert router.statistics()["best"].flaps == 1

    play(main, slo=budget)


def test_infeasible_route_is_probed_and_returns():
    """A route that predicts a late finish is probed, and returns once it is fast again."""

    async def main(loop, best, second, router):
        slow = True

        def verdict(request, now_ns):
            finish_ns = now_ns + (500 if slow else 1) * MS
            return Admission(finish_ns <= request.deadline_ns, "infeasible", 0.0, finish_ns)

        best.verdict = verdict
        for _ in range(100):
            assert (await ask(router)).source == "second (best: infeasible)"
            await asyncio.sleep(0.009)
        assert 2 <= router.statistics()["best"].probes <= 4
        assert len(best.asked) == router.statistics()["best"].probes
        slow = False
        assert (await ask(router)).source == "best"

    play(main)


@pytest.mark.parametrize(("error", "records"), [(OSError("down"), 1), (si.Overloaded("full"), 0)], ids=repr)
def test_probes_that_fail_are_counted_and_logged_once(error, records, caplog):
    """The router logs the first probe that fails, but no rejected probe, because the route has given its reason."""

    async def main(loop, best, second, router):
        best.verdict = Admission(False, "infeasible")
        best.error = error
        for _ in range(100):
            await ask(router)
            await asyncio.sleep(0.009)
        state = router.statistics()["best"]
        assert state.skipped["probe_failed"] == state.probes >= 2

    play(main)
    assert [type(error).__name__ in record.getMessage() for record in caplog.records] == [True] * records


def test_probe_stopped_before_start_is_not_in_flight():
    """A probe that a stop cancels before it starts is not in flight, so the route can be probed again."""

    async def main(loop, best, second, router):
        best.verdict = Admission(False, "infeasible")
        await asyncio.sleep(0.3)
        closed, _ = await asyncio.gather(ask(router), router.stop(drain=False), return_exceptions=True)
        assert isinstance(closed, si.errors.Closed)
        assert not best.asked
        assert (router.statistics()["best"].probes, router.statistics()["best"].in_flight) == (1, 0)
        await router.start()
        await asyncio.sleep(0.3)
        await ask(router)
        assert best.asked

    play(main)


def test_lone_infeasible_route_is_used_when_idle():
    """If the only route considers a request infeasible, it gets the request anyway while it is idle."""

    async def main(loop):
        only = Scripted("only", verdict=Admission(False, "infeasible"))
        router = FallbackRouter(Route("only", only), clock=loop.clock)
        assert (await ask(router)).source == "only"

    run(main)


def test_no_other_route_after_deadline():
    """Once the deadline has passed, the router sends no attempt to another route."""

    async def main(loop, best, second, router):
        best.takes_s, best.error = 0.05, si.BackendError("broken, and late")
        best.verdict = lambda request, now_ns: Admission(True, predicted_finish_ns=now_ns + 29 * MS)
        best.enforces_deadline = True  # so the router relies on the route, which does not do so
        router = FallbackRouter(Route("best", best), Route("second", second), clock=loop.clock)
        with pytest.raises(si.BackendError):
            await ask(router, timeout_s=0.03)
        assert not second.asked

    play(main)


@pytest.mark.parametrize(("devices", "source"), [(("a", "b"), "best"), (("a", "a"), None)])
def test_route_helps_out_beyond_its_share(devices, source):
    """A route takes requests beyond its share if the others reject them, unless the routes share a device."""

    async def main(loop, best, second, router):
        router = FallbackRouter(
            *(Route(name, service, device=device)
              for name, service, device in zip(("best", "second"), (best, second), devices, strict=True)),
            clock=loop.clock,
        )  # fmt: skip
        best.error = si.BackendError("broken")
        for _ in range(200):
            await ask(router)
            await asyncio.sleep(0.02)
        assert router.statistics()["best"].share < 0.1
        best.error, second.hangs = None, True
        second.verdict = Admission(False, "queue_full")
        sources = set()
        for _ in range(3):
            try:
                sources.add((await ask(router)).source)
            except si.Overloaded:
                sources.add(None)
        assert source in sources
        assert (None in sources) is (source is None)

    play(main)


def test_inside_a_stack_with_real_batchers():
    async def main(loop):
        routes = [
            Route(name, [si.AdaptiveBatcher(max_batch_size=4, slo_s=slo_s), ScriptedBackend(*steps, duration_s=0.01)],
                  quality=quality)
            for name, slo_s, quality, steps in (("a", 0.2, 1.0, [HANG]), ("b", 0.3, 0.5, []))
        ]  # fmt: skip
        router = FallbackRouter(*routes)
        assert router.slo_ns == 200 * MS
        async with si.Stack(si.Telemetry("routed"), router, clock=loop.clock) as service:
            first = await service.call(si.Request(1.0))
            assert first.source == "b (a: attempt_timeout)"
            assert loop.time() < 0.2
            assert await service(2.0) == 2.0
            assert service.statistics()["Telemetry"].outcomes["degraded"] >= 1
        assert "stopped" in repr(routes[0].service)

    run(main)


def test_two_concurrent_loops_are_rejected():
    router = pair()[2]

    async def hold():
        best = router.routes[0].service
        best.hangs = True
        call = asyncio.ensure_future(ask(router, timeout_s=None))
        await asyncio.sleep(0)

        def other():
            return asyncio.run(asyncio.wait_for(ask(router, timeout_s=None), 1))

        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(other)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(hold())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (FallbackRouter, "at least one"),
        (lambda: FallbackRouter(Scripted("x")), "Route objects"),
        (lambda: FallbackRouter(Route("a", Scripted("x")), Route("a", Scripted("y"))), "different names"),
        (lambda: FallbackRouter(Route("a", Scripted("x"), quality=0.1), Route("b", Scripted("y"))), "best first"),
        (lambda: FallbackRouter(Route("a", Scripted("x")), slo=3), "slo"),
        (lambda: FallbackRouter(Route("a", Scripted("x")), step_s=0), "step_s"),
        (lambda: Route("", Scripted("x")), "name"),
        (lambda: Route("a", 5), "service"),
        (lambda: Route("a", Scripted("x"), quality=-1), "quality"),
        (lambda: Route("a", Scripted("x"), cost=0), "cost"),
        (lambda: Route("a", Scripted("x"), prepare=3), "prepare"),
        (lambda: Route("a", Scripted("x"), device=[]), "device"),
    ],
)
def test_wrong_settings_are_rejected(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_async_default_is_rejected():
    """A default is no coroutine function and returns no awaitable, because no time is left to await it."""

    async def default(request):
        return request

    with pytest.raises(TypeError, match="default: expected a value or a plain function"):
        FallbackRouter(Route("best", Scripted("best")), default=default)

    async def main(loop, best, second, router):
        best.error = second.error = RuntimeError("broken")
        with pytest.raises(si.BackendError, match="default") as failed:
            await ask(router)
        assert isinstance(failed.value.__cause__, TypeError)

    play(main, default=lambda request: default(request.inputs))


@pytest.mark.parametrize(("probes", "idempotent"), [(False, None), (True, False)])
def test_no_probe_where_copies_are_not_allowed(probes, idempotent):
    """The router sends no probe to a service that is not idempotent, and none to any service if probes are off."""

    async def main(loop):
        best, second = Scripted("best", verdict=Admission(False, "infeasible")), Scripted("second")
        best.idempotent = idempotent
        router = FallbackRouter(
            Route("best", best), Route("second", second, quality=0.5), probes=probes, clock=loop.clock
        )
        for _ in range(10):
            await ask(router)
            await asyncio.sleep(0.3)
        assert not best.asked

    run(main)


@pytest.mark.parametrize(("known", "expected"), [((None, None), None), ((None, 1.5), 1.5), ((2.0, 0.5), 0.5)])
def test_the_time_to_retry_is_the_least_that_is_known(known, expected):
    """The time to retry is the shortest that a route gives; a route that gives none does not count as zero."""

    async def main(loop, best, second, router):
        best.verdict, second.verdict = (Admission(False, "queue_full", seconds) for seconds in known)
        with pytest.raises(si.Overloaded) as refused:
            await ask(router)
        assert refused.value.retry_after_s == expected
        assert router.admission(si.Request(1.0), loop.now_ns).retry_after_s == expected

    play(main)


@pytest.mark.parametrize("second_drains", [True, False])
def test_two_stops_of_one_drain_both_return(second_drains):
    async def main(loop):
        _, _, router = pair(clock=loop.clock)
        await router.start()
        request = asyncio.ensure_future(router.call(si.Request(1.0)))
        await asyncio.sleep(0)
        stops = [asyncio.ensure_future(router.stop())]
        await asyncio.sleep(0)
        stops.append(asyncio.ensure_future(router.stop(drain=second_drains)))
        await asyncio.wait_for(asyncio.gather(*stops), 5.0)
        await asyncio.wait([request])

    run(main)


@pytest.mark.parametrize("drain", [True, False])
def test_cancelled_stop_still_stops_services(drain):
    """A cancelled stop still stops the services, even if a route takes long to end its cancelled request."""

    class Stubborn(Scripted):
        async def call(self, request):
            try:
                return await super().call(request)
            except asyncio.CancelledError:
                await asyncio.sleep(1.0)
                raise

    async def main(loop):
        service = Stubborn("best", takes_s=60.0)
        router = FallbackRouter(Route("best", service), clock=loop.clock)
        await router.start()
        request = asyncio.ensure_future(router.call(si.Request(1.0)))
        await asyncio.sleep(0)
        stop = asyncio.ensure_future(router.stop(drain=drain))
        for _ in range(2):
            await asyncio.sleep(0.1)
            stop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stop
        assert service.events == ["start", "stop False"]
        with pytest.raises(si.Closed):
            await request

    run(main)


def test_expected_batch_time_is_not_that_of_one_route():
    """The router states no expected batch time: a frame that is late at the best route may be on time at the next."""
    best, second = (si.AdaptiveBatcher(max_batch_size=4).wrap(ScriptedBackend()) for _ in range(2))
    offered = FallbackRouter(Route("best", best), Route("second", second, quality=0.5)).capabilities()

    assert best.capabilities().expected_batch_ns is not None
    assert offered.slow_batch_ns is not None
    assert offered.expected_batch_ns is None

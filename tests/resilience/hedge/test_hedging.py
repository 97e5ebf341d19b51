"""Hedges in virtual time: their delay, the attempt that wins, the attempts that lose, and the extra load."""

import asyncio
import contextlib
import inspect
import random
from collections.abc import Awaitable

import numpy as np
import pytest

import streaminfer as si
from streaminfer.protocols import Admission, is_backend
from streaminfer.request import Batch, Request, Response
from streaminfer.resilience.hedge.hedging import Hedge
from streaminfer.telemetry.families.routes import route_of
from streaminfer.testing import HANG, FakeClock, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled

MS = 1_000_000


class Service:
    """Service that follows a script of (seconds, response or error), and then responds 1.0 after 10 ms."""

    def __init__(self, *script, **more):
        self.script = list(script)
        self.asked_at = []
        self.running = 0
        self.cancelled = 0
        self.__dict__.update(more)

    async def call(self, request):
        seconds, answer = self.script.pop(0) if self.script else (0.010, 1.0)
        self.asked_at.append(asyncio.get_running_loop().time())
        self.running += 1
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if isinstance(answer, Exception):
            raise answer
        return Response(answer)


async def warm(hedged, count=40):
    """Send requests that take 10 ms each, so that the hedge knows the quantile."""
    for _ in range(count):
        await hedged.call(Request(0.0))


def scenario(test, *, service=None, warm_up=40, **settings):
    """Run ``test(loop, hedge, service, hedged)`` with a hedge that knows that responses take 10 ms."""

    async def main(loop):
        behind = service or Service()
        script, behind.script = behind.script, []
        hedge = Hedge(clock=loop.clock, **settings)
        hedged = hedge.wrap(behind)
        await warm(hedged, warm_up)
        behind.script = script
        behind.asked_at.clear()
        before = asyncio.all_tasks()
        await test(loop, hedge, behind, hedged)
        assert asyncio.all_tasks() == before, "tasks were left behind"
        assert behind.running == 0

    run(main)


def seen(hedge, *names):
    statistics = hedge.statistics()
    return tuple(getattr(statistics, name) for name in names)


# -- when -------------------------------------------------------------------------------------------------------


def test_first_response_of_hedged_request_wins():
    """A request without a response after the delay is sent again, and the first response wins."""

    async def test(loop, hedge, service, hedged):
        began = loop.time()
        response = await hedged.call(Request(0.0))
        assert response.outputs == "second"
        assert loop.time() - began == pytest.approx(0.020, rel=0.02)
        assert [at - began for at in service.asked_at] == pytest.approx([0.0, 0.010], rel=0.02)
        assert service.cancelled == 1
        assert seen(hedge, "requests", "hedges", "won", "cancelling") == (41, 1, 1, 0)

    scenario(test, service=Service((0.5, "first"), (0.010, "second")))


def test_first_attempt_may_win_after_hedge():
    async def test(loop, hedge, service, hedged):
        assert (await hedged.call(Request(0.0))).outputs == "first"
        assert service.cancelled == 1
        assert seen(hedge, "hedges", "won") == (1, 0)

    scenario(test, service=Service((0.015, "first"), (0.010, "second")))


def test_fast_request_is_not_hedged():
    async def test(loop, hedge, service, hedged):
        assert (await hedged.call(Request(0.0))).outputs == "first"
        assert len(service.asked_at) == 1

    scenario(test, service=Service((0.009, "first")))


def test_no_hedge_before_enough_samples():
    """Until twenty durations are known, there is no delay and no hedge."""

    async def test(loop, hedge, service, hedged):
        assert hedge.delay_s is None
        assert (await hedged.call(Request(0.0))).outputs == "slow"
        assert len(service.asked_at) == 1
        assert hedge.delay_s == pytest.approx(0.010, rel=0.02)  # after the twentieth

    scenario(test, service=Service((0.5, "slow")), warm_up=19)


def test_the_delay_is_a_live_quantile():
    async def test(loop, hedge, service, hedged):
        assert hedge.delay_s == pytest.approx(0.010, rel=0.02)
        service.script = [(0.1, 1.0)] * 1000
        for _ in range(600):
            await hedged.call(Request(0.0))
        assert hedge.delay_s == pytest.approx(0.1, rel=0.02)  # old durations are forgotten, and those that lost count
        assert seen(hedge, "extra")[0] <= 0.05

    scenario(test, service=Service())


def test_losing_first_attempts_count_with_their_time():
    """A first attempt that loses counts in the delay with the time until its cancellation."""

    async def test(loop, hedge, service, hedged):
        for _ in range(60):
            service.script = [(0.5, "first"), (0.010, "second")]
            assert (await hedged.call(Request(0.0))).outputs == "second"
        assert hedge.delay_s > 0.019

    scenario(test, max_extra=1.0)


def test_delay_is_at_least_min_delay_s():
    async def test(loop, hedge, service, hedged):
        assert hedge.delay_s == 0.1
        await hedged.call(Request(0.0))
        assert len(service.asked_at) == 1

    scenario(test, service=Service((0.09, 1.0)), min_delay_s=0.1)


@pytest.mark.parametrize(
    ("declared", "behind", "stream_id", "hedged_"),
    [
        (None, None, None, True),
        (None, None, 7, False),
        (None, True, 7, True),
        (None, False, None, False),
        (True, None, 7, True),
        (False, None, None, False),
    ],
)
def test_which_requests_are_sent_twice(declared, behind, stream_id, hedged_):
    async def test(loop, hedge, service, hedged):
        await hedged.call(Request(0.0, stream_id=stream_id))
        assert len(service.asked_at) == 1 + hedged_

    more = {} if behind is None else {"idempotent": behind}
    scenario(test, service=Service((0.5, 1.0), **more), idempotent=declared)


@pytest.mark.parametrize(("deadline_ms", "hedges"), [(19, 0), (21, 1)])
def test_infeasible_second_attempt_is_not_sent(deadline_ms, hedges):
    """A second attempt that could not be on time is not sent."""

    async def test(loop, hedge, service, hedged):
        await hedged.call(Request(0.0, deadline_ns=loop.now_ns + deadline_ms * MS))
        assert seen(hedge, "hedges", "infeasible") == (hedges, 1 - hedges)

    scenario(test, service=Service((0.05, 1.0)))


def test_hedge_skips_service_that_would_reject():
    """No hedge is sent if the admission of the service rejects it, and the hedge counts as rejected."""

    async def test(loop, hedge, service, hedged):
        await hedged.call(Request(0.0))
        assert seen(hedge, "hedges", "rejected") == (0, 1)

    full = Service((0.05, 1.0), admission=lambda request, now_ns: Admission(False, "queue_full"))
    scenario(test, service=full)


def test_admission_that_fails_prevents_only_the_hedge(caplog):
    """An error of the service's admission is logged, and the first request continues."""

    async def test(loop, hedge, service, hedged):
        assert (await hedged.call(Request(0.0))).outputs == 1.0
        assert seen(hedge, "hedges", "rejected") == (0, 1)

    scenario(test, service=Service((0.05, 1.0), admission=lambda request, now_ns: 1 / 0))

    assert "admission of the hedged service failed: ZeroDivisionError" in caplog.text


# -- the race ---------------------------------------------------------------------------------------------------


def test_a_failure_waits_for_the_second():
    async def test(loop, hedge, service, hedged):
        assert (await hedged.call(Request(0.0))).outputs == "second"
        assert service.cancelled == 0

    scenario(test, service=Service((0.015, si.BackendError("first")), (0.030, "second")))


def test_when_both_fail_the_earliest_error_is_raised():
    async def test(loop, hedge, service, hedged):
        with pytest.raises(si.BackendError, match="second"):
            await hedged.call(Request(0.0))

    scenario(test, service=Service((0.030, si.BackendError("first")), (0.010, si.BackendError("second"))))


def test_a_failure_before_any_second_is_raised_at_once():
    async def test(loop, hedge, service, hedged):
        began = loop.time()
        with pytest.raises(si.BackendError):
            await hedged.call(Request(0.0))
        assert loop.time() - began == pytest.approx(0.005)
        await asyncio.sleep(1.0)
        assert len(service.asked_at) == 1

    scenario(test, service=Service((0.005, si.BackendError("first"))))


class Blocking(Service):
    """Service that blocks the loop for 3 ms at the end of each call."""

    async def call(self, request):
        try:
            return await super().call(request)
        finally:
            asyncio.get_running_loop().now_ns += 3 * MS


@pytest.mark.parametrize("end", ["first", si.BackendError("first")], ids=["response", "failure"])
def test_first_attempt_ending_at_the_delay_is_alone(end):
    """If a first attempt ends in the turn of the loop in which its hedge is due, no hedge is sent."""

    async def test(loop, hedge, service, hedged):
        (ended,) = await asyncio.gather(hedged.call(Request(0.0)), return_exceptions=True)
        assert isinstance(ended, si.BackendError) or ended.outputs == "first"
        assert len(service.asked_at) == 1
        assert seen(hedge, "hedges", "won") == (0, 0)

    scenario(test, service=Blocking((0.012, end)))


def test_cancelled_caller_cancels_both_attempts():
    async def test(loop, hedge, service, hedged):
        task = asyncio.ensure_future(hedged.call(Request(0.0)))
        await asyncio.sleep(0.02)
        assert service.running == 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert service.cancelled == 2
        assert seen(hedge, "cancelling") == (0,)

    scenario(test, service=Service((0.5, 1.0), (0.5, 1.0)))


def test_cancelling_the_caller_early_leaves_no_timer():
    async def test(loop, hedge, service, hedged):
        task = asyncio.ensure_future(hedged.call(Request(0.0)))
        await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(1.0)
        assert len(service.asked_at) == 1

    scenario(test, service=Service((0.5, 1.0)))


def test_losing_attempt_may_fail_when_cancelled():
    """A losing attempt that fails while it is cancelled has no effect on the caller or the loop."""
    complaints = []

    class Ugly(Service):
        async def call(self, request):
            try:
                return await super().call(request)
            except asyncio.CancelledError:
                raise ValueError("not so fast") from None

    async def test(loop, hedge, service, hedged):
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        assert (await hedged.call(Request(0.0))).outputs == "second"

    scenario(test, service=Ugly((0.5, "first"), (0.010, "second")))
    assert not complaints


def test_slow_cancellation_delays_only_the_stop():
    """A losing attempt that cannot be cancelled at once delays no caller; the stop waits for it."""

    class Slow(Service):
        async def call(self, request):
            try:
                return await super().call(request)
            except asyncio.CancelledError:
                await asyncio.sleep(3.0)  # like a thread that must run to its end
                raise

    async def main(loop):
        hedge, service = Hedge(), Slow()
        async with si.Stack(hedge, service, clock=loop.clock) as stack:
            for _ in range(40):
                await stack(0.0)
            service.script = [(0.5, "first"), (0.010, "second")]
            began = loop.time()
            assert await stack(0.0) == "second"
            assert loop.time() - began == pytest.approx(0.02, rel=0.02)
            assert seen(hedge, "cancelling") == (1,)
        assert loop.time() - began == pytest.approx(3.02, rel=0.01)
        assert seen(hedge, "cancelling") == (0,)

    run(main)


def test_deadline_ends_both_attempts():
    async def main(loop):
        hedge = Hedge(max_extra=1.0)
        script = [lambda batch: list(batch.inputs)] * 40 + [HANG, HANG]
        backend = ScriptedBackend(*script, duration_s=0.010)
        batcher = si.AdaptiveBatcher(max_batch_size=1, max_in_flight=4)
        async with si.Stack(hedge, batcher, backend, clock=loop.clock) as service:
            for _ in range(40):
                await service(0.0)
            with pytest.raises(si.DeadlineExceeded):
                await service(0.0, timeout_s=0.1)
            assert backend.batch_sizes == [1] * 42
            assert seen(hedge, "hedges", "cancelling") == (1, 0)
        assert len(asyncio.all_tasks()) == 1

    run(main)


def test_deadline_ends_replica_that_ignores_deadlines():
    """The stack ends a request at its deadline, even if the hedge is at a replica that does not enforce deadlines."""

    async def main(loop):
        model, replica = ScriptedBackend(duration_s=0.010), Service()
        batcher = si.AdaptiveBatcher(max_batch_size=1)
        async with si.Stack(Hedge(to=replica), batcher, model, clock=loop.clock) as stack:
            for _ in range(40):
                await stack(0.0)
            model._steps.append(HANG)
            replica.script = [(1000.0, "late")]
            began = loop.time()
            with pytest.raises(si.DeadlineExceeded):
                await stack(0.0, timeout_s=0.5)
            assert loop.time() - began == pytest.approx(0.5)
        assert replica.cancelled == 1

    run(main)


# -- replicas, and what can be hedged ---------------------------------------------------------------------------


def test_replica_gets_second_attempt_and_lifecycle():
    """A replica gets the second attempt; its clock, start and stop come with those of the first service."""

    class Replica(Service):
        life = ()

        async def start(self):
            self.life += ("start",)

        async def stop(self, *, drain):
            self.life += ("stop", drain)

        def bind_clock(self, clock):
            self.life += (clock,)

    async def main(loop):
        replica, service = Replica((0.001, "replica")), Service()
        hedge = Hedge(to=replica)
        async with si.Stack(hedge, service, clock=loop.clock) as stack:
            for _ in range(40):
                await stack(0.0)
            service.script = [(0.5, "first")]
            assert await stack(0.0) == "replica"
        assert replica.life == (loop.clock, "start", "stop", True)
        assert (len(service.asked_at), len(replica.asked_at)) == (41, 1)

    run(main)


def test_source_tells_the_replica_from_the_service():
    """The source of a response names the replica as its route; responses of the hedged service keep their source."""

    async def main(loop):
        model, replica = ScriptedBackend(duration_s=0.010), ScriptedBackend(duration_s=0.001)
        model.name, replica.name = "near", "far"
        hedge = Hedge(max_extra=1.0, to=si.Stack(si.AdaptiveBatcher(max_batch_size=1), replica))
        async with si.Stack(hedge, si.AdaptiveBatcher(max_batch_size=1), model, clock=loop.clock) as stack:
            for _ in range(40):
                assert (await stack.call(Request(0.0))).source == "near"
            model._steps.append(HANG)
            hedged = await stack.call(Request(0.0))
        assert (hedged.source, route_of(hedged.source)) == ("hedge/far", "hedge")
        assert hedged.timings is not None

    run(main)


def test_a_backend_is_hedged_by_batches():
    async def main(loop):
        backend = ScriptedBackend(duration_s=0.010)
        replica = ScriptedBackend(then=lambda batch: ["replica"] * len(batch), duration_s=0.001)
        hedge = Hedge(to=replica, clock=loop.clock)
        hedged = hedge.wrap(backend)
        assert is_backend(hedged)
        for _ in range(40):
            await hedged.infer(Batch(np.zeros(1), [Request(0.0)]))
        backend._steps.extend([HANG] * 2)
        assert await hedged.infer(Batch(np.zeros(2), [Request(0.0)] * 2)) == ["replica"] * 2
        task = asyncio.ensure_future(hedged.infer(Batch(np.zeros(2), [Request(0.0), Request(0.0, stream_id=1)])))
        await asyncio.sleep(1.0)
        assert len(replica.batches) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await hedged.stop(drain=True)
        assert backend.running == replica.running == 0
        assert repr(hedge) in repr(hedged)

    run(main)


def test_a_backend_may_return_an_awaitable():
    """A backend whose ``infer`` is a plain function that returns a future is hedged like any other."""

    class Plain:
        def infer(self, batch: Batch) -> Awaitable[list[object]]:
            loop = asyncio.get_running_loop()
            done = loop.create_future()
            loop.call_later(0.010, done.set_result, list(batch.inputs))
            return done

    async def main(loop):
        hedged = Hedge(clock=loop.clock).wrap(Plain())
        for _ in range(40):
            await hedged.infer(Batch(np.zeros(1), [Request(0.0)]))
        assert await hedged.infer(Batch(np.ones(2), [Request(0.0)] * 2)) == [1.0, 1.0]
        await hedged.stop()

    run(main)


def test_a_service_may_return_an_awaitable():
    """A service whose ``call`` is a plain function that returns a future is hedged, and a replica can be one too."""

    class Plain:
        def __init__(self, takes_s):
            self.takes_s = takes_s

        def call(self, request: Request) -> Awaitable[Response]:
            loop = asyncio.get_running_loop()
            done = loop.create_future()
            loop.call_later(self.takes_s, done.set_result, Response((request.inputs, self.takes_s)))
            return done

    async def main(loop):
        slow = Plain(0.010)
        hedged = Hedge(to=Plain(0.005), clock=loop.clock).wrap(slow)
        for _ in range(40):
            await hedged.call(Request(0.0))
        slow.takes_s = 1.0
        assert (await hedged.call(Request(3.0))).outputs == (3.0, 0.005)
        await hedged.stop()

    run(main)


def test_only_async_functions_are_hedged():
    """Async functions are hedged; sync functions are rejected."""
    calls = []

    async def main(loop):
        hedge = Hedge(clock=loop.clock)

        @hedge
        async def ask(x, *, y):
            """Says so."""
            calls.append((x, y))
            await asyncio.sleep(0.5 if len(calls) == 41 else 0.01)
            return len(calls)

        assert inspect.iscoroutinefunction(ask)
        assert ask.__doc__ == "Says so."
        for _ in range(40):
            await ask(1, y=2)
        assert await ask(3, y=4) == 42
        assert calls[-2:] == [(3, 4), (3, 4)]
        never = Hedge(clock=loop.clock, idempotent=False).wrap(ask.__wrapped__)
        for _ in range(40):
            await never(1, y=2)
        calls[:] = [None] * 40
        assert await never(5, y=6) == 41

    run(main)
    with pytest.raises(TypeError, match="inner: expected a service, a backend or an async function"):
        Hedge().wrap(lambda x: x)
    with pytest.raises(TypeError, match="inner: expected a backend, as `to` is"):
        Hedge(to=ScriptedBackend()).wrap(Service())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"quantile": 1.0}, ValueError, "quantile: expected a share above 0 and below 1"),
        ({"quantile": "a"}, TypeError, "quantile: expected"),
        ({"min_delay_s": -1.0}, ValueError, "min_delay_s: expected"),
        ({"max_extra": 0.0}, ValueError, "max_extra: expected a share above 0 and at most 1"),
        ({"max_extra": 1.5}, ValueError, "max_extra: expected"),
        ({"to": 5}, TypeError, "to: expected a service, a backend or a function, got 5"),
        ({"to": abs}, TypeError, "to: expected a service, a backend or an async function"),
        ({"idempotent": 1}, TypeError, "idempotent: expected"),
        ({"name": 1}, TypeError, "name: expected"),
        ({"clock": 1}, TypeError, "clock: expected"),
    ],
)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        Hedge(**settings)


def test_repr_and_html():
    hedge = Hedge(name="<x>")
    assert "&lt;x&gt;" in hedge._repr_html_()
    assert "<tr><th>delay</th><td>not known</td></tr>" in hedge._repr_html_()
    assert hedge.statistics().extra == 0.0
    assert repr(hedge) == "<Hedge('<x>', 0 extra of 0 requests)>"


# -- latency and extra load -------------------------------------------------------------------------------------


def latencies(hedge, slow, requests=10_000, gap_s=0.002):
    """Send a request every 2 ms to a service of about 10 ms times ``slow(now_s, draw)``.

    Return the sorted latencies, and the extra load as a share.
    """

    async def main(loop):
        draw = random.Random(7)
        sent = [0]
        took = []

        class Scripted:
            async def call(self, request):
                sent[0] += 1
                await asyncio.sleep(0.010 * draw.uniform(0.8, 1.2) * slow(loop.now_ns / 1e9, draw))
                return Response(1.0)

        service = Scripted()
        if hedge is not None:
            hedge.bind_clock(loop.clock)
            service = hedge.wrap(service)

        async def one():
            began = loop.time()
            await service.call(Request(0.0))
            took.append(loop.time() - began)

        tasks = []
        for _ in range(requests):
            tasks.append(asyncio.ensure_future(one()))
            await asyncio.sleep(gap_s)
        await asyncio.gather(*tasks)
        return sorted(took), sent[0] / requests - 1.0

    return run(main)


def two_in_a_hundred(_, draw):
    return 10.0 if draw.random() < 0.02 else 1.0


def test_tail_falls_for_three_percent_more_load():
    """With one slow response in fifty, p99 and p99.9 fall below 30 % for at most 3 % more load."""
    without, none = latencies(None, two_in_a_hundred)
    hedge = Hedge(quantile=0.975)
    with_it, extra = latencies(hedge, two_in_a_hundred)
    p999 = int(0.999 * len(without))
    p99 = int(0.99 * len(without))
    assert none == 0.0
    assert with_it[p99] < 0.3 * without[p99]
    assert with_it[p999] <= 0.3 * without[p999]
    assert extra <= 0.03
    assert extra == pytest.approx(hedge.statistics().extra)


@pytest.mark.parametrize("max_extra", [0.01, 0.05])
def test_extra_load_stays_below_cap_in_brown_out(max_extra):
    """When all responses are slow, the extra load stays below the cap."""

    def brown_out(now, draw):
        return 10.0 if now > 5.0 else 1.0

    hedge = Hedge(max_extra=max_extra)
    _, extra = latencies(hedge, brown_out, requests=5_000)
    assert 0.0 < extra <= max_extra
    assert hedge.statistics().throttled > 400


class DoublesInPlace:
    """Backend that doubles its inputs in place, and responds after the times of its script, then after 10 ms."""

    def __init__(self, *script):
        self.script = list(script)

    async def infer(self, batch):
        inputs = batch.inputs
        inputs *= 2.0
        await asyncio.sleep(self.script.pop() if self.script else 0.010)
        return inputs


def test_a_second_batch_has_inputs_of_its_own():
    """A hedged batch has its own inputs, so a model that writes to its inputs does not change those of the replica."""

    async def main(loop):
        first = DoublesInPlace()
        hedge = Hedge(to=DoublesInPlace())
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=1), hedge, first, clock=loop.clock) as service:
            for _ in range(40):
                assert await service(1.0) == 2.0
            first.script.append(1.0)
            assert await service(1.0) == 2.0
        assert hedge.statistics().won == 1

    run(main)


def test_stop_timeout_still_stops_the_replica():
    """A stop with a timeout abandons attempts that do not end, and stops the replica."""

    class Stubborn(Service):
        async def call(self, request):
            try:
                return await super().call(request)
            except asyncio.CancelledError:
                await asyncio.sleep(30.0)
                raise

    class Replica(Service):
        stopped = 0

        async def stop(self, *, drain=True):
            self.stopped += 1

    async def main(loop):
        replica, service = Replica(), Stubborn()
        hedge = Hedge(to=replica)
        stack = si.Stack(hedge, service, clock=loop.clock)
        await stack.start()
        for _ in range(40):
            await stack(0.0)
        service.script = [(60.0, "never")]
        await stack(0.0)
        began = loop.time()
        await stack.stop(timeout_s=0.2)
        return loop.time() - began, replica.stopped

    took_s, stopped = run(main)
    assert (round(took_s, 3), stopped) == (0.2, 1)


def test_given_clock_is_bound_to_the_replica():
    class Bound(Service):
        clock = None

        def bind_clock(self, clock):
            self.clock = clock

    clock, replica = FakeClock(), Bound()
    Hedge(to=replica, clock=clock)
    assert replica.clock is clock


def test_a_cancelled_caller_ends_its_requests_in_order():
    """Attempts of cancelled callers end in the order of the calls, not of memory addresses, so virtual runs repeat."""
    sent, cancelled = [], []

    class Sleeper:
        idempotent = True

        async def call(self, request):
            if request.inputs == 0.0:
                return Response(0.0)
            sent.append(attempt := (request.inputs, len(sent)))
            try:
                await asyncio.sleep(10.0)
            except asyncio.CancelledError:
                cancelled.append(attempt)
                raise

    async def main(loop):
        hedged = Hedge(clock=loop.clock, max_extra=1.0).wrap(Sleeper())
        await warm(hedged)
        calls = [asyncio.ensure_future(hedged.call(Request(float(number)))) for number in range(1, 21)]
        await asyncio.sleep(1.0)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)

    run(main)

    assert len(cancelled) == 40
    assert cancelled == sorted(sent)


class OneBuffer:
    """Backend that writes the outputs of all batches to one array, and declares this."""

    returns_new_arrays = False
    queued_workers = 2

    def __init__(self):
        self.outputs = np.empty(1)

    async def infer(self, batch):
        self.outputs[:] = batch.inputs
        return self.outputs


def test_no_later_batch_writes_to_hedged_outputs():
    """The hedge copies outputs of a backend that reuses its memory before they wait for a turn of the loop."""

    async def main(loop):
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=1), Hedge(), OneBuffer(), clock=loop.clock) as stack:
            for _ in range(30):  # until the usual duration is known, nothing is hedged
                await asyncio.sleep(0.01)
                await stack(0.0)

            assert await asyncio.gather(stack(1.0), stack(2.0)) == [1.0, 2.0]

    run(main)


def test_no_later_batch_writes_to_outputs_of_replica():
    """No later batch writes to the outputs of a replica that gets the hedges.

    Both requests hang at the first backend, which returns new arrays; the replica reuses its memory.
    """

    async def main(loop):
        first = ScriptedBackend(*[lambda batch: list(batch.inputs)] * 30, HANG, HANG)
        layers = [si.AdaptiveBatcher(max_batch_size=1, max_in_flight=2), Hedge(max_extra=1.0, to=OneBuffer()), first]
        async with si.Stack(*layers, clock=loop.clock) as stack:
            for _ in range(30):
                await asyncio.sleep(0.01)
                await stack(0.0)

            assert await asyncio.gather(stack(1.0), stack(2.0)) == [1.0, 2.0]

    run(main)


def test_the_answers_of_a_batch_that_lost_are_closed():
    """The hedge closes the response streams of a batch that lost, because only generators close when collected."""
    closed = []

    class Answers:
        def __init__(self, row):
            self.row = row

        def __aiter__(self):
            return self

        async def __anext__(self):
            return self.row

        async def aclose(self):
            closed.append(self.row)

    class Stubborn:
        """Backend that responds after the times of its script, then after 10 ms, even if it is cancelled."""

        many_answers = True

        def __init__(self):
            self.script = []

        async def infer(self, batch):
            sleeping = asyncio.ensure_future(asyncio.sleep(self.script.pop() if self.script else 0.010))
            while not sleeping.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(sleeping)
            return [Answers(row) for row in batch.inputs.tolist()]

    async def main(loop):
        hedge, slow = Hedge(to=Stubborn(), max_extra=1.0), Stubborn()
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=2), hedge, slow, clock=loop.clock) as service:
            for _ in range(40):
                await service(0.0)
            slow.script = [1.0]
            await asyncio.gather(service(1.0), service(2.0))
            assert hedge.statistics().won == 1
            await asyncio.sleep(2.0)

    run(main)
    assert sorted(closed) == [1.0, 2.0]

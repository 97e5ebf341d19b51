"""`Stack.map` and calls that wait for a place: each input gets its response, in order, within the queue's limits."""

import asyncio
import contextlib
import itertools

import numpy as np
import pytest

import streaminfer as si
from streaminfer.protocols import Admission, AdmissionReason
from streaminfer.sync_layer import SyncLayer
from streaminfer.testing import HANG, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


def stack_of(backend, loop, **options):
    options = {"max_batch_size": 8, "policy": "greedy", **options}
    return si.Stack(si.Telemetry("t"), si.AdaptiveBatcher(**options), backend, clock=loop.clock)


@pytest.mark.parametrize("concurrency", [None, 1, 3, 5000])
def test_ten_thousand_inputs_are_answered_in_order(concurrency):
    async def main(loop):
        async with stack_of(ScriptedBackend(duration_s=0.001), loop, max_in_flight=2) as stack:
            count = 10_000 if concurrency != 1 else 100
            answers = await stack.map(map(float, range(count)), concurrency=concurrency)
            assert [float(answer) for answer in answers] == [float(number) for number in range(count)]
            return stack.statistics()["AdaptiveBatcher"]

    assert run(main).rejected == {}


@pytest.mark.parametrize(
    ("concurrency", "max_batch_size", "in_hand"),
    [(4, 8, 4), (None, 8, 64), (None, 64, 128)],
    ids=["given", "the least", "a batch runs and one waits"],
)
def test_map_keeps_concurrency_inputs_in_flight(concurrency, max_batch_size, in_hand):
    """`map` keeps exactly as many inputs in flight as its concurrency, including the input that it drew last."""
    most = 0

    async def main(loop):
        nonlocal most
        stack = stack_of(ScriptedBackend(duration_s=0.001), loop, max_batch_size=max_batch_size)

        def inputs():
            nonlocal most
            for number in range(500):
                most = max(most, number + 1 - stack.statistics()["AdaptiveBatcher"].succeeded)
                yield float(number)

        async with stack:
            await stack.map(inputs(), concurrency=concurrency)

    run(main)
    assert most == in_hand


def test_layers_see_a_request_from_its_place_on():
    """The latency of a request excludes its wait for a place, and a request that gets no place is not counted."""

    async def main(loop):
        options = {"max_batch_size": 1, "max_queue_size": 1, "max_in_flight": 1}
        async with stack_of(ScriptedBackend(duration_s=1.0), loop, **options) as stack:
            calls = [stack(1.0, wait=True) for _ in range(5)]
            calls += [stack(1.0, wait=True, timeout_s=0.5), stack(1.0, wait=True, priority="low")]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            return outcomes, stack.statistics()["Telemetry"]

    outcomes, counted = run(main)

    assert [type(it) for it in outcomes[5:]] == [si.DeadlineExceeded, si.InvalidInput]
    assert counted.outcomes == {"ok": 5}
    assert counted.latency.max < 2.5


def test_layers_count_each_attempt_that_is_rejected():
    """A request that is rejected after it got a place is sent again, and the layers count each attempt as a request."""

    async def main(loop):
        full = ScriptedBackend(si.Overloaded("full"), si.Overloaded("full"))
        async with stack_of(full, loop, max_batch_size=1) as stack:
            return await stack(1.0, wait=True), stack.statistics()["Telemetry"].outcomes

    assert run(main) == (1.0, {"Overloaded": 2, "ok": 1})


def test_map_waits_where_others_fill_the_queue():
    async def main(loop):
        async with stack_of(ScriptedBackend(duration_s=0.01), loop, max_queue_size=4, max_batch_size=2) as stack:
            others = [asyncio.ensure_future(stack(-1.0)) for _ in range(6)]
            await asyncio.sleep(0)
            answers = await stack.map([float(number) for number in range(40)], concurrency=20)
            await asyncio.gather(*others, return_exceptions=True)
            assert [float(answer) for answer in answers] == [float(number) for number in range(40)]

    run(main)


async def send_two(stack, how, **settings):
    """Send two requests in one of the three ways that wait for a place."""
    if how == "rows":
        await stack.rows(np.ones(2), **settings)
    elif how == "map":
        await stack.map([1.0, 1.0], **settings)
    else:
        await asyncio.gather(*(stack(1.0, wait=True, **settings) for _ in range(2)))


@pytest.mark.parametrize("how", ["rows", "map", "wait"])
def test_tenants_above_their_rate_delay_no_others(how):
    """Requests that wait for their tenant's rate limit do not stop the requests of other tenants that wait."""

    async def main(loop):
        limit, model = si.RateLimit(1.0, burst=4), ScriptedBackend(duration_s=0.001)
        limited = si.Stack(limit, si.AdaptiveBatcher(max_batch_size=8), model, clock=loop.clock)
        async with limited as stack:
            begin_s = loop.time()
            greedy = asyncio.ensure_future(stack.rows(np.ones(10), tenant="greedy"))
            await asyncio.sleep(0.1)
            await send_two(stack, how, tenant="modest")
            modest_s = loop.time() - begin_s
            await greedy
            return modest_s, loop.time() - begin_s

    modest_s, greedy_s = run(main)
    assert modest_s < 0.11
    assert greedy_s == pytest.approx(6.0, abs=0.1)


@pytest.mark.parametrize(
    ("batcher", "many", "few"),
    [({"fair": True}, {"stream_id": "a"}, {"stream_id": "b"}), ({}, {"priority": 1}, {"priority": -1})],
    ids=["fair", "priority"],
)
@pytest.mark.parametrize("how", ["rows", "map", "wait"])
def test_waiting_requests_keep_their_rights(how, batcher, many, few):
    """A backlog that waits for room does not hold up a stream with a free share, or a more urgent request."""

    async def main(loop):
        options = {"max_batch_size": 4, "max_queue_size": 16, **batcher}
        async with stack_of(ScriptedBackend(duration_s=0.1), loop, **options) as stack:
            backlog = asyncio.ensure_future(stack.map([1.0] * 400, concurrency=200, **many))
            await asyncio.sleep(1.01)
            begin_s = loop.time()
            await send_two(stack, how, **few)
            few_s = loop.time() - begin_s
            await backlog
            return few_s

    assert run(main) < 0.3


def test_tenants_that_wait_for_room_take_turns():
    """If the queue is full, a tenant with one request is not behind all requests that another one sent before."""

    async def main(loop):
        options = {"max_batch_size": 1, "max_queue_size": 2, "max_in_flight": 1}
        async with stack_of(ScriptedBackend(duration_s=0.1), loop, **options) as stack:
            backlog = asyncio.ensure_future(stack.map([1.0] * 100, tenant="many"))
            await asyncio.sleep(1.01)
            begin_s = loop.time()
            await asyncio.gather(*(stack(1.0, wait=True, tenant=f"t{number}") for number in range(3)))
            few_s = loop.time() - begin_s
            await backlog
            return few_s

    assert run(main) < 1.0  # three places in the queue before each, and turns of the backlog between


def test_an_error_of_a_check_reaches_its_own_caller():
    """If the check of a waiting request raises, its own caller gets the error, not one that comes later."""

    class Gate(si.Stack):
        full = True

        def admission(self, request, now_ns):
            if self.full:
                return Admission(False, AdmissionReason.QUEUE_FULL)
            if request.tenant == "broken":
                raise KeyError("its own error")
            return super().admission(request, now_ns)

    async def main(loop):
        async with Gate(si.AdaptiveBatcher(max_batch_size=8), ScriptedBackend(), clock=loop.clock) as stack:
            broken = asyncio.ensure_future(stack(1.0, wait=True, tenant="broken"))
            await asyncio.sleep(0.0005)
            stack.full = False
            assert float(await stack(1.0, wait=True, tenant="other")) == 1.0
            with pytest.raises(KeyError, match="its own error"):
                await broken

    run(main)


def test_a_request_that_gets_no_place_holds_no_frames():
    """The error of a request that gets no place before its deadline has no other error as its context."""

    async def main(loop):
        options = {"max_batch_size": 1, "max_queue_size": 1}
        async with stack_of(ScriptedBackend(duration_s=1.0), loop, **options) as stack:
            others = [asyncio.ensure_future(stack(1.0, wait=True)) for _ in range(4)]
            await asyncio.sleep(0)
            with pytest.raises(si.DeadlineExceeded, match="waited for a place") as raised:
                await stack(1.0, wait=True, timeout_s=0.1)
            assert raised.value.__context__ is None
            await asyncio.gather(*others)

    run(main)


def test_the_first_error_is_raised_and_ends_the_rest():
    backend = ScriptedBackend(HANG, then=lambda batch: [ValueError("bad row")] * len(batch))

    async def main(loop):
        async with stack_of(backend, loop, max_batch_size=1, max_in_flight=2) as stack:
            with pytest.raises(ValueError, match="bad row"):
                await stack.map([1.0, 2.0, 3.0], concurrency=2)
            assert stack.statistics()["AdaptiveBatcher"].running == 0

    run(main)


def test_errors_among_the_answers():
    backend = ScriptedBackend(then=lambda batch: [ValueError("no") if one == 2.0 else one for one in batch.inputs])

    async def main(loop):
        async with stack_of(backend, loop) as stack:
            return await stack.map([1.0, 2.0, 3.0], return_exceptions=True)

    first, second, third = run(main)
    assert (float(first), float(third)) == (1.0, 3.0)
    assert isinstance(second, ValueError)


@pytest.mark.parametrize("inputs", [[], [1.0, 2.0]], ids=["no inputs", "inputs"])
@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"timeout_s": -1.0}, si.InvalidInput, "timeout_s: expected"),
        ({"tenant": 3}, si.InvalidInput, "tenant: expected"),
        ({"timout_s": 1.0}, TypeError, r"map\(\) got an unexpected keyword argument 'timout_s'"),
        ({"key": "k"}, TypeError, r"map\(\) got an unexpected keyword argument 'key'"),
    ],
    ids=["value", "another value", "typing error", "key"],
)
def test_wrong_settings_are_raised_once(settings, error, says, inputs):
    """`map` raises wrong settings itself, even with `return_exceptions`, because they concern no single request."""
    backend = ScriptedBackend()

    async def main(loop):
        async with stack_of(backend, loop) as stack:
            with pytest.raises(error, match=says):
                await stack.map(inputs, return_exceptions=True, **settings)

    run(main)
    assert backend.batches == []


@contextlib.asynccontextmanager
async def one_place(loop):
    """Yield a stack whose queue has one place, a function that waits for the place, and the order of the responses."""
    order = []
    async with stack_of(ScriptedBackend(duration_s=0.01), loop, max_queue_size=1, max_batch_size=1) as stack:

        async def ask(number):
            await stack(float(number), wait=True)
            order.append(number)

        yield stack, ask, order


def test_wait_takes_a_place_in_the_order_of_arrival():
    async def main(loop):
        async with one_place(loop) as (stack, ask, order):
            await asyncio.gather(*(ask(number) for number in range(8)))
            with pytest.raises(si.Overloaded):
                await asyncio.gather(*(stack(1.0) for _ in range(8)))
        return order

    assert run(main) == list(range(8))


def test_later_caller_does_not_overtake_waiting_call():
    """A place that becomes free belongs to the waiting request, even if that request has not run since."""

    async def main(loop):
        async with one_place(loop) as (stack, ask, order):
            calls = [asyncio.ensure_future(ask(number)) for number in range(3)]
            await calls[0]
            assert stack.admission(si.Request(3.0), loop.now_ns).ok
            calls.append(asyncio.ensure_future(ask(3)))
            await asyncio.gather(*calls)
        return order

    assert run(main) == list(range(4))


def test_wait_ends_at_the_deadline():
    async def main(loop):
        async with stack_of(ScriptedBackend(HANG), loop, max_queue_size=1, max_batch_size=1) as stack:
            held = [asyncio.ensure_future(stack(1.0)) for _ in range(2)]
            await asyncio.sleep(0)
            held.append(asyncio.ensure_future(stack(1.0)))
            await asyncio.sleep(0)
            begun = loop.now_ns
            with pytest.raises(si.DeadlineExceeded, match="waited for a place"):
                await stack(2.0, timeout_s=0.25, wait=True)
            assert loop.now_ns - begun == 250_000_000
            for call in held:
                call.cancel()
            await asyncio.gather(*held, return_exceptions=True)

    run(main)


def test_place_freed_earlier_than_predicted_is_taken():
    """A request that waits for a place takes one that becomes free sooner than predicted.

    The earlier callers leave, so the model is free long before its batch would have ended.
    """

    async def main(loop):
        model = ScriptedBackend(duration_s=10.0)
        batcher = si.AdaptiveBatcher(max_batch_size=1, max_queue_size=1)
        async with si.Stack(batcher, model, clock=loop.clock) as stack:
            await stack(0.0)  # teaches the batcher how long a batch takes
            ahead = []
            for number in range(2):
                ahead.append(asyncio.ensure_future(stack(float(number))))
                await asyncio.sleep(0.001)
            waiting = asyncio.ensure_future(stack(2.0, wait=True))
            await asyncio.sleep(0.1)
            left_s = loop.time()
            for call in ahead:
                call.cancel()
            await waiting
            return loop.time() - left_s

    assert run(main) == pytest.approx(10.0, abs=0.1)


def test_map_of_a_blocking_stack_without_a_batcher():
    with si.Stack(si.CpuBackend(np.negative)).blocking() as infer:
        assert [float(one) for one in infer.map([1.0, 2.0], concurrency=1)] == [-1.0, -2.0]
        assert float(infer(1.0, wait=True)) == -1.0
        assert infer.map([]) == []


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, True])
def test_a_wrong_concurrency_is_named(concurrency):
    async def main(loop):
        async with stack_of(ScriptedBackend(), loop) as stack:
            with pytest.raises((TypeError, ValueError), match="concurrency: expected a whole number ≥ 1"):
                await stack.map([1.0], concurrency=concurrency)
            with pytest.raises(TypeError, match="inputs: expected an iterable of what each brings, got 5"):
                await stack.map(5)

    run(main)


@pytest.mark.parametrize("drain", [True, False])
def test_stop_ends_calls_that_wait_for_a_place(drain):
    """A stop ends calls that wait for a place at once, however long they would have to wait."""

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=1, max_queue_size=1, policy="greedy")
        stack = si.Stack(batcher, ScriptedBackend(duration_s=10.0), clock=loop.clock)
        await stack.start()
        await stack(0.0)  # teaches the batcher how long a batch takes
        calls = [asyncio.ensure_future(stack(float(number), wait=True)) for number in range(4)]
        calls += [asyncio.ensure_future(stack.map([1.0, 2.0])), asyncio.ensure_future(stack.rows(np.ones(3)))]
        await asyncio.sleep(1.0)
        stopped = asyncio.ensure_future(stack.stop(drain=drain))
        waiting = calls[2:]
        ended, _ = await asyncio.wait(waiting, timeout=0.1)
        assert len(ended) == len(waiting)
        assert {type(call.exception()) for call in waiting} == {si.Closed}
        await stopped
        await asyncio.gather(*calls, return_exceptions=True)

    run(main)


def test_stop_ends_waiting_calls_despite_restart():
    """A stop ends the calls that wait for a place, even if the stack starts again at once.

    The queue is full again before the last of these calls has run.
    """

    async def main(loop):
        asked = 0

        def clock():
            nonlocal asked
            asked += 1
            assert asked < 10_000, "a caller asks for a place and never pauses"
            return loop.clock()

        batcher = si.AdaptiveBatcher(max_batch_size=1, max_queue_size=1, policy="greedy")
        stack = si.Stack(batcher, ScriptedBackend(duration_s=1.0), clock=clock)
        await stack.start()
        earlier = [asyncio.ensure_future(stack(float(number), wait=True)) for number in range(100)]
        await asyncio.sleep(0.5)
        await stack.stop(drain=False)
        await stack.start()
        later = [asyncio.ensure_future(stack(float(number))) for number in range(2)]
        ended = await asyncio.gather(*earlier, return_exceptions=True)
        assert {type(end) for end in ended} == {si.Closed}
        assert await asyncio.gather(*later) == [0.0, 1.0]
        await stack.stop()

    run(main)


def test_waiting_call_ends_at_deadline_if_always_full():
    """A call that waits for a place ends at its deadline, even if a layer always rejects it.

    The layer rejects without an `admission` that predicts it, and must not get the request in an endless loop.
    """
    sent = 0

    class Full(SyncLayer):
        def enter(self, request, now_ns):
            nonlocal sent
            sent += 1
            raise si.Overloaded("full", retry_after_s=0.05)

    async def main(loop):
        async with si.Stack(Full(), si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(), clock=loop.clock) as stack:
            with pytest.raises(si.DeadlineExceeded, match="waited for a place"):
                await stack(1.0, timeout_s=0.2, wait=True)
            return loop.time()

    took_s = run(main)
    assert took_s == pytest.approx(0.2, abs=0.01)
    assert sent <= 6


def test_waiting_call_retries_with_growing_pauses():
    """Each rejection without `retry_after_s` doubles the pause before the next attempt, up to 50 ms."""
    asked_s = []

    class Full(SyncLayer):
        def enter(self, request, now_ns):
            asked_s.append(now_ns / 1e9)
            raise si.Overloaded("full")

    async def main(loop):
        async with si.Stack(Full(), si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(), clock=loop.clock) as stack:
            with pytest.raises(si.DeadlineExceeded, match="waited for a place"):
                await stack(1.0, timeout_s=0.2, wait=True)

    run(main)
    pauses_s = [after - before for before, after in itertools.pairwise(asked_s)]
    assert pauses_s[:8] == pytest.approx([0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.05, 0.05])


def test_a_huge_concurrency_costs_nothing():
    """`map` creates no more tasks than it has inputs."""
    created = []

    def make(loop, coroutine, **options):
        created.append(asyncio.Task(coroutine, loop=loop, **options))
        return created[-1]

    async def main(loop):
        async with stack_of(ScriptedBackend(duration_s=0.001), loop) as stack:
            loop.set_task_factory(make)
            assert await stack.map([1.0, 2.0], concurrency=2**31) == [1.0, 2.0]
            loop.set_task_factory(None)

    run(main)
    assert len(created) == 2


def test_an_input_that_cannot_be_read_ends_the_rest():
    """If an input cannot be read, `map` raises the error and ends all tasks that it has begun."""

    def inputs():
        yield 1.0
        yield 2.0
        raise LookupError("no third")

    async def main(loop):
        async with stack_of(ScriptedBackend(HANG), loop) as stack:
            tasks = len(asyncio.all_tasks())
            with pytest.raises(LookupError, match="no third"):
                await stack.map(inputs(), concurrency=9)
            assert len(asyncio.all_tasks()) == tasks

    run(main)


def test_tags_of_an_iterator_reach_every_request():
    """Each request of a `map` gets all tags of an iterator, so that an erasure by tag finds each of them later."""
    backend = ScriptedBackend()

    async def main(loop):
        async with stack_of(backend, loop) as stack:
            await stack.map([1.0, 2.0], tags=iter(("a", "b")))

    run(main)
    assert [row.tags for batch in backend.batches for row in batch.rows] == [("a", "b")] * 2

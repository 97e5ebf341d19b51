"""Composition and lifecycle of a stack, in virtual time."""

import asyncio
import inspect
import os
import signal

import numpy as np
import pytest

import streaminfer as si
from streaminfer.testing import HANG, FakeClock, ScriptedBackend, VirtualLoop, run

pytestmark = pytest.mark.uncompiled


class Recorded(ScriptedBackend):
    """Backend that logs its starts and stops in order."""

    def __init__(self, log, name, *steps, fails=(), **options):
        super().__init__(*steps, **options)
        self.log, self.name, self.fails = log, name, fails

    async def start(self):
        self.log.append(f"start {self.name}")
        if "start" in self.fails:
            raise OSError("no such device")

    async def stop(self, *, drain):
        self.log.append(f"stop {self.name} {drain}")
        if "stop" in self.fails:
            raise OSError("would not stop")


class Logged:
    """Layer that declares no capabilities, and has only ``inner``."""

    def __init__(self, log, name, fails=()):
        self.log, self.name, self.fails = log, name, fails

    def wrap(self, inner):
        return LoggedService(self, inner)


class LoggedService(Recorded):
    infer = None

    def __init__(self, layer, inner):
        self.inner, self.log, self.name, self.fails = inner, layer.log, layer.name, layer.fails

    async def call(self, request):
        self.log.append(f"{self.name} in")
        try:
            return await self.inner.call(request)
        finally:
            self.log.append(f"{self.name} out")


def test_layers_call_outside_in_and_start_inside_out():
    """Layers handle a request from the outside in and start from the inside out."""
    log = []

    async def main(loop):
        stack = si.Stack(
            Logged(log, "a"),
            Logged(log, "b"),
            si.AdaptiveBatcher(max_batch_size=4),
            Recorded(log, "model"),
            clock=loop.clock,
        )
        async with stack:
            assert await stack(1.0) == 1.0
        return repr(stack)

    assert run(main) == "<Stack, stopped: Logged → Logged → AdaptiveBatcher → Recorded>"
    assert log == [
        "start model", "start b", "start a", "a in", "b in", "b out", "a out", "stop a True", "stop b True", "stop model True",
    ]  # fmt: skip


def test_failed_start_stops_what_has_started():
    """If a part fails to start, the parts that have started are stopped again."""
    log = []
    stack = si.Stack(Logged(log, "a"), Logged(log, "b", fails=["start"]), Recorded(log, "model"))

    async def main(loop):
        with pytest.raises(OSError, match="no such device"):
            await stack.start()
        with pytest.raises(si.Closed):
            await stack(1.0)

    run(main)
    assert log == ["start model", "start b", "stop model False"]


def test_every_part_is_stopped_even_if_one_fails_to():
    log = []
    stack = si.Stack(Logged(log, "a", fails=["stop"]), Logged(log, "b"), Recorded(log, "model"))

    async def main(loop):
        with pytest.raises(OSError, match="would not stop"):
            async with stack:
                pass
        with pytest.raises(si.Closed, match="stopped"):
            await stack(1.0)

    run(main)
    assert log[-3:] == ["stop a True", "stop b False", "stop model False"]


def test_exception_in_block_stops_without_drain():
    """An exception in the `async with` block stops the stack without draining it."""
    backend = ScriptedBackend(HANG)
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=4), backend)

    async def main(loop):
        call = None
        with pytest.raises(ZeroDivisionError):
            async with stack:
                call = asyncio.ensure_future(stack(1.0))
                await asyncio.sleep(0.01)
                raise ZeroDivisionError
        with pytest.raises(si.Closed):
            await call

    run(main)
    assert backend.running == 0


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_stop_by_choice(drain, batched):
    async def main(loop):
        layers = [si.AdaptiveBatcher(max_batch_size=2)] if batched else []
        stack = si.Stack(*layers, ScriptedBackend(duration_s=0.1), clock=loop.clock)
        await stack.start()
        call = asyncio.ensure_future(stack(1.0))
        await asyncio.sleep(0.05)
        stopping = asyncio.ensure_future(stack.stop(drain=drain))
        await asyncio.sleep(0)
        with pytest.raises(si.Closed, match=r"stopping|stopped"):
            await stack(2.0)
        result = (await asyncio.gather(call, return_exceptions=True))[0]
        await stopping
        await stack.stop()
        assert result == 1.0 if drain else isinstance(result, si.Closed)
        async with stack:
            assert await stack(3.0) == 3.0

    run(main)


def test_backend_without_batcher_gets_batches_of_one():
    """Without a batcher, a backend gets each request at once, as a batch of one row."""
    backend = ScriptedBackend(duration_s=0.1)

    async def main(loop):
        async with si.Stack(si.Telemetry(), backend, clock=loop.clock) as stack:
            assert await asyncio.gather(*(stack(np.full(3, i)[0]) for i in range(5))) == list(range(5))
            assert loop.now_ns == 100_000_000  # at once: nothing queues
            with pytest.raises(si.DeadlineExceeded):
                await stack(1.0, timeout_s=0.05)
            assert loop.now_ns == 150_000_000

    run(main)
    assert backend.batch_sizes == [1] * 6


class PlainService:
    """User's service that ignores deadlines."""

    def __init__(self, duration_s):
        self.duration_s = duration_s
        self.running = 0
        self.requests = []

    async def call(self, request):
        self.requests.append(request)
        self.running += 1
        try:
            await asyncio.sleep(self.duration_s)
            return si.Response(request.inputs)
        finally:
            self.running -= 1


def test_stack_arms_deadline_timer_if_none_inside():
    """The stack arms a timer for each deadline if nothing inside it ends requests at their deadlines."""
    service = PlainService(0.1)

    async def main(loop):
        async with si.Stack(si.Telemetry("t"), service, clock=loop.clock) as stack:
            assert await stack(1.0, timeout_s=0.2) == 1.0
            with pytest.raises(si.DeadlineExceeded, match=r"0\.05"):
                await stack(1.0, timeout_s=0.05)
            assert loop.now_ns == 150_000_000
            with pytest.raises(si.DeadlineExceeded, match="before arrival"):
                await stack(1.0, timeout_s=0.0)
            call = asyncio.ensure_future(stack(1.0))
            await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.wait([call])
            await asyncio.sleep(0)
            assert service.running == 0
            hanging = asyncio.ensure_future(stack(1.0))
            await asyncio.sleep(0.01)
            await stack.stop(drain=False)
            with pytest.raises(si.Closed):
                await hanging
            assert service.running == 0
            return stack.statistics()["Telemetry"]

    outcomes = run(main).outcomes
    assert outcomes == {"ok": 1, "DeadlineExceeded": 2, "cancelled": 1, "Closed": 1}


def test_draining_waits_for_a_users_service():
    async def main(loop):
        stack = si.Stack(PlainService(0.1), clock=loop.clock)
        async with stack:
            call = asyncio.ensure_future(stack(1.0))
            await asyncio.sleep(0.01)
        assert await call == 1.0

    run(main)


def test_draining_completes_call_between_attempts():
    """A draining stop completes a request that is between two attempts.

    A request that waits for its retry is in flight too; when it completes, the stop continues at once.
    """

    async def scenario(loop):
        model = ScriptedBackend(OSError("once"), duration_s=0.010)
        retry = si.RetryBudget(backoff_s=0.5, seed=1)
        stack = si.Stack(retry, si.AdaptiveBatcher(max_batch_size=2), model, clock=loop.clock)
        await stack.start()
        call = asyncio.ensure_future(stack(1.0))
        await asyncio.sleep(0.020)
        assert not model.running
        await stack.stop()
        return call.done(), loop.time(), float(await call)

    done, stopped_s, result = run(scenario)
    assert (done, result) == (True, 1.0)
    assert 0.260 < stopped_s < 0.530


def test_a_users_error_passes_through():
    class Broken:
        async def call(self, request):
            raise KeyError("mine")

    async def main(loop):
        async with si.Stack(Broken()) as stack:
            with pytest.raises(KeyError, match="mine"):
                await stack(1.0)

    run(main)


def test_stack_sets_deadline_and_changes_no_request():
    """The stack sets the deadline of a request on entry and leaves the caller's object unchanged."""
    service = PlainService(0.0)

    class Batcher:
        slo_s = 0.05

        def wrap(self, inner):
            inner.slo_s = self.slo_s
            return inner

    async def main(loop):
        await asyncio.sleep(1.0)
        async with si.Stack(Batcher(), service, clock=loop.clock) as stack:
            await stack(1.0)
            await stack(
                1.0, timeout_s=0.2, priority=3, stream_id="s", tenant="t", subject="u", tags=["x"], key="k", store=False
            )
            request = si.Request(1.0)
            await stack.call(request)
            assert request.deadline_ns is None
            await stack.call(si.Request(1.0, deadline_ns=5_000_000_000))
            await stack(1.0, timeout_s=1e300)

    run(main)
    first, second, third, fourth, fifth = service.requests
    assert first.deadline_ns == third.deadline_ns == 1_050_000_000
    assert second.deadline_ns == 1_200_000_000
    assert (second.priority, second.stream_id, second.tenant, second.subject) == (3, "s", "t", "u")
    assert (second.tags, second.key, second.store) == (("x",), "k", False)
    assert fourth.deadline_ns == 5_000_000_000
    assert fifth.deadline_ns == 1_000_000_000 + 2**62


def test_inputs_are_validated_before_queueing():
    """Inputs are validated before the request enters a layer or the queue."""

    class Picky(ScriptedBackend):
        def validate(self, request):
            if request.inputs < 0:
                raise si.InvalidInput(f"inputs: expected a number ≥ 0, got {request.inputs}")

    backend = Picky()
    log = []

    async def main(loop):
        async with si.Stack(Logged(log, "layer"), si.AdaptiveBatcher(max_batch_size=4), backend) as stack:
            good, bad = await asyncio.gather(stack(1.0), stack(-1.0), return_exceptions=True)
            assert good == 1.0
            assert isinstance(bad, si.InvalidInput)
            with pytest.raises(si.InvalidInput):
                await stack.call(si.Request(-1.0))

    run(main)
    assert backend.batch_sizes == [1]
    assert log.count("layer in") == 1


@pytest.mark.parametrize(
    "bad", [{"timeout_s": -1}, {"timeout_s": "x"}, {"priority": 1.5}, {"tags": "word"}, {"wait": "no"}]
)  # fmt: skip
def test_bad_arguments_of_a_call_are_named(bad):
    async def main(loop):
        async with si.Stack(ScriptedBackend()) as stack:
            with pytest.raises(si.InvalidInput, match=next(iter(bad))):
                await stack(1.0, **bad)

    run(main)


def test_outer_stack_runs_nested_stack_on_its_clock():
    """The outer stack starts and stops a nested stack and gives it its clock."""
    log = []

    async def main(loop):
        telemetry = si.Telemetry("inner")
        inner = si.Stack(telemetry, si.AdaptiveBatcher(max_batch_size=4, slo_s=0.05), Recorded(log, "model", HANG))
        outer = si.Stack(si.Telemetry("outer"), inner, clock=loop.clock)
        assert inner.clock == outer.clock == telemetry.clock == loop.clock
        async with outer:
            with pytest.raises(si.DeadlineExceeded):
                await outer(1.0)
            assert loop.now_ns == 50_000_000
            assert await outer(2.0) == 2.0
            request = si.Request(1.0)
            assert outer.admission(request, loop.now_ns).ok
        assert not outer.admission(request, loop.now_ns).ok
        with pytest.raises(si.Closed):
            await inner(1.0)
        assert set(outer.statistics().layers) == {"Telemetry", "Stack"}

    run(main)
    assert log == ["start model", "stop model True"]


def test_own_clock_of_a_layer_is_kept():
    clock, other = FakeClock(5), FakeClock(7)
    batcher, telemetry = si.AdaptiveBatcher(max_batch_size=1, clock=clock), si.Telemetry(clock=clock)
    si.Stack(telemetry, batcher, ScriptedBackend(), clock=other)
    assert telemetry.clock is clock
    assert batcher._service.clock is clock
    free = si.AdaptiveBatcher(max_batch_size=1)
    si.Stack(free, ScriptedBackend(), clock=other)
    assert free._service.clock is other


def test_start_outside_asyncio_names_the_remedy():
    """A start outside an asyncio loop, for example in trio, raises an error that names the blocking stack."""
    stack = si.Stack(ScriptedBackend())

    with pytest.raises(RuntimeError, match=r"event loop of asyncio, .* trio, .* `with stack\.blocking\(\) as infer`"):
        stack.start().send(None)

    assert stack.stack_state == "new"


def test_another_loop_gets_a_clear_error():
    stack = si.Stack(ScriptedBackend())
    first, second = VirtualLoop(), VirtualLoop()
    first.run_until_complete(stack.start())

    async def use():
        with pytest.raises(RuntimeError, match=r"that started it: another thread calls asyncio\.run_coroutine_thread"):
            await stack(1.0)
        with pytest.raises(RuntimeError, match="belongs to the event loop that started it"):
            await stack.stop()
        with pytest.raises(RuntimeError, match="running already"):
            await stack.start()

    second.run_until_complete(use())
    first.run_until_complete(stack.stop())
    first.close()
    second.close()


def test_stop_from_another_loop_raises_in_every_state():
    """A stop from another event loop raises a `RuntimeError` in every state of the stack.

    The state may be starting or stopping, and does not change.
    """

    class Slow(ScriptedBackend):
        async def start(self):
            await asyncio.sleep(1.0)

        async def stop(self, *, drain):
            await asyncio.sleep(1.0)

    async def refused(state):
        assert stack.stack_state == state
        with pytest.raises(RuntimeError, match="belongs to the event loop that started it"):
            await stack.stop()
        assert stack.stack_state == state

    stack = si.Stack(Slow())
    first, second = VirtualLoop(), VirtualLoop()
    for change, state in ((stack.start, "starting"), (stack.stop, "stopping")):
        changing = first.create_task(change())
        first.run_until_complete(asyncio.sleep(0.5))
        second.run_until_complete(refused(state))
        first.run_until_complete(changing)
    first.close()
    second.close()


def test_a_forked_process_gets_a_clear_error():
    stack = si.Stack(ScriptedBackend())

    async def main():
        async with stack:
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    asyncio.set_event_loop(None)
                    asyncio._set_running_loop(None)
                    asyncio.new_event_loop().run_until_complete(stack(1.0))
                except RuntimeError as error:
                    os.write(writing, str(error).encode())
                finally:
                    os.kill(os.getpid(), signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(writing)
            with os.fdopen(reading) as pipe:
                return pipe.read()

    assert "started in another process" in asyncio.run(main())


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ((), "expected at least a backend or a service"),
        ((si.Telemetry(),), "expected a backend or a service as the last one"),
        ((lambda x: x,), "CpuBackend makes a function one"),
        ((3, ScriptedBackend()), "expected layers"),
        ((si.AdaptiveBatcher(max_batch_size=1), PlainService(0)), "inner: expected a backend"),
        ((si.AdaptiveBatcher(max_batch_size=1), si.Telemetry(), ScriptedBackend()), "outside the batcher"),
    ],
)
def test_impossible_stacks_are_an_error(layers, says):
    with pytest.raises(TypeError, match=says):
        si.Stack(*layers)


def test_call_before_start_and_wrong_clock_raise():
    async def main(loop):
        with pytest.raises(si.Closed, match="new: use it inside"):
            await si.Stack(ScriptedBackend())(1.0)

    run(main)
    with pytest.raises(TypeError, match="clock"):
        si.Stack(ScriptedBackend(), clock=3)


def test_members_of_a_new_stack_can_be_inspected():
    """Each property of a new stack can be read, as `inspect.getmembers` and `create_autospec` do."""
    stack = si.Stack(ScriptedBackend())

    assert dict(inspect.getmembers(stack))["stack_state"] == "new"


def test_statistics_are_frozen_and_drawn():
    async def main(loop):
        async with si.Stack(
            si.Telemetry("faces <b>"),
            si.Telemetry("again"),
            si.AdaptiveBatcher(max_batch_size=4),
            ScriptedBackend(),
            clock=loop.clock,
        ) as stack:
            await stack(1.0)
            return stack, stack.statistics()

    stack, statistics = run(main)
    assert list(statistics.layers) == ["Telemetry", "Telemetry#2", "AdaptiveBatcher"]
    assert statistics["Telemetry"].succeeded == 1
    for frozen in (statistics, statistics["Telemetry"], statistics["AdaptiveBatcher"]):
        with pytest.raises(AttributeError):
            frozen.state = frozen.answered = 5
    page = stack._repr_html_()
    assert "faces &lt;b&gt;" in page
    assert "AdaptiveBatcher" in page


def test_stack_around_running_one_leaves_it_running():
    """A stack that is made around a running stack leaves the inner stack running."""

    async def main(loop):
        async with si.Stack(ScriptedBackend()) as inner:
            assert await inner(1.0) == 1.0
            si.Stack(inner, clock=loop.clock)
            assert inner.ready
            assert await inner(2.0) == 2.0

    run(main)


def test_cancelled_stop_without_drain_stops_layers():
    """A stop without drain that is cancelled still stops the layers."""

    class Slow:
        stopped = 0

        async def call(self, request):
            try:
                await asyncio.sleep(100.0)
            except asyncio.CancelledError:
                await asyncio.sleep(0.2)
                raise

        async def stop(self, *, drain=True):
            self.stopped += 1

    async def main(loop):
        slow = Slow()
        stack = si.Stack(slow, clock=loop.clock)
        await stack.start()
        request = asyncio.ensure_future(stack(1.0))
        await asyncio.sleep(0.01)
        stop = asyncio.ensure_future(stack.stop(drain=False))
        await asyncio.sleep(0.02)
        stop.cancel()
        await asyncio.wait([stop, request])
        assert stop.cancelled()
        return slow.stopped

    assert run(main) == 1

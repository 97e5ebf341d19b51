"""Backends and services that several stacks share start with the first and stop with the last of them."""

import asyncio
import gc
import weakref

import pytest

import streaminfer as si
from streaminfer._runtime.lifecycle import start_all
from streaminfer.routing import Canary, Shadow
from streaminfer.testing import ScriptedBackend, VirtualLoop, run


class Counted(ScriptedBackend):
    """Backend that rejects calls while it does not run, as a real one does."""

    def __init__(self, starts_in_s=0.0, fails=0):
        super().__init__()
        self.log = []
        self.up = False
        self.starts_in_s, self.fails = starts_in_s, fails

    async def start(self):
        self.log.append("start")
        await asyncio.sleep(self.starts_in_s)
        if self.fails:
            self.fails -= 1
            raise OSError("no such device")
        self.up = True

    async def stop(self, *, drain):
        self.log.append(f"stop {drain}")
        self.up = False

    async def infer(self, batch):
        if not self.up:
            raise si.Closed("the backend is stopped")
        return await super().infer(batch)


def stack_of(inner, kind="stack"):
    make = {
        "stack": lambda: si.Stack(si.AdaptiveBatcher(max_batch_size=1), inner),
        "bare": lambda: si.Stack(inner),
        "router": lambda: si.Stack(si.FallbackRouter(si.Route("a", si.Stack(inner)))),
        "replicas": lambda: si.Stack(si.Replicas(si.Replica("a", si.Stack(inner)))),
        "hedge": lambda: si.Stack(si.Hedge(to=si.Stack(inner)), si.Stack(ScriptedBackend())),
    }
    return make[kind]()


@pytest.mark.parametrize("kind", ["stack", "bare", "router", "replicas", "hedge"])
def test_a_shared_backend_stops_with_the_last_stack(kind):
    backend = Counted()

    async def main(_loop):
        first, second = stack_of(backend), stack_of(backend, kind)
        await first.start()
        await second.start()
        await first.stop()
        assert backend.log == ["start"]
        assert await second(1.0) == 1.0
        await second.stop()

    run(main)
    assert backend.log == ["start", "stop True"]


@pytest.mark.parametrize(
    "wrap", [si.Stack, lambda s: si.FallbackRouter(si.Route("a", s)), lambda s: si.Replicas(si.Replica("a", s))]
)
def test_inner_stack_shared_by_two_outer_stacks(wrap):
    backend = Counted()

    async def main(_loop):
        inner = stack_of(backend)
        async with si.Stack(wrap(inner)) as first:
            async with si.Stack(wrap(inner)) as second:
                assert await first(1.0) == 1.0
                assert await second(2.0) == 2.0
            assert await first(3.0) == 3.0

    run(main)
    assert backend.log == ["start", "stop True"]


def test_concurrent_starts_start_a_shared_backend_once():
    backend = Counted(starts_in_s=1.0)

    async def main(_loop):
        stacks = [stack_of(backend) for _ in range(3)]
        await asyncio.gather(*(stack.start() for stack in stacks))
        assert backend.log == ["start"]
        await asyncio.gather(*(stack.stop() for stack in stacks))

    run(main)
    assert backend.log == ["start", "stop True"]


def test_a_failed_start_leaves_no_owner():
    backend = Counted(starts_in_s=1.0, fails=1)

    async def main(_loop):
        first, second = stack_of(backend), stack_of(backend)
        outcomes = await asyncio.gather(first.start(), second.start(), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [OSError, type(None)]
        assert await second(1.0) == 1.0
        await second.stop()

    run(main)
    assert backend.log == ["start", "start", "stop True"]


def test_shared_backend_restarts_after_the_last_stop():
    backend = Counted()

    async def main(_loop):
        for _ in range(2):
            async with stack_of(backend) as stack:
                assert await stack(1.0) == 1.0

    run(main)
    assert backend.log == ["start", "stop True"] * 2


def test_an_owner_whose_loop_was_closed_does_not_count():
    backend = Counted()
    loop = VirtualLoop()
    left = stack_of(backend)
    loop.run_until_complete(left.start())
    loop.close()

    async def main(_loop):
        async with stack_of(backend):
            pass

    run(main)
    assert backend.log == ["start", "start", "stop True"]


@pytest.mark.parametrize("kind", ["bare", "router", "replicas", "hedge"])
def test_stack_on_another_loop_is_not_shared(kind):
    """If an inner stack runs on one loop, an outer stack on another loop fails to start, and the first continues."""
    backend = Counted()
    inner = stack_of(backend)
    first, second = si.Stack(si.Telemetry("first"), inner), stack_of(inner, kind)
    loop, other = VirtualLoop(), VirtualLoop()
    try:
        loop.run_until_complete(first.start())
        with pytest.raises(RuntimeError, match="runs on another event loop: a stack around it needs"):
            other.run_until_complete(second.start())
        assert loop.run_until_complete(first(1.0)) == 1.0
        loop.run_until_complete(first.stop())
        other.run_until_complete(second.start())
        other.run_until_complete(second.stop())
    finally:
        loop.close()
        other.close()

    assert backend.log == ["start", "stop True"] * 2


def test_failed_layer_leaves_shared_backend_running():
    """A layer that fails to start leaves the shared backend running for the other stack."""

    class Failing:
        def wrap(self, inner):
            return FailingService(inner)

    class FailingService:
        def __init__(self, inner):
            self.inner = inner

        async def call(self, request):
            return await self.inner.call(request)

        async def start(self):
            raise OSError("no")

    backend = Counted()

    async def main(_loop):
        async with stack_of(backend) as stack:
            with pytest.raises(OSError, match="no"):
                await si.Stack(Failing(), backend).start()
            assert await stack(1.0) == 1.0

    run(main)
    assert backend.log == ["start", "stop True"]


def test_start_all_starts_each_part_once():
    """`start_all` starts each part once and, if one fails, stops those that it started."""

    async def main(loop):
        first, second = Counted(), Counted()
        await start_all(first, [first, second, first])
        assert first.log == second.log == ["start"]
        third = Counted()
        with pytest.raises(OSError, match="no such device"):
            await start_all(third, [third, Counted(fails=1)])
        assert third.log == ["start", "stop False"]

    run(main)


def test_part_left_behind_by_closed_loop_is_freed():
    """A backend whose loop was closed without a stop is freed when the next stack starts."""
    left = []

    async def start_only(_loop):
        backend = Counted()
        left.append(weakref.ref(backend))
        await stack_of(backend).start()

    async def start_and_stop(_loop):
        async with stack_of(Counted()):
            pass

    run(start_only)
    run(start_and_stop)
    gc.collect()

    assert left[0]() is None


def wrapped_by_hand(kind, backend):
    """Return a service that was wrapped around a backend by hand, before a stack gets it."""
    batched = si.AdaptiveBatcher(max_batch_size=1).wrap
    make = {
        "batcher": lambda: batched(backend),
        "breaker": lambda: si.CircuitBreaker().wrap(backend),
        "hedge": lambda: si.Hedge().wrap(batched(backend)),
        "cache": lambda: si.EdgeCache(maxsize=1).wrap(batched(backend)),
        "meter": lambda: si.CostMeter(per_second=1.0).wrap(batched(backend)),
        "shadow": lambda: Shadow(ScriptedBackend(), share=0.0).wrap(batched(backend)),
        "own": lambda: Passing(batched(backend)),
        "router": lambda: si.FallbackRouter(si.Route("a", batched(backend))),
        "canary": lambda: Canary(batched(backend), si.Stack(ScriptedBackend()), share=0.0),
        "replicas": lambda: si.Replicas(si.Replica("a", batched(backend))),
        "a stack": lambda: si.FallbackRouter(si.Route("a", si.CircuitBreaker().wrap(si.Stack(backend)))),
    }
    return make[kind]()


class Passing:
    """Service of a user's layer, without start and stop of its own."""

    def __init__(self, inner):
        self.inner = inner

    async def call(self, request):
        return await self.inner.call(request)


BY_HAND = ["batcher", "breaker", "hedge", "cache", "meter", "shadow", "own", "router", "canary", "replicas", "a stack"]


@pytest.mark.parametrize("kind", BY_HAND)
def test_manually_wrapped_backend_starts_and_stops(kind):
    """A stack starts and stops a backend inside a wrapped service once."""
    backend = Counted()

    async def main(loop):
        stack = si.Stack(wrapped_by_hand(kind, backend), clock=loop.clock)
        for number in range(2):
            async with stack:
                await stack(float(number))

    run(main)
    assert backend.log == ["start", "stop True"] * 2


def test_failed_start_stops_inner_backends():
    """If a batcher cannot start, the backend that started before it is stopped again."""
    backend = Counted()
    backend.max_batch_size = 4

    async def main(_loop):
        service = si.AdaptiveBatcher(max_batch_size=4).wrap(backend)
        backend.max_batch_size = 2
        for owner in (si.Stack(service), si.FallbackRouter(si.Route("a", service))):
            with pytest.raises(ValueError, match="at most 2"):
                await owner.start()

    run(main)
    assert backend.log == ["start", "stop False"] * 2


class Slow(Counted):
    """Backend that logs the begin and the end of each batch, which takes ten seconds."""

    async def infer(self, batch):
        self.log.append("begin")
        try:
            await asyncio.sleep(10.0)
            return await super().infer(batch)
        finally:
            self.log.append("end")


@pytest.mark.parametrize(
    ("kind", "drain", "batches"),
    [
        ("router", True, ["begin", "end", "begin", "end"]),
        ("router", False, ["begin", "end"]),
        ("replicas", True, ["begin", "begin", "end", "end"]),
        ("replicas", False, ["begin", "begin", "end", "end"]),
    ],
)
def test_shared_backend_stops_after_all_its_callers(kind, drain, batches):
    """A backend inside two services starts once, and stops once, after the last batch of both has ended."""
    backend = Slow()
    batched = [si.AdaptiveBatcher(max_batch_size=1).wrap(backend) for _ in range(2)]
    if kind == "router":
        spread = si.FallbackRouter(*(si.Route(str(number), it) for number, it in enumerate(batched)))
    else:
        spread = si.Replicas(*(si.Replica(str(number), it) for number, it in enumerate(batched)))

    async def main(loop):
        stack = si.Stack(spread, clock=loop.clock)
        await stack.start()
        calls = [asyncio.ensure_future(stack(x)) for x in (1.0, 2.0)]
        await asyncio.sleep(1.0)
        await stack.stop(drain=drain)
        return await asyncio.gather(*calls, return_exceptions=True)

    answers = run(main)

    assert backend.log == ["start", *batches, f"stop {drain}"]
    assert answers == [1.0, 2.0] if drain else [type(answer) for answer in answers] == [si.Closed] * 2


def test_a_backend_inside_gets_the_clock_of_the_stack():
    """A backend inside a wrapped service gets the clock of the stack, like a backend that is a part of the stack."""
    backend = Counted()
    clocks = []
    backend.bind_clock = clocks.append

    async def main(loop):
        si.Stack(si.AdaptiveBatcher(max_batch_size=1).wrap(backend), clock=loop.clock)
        assert clocks == [loop.clock]

    run(main)


def test_start_report_names_inner_parts():
    """The start report names an inner part that is no layer of the stack by its class."""

    async def main(loop):
        stack = si.Stack(si.Telemetry(), si.AdaptiveBatcher(max_batch_size=1).wrap(Counted()), clock=loop.clock)
        async with stack:
            return [part.name for part in stack.statistics().start.parts]

    assert run(main) == ["Counted", "BatchedService"]


def test_inner_object_of_other_kind_is_left_alone():
    """A stack does not start an inner object that is no service, whose ``start`` may be of another kind."""

    class Client:
        def start(self):
            raise AssertionError

    class Service:
        def __init__(self):
            self.inner = Client()

        async def call(self, request):
            return si.Response(request.inputs)

    async def main(loop):
        async with si.Stack(Service(), clock=loop.clock) as stack:
            return await stack(1.0)

    assert run(main) == 1.0


def test_methods_of_inner_parts_are_checked():
    """The constructor of a stack checks the methods of inner parts, as it checks those of layers."""

    class Backend(ScriptedBackend):
        async def stop(self):
            """Takes no ``drain``."""

    service = si.AdaptiveBatcher(max_batch_size=1).wrap(Backend())
    with pytest.raises(TypeError, match=r"Backend\.stop: expected a method to call as stop\(drain=\)"):
        si.Stack(service)

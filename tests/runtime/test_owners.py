"""Backends and services that several stacks share start with the first and stop with the last of them."""

import asyncio
import gc
import weakref

import pytest

import streaminfer as si
from streaminfer._runtime.lifecycle import start_all
from streaminfer.testing import ScriptedBackend, VirtualLoop, run


class Counted(ScriptedBackend):
    """Refuses what comes while it does not run, as a real backend does."""

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
def test_one_inner_stack_under_two_outer_ones(wrap):
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


def test_stacks_that_start_together_start_it_once():
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


def test_it_starts_again_after_the_last_stopped():
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


def test_a_failed_layer_leaves_the_shared_backend_to_the_other_stack():
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


def test_start_all_starts_each_once_and_stops_what_started():
    async def main(loop):
        first, second = Counted(), Counted()
        await start_all(first, [first, second, first])
        assert first.log == second.log == ["start"]
        third = Counted()
        with pytest.raises(OSError, match="no such device"):
            await start_all(third, [third, Counted(fails=1)])
        assert third.log == ["start", "stop False"]

    run(main)


def test_a_part_that_a_closed_loop_left_behind_is_let_go():
    """The next stack that starts forgets it, or each run without a stop would keep its model in memory."""
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

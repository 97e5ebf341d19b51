"""Edge cases of stacks: layers with their own clock, failing stops, services that resist a cancellation."""

import asyncio
import gc

import pytest

import streaminfer as si
from streaminfer.testing import HANG, FakeClock, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


def test_telemetry_measures_on_its_own_clock():
    """Telemetry with a clock of its own measures on that clock."""
    clock = FakeClock()

    async def main(loop):
        async with si.Stack(si.Telemetry(clock=clock), ScriptedBackend(duration_s=1.0), clock=loop.clock) as stack:
            await stack(1.0)
            return stack.statistics()["Telemetry"].latency.max

    assert run(main) == 0.0


def test_error_after_caller_left_is_retrieved():
    """An error that comes after its caller left is not reported as an unretrieved exception."""

    class Stubborn:
        async def call(self, request):
            try:
                await asyncio.sleep(1.0)
            except asyncio.CancelledError:
                raise KeyError("too late") from None

    async def main(loop):
        reported = []
        loop.set_exception_handler(lambda loop, context: reported.append(context))
        async with si.Stack(Stubborn(), clock=loop.clock) as stack:
            with pytest.raises(si.DeadlineExceeded):
                await stack(1.0, timeout_s=0.1)
            await asyncio.sleep(0.01)
        gc.collect()
        return reported

    assert run(main) == []


class LooksUp:
    """User's layer that awaits something for longer than a request has time."""

    def wrap(self, inner):
        self.inner = inner
        return self

    async def call(self, request):
        await asyncio.sleep(1.0)
        return await self.inner.call(request)


@pytest.mark.parametrize("outer", [(), (si.Telemetry("t"), si.ConcurrencyLimit(limit=2))], ids=["alone", "inside"])
def test_users_layer_ends_at_deadline(outer):
    """The stack ends the await of a user's layer at the deadline.

    A batcher ends a request at its deadline, but not the work of a layer around it.
    """

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=2, slo_s=0.05)
        async with si.Stack(*outer, LooksUp(), batcher, ScriptedBackend(), clock=loop.clock) as stack:
            with pytest.raises(si.DeadlineExceeded):
                await stack(1.0)
            assert loop.now_ns == 50_000_000
            assert await stack(1.0, timeout_s=2.0) == 1.0

    run(main)


def test_the_first_failure_of_a_stop_is_raised():
    class Fails(ScriptedBackend):
        async def stop(self, *, drain):
            raise OSError("second")

    class Layer:
        def wrap(self, inner):
            service = Wrapper()
            service.inner = inner
            return service

    class Wrapper:
        async def stop(self, *, drain):
            raise OSError("first")

        async def call(self, request):
            return await self.inner.call(request)

    async def main(loop):
        stack = si.Stack(Layer(), Fails())
        await stack.start()
        with pytest.raises(OSError, match="first"):
            await stack.stop()

    run(main)


def test_nested_backend_takes_over_outer_clock():
    """A bare backend in a nested stack takes over the clock of the outer stack."""

    async def main(loop):
        outer = si.Stack(si.Stack(ScriptedBackend(HANG)), clock=loop.clock)
        async with outer:
            with pytest.raises(si.DeadlineExceeded):
                await outer(1.0, timeout_s=0.05)
            assert loop.now_ns == 50_000_000

    run(main)


def test_the_nearest_outer_clock_wins():
    near, far = FakeClock(1), FakeClock(2)
    inner = si.Stack(ScriptedBackend())
    si.Stack(si.Stack(inner, clock=near), clock=far)
    assert inner.clock is near
    middle = si.Stack(si.Stack(ScriptedBackend()))
    si.Stack(middle, clock=near)
    si.Stack(middle, clock=far)
    assert middle.clock is near


def test_stopping_stack_admits_nothing():
    """A stack that is stopping cannot be started and admits no requests."""

    async def main(loop):
        stack = si.Stack(ScriptedBackend(duration_s=1.0), clock=loop.clock)
        assert stack.admission(si.Request(1.0), loop.now_ns) == (False, "closed", None, None)
        await stack.start()
        assert stack.admission(si.Request(1.0), loop.now_ns).ok
        call = asyncio.ensure_future(stack(1.0))
        await asyncio.sleep(0.01)
        stopping = asyncio.ensure_future(stack.stop())
        await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="stopping already"):
            await stack.start()
        await stopping
        assert await call == 1.0
        assert stack.admission(si.Request(1.0), loop.now_ns).reason == "closed"

    run(main)


def test_degraded_responses_count_as_completed():
    """Degraded responses count as completed, and telemetry keeps its first clock in a second stack."""

    class Fallback:
        async def call(self, request):
            return si.Response(request.inputs, True)

    telemetry = si.Telemetry()

    async def main(loop):
        async with si.Stack(telemetry, Fallback(), clock=loop.clock) as stack:
            await stack(1.0)
        return loop.clock

    clock = run(main)
    assert telemetry.statistics().in_flight == 0
    telemetry.bind_clock(FakeClock())
    assert telemetry.clock == clock


def test_waiting_and_copying_count_as_assembly():
    """Waiting for a thread and copying are recorded as assembly."""

    class Late(ScriptedBackend):
        async def infer(self, batch):
            await asyncio.sleep(0.004)
            return await super().infer(batch)

    async def main(loop):
        stack = si.Stack(si.Telemetry(), si.AdaptiveBatcher(max_batch_size=1), Late(duration_s=0.01), clock=loop.clock)
        async with stack:
            await stack(1.0)
            return stack.statistics()["Telemetry"]

    s = run(main)
    assert s.assembly.max == pytest.approx(0.004, rel=1e-2)
    assert s.inference.max == pytest.approx(0.010, rel=1e-2)

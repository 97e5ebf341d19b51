"""Requests that a stop ends although they are in a part that keeps running, because another stack started it too."""

import asyncio

import numpy as np
import pytest

import streaminfer as si
from streaminfer.resilience import ConcurrencyLimit
from streaminfer.testing import HANG, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


def outer_stacks(inner, clock):
    """Return two stacks around one service."""
    return [si.Stack(si.Telemetry(name), inner, clock=clock) for name in ("first", "second")]


async def a_call(stack, value=1.0):
    call = asyncio.ensure_future(stack(value))
    await asyncio.sleep(0.01)
    return call


@pytest.mark.parametrize("drain", [False, True])
def test_requests_in_a_shared_stack_end(drain):
    """A stop ends the requests that its stack sent to a shared stack: at once, or after its timeout if it drains."""

    async def main(loop):
        backend = ScriptedBackend(HANG, duration_s=0.0, then=lambda batch: list(batch.inputs))
        inner = si.Stack(si.AdaptiveBatcher(max_batch_size=1, max_in_flight=2), backend)
        first, second = outer_stacks(inner, loop.clock)
        await first.start()
        await second.start()
        call = await a_call(first)
        began = loop.time()
        await first.stop(drain=drain, timeout_s=0.5)
        assert loop.time() - began == pytest.approx(0.5 if drain else 0.0, abs=0.001)
        assert call.done()
        with pytest.raises(si.Closed, match="the stack stopped before it could answer"):
            await call
        assert first.statistics()["Telemetry"].outcomes == {"Closed": 1}
        assert first.statistics()["Telemetry"].in_flight == 0
        await second.stop(drain=False)

    run(main)


def test_timeout_of_a_stop_can_be_a_float32():
    """A timeout that is a `float32` ends the stop in time, also if the loop's time needs more digits than it has."""

    async def main(loop):
        await asyncio.sleep(1e6)
        backend = ScriptedBackend(HANG)
        stack = si.Stack(si.AdaptiveBatcher(max_batch_size=1), backend, clock=loop.clock)
        await stack.start()
        call = await a_call(stack)
        began = loop.time()
        await stack.stop(timeout_s=np.float32(0.51))
        assert loop.time() - began == pytest.approx(0.51, abs=0.001)
        with pytest.raises(si.Closed):
            await call

    run(main)


def test_requests_of_the_other_stack_continue():
    """Requests of the other stack get their responses after the first stack has stopped."""

    async def main(loop):
        inner = si.Stack(si.AdaptiveBatcher(max_batch_size=2), ScriptedBackend(duration_s=0.1))
        first, second = outer_stacks(inner, loop.clock)
        async with second:
            await first.start()
            calls = [await a_call(first, 1.0), await a_call(second, 2.0)]
            await first.stop(drain=False)
            ends = await asyncio.gather(*calls, return_exceptions=True)
        return [end if isinstance(end, float) else type(end) for end in ends]

    assert run(main) == [si.Closed, 2.0]


def test_stop_ends_calls_queued_for_shared_limit():
    """A stop ends the calls that are queued for a permit of a limit that two stacks share.

    The permit that they wait for belongs to a request of another stack.
    """

    async def main(loop):
        limit = ConcurrencyLimit(limit=1, max_wait_s=60.0)
        first, second = (si.Stack(limit, ScriptedBackend(HANG), clock=loop.clock) for _ in range(2))
        async with second:
            await first.start()
            holds, waits = await a_call(second), await a_call(first)
            await first.stop(drain=False)
            ended = waits.done(), limit.statistics().queued
            holds.cancel()
            ends = await asyncio.gather(holds, waits, return_exceptions=True)
        return ended, [type(end) for end in ends]

    assert run(main) == ((True, 0), [asyncio.CancelledError, si.Closed])


def test_shared_cache_waiters_end_with_their_stack():
    """A stop ends calls that wait for a flight in a shared cache, and not the call of another stack that leads it."""

    async def main(loop):
        cache = si.EdgeCache(maxsize=8)
        model = si.Stack(si.AdaptiveBatcher(max_batch_size=1), ScriptedBackend(HANG))
        first, second = (si.Stack(cache, model, clock=loop.clock) for _ in range(2))
        async with second:
            await first.start()
            leads, waits = await a_call(second), await a_call(first)
            await first.stop(drain=False)
            ended = waits.done(), leads.done()
            leads.cancel()
            ends = await asyncio.gather(leads, waits, return_exceptions=True)
        return ended, [type(end) for end in ends]

    assert run(main) == ((True, False), [asyncio.CancelledError, si.Closed])


def test_a_cancelled_caller_stays_cancelled():
    """A cancelled caller gets its cancellation, whether it comes before or after the stop ends the request."""

    async def main(loop):
        inner = si.Stack(si.AdaptiveBatcher(max_batch_size=1, max_in_flight=4), ScriptedBackend(HANG, HANG))
        first, second = outer_stacks(inner, loop.clock)
        async with second:
            await first.start()
            before, after = await a_call(first), await a_call(first)
            stop = asyncio.ensure_future(first.stop(drain=False))
            before.cancel()
            for _ in range(50):
                if after.cancelling():  # by the stop
                    break
                await asyncio.sleep(0)
            after.cancel()
            await stop
            await asyncio.wait({before, after})
        return before.cancelled(), after.cancelled()

    assert run(main) == (True, True)


def test_caller_of_stopped_stack_is_not_cancelled():
    """A caller whose request a stop ended continues as one that was not cancelled.

    It gets `Closed`, and timeouts around its next calls work as usual.
    """

    async def main(loop):
        inner = si.Stack(si.AdaptiveBatcher(max_batch_size=1), ScriptedBackend(HANG))
        first, second = outer_stacks(inner, loop.clock)

        async def caller():
            with pytest.raises(si.Closed):
                await first(1.0)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await asyncio.Event().wait()
            return asyncio.current_task().cancelling()

        async with second:
            await first.start()
            task = asyncio.ensure_future(caller())
            await asyncio.sleep(0.01)
            await first.stop(drain=False)
            return await task

    assert run(main) == 0


class Sleepers:
    """Base class of a service and a backend that record which of their calls are cancelled."""

    def __init__(self):
        self.cancelled = []

    async def sleep(self, number):
        try:
            await asyncio.sleep(10.0)
        except asyncio.CancelledError:
            self.cancelled.append(int(number))
            raise


class SleepingService(Sleepers):
    async def call(self, request):
        await self.sleep(request.inputs)


class SleepingBackend(Sleepers):
    async def infer(self, batch):
        await self.sleep(batch.inputs[0])


@pytest.mark.parametrize("kind", [SleepingService, SleepingBackend])
def test_a_stop_ends_requests_in_order(kind):
    """A stop cancels requests in order, not by memory address, so that runs in virtual time repeat."""

    async def main(loop):
        inner = kind()
        layers = [si.AdaptiveBatcher(max_batch_size=1, max_in_flight=20)] if kind is SleepingBackend else []
        stack = si.Stack(*layers, inner, clock=loop.clock)
        await stack.start()
        calls = [await a_call(stack, float(number)) for number in range(20)]
        await stack.stop(drain=False)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        return inner.cancelled, {type(end) for end in ends}

    assert run(main) == (list(range(20)), {si.Closed})

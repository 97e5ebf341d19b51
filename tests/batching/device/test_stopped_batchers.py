"""State that stopped batchers leave on their device."""

import asyncio
import contextlib

import pytest
from device_calls import ask, batcher, settle

import streaminfer as si
from streaminfer.testing import HANG, ScriptedBackend


def named(name, backend):
    backend.name = name
    return backend


class Deaf(ScriptedBackend):
    """Scripted backend that ignores cancellation, so its batches take their full duration."""

    async def infer(self, batch):
        run = asyncio.ensure_future(super().infer(batch))
        while not run.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(run)
        return run.result()


async def test_batch_that_outlives_its_batcher_keeps_no_name(loop):
    """The next batcher of a name gets that name and its weight, even if a batch outlived the stop of the last one."""
    device = si.Device("gpu:0", weights={"a": 3})
    model = named("a", Deaf(duration_s=10.0))
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=1, device=device), model, clock=loop.clock)
    await stack.start()
    hanging = asyncio.ensure_future(stack(1.0))
    await asyncio.sleep(0.1)
    await stack.stop(drain=False, timeout_s=0.1)
    assert isinstance((await settle([hanging]))[0], si.Closed)

    await asyncio.sleep(20.0)
    await ask(batcher(loop, device, named("a", ScriptedBackend())))

    models = device.statistics().models
    assert list(models) == ["a"]
    assert models["a"].batches == 2
    assert models["a"].busy_s == 10.0


async def test_a_stop_that_is_cancelled_leaves_the_device(loop):
    """A cancelled stop cancels the batches of its batcher, so the next batcher of that name can take its place."""
    device = si.Device("core", preemptive=True)
    service = batcher(loop, device, named("a", ScriptedBackend(HANG)), slo_s=None)
    await service.start()
    hanging = ask(service)
    await asyncio.sleep(0.1)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(service.stop(), 1.0)
    assert isinstance((await settle([hanging]))[0], si.Closed)

    following = batcher(loop, device, named("a", ScriptedBackend()), slo_s=0.1)
    await following.start()
    await ask(following)
    assert device.statistics().background == ()
    assert list(device.statistics().models) == ["a"]

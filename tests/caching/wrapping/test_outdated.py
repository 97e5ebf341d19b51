"""Outdated values in place of errors, but not after an erasure, a deletion or their window; and refreshes."""

import asyncio
import threading

import pytest
from scripted_tier import ScriptedTier

import streaminfer as si
from streaminfer.compliance.retention import Retention
from streaminfer.errors import BackendError
from streaminfer.testing import FakeClock, run

pytestmark = pytest.mark.uncompiled

REQUEST = si.Request(1, subject="anna", tags=("face",))


class Model:
    """Model that responds with the number of the call after a second; fails while ``is_down`` is true."""

    fingerprint = "model"
    enforces_deadline = False

    def __init__(self):
        self.called = 0
        self.is_down = False

    async def call(self, request):
        self.called = number = self.called + 1
        await asyncio.sleep(1.0)
        if self.is_down:
            raise BackendError("down")
        return si.Response(number, False, "model")


def cache_of(loop, **more):
    """Return a cache whose values are fresh for 10 s, and outdated for 20 s after that."""
    return si.EdgeCache(ttl_s=10.0, stale_while_revalidate_s=0.0, stale_if_error_s=20.0, clock=loop.clock, **more)


FORGET = {
    "subject": lambda cache, key: cache.erase(subject="anna"),
    "tag": lambda cache, key: cache.erase(tag="face"),
    "delete": lambda cache, key: asyncio.ensure_future(cache.delete(key)),
    "clear": lambda cache, key: cache.clear(),
}


@pytest.mark.parametrize("forget", FORGET.values(), ids=FORGET)
@pytest.mark.parametrize("where", ["memory", "tier"])
def test_erased_value_does_not_replace_an_error(forget, where):
    """A value that is erased while its caller waits for a new value does not replace the error of the computation."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        cache, model = cache_of(loop, tiers=[tier] if where == "tier" else ()), Model()
        service = cache.wrap(model)
        async with cache:
            await service.call(REQUEST)
            await asyncio.sleep(11.0)
            if where == "tier":
                cache.clear()
            model.is_down = True
            call = asyncio.ensure_future(service.call(REQUEST))
            await asyncio.sleep(0.5)
            forget(cache, service.key_of(REQUEST))
            with pytest.raises(BackendError, match="down"):
                await call

    run(main)


@pytest.mark.parametrize("where", ["memory", "tier"])
def test_outdated_is_not_served_beyond_its_window(where):
    """If a computation fails after the window and the maximum age have ended, its caller gets the error."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        tiers = [tier] if where == "tier" else ()
        cache, model = cache_of(loop, retention=Retention(30.001), tiers=tiers), Model()
        service = cache.wrap(model)
        async with cache:
            await service.call(si.Request(1))
            await asyncio.sleep(29.5)  # 0.5 s are left, and a computation takes 1 s
            if where == "tier":
                cache.clear()
            model.is_down = True
            with pytest.raises(BackendError, match="down"):
                await service.call(si.Request(1))

    run(main)


@pytest.mark.parametrize("forgotten", [True, False], ids=["erased", "not"])
def test_erased_value_of_async_function_is_not_served(forgotten):
    """An outdated value replaces the error of an async function, unless it was erased meanwhile."""

    async def main(loop):
        cache, model = cache_of(loop), Model()

        @cache.wrap
        async def function(x):
            return (await model.call(x)).outputs

        await function(1)
        await asyncio.sleep(11.0)
        model.is_down = True
        call = asyncio.ensure_future(function(1))
        await asyncio.sleep(0.5)
        if forgotten:
            cache.clear()
            with pytest.raises(BackendError, match="down"):
                await call
        else:
            assert await call == 1

    run(main)


def test_erased_value_of_a_sync_function_is_not_served():
    """A value that the computation of a sync function erases does not replace its error."""
    clock = FakeClock()
    cache = si.EdgeCache(ttl_s=10.0, stale_while_revalidate_s=0.0, stale_if_error_s=20.0, clock=clock)
    calls = []

    def function(x, who):
        calls.append(threading.current_thread())
        if len(calls) > 1:
            cache.erase(subject="anna")
            raise BackendError("down")
        return x

    wrapped = cache.wrap(function, subject="who")
    assert wrapped(1, "anna") == 1
    clock.advance(11.0)

    with pytest.raises(BackendError, match="down"):
        wrapped(1, "anna")


def test_one_refresh_of_a_key_for_all_priorities():
    """Callers of all priorities get the stale value and share one refresh, which pauses after a failure."""

    async def main(loop):
        cache, model = si.EdgeCache(ttl_s=10.0, stale_s=100.0, clock=loop.clock), Model()
        service = cache.wrap(model)
        await service.call(si.Request(1))
        await asyncio.sleep(11.0)
        model.is_down = True
        for priority in (3, 0, -1, 3):
            assert (await service.call(si.Request(1, priority=priority))).degraded
            await asyncio.sleep(0.1)
        assert model.called == 2
        await asyncio.sleep(0.55)
        assert (await service.call(si.Request(1, priority=7))).degraded
        assert model.called == 2
        await asyncio.sleep(1.0)
        assert (await service.call(si.Request(1, priority=0))).degraded
        await asyncio.sleep(0.0)
        assert model.called == 3
        await service.stop(drain=True)

    run(main)


@pytest.mark.parametrize("priority", [1, 2, 3])
def test_caller_after_an_erasure_joins_no_older_flight(priority):
    """A caller after an erasure does not share a computation of another priority that began before the erasure."""

    async def main(loop):
        cache, model = si.EdgeCache(clock=loop.clock), Model()
        service = cache.wrap(model)
        before = asyncio.ensure_future(service.call(REQUEST.replace(priority=priority)))
        await asyncio.sleep(0.5)
        for _ in range(priority):
            cache.erase(subject="anna")
        assert (await service.call(REQUEST)).outputs == 2
        assert (await before).outputs == 1

    run(main)


def test_refresh_on_a_stalled_loop_hinders_no_other():
    """If a loop stops in the middle of a refresh, a stale hit on another loop begins another refresh."""
    clock = FakeClock()
    cache = si.EdgeCache(ttl_s=10.0, stale_s=100.0, clock=clock)
    called = 0

    @cache.wrap
    async def function(x):
        nonlocal called
        called += 1
        if called == 2:
            await asyncio.Event().wait()
        return called

    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    first.run_until_complete(function(1))
    clock.advance(11.0)
    first.run_until_complete(function(1))
    first.run_until_complete(asyncio.sleep(0))
    hangs = asyncio.all_tasks(first)
    second.run_until_complete(function(1))
    second.run_until_complete(asyncio.sleep(0))

    assert called == 3
    for task in hangs:
        task.cancel()
    first.run_until_complete(asyncio.gather(*hangs, return_exceptions=True))
    first.close()
    second.close()

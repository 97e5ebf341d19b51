"""Freshness of responses: durations that a computation sets, jitter, and stale responses."""

import asyncio
import functools
import os
import threading
import types

import pytest
from scripted_tier import ScriptedTier

import streaminfer as si
from streaminfer.caching import fresh_for, no_store
from streaminfer.compliance.retention import Retention
from streaminfer.errors import BackendError, InvalidInput
from streaminfer.testing import FakeClock, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled

S = 10**9


def answers_until_s(cache, loop, function, *arguments, every_s=1.0, most=100):
    """Return a coroutine that counts the seconds until the cache calls the function again."""

    async def count():
        wrapped = cache.wrap(function)
        first = await wrapped(*arguments)
        for seconds in range(1, most):
            await asyncio.sleep(every_s)
            if await wrapped(*arguments) != first:
                return seconds * every_s
        return None

    return count()


class Counting:
    """Async function whose responses differ; it calls `fresh_for` with each of the given durations."""

    fingerprint = "counting"

    def __init__(self, *said):
        self.said = said
        self.called = 0

    async def __call__(self, _):
        self.called += 1
        for seconds in self.said:
            fresh_for(seconds)
        return self.called


@pytest.mark.parametrize(
    ("ttl_s", "said", "lasts_s"),
    [(30.0, (), 30), (30.0, (5.0,), 5), (30.0, (7.0, 5.0, 9.0), 5), (30.0, (60.0,), 30), (None, (5.0,), 5)],
    ids=["nothing", "less", "shortest of several", "more than ttl_s", "no ttl_s"],
)
def test_fresh_for_bounds_a_response(ttl_s, said, lasts_s):
    """A response is fresh for the shortest duration that its computation sets, and at most for ``ttl_s``."""

    async def main(loop):
        cache = si.EdgeCache(ttl_s=ttl_s, clock=loop.clock)
        assert await answers_until_s(cache, loop, Counting(*said), 1) == lasts_s

    run(main)


def test_fresh_for_of_a_sync_function():
    """A synchronous function sets a duration with `fresh_for` as an async function does."""
    seconds = 0
    cache = si.EdgeCache(ttl_s=30.0, clock=lambda: seconds * 10**9)
    called = []

    @cache.wrap
    def double(x):
        called.append(x)
        fresh_for(5.0)
        return 2 * x

    for seconds in range(11):  # noqa: B007 - read by the clock
        assert double(1) == 2
    assert called == [1, 1, 1]


def test_fresh_for_a_service_around_a_batcher():
    """A layer between the cache and a batcher can set how long each response is fresh."""

    class ByScore:
        def wrap(self, inner):
            async def scored(request):
                response = await inner.call(request)
                fresh_for(1.0 if response.outputs < 0 else 60.0)
                return response

            return types.SimpleNamespace(call=scored)

    async def main(loop):
        layers = si.EdgeCache(ttl_s=60.0), ByScore(), si.AdaptiveBatcher(max_batch_size=4)
        async with si.Stack(*layers, ScriptedBackend(duration_s=0.01), clock=loop.clock) as service:
            for x in (-1.0, 1.0):
                await service.call(si.Request(x))
            await asyncio.sleep(2.0)
            sources = [(await service.call(si.Request(x))).source for x in (-1.0, 1.0)]
            assert sources[1] == "cache"
            assert sources[0] != "cache"

    run(main)


def test_fresh_for_within_the_policy():
    """The maximum age of a retention policy bounds a longer duration that a computation sets."""

    async def main(loop):
        cache = si.EdgeCache(retention=Retention(10.0), clock=loop.clock)
        assert await answers_until_s(cache, loop, Counting(60.0), 1) == 10

    run(main)


def test_fresh_for_rejects_an_invalid_duration():
    """`fresh_for` rejects a negative duration, even outside of a computation."""
    with pytest.raises(ValueError, match="seconds: expected a finite number of seconds ≥ 0, got -1"):
        fresh_for(-1.0)


def spread(seed, share=0.5, **settings):
    """Return the seconds for which each of twenty responses of one moment is fresh."""

    async def main(loop):
        cache = si.EdgeCache(ttl_s=100.0, ttl_jitter=share, seed=seed, clock=loop.clock, **settings)
        calls = [answers_until_s(cache, loop, Counting(), n, every_s=0.5, most=300) for n in range(20)]
        return await asyncio.gather(*calls)

    return run(main)


def test_jitter_spreads_expiry_times():
    """Responses of one moment expire at different times, from ``ttl_s`` less the share of jitter up to ``ttl_s``."""
    lasted_s = spread(seed=1)

    assert len(set(lasted_s)) > 15
    assert 50.0 <= min(lasted_s) <= 60.0
    assert 90.0 <= max(lasted_s) <= 100.0


def test_jitter_replays_with_a_seed():
    """The same seed draws the same expiry times, and another seed draws others."""
    assert spread(seed=1) == spread(seed=1) != spread(seed=2)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_jitter_of_forked_workers_differs():
    """Forked workers draw different jitter, so that their responses do not expire together."""
    cache = si.EdgeCache(ttl_s=100.0, ttl_jitter=0.5)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, repr(cache.freshness.response_ttl_s(None, ())).encode())
        os._exit(0)
    os.waitpid(child, 0)
    drawn_by_child = float(os.read(reading, 100))
    os.close(reading)
    os.close(writing)

    assert cache.freshness.response_ttl_s(None, ()) != drawn_by_child


def test_jitter_of_the_policy_time():
    """Jitter also spreads expiry times that the maximum age of a policy bounds."""
    assert len(set(spread(seed=1, retention=Retention(80.0)))) > 15


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_jitter_is_a_share(share):
    """`ttl_jitter` is at least 0 and less than 1."""
    with pytest.raises(ValueError, match="ttl_jitter: expected a share ≥ 0 and < 1"):
        si.EdgeCache(ttl_jitter=share)


class Model:
    """Model whose response is its number of calls; fails while ``error`` is set, and hangs while ``hangs`` is set."""

    fingerprint = "model"
    enforces_deadline = False

    def __init__(self):
        self.called = 0
        self.error = None
        self.hangs = False

    async def call(self, request):
        self.called += 1
        await asyncio.sleep(1000.0 if self.hangs else 0.1)
        if self.error is not None:
            raise self.error
        return si.Response(self.called, False, "model")


def windows(loop, **more):
    """Return a cache whose entries are fresh for 10 s, stale for the next 5 s, and outdated for the next 55 s."""
    return si.EdgeCache(ttl_s=10.0, stale_while_revalidate_s=5.0, stale_if_error_s=60.0, clock=loop.clock, **more)


def seen(response):
    return response.outputs, response.degraded


def test_windows_default_to_stale_s():
    """`stale_s` is the default of both windows; the argument of one window takes its place."""
    both = si.EdgeCache(stale_s=5.0)._memory.freshness
    other = si.EdgeCache(stale_s=5.0, stale_if_error_s=60.0)

    assert (both.revalidate_ns, both.stale_ns, both.stale_s) == (5 * 10**9, 5 * 10**9, 5.0)
    assert (other._memory.freshness.revalidate_ns, other._memory.freshness.stale_s) == (5 * 10**9, 60.0)


def test_stale_is_served_and_outdated_is_recomputed():
    """Within the first window a caller gets the old response at once; after it, the caller waits for a new one."""

    async def main(loop):
        model = Model()
        service = windows(loop).wrap(model)
        request = si.Request(1)
        assert seen(await service.call(request)) == (1, False)
        await asyncio.sleep(14.0)
        assert seen(await service.call(request)) == (1, True)
        await asyncio.sleep(0.2)
        assert seen(await service.call(request)) == (2, False)  # the refresh
        await asyncio.sleep(15.0)
        assert seen(await service.call(request)) == (3, False)

    run(main)


def test_outdated_replaces_an_error_until_its_end():
    """An outdated response replaces an error within its window, and not after it."""

    async def main(loop):
        model = Model()
        service = windows(loop).wrap(model)
        request = si.Request(1)
        await service.call(request)
        model.error = BackendError("down")
        await asyncio.sleep(68.0)
        assert seen(await service.call(request)) == (1, True)
        await asyncio.sleep(4.0)
        with pytest.raises(BackendError, match="down"):
            await service.call(request)

    run(main)


def test_outdated_in_an_expired_table():
    """The windows begin at the same instant if the expiry has already marked the entry as stale."""

    async def main(loop):
        model = Model()
        cache = windows(loop)
        service = cache.wrap(model)
        request = si.Request(1)
        await service.call(request)
        await asyncio.sleep(14.0)
        cache.expire()
        assert seen(await service.call(request)) == (1, True)
        await asyncio.sleep(0.5)
        model.error = BackendError("down")
        await asyncio.sleep(16.0)
        cache.expire()
        assert seen(await service.call(request)) == (2, True)
        assert model.called == 3

    run(main)


def test_outdated_is_served_at_a_deadline():
    """A model that hangs delays one caller to its deadline; within a second, the next gets the old response at once."""

    async def main(loop):
        model = Model()
        service = windows(loop).wrap(model)
        await service.call(si.Request(1))
        model.hangs = True
        await asyncio.sleep(20.0)
        begun_ns = loop.clock()
        first = await service.call(si.Request(1, deadline_ns=loop.clock() + S))
        assert (seen(first), loop.clock() - begun_ns) == ((1, True), S)
        assert seen(await service.call(si.Request(1, deadline_ns=loop.clock() + S))) == (1, True)
        assert loop.clock() - begun_ns == S
        await asyncio.sleep(100.0)

    run(main)


def test_outdated_spares_a_model_that_is_down():
    """Within a second of a failure, many calls lead to two calls of the model: the first, and a background refresh."""

    async def main(loop):
        model = Model()
        service = windows(loop).wrap(model)
        await service.call(si.Request(1))
        model.error = BackendError("down")
        await asyncio.sleep(20.0)
        for _ in range(50):
            assert seen(await service.call(si.Request(1))) == (1, True)
            await asyncio.sleep(0.01)
        assert model.called == 3

    run(main)


def test_outdated_does_not_replace_an_invalid_input():
    """An outdated response does not replace `InvalidInput`, which the caller must know."""

    async def main(loop):
        model = Model()
        service = windows(loop).wrap(model)
        await service.call(si.Request(1))
        model.error = InvalidInput("no")
        await asyncio.sleep(20.0)
        with pytest.raises(InvalidInput, match="no"):
            await service.call(si.Request(1))

    run(main)


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
def test_outdated_of_a_function(is_async):
    """A wrapped function, async or sync, returns an outdated result in place of an error."""
    error = None
    seconds = 0

    def double(x):
        if error is not None:
            raise error
        return 2 * x

    async def later(x):
        return double(x)

    async def main():
        nonlocal error, seconds
        clock = types.SimpleNamespace(clock=lambda: seconds * S)
        wrapped = windows(clock).wrap(later if is_async else double)
        call = wrapped if is_async else functools.partial(asyncio.to_thread, wrapped)
        assert await call(1) == 2
        error, seconds = ValueError("no"), 20
        assert await call(1) == 2
        seconds = 80
        with pytest.raises(ValueError, match="no"):
            await call(1)

    asyncio.run(main())


def test_outdated_of_a_tier():
    """An outdated entry of a tier is treated like one of memory: it is served only if the computation fails."""

    async def main(loop):
        model, tier = Model(), ScriptedTier(loop.clock)
        cache = windows(loop, tiers=[tier])
        async with si.Stack(cache, model, clock=loop.clock) as service:
            request = si.Request(1)
            await service.call(request)
            await asyncio.sleep(20.0)
            cache.clear()
            model.error = BackendError("down")
            failed = await service.call(request)
            assert (seen(failed), failed.source) == ((1, True), "disk")
            model.error = None
            await asyncio.sleep(2.0)
            cache.clear()
            assert seen(await service.call(request)) == (3, False)

    run(main)


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("stale_s", {"stale_s": 30.0}),
        ("stale_s", {"stale_s": 60.0, "stale_if_error_s": 5.0}),
        ("stale_if_error_s", {"stale_if_error_s": 60.0}),
        ("stale_if_error_s", {"stale_s": 5.0, "stale_if_error_s": 60.0}),
        ("stale_while_revalidate_s", {"stale_while_revalidate_s": 60.0, "stale_if_error_s": 40.0}),
    ],
)
def test_windows_within_the_policy(name, windows):
    """The longer window must be shorter than the maximum age of the policy."""
    with pytest.raises(ValueError, match=f"^{name}: expected less than the shortest maximum age"):
        si.EdgeCache(retention=Retention(30.0), **windows)


@pytest.mark.parametrize("why", ["degraded", "no_store"])
def test_a_refresh_that_is_not_stored_pauses(why):
    """While responses may not be stored, a stale one is served and refreshed once a second, until one is stored."""

    async def main(loop):
        cache = si.EdgeCache(ttl_s=10.0, stale_s=100.0, clock=loop.clock)
        computed_s = []
        well = True

        class Routes:
            fingerprint = "routes 1"

            async def call(self, request):
                computed_s.append(round(loop.time(), 1))
                if why == "no_store" and not well:
                    no_store()
                return si.Response(len(computed_s), why == "degraded" and not well, "model")

        service = cache.wrap(Routes())

        async def seen():
            response = await service.call(si.Request(1))
            return response.outputs, response.degraded, response.source

        await seen()
        await asyncio.sleep(20.0)
        well = False
        for _ in range(50):
            assert await seen() == (1, True, "cache")
            await asyncio.sleep(0.1)
        assert computed_s == [0.0, 20.0, 21.0, 22.0, 23.0, 24.0]
        well = True
        await asyncio.sleep(1.0)
        for expected in [(1, True, "cache")] + [(7, False, "cache")] * 20:
            assert await seen() == expected
            await asyncio.sleep(0.1)
        assert computed_s[6:] == [26.0]

    run(main)


def test_unstored_refresh_of_sync_function_pauses():
    """A refresh of a sync function, which runs in a thread, pauses for a second after a response that is not stored."""
    clock = FakeClock()
    cache = si.EdgeCache(ttl_s=10.0, stale_s=100.0, clock=clock)
    computed = []

    @cache.wrap
    def count(x):
        computed.append(x)
        if len(computed) > 1:
            no_store()
        return x

    for after_s in (0.0, 20.0, 0.5, 0.4):
        clock.advance(after_s)
        count(1)
        for thread in threading.enumerate():
            if thread.name == "streaminfer-cache-refresh":
                thread.join()

    assert len(computed) == 2

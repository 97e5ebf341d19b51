"""The cache as a layer of a `Stack`: its responses, its single flight, and the expiry of its entries."""

import asyncio
import contextlib
import gc
import threading
import weakref

import numpy as np
import pytest

import streaminfer as si
from streaminfer.caching import expiry
from streaminfer.caching.expiry import THREAD
from streaminfer.testing import FakeClock, ScriptedBackend, run


def test_stampede_computes_once_and_repeats_hit():
    """Repeated requests are served without the model, and a stampede computes once."""

    async def main(loop):
        cache = si.EdgeCache(ttl_s=10)
        backend = ScriptedBackend(duration_s=0.01)
        async with si.Stack(
            si.Telemetry("t"), cache, si.AdaptiveBatcher(max_batch_size=8), backend, clock=loop.clock
        ) as service:
            answers = await asyncio.gather(*(service(np.full(3, 2.0)) for _ in range(50)))
            assert all((answer == 2.0).all() for answer in answers)
            assert not answers[0].flags.writeable
            assert backend.batch_sizes == [1]
            assert (await service.call(si.Request(np.full(3, 2.0)))).source == "cache"
            assert (await service.call(si.Request(np.full(3, 2.0), stream_id=1))).source != "cache"
            await asyncio.sleep(10.1)
            assert (await service.call(si.Request(np.full(3, 2.0)))).source != "cache"
            assert cache.erase(subject="nobody") == 0
        assert cache.flights is not None

    run(main)


def test_the_thread_frees_entries_of_an_idle_stack():
    """The expiry thread frees an entry while the event loop is busy with something else."""

    class Kept:
        pass

    async def main():
        cache = si.EdgeCache(ttl_s=0.01)
        async with si.Stack(cache, ScriptedBackend()):
            value, gone = Kept(), threading.Event()
            weakref.finalize(value, gone.set)
            cache["x"] = value
            del value
            assert gone.wait(timeout=60)

    asyncio.run(main())


def test_thread_does_not_expire_by_a_stacks_clock():
    """An entry due by the clock of a stack, which the thread cannot read, is freed only by a store or ``expire``."""

    async def main(loop):
        cache = si.EdgeCache(ttl_s=1.0)
        async with si.Stack(cache, ScriptedBackend(), clock=loop.clock):
            cache["x"] = 1
            await asyncio.sleep(1.3)
            assert "x" not in cache
            assert cache.expire() == 1

    run(main)


def test_thread_leaves_out_a_cache_with_a_clock():
    """The expiry thread skips a cache that was given a clock while it waited for the thread."""
    cache = si.EdgeCache(ttl_s=3600.0)
    cache["x"] = 1
    cache.bind_clock(FakeClock(10**18))
    assert THREAD._expire_due(weakref.ref(cache._memory)) == 2**63 - 1
    assert cache._memory.wake_ns == -1
    assert cache.statistics().expired == 1


def test_thread_sees_entries_stored_while_it_looks(monkeypatch):
    """An entry that is stored while the expiry thread looks for due entries is freed at its time."""
    cache = si.EdgeCache()
    memory = cache._memory
    monkeypatch.setattr(expiry.THREAD, "wake", lambda memory: None)

    def interrupted(*args):
        cache.put("soon", 1, ttl_s=0.5)
        return min(*args)

    monkeypatch.setattr(expiry, "min", interrupted, raising=False)
    cache.put("late", 1, ttl_s=100.0)
    cache.put("due", 1, ttl_s=0.0)
    soon_ns = memory.now() + 10**9

    expiry.ExpiryThread()._expire_due(weakref.ref(memory))
    if "soon" not in cache:
        interrupted(0, 0)

    assert memory.wake_ns < soon_ns


def test_a_cache_outlives_the_loop_that_served_it():
    """After its loop is closed without a stop, a cache still stores values, and the thread frees expired values."""

    async def ask():
        await si.Stack(cache, ScriptedBackend()).start()

    cache = si.EdgeCache(ttl_s=0.01)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(ask())
    loop.close()

    cache["k"] = value = type("Value", (), {})()
    gone = threading.Event()
    weakref.finalize(value, gone.set)
    del value

    assert gone.wait(timeout=60)


def test_functions_share_the_cache_but_no_results():
    """Wrapped functions share a cache, but not their results."""
    cache = si.EdgeCache(maxsize=10)
    calls = []

    def double(x):
        calls.append(x)
        return 2 * x

    def triple(x):
        return 3 * x

    twice, thrice = cache.wrap(double), cache.wrap(triple)
    assert (twice(4), twice(4), thrice(4)) == (8, 8, 12)
    assert calls == [4]
    assert len(cache) == 2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"tiers": [object()]}, "tiers: expected tiers, such as DiskTier"),
        ({"tiers": 3}, "tiers: expected several"),
        ({"retention": 3}, "retention: expected a Retention"),
    ],
)
def test_invalid_tiers_and_retention_are_rejected(arguments, match):
    with pytest.raises(TypeError, match=match):
        si.EdgeCache(**arguments)


def test_backends_are_rejected():
    with pytest.raises(TypeError, match="before the batcher"):
        si.EdgeCache().wrap(ScriptedBackend())


def test_keys_depend_on_the_secret_of_the_cache():
    def key(secret):
        return si.EdgeCache(secret=secret).wrap(_doubled).key_of(1)

    assert len(key(b"a" * 16)) == 32
    assert len({key(secret) for secret in (None, b"a" * 16, b"b" * 16)}) == 3
    assert key(b"a" * 16) == key(b"a" * 16)
    assert "secret" not in repr(si.EdgeCache(secret=b"a secret of mine"))


@pytest.mark.parametrize(("wrong", "error"), [("a secret of mine", TypeError), (b"too short", ValueError)])
def test_wrong_secret_is_rejected_and_not_shown(wrong, error):
    """A secret of a wrong type or length is rejected, and the error does not show it."""
    with pytest.raises(error, match=r"^secret: expected at least 16 bytes") as refused:
        si.EdgeCache(secret=wrong)
    assert "mine" not in str(refused.value)
    assert "short" not in str(refused.value)


def _doubled(x):
    return 2 * x


class Failing:
    """A service that always fails."""

    async def call(self, request):
        await asyncio.sleep(0)
        raise si.BackendError("no")


async def failing(x):
    await asyncio.sleep(0)
    raise si.BackendError("no")


def failing_at_once(x):
    raise si.BackendError("no")


@pytest.mark.parametrize("what", [Failing(), failing, failing_at_once])
def test_failed_request_frees_its_inputs(what):
    """The inputs of a failed request are freed with its error, without the garbage collector."""

    async def main(loop):
        wrapped = si.EdgeCache(negative_ttl_s=1.0, clock=loop.clock).wrap(what)

        async def call(x):
            with contextlib.suppress(si.BackendError):
                if what is failing_at_once:
                    wrapped(x)
                else:
                    await (wrapped(x) if what is failing else wrapped.call(si.Request(x)))

        image = np.zeros(1000)
        left = weakref.ref(image)
        await asyncio.gather(*(call(image) for _ in range(3)))
        del image
        await asyncio.sleep(0.1)
        assert left() is None

    gc.disable()
    try:
        run(main)
    finally:
        gc.enable()


def test_stampede_recovers_from_a_slow_computation():
    """A waiter with enough time left leads, so a key of many callers with short deadlines is computed again."""

    async def main(loop):
        cache = si.EdgeCache(ttl_s=0.5)
        durations = iter([0.030, 0.300])
        backend = ScriptedBackend(duration_s=lambda _: next(durations, 0.030))
        async with si.Stack(cache, si.AdaptiveBatcher(max_batch_size=8), backend, clock=loop.clock) as service:
            calls = []
            for _ in range(2000):
                calls.append(asyncio.ensure_future(service(1.0, timeout_s=0.050)))
                await asyncio.sleep(0.001)
            ends = await asyncio.gather(*calls, return_exceptions=True)
            late = [number for number, end in enumerate(ends) if isinstance(end, si.DeadlineExceeded)]
            assert all(500 < number < 800 for number in late)
            assert len(backend.batches) < 20

    run(main)


def test_flights_are_shared_within_one_priority():
    """An urgent caller does not wait for the turn of a less urgent one.

    Requests of one key share a computation only with requests of the same priority.
    """

    async def main(loop):
        backend = ScriptedBackend(duration_s=0.010)
        batcher = si.AdaptiveBatcher(max_batch_size=1)
        async with si.Stack(si.EdgeCache(), batcher, backend, clock=loop.clock) as service:
            background = [asyncio.ensure_future(service(float(x), priority=9)) for x in range(100)]
            await asyncio.sleep(0.015)
            urgent = [service(99.0, priority=0, timeout_s=0.050) for _ in range(3)]
            assert await asyncio.gather(*urgent) == [99.0] * 3
            assert loop.time() < 0.050
            await asyncio.gather(*background)
            assert len(backend.batches) == 101

    run(main)


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("kind", [{"stream_id": "live"}, {"store": False}, {}], ids=["stream", "not_stored", "stored"])
def test_a_stop_ends_requests_at_a_service_that_hangs(kind, drain):
    """A stop ends requests at a service that hangs, also requests that bypass the cache and have no deadline."""

    class Hanging:
        async def call(self, request):
            await asyncio.sleep(3600.0)

    async def main(loop):
        stack = si.Stack(si.EdgeCache(ttl_s=10), Hanging(), clock=loop.clock)
        await stack.start()
        call = asyncio.ensure_future(stack(1.0, **kind))
        await asyncio.sleep(0.01)

        await stack.stop(drain=drain, timeout_s=0.1)
        await asyncio.sleep(0.01)

        assert isinstance(call.exception(), si.Closed)
        assert loop.time() < 1.0

    run(main)

"""The cache as a layer of a `Stack`: what it answers, whom it spares, and who looks after what expires."""

import asyncio
import gc
import weakref

import numpy as np
import pytest

import streaminfer as si
from streaminfer.caching.sweeping import LoopSweep
from streaminfer.testing import ScriptedBackend, VirtualLoop, run


def test_repeats_are_answered_without_the_model_and_a_stampede_computes_once():
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


def test_an_idle_cache_is_swept_by_the_loop_of_its_stack():
    class Kept:
        pass

    async def main(loop):
        cache = si.EdgeCache(ttl_s=1.0)
        async with si.Stack(cache, ScriptedBackend(), clock=loop.clock):
            assert cache.sweeper is not None
            value = Kept()
            gone = weakref.ref(value)
            cache["x"] = value
            del value
            await asyncio.sleep(1.3)
            gc.collect()
            assert gone() is None
        assert cache.sweeper is None

    run(main)


def test_a_second_service_of_one_cache_leaves_the_sweeping_to_the_first():
    async def main(loop):
        cache = si.EdgeCache(ttl_s=1.0)
        first, second = (si.Stack(cache, ScriptedBackend(), clock=loop.clock) for _ in range(2))
        async with first:
            async with second:
                assert await second(1.0) == await first(1.0)
            assert cache.sweeper is not None

    run(main)


def test_functions_share_the_cache_and_not_their_answers():
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
def test_what_is_no_tier_and_no_policy_is_refused(arguments, match):
    with pytest.raises(TypeError, match=match):
        si.EdgeCache(**arguments)


def test_backends_are_refused():
    with pytest.raises(TypeError, match="before the batcher"):
        si.EdgeCache().wrap(ScriptedBackend())


def test_a_caches_secret_makes_its_keys():
    def key(secret):
        return si.EdgeCache(secret=secret).wrap(_doubled).key_of(1)

    assert len(key(b"a" * 16)) == 32
    assert len({key(secret) for secret in (None, b"a" * 16, b"b" * 16)}) == 3
    assert key(b"a" * 16) == key(b"a" * 16)
    assert "secret" not in repr(si.EdgeCache(secret=b"a secret of mine"))


@pytest.mark.parametrize(("wrong", "error"), [("a secret of mine", TypeError), (b"too short", ValueError)])
def test_a_secret_that_is_none_is_refused_and_not_shown(wrong, error):
    with pytest.raises(error, match=r"^secret: expected at least 16 bytes") as refused:
        si.EdgeCache(secret=wrong)
    assert "mine" not in str(refused.value)
    assert "short" not in str(refused.value)


def _doubled(x):
    return 2 * x


def test_a_new_stack_takes_over_from_a_loop_that_was_closed():
    """It looks after the cache at once, and the old sweeper, stopped late, changes nothing."""
    cache = si.EdgeCache(ttl_s=1.0)
    cache["k"] = 1
    closed = VirtualLoop()
    old = LoopSweep(cache, closed)
    closed.call_soon(old.start)
    closed.call_soon(closed.stop)
    closed.run_forever()
    closed.close()
    assert cache.sweeper is None

    async def main(loop):
        async with si.Stack(cache, ScriptedBackend()):
            mine = cache.sweeper
            assert mine is not None
            assert mine is not old
            old.stop()
            assert cache.sweeper is mine
        assert cache.sweeper is None

    run(main)

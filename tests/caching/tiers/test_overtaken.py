"""`put_through` overtakes reads of tiers and computations of its key, also where memory has lost the newer value."""

import asyncio

import pytest
from scripted_tier import ScriptedTier, cache_of

from streaminfer.testing import run

pytestmark = pytest.mark.uncompiled

SMALL, LARGE = b"old", b"n" * 100


@pytest.mark.parametrize(
    ("newer", "limits"), [(LARGE, {"max_bytes": 50}), (b"new", {"maxsize": 1})], ids=["large", "evicted"]
)
@pytest.mark.parametrize("late", ["a read", "a computation"])
def test_put_through_is_not_replaced_by_what_it_overtook(late, newer, limits):
    """What was read or computed before is stored neither in memory nor on a tier, and later callers get the newer."""

    async def main(loop):
        fast, slow = ScriptedTier(loop.clock, "fast"), ScriptedTier(loop.clock, "slow")
        async with cache_of(loop, fast, slow, **limits) as cache:

            async def compute(x):
                await asyncio.sleep(1.0)
                return SMALL

            compute.fingerprint = "compute 1"
            cached = cache.wrap(compute)
            key = cached.key_of("x")
            if late == "a read":
                await cache.put_through(key, SMALL)
                await cache.put_through("other", 0)
                del fast.held[key]
                cache.clear()
            slow.get_s = 0.5
            before = asyncio.create_task(cached("x"))
            await asyncio.sleep(0.25)
            await cache.put_through(key, newer)
            cache["other"] = 0
            await before
            await asyncio.sleep(1.0)
            assert {tier.held[key].value for tier in (fast, slow)} == {newer}
            assert await cache.fetch(key) == newer

    run(main)


def test_put_through_of_one_key_spares_others():
    """What is read meanwhile for another key is used, and stored in memory."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        async with cache_of(loop, tier) as cache:
            await cache.put_through("a", 1)
            cache.clear()
            tier.get_s = 0.5
            read = asyncio.create_task(cache.fetch("a"))
            await asyncio.sleep(0.25)
            await cache.put_through("b", 2)
            assert await read == 1
            assert cache.get("a") == 1

    run(main)

"""`put_through` overtakes tier reads and computations of its key, even if memory has lost the newer value."""

import asyncio

import pytest
from scripted_tier import ScriptedTier, cache_of

from streaminfer.testing import run

pytestmark = pytest.mark.uncompiled

SMALL, LARGE = b"old", b"n" * 100


def computed(cache, takes_s):
    """Return a function that the cache wraps, and the key of its value for ``"x"``."""

    async def compute(x):
        await asyncio.sleep(takes_s)
        return SMALL

    compute.fingerprint = "compute 1"
    cached = cache.wrap(compute)
    return cached, cached.key_of("x")


@pytest.mark.parametrize(
    ("newer", "limits"), [(LARGE, {"max_bytes": 50}), (b"new", {"maxsize": 1})], ids=["large", "evicted"]
)
@pytest.mark.parametrize("late", ["a read", "a fetch", "a computation"])
def test_put_through_is_not_replaced_by_older_values(late, newer, limits):
    """An older value that is read or computed meanwhile is stored nowhere, and later callers get the newer value."""

    async def main(loop):
        fast, slow = ScriptedTier(loop.clock, "fast"), ScriptedTier(loop.clock, "slow")
        async with cache_of(loop, fast, slow, **limits) as cache:
            cached, key = computed(cache, takes_s=1.0)
            if late != "a computation":
                await cache.put_through(key, SMALL)
                await cache.put_through("other", 0)
                del fast.held[key]
                cache.clear()
            slow.get_s = 0.5
            before = asyncio.ensure_future(cache.fetch(key) if late == "a fetch" else cached("x"))
            await asyncio.sleep(0.25)
            await cache.put_through(key, newer)
            cache["other"] = 0
            await before
            await asyncio.sleep(1.0)
            assert {tier.held[key].value for tier in (fast, slow)} == {newer}
            assert await cache.fetch(key) == newer

    run(main)


def test_put_through_of_one_key_spares_others():
    """A value of another key that is read meanwhile is returned and stored in memory."""

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


def test_many_puts_of_other_keys_spare_a_computation():
    """Later callers join a computation in flight although thousands of other keys are put meanwhile."""

    async def main(loop):
        async with cache_of(loop, ScriptedTier(loop.clock)) as cache:
            cached, key = computed(cache, takes_s=1.0)
            first = asyncio.ensure_future(cached("x"))
            await asyncio.sleep(0.25)
            for number in range(4200):  # more deletions than a table counts by key
                await cache.put_through(f"other {number}", 0)
            assert [await cached("x"), await first] == [SMALL, SMALL]
            assert cache.peek(key) == SMALL
            assert cache.statistics().flights.computations == 1

    run(main)


@pytest.mark.parametrize("before", ["put", "computed"])
@pytest.mark.parametrize("set_back_s", [0.0, 5.0], ids=["still", "set back"])
def test_change_at_the_same_instant_counts_as_later(before, set_back_s):
    """If the wall clock stands still or is set back, the old value is not read while the tier stores the newer."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        async with cache_of(loop, tier, maxsize=1) as cache:
            cached, key = computed(cache, takes_s=0.0)
            if before == "put":
                await cache.put_through(key, SMALL)
            else:
                await cached("x")
                await cache.put_through("other", 0)  # queued after the computed value
            stands_ns = tier.wall_clock() - round(set_back_s * 1e9)
            tier.wall_clock = lambda: stands_ns
            tier.put_s = 1.0
            newer = asyncio.create_task(cache.put_through(key, b"new"))
            await asyncio.sleep(0.5)
            cache["other"] = 0  # evicts the newer value from memory
            assert await cache.fetch(key) is None
            assert await newer
            assert await cache.fetch(key) == b"new"

    run(main)


def test_clock_set_back_does_not_date_changes_forward():
    """A clock that was set back by an hour does not date changes forward.

    The older value of the tier is not used then, and a value that is put after the change is.
    """

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        async with cache_of(loop, tier, maxsize=1) as cache:
            await cache.put_through("a", SMALL)
            stands_ns = tier.wall_clock() - 3600 * 10**9
            tier.wall_clock = lambda: stands_ns
            await cache.put_through("a", b"new")
            cache.clear()
            assert tier.held["a"].stored_ns == stands_ns
            assert await cache.fetch("a") == b"new"

    run(main)

"""Writer of a tier: a value that a tier may not store takes the place of the older value all the same."""

import asyncio

import pytest
from scripted_tier import ScriptedTier, cache_of

import streaminfer as si
from streaminfer.caching import RetentionLog
from streaminfer.caching.tiers.writer import TierWriter
from streaminfer.compliance.retention import Retention
from streaminfer.testing import run

pytestmark = pytest.mark.uncompiled

POLICY = Retention(1000.0, classes={"face": Retention(1000.0, allow_disk=False)})
PLAIN = {"tags": ["plain"]}
MAY_NOT = {"disallowed": {"tags": ["face"]}, "without keys": {"subject": "ben"}, "erased": {"subject": "anna"}}


async def erasing(cache, tier):
    """Leave an erasure of anna pending on a tier."""
    tier.erase_error = si.BackendError("away")
    assert not (await cache.erase_everywhere(subject="anna")).complete
    tier.erase_error = None


async def reject(key):
    """Remove nothing, in place of the `supersede` of a tier."""
    return False


@pytest.mark.parametrize("why", MAY_NOT)
def test_value_that_may_not_be_stored_leaves_no_older(why):
    """A later process does not find the older value of a key whose newer value the tier may not store."""

    async def main(loop):
        tier = ScriptedTier(loop.clock, encrypted=why != "without keys")
        async with cache_of(loop, tier, ttl_s=500.0, retention=POLICY) as cache:
            await cache.put_through("k", "old", **PLAIN)
            if why == "erased":
                await erasing(cache, tier)
            assert await cache.put_through("k", "new", **MAY_NOT[why]) is (why != "erased")
            assert cache["k"] == "new"
            seen = cache.tiers.statistics()[0]
            assert (seen.stored, seen.rejected, seen.disallowed + seen.dropped) == (1, 0, 1)
        async with cache_of(loop, tier, ttl_s=500.0) as later:
            assert await later.fetch("k") is None

    run(main)


@pytest.mark.parametrize("stops", [False, True], ids=["running", "stopping"])
def test_erased_while_queued_leaves_no_older_value(stops):
    """A queued value that is erased takes the older value of its key with it, also while the cache stops."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        async with cache_of(loop, tier) as cache:
            await cache.put_through("k", "old")
            await cache.put_through("twice", "old")
            tier.put_s = 1.0
            puts = asyncio.gather(
                cache.put_through("busy", 0),
                cache.put_through("k", "new", subject="anna"),
                cache.put_through("twice", "new", subject="anna"),
                cache.put_through("twice", "newer"),
            )
            await asyncio.sleep(0.5)
            cache.erase(subject="anna")
            if not stops:
                await puts
        assert await puts == [True, False, False, True]
        assert {key: entry.value for key, entry in tier.held.items()} == {"busy": 0, "twice": "newer"}

    run(main)


def test_removal_in_place_of_a_value_is_no_write():
    """A removal whose key gets a later value is not made, and is no dropped write."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        async with cache_of(loop, tier, retention=POLICY, ttl_s=None) as cache:
            puts = [cache.put_through("k", "new", **MAY_NOT["disallowed"]), cache.put_through("k", "newer", **PLAIN)]
            assert await asyncio.gather(*puts) == [False, True]
            seen = cache.tiers.statistics()[0]
            assert (seen.stored, seen.dropped, seen.disallowed) == (1, 0, 1)

    run(main)


@pytest.mark.parametrize("why", MAY_NOT)
def test_older_value_that_stays_is_not_used(why):
    """If the older value cannot be removed, ``put_through`` returns false, and the cache uses only a later value."""

    async def main(loop):
        tier = ScriptedTier(loop.clock, encrypted=why != "without keys")

        async with cache_of(loop, tier, ttl_s=500.0, retention=POLICY) as cache:
            await cache.put_through("k", "old", **PLAIN)
            if why == "erased":
                await erasing(cache, tier)
            tier.supersede = reject
            assert not await cache.put_through("k", "new", **MAY_NOT[why])
            cache.clear()
            assert (tier.held["k"].value, await cache.fetch("k")) == ("old", None)
            assert await cache.put_through("k", "newest", **PLAIN)
            cache.clear()
            assert await cache.fetch("k") == "newest"

    run(main)


@pytest.mark.parametrize("stays", [False, True], ids=["removed", "stays"])
@pytest.mark.parametrize("why", MAY_NOT)
def test_computed_value_not_stored_leaves_no_older(why, stays):
    """A computed response that a tier may not store takes the older one of its key with it, or that is not used."""

    async def main(loop):
        tier = ScriptedTier(loop.clock, encrypted=why != "without keys")
        async with cache_of(loop, tier, maxsize=1, retention=POLICY, ttl_s=None) as cache:

            async def compute(user, label):
                return "new"

            compute.fingerprint = "compute 1"
            cached = cache.wrap(compute, subject="user", tags=["label"])
            arguments = MAY_NOT[why].get("subject"), *MAY_NOT[why].get("tags", ["plain"])
            key = cached.key_of(*arguments)
            await cache.put_through(key, "old")
            cache.clear()
            if why == "erased":
                await erasing(cache, tier)
            if stays:
                tier.supersede = reject
            tier.get = None  # a call fails
            assert await cached(*arguments) == "new"
            await asyncio.sleep(0.5)
            del tier.get
            cache.clear()
            assert (list(tier.held), await cache.fetch(key)) == ([key] * stays, None)

    run(main)


def test_later_value_stays_queued():
    """A tier that preserves values makes the later put of a key, if a pending erasure forbids the earlier one."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        tier.preserves = True
        async with cache_of(loop, tier, ttl_s=500.0, retention=Retention(1000.0, min_age_s=100.0)) as cache:
            await erasing(cache, tier)
            puts = cache.put_through("k", "new", subject="anna"), cache.put_through("k", "newer")
            assert await asyncio.gather(*puts) == [False, True]
            assert tier.held["k"].value == "newer"

    run(main)


def test_value_erased_meanwhile_leaves_no_older():
    """A value that is erased while it is put takes the older value of its key with it."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        async with cache_of(loop, tier) as cache:
            await cache.put_through("k", "old")
            replace = TierWriter.replace

            def erase_and_replace(writer, key):
                cache.erase(subject="anna")
                replace(writer, key)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(TierWriter, "replace", erase_and_replace)
                assert not await cache.put_through("k", "new", subject="anna")
            assert tier.held == {}

    run(main)


def test_promoted_value_removes_nothing():
    """A value that a faster tier may not store, and a slower one has, removes nothing there at each promotion."""

    async def main(loop):
        disk, server = ScriptedTier(loop.clock), ScriptedTier(loop.clock, "redis", on_disk=False)
        async with cache_of(loop, disk, server, retention=POLICY, ttl_s=None) as cache:
            await cache.put_through("k", "new", **MAY_NOT["disallowed"])
            disk.put = disk.supersede = None
            cache.clear()
            assert await cache.fetch("k") == "new"
            assert cache.tiers.statistics()[0].queued == 0

    run(main)


def test_tier_without_holds_does_not_lose_a_held_value():
    """An older value under a legal hold stays on a tier that may not store the newer one, and is not used."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        policy = Retention(1000.0, classes={**POLICY.classes, "case": Retention(1000.0)}, log=RetentionLog())
        async with cache_of(loop, tier, ttl_s=500.0, retention=policy) as cache:
            await cache.put_through("held", "old", tags=["case"])
            await cache.put_through("other", "old")
            await cache.hold(data_class="case", reason="case 17")
            assert not await cache.put_through("held", "new", tags=["face"])
            assert await cache.put_through("other", "new", tags=["face"])
            cache.clear()
            assert (await cache.fetch("held"), list(tier.held)) == (None, ["held"])

    run(main)

"""Deletion of one key: from memory, from running computations and from every tier."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from redis_server import PATIENT
from scripted_tier import Model, ScriptedTier, cache_of

import streaminfer as si
from streaminfer.caching.tiers import DiskTier, RedisTier
from streaminfer.compliance.retention_log import RetentionLog
from streaminfer.errors import BackendError
from streaminfer.testing import run

pytestmark = pytest.mark.uncompiled


def test_delete_removes_fresh_stale_and_failed():
    """A deletion removes the entry of a key from memory, whether it is fresh, stale or a failure."""

    async def main(loop):
        cache = si.EdgeCache(ttl_s=1.0, stale_s=10.0, negative_ttl_s=10.0, clock=loop.clock)
        cache.put("stale", 1)
        await asyncio.sleep(2.0)
        cache.put("fresh", 1)
        cache.put_negative("failed", ValueError("no"))
        for key in ("stale", "fresh", "failed", "absent"):
            assert await cache.delete(key)
        seen = cache.statistics()
        assert (seen.entries, seen.stale, seen.negative, seen.removed) == (0, 0, 0, 3)

    run(main)


def test_delete_takes_strings_and_bytes_only():
    """`delete` rejects a key that is neither a string nor bytes, because tiers cannot name it."""
    with pytest.raises(TypeError, match="key: expected a string or bytes"):
        asyncio.run(si.EdgeCache().delete(7))


def test_delete_during_a_computation():
    """A computation that began before the deletion returns its response, which neither memory nor a tier stores."""

    async def main(loop):
        tier, model = ScriptedTier(loop.clock), Model(after_s=1.0)
        cache = cache_of(loop, tier)
        wrapped = cache.wrap(model)
        request = si.Request(np.ones(2))
        async with cache:
            asked = asyncio.create_task(wrapped.call(request))
            await asyncio.sleep(0.5)
            assert await cache.delete(wrapped.key_of(request))
            assert (await asked).source == "model"
            await asyncio.sleep(0.1)
            assert (len(cache), tier.held) == (0, {})

    run(main)


def test_delete_during_a_read():
    """The result of a tier read that began before the deletion is not used."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        async with cache_of(loop, tier) as cache:
            await cache.put_through("k", 1)
            cache.clear()
            tier.get_s = 0.2
            read = asyncio.create_task(cache.fetch("k"))
            await asyncio.sleep(0.1)
            assert await cache.delete("k")
            assert await read is None
            assert (len(cache), cache.tiers.statistics()[0].discarded) == (0, 1)

    run(main)


def counting():
    """Return an async function whose result is its number of calls."""
    calls = []

    async def model(x):
        calls.append(x)
        number = len(calls)
        await asyncio.sleep(1.0)
        return number

    model.fingerprint = "model 1"
    return model


@pytest.mark.parametrize(
    "forget",
    [
        lambda cache, key: cache.delete(key),
        lambda cache, _: cache.erase_everywhere(tag="x"),
        lambda cache, key: asyncio.sleep(0, cache.pop(key, None)),
    ],
    ids=["delete", "erase", "pop"],
)
def test_callers_after_deletion_get_no_older_value(forget):
    """Later callers do not share a computation that began before the deletion; earlier callers get its value."""

    async def main(loop):
        cache = si.EdgeCache(ttl_s=10.0, clock=loop.clock)
        cached = cache.wrap(counting(), tags=("x",))
        before = asyncio.create_task(cached("x"))
        await asyncio.sleep(0.5)
        await forget(cache, cached.key_of("x"))
        after = [asyncio.create_task(cached("x")) for _ in range(2)]
        assert await asyncio.gather(before, *after) == [1, 2, 2]
        assert await cached("x") == 2

    run(main)


def test_threads_after_deletion_get_no_older_value():
    """A thread does not share a computation that began before the deletion."""
    begun, ends = threading.Event(), threading.Event()
    results = iter([1, 2])
    cache = si.EdgeCache(ttl_s=10.0)

    @cache.wrap
    def cached(x):
        result = next(results)
        if result == 1:
            begun.set()
            assert ends.wait(10.0)
        return result

    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(cached, "x")
        assert begun.wait(10.0)
        cache.pop(cached.key_of("x"), None)
        assert cached("x") == 2
        ends.set()
        assert before.result(10.0) == 1
    assert cached("x") == 2


def test_put_value_outlasts_a_running_computation():
    """The result of a computation does not replace a value that was put meanwhile, in memory or on a tier."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        async with cache_of(loop, tier) as cache:
            cached = cache.wrap(counting())
            before = asyncio.create_task(cached("x"))
            await asyncio.sleep(0.5)
            assert await cache.put_through(cached.key_of("x"), "newer")
            assert await before == 1
            assert await cached("x") == "newer"
            assert [entry.value for entry in tier.held.values()] == ["newer"]
            assert cache.flights.not_stored == 1

    run(main)


def test_late_write_does_not_undo_a_deletion():
    """After a failed deletion the key is not found, even if an older write was running and stores it in the tier."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        async with cache_of(loop, tier) as cache:
            tier.put_s = 1.0
            first = asyncio.create_task(cache.put_through("k", 1))
            await asyncio.sleep(0.5)
            tier.erase_error = BackendError("gone")
            assert not await cache.delete("k")
            assert await first
            assert tier.held
            assert await cache.fetch("k") is None

    run(main)


def test_tier_read_overtaken_by_a_deletion_is_not_used():
    """A value that a tier had before its deletion is not used, even if the read began after the call of `delete`."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        async with cache_of(loop, tier) as cache:
            await cache.put_through("k", 1)
            tier.erase_s, tier.get_s = 0.5, 0.8
            deletion = asyncio.create_task(cache.delete("k"))
            await asyncio.sleep(0.1)
            read = asyncio.create_task(cache.fetch("k"))
            assert await deletion
            assert await read is None
            assert (len(cache), cache.tiers.statistics()[0].discarded) == (0, 1)

    run(main)


def test_failed_delete_of_a_tier_hides_its_old_entry():
    """`delete` returns false if a tier fails; the old entry of the tier is not used, a newer entry is."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        async with cache_of(loop, tier) as cache:
            await cache.put_through("k", 1)
            tier.erase_error = BackendError("gone")
            assert not await cache.delete("k")
            assert tier.held
            assert await cache.fetch("k") is None
            await cache.put_through("k", 2)
            cache.clear()
            assert await cache.fetch("k") == 2

    run(main)


def test_delete_removes_a_queued_write():
    """A deletion drops a queued write of the same key."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        async with cache_of(loop, tier) as cache:
            tier.put_s = 1.0
            first = asyncio.create_task(cache.put_through("other", 0))
            await asyncio.sleep(0.1)
            second = asyncio.create_task(cache.put_through("k", 1))
            await asyncio.sleep(0.1)
            assert await cache.delete("k")
            assert (await first, await second) == (True, False)
            assert list(tier.held) == ["other"]

    run(main)


def test_delete_without_tiers_started():
    """`delete` removes the key from memory, and returns false because the tiers do not run."""

    async def main(loop):
        cache = cache_of(loop, ScriptedTier(loop.clock))
        cache.put("k", 1)
        assert not await cache.delete("k")
        assert len(cache) == 0

    run(main)


def test_delete_on_disk_and_server(tmp_path, server):
    """A deletion removes its key, and no other, from a real disk tier and a real Redis tier."""

    async def main():
        tiers = [DiskTier(tmp_path, max_bytes=2**22), RedisTier(server.url, namespace="delete", **PATIENT)]
        async with si.EdgeCache(tiers=tiers) as cache:
            for key in ("k", b"k"):
                assert await cache.put_through(key, key, tags=("a",))
            assert await cache.delete("k")
            assert [await tier.get("k") for tier in tiers] == [None, None]
            assert [(await tier.get(b"k")).value for tier in tiers] == [b"k", b"k"]
            assert [it.tier.erased for it in cache.tiers.statistics()] == [1, 1]
            assert dict((await cache.erase_everywhere(tag="a")).counts) == {"memory": 1, "disk": 1, "redis": 1}

    asyncio.run(main())


def test_delete_is_recorded(tmp_path):
    """The retention log counts once each entry that deletions by key remove from memory or a tier."""

    async def main():
        log = RetentionLog()
        tiers = [DiskTier(tmp_path, max_bytes=2**22)]
        async with si.EdgeCache(retention=si.Retention(60.0, log=log), tiers=tiers) as cache:
            await cache.put_through("k", 1)
            await cache.put_through("only in memory", lambda: None)
            for key in ("k", "k", "only in memory", "absent"):
                await cache.delete(key)
        return [it for it in log.events if it.action == "removed"]

    removed = asyncio.run(main())
    for where, count in (("disk", 1), ("memory", 2)):  # removals within a second are one event
        assert sum(it.count for it in removed if it.where == where) == count
    assert {it.where for it in removed} == {"disk", "memory"}


def test_delete_fails_without_the_server():
    """`delete` returns false if the server does not respond."""

    async def main():
        async with si.EdgeCache(tiers=[RedisTier("redis://127.0.0.1:1", **PATIENT)]) as cache:
            assert not await cache.delete("k")

    asyncio.run(main())

"""A stop of tiers that is cancelled at any step leaves no tier running, so they can be started again."""

import asyncio
import fcntl

import pytest
from redis_server import PATIENT
from scripted_tier import ScriptedTier, cache_of

import streaminfer as si
from streaminfer.caching.erasure.retention_counts import RetentionCounts
from streaminfer.caching.tiers import DiskTier, RedisTier
from streaminfer.compliance.retention_log import RetentionLog
from streaminfer.testing import run

MIB = 2**20


async def interrupt(stopping, *steps):
    """Cancel a stop after the first number of turns of the loop, and again after each further number."""
    task = asyncio.ensure_future(stopping)
    for turns in steps:
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("put_s", [0.0, 100.0])
def test_interrupted_stop_of_a_cache_stops_its_tiers(drain, put_s):
    """An interrupted stop of a cache stops its tier, whatever the writer of the tier does at that moment."""

    async def play(loop):
        for turns in range(1, 12):
            tier = ScriptedTier(loop.clock)
            tier.put_s = put_s
            cache, owner = cache_of(loop, tier), object()
            await cache.tiers.hold(owner)
            putting = asyncio.ensure_future(cache.put_through("k", 1))
            await asyncio.sleep(0.01)
            await interrupt(cache.tiers.release(owner, drain=drain), turns, 1)
            await asyncio.sleep(0.01)  # a stop that is cancelled twice does not wait for the tier
            assert not tier.running, turns
            await cache.tiers.hold(owner)
            await cache.tiers.release(owner, drain=False)
            await asyncio.wait([putting])

    run(play)


def test_interrupted_stop_of_disk_tier_closes_its_file(tmp_path):
    """An interrupted stop of a disk tier closes its file, so that another process can replace a corrupt file."""

    async def main():
        tier = DiskTier(tmp_path, max_bytes=MIB)
        for turns in range(1, 6):
            await tier.start()
            await interrupt(tier.stop(), turns)
            await tier.start()  # waits for the stop if it is still closing the file
            await tier.stop()
            with (tmp_path / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    asyncio.run(main())


def test_interrupted_stop_of_redis_closes_connections(server):
    """An interrupted stop of a Redis tier closes the connections of its operations and of its listener."""

    async def main():
        for turns in range(1, 6):
            tier = RedisTier(server.url, invalidate=True, **PATIENT)
            await tier.start()
            await tier.notices.listening.wait()
            await interrupt(tier.stop(), turns)
            assert not tier.notices.listening.is_set()
            await tier.start()
            await tier.stop()
            await tier.stop()

    asyncio.run(main())
    with server.client() as client:
        assert len(client.client_list()) == 1


def test_cancelled_stop_lets_another_loop_use_cache(tmp_path, monkeypatch):
    """A stop that is cancelled while it writes the log leaves the cache usable on another loop.

    The tiers have stopped before the log is written.
    """
    log = RetentionLog(tmp_path / "log", secret=b"s" * 32)
    tier = DiskTier(tmp_path / "tier", max_bytes=MIB)
    cache = si.EdgeCache(retention=si.Retention(60.0, log=log), tiers=[tier])
    settle = RetentionCounts.settle

    async def cancelled(counts, *, final=False):
        raise asyncio.CancelledError

    async def use():
        async with cache:
            return await cache.put_through("k", 1)

    monkeypatch.setattr(RetentionCounts, "settle", cancelled)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(use())
    monkeypatch.setattr(RetentionCounts, "settle", settle)
    assert asyncio.run(use())

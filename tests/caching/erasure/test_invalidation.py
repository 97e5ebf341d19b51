"""Deletions and erasures in a real Redis server reach the memory and the faster tiers of other processes."""

import asyncio
import contextlib
import math
import signal
import subprocess
import sys

import pytest
from redis_server import PATIENT, RedisServer

import streaminfer as si
from streaminfer.caching.tiers import DiskTier, RedisTier
from streaminfer.caching.tiers.encryption import StoredKeys


@pytest.fixture
def server(tmp_path):
    """Run a server for each test, because tests stop it and count its clients."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


def tier_of(server, **more):
    return RedisTier(server.url, namespace="told", invalidate=True, **PATIENT, **more)


@contextlib.asynccontextmanager
async def cache_of(*tiers, **settings):
    """Run a cache that receives the notices of other caches."""
    async with si.EdgeCache(tiers=tiers, **settings) as cache:
        for tier in tiers:
            if isinstance(tier, RedisTier):
                await tier.notices.listening.wait()
        yield cache


async def until(condition):
    async with asyncio.timeout(30.0):
        while not condition():
            await asyncio.sleep(0)


def test_deletion_reaches_the_memory_of_other_caches(server):
    """A deletion by one cache removes the key from the memory of another, which keeps its other entries."""

    async def main():
        async with cache_of(tier_of(server)) as one, cache_of(tier_of(server)) as other:
            for key in ("k", b"k"):
                await one.put_through(key, 1)
                assert await other.fetch(key) == 1
            assert await one.delete("k")
            await until(lambda: "k" not in other)
            assert (await other.fetch("k"), other.get(b"k")) == (None, 1)

    asyncio.run(main())


@pytest.mark.parametrize("selection", [{"subject": "anna"}, {"tag": "face"}], ids=["subject", "tag"])
def test_an_erasure_reaches_memory_and_faster_tiers(server, tmp_path, selection):
    """An erasure by one cache erases the memory of another cache, and its disk tier in front of the server."""

    async def main():
        keys = StoredKeys(tmp_path / "keys.db", master=b"m" * 32)
        disk = DiskTier(tmp_path / "disk", max_bytes=2**22, keys=keys)
        async with (
            contextlib.AsyncExitStack() as stack,
            cache_of(tier_of(server, keys=keys)) as one,
            cache_of(disk, tier_of(server, keys=keys)) as other,
        ):
            stack.callback(keys.close)
            await other.put_through("k", 1, subject="anna", tags=("face",))
            await other.put_through("stays", 1, subject="ben")
            assert (await one.erase_everywhere(**selection)).count == 1
            await until(lambda: disk.statistics().erased)
            assert ("k" in other, await disk.get("k"), await other.fetch("k")) == (False, None, None)
            assert other.get("stays") == 1

    asyncio.run(main())


def test_result_overtaken_by_erasure_is_not_stored(server):
    """A result is not stored if another cache erases its subject during the computation."""

    async def main():
        async with cache_of(tier_of(server)) as one, cache_of(tier_of(server)) as other:
            begun, ends = asyncio.Event(), asyncio.Event()

            async def model(x, patient):
                begun.set()
                await ends.wait()
                return x

            model.fingerprint = "model 1"
            asked = asyncio.create_task(other.wrap(model, subject="patient")(1, "anna"))
            await begun.wait()
            await one.erase_everywhere(subject="anna")
            await until(lambda: other.tiers.workers[0].tier.notices.heard)
            ends.set()
            assert (await asked, len(other)) == (1, 0)

    asyncio.run(main())


def test_cache_ignores_its_own_notices(server):
    """A cache ignores its own notice of a deletion: a value that it stored after the deletion stays."""

    async def main():
        tier = tier_of(server)
        async with cache_of(tier) as one, cache_of(tier_of(server)) as other:
            await one.delete("k")
            await one.put_through("k", 2)
            await other.delete("last")
            await until(lambda: tier.notices.heard)
            assert (one.get("k"), tier.notices.heard) == (2, 1)

    asyncio.run(main())


def test_notices_are_encrypted(server, tmp_path):
    """A listener on the server cannot read the subject of an encrypted notice; a process with the keys can."""

    async def main():
        keys = StoredKeys(tmp_path / "keys.db", master=b"m" * 32)
        with server.client() as client, client.pubsub() as spy:
            spy.subscribe(b"{told}:n")
            async with cache_of(tier_of(server, keys=keys)) as one, cache_of(tier_of(server, keys=keys)) as other:
                other.put("k", 1, subject="anna")
                await one.erase_everywhere(subject="anna")
                await until(lambda: not len(other))
            seen = [spy.get_message(timeout=30.0) for _ in range(2)]
        keys.close()
        return seen[1]["data"]

    assert b"anna" not in asyncio.run(main())


def test_unreadable_notice_is_ignored(server, caplog):
    """A notice that cannot be read is logged, and later notices still arrive."""

    async def main():
        tier = tier_of(server)
        async with cache_of(tier) as one, cache_of(tier_of(server)) as other:
            one.put("k", 1)
            with server.client() as client:
                assert client.publish(b"{told}:n", b"nonsense") == 2
            await other.delete("k")
            await until(lambda: "k" not in one)

    asyncio.run(main())
    assert "a notice could not be read" in caplog.text


def test_lost_listener_connection_is_restored(server, caplog):
    """After a restart of the server notices arrive again; each tier counts and logs the loss once."""

    async def main():
        tier = tier_of(server)
        async with cache_of(tier) as one, cache_of(tier_of(server)) as other:
            one.put("k", 1)
            server.stop()
            await until(lambda: not tier.notices.listening.is_set())
            await asyncio.to_thread(server.start)
            for each in (one, other):
                await each.tiers.workers[0].tier.notices.listening.wait()
            assert await other.delete("k")
            await until(lambda: "k" not in one)
            assert tier.notices.missed == 1

    asyncio.run(main())
    assert caplog.text.count("notices of others may be missed") == 2  # once per tier


def test_connection_closed_by_server_is_lost_at_once(server, monkeypatch):
    """A listener whose connection the server closes listens again without waiting for the connect timeout.

    ``redis`` subscribes in the handshake of the next connection, so the handshake must not wait for itself."""
    monkeypatch.setattr("streaminfer.caching.tiers.redis.connection.CONNECT_TIMEOUT_S", math.inf)

    async def main():
        async with cache_of(tier_of(server)) as cache:
            notices = cache.tiers.workers[0].tier.notices
            with server.client() as client:
                client.client_kill_filter(_type="pubsub")
            await until(lambda: notices.missed)
            async with asyncio.timeout(30.0):
                await notices.listening.wait()

    asyncio.run(main())


def test_a_server_that_was_never_there_is_logged_once(server, caplog):
    """A tier whose server is missing at the start logs this once, and listens when the server is there."""

    async def main():
        server.stop()
        tier = tier_of(server)
        async with si.EdgeCache(tiers=[tier]):
            await until(lambda: "notices of others may be missed" in caplog.text)
            await asyncio.to_thread(server.start)
            await tier.notices.listening.wait()
            assert tier.notices.missed == 0

    asyncio.run(main())
    assert caplog.text.count("notices of others may be missed") == 1


def test_server_without_ping_reply_counts_as_lost(server, monkeypatch):
    """A server that does not reply to a ping counts as lost; the tier listens again when the server replies."""
    monkeypatch.setattr("streaminfer.caching.tiers.redis.redis_notices._QUIET_S", 0.2)

    async def main():
        async with cache_of(tier_of(server)) as cache:
            notices = cache.tiers.workers[0].tier.notices
            server.process.send_signal(signal.SIGSTOP)
            try:
                await until(lambda: notices.missed)
            finally:
                server.process.send_signal(signal.SIGCONT)
            async with asyncio.timeout(30.0):
                await notices.listening.wait()

    asyncio.run(main())


def test_without_a_server_the_cache_serves():
    """Without a server, `delete` returns false, and the cache serves from memory."""

    async def main():
        tier = RedisTier("redis://127.0.0.1:1", invalidate=True, **PATIENT)
        async with si.EdgeCache(tiers=[tier]) as cache:
            assert not await cache.delete("k")
            cache["k"] = 1
            assert await cache.fetch("k") == 1

    asyncio.run(main())


def test_tiers_without_invalidate_get_no_notices(server):
    """A tier without ``invalidate`` neither sends nor receives notices."""

    async def main():
        quiet = RedisTier(server.url, namespace="told", **PATIENT)
        async with cache_of(tier_of(server)) as one, si.EdgeCache(tiers=[quiet]) as other:
            one.put("k", 1)
            other.put("j", 1)
            await other.delete("k")
            await one.delete("j")
            await asyncio.wait_for(_round_trip(one, server), 30.0)
            assert ("k" in one, "j" in other) == (True, True)

    async def _round_trip(one, server):
        async with cache_of(tier_of(server)) as third:
            await third.delete("marker")
            await until(lambda: one.tiers.workers[0].tier.notices.heard)

    asyncio.run(main())


ERASE = """
import asyncio, sys
import streaminfer as si
from streaminfer.caching.tiers import RedisTier


async def main():
    tier = RedisTier(sys.argv[1], namespace="told", invalidate=True, timeout_s=30.0, erase_timeout_s=30.0)
    async with si.EdgeCache(tiers=[tier]) as cache:
        print((await cache.erase_everywhere(tag="face")).count)


asyncio.run(main())
"""


def test_deletion_reaches_another_process(server):
    """An erasure in another process removes the entry from the memory of this process."""

    async def main():
        async with cache_of(tier_of(server)) as cache:
            await cache.put_through("k", 1, tags=["face"])
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", ERASE, server.url, stdout=asyncio.subprocess.PIPE
            )
            output, _ = await process.communicate()
            await until(lambda: "k" not in cache)
            return output

    assert asyncio.run(main()) == b"1\n"


FORKED = """
import asyncio, os, sys
import streaminfer as si
from streaminfer.caching.tiers import RedisTier

tier = RedisTier(sys.argv[1], namespace="told", invalidate=True, timeout_s=30.0, erase_timeout_s=30.0)
cache = si.EdgeCache(tiers=[tier])  # as of a server that loads the application before it forks its workers
reading, writing = os.pipe()
child = os.fork()


async def main():
    async with cache:
        if not child:
            await asyncio.to_thread(os.read, reading, 1)
            await cache.delete("k")
            return
        await tier.notices.listening.wait()
        cache["k"] = 1
        os.write(writing, b"!")
        async with asyncio.timeout(30.0):
            while "k" in cache:
                await asyncio.sleep(0.001)
        print("dropped")


asyncio.run(main())
if child:
    os.waitpid(child, 0)
"""


def test_forked_workers_get_notices_of_each_other(server):
    """A cache made before a fork is a separate cache in each process, and gets the notices of the other."""
    ended = subprocess.run([sys.executable, "-c", FORKED, server.url], stdout=subprocess.PIPE, timeout=60.0, check=True)

    assert ended.stdout == b"dropped\n"

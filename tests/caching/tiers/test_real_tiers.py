"""A `Stack` over a cache with a real disk tier and a real Valkey server: restarts, encryption, policy, dead servers."""

import asyncio

import numpy as np
from redis_server import PATIENT

import streaminfer as si
from streaminfer.caching.tiers import DiskTier, RedisTier
from streaminfer.caching.tiers.encryption import StoredKeys
from streaminfer.compliance.retention import Retention
from streaminfer.compliance.retention_log import RetentionLog

SECRET = b"a face that must not be found on any medium"
MASTER = b"m" * 32


class Model:
    fingerprint = "model 1"

    def __init__(self):
        self.asked = 0

    async def call(self, request):
        self.asked += 1
        return si.Response({"y": np.frombuffer(SECRET, np.uint8), "n": request.inputs}, False, "model")


def on_disk(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def disk(folder, **more):
    return DiskTier(folder, max_bytes=2**22, **more)


def test_responses_survive_a_restart(tmp_path):
    model = Model()

    async def main():
        seen = []
        for _ in range(2):
            async with si.Stack(si.EdgeCache(ttl_s=600.0, tiers=[disk(tmp_path)]), model) as service:
                response = await service.call(si.Request(np.arange(4)))
                seen.append((response.source, response.outputs["y"].tobytes(), response.outputs["n"].tolist()))
        assert seen == [("model", SECRET, [0, 1, 2, 3]), ("disk", SECRET, [0, 1, 2, 3])]
        assert model.asked == 1

    asyncio.run(main())


def test_site_shares_responses_and_fills_the_disk(tmp_path, server):
    """The machines of a site share responses, and each fills its disk tier from the shared ones."""
    model = Model()
    keys = StoredKeys(":memory:", master=MASTER)

    async def main():
        sources = []
        for folder in ("one", "two", "two"):
            tiers = [disk(tmp_path / folder, keys=keys), RedisTier(server.url, namespace="site", keys=keys, **PATIENT)]
            async with si.Stack(si.EdgeCache(ttl_s=600.0, tiers=tiers), model) as service:
                sources.append((await service.call(si.Request(7.0, subject="anna"))).source)
        assert sources == ["model", "redis", "disk"]
        assert model.asked == 1
        tiers = [disk(tmp_path / "two", keys=keys), RedisTier(server.url, namespace="site", keys=keys, **PATIENT)]
        async with si.EdgeCache(tiers=tiers) as cache:
            outcome = await cache.erase_everywhere(subject="anna")
        assert outcome.counts == {"memory": 0, "disk": 1, "redis": 1}

    asyncio.run(main())


def test_encrypted_folder_reveals_nothing(tmp_path):
    """An encrypted folder reveals no content and no labels, before and after an erasure."""

    async def main():
        keys = StoredKeys(tmp_path / "keys.db", master=MASTER)
        log = RetentionLog()
        policy = Retention(600.0, encrypt=True, log=log)
        cache = si.EdgeCache(retention=policy, tiers=[disk(tmp_path / "c", keys=keys)])
        async with si.Stack(cache, Model()) as service:
            await service.call(si.Request(1.0, subject="anna of the street", tags=("a tag of hers",)))
            await service.call(si.Request(2.0))
            while cache.tiers.statistics()[0].queued:
                await asyncio.sleep(0)
            sealed = keys.current("anna of the street").id
            for word in (SECRET, b"anna of the street", b"a tag of hers"):
                assert word not in on_disk(tmp_path)
            report = await cache.retention_report()
            assert {it.where: it.entries for it in report.holdings} == {"memory": 2, "disk": 2}
            assert (await cache.erase_everywhere(subject="anna of the street")).count == 2
            assert keys.find(sealed) is None
            assert sealed not in on_disk(tmp_path)
            assert SECRET not in on_disk(tmp_path)
            assert [(it.action, it.where, it.count) for it in log.events_about("anna of the street")] == [
                ("erased", "memory", 1),
                ("erased", "disk", 1),
            ]
        keys.close()

    asyncio.run(main())


def test_keys_are_destroyed_with_a_stopped_tier(tmp_path):
    """An erasure destroys the keys even if the tier does not run."""

    async def main():
        keys = StoredKeys(tmp_path / "keys.db", master=MASTER)
        cache = si.EdgeCache(tiers=[disk(tmp_path / "c", keys=keys)])
        async with cache:
            await cache.put_through("k", SECRET, subject="anna")
        sealed = keys.current("anna").id
        assert not (await cache.erase_everywhere(subject="anna")).complete
        assert keys.find(sealed) is None
        async with cache:
            assert await cache.fetch("k") is None
        keys.close()

    asyncio.run(main())


def test_class_without_disk_permission_is_not_stored(tmp_path):
    async def main():
        policy = Retention(600.0, classes={"face": Retention(60.0, allow_disk=False)})
        cache = si.EdgeCache(retention=policy, tiers=[disk(tmp_path)])
        async with si.Stack(cache, Model()) as service:
            await service.call(si.Request(1.0, tags=("face",)))
        assert SECRET not in on_disk(tmp_path)
        seen = cache.tiers.statistics()[0]
        assert (seen.disallowed, seen.stored, seen.tier.stored) == (1, 0, 0)

    asyncio.run(main())


def test_dead_server_costs_only_misses(tmp_path):
    """A dead server costs only misses, and an erasure on it stays pending."""

    async def main():
        keys = StoredKeys(":memory:", master=MASTER)
        gone = RedisTier("redis://127.0.0.1:1", keys=keys, **PATIENT)
        cache = si.EdgeCache(ttl_s=600.0, tiers=[disk(tmp_path, keys=keys), gone])
        async with si.Stack(cache, Model()) as service:
            for n in range(8):
                assert (await service.call(si.Request(float(n), subject="anna"))).source == "model"
            outcome = await cache.erase_everywhere(subject="anna")
            assert (outcome.counts, set(outcome.failed)) == ({"memory": 8, "disk": 8}, {"redis"})
            assert cache.tiers.statistics()[1].pending == 1

    asyncio.run(main())

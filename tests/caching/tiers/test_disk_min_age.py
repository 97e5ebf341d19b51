"""Minimum ages on the disk: neither a newer value nor a lack of room loses an entry before its minimum age."""

import asyncio
import os

import pytest

import streaminfer as si
from streaminfer.caching.tiers import DiskTier, Entry
from streaminfer.caching.tiers.encryption import StoredKeys
from streaminfer.testing import FakeClock

S = 10**9
MIB = 2**20
NOW = 1_700_000_000 * S


@pytest.fixture
def wall():
    return FakeClock(NOW)


@pytest.fixture
def keys():
    keys = StoredKeys(":memory:", master=b"m" * 32)
    yield keys
    keys.close()


@pytest.fixture
def tier(tmp_path, wall):
    return DiskTier(tmp_path, max_bytes=MIB, wall_clock=wall)


def young(value, wall, **more):
    """Return an entry with a minimum age of 600 s."""
    return Entry(value=value, stored_ns=wall(), ttl_s=3600.0, min_age_s=600.0, **more)


async def count_of(tier):
    return sum(held.entries for held in await tier.inventory())


def test_recomputed_response_leaves_the_first_on_disk(tmp_path, wall, keys):
    """A response that is recomputed after its time to live is on the disk beside the new one until its minimum age."""
    clock = FakeClock()

    class Model:
        fingerprint = "m"
        calls = 0

        async def call(self, request):
            self.calls += 1
            return si.Response(f"invoice {self.calls}", source="model")

    def stack():
        tier = DiskTier(tmp_path, max_bytes=MIB, keys=keys, wall_clock=lambda: NOW + clock())
        return tier, si.Stack(
            si.EdgeCache(ttl_s=10.0, clock=clock, retention=si.Retention(3600.0, min_age_s=600.0), tiers=[tier]), model
        )

    async def main():
        counts = []
        for _ in range(2):  # the second time in another process
            tier, service = stack()
            async with service:
                await service(1.0, subject="anna")
            clock.advance(11.0)
        async with tier:
            counts.append(await count_of(tier))
            clock.advance(600.0 - 22.0)
            await tier.purge()
            counts.append(await count_of(tier))
            return counts, await tier.erase(subject="anna")

    model = Model()
    assert asyncio.run(main()) == ([2, 1], 1)
    assert model.calls == 2


@pytest.mark.parametrize("newer", ["stored", "rejected", "superseded"])
def test_newer_value_renames_a_young_entry(tier, wall, newer):
    """The older value of a key is not returned, stays until its minimum age, and an erasure finds it."""

    async def main():
        async with tier:
            await tier.put("k", young("old", wall, subject="anna", tags=["face"]))
            if newer == "superseded":
                assert await tier.supersede("k")
            else:
                assert await tier.put("k", young("new" if newer == "stored" else object(), wall)) is (newer == "stored")
            found = await tier.get("k")
            assert (found and found.value) == ("new" if newer == "stored" else None)
            wall.advance(599.0)
            assert await tier.purge() == 0
            assert await count_of(tier) == 1 + (newer == "stored")
            return await tier.erase(tag="face"), await count_of(tier)

    assert asyncio.run(main()) == (1, newer == "stored")


def test_replaced_entry_goes_at_its_minimum_age(tier, wall):
    """A renamed entry leaves the disk at its minimum age, before its own time ends; the latest one stays."""

    async def main():
        async with tier:
            for number in range(3):
                await tier.put("k", young(number, wall))
                wall.advance(100.0)
            counts = []
            for after_s in (299.0, 1.0, 100.0, 100.0):
                wall.advance(after_s)
                await tier.purge()
                counts.append(await count_of(tier))
            return counts, (await tier.get("k")).value

    assert asyncio.run(main()) == ([3, 2, 1, 1], 2)


@pytest.mark.parametrize("removal", ["get", "purge", "start"])
def test_clock_set_back_removes_no_young_entry(tier, wall, removal):
    """An entry below its minimum age outlives a clock that was set back, although its age is then unknown."""

    async def main():
        async with tier:
            await tier.put("k", Entry(value=1, stored_ns=wall(), ttl_s=7200.0, min_age_s=3600.0))
            wall.now_ns -= 7200 * S
            if removal == "get":
                assert await tier.get("k") is None
            elif removal == "purge":
                assert await tier.purge() == 0
            else:
                await tier.stop()
                await tier.start()
            wall.now_ns += 7200 * S
            served = await tier.get("k")
            wall.now_ns += 7200 * S
            return served and served.value, await tier.purge()

    assert asyncio.run(main()) == (1, 1)


def test_failed_put_leaves_the_young_entry(tier, wall):
    """A put that finds no room leaves the older value on the disk, and no get returns that."""

    async def main():
        async with tier:
            await tier.put("k", young("old", wall))
            pages = tier._store._pragma("page_count")
            await tier._run(lambda: tier._store._db.execute(f"PRAGMA max_page_count = {pages}").fetchall())
            assert not await tier.put("k", young(os.urandom(100_000), wall))
            return await tier.get("k"), await count_of(tier)

    assert asyncio.run(main()) == (None, 1)


def test_full_disk_evicts_no_young_entry(tier, wall):
    """A full disk evicts other entries, and rejects new ones if all entries are below their minimum age."""

    async def main():
        async with tier:
            assert await tier.put("other", Entry(value=os.urandom(60_000), stored_ns=wall()))
            number = 0
            while await tier.put(f"k{number}", young(os.urandom(60_000), wall)):
                number += 1
            assert await tier.get("other") is None
            assert [await tier.get(f"k{it}") is not None for it in range(number)] == [True] * number
            full = tier.statistics()
            assert (full.evicted, full.errors) == (1, 1)
            assert "full" in full.last_error
            wall.advance(600.0)
            assert await tier.put("later", young(os.urandom(60_000), wall))
            assert await tier.get("k0") is None
            return number

    assert asyncio.run(main()) > 5


def test_eviction_skips_young_entries_by_index(tier, wall):
    """The query for entries to evict reads an index, not the records, which can be a million."""

    async def plan():
        async with tier:
            query = "EXPLAIN QUERY PLAN SELECT id FROM entries WHERE aged_ns <= 0 ORDER BY stored_ns LIMIT 4"
            return await tier._run(lambda: tier._store._db.execute(query).fetchall())

    assert [row[3] for row in asyncio.run(plan())] == ["SCAN entries USING COVERING INDEX by_age"]


async def fill(tier, wall, ttl_s):
    """Store entries without a minimum age until the file has room for no more."""
    number = 0
    while not tier.statistics().evicted:
        assert await tier.put(f"x{number}", Entry(value=os.urandom(20_000), stored_ns=wall(), ttl_s=ttl_s))
        number += 1


def test_full_disk_makes_room_for_the_replaced_value(tmp_path, wall):
    """A value below its minimum age is written again when it is renamed, so others make room for both values."""

    async def main():
        async with DiskTier(tmp_path, max_bytes=4 * MIB, wall_clock=wall) as tier:
            old, new = os.urandom(900_000), os.urandom(900_000)
            assert await tier.put("k", young(old, wall))
            await fill(tier, wall, 3600.0)

            assert await tier.put("k", young(new, wall, tags=frozenset(["latest"])))

            assert (await tier.get("k")).value == new
            assert tier.statistics().evicted > 40  # entries of five pages, for two values of 220
            assert await tier.erase(tag="latest") == 1
            held = await count_of(tier)
            wall.advance(601.0)
            await tier.purge()
            assert await count_of(tier) == held - 1  # the old value was there, and is past its minimum age

    asyncio.run(main())


def test_full_disk_of_young_entries_is_purged(tmp_path, wall):
    """Replaced values that cannot be renamed, because all entries are below their minimum age, stop no purge."""

    async def main():
        async with DiskTier(tmp_path, max_bytes=MIB, wall_clock=wall) as tier:
            for number in range(20):
                brief = Entry(value=os.urandom(300), stored_ns=wall(), ttl_s=60.0, min_age_s=30.0)
                assert await tier.put(f"brief {number}", brief)
            count = 0
            while await stored(tier, f"k{count}", young(os.urandom(2_000), wall)):
                count += 1
            for number in range(count):
                await stored(tier, f"k{number}", young(os.urandom(2_000), wall))
            wall.advance(120.0)

            assert await tier.purge() == 20

            assert await count_of(tier) == count
            assert await tier.get(f"k{count - 1}") is None  # it is not the latest value

    asyncio.run(main())


def test_failed_puts_do_not_pile_up_work(tmp_path, wall):
    """On a full disk, a put that fails does as much work as the first one, however many have failed before."""

    async def main():
        async with DiskTier(tmp_path, max_bytes=MIB, wall_clock=wall) as tier:
            count = 0
            while await stored(tier, f"k{count}", young(os.urandom(20_000), wall)):
                count += 1
            statements, sizes = [], []
            tier._store._db.set_trace_callback(statements.append)
            for number in range(count):
                assert not await stored(tier, f"k{number}", young(os.urandom(20_000), wall))
                sizes.append(len(statements))
                statements.clear()
            return sizes

    sizes = asyncio.run(main())
    assert len(sizes) > 5
    assert set(sizes) == {sizes[0]}


async def stored(tier, key, entry):
    """Return whether an entry was stored; a full disk counts as not."""
    try:
        return await tier.put(key, entry)
    except si.BackendError:
        return False

"""The disk tier: a read gives the stored value or nothing, and erased data is gone from the medium."""

import asyncio
import contextlib
import fcntl
import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing

import numpy as np
import pytest
from forked import status_of_child, waiting_child
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from waiting import until

import streaminfer as si
from streaminfer.caching.tiers import DiskTier, Entry, Tier
from streaminfer.caching.tiers._records import Counters, Records
from streaminfer.caching.tiers.disk import store as disk_store
from streaminfer.caching.tiers.disk.store import DiskStore
from streaminfer.caching.tiers.encryption import StoredKeys
from streaminfer.caching.tiers.service_keys import ServiceKeys
from streaminfer.compliance.retention_log import RetentionLog

S = 10**9
MIB = 2**20
NOW = 1_700_000_000 * S
SECRET = b"a face that must not be found on any medium"


class Wall:
    def __init__(self):
        self.now_ns = NOW

    def __call__(self):
        return self.now_ns


@pytest.fixture
def wall():
    return Wall()


@pytest.fixture
def tier(tmp_path, wall):
    return DiskTier(tmp_path / "cache", max_bytes=4 * MIB, wall_clock=wall)


def entry(value, **more):
    return Entry(value=value, stored_ns=more.pop("stored_ns", NOW), **more)


def on_disk(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_disk_tier_satisfies_the_tier_protocol(tier):
    assert isinstance(tier, Tier)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_entry_round_trips_to_a_later_process(tmp_path, tier, wall):
    """A later process reads an entry back completely."""
    put = entry(
        {"y": np.arange(4, dtype=">f4"), "n": None}, ttl_s=60.0, tags=["a", "b"], subject="anna", data_class="faces"
    )

    async def write():
        async with tier:
            return await tier.put(b"key", put)

    async def read():
        async with DiskTier(tmp_path / "cache", max_bytes=4 * MIB, wall_clock=wall) as later:
            assert await later.get("key") is None  # a string is another key than bytes
            return await later.get(b"key"), later.statistics()

    assert status_of_child(lambda: asyncio.run(write())) == 0
    got, seen = asyncio.run(read())
    np.testing.assert_array_equal(got.value["y"], put.value["y"])
    assert got.value["y"].dtype == put.value["y"].dtype
    assert not got.value["y"].flags.writeable
    assert (got.stored_ns, got.ttl_s, got.tags, got.subject, got.data_class) == (
        NOW,
        60.0,
        frozenset("ab"),
        "anna",
        "faces",
    )
    assert (seen.hits, seen.misses, seen.entries, seen.rebuilds) == (1, 1, 1, 0)


def test_expired_means_now_at_or_after_expiry(tier, wall):
    async def main():
        async with tier:
            await tier.put("k", entry(1, ttl_s=2.0))
            wall.now_ns = NOW + 2 * S - 1
            assert (await tier.get("k")).value == 1
            wall.now_ns += 1
            assert await tier.get("k") is None
            return tier.statistics()

    assert asyncio.run(main()).entries == 0


def test_clock_set_back_keeps_nothing_longer(tier, wall):
    """A wall clock that was set back does not prolong the life of an entry."""

    async def main():
        async with tier:
            await tier.put("near", entry(1, ttl_s=1000.0))
            wall.now_ns = NOW - 60 * S
            assert (await tier.get("near")).value == 1
            wall.now_ns -= 1
            assert await tier.get("near") is None
            wall.now_ns = NOW
            await tier.put("far", entry(1, ttl_s=1000.0))
            wall.now_ns = NOW - 61 * S
            return await tier.purge()

    assert asyncio.run(main()) == 1


def test_huge_ttl_counts_as_the_longest(tier):
    """A lifetime beyond the largest one that can be stored counts as the longest."""

    async def main():
        async with tier:
            assert await tier.put("k", entry(1, ttl_s=1e300))
            assert (await tier.get("k")).value == 1

    asyncio.run(main())


def test_purge_removes_expired_entries_from_the_medium(tmp_path, tier):
    """A purge removes the entries that have expired by its instant, and leaves none of their data in the files."""

    async def main():
        async with tier:
            for ttl_s in (1.0, 2.0, None):
                await tier.put(f"k{ttl_s}", entry(SECRET + str(ttl_s).encode(), ttl_s=ttl_s))
            assert SECRET in on_disk(tmp_path)
            assert await tier.purge(NOW + 1 * S) == 1
            assert SECRET + b"1.0" not in on_disk(tmp_path)
            assert SECRET + b"2.0" in on_disk(tmp_path)
            assert await tier.purge(NOW + 9 * S) == 1
            return tier.statistics()

    seen = asyncio.run(main())
    assert (seen.purged, seen.entries) == (2, 1)


@pytest.mark.parametrize("whole", [np.int64, np.uint64])
def test_numpy_instants_are_whole_numbers(tier, whole):
    """NumPy integers mean the same instants as Python's; SQLite would compare their bytes."""

    async def main():
        async with tier:
            assert await tier.put("early", entry(1, stored_ns=whole(NOW), ttl_s=1.0))
            assert await tier.put("late", entry(2, stored_ns=whole(NOW), ttl_s=9.0))
            purged = await tier.purge(whole(NOW + 5 * S))
            got = await tier.get("late")
            return purged, got.value, type(got.stored_ns), (await tier.inventory())[0].oldest_ns

    assert asyncio.run(main()) == (1, 2, int, NOW)


def test_numpy_clock_purges_what_has_expired(tmp_path, wall):
    """A wall clock that returns NumPy integers is as good as any, and a NumPy duration is not rounded."""

    def clock():
        return np.int64(wall())

    keys = StoredKeys(":memory:", master=b"m" * 32, wall_clock=clock)
    log = RetentionLog(wall_clock=clock)

    async def main():
        async with DiskTier(tmp_path, max_bytes=MIB, wall_clock=clock, keys=keys) as tier:
            await tier.put("early", entry(1, ttl_s=np.float32(1.0), subject="anna"))
            await tier.put("late", entry(2, ttl_s=np.float32(9.1), min_age_s=np.int64(1), subject="anna"))
            wall.now_ns += 5 * S
            purged = await tier.purge()
            return purged, (await tier.get("late")).expires_ns

    log.record("expired", where="memory", count=1, reason="test", at_ns=np.int64(NOW))
    assert (type(log.now_ns()), type(log.events[0].at_ns)) == (int, int)
    assert asyncio.run(main()) == (1, NOW + round(float(np.float32(9.1)) * 1e9))
    keys.close()


def test_expired_entries_are_purged_periodically(tmp_path, wall):
    async def main():
        async with DiskTier(tmp_path, max_bytes=MIB, purge_every_s=0.001, wall_clock=wall) as tier:
            await tier.put("k", entry(1, ttl_s=1.0))
            wall.now_ns += S
            await until(lambda: tier.statistics().purged)

    asyncio.run(main())


@pytest.mark.parametrize("by", ["subject", "tag"])
def test_erased_means_gone_from_the_file_and_its_log(tmp_path, tier, by):
    async def main():
        async with tier:
            for number in range(600):  # more than a chunk
                mine = number % 2 == 0
                more = (
                    {"subject": "anna" if mine else "ben"}
                    if by == "subject"
                    else {"tags": ["x", "y"] if mine else ["y"]}
                )
                await tier.put(f"k{number}", entry((SECRET if mine else b"kept") + b"%d" % number, **more))
            erased = await tier.erase(**{by: "anna" if by == "subject" else "x"})
            content = on_disk(tmp_path)
            assert SECRET not in content
            assert (await tier.get("k1")).value == b"kept1"
            assert await tier.get("k0") is None
            assert await tier.erase(**{by: "nobody"}) == 0
            return erased, tier.statistics()

    erased, seen = asyncio.run(main())
    assert erased == seen.erased == 300
    assert seen.entries == 300


@pytest.mark.parametrize("later_s", [1.0, 5.0, 30.0])
def test_put_does_not_replace_a_later_value(tier, tmp_path, wall, later_s):
    """A value that another process computed later stays, but not one from the future, when the clock was set back."""

    async def main():
        async with tier, DiskTier(tmp_path / "cache", max_bytes=4 * MIB, wall_clock=wall) as other:
            wall.now_ns += 5 * S
            assert await other.put("k", entry("later", stored_ns=NOW + round(later_s * 1e9)))
            stored = await tier.put("k", entry("promoted"))
            return stored, (await other.get("k")).value

    assert asyncio.run(main()) == ((True, "promoted") if later_s > 5.0 else (False, "later"))


def test_replaced_entry_has_only_its_new_labels(tier):
    """A replaced entry belongs to its new subject and tags only."""

    async def main():
        async with tier:
            await tier.put("k", entry(1, subject="anna", tags=["x"]))
            await tier.put("k", entry(2, subject="ben", tags=["y"]))
            assert await tier.erase(subject="anna") == await tier.erase(tag="x") == 0
            assert (await tier.get("k")).value == 2
            return await tier.erase(tag="y")

    assert asyncio.run(main()) == 1


def test_encrypted_file_has_no_readable_value_or_name(tmp_path, wall):
    async def main():
        keys = StoredKeys(tmp_path / "keys.db", master=b"m" * 32)
        folder = tmp_path / "cache"
        array = np.frombuffer(SECRET * 100, np.uint8)
        async with DiskTier(folder, max_bytes=4 * MIB, keys=keys, wall_clock=wall) as tier:
            assert tier.encrypted
            for value, subject in ((SECRET, "anna-subject"), (array, "ben-subject"), ("a secret text", None)):
                await tier.put(f"the-key-of-{subject}", entry(value, subject=subject, tags=["the-tag"]))
            keys.rotate()
            await tier.put("late", entry(SECRET))
            content = on_disk(folder)
            for plain in (SECRET[:16], b"secret text", b"-subject", b"the-key", b"the-tag", b"late"):
                assert plain not in content
            assert (await tier.get("the-key-of-ben-subject")).value.tobytes() == SECRET * 100
            keys.destroy("ben-subject")
            assert await tier.get("the-key-of-ben-subject") is None
            assert await tier.erase(subject="anna-subject") == 1
            assert await tier.erase(tag="the-tag") == 1
            seen = tier.statistics()
        stranger = StoredKeys(tmp_path / "others.db", master=b"n" * 32)
        async with DiskTier(folder, max_bytes=4 * MIB, keys=stranger, wall_clock=wall) as tier:
            assert await tier.get("late") is None
        stranger.close()
        keys.close()
        return seen

    seen = asyncio.run(main())
    assert (seen.unreadable, seen.errors) == (1, 0)


def test_file_stays_within_bound_evicting_the_oldest(tmp_path, tier):
    """The file never outgrows `max_bytes`, and the oldest entries are evicted to make room."""

    async def main():
        async with tier:
            for number in range(300):
                assert await tier.put(f"k{number}", entry(np.full(10_000, number, np.int32)))
                assert (tmp_path / "cache" / "cache.db").stat().st_size <= 4 * MIB
            kept = [number for number in range(300) if (await tier.get(f"k{number}")) is not None]
            return kept, tier.statistics()

    kept, seen = asyncio.run(main())
    assert kept == list(range(300 - len(kept), 300))
    assert 60 < len(kept) < 105
    assert seen.entries == len(kept)
    assert seen.evicted == 300 - len(kept)
    assert seen.size_bytes <= 4 * MIB
    assert seen.errors == 0


def test_expired_entries_are_removed_before_evictions(tier, wall):
    async def main():
        async with tier:
            await tier.put("first", entry(np.zeros(50_000)))
            for number in range(7):
                await tier.put(f"short{number}", entry(np.zeros(50_000), ttl_s=1.0))
            wall.now_ns += S
            for number in range(6):
                await tier.put(f"k{number}", entry(np.zeros(50_000), stored_ns=wall.now_ns))
            assert await tier.get("first") is not None
            return tier.statistics()

    seen = asyncio.run(main())
    assert seen.purged == 7
    assert seen.evicted == 0


def test_failed_put_evicts_and_counts_nothing(tmp_path, wall):
    """A put that fails removes no entry to make room, and counts no eviction or purge.

    Otherwise a retention log would record evictions that did not happen.
    """

    async def main():
        async with DiskTier(tmp_path / "cache", max_bytes=MIB, wall_clock=wall) as tier:
            await tier.hold(subject="anna", on=True)
            number = 0
            while await tier.put(f"held {number}", entry(os.urandom(60_000), subject="anna")):
                number += 1
            await tier.delete("held 0")
            assert await tier.put("small", entry(b"x", ttl_s=60.0))
            assert await tier.put("other", entry(b"y"))
            before = tier.statistics()
            wall.now_ns += 61 * S
            assert not await tier.put("large", entry(os.urandom(200_000), stored_ns=wall.now_ns))
            after = tier.statistics()
            assert (after.evicted, after.purged, after.entries) == (before.evicted, before.purged, before.entries)
            assert await tier.get("other") is not None

    asyncio.run(main())


def test_unstorable_value_leaves_no_older_value(tier, wall):
    """A value that cannot be stored is rejected, and the older value of its key is removed."""

    async def main():
        async with tier:
            for value, more in ((object(), {}), (np.zeros(MIB, np.uint8), {}), (1, {"ttl_s": 0.0})):
                await tier.put("k", entry("old"))
                assert not await tier.put("k", entry(value, **more))
                assert await tier.get("k") is None
            await tier.put("k", entry("old"))
            assert await tier.supersede("k")
            assert await tier.get("k") is None
            return tier.statistics()

    assert asyncio.run(main()).rejected == 3


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
@pytest.mark.parametrize("key", ["k", "k" * 5000], ids=["short", "long"])
def test_each_entry_can_be_read_by_a_proof(tmp_path, wall, sealed, key):
    """A scan finds each stored entry, whatever its key and labels; an entry with too long labels is not stored."""
    keys = StoredKeys(":memory:", master=b"m" * 32) if sealed else None
    value = np.zeros(100_000, np.uint8)

    async def main():
        async with DiskTier(tmp_path / "cache", max_bytes=4 * MIB, keys=keys, wall_clock=wall) as tier:
            stored = set()
            for count in (0, 10, 20, 30, 100):
                tags = frozenset(f"{number:050}" for number in range(count))
                if await tier.put(key, entry(value, tags=tags, subject="anna" if sealed else None)):
                    assert {copy.entry.tags for copy in tier.scan()} >= {tags}
                    assert (await tier.get(key)).tags == tags
                    stored.add(count)
        return stored, tier.statistics()

    stored, statistics = asyncio.run(main())
    assert stored == {0, 10, 20, 30}
    assert statistics.rejected == 1
    assert statistics.last_error.startswith("subject and tags are longer")


def test_stopped_tier_misses_and_fails_erasures(tier):
    """A stopped tier has only misses; its erasures and purges raise `Closed`, because it does not carry them out."""

    async def main():
        assert await tier.get("k") is None
        assert not await tier.put("k", entry(1))
        for operation in (tier.erase(subject="anna"), tier.purge()):
            with pytest.raises(si.Closed):
                await operation
        async with tier:
            with pytest.raises(RuntimeError, match="runs already"):
                await tier.start()
        await tier.stop()
        return tier.statistics()

    seen = asyncio.run(main())
    assert (seen.skipped, seen.misses) == (2, 1)


def test_a_slow_disk_costs_misses_and_not_memory(tmp_path, wall):
    async def main():
        gate = threading.Event()
        async with DiskTier(tmp_path, max_bytes=MIB, max_pending=3, wall_clock=wall) as tier:
            await tier.put("k", entry(1))
            tier._thread.submit(gate.wait)
            waiting = [asyncio.ensure_future(tier.get("k")) for _ in range(5)]
            await asyncio.sleep(0)
            assert [task.done() for task in waiting] == [False] * 3 + [True] * 2
            waiting[0].cancel()  # a cancelled caller harms no other
            gate.set()
            got = await asyncio.gather(*waiting, return_exceptions=True)
            assert isinstance(got[0], asyncio.CancelledError)
            assert [one and one.value for one in got[1:]] == [1, 1, None, None]
            assert (await tier.get("k")).value == 1
            return tier.statistics().skipped

    assert asyncio.run(main()) == 2


def filled(tmp_path, wall, count=50):
    async def main():
        async with DiskTier(tmp_path, max_bytes=4 * MIB, wall_clock=wall) as tier:
            for number in range(count):
                await tier.put(f"k{number}", entry(np.full(2000, number, np.int32), subject="anna"))

    asyncio.run(main())
    return tmp_path / "cache.db"


def whatever_comes_back_is_right(tmp_path, wall):
    async def main():
        async with DiskTier(tmp_path, max_bytes=4 * MIB, wall_clock=wall) as tier:
            for number in range(50):
                got = await tier.get(f"k{number}")
                assert got is None or (got.value == number).all()
            assert await tier.put("new", entry(7)) or await tier.put("new", entry(7))
            assert (await tier.get("new")).value == 7
            return tier.statistics()

    return asyncio.run(main())


@pytest.mark.parametrize("size", [0, 1, 99, 100, 5000, 16384, 16385, 100_000, 300_000])
def test_a_truncated_file_is_never_a_wrong_value(tmp_path, wall, size):
    file = filled(tmp_path, wall)
    os.truncate(file, size)
    seen = whatever_comes_back_is_right(tmp_path, wall)
    assert seen.rebuilds + seen.errors + (size < 2) > 0  # SQLite takes one byte for an empty file


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bytes_are_never_a_wrong_value(tmp_path, wall, seed):
    file = filled(tmp_path, wall)
    content = bytearray(file.read_bytes())
    for at in np.random.default_rng(seed).integers(0, len(content), 40):
        content[at] ^= 1 << (at % 8)
    file.write_bytes(content)
    seen = whatever_comes_back_is_right(tmp_path, wall)
    assert seen.unreadable + seen.errors + seen.rebuilds > 0


def test_record_under_a_wrong_key_is_detected(tmp_path, wall):
    file = filled(tmp_path, wall, 2)
    db = sqlite3.connect(file)
    db.execute(
        "UPDATE entries SET record = (SELECT record FROM entries WHERE key = ?) WHERE key = ?", (b"ksk0", b"ksk1")
    )
    db.commit()
    db.close()
    assert whatever_comes_back_is_right(tmp_path, wall).unreadable == 1


def test_file_of_another_format_or_size_is_rebuilt(tmp_path, wall):
    """A file of another format, or larger than the bound, is rebuilt."""
    file = filled(tmp_path, wall)
    db = sqlite3.connect(file)
    db.execute("PRAGMA user_version = 99")
    db.close()
    assert whatever_comes_back_is_right(tmp_path, wall).rebuilds == 1

    async def main():
        async with DiskTier(tmp_path, max_bytes=MIB, wall_clock=wall) as tier:
            return tier.statistics().rebuilds

    filled(tmp_path, wall, 300)
    assert asyncio.run(main()) == 1


def test_corrupt_key_file_does_not_rebuild_the_tier(tmp_path, wall):
    """A corrupt key file is not mistaken for a corrupt tier file, which would be rebuilt."""
    file = tmp_path / "keys.db"
    keys = StoredKeys(file, master=b"m" * 32, wall_clock=wall)

    async def main():
        async with DiskTier(tmp_path / "cache", max_bytes=MIB, keys=keys, wall_clock=wall) as tier:
            await tier.put("k", entry(1))
            good = file.read_bytes()
            with file.open("r+b") as writing:
                writing.write(b"?" * len(good))
            assert await tier.get("k") is None
            with file.open("r+b") as writing:
                writing.write(good)
            return (await tier.get("k")).value, tier.statistics()

    value, seen = asyncio.run(main())
    assert (value, seen.errors, seen.rebuilds) == (1, 1, 0)
    assert seen.last_error.startswith("BackendError: the keys failed: DatabaseError")
    keys.close()


def test_purge_that_fails_for_its_keys_is_retried(tmp_path, wall):
    """A purge that fails because of its keys is retried.

    It reads copies of deleted rows with the keys, and a key service may raise exceptions of its own."""

    class Unavailable(Exception):
        pass

    class Vault:
        secret, fails = b"s" * 32, False

        def get(self, name, *, create, lasts_s=None):
            if self.fails and not create:
                raise Unavailable
            return self.secret

        def destroy(self, name):
            return True

    async def main():
        vault = Vault()
        tier = DiskTier(tmp_path, max_bytes=4 * MIB, keys=ServiceKeys(vault), purge_every_s=0.001, wall_clock=wall)
        async with tier:
            for ttl_s in (1.0, 2.0):
                await tier.put(f"{ttl_s}", entry(1, ttl_s=ttl_s))
            with closing(sqlite3.connect(tmp_path / "cache.db")) as db:
                db.execute("CREATE TABLE copies AS SELECT record FROM entries")  # such as SQLite leaves of moved rows
            vault.fails = True
            wall.now_ns += int(1.5 * S)
            await until(lambda: tier.statistics().errors)
            vault.fails = False
            wall.now_ns += S
            await until(lambda: tier.statistics().purged == 2)
            return tier.statistics().last_error

    assert asyncio.run(main()) == "BackendError: the keys failed: Unavailable: "


def test_erasure_looks_up_no_keys_of_other_entries(tmp_path, wall):
    """An erasure requests no keys of other entries from a key service.

    If it requested the keys of all entries, at a millisecond per key, it would exceed the time of every attempt.
    """

    class Vault:
        def __init__(self):
            self.secrets, self.found = {}, 0

        def get(self, name, *, create, lasts_s=None):
            self.found += not create
            return self.secrets.setdefault(name, name.encode()[:32].ljust(32)) if create else self.secrets.get(name)

        def destroy(self, name):
            return self.secrets.pop(name, None) is not None

    async def main():
        vault = Vault()
        async with DiskTier(tmp_path, max_bytes=4 * MIB, keys=ServiceKeys(vault), wall_clock=wall) as tier:
            for number in range(40):
                await tier.put(number.to_bytes(1), entry(SECRET, subject=f"s{number % 4}"))
            tier.keys.destroy("s1")
            return await tier.erase(subject="s1"), vault.found, (await tier.get(b"\0")).value

    erased, found, stays = asyncio.run(main())
    assert (erased, stays) == (10, SECRET)
    assert found <= 10


def test_tiers_of_one_folder_see_the_same_entries(tmp_path, wall):
    """Two tiers that share a folder see each other's entries and erasures."""

    async def main():
        first, second = (DiskTier(tmp_path, max_bytes=MIB, wall_clock=wall) for _ in range(2))
        async with first, second:
            await first.put("k", entry(1, subject="anna"))
            assert (await second.get("k")).value == 1
            assert await second.erase(subject="anna") == 1
            assert await first.get("k") is None
            os.truncate(tmp_path / "cache.db", 9000)  # a corrupt file is not replaced while another tier uses it
            for tier in (first, second, first):
                assert await tier.get("k") is None
            assert first.statistics().rebuilds == second.statistics().rebuilds == 0
        async with first:
            assert await first.put("k", entry(2))
            return first.statistics().rebuilds

    assert asyncio.run(main()) == 1


OPEN_AND_CLOSE = """
import asyncio, sys
from streaminfer.caching.tiers import DiskTier

async def main():
    async with DiskTier(sys.argv[1], max_bytes=2**20) as tier:
        print(tier.statistics().entries)

asyncio.run(main())
"""


def entries_seen_by_another_process(folder):
    command = [sys.executable, "-c", OPEN_AND_CLOSE, str(folder)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_tiers_sharing_a_folder_keep_their_locks(tmp_path):
    """Two tiers that share a folder in one process keep their locks.

    Without the locks, another process would take itself for the last user and remove the log that these two write.
    """

    async def main():
        first, second = (DiskTier(tmp_path, max_bytes=MIB) for _ in range(2))
        async with first, second:
            entries_seen_by_another_process(tmp_path)
            assert await first.put("k", entry(1))
            return entries_seen_by_another_process(tmp_path)

    assert asyncio.run(main()) == 1


@pytest.mark.parametrize("seed", [1, 8])
def test_erasure_finds_copies_that_another_tier_left(tmp_path, wall, seed):
    """An erasure finds the copies that SQLite leaves of moved rows of another tier.

    The other tier may have replaced these rows, or may have been killed after it erased them."""

    async def main():
        draw = random.Random(seed)
        first, second = (DiskTier(tmp_path, max_bytes=4 * MIB, wall_clock=wall) for _ in range(2))
        async with first, second:
            await second.erase(tag="nothing")  # has already searched for copies
            for _ in range(4):
                for _ in range(80):
                    size = draw.randrange(1, draw.choice([30, 300, 3000, 12000]))
                    what = entry(np.full(size, 7, np.int8), subject=f"s{draw.randrange(5)}")
                    await first.put(f"{draw.randrange(1000)}", what)
                whose = f"s{draw.randrange(5)}"
                first._store.erase(b"s", whose)  # erases the rows, and is killed
                await second.erase(subject=whose)
                assert not [copy for copy in second.scan() if copy.entry.subject == whose]

    asyncio.run(main())


HOLD_CHECKPOINT_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, 121)  # as SQLite does while it moves the log into the file
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


def test_erasure_waits_while_another_empties_the_log(tmp_path, monkeypatch):
    """An erasure waits while another process empties the log.

    SQLite does not wait at this point, and workers that start together purge together.
    """

    async def main():
        async with DiskTier(tmp_path, max_bytes=MIB) as tier:
            await tier.put("k", entry(1, subject="anna"))
            command = [sys.executable, "-c", HOLD_CHECKPOINT_LOCK, str(tmp_path / "cache.db-shm")]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
                assert other.stdout.readline() == "held\n"

                def let_go(_):
                    print(file=other.stdin, flush=True)
                    assert other.stdout.readline() == "released\n"

                monkeypatch.setattr(disk_store.time, "sleep", let_go)
                return await tier.erase(subject="anna"), tier.statistics().errors

    assert asyncio.run(main()) == (1, 0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_process_opens_no_file_of_its_parent(tmp_path, tier):
    """A forked process cannot open a file that its parent has open.

    SQLite in the child would take the locks of the parent for its own, and lose writes."""

    async def opened(folder):
        async with DiskTier(folder, max_bytes=4 * MIB):
            return True

    def only_another():
        with pytest.raises(si.BackendError, match="forked this one"):
            asyncio.run(opened(tier.folder))
        return asyncio.run(opened(tmp_path / "other"))

    async def main():
        async with tier:
            status = status_of_child(only_another)
            assert await tier.put("k", entry(1))
            return status, entries_seen_by_another_process(tier.folder)

    assert asyncio.run(main()) == (0, 1)
    assert asyncio.run(opened(tier.folder))


def test_undecodable_sqlite_message_ends_no_purges(tmp_path, wall):
    """A message of SQLite that cannot be decoded ends no purges.

    It contains the corrupt name of an index, which is not valid text."""

    async def main():
        async with DiskTier(tmp_path, max_bytes=MIB, purge_every_s=0.001, wall_clock=wall) as tier:
            with closing(sqlite3.connect(tmp_path / "cache.db", isolation_level=None)) as db:
                db.execute("PRAGMA writable_schema = ON")
                db.execute("UPDATE sqlite_master SET sql = '?', name = CAST(x'ff' AS TEXT) WHERE name = 'by_age'")
                db.execute("PRAGMA schema_version = 99")
            await until(lambda: tier.statistics().errors)
            assert "decode" in tier.statistics().last_error
            assert await tier.put("k", entry(1, ttl_s=1.0))
            wall.now_ns += S
            await until(lambda: tier.statistics().purged)
            return tier.statistics().rebuilds

    assert asyncio.run(main()) == 1


async def spoil(folder, wall):
    """Overwrite the file of running tiers, after another tier has made their pages in memory outdated."""
    async with DiskTier(folder, max_bytes=MIB, wall_clock=wall) as tier:
        await tier.put("k", entry(1))
        await tier.purge()
    (folder / "cache.db").write_bytes(b"?" * 99_999)


def test_corrupt_file_in_use_is_a_miss_until_replaced(tmp_path, wall):
    """After one tier has replaced a corrupt file, each tier that shares the file serves again."""

    async def main():
        first, second = (DiskTier(tmp_path, max_bytes=MIB, wall_clock=wall) for _ in range(2))
        async with first, second:
            await spoil(tmp_path, wall)
            assert await first.get("k") is None
            assert first.statistics().last_error.endswith("another process has it open")
            assert await second.get("k") is None
            assert await second.put("k", entry(2))
            assert (await first.get("k")).value == 2
            assert await first.erase(tag="none") == 0
            return first.statistics().rebuilds, second.statistics().rebuilds

    assert asyncio.run(main()) == (0, 1)


@pytest.mark.parametrize("damaged", ["by_subject", "by_class", "tags"])
def test_failed_erasure_replaces_a_corrupt_file(tmp_path, wall, damaged):
    """An erasure that finds damage where no read looks replaces the file, so that its repetition succeeds."""

    async def store():
        async with DiskTier(tmp_path, max_bytes=MIB, wall_clock=wall) as tier:
            await tier.put("k", entry(1, subject="anna", tags=["face"]))

    async def erase_twice():
        async with DiskTier(tmp_path, max_bytes=MIB, wall_clock=wall) as tier:
            assert (await tier.get("k")).value == 1
            with pytest.raises(si.BackendError, match="malformed"):
                await tier.erase(subject="anna")
            return await tier.erase(subject="anna"), await tier.get("k"), tier.statistics().rebuilds

    asyncio.run(store())
    with closing(sqlite3.connect(tmp_path / "cache.db")) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (damaged,)).fetchone()
    with (tmp_path / "cache.db").open("r+b") as file:
        file.seek((page - 1) * 16384)
        file.write(b"?" * 64)
    assert asyncio.run(erase_twice()) == (0, None, 1)


@pytest.mark.parametrize(
    ("text", "flipped"),
    [(b"(name BLOB", b"(nale BLOB"), (b" record BLOB", b" recort BLOB"), (b"ES entries (id", b"ES entrias (id")],
    ids=["holds", "entries", "tags"],
)
def test_file_with_a_flipped_name_is_replaced(tmp_path, wall, text, flipped):
    """One flipped bit in the name of a table or column, which SQLite accepts, costs the entries but not the tier."""
    file = filled(tmp_path, wall)
    content = file.read_bytes()
    assert content.count(text) == 1

    async def main():
        async with DiskTier(tmp_path, max_bytes=4 * MIB, wall_clock=wall) as tier:
            with contextlib.suppress(si.BackendError):
                await tier.purge()
            await tier.put("k", entry(1, tags=["a"]))
            put = await tier.put("k", entry(2, tags=["a"]))
            await tier.purge()
            return put, (await tier.get("k")).value, await tier.erase(tag="a"), tier.statistics().rebuilds

    file.write_bytes(content.replace(text, flipped))
    assert asyncio.run(main()) == (True, 2, 1, 1)


@pytest.mark.parametrize("code", [sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB])
def test_damaged_keys_cost_no_entries(tmp_path, wall, monkeypatch, code):
    """An error of the file of the keys fails a hold; it does not replace the tier's file, which has other holds."""
    keys = StoredKeys(":memory:", master=b"m" * 32)
    failure = sqlite3.DatabaseError("damaged")
    failure.sqlite_errorcode = code

    def fail(name, on):
        raise failure

    async def main():
        async with DiskTier(tmp_path, max_bytes=MIB, wall_clock=wall, keys=keys) as tier:
            await tier.put("k", entry(1, subject="anna"))
            monkeypatch.setattr(keys, "hold", fail)
            with pytest.raises(si.BackendError, match="the keys failed"):
                await tier.hold(subject="anna", on=True)
            return (await tier.get("k")).value, tier.statistics().rebuilds

    assert asyncio.run(main()) == (1, 0)


def test_concurrent_starts_replace_a_corrupt_file(tmp_path, wall, monkeypatch):
    """Workers that start together replace a corrupt file.

    No worker fails because another one, about to open the file, has locked it.
    """
    connect, flock = DiskStore._connect, fcntl.flock
    both, connecting, waiting = threading.Event(), [], []

    def connect_when_both_have_come(store):
        connecting.append(store)
        if store is connecting[0]:
            both.wait(60)
        try:
            connect(store)
        finally:
            if store is not connecting[0]:
                both.set()

    def lock(number, operation):
        if operation == fcntl.LOCK_EX:
            waiting.append(number)
            if len(waiting) == 2:
                both.set()
        flock(number, operation)

    async def main():
        await spoil(tmp_path, wall)
        monkeypatch.setattr(DiskStore, "_connect", connect_when_both_have_come)
        monkeypatch.setattr(disk_store.fcntl, "flock", lock)
        first, second = (DiskTier(tmp_path, max_bytes=MIB, wall_clock=wall) for _ in range(2))
        await asyncio.gather(first.start(), second.start())
        assert await first.put("k", entry(1))
        value = (await second.get("k")).value
        await asyncio.gather(first.stop(), second.stop())
        return value

    assert asyncio.run(main()) == 1


def test_failed_replacement_of_the_file_is_retried(tmp_path, wall, monkeypatch):
    """A tier that cannot replace its file on a full disk blocks no other tier, and serves again later."""
    connect, failures = DiskStore._connect, [sqlite3.OperationalError("database or disk is full")]

    def connect_or_fail(store):
        connect(store)
        if failures:
            raise failures.pop()

    async def main():
        async with DiskTier(tmp_path, max_bytes=MIB, wall_clock=wall) as tier:
            await spoil(tmp_path, wall)
            monkeypatch.setattr(DiskStore, "_connect", connect_or_fail)
            assert await tier.get("k") is None
            assert "full" in tier.statistics().last_error
            async with DiskTier(tmp_path, max_bytes=MIB, wall_clock=wall) as other:
                assert await other.put("k", entry(2))
                return (await tier.get("k")).value

    assert asyncio.run(main()) == 2


def test_full_disk_costs_misses_and_tier_recovers(tier, caplog):
    """A full disk costs misses, and the tier recovers when there is room again."""

    async def main():
        async with tier:
            await tier.put("k", entry(1, subject="anna"))
            pages = tier._store._pragma("page_count")
            await tier._run(lambda: tier._store._db.execute(f"PRAGMA max_page_count = {pages}").fetchall())
            assert not await tier.put("large", entry(np.zeros(50_000)))
            assert (await tier.get("k")).value == 1
            assert await tier.get("large") is None
            await tier._run(lambda: tier._store._db.execute("PRAGMA max_page_count = 256").fetchall())
            assert await tier.put("large", entry(np.zeros(50_000)))
            return tier.statistics()

    seen = asyncio.run(main())
    assert seen.errors == 1
    assert "full" in seen.last_error
    (record,) = caplog.records
    assert "Traceback" in record.getMessage()
    assert "OperationalError" in record.getMessage()
    assert (seen.entries, seen.rebuilds) == (2, 0)


def test_full_disk_empties_the_log(tier):
    """A put that finds the disk full empties the log, which may have taken the room that later operations need."""

    async def main():
        async with tier:
            await tier.put("k", entry(1))
            await limit_file(tier, f"PRAGMA max_page_count = {tier._store._pragma('page_count')}")
            assert not await tier.put("large", entry(np.zeros(50_000)))
            return (tier.folder / "cache.db-wal").stat().st_size

    assert asyncio.run(main()) == 0


def test_erasure_of_large_entries_keeps_the_log_small(tmp_path):
    """An erasure overwrites about 1 MiB in one step, so that the log stays small and reads run in between."""

    async def main():
        async with DiskTier(tmp_path, max_bytes=32 * MIB) as tier:
            for number in range(40):
                await tier.put(f"k{number}", entry(bytes(300_000), stored_ns=time.time_ns(), subject="anna"))
            await tier.purge()
            erased = await tier._run(tier._store.erase, b"s", "anna")
            return erased, (tmp_path / "cache.db-wal").stat().st_size

    erased, log_size = asyncio.run(main())
    assert erased == 4
    assert log_size < 2 * MIB


async def limit_file(tier, statement):
    await tier._run(lambda: tier._store._db.execute(statement).fetchall())


def test_a_put_that_fails_leaves_no_older_value(tier, tmp_path, wall):
    """A put that finds no room for its value deletes the older value, which other tiers of the folder lose as well."""

    async def main():
        async with tier, DiskTier(tmp_path / "cache", max_bytes=4 * MIB, wall_clock=wall) as other:
            await tier.put("k", entry("old"))
            await limit_file(tier, f"PRAGMA max_page_count = {tier._store._pragma('page_count')}")
            assert not await tier.put("k", entry(np.zeros(50_000)))
            return await tier.get("k"), await other.get("k")

    assert asyncio.run(main()) == (None, None)


@pytest.mark.parametrize("newer", ["stored", "not stored"])
@pytest.mark.parametrize("later", ["put", "purge", "stop"])
def test_undeletable_older_value_is_not_served(tier, tmp_path, wall, later, newer):
    """An older value that a tier cannot delete is not served; the tier deletes or replaces it when the disk allows."""

    async def main():
        async with tier, DiskTier(tmp_path / "cache", max_bytes=4 * MIB, wall_clock=wall) as other:
            await tier.put("k", entry("old"))
            await limit_file(tier, "PRAGMA query_only = ON")
            assert not await (tier.put("k", entry("new")) if newer == "stored" else tier.supersede("k"))
            assert (await tier.get("k"), (await other.get("k")).value) == (None, "old")
            await limit_file(tier, "PRAGMA query_only = OFF")
            if later == "put":
                assert await tier.put("k", entry("newer"))
                assert (await tier.get("k")).value == "newer"
            elif later == "purge":
                await tier.purge()
            else:
                await tier.stop()
            found = await other.get("k")
            return found and found.value

    assert asyncio.run(main()) == ("newer" if later == "put" else None)


@pytest.mark.parametrize("later", ["put", "purge", "stop"])
def test_unreadable_older_value_is_not_served(tier, tmp_path, wall, monkeypatch, later):
    """If a put fails while the disk cannot be read either, the older value is neither served nor left on the disk."""

    def fail(store):
        raise sqlite3.OperationalError("disk I/O error")

    async def main():
        async with tier, DiskTier(tmp_path / "cache", max_bytes=4 * MIB, wall_clock=wall) as other:
            await tier.put("k", entry("old"))
            with monkeypatch.context() as patch:
                patch.setattr(DiskStore, "_opened", fail)
                assert not await tier.put("k", entry("new"))
            assert await tier.get("k") is None
            if later == "put":
                assert await tier.put("k", entry("newer"))
                assert (await tier.get("k")).value == "newer"
            elif later == "purge":
                await tier.purge()
            else:
                await tier.stop()
            found = await other.get("k")
            return found and found.value

    assert asyncio.run(main()) == ("newer" if later == "put" else None)


def test_a_file_that_is_replaced_has_no_older_values(tier):
    """After the file is replaced the newer value is served, although the numbers of the entries begin again."""

    async def main():
        async with tier:
            await tier.put("k", entry("old"))
            await limit_file(tier, "PRAGMA query_only = ON")
            assert not await tier.put("k", entry("new"))
            await tier._run(tier._store._rebuild)
            await tier.put("k", entry("newer"))
            return (await tier.get("k")).value

    assert asyncio.run(main()) == "newer"


def test_put_waits_for_another_process_once(tier):
    """A put waits once for another process, because its tier reads nothing meanwhile; the older value is not served."""

    async def main():
        async with tier:
            begun = []
            await tier.put("k", entry("old"))
            await limit_file(tier, "PRAGMA busy_timeout = 0")
            tier._store._db.set_trace_callback(lambda said: begun.append(said) if said.startswith("BEGIN") else None)
            other = sqlite3.connect(tier._store._file, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            assert not await tier.put("k", entry("new"))
            other.close()
            return len(begun), await tier.get("k")

    assert asyncio.run(main()) == (1, None)


def test_failed_put_leaves_a_later_value(tier, tmp_path, wall):
    """A put that fails neither hides what another process stores later, nor deletes it at the next purge."""

    async def main():
        async with tier, DiskTier(tmp_path / "cache", max_bytes=4 * MIB, wall_clock=wall) as other:
            await tier.put("k", entry("old"))
            await limit_file(tier, "PRAGMA busy_timeout = 0")
            busy = sqlite3.connect(tier._store._file, isolation_level=None)
            busy.execute("BEGIN IMMEDIATE")
            assert not await tier.put("k", entry("new"))
            busy.close()
            assert await tier.get("k") is None
            wall.now_ns += 5 * S
            assert await other.put("k", entry("latest", stored_ns=NOW + S))
            before = await tier.get("k")
            await tier.purge()
            return before.value, (await other.get("k")).value

    assert asyncio.run(main()) == ("latest", "latest")


def test_read_only_disk_serves_and_fails_erasures(tier):
    """A read-only disk serves its entries, and an erasure on it raises `BackendError`."""

    async def main():
        async with tier:
            await tier.put("k", entry(1, subject="anna"))
            await tier._run(lambda: tier._store._db.execute("PRAGMA query_only = ON"))
            assert not await tier.put("k2", entry(2))
            assert (await tier.get("k")).value == 1
            with pytest.raises(si.BackendError, match="readonly"):
                await tier.erase(subject="anna")
            await tier._run(lambda: tier._store._db.execute("PRAGMA query_only = OFF"))
            return await tier.erase(subject="anna")

    assert asyncio.run(main()) == 1


def test_folder_that_cannot_be_made_fails_the_start(tmp_path):
    """The start of a tier raises `BackendError` if its folder cannot be made."""
    (tmp_path / "file").write_text("in the way")
    tier = DiskTier(tmp_path / "file" / "cache", max_bytes=MIB)
    with pytest.raises(si.BackendError, match="failed"):
        asyncio.run(tier.start())


def test_only_the_owner_can_access_folder_and_files(tmp_path, wall):
    filled(tmp_path / "cache", wall, 1)
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "cache" / "cache.db").stat().st_mode) == 0o600


def test_a_failing_key_provider_costs_misses(tmp_path, wall):
    async def main():
        keys = StoredKeys(":memory:", master=b"m" * 32)
        async with DiskTier(tmp_path, max_bytes=MIB, keys=keys, wall_clock=wall) as tier:
            await tier.put("k", entry(1))
            keys.close()
            assert await tier.get("k") is None
            assert not await tier.put("k", entry(2))
            return tier.statistics()

    assert asyncio.run(main()).errors == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_bytes": 1000}, ValueError, "max_bytes"),
        ({"max_bytes": "1"}, TypeError, "max_bytes"),
        ({"max_bytes": MIB, "purge_every_s": 0}, ValueError, "purge_every_s"),
        ({"max_bytes": MIB, "max_pending": 0}, ValueError, "max_pending"),
        ({"max_bytes": MIB, "keys": 1}, TypeError, "keys"),
        ({"max_bytes": MIB, "wall_clock": 1}, TypeError, "wall_clock"),
        ({"max_bytes": MIB, "folder": 1}, TypeError, "folder"),
    ],
)
def test_arguments_are_checked(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        DiskTier(arguments.pop("folder", tmp_path), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stored_ns": 1.0}, TypeError, "stored_ns"),
        ({"stored_ns": -1}, ValueError, "stored_ns"),
        ({"stored_ns": 0, "ttl_s": -1.0}, ValueError, "ttl_s"),
        ({"stored_ns": 0, "tags": "abc"}, TypeError, "tags"),
        ({"stored_ns": 0, "tags": [1]}, TypeError, "tags"),
        ({"stored_ns": 0, "subject": b"x"}, TypeError, "subject"),
        ({"stored_ns": 0, "data_class": None}, TypeError, "data_class"),
    ],
)
def test_entries_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        Entry(value=1, **arguments)


def test_calls_are_checked(tier):
    async def main():
        for call in (
            lambda: tier.get(1),
            lambda: tier.put(None, entry(1)),
            lambda: tier.put("k", 1),
            tier.erase,
            lambda: tier.erase(subject="a", tag="b"),
            lambda: tier.erase(subject=1),
            lambda: tier.purge(True),
            lambda: tier.purge(1.5),
        ):
            with pytest.raises(TypeError):
                await call()

    asyncio.run(main())


class DiskMachine(RuleBasedStateMachine):
    """Comparison of the store with a dictionary and a clock; restarts at any moment change nothing."""

    def __init__(self):
        super().__init__()
        import tempfile
        from pathlib import Path

        self.folder = tempfile.TemporaryDirectory()
        self.wall = Wall()
        self.model = {}
        self.counters = Counters("disk")
        self.path = Path(self.folder.name)
        self._open()

    def _open(self):
        self.store = DiskStore(self.path, 8 * MIB, Records(None, self.counters), self.counters, self.wall)
        self.store.open()

    def teardown(self):
        self.store.close()
        self.folder.cleanup()

    keys = st.sampled_from("abcd")
    names = st.sampled_from(["x", "y"])

    @rule(
        key=keys,
        value=st.integers(),
        ttl_s=st.one_of(st.none(), st.integers(1, 5)),
        subject=st.none() | names,
        tags=st.sets(names),
    )
    def put(self, key, value, ttl_s, subject, tags):
        put = entry(value, stored_ns=self.wall.now_ns, ttl_s=ttl_s, subject=subject, tags=tags)
        assert self.store.put(key, put)
        self.model[key] = put

    @rule(key=keys)
    def get(self, key):
        got = self.store.get(key)
        held = self.model.get(key)
        if held is not None and held.is_expired(self.wall.now_ns):
            held = None
            del self.model[key]
        assert got == held

    @rule(kind=st.sampled_from([b"s", b"t"]), name=names)
    def erase(self, kind, name):
        mine = [
            key for key, held in self.model.items() if (held.subject == name if kind == b"s" else name in held.tags)
        ]
        assert self.store.erase(kind, name) == len(mine)
        for key in mine:
            del self.model[key]

    @rule()
    def purge(self):
        expired = [key for key, held in self.model.items() if held.is_expired(self.wall.now_ns)]
        assert self.store.purge(None) == len(expired)
        for key in expired:
            del self.model[key]

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds):
        self.wall.now_ns += seconds * S

    @rule()
    def restart(self):
        self.store.close()
        self._open()

    @invariant()
    def as_many_entries_as_the_model(self):
        assert self.counters.entries == len(self.model)
        assert self.counters.errors == 0


DiskMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestDiskMachine = DiskMachine.TestCase

STORM = """
import asyncio, itertools, os, random, signal, sys, time
import numpy as np
from streaminfer.caching.tiers import DiskTier, Entry

MOST = 60  # writes that a child tells of
folder, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
tier = lambda: DiskTier(folder, max_bytes=2 * 2**20)
sizes = (1, 300, 5000, 40_000)

async def write(seed, told):
    draw = random.Random(seed)
    async with tier() as it:
        for number in itertools.count():
            key, stamp = draw.randrange(40), draw.randrange(2**31)
            value = np.full(draw.choice(sizes), stamp * 64 + key, np.int64)
            await it.put(f"{key}", Entry(value=value, stored_ns=time.time_ns(), subject=f"{key % 4}", tags=[f"{key % 3}"]))
            if draw.random() < 0.02:
                await it.erase(subject=f"{key % 4}")
            if number < MOST:
                os.write(told, b".")

async def check():
    right = 0
    async with tier() as it:
        for key in range(40):
            got = await it.get(f"{key}")
            if got is not None:
                value = got.value
                assert len(value) in sizes and (value == value[0]).all() and value[0] % 64 == key, (key, value)
                assert got.subject == f"{key % 4}" and got.tags == {f"{key % 3}"}
                right += 1
        seen = it.statistics()
        assert (seen.unreadable, seen.errors, seen.rebuilds) == (0, 0, 0), seen
    return right

draw = random.Random(seed)
rights = []
for number in range(kills):
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(write(number, told))
        finally:
            os._exit(1)
    os.close(told)
    for _ in range(draw.randrange(MOST)):  # however busy the machine is, it is killed among its writes
        assert os.read(heard, 1)
    time.sleep(draw.uniform(0.0, 0.005))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(heard)
    assert os.WIFSIGNALED(status), status
    rights.append(asyncio.run(check()))
print(len(rights), max(rights))
"""


def test_kill_during_writes_never_tears_a_value(tmp_path):
    """A tier that is killed at any moment of many writes never returns a wrong or torn value."""
    done = subprocess.run(
        [sys.executable, "-c", STORM, str(tmp_path), "40", "1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    kills, most = map(int, done.stdout.split())
    assert kills == 40
    assert most > 5  # kills left values that could be torn


def test_deleted_data_is_in_no_temporary_file(tmp_path):
    """Temporary data of SQLite is in memory, so that no temporary file contains deleted data."""

    async def main():
        async with DiskTier(tmp_path, max_bytes=2**20) as tier:
            return tier._store._pragma("temp_store")

    assert asyncio.run(main()) == 2  # in memory


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_stopped_tier_holds_no_file_while_child_lives(tier):
    """A stop releases the lock of the file although a forked child has inherited it.

    Otherwise a process that must replace a corrupt file would wait for the end of the child.
    """

    async def main():
        await tier.start()
        with waiting_child():
            await tier.stop()
            with (tier.folder / "lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if it is held

    asyncio.run(main())

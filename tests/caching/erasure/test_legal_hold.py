"""Legal holds and minimum ages: which data they protect from erasure, purge and loss, and what they do not promise."""

import asyncio
import os
import pickle
import threading
import time
import weakref
from contextlib import closing
from fractions import Fraction

import pytest
from forked import status_of_child

import streaminfer as si
from streaminfer.caching.erasure.memory_retention import MemoryRetention
from streaminfer.caching.erasure.retention_counts import RetentionCounts
from streaminfer.caching.tiers import DiskTier, Entry
from streaminfer.caching.tiers.encryption import StoredKeys
from streaminfer.caching.tiers.protocol import Notice, Tier
from streaminfer.caching.tiers.tier_set import TierSet
from streaminfer.compliance.retention import Residual, Retention
from streaminfer.compliance.retention_log import RetentionLog
from streaminfer.errors import Closed
from streaminfer.testing import FakeClock, run

pytestmark = pytest.mark.uncompiled

S = 10**9
NOW = 1_700_000_000 * S
SECRET = b"a secret that lives elsewhere 01"


class Wall:
    now_ns = NOW

    def __call__(self):
        return self.now_ns


@pytest.fixture
def clock():
    return FakeClock(1_000)


@pytest.fixture
def log():
    return RetentionLog()


@pytest.fixture
def cache(clock, log):
    return si.EdgeCache(maxsize=3, retention=Retention(10.0, classes={"face": Retention(5.0)}, log=log), clock=clock)


@pytest.fixture
def keys():
    keys = StoredKeys(":memory:", master=SECRET)
    yield keys
    keys.close()


def actions(log):
    return [event.action for event in log.events]


def test_a_hold_in_a_log_in_memory_needs_no_thread(log):
    """A hold in a log in memory needs no thread, so it works in virtual time."""

    async def main(loop):
        cache = si.EdgeCache(maxsize=3, retention=Retention(10.0, log=log), clock=loop.clock)
        cache.put("k", "result", subject="anna")
        await cache.hold(subject="anna", reason="case 17")
        with pytest.raises(si.ErasureHeld):
            cache.erase(subject="anna")
        await cache.release(subject="anna", reason="case 17 was closed")
        return cache.erase(subject="anna")

    assert run(main) == 1
    assert actions(log) == ["held", "erase_held", "released", "erased"]


# -- erasing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hold", "asked", "refused"),
    [
        ({"subject": "anna"}, {"subject": "anna"}, True),
        ({"subject": "anna"}, {"subject": "ben"}, False),
        ({"subject": "anna"}, {"tag": "x"}, True),  # an entry with the tag may be hers
        ({"data_class": "face"}, {"tag": "face"}, True),
        ({"data_class": "face"}, {"subject": "ben"}, True),  # an entry of his may be of the class
    ],
)
def test_erasure_under_hold_raises_and_is_recorded(cache, log, hold, asked, refused):
    """An erasure that a hold forbids raises `ErasureHeld`, erases nothing and is recorded."""
    cache.put(1, 1, subject="anna", tags=["x"])
    cache.put(2, 2, subject="ben", tags=["face"])
    asyncio.run(cache.hold(**hold, reason="case 17"))

    if not refused:
        assert cache.erase(**asked) == 1
        return
    with pytest.raises(si.ErasureHeld, match="case 17") as raised:
        cache.erase(**asked)

    assert pickle.loads(pickle.dumps(raised.value)).holds == raised.value.holds
    assert len(cache) == 2
    assert actions(log) == ["held", "erase_held"]
    assert [event.action for event in log.pending] == ["erase_held"]


def test_held_erasure_is_owed_after_the_release(cache, log):
    """After a hold is released, the erasure that it forbade is owed until it is carried out."""

    async def main():
        cache.put(1, 1, subject="anna")
        await cache.hold(subject="anna", reason="case 17")
        with pytest.raises(si.ErasureHeld):
            cache.erase(subject="anna")
        assert (await cache.retention_report()).violations == []

        await cache.release(subject="anna", reason="case 17 ended")
        assert "was held" in (await cache.retention_report()).violations[0]
        assert cache.erase(subject="anna") == 1
        assert (await cache.retention_report()).violations == []

    asyncio.run(main())
    assert actions(log) == ["held", "erase_held", "released", "erased"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_hold_outlives_the_process_with_its_log(tmp_path):
    """A hold of a process that ended forbids an erasure, and its log does not contain the name of the subject."""

    def opened():
        return si.EdgeCache(retention=Retention(10.0, log=RetentionLog(tmp_path / "log", secret=SECRET)))

    def hold():
        asyncio.run(opened().hold(subject="anna", reason="the case of anna"))
        return True

    assert status_of_child(hold) == 0
    assert b"anna" not in (tmp_path / "log").read_bytes()
    later = opened()
    with pytest.raises(si.ErasureHeld):
        later.erase(subject="anna")
    asyncio.run(later.release(subject="anna", reason="over"))
    assert later.erase(subject="anna") == 0
    later._memory.retention.counts.drain()  # a thread writes the file


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({}, TypeError, "got neither"),
        ({"subject": "a", "data_class": "face"}, TypeError, "got both"),
        ({"data_class": "voice"}, ValueError, "data_class: expected one of the policy's"),
        ({"subject": 3}, TypeError, "subject"),
    ],
)
def test_invalid_holds_are_rejected(cache, log, arguments, error, match):
    with pytest.raises(error, match=match):
        asyncio.run(cache.hold(**arguments, reason="case 17"))
    assert log.holds == ()


def test_a_hold_needs_a_log():
    for settings, what in (
        ({}, "a cache with a policy"),
        ({"retention": Retention(1.0)}, "a policy with a RetentionLog"),
    ):
        with pytest.raises(TypeError, match=f"retention: expected {what}"):
            asyncio.run(si.EdgeCache(**settings).hold(subject="anna", reason="case 17"))


# -- memory ------------------------------------------------------------------------------------------------------------


def test_evicted_and_expired_are_preserved_under_hold(cache, clock, log):
    """An entry that expires or is evicted under a hold is preserved but not served."""
    asyncio.run(cache.hold(subject="anna", reason="case 17"))
    cache.put("evicted", 1, subject="anna")
    for other in range(3):
        cache.put(other, other, subject="ben")
    cache.put("expired", 2, subject="anna")
    clock.advance(11.0)
    cache.expire()

    assert {event.key: event.value for event in cache.preserved} == {"evicted": 1, "expired": 2}
    assert "evicted" not in cache
    report = asyncio.run(cache.retention_report())
    assert [(it.where, it.state, it.entries) for it in report.holdings] == [("preserved", "held", 1)] * 2
    assert report.violations == []

    asyncio.run(cache.release(subject="anna", reason="over"))
    assert cache.preserved == ()
    asyncio.run(cache.retention_report())  # waits for the log
    assert [it.count for it in log.events if (it.action, it.where) == ("purged", "preserved")] == [2]


def test_a_hold_by_class_preserves_the_class(cache, clock):
    asyncio.run(cache.hold(data_class="face", reason="case 17"))
    cache.put(1, 1, tags=["face"])
    cache.put(2, 2)
    clock.advance(11.0)
    cache.expire()
    assert [event.key for event in cache.preserved] == [1]


# -- minimum age -------------------------------------------------------------------------------------------------------


@pytest.fixture
def aged(clock, log):
    policy = Retention(60.0, classes={"invoice": Retention(60.0, min_age_s=30.0)}, log=log)
    return si.EdgeCache(maxsize=2, ttl_s=5.0, retention=policy, clock=clock)


def test_entries_below_minimum_age_are_not_erased(aged, clock, log):
    aged.put(1, 1, subject="anna", tags=["invoice"])
    aged.put(2, 2, subject="ben")
    assert aged.erase(subject="ben") == 1
    with pytest.raises(si.ErasureHeld, match="below the minimum age of their class, for 30 s more"):
        aged.erase(subject="anna")
    clock.advance(6.0)
    aged.expire()
    assert [event.key for event in aged.preserved] == [1]
    with pytest.raises(si.ErasureHeld, match="24 s more"):
        aged.erase(tag="invoice")

    clock.advance(24.0)
    assert aged.erase(subject="anna") == 1
    assert aged.preserved == ()
    assert [event.action for event in log.pending] == ["erase_held"]  # the erasure by tag, which was not repeated


@pytest.mark.parametrize("after_s", [1.0, 4.0, 5.0, 9.0])
@pytest.mark.parametrize("stale_s", [0.0, 3.0])
def test_replaced_entry_is_kept_to_its_minimum_age(clock, stale_s, after_s):
    """A new value preserves the one that it replaces, fresh or past its time, until that reaches its minimum age."""
    cache = si.EdgeCache(ttl_s=5.0, stale_s=stale_s, retention=Retention(60.0, min_age_s=30.0), clock=clock)
    events = []
    cache.listen(events.append)
    cache["k"] = "first"

    clock.advance(after_s)
    cache["k"] = "second"

    assert [(event.key, event.value) for event in cache.preserved] == [("k", "first")]
    assert cache["k"] == "second"
    assert events == []
    clock.advance(30.0 - after_s)
    cache.expire()
    assert [event.value for event in cache.preserved] == ["second"]


@pytest.mark.parametrize("leaves", ["replaced", "evicted", "expired"])
def test_minimum_age_holds_during_a_slow_listener(clock, leaves):
    """An erasure finds an entry that left memory while another thread is inside a listener."""
    policy = Retention(60.0, classes={"invoice": Retention(60.0, min_age_s=30.0)})
    cache = si.EdgeCache(maxsize=2, ttl_s=5.0, retention=policy, clock=clock)
    called, proceed = threading.Event(), threading.Event()
    keys = []
    cache.listen(lambda event: (keys.append(event.key), called.set(), proceed.wait(30)))
    slow = threading.Thread(target=cache.erase, kwargs={"tag": "other"})
    cache.put("other", 0, tags=["other"])
    slow.start()
    called.wait(30)

    cache.put("k", 1, subject="anna", tags=["invoice"])
    if leaves == "replaced":
        cache.put("k", 2)
    elif leaves == "evicted":
        cache.update(dict.fromkeys(range(2)))
    else:
        clock.advance(6.0)
        cache.expire()

    with pytest.raises(si.ErasureHeld, match="below the minimum age"):
        cache.erase(subject="anna")
    assert [event.value for event in cache.preserved] == [1]
    clock.advance(30.0)
    assert cache.erase(subject="anna") == 1
    proceed.set()
    slow.join()
    assert cache.preserved == ()
    assert keys[:2] == ["other", "k"]  # if it was replaced, it is the later value, which expired


def test_entry_replaced_by_rejected_value_is_kept(clock):
    """A value larger than the whole cache removes the old one, which stays until its minimum age."""
    cache = si.EdgeCache(max_bytes=100, retention=Retention(60.0, min_age_s=30.0), clock=clock)
    cache["k"] = b"small"

    cache["k"] = bytes(200)

    assert (len(cache), [event.value for event in cache.preserved]) == (0, [b"small"])


@pytest.mark.parametrize("age_s", [0.0, 30.0], ids=["no minimum age", "past it"])
def test_replaced_entry_past_its_minimum_age_is_freed(aged, clock, age_s):
    """A replaced entry without a minimum age, or past it, is not preserved."""
    aged.put(1, 1, ttl_s=60.0, tags=["invoice"] if age_s else ())
    clock.advance(age_s)

    aged.put(1, 2)

    assert aged.preserved == ()


def test_minimum_age_may_be_any_number_of_seconds(clock):
    """A minimum age that is longer than any clock runs does not end."""
    cache = si.EdgeCache(maxsize=1, retention=Retention(1e300, min_age_s=1e300), clock=clock)
    cache.put(1, 1, subject="anna")
    cache.put(2, 2)
    clock.advance(1e8)
    assert [event.key for event in cache.preserved] == [1]
    with pytest.raises(si.ErasureHeld, match="below the minimum age"):
        cache.erase(subject="anna")


def test_a_finalizer_may_use_the_cache_at_any_moment(aged, clock, log):
    """The garbage collector may run a finalizer, which uses the cache, while the cache scans preserved entries."""
    retention = aged._memory.retention
    until_ns = retention.until_ns
    keys = iter(range(2, 9))

    def collect(labels):
        for key in keys:
            aged.put(key, key, tags=["invoice"])
        return until_ns(labels)

    def preserve():
        aged.put(1, 1, tags=["invoice"])
        clock.advance(6.0)
        aged.expire()
        log.record("held", where="all", count=0, reason="case 17", subject="ben")  # so that the next expiry scans all
        retention.until_ns = collect
        aged.expire()

    thread = threading.Thread(target=preserve, daemon=True)
    thread.start()
    thread.join(10.0)
    assert not thread.is_alive()
    assert {event.key for event in aged.preserved} == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("leaves", ["deleted", "cleared", "replaced", "evicted"])
def test_values_are_freed_without_a_lock(cache, leaves):
    """A finalizer may wait for another thread that uses the cache."""

    class Value:
        """Supports weak references."""

    ended = []

    def use_in_a_thread():
        thread = threading.Thread(target=cache.pop, args=("other", None), daemon=True)
        thread.start()
        thread.join(5.0)
        ended.append(not thread.is_alive())

    cache["other"] = 0
    value = Value()
    weakref.finalize(value, use_in_a_thread)
    cache["k"] = value
    del value

    if leaves == "deleted":
        del cache["k"]
    elif leaves == "cleared":
        cache.clear()
    elif leaves == "replaced":
        cache["k"] = 1
    else:
        cache.update(dict.fromkeys(range(3)))

    assert ended == [True]


def test_an_entry_past_its_minimum_age_is_released(aged, clock):
    aged.put(1, 1, tags=["invoice"])
    clock.advance(6.0)
    aged.expire()
    assert aged._memory.expire_due(clock(), 256) == 30 * S + 1_000
    clock.advance(24.0)
    aged._memory.expire_due(clock(), 256)
    assert aged.preserved == ()


def test_thread_frees_entries_at_their_minimum_age():
    class Value:
        pass

    gone = threading.Event()
    cache = si.EdgeCache(maxsize=1, retention=Retention(36_000.0, min_age_s=1.0))
    value = Value()
    weakref.finalize(value, gone.set)
    cache[1] = value
    cache[2] = None
    assert [event.key for event in cache.preserved] == [1]
    del value
    assert gone.wait(timeout=60)


def test_expiry_does_not_scan_what_is_preserved(cache, clock, monkeypatch):
    """The cache does not scan the preserved entries each time that an entry expires.

    While a hold lasts, they only grow in number; the cache scans them once when a hold begins or ends.
    """
    looked, until_ns = [], MemoryRetention.until_ns

    def count(retention, labels):
        looked.append(labels)
        return until_ns(retention, labels)

    monkeypatch.setattr(MemoryRetention, "until_ns", count)
    asyncio.run(cache.hold(subject="anna", reason="case 17"))
    for number in range(100):
        cache.put(number, 0, subject="anna")
        cache._memory.expire_due(clock(), 256)
    assert len(cache.preserved) == 97
    assert len(looked) <= 2 * 97
    asyncio.run(cache.hold(subject="ben", reason="case 18"))
    asyncio.run(cache.release(subject="anna", reason="case 17 ended"))
    assert cache.preserved == ()
    assert len(looked) <= 4 * 97


def test_longest_minimum_and_shortest_maximum_win():
    """The longest minimum age of several classes applies, bounded by their shortest maximum age."""
    policy = Retention(
        60.0, classes={"a": Retention(50.0, min_age_s=40.0), "b": Retention(20.0), "c": Retention(60.0, min_age_s=45.0)}
    )
    assert policy.rule(["a", "c"]).min_age_s == 45.0
    assert policy.rule(["a", "b"]).min_age_s == 20.0
    assert policy.rule([]).min_age_s == 0.0


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Retention(1.0, min_age_s=2.0), ValueError, "min_age_s: expected at most max_age_s, 1"),
        (lambda: Retention(Fraction(1, 3), min_age_s=1), ValueError, "min_age_s: expected at most max_age_s, 0.333"),
        (lambda: Retention(1.0, min_age_s="1"), TypeError, "min_age_s"),
        (lambda: Retention(1.0, residual="backups"), TypeError, "residual: expected several Residual"),
        (lambda: Retention(1.0, residual=["backups"]), TypeError, "residual: expected several Residual"),
        (lambda: Retention(1.0, classes={"a": Retention(1.0, residual=[Residual("x")])}), ValueError, "without"),
        (lambda: Residual(""), TypeError, "name: expected words"),
        (lambda: Residual("backups", within_s=0), ValueError, "within_s"),
    ],
)
def test_invalid_rules_are_rejected(make, error, match):
    with pytest.raises(error, match=match):
        make()


# -- tiers -------------------------------------------------------------------------------------------------------------


def entry(value, **more):
    return Entry(value=value, stored_ns=more.pop("stored_ns", NOW), **more)


@pytest.mark.parametrize("hold", [{"subject": "anna"}, {"tag": "face"}], ids=["subject", "tag"])
def test_disk_purges_nothing_held_after_restart(tmp_path, hold):
    """The disk tier purges nothing that a hold protects, even after a restart."""
    wall = Wall()

    def tier():
        return DiskTier(tmp_path, max_bytes=2**20, wall_clock=wall)

    async def main():
        async with tier() as first:
            await first.put("held", entry(1, ttl_s=10.0, subject="anna", tags=("face",)))
            await first.put("other", entry(2, ttl_s=10.0, subject="ben"))
            await first.put("none", entry(3, ttl_s=10.0))
            await first.hold(**hold, on=True)
        wall.now_ns = NOW + 60 * S
        async with tier() as second:
            assert await second.purge() == 2
            assert await second.get("held") is None
            (left,) = await second.inventory()
            assert left.entries == 1
            await second.hold(**hold, on=False)
            assert await second.purge() == 1

    asyncio.run(main())


def test_held_entries_are_not_evicted_from_the_disk(tmp_path):
    async def main():
        async with DiskTier(tmp_path, max_bytes=2**20, wall_clock=Wall()) as tier:
            await tier.put("held", entry(b"x" * 100_000, subject="anna"))
            await tier.hold(subject="anna", on=True)
            for number in range(30):
                await tier.put(f"other {number}", entry(b"x" * 100_000, subject="ben"))
            assert tier.statistics().evicted > 0
            assert (await tier.get("held")).value == b"x" * 100_000
        with pytest.raises(Closed):
            await tier.hold(subject="anna", on=True)
        with pytest.raises(TypeError):
            await tier.hold(on=True)

    asyncio.run(main())


def test_disk_renames_a_held_value_that_is_superseded(tmp_path):
    """A held entry whose newer value may not be stored is read no more, and stays until the release."""

    async def main():
        policy = Retention(3600.0, classes={"face": Retention(3600.0, allow_disk=False)}, log=RetentionLog())
        tier = DiskTier(tmp_path, max_bytes=2**20)
        async with si.EdgeCache(retention=policy, tiers=[tier]) as cache:
            await cache.put_through("k", "old", tags=["case"])
            await tier.hold(tag="case", on=True)
            assert await cache.put_through("k", "new", tags=["face"])
            assert await tier.get("k") is None
            await tier.purge()
            assert [it.entries for it in await tier.inventory()] == [1]
            await tier.hold(tag="case", on=False)
            return await tier.purge()

    assert asyncio.run(main()) == 1


def test_hold_names_the_tiers_that_cannot_hold(tmp_path, clock, log, keys):
    """A hold reaches the tiers and returns the names of those that cannot hold."""

    class Redis(DiskTier):
        name = "redis"
        hold = Tier.hold

    async def main():
        disk = DiskTier(tmp_path / "a", max_bytes=2**20, keys=keys)
        other = Redis(tmp_path / "b", max_bytes=2**20, keys=keys)
        cache = si.EdgeCache(retention=Retention(0.5, log=log), tiers=[disk, other])
        async with cache:
            await cache.put_through("k", 1, subject="anna")
            cannot = await cache.hold(subject="anna", reason="case 17")
            later_ns = time.time_ns() + S
            assert (await disk.purge(later_ns), await other.purge(later_ns)) == (0, 1)
        return cannot

    assert asyncio.run(main()) == ("redis",)


def test_disk_hold_keeps_the_keys_of_held_entries(tmp_path):
    """A hold on the disk tier keeps the encryption keys of the entries that it holds."""
    wall = FakeClock(NOW)

    async def subjects_after(seconds, hold):
        with closing(StoredKeys(tmp_path / "keys.db", master=b"m" * 32, wall_clock=wall)) as keys:
            async with DiskTier(tmp_path / "cache", max_bytes=2**20, keys=keys, wall_clock=wall) as tier:
                if hold:
                    await tier.put("k", Entry(value=1, stored_ns=wall(), ttl_s=10.0, subject="anna"))
                    await tier.hold(subject="anna", on=True)
                seen = {copy.entry.subject for copy in tier.scan()}
                if not hold:
                    await tier.hold(subject="anna", on=False)
        wall.advance(seconds)
        return seen

    assert asyncio.run(subjects_after(100_000.0, hold=True)) == {"anna"}
    assert asyncio.run(subjects_after(100_000.0, hold=False)) == {"anna"}, "held"
    assert asyncio.run(subjects_after(0.0, hold=False)) == set(), "its key is gone"


def test_owed_erasure_of_tier_waits_for_hold_to_end(tmp_path, log, keys):
    """An erasure that a tier owes waits for the end of a hold."""

    async def count(tier):
        async with tier:
            return sum(held.entries for held in await tier.inventory())

    async def main():
        disk = DiskTier(tmp_path, max_bytes=2**20, keys=keys)
        cache = si.EdgeCache(retention=Retention(3600.0, log=log), tiers=[disk])
        async with cache:
            await cache.put_through("k", 1, subject="anna")
        assert not (await cache.erase_everywhere(subject="anna")).complete  # the tiers do not run
        with pytest.raises(Closed):  # the stopped disk tier does not learn of the hold, but the log has it
            await cache.hold(subject="anna", reason="case 17")
        async with cache:
            pass
        assert await count(disk) == 1
        async with cache:
            await cache.release(subject="anna", reason="over")
        async with cache:
            pass
        assert await count(disk) == 0
        assert log.pending == ()

    asyncio.run(main())


def test_tier_keeps_expired_entry_to_its_minimum_age(tmp_path, log):
    """A tier keeps an expired entry until its minimum age, and does not serve it."""
    policy = Retention(60.0, min_age_s=30.0, log=log)

    async def main():
        wall = Wall()
        tier = DiskTier(tmp_path, max_bytes=2**20, wall_clock=wall)
        async with si.EdgeCache(ttl_s=5.0, retention=policy, tiers=[tier]) as cache:
            await cache.put_through("k", 1)
            cache.clear()
            wall.now_ns += 4 * S
            assert await cache.fetch("k") == 1
            cache.clear()
            wall.now_ns += 2 * S
            assert await cache.fetch("k") is None
            assert await tier.purge() == 0
            wall.now_ns += 25 * S
            assert await tier.purge() == 1

    asyncio.run(main())


def test_erasure_by_another_process_obeys_a_hold(cache, log):
    """A notice of a shared tier erases nothing that a hold protects, and leaves the erasure owed."""
    cache.put(1, 1, subject="anna")
    asyncio.run(cache.hold(subject="anna", reason="case 17"))
    tiers = TierSet((), cache._memory)

    with pytest.raises(si.ErasureHeld, match="case 17"):
        tiers._on_notice(0, Notice(subject="anna"))

    assert cache.get(1) == 1
    assert [event.action for event in log.pending] == ["erase_held"]


def test_rejected_erasure_is_recorded_before_release(tmp_path, monkeypatch):
    """The release of a hold waits until the thread of the log has written all earlier records."""
    go, catch_up = threading.Event(), RetentionCounts.catch_up

    class SlowLog(RetentionLog):
        def record(self, action, **more):
            if action == "erase_held":
                go.wait()
            return super().record(action, **more)

    def let_go_and_catch_up(ledger):
        go.set()
        catch_up(ledger)

    async def main():
        cache = si.EdgeCache(retention=Retention(10.0, log=log))
        await cache.hold(subject="anna", reason="case 17")
        with pytest.raises(si.ErasureHeld):
            cache.erase(subject="anna")
        await cache.release(subject="anna", reason="case 17 ended")
        assert actions(log) == ["held", "erase_held", "released"]

    monkeypatch.setattr(RetentionCounts, "catch_up", let_go_and_catch_up)
    log = SlowLog(tmp_path / "log.jsonl", secret=SECRET)
    try:
        asyncio.run(main())
    finally:
        go.set()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_during_a_release_leaves_child_its_cache(clock):
    """A child forked during a release can free its preserved entries.

    At the fork, a thread that only the parent has scans these entries under the lock."""
    parent, is_inside, go_on = os.getpid(), threading.Event(), threading.Event()

    class SlowLog(RetentionLog):
        def is_held(self, subject, tags):
            if not self.holds and os.getpid() == parent:
                is_inside.set()
                go_on.wait()
            return super().is_held(subject, tags)

    cache = si.EdgeCache(maxsize=1, retention=Retention(10.0, log=SlowLog()), clock=clock)
    asyncio.run(cache.hold(subject="anna", reason="case 17"))
    for number in range(3):
        cache.put(number, number, subject="anna")
    assert len(cache.preserved) == 2
    releasing = threading.Thread(target=lambda: asyncio.run(cache.release(subject="anna", reason="over")))
    releasing.start()
    is_inside.wait()

    def is_free():
        cache.expire()
        return not cache.preserved

    status = status_of_child(is_free)
    go_on.set()
    releasing.join()

    assert status == 0
    assert cache.preserved == ()


def test_replaced_values_under_hold_are_not_preserved(log, clock):
    """A hold keeps no earlier values of a key, whatever minimum age other classes have."""
    classes = {"face": Retention(3600.0), "invoice": Retention(3600.0, min_age_s=60.0)}
    cache = si.EdgeCache(maxsize=9, clock=clock, retention=Retention(3600.0, classes=classes, log=log))
    asyncio.run(cache.hold(subject="anna", reason="case 17"))
    for number in range(20):
        cache.put("k", number, subject="anna", tags=["face"])
    assert (cache.preserved, cache["k"]) == ((), 19)

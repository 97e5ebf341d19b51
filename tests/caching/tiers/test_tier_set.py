"""A cache with scripted tiers: the tiers that it reads, the time for reads, and the place and age of its entries."""

import asyncio
import os
import signal

import numpy as np
import pytest
from forked import status_of_child
from scripted_tier import EPOCH, Model, ScriptedTier, cache_of

import streaminfer as si
from streaminfer.caching.tiers import Entry
from streaminfer.caching.tiers.read_budget import ReadBudget
from streaminfer.compliance.retention import Retention
from streaminfer.compliance.retention_log import RetentionLog
from streaminfer.errors import BackendError, DeadlineExceeded
from streaminfer.testing import ScriptedBackend, run

pytestmark = pytest.mark.uncompiled

S = 10**9


def test_promoted_response_keeps_its_age():
    """A response is stored in every tier, and keeps its age when it is promoted from a slower tier."""

    async def main(loop):
        disk, redis = ScriptedTier(loop.clock), ScriptedTier(loop.clock, "redis", shared=True, on_disk=False)
        model = Model()
        request = si.Request(np.ones(3), subject="anna", tags=("a", "b"))
        async with si.Stack(cache_of(loop, disk, redis, stale_s=3.0), model, clock=loop.clock) as service:
            assert (await service.call(request)).source == "model"
        (entry,) = redis.held.values()
        assert (entry.subject, entry.tags, entry.ttl_s, entry.stale_s) == ("anna", frozenset("ab"), 13.0, 3.0)
        assert entry.stored_ns == EPOCH + 10_000_000
        assert disk.held.keys() == redis.held.keys()
        disk.held.clear()
        await asyncio.sleep(6.0)
        cache = cache_of(loop, disk, redis, stale_s=3.0)
        async with si.Stack(cache, model, clock=loop.clock) as service:
            response = await service.call(request)
            assert (response.source, response.degraded, response.outputs.tolist()) == ("redis", False, [2.0] * 3)
            assert not response.outputs.flags.writeable
            assert (await service.call(request)).source == "cache"
            await asyncio.sleep(0.1)
            (promoted,) = disk.held.values()
            assert (promoted.stored_ns, promoted.ttl_s, promoted.stale_s) == (entry.stored_ns, 13.0, 3.0)
            assert (promoted.subject, promoted.tags) == (entry.subject, entry.tags)
            await asyncio.sleep(4.0 - 0.1)  # ten seconds after it was computed, and not after it was read
            assert (await service.call(request)).degraded
            assert cache.erase(subject="anna") == 1
        assert model.asked == 2
        seen = cache.tiers.statistics()
        assert [(it.name, it.hits, it.misses) for it in seen] == [("disk", 0, 1), ("redis", 1, 0)]
        assert seen[0].discarded == 1  # the erasure came after the refresh had begun

    run(main)


def test_stale_tier_response_is_used_and_refreshed():
    """A stale response of a tier is returned to the caller and begins a refresh."""

    async def main(loop):
        disk, model = ScriptedTier(loop.clock), Model()
        async with si.Stack(cache_of(loop, disk, stale_s=5.0), model, clock=loop.clock) as service:
            await service(1.0)
        await asyncio.sleep(12.0)
        async with si.Stack(cache_of(loop, disk, stale_s=5.0), model, clock=loop.clock) as service:
            first, second = await asyncio.gather(service.call(si.Request(1.0)), service.call(si.Request(1.0)))
            assert (first.source, first.degraded, second.degraded) == ("disk", True, True)
            await asyncio.sleep(0.1)
            assert (await service.call(si.Request(1.0))).source == "cache"
            assert model.asked == 2
        await asyncio.sleep(12.0)
        model.error = BackendError("down")
        async with si.Stack(cache_of(loop, disk, stale_s=5.0), model, clock=loop.clock) as service:
            for _ in range(3):
                assert (await service.call(si.Request(1.0))).degraded
                await asyncio.sleep(0.5)
        async with si.Stack(cache_of(loop, disk), model, clock=loop.clock) as service:  # serves nothing stale
            with pytest.raises(BackendError):
                await service(1.0)

    run(main)


def test_a_stalled_tier_makes_no_request_late():
    async def main(loop):
        disk, model = ScriptedTier(loop.clock), Model(0.06)
        cache = cache_of(loop, disk)
        async with si.Stack(cache, model, clock=loop.clock) as service:
            await service(0.0)
            disk.get_s = 3600.0
            for n in range(1, 6):
                began = loop.time()
                await service(float(n), timeout_s=0.1)
                assert loop.time() - began == pytest.approx(0.0925, abs=1e-6)
            began = loop.time()
            await service(9.0)  # without a deadline, the tier may take a second
            assert loop.time() - began == pytest.approx(1.06)
            disk.get_s = 0.0
        assert cache.tiers.statistics()[0].read_timeouts == 6

    run(main)


def test_slower_computation_costs_one_late_request():
    """A computation that is slower than known makes only one request late."""

    async def main(loop):
        disk, model = ScriptedTier(loop.clock), Model(0.06)
        disk.get_s = 3600.0
        async with si.Stack(cache_of(loop, disk), model, clock=loop.clock) as service:
            with pytest.raises(DeadlineExceeded):
                await service(1.0, timeout_s=0.1)  # no duration is known, so half of the time went to the tier
            for n in range(4):
                await service(2.0 + n, timeout_s=0.1)
            disk.get_s = 0.0

    run(main)


def test_read_budget_leaves_time_to_compute():
    reads = ReadBudget()
    assert reads.grant_ns(None) == S
    assert reads.grant_ns(10 * S) == S
    assert reads.grant_ns(S) == S // 2
    reads.computed(800)
    assert (reads.grant_ns(1000), reads.grant_ns(10_000), reads.grant_ns(600)) == (100, 5000, 300)
    reads.computed(100)
    assert reads.grant_ns(1000) == 1000 - (750 + 750 // 8)
    reads.was_late(10, 9)
    assert reads.grant_ns(1000) > 0
    reads.was_late(10, 10)
    assert (reads.grant_ns(1000), reads.grant_ns(1000) > 0) == (0, True)


class OneWriteAtOnce(ScriptedTier):
    """Tier that fails if a put begins while another one runs."""

    puts = False

    async def put(self, key, entry):
        assert not self.puts
        self.puts = True
        stored = await super().put(key, entry)
        self.puts = False
        return stored


def test_writes_are_ordered_bounded_and_drained():
    """Writes to a tier delay no request, run one at a time in their order up to a limit, and are drained by a stop."""

    async def main(loop):
        disk, model = OneWriteAtOnce(loop.clock), Model(0.0)
        disk.put_s = 0.5
        cache = cache_of(loop, disk, ttl_s=1000.0)
        service = si.Stack(cache, model, clock=loop.clock)
        await service.start()
        for n in range(300):
            began = loop.time()
            await service(float(n))
            assert loop.time() - began < 0.001
        seen = cache.tiers.statistics()[0]
        assert seen.queued == 257
        assert seen.dropped == 300 - 257
        await service.stop(timeout_s=None)
        seen = cache.tiers.statistics()[0]
        assert (seen.stored, seen.queued) == (257, 0)
        assert [entry.value for entry in disk.held.values()] == [2.0 * n for n in range(257)]
        assert disk.stopped == 1

    run(main)


def test_stop_without_drain_drops_queued_writes():
    """A stop without draining drops queued writes; a stop that drains waits for a single put of a stalled tier, 5 s."""

    async def main(loop):
        for drain in (False, True):
            disk = ScriptedTier(loop.clock)
            disk.put_s = 3600.0
            cache = cache_of(loop, disk, ttl_s=1000.0)
            stack = si.Stack(cache, Model(0.0), clock=loop.clock)
            await stack.start()
            for n in range(10):
                await stack(float(n))
            began = loop.time()
            await stack.stop(drain=drain)
            assert loop.time() - began == pytest.approx(5.0 if drain else 0.0, abs=0.1)
            seen = cache.tiers.statistics()[0]
            assert (seen.stored, seen.queued, seen.dropped + seen.rejected) == (0, 0, 10)
            assert not disk.running

    run(main)


def test_tiers_start_with_first_and_stop_with_last():
    """Tiers start with the first user of their cache and stop with the last."""

    async def main(loop):
        disk = ScriptedTier(loop.clock)
        cache = cache_of(loop, disk)
        async with si.Stack(cache, Model(), clock=loop.clock) as first:
            async with si.Stack(cache, Model(), clock=loop.clock), cache:
                assert disk.started == 1
            await first(1.0)
            assert disk.running
        assert (disk.started, disk.stopped, len(disk.held)) == (1, 1, 1)
        async with cache:
            assert disk.started == 2
        await disk.start()
        with pytest.raises(RuntimeError, match="a cache starts its tiers itself"):
            await cache.__aenter__()
        assert disk.running  # its other owner still uses it
        other = ScriptedTier(loop.clock)
        with pytest.raises(RuntimeError, match="tier disk 2"):
            await cache_of(loop, other, disk).__aenter__()
        assert not other.running

    run(main)


def test_wrapping_needs_keys_that_processes_share():
    """A cache with tiers raises `TypeError` for a service or function whose keys another process cannot make."""

    async def main(loop):
        cache = cache_of(loop, ScriptedTier(loop.clock))
        for inner in (ScriptedBackend, lambda x: x):
            with pytest.raises(TypeError):
                cache.wrap(inner)

        async def closure(x):
            return cache

        with pytest.raises(TypeError, match="fingerprint"):
            cache.wrap(closure)
        closure.fingerprint = "7"
        cache.wrap(closure)
        with pytest.raises(TypeError, match="async function"):
            cache.wrap(np.mean)

    run(main)


def test_lambda_in_cpu_backend_needs_a_fingerprint():
    """A cache with tiers accepts a `CpuBackend` around a lambda only if the backend has a fingerprint.

    The message names the backend, because nothing of the function identifies it in another process.
    """

    async def main(loop):
        cache = cache_of(loop, ScriptedTier(loop.clock))
        backend = si.CpuBackend(lambda batch: batch)
        with pytest.raises(TypeError, match="give the model or backend a `fingerprint` attribute"):
            si.Stack(cache, si.AdaptiveBatcher(max_batch_size=1), backend)
        backend.fingerprint = "identity 1"
        si.Stack(cache, si.AdaptiveBatcher(max_batch_size=1), backend)

    run(main)


def test_functions_and_the_mapping_use_the_tiers_too():
    calls = []

    async def double(x):
        calls.append(x)
        return 2 * x

    double.fingerprint = "double"

    async def main(loop):
        disk = ScriptedTier(loop.clock)
        async with cache_of(loop, disk) as cache:
            assert await cache.wrap(double)(3) == 6
            await asyncio.sleep(0.1)  # a value put at the same instant would be dated a nanosecond later
            assert await cache.put_through("k", [1, 2], tags=("t",), subject="anna", ttl_s=5.0)
            assert disk.held["k"].ttl_s == 5.0
        async with cache_of(loop, disk) as cache:
            assert await cache.wrap(double)(3) == 6
            assert calls == [3]
            assert (await cache.fetch("k"), await cache.fetch("none", 7)) == ([1, 2], 7)
            assert cache["k"] == [1, 2]
            await asyncio.sleep(5.0)
            assert await cache.fetch("k") is None
            with pytest.raises(TypeError, match="key: expected a string or bytes"):
                await cache.fetch(3)
        assert not await cache.put_through("x", 1)  # the tiers do not run
        assert cache["x"] == 1

    run(main)


@pytest.mark.parametrize("with_tiers", [True, False], ids=["tiers", "memory"])
@pytest.mark.parametrize("bad", [{"tags": "word"}, {"tags": (1,)}, {"subject": 1}], ids=["word", "number", "subject"])
def test_put_through_checks_its_labels(with_tiers, bad):
    """`put_through` rejects invalid labels, such as a string in place of several tags, and stores nothing."""

    async def main(loop):
        disk = ScriptedTier(loop.clock)
        async with cache_of(loop, *[disk] * with_tiers) as cache:
            with pytest.raises(TypeError, match=r"tags|subject"):
                await cache.put_through("k", 1, **bad)
        assert (len(cache), disk.held) == (0, {})

    run(main)


def test_retention_decides_where_a_response_is_stored():
    """A retention policy decides where a response may be stored, and for how long."""

    async def main(loop):
        log = RetentionLog()

        def recorded(*what):
            return sum(it.count for it in log.events if (it.action, it.where, it.data_class) == what)

        policy = Retention(
            100.0,
            classes={
                "face": Retention(4.0, allow_disk=False),
                "voice": Retention(8.0, allow_shared=False, encrypt=True),
            },
            log=log,
        )
        disk = ScriptedTier(loop.clock, encrypted=False)
        redis = ScriptedTier(loop.clock, "redis", shared=True, on_disk=False, encrypted=False)
        cache = cache_of(loop, disk, redis, ttl_s=None, stale_s=1.0, retention=policy)
        model = Model(0.0)
        async with si.Stack(cache, model, clock=loop.clock) as service:
            for n, tags in enumerate([("face",), ("voice",), ("face", "voice"), ("x",)]):
                await service.call(si.Request(float(n), tags=(*tags, "all")))
            cache["own"] = 1
            await asyncio.sleep(0.1)
            assert sorted(it.data_class for it in redis.held.values()) == ["", "face"]
            assert [it.data_class for it in disk.held.values()] == [""]
            assert {it.data_class: it.ttl_s for it in redis.held.values()} == {"": 100.0, "face": 4.0}
            held = {it.data_class: it for it in cache._memory.retention.holdings()}
            assert {name: it.entries for name, it in held.items()} == {"": 2, "face": 2, "voice": 1}
            assert held["face"].oldest_age_s == pytest.approx(0.1, abs=1e-3)
            await asyncio.sleep(4.2)
            assert {it.data_class: it.entries for it in cache._memory.retention.holdings()} == {"": 2, "voice": 1}
            cache._memory.expire_due(loop.clock(), 256)  # as the thread does by the system's clock
            assert recorded("expired", "memory", "face") == 2
            await asyncio.sleep(5.0)
            assert recorded("disallowed", "disk", "voice") == recorded("disallowed", "redis", "face") == 1
            report = await cache.retention_report()
            assert {it.where for it in report.holdings} == {"memory", "disk", "redis"}
            assert (await cache.erase_everywhere(tag="all")).complete
        assert recorded("erased", "disk", "") == recorded("erased", "memory", "") == 1
        assert redis.held == {} == disk.held

    run(main)


def test_tier_entries_obey_the_reading_cache():
    """An entry of a tier obeys the retention policy of the cache that reads it."""

    async def main(loop):
        disk = ScriptedTier(loop.clock)
        entry = Entry(value=1, stored_ns=EPOCH, ttl_s=100.0, tags=["face"])

        async def read(**settings):
            disk.held["k"] = entry
            async with cache_of(loop, disk, **settings) as cache:
                return await cache.fetch("k")

        await asyncio.sleep(10.0)
        assert await read() == 1
        assert await read(retention=Retention(10.0)) is None
        assert await read(retention=Retention(10.1)) == 1
        assert await read(retention=Retention(50.0, classes={"face": Retention(20.0, allow_disk=False)})) is None

    run(main)


def test_promotion_writes_only_faster_tiers():
    """A promotion writes to faster tiers only. If several tiers have a stale response, the fastest tier's is used."""

    async def main(loop):
        tiers = [ScriptedTier(loop.clock, name) for name in ("a", "b", "c")]
        entry = Entry(value="b", stored_ns=EPOCH, ttl_s=15.0, stale_s=5.0)
        cache = cache_of(loop, *tiers, stale_s=5.0)
        async with cache:
            tiers[1].held["k"] = entry
            assert await cache.fetch("k") == "b"
            await asyncio.sleep(0.1)
            assert [it.stored for it in cache.tiers.statistics()] == [1, 0, 0]
            tiers[0].held.clear()
            tiers[2].held["k"] = Entry(value="c", stored_ns=EPOCH, ttl_s=15.0, stale_s=5.0)
            await asyncio.sleep(11.0)
            assert (await cache.tiers.read("k", granted_ns=S)).source == "b"
            assert await cache.tiers.read("k", granted_ns=S, only_fresh=True) is None

    run(main)


def test_entry_awaiting_promotion_grows_older():
    """An entry that awaits promotion grows older, and an entry that was read before an erasure is not stored."""

    async def main(loop):
        disk = ScriptedTier(loop.clock)
        cache = cache_of(loop, disk)
        async with cache:
            disk.held["k"] = Entry(value=1, stored_ns=EPOCH, ttl_s=10.0)
            found = await cache.tiers.read("k", granted_ns=S)
            del cache["k"]  # as if memory had evicted it
            await asyncio.sleep(4.0)
            cache.tiers.promote("k", found, cache._memory.erasures)
            await asyncio.sleep(5.9)
            assert cache["k"] == 1
            await asyncio.sleep(0.2)
            assert "k" not in cache
            cache.tiers.promote("k", found, cache._memory.erasures)  # the entry has expired
            assert len(cache) == 0
            disk.held["k"] = Entry(value=1, stored_ns=disk.wall_clock(), ttl_s=10.0, tags=["t"])
            found = await cache.tiers.read("k", granted_ns=S)
            del cache["k"]  # as if memory had evicted it
            before = cache._memory.erasures
            cache.erase(tag="t")
            cache.tiers.promote("k", found, before)
            assert len(cache) == 0
            await asyncio.sleep(0.1)
            assert cache.tiers.statistics()[0].stored == 0

    run(main)


def test_erasure_during_read_or_store_is_obeyed():
    """A response is not stored if an erasure comes while tiers are read, or while memory stores the response."""

    async def main(loop):
        disk, model = ScriptedTier(loop.clock), Model()
        disk.get_s = 0.5
        cache = cache_of(loop, disk, maxsize=1)
        async with si.Stack(cache, model, clock=loop.clock) as service:
            asked = asyncio.ensure_future(service(1.0, tags=("x",)))
            await asyncio.sleep(0.2)
            cache.erase(tag="x")
            await asked
            assert (len(cache), disk.held) == (0, {})
            cache["full"] = 1
            ending = cache.listen(lambda event: event.kind == "evicted" and cache.erase(tag="x"))
            await service(1.0, tags=("x",))
            await asyncio.sleep(0.1)
            assert (len(cache), disk.held) == (0, {})
            ending()

    run(main)


def test_stale_response_to_a_function_starts_a_refresh():
    calls = []

    async def double(x):
        calls.append(x)
        return 2 * x

    double.fingerprint = "double"

    async def main(loop):
        disk = ScriptedTier(loop.clock)
        async with cache_of(loop, disk, stale_s=5.0) as cache:
            await cache.wrap(double)(3)
        await asyncio.sleep(12.0)
        async with cache_of(loop, disk, stale_s=5.0) as cache:
            cached = cache.wrap(double)
            assert await cached(3) == 6
            await asyncio.sleep(0.1)
            assert (calls, len(cache)) == ([3, 3], 1)

    run(main)


def test_cache_with_tiers_runs_on_successive_loops():
    class Fixed:
        now_ns = 5

        def __call__(self):
            return self.now_ns

    clock = Fixed()
    disk = ScriptedTier(clock)
    cache = si.EdgeCache(clock=clock, tiers=[disk])

    async def main(loop):
        async with cache:
            assert await cache.put_through("k", 1)

    run(main)
    run(main)
    assert (disk.started, disk.stopped) == (2, 2)


def test_evictions_are_recorded_as_one_event():
    async def main(loop):
        log = RetentionLog()
        cache = si.EdgeCache(clock=loop.clock, maxsize=10, retention=Retention(1000.0, log=log))
        for n in range(100):
            cache[n] = n
        assert log.events == ()
        await cache.retention_report()
        assert [(it.action, it.count) for it in log.events] == [("evicted", 90)]

    run(main)


def test_tier_timeout_takes_no_time_from_the_next():
    """A tier that raises `TimeoutError` takes no time from the next tier."""

    async def main(loop):
        class Impatient(ScriptedTier):
            async def get(self, key):
                raise TimeoutError

        first, second = Impatient(loop.clock), ScriptedTier(loop.clock, "redis")
        second.held["k"] = Entry(value=1, stored_ns=EPOCH)
        async with cache_of(loop, first, second) as cache:
            assert await cache.fetch("k") == 1
            assert [each.read_timeouts for each in cache.tiers.statistics()] == [1, 0]

    run(main)


def test_failing_tier_logs_reads_and_writes_once(caplog):
    """A tier that raises at each request is logged once for reads and once for writes.

    A traceback for each request would fill a disk, and cost more than the tier saved.
    """

    async def main(loop):
        class Broken(ScriptedTier):
            async def get(self, key):
                raise ConnectionError("get")

            async def put(self, key, entry):
                raise ConnectionError("put")

        async with cache_of(loop, Broken(loop.clock)) as cache:
            for n in range(5):
                assert await cache.fetch(f"k{n}") is None
                assert not await cache.put_through(f"k{n}", n)
            [seen] = cache.tiers.statistics()
            return seen.read_timeouts, seen.rejected

    assert run(main) == (5, 5)
    assert [record.message.partition(" (")[0] for record in caplog.records] == [
        "a read of the tier disk failed: ConnectionError: get",
        "a write to the tier disk failed: ConnectionError: put",
    ]


@pytest.mark.parametrize("error", [asyncio.CancelledError, BaseExceptionGroup("odd", [GeneratorExit()])], ids=repr)
@pytest.mark.parametrize("operation", ["put", "delete", "erase"])
def test_cancelled_error_of_tier_does_not_end_writer(operation, error, caplog):
    """A tier that raises ``CancelledError`` fails one write or erasure, and the writer makes the next write."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        works = getattr(tier, operation)

        async def cancelled(*arguments, **named):
            setattr(tier, operation, works)
            raise error

        async with cache_of(loop, tier) as cache:
            setattr(tier, operation, cancelled)
            async with asyncio.timeout(60.0):
                made = {
                    "put": await cache.put_through("a", 1, subject="anna"),
                    "delete": all(await asyncio.gather(*cache.tiers.delete("a"))),
                    "erase": (erasure := await cache.erase_everywhere(subject="anna")).complete,
                    "next": await cache.put_through("b", 2, subject="bob"),
                }
                [seen] = cache.tiers.statistics()
                return made, (seen.stored, seen.rejected, seen.pending), erasure.failed, len(tier.held)

    made, counts, failed, held = run(main)
    assert made == {"put": True, "delete": True, "erase": True, "next": True, operation: False}
    assert counts == ((3, 0, 1) if operation == "erase" else (2, 1, 0))
    assert held == 1
    reports = failed.values() if operation == "erase" else [record.message for record in caplog.records]
    [report] = reports
    assert "RuntimeError: the tier: " in report


def test_stale_response_expires_during_slower_reads():
    """A stale response that expires while slower tiers are read is not used."""

    async def main(loop):
        disk, redis = ScriptedTier(loop.clock), ScriptedTier(loop.clock, "redis")
        cache = cache_of(loop, disk, redis, ttl_s=10.0, stale_s=5.0, retention=Retention(15.0))
        model = Model()
        async with si.Stack(cache, model, clock=loop.clock) as service:
            await service.call(si.Request(1))
            await asyncio.sleep(14.5)
            cache.clear()
            redis.held.clear()
            redis.get_s = 0.7
            assert (await service.call(si.Request(1))).source == "model"
            assert model.asked == 2

    run(main)


@pytest.mark.parametrize("why", ["rejected", "slow", "disallowed"])
def test_replaced_value_does_not_come_back(why):
    """If a tier does not store a second value, its first value is not used again; a third that it stores is used."""

    async def play(loop):
        tier = ScriptedTier(loop.clock)
        policy = Retention(1000.0, classes={"face": Retention(1000.0, allow_disk=False)})
        async with si.EdgeCache(ttl_s=500.0, tiers=[tier], retention=policy, clock=loop.clock) as cache:
            assert await cache.put_through("k", 1)
            await asyncio.sleep(1.0)
            take = tier.put

            async def refuse(key, entry):
                return False

            if why == "rejected":
                tier.put = refuse
            tier.put_s = 60.0 if why == "slow" else 0.0
            assert await cache.put_through("k", 2, tags=["face"] if why == "disallowed" else ()) is (
                why == "disallowed"
            )
            assert await cache.fetch("k") == 2
            cache.pop("k")
            assert await cache.fetch("k") is None

            tier.put, tier.put_s = take, 0.0
            await asyncio.sleep(1.0)
            assert await cache.put_through("k", 3)
            cache.pop("k")
            assert await cache.fetch("k") == 3

    run(play)


@pytest.mark.parametrize("times", [{"ttl_s": 1e300}, {"ttl_s": 1e9, "stale_s": 1e300}])
def test_an_entry_of_another_program_fails_no_request(times):
    """An entry with huge durations, which only another program writes, fails no request; they count as the longest."""

    async def play(loop):
        tier = ScriptedTier(loop.clock)
        tier.held["k"] = entry = Entry(value=1, stored_ns=EPOCH, **times)
        async with si.EdgeCache(ttl_s=500.0, tiers=[tier], clock=loop.clock) as cache:
            assert await cache.fetch("k") == (1 if entry.stale_s == 0.0 else None)

    run(play)


def test_read_begun_before_a_put_does_not_undo_it():
    """A value that is read from a tier does not replace a value that was put during the read."""

    async def play(loop):
        tier = ScriptedTier(loop.clock)
        async with si.EdgeCache(ttl_s=500.0, tiers=[tier], clock=loop.clock) as cache:
            await cache.put_through("k", 1)
            cache.pop("k")
            tier.get_s = 0.5
            reading = asyncio.ensure_future(cache.fetch("k"))
            await asyncio.sleep(0.1)
            cache["k"] = 2
            await reading
            assert cache["k"] == 2

    run(play)


class LeasedTier(ScriptedTier):
    """Tier whose leases are all taken, or are free and recorded in ``leases``."""

    lease_s = 10.0

    def __init__(self, clock):
        super().__init__(clock, "redis", shared=True, on_disk=False)
        self.is_taken = False
        self.on_lease = lambda key: None
        self.leases = set()

    async def take_lease(self, key, token):
        self.on_lease(key)
        if not self.is_taken:
            self.leases.add(token)
        return not self.is_taken

    async def open_lease(self, key, token):
        self.leases.discard(token)


def test_stall_during_lease_wait_makes_no_request_late():
    """A tier that stalls while a request waits for a lease does not make the request late.

    Each read for the entry of the other machine leaves the time to compute.
    """

    async def play(loop):
        tier, model = LeasedTier(loop.clock), Model(0.06)
        async with si.Stack(cache_of(loop, tier), model, clock=loop.clock) as service:
            await service(0.0)
            tier.is_taken = True
            tier.on_lease = lambda key: setattr(tier, "get_s", 3600.0)
            assert await service(1.0, timeout_s=1.0) == 2.0

    run(play)


@pytest.mark.parametrize("end", ["found", "cancelled"])
def test_unneeded_lease_is_released(end):
    """A lease is released if its holder finds the entry after all, or if the callers are cancelled during that read."""

    async def play(loop):
        tier = LeasedTier(loop.clock)
        tier.get_s = 0.5
        if end == "found":
            entry = Entry(value=7, stored_ns=EPOCH)
            tier.on_lease = lambda key: tier.held.setdefault(key, entry)
        async with si.Stack(cache_of(loop, tier), Model(), clock=loop.clock) as service:
            asked = asyncio.ensure_future(service(1.0))
            await asyncio.sleep(0.7)
            assert len(tier.leases) == 1
            if end == "cancelled":
                asked.cancel()
            await asyncio.wait([asked])
            assert asked.cancelled() or asked.result() == 7
            await asyncio.sleep(0.1)
            assert tier.leases == set()

    run(play)


@pytest.mark.parametrize("end", ["deleted", "erased", "rejected"])
def test_lease_ends_when_its_value_is_never_stored(end):
    """A lease ends if its computed value was queued and then deleted, erased or rejected, so that no tier stores it."""

    class Rejecting(LeasedTier):
        async def put(self, key, entry):
            return await super().put(key, entry) and end != "rejected"

    async def play(loop):
        tier = Rejecting(loop.clock)
        cache = cache_of(loop, tier)
        async with si.Stack(cache, Model(), clock=loop.clock) as service:
            tier.put_s = 1.0
            await service(1.0)  # this write is running
            tier.put_s = 0.0
            request = si.Request(2.0, tags=["face"])
            await service.call(request)
            assert len(tier.leases) == 2
            if end == "deleted":
                await cache.delete(cache.wrap(Model()).key_of(request))
            elif end == "erased":
                cache.erase(tag="face")
            await asyncio.sleep(3.0)
            assert len(tier.leases) == (0 if end == "rejected" else 1), "LeasedTier.put ends none"

    run(play)


def test_lease_is_released_where_a_deletion_waits():
    """A lease that ends while a deletion of its key is queued is released."""

    async def play(loop):
        tier = LeasedTier(loop.clock)
        cache = cache_of(loop, tier)
        async with cache:
            tier.leases.add(b"token")
            deleting = asyncio.ensure_future(cache.delete("k"))
            await asyncio.sleep(0)
            cache.tiers.workers[0].open_lease("k", b"token")
            assert await deleting
            await asyncio.sleep(1.0)
            assert tier.leases == set()

    run(play)


@pytest.mark.parametrize("stalls", ["take_lease", "open_lease"])
def test_a_lease_that_stalls_makes_no_request_late(stalls):
    """Neither the start nor the end of a lease takes the time that the computation needs."""

    class Stalled(LeasedTier):
        async def take_lease(self, key, token):
            await asyncio.sleep(3600.0 if stalls == "take_lease" else 0.0)
            return await super().take_lease(key, token)

        async def open_lease(self, key, token):
            await asyncio.sleep(3600.0)

    async def play(loop):
        tier, model = Stalled(loop.clock), Model(0.06)
        async with si.Stack(cache_of(loop, tier), model, clock=loop.clock) as service:
            model.error = BackendError("down")
            with pytest.raises(BackendError, match="down"):
                await service(1.0, timeout_s=1.0)
            model.error = None
            assert await service(1.0, timeout_s=1.0) == 2.0

    run(play)


def test_failed_release_of_a_lease_is_logged_once(caplog):
    """A tier that raises at the end of a lease changes no response, and the failure is logged once."""

    class Broken(LeasedTier):
        async def open_lease(self, key, token):
            raise OSError("torn")

    async def play(loop):
        tier, model = Broken(loop.clock), Model()
        model.error = BackendError("down")
        async with si.Stack(cache_of(loop, tier), model, clock=loop.clock) as service:
            for x in range(2):
                with pytest.raises(BackendError, match="down"):
                    await service(x)
            await asyncio.sleep(1.0)
            model.error = None
            await service(3.0)
            await asyncio.sleep(1.0)
            assert len(tier.held) == 1

    run(play)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "the end of a lease of the tier redis failed"
    ]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_process_learns_tiers_run_elsewhere():
    """A forked process that starts the cache gets an error that says that the tiers run in another process.

    The child has no event loop on which these tiers run.
    """

    async def start(cache):
        with pytest.raises(RuntimeError, match=r"before a fork.*make a new cache"):
            await cache.__aenter__()
        return True

    async def main(loop):
        async with cache_of(loop, ScriptedTier(loop.clock)) as cache:
            return status_of_child(lambda: asyncio.run(start(cache)))

    assert run(main) == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_erasure_in_a_forked_process_ends():
    """An erasure in a forked process ends, although the tiers run in the parent and get no calls from the child."""

    async def main(loop):
        cache = cache_of(loop, ScriptedTier(loop.clock))
        async with cache:
            cache.put("key", 1, subject="anna")
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(10)  # ends a child that hangs
                asyncio.events._set_running_loop(None)
                erasure = asyncio.run(cache.erase_everywhere(subject="anna"))
                os._exit(0 if erasure.counts == {"memory": 1} and "does not run" in erasure.failed["disk"] else 1)
            return os.waitpid(child, 0)[1]

    assert run(main) == 0


def test_replaced_values_below_minimum_age_are_written():
    """A queued value that a newer one replaces is written before that one, until its minimum age or its deletion."""

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        tier.preserves = True
        written = []

        async def put(key, entry):
            await asyncio.sleep(1.0)
            written.append((key, entry.value))
            return True

        tier.put = put
        policy = Retention(60.0, classes={"invoice": Retention(60.0, min_age_s=2.5)})
        async with cache_of(loop, tier, retention=policy) as cache:
            writes = [cache.put_through("other", 0)]
            writes += [cache.put_through("k", number, tags=["invoice"]) for number in range(3)]
            writes += [cache.put_through("plain", number) for number in range(3)]
            tasks = [asyncio.ensure_future(it) for it in writes]
            await asyncio.sleep(0.1)
            assert tier_usage(cache).queued == 5
            assert await asyncio.gather(*tasks) == [True] * 4 + [False, False, True]
            assert written == [("other", 0), ("k", 0), ("k", 1), ("k", 2), ("plain", 2)]

            writes = [cache.put_through("other", 0)]
            writes += [cache.put_through("k", number, tags=["invoice"]) for number in range(2)]
            tasks = [asyncio.ensure_future(it) for it in writes]
            await asyncio.sleep(0.1)
            assert await cache.delete("k")
            assert await asyncio.gather(*tasks) == [True, True, False]

    def tier_usage(cache):
        (usage,) = cache.tiers.statistics()
        return usage

    run(main)

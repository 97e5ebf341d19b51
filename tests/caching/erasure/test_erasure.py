"""Erasure: after it is complete, no place has data of the subject, whatever else happens meanwhile."""

import asyncio
import json
import threading
import weakref
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from scripted_tier import Model, ScriptedTier, cache_of

import streaminfer as si
from streaminfer.caching import RetentionLog
from streaminfer.caching.erasure.erasure import Erasure, PendingErasure, check_selection
from streaminfer.caching.tiers import DiskTier, Entry
from streaminfer.caching.tiers.encryption import StoredKeys
from streaminfer.compliance.retention import Retention
from streaminfer.errors import BackendError
from streaminfer.testing import FakeClock, VirtualLoop, run

pytestmark = pytest.mark.uncompiled


def test_erase_returns_the_number_of_entries():
    """`erase` returns a plain `int`: the number of entries that it erased from memory."""
    cache = si.EdgeCache()
    cache.put("k", 1, tags=["x"])

    assert type(cache.erase(tag="x")) is int
    assert cache.erase(tag="x") == 0


def test_erasure_adds_up():
    """An `Erasure` is complete if no tier failed, and counts the entries of all places."""
    erasure = Erasure({"memory": 1, "disk": 2}, {"redis": "down"})

    assert (erasure.count, erasure.complete) == (3, False)
    assert json.loads(json.dumps(erasure.to_dict())) == {
        "counts": {"memory": 1, "disk": 2},
        "failed": {"redis": "down"},
    }


def test_erase_everywhere_without_tiers():
    """A cache without tiers is erased at once."""
    cache = si.EdgeCache()
    cache.put("k", 1, tags=["x"])

    erasure = asyncio.run(cache.erase_everywhere(tag="x"))

    assert (dict(erasure.counts), erasure.complete) == ({"memory": 1}, True)


@pytest.mark.parametrize("policy", [None, Retention(60.0)])
@pytest.mark.parametrize("by", ["unlisten", "erase", "expire"])
def test_events_left_by_a_delivery_are_freed(by, policy):
    """Values of events that a listener caused do not outlive an erasure or the last listener."""
    cache = si.EdgeCache(maxsize=1, retention=policy)
    values = weakref.WeakSet()
    changes = True

    class Value:
        """Supports weak references."""

    def put(key):
        value = Value()
        values.add(value)
        cache.put(key, value, subject="anna")

    def put_again(event):
        if changes:
            put(event.key)

    unlisten = cache.listen(put_again)
    put(1)
    put(2)  # begins a delivery, which leaves an event
    changes = False

    assert len(values) == 2
    if by == "unlisten":
        unlisten()
        assert len(values) == len(cache) == 1
        keys = []
        cache.listen(lambda event: keys.append(event.key))
        assert cache.erase(subject="anna") == len(keys) == 1
    elif by == "erase":
        cache.clear()
        assert cache.erase(subject="anna") == 0
    else:
        cache.expire()
        assert len(values) == len(cache) == 1
        assert cache.erase(subject="anna") == 1
    assert not values


@pytest.mark.parametrize(("subject", "tag"), [(None, None), ("a", "b"), (3, None), (None, 3)])
def test_invalid_selection_is_rejected(subject, tag):
    """An erasure selects by a subject or by a tag; any other selection is rejected."""
    with pytest.raises(TypeError):
        check_selection(subject, tag)


def test_cancelled_waiter_does_not_affect_an_erasure():
    async def main(loop):
        erasing = PendingErasure("anna", None, ["disk"])
        erasing.arm(1)
        waiters = [asyncio.ensure_future(erasing.wait()) for _ in range(2)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        await asyncio.sleep(0)
        erasing.note("disk", 2)
        assert (await waiters[1]).counts == {"memory": 1, "disk": 2}

    run(main)


def test_failed_tier_erasure_is_retried_until_done():
    """A failed erasure of a tier is retried until it is done; until then the tier serves no erased entry."""

    async def main(loop):
        disk = ScriptedTier(loop.clock)
        cache = si.EdgeCache(clock=loop.clock, tiers=[disk])
        before = await cache.erase_everywhere(subject="anna")  # the tiers do not run
        assert "does not run" in before.failed["disk"]
        async with cache:
            await asyncio.sleep(0.01)
            assert cache.tiers.statistics()[0].pending == 0  # the start of the tiers completed the erasure
            await cache.put_through("k", 1, subject="anna")
            await cache.put_through("other", 2)
            disk.erase_error = BackendError("the disk is gone")
            outcome = await cache.erase_everywhere(subject="anna")
            assert (outcome.counts, outcome.complete) == ({"memory": 1}, False)
            assert outcome.failed == {"disk": "BackendError: the disk is gone"}
            assert "k" in disk.held
            assert await cache.fetch("k") is None
            assert await cache.fetch("other") == 2
            assert not await cache.put_through("again", 1, subject="anna")
            assert not (await cache.erase_everywhere(subject="anna")).complete
            assert cache.tiers.statistics()[0].pending == 1
            disk.erase_error = None
            await asyncio.sleep(40.0)
            assert "k" not in disk.held
            seen = cache.tiers.statistics()[0]
            assert (seen.pending, seen.discarded) == (0, 1)
            assert await cache.put_through("k", 3, subject="anna")
            assert (await cache.erase_everywhere(subject="anna")).count == 2

    run(main)


def test_permanently_failing_erasure_blocks_no_other():
    """An erasure that fails permanently, or that a legal hold forbids, blocks no other erasure.

    The forbidden erasure is carried out after the hold ends.
    """

    class Partly(ScriptedTier):
        async def erase(self, *, subject=None, tag=None):
            if subject == "broken":
                raise BackendError("this one alone")
            return await super().erase(subject=subject, tag=tag)

    async def play(loop):
        tier = Partly(loop.clock)
        cache = cache_of(loop, tier, retention=si.Retention(1e6, log=RetentionLog()))
        names = ["held", "broken", "ben"]
        async with cache:
            for name in names:
                await cache.put_through(name, 1, subject=name)
            tier.erase_error = BackendError("down")
            for name in names:
                assert not (await cache.erase_everywhere(subject=name)).complete
            await cache.hold(subject="held", reason="case 17")
            tier.erase_error = None
            await asyncio.sleep(120.0)
            assert set(tier.held) == {"held", "broken"}
            await cache.release(subject="held", reason="over")
            await asyncio.sleep(60.0)
            assert set(tier.held) == {"broken"}
            assert cache.tiers.statistics()[0].pending == 1

    run(play)


def test_erasure_missing_in_one_cache_is_a_violation():
    """An erasure that a cache has not carried out is a violation, even if another cache with the same log has.

    The tiers of the two caches have the same name, and each has entries of its own.
    """

    async def play(loop):
        policy = si.Retention(3600.0, log=RetentionLog())
        tiers = [ScriptedTier(loop.clock), ScriptedTier(loop.clock)]
        late, prompt = (cache_of(loop, tier, retention=policy) for tier in tiers)
        tiers[0].erase_error = BackendError("down")
        async with late, prompt:
            await late.put_through("k", 1, subject="anna")
            assert not (await late.erase_everywhere(subject="anna")).complete
            assert (await prompt.erase_everywhere(subject="anna")).complete
            for _ in range(2):
                (violation,) = (await late.retention_report()).violations
                assert "still to be made" in violation
            assert [event.action for event in policy.log.events].count("erase_failed") == 2
            tiers[0].erase_error = None
            await asyncio.sleep(60.0)
            assert (await late.retention_report()).violations == []

    run(play)


def test_running_write_is_erased_and_queued_dropped():
    """An erasure erases what a running write stores, and drops a queued write."""

    async def main(loop):
        disk = ScriptedTier(loop.clock)
        disk.put_s = 1.0
        async with si.EdgeCache(clock=loop.clock, tiers=[disk]) as cache:
            writes = [asyncio.ensure_future(cache.put_through(str(n), n, tags=("t",))) for n in range(3)]
            await asyncio.sleep(0.5)
            outcome = await cache.erase_everywhere(tag="t")
            assert outcome.counts == {"memory": 3, "disk": 1}
            assert await asyncio.gather(*writes) == [True, False, False]
            assert disk.held == {}

    run(main)


def test_stop_ends_waiters_of_an_erasure():
    """A stop of the cache ends the wait for an erasure, which is completed after the next start."""

    async def main(loop):
        disk = ScriptedTier(loop.clock)
        disk.erase_s = 3600.0
        cache = si.EdgeCache(clock=loop.clock, tiers=[disk])
        await cache.__aenter__()
        erasure = asyncio.ensure_future(cache.erase_everywhere(tag="t"))
        await asyncio.sleep(0.1)
        await cache.__aexit__(RuntimeError, None, None)
        assert "stopped" in (await erasure).failed["disk"]
        disk.erase_s = 0.0
        async with cache:
            await asyncio.sleep(0.1)
            assert cache.tiers.statistics()[0].pending == 0

    run(main)


def test_erase_everywhere_in_another_thread(tmp_path):
    """Another thread can wait for an erasure of the tiers through their event loop or on an event loop of its own."""
    keys = StoredKeys(":memory:", master=b"m" * 32)

    async def main():
        async with si.EdgeCache(tiers=[DiskTier(tmp_path / "c", max_bytes=2**22, keys=keys)]) as cache:
            await cache.put_through("k", 1, subject="anna")
            home = asyncio.get_running_loop()

            def wait():
                return asyncio.run_coroutine_threadsafe(cache.erase_everywhere(subject="anna"), home).result()

            outcome = await asyncio.to_thread(wait)
            assert (outcome.complete, outcome.counts) == (True, {"memory": 1, "disk": 1})
            assert await asyncio.to_thread(cache.erase, subject="anna") == 0

            found = []

            def elsewhere():
                async def other():
                    found.append(await cache.erase_everywhere(subject="anna"))
                    with pytest.raises(RuntimeError, match="another event loop"):
                        await cache.__aenter__()
                    assert not cache.tiers.run_here

                asyncio.run(other())

            thread = threading.Thread(target=elsewhere)
            thread.start()
            await asyncio.to_thread(thread.join)
            assert (found[0].counts, found[0].complete) == ({"memory": 0, "disk": 0}, True)

    asyncio.run(main())


def test_tiers_register_erasure_before_memory_erases():
    """Tiers register an erasure before memory is erased, and begin it afterwards."""

    async def main(loop):
        disk = ScriptedTier(loop.clock)
        async with si.EdgeCache(clock=loop.clock, tiers=[disk]) as cache:
            await cache.put_through("k", 1, subject="anna")
            (worker,) = cache.tiers.workers
            seen = []
            erased = mock.Mock(side_effect=lambda *_: seen.append([it.subject for it in worker.erasures.pending]) or 5)
            with mock.patch.object(type(cache._memory), "erase", erased):
                begun = cache.tiers.erase("anna", None)
            assert (seen, begun.in_memory) == ([["anna"]], 5)
            assert (await begun.wait()).counts == {"memory": 5, "disk": 1}
            disk.held["k"] = Entry(value=1, stored_ns=0, subject="anna")
            erasing = PendingErasure("anna", None, ["disk"])
            worker.erasures.add(erasing)
            worker._wake.set()
            await asyncio.sleep(1.0)
            assert "k" in disk.held
            erasing.arm(0)
            worker.begin(erasing)
            await asyncio.sleep(1.0)
            assert "k" not in disk.held

    run(main)


SUBJECTS = st.sampled_from(["anna", "bert"])
DELAYS = st.sampled_from([0.0, 0.3, 1.0, 4.0, 7.0])


class Interleavings(RuleBasedStateMachine):
    """Random order of requests, writes, erasures and failures.

    A value is the instant at which its computation, or the call of `put_through` that stored it, began."""

    def __init__(self):
        super().__init__()
        self.loop = VirtualLoop()
        asyncio.set_event_loop(self.loop)
        clock = self.loop.clock
        self.tiers = [ScriptedTier(clock), ScriptedTier(clock, "redis", shared=True, on_disk=False)]
        self.cache = si.EdgeCache(clock=clock, tiers=self.tiers, ttl_s=20.0, stale_s=10.0)
        machine = self

        class Model:
            fingerprint = "model"
            after_s = 0.5

            async def call(self, request):
                began = machine.loop.now_ns
                await asyncio.sleep(self.after_s)
                return si.Response(began)

        self.model = Model()
        self.service = self.cache.wrap(self.model)
        self.erasures = []
        self.tasks = []
        self.up = False
        self.flip()

    def play(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    @rule(subject=SUBJECTS, key=st.integers(0, 3))
    def ask(self, subject, key):
        request = si.Request(float(key), subject=subject, tags=("t" + subject,))
        self.tasks.append(self.loop.create_task(self.service.call(request)))
        self.play(asyncio.sleep(0))

    @rule(subject=SUBJECTS)
    def bring(self, subject):
        put = self.cache.put_through("own" + subject, self.loop.now_ns, subject=subject, tags=("t" + subject,))
        self.tasks.append(self.loop.create_task(put))
        self.play(asyncio.sleep(0))

    @rule(seconds=st.sampled_from([1e-6, 0.1, 0.4, 1.0, 5.0, 12.0]))
    def wait(self, seconds):
        self.play(asyncio.sleep(seconds))

    @rule(subject=SUBJECTS, by_tag=st.booleans())
    def erase(self, subject, by_tag):
        async def begin():
            asked = {"tag": "t" + subject} if by_tag else {"subject": subject}
            erasing = asyncio.ensure_future(self.cache.erase_everywhere(**asked))
            await asyncio.sleep(0)
            return erasing

        self.play(asyncio.sleep(1e-6))
        self.erasures.append((subject, self.loop.now_ns, self.play(begin())))
        self.play(asyncio.sleep(1e-6))

    @rule(which=st.integers(0, 1), get_s=DELAYS, put_s=DELAYS, erase_s=DELAYS, fails=st.booleans())
    def upset(self, which, get_s, put_s, erase_s, fails):
        tier = self.tiers[which]
        tier.get_s, tier.put_s, tier.erase_s = min(get_s, 1.0), put_s, erase_s
        tier.erase_error = BackendError("upset") if fails else None

    @rule()
    def forget_memory(self):
        for key in list(self.cache):
            del self.cache[key]

    @rule()
    def flip(self):
        if self.up:
            self.play(self.service.stop(drain=True))
        else:
            self.play(self.service.start())
        self.up = not self.up

    def values_of(self, subject, where):
        if where == "memory":
            labels = self.cache._memory.contents()[::4]
            assert all(label is not None for label in labels)
            return [v for k, v in self.cache.items() if isinstance(v, int) and self.whose(k) == subject]
        return [it.value for it in where.held.values() if it.subject == subject]

    def whose(self, key):
        if isinstance(key, str):
            return key.removeprefix("own")
        for subject in ("anna", "bert"):
            for number in range(4):
                asked = si.Request(float(number), subject=subject, tags=("t" + subject,))
                if self.service.key_of(asked) == key:
                    return subject
        raise AssertionError(key)

    @invariant()
    def what_was_erased_is_nowhere(self):
        for subject, at_ns, erasure in self.erasures:
            assert all(value >= at_ns for value in self.values_of(subject, "memory"))
            if erasure.done() and erasure.result().complete:
                for tier in self.tiers:
                    assert all(value >= at_ns for value in self.values_of(subject, tier)), (tier.name, at_ns)

    def teardown(self):
        for tier in self.tiers:
            tier.get_s = tier.put_s = tier.erase_s = 0.0
            tier.erase_error = None
        if not self.up:
            self.flip()
        self.play(asyncio.sleep(60.0))
        for subject, at_ns, _ in self.erasures:  # also erasures that failed, or that found the tiers stopped
            for tier in self.tiers:
                assert all(value >= at_ns for value in self.values_of(subject, tier))
        assert [it.pending for it in self.cache.tiers.statistics()] == [0, 0]
        self.flip()
        assert all(task.done() for task in self.tasks)
        for task in self.tasks:
            task.exception()
        assert all(erasure.done() for _, _, erasure in self.erasures)
        asyncio.set_event_loop(None)
        self.loop.close()


Interleavings.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestInterleavings = Interleavings.TestCase


@pytest.mark.parametrize("stale", [False, True])
def test_value_read_before_erasure_is_not_served(stale):
    """A value that a tier read before an erasure is not served after it."""

    async def main(loop):
        disk, redis = ScriptedTier(loop.clock), ScriptedTier(loop.clock, "redis")
        cache = si.EdgeCache(clock=loop.clock, ttl_s=10.0, stale_s=10.0, tiers=[disk, redis])
        model = Model()
        request = si.Request(1, subject="anna")
        async with si.Stack(cache, model, clock=loop.clock) as service:
            await service.call(request)
            await asyncio.sleep(12.0 if stale else 0.1)
            cache.clear()
            (redis if stale else disk).get_s = 0.5  # its read begins before the erasure and ends after it
            call = asyncio.ensure_future(service.call(request))
            fetch = asyncio.ensure_future(cache.fetch(next(iter(disk.held))))
            await asyncio.sleep(0.1)
            assert (await cache.erase_everywhere(subject="anna")).complete
            late = asyncio.ensure_future(service.call(request))
            assert [(await each).source for each in (call, late)] == ["model", "model"]
            assert await fetch is None
            assert model.asked == 3
            assert sum(each.discarded for each in cache.tiers.statistics()) == 2

    run(main)


@pytest.mark.parametrize("selection", [{"subject": "anna"}, {"tag": "t"}])
def test_value_read_during_erasure_is_not_served(selection):
    """A value that a tier reads while its erasure is running is not served afterwards."""

    async def main(loop):
        disk = ScriptedTier(loop.clock)
        async with si.EdgeCache(clock=loop.clock, tiers=[disk]) as cache:
            for key, subject in [("k", "anna"), ("other", "ben")]:
                assert await cache.put_through(key, 1, subject=subject, tags=["t"] if subject == "anna" else [])
            cache.clear()
            disk.erase_s, disk.get_s = 0.2, 0.3
            erasure = asyncio.ensure_future(cache.erase_everywhere(**selection))
            await asyncio.sleep(0.1)
            reads = [asyncio.ensure_future(cache.fetch(key)) for key in ("k", "other")]
            assert (await erasure).complete
            assert disk.held.keys() == {"other"}
            assert await asyncio.gather(*reads) == [None, 1]

    run(main)


def test_erasure_ends_with_tiers_on_a_closed_loop():
    """An erasure ends, and reports the tier as failed, if the event loop of the tiers was closed."""
    clock = FakeClock()
    disk = ScriptedTier(clock)
    cache = si.EdgeCache(clock=clock, tiers=[disk])

    async def lose():
        await cache.__aenter__()  # without __aexit__
        cache.put("k", 1, subject="anna")

    asyncio.run(lose())
    erased = asyncio.run(cache.erase_everywhere(subject="anna"))
    assert erased.counts == {"memory": 1}
    assert "does not run" in erased.failed["disk"]

    async def later():
        assert "disk" in (await cache.erase_everywhere(subject="ben")).failed
        with pytest.raises(RuntimeError, match="not stopped before their event loop was closed"):
            await cache.__aenter__()

    asyncio.run(later())


def test_erase_does_not_wait_for_a_stopped_event_loop():
    loop = VirtualLoop()
    cache = si.EdgeCache(clock=loop.clock, tiers=[ScriptedTier(loop.clock)])
    try:
        loop.run_until_complete(cache.__aenter__())
        assert cache.erase(subject="anna") == 0
        assert cache.tiers.statistics()[0].pending == 1
        loop.run_until_complete(asyncio.sleep(1.0))
        assert cache.tiers.statistics()[0].pending == 0
        loop.run_until_complete(cache.__aexit__(None, None, None))
    finally:
        loop.close()


@pytest.mark.parametrize("selection", [{"subject": "ben"}, {"tag": "night"}], ids=["subject", "tag"])
def test_erasure_of_other_data_keeps_computations(selection):
    """Callers share a computation or a tier read during which other data is erased, and its result is stored."""

    async def main(loop):
        disk, model = ScriptedTier(loop.clock), Model(after_s=1.0)
        disk.get_s = 0.1
        cache = si.EdgeCache(clock=loop.clock, tiers=[disk])
        request = si.Request(1, subject="anna", tags=("day",))
        async with si.Stack(cache, model, clock=loop.clock) as service:
            calls = []
            for after_s in (0.05, 0.5):  # during the read, and during the computation
                calls.append(asyncio.ensure_future(service.call(request)))
                await asyncio.sleep(after_s)
                await cache.erase_everywhere(**selection)
            await asyncio.gather(*calls, service.call(request))
            assert (model.asked, len(cache), len(disk.held)) == (1, 1, 1)
            cache.clear()
            call = asyncio.ensure_future(service.call(request))
            await asyncio.sleep(0.05)
            await cache.erase_everywhere(**selection)
            assert (await call).source == "disk"
            assert len(cache) == 1

    run(main)

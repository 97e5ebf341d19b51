"""`EdgeCache` against a model of dictionaries and a clock: exact for LRU, by its invariants for S3-FIFO."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streaminfer.caching import EdgeCache
from streaminfer.testing import FakeClock

pytestmark = pytest.mark.uncompiled

KEYS = st.integers(0, 12)
TAGS = st.sampled_from(["a", "b"])
LIMITS = {
    "none": st.just((None, None)),
    "entries": st.tuples(st.integers(1, 8), st.none()),
    "bytes": st.tuples(st.none(), st.integers(5, 40)),
    "both": st.tuples(st.integers(1, 8), st.integers(5, 40)),
    "a share for failures": st.just((34, 40)),
}
MISSING = object()
FRESH, STALE, FAILURE = 1, 2, 3


class Entry:
    def __init__(self, value, size, until, gone_at, labels, failure):
        self.value, self.size, self.until, self.gone_at = value, size, until, gone_at
        self.labels, self.failure = labels, failure

    def state(self, now):
        return FAILURE if self.failure else FRESH if self.until > now else STALE


class Machine(RuleBasedStateMachine):
    eviction = "lru"

    @initialize(
        limits=st.sampled_from(sorted(LIMITS)).flatmap(LIMITS.get),
        stale_s=st.sampled_from([0.0, 3.0]),
    )
    def start(self, limits, stale_s):
        self.clock = FakeClock(10**9)
        self.maxsize, self.max_bytes = limits
        self.stale_ns = round(stale_s * 1e9)
        self.cache = EdgeCache(
            maxsize=self.maxsize,
            max_bytes=self.max_bytes,
            ttl_s=10.0,
            stale_s=stale_s,
            negative_ttl_s=6.0,
            eviction=self.eviction,
            clock=self.clock,
        )
        self.entries = {}  # least recently used first
        self.events = []
        self.cache.listen(self.events.append)
        self.lookups = [0, 0, 0, 0]
        self.refused = 0

    def purge(self):
        now = self.clock.now_ns
        self.entries = {key: entry for key, entry in self.entries.items() if entry.gone_at > now}

    def those(self, state):
        now = self.clock.now_ns
        return {key: entry for key, entry in self.entries.items() if entry.state(now) == state and entry.gone_at > now}

    def over(self, entries):
        return (self.maxsize is not None and len(entries) > self.maxsize) or (
            self.max_bytes is not None and sum(entry.size for entry in entries.values()) > self.max_bytes
        )

    def held(self):
        """Return labels and state by key; the labels contain the key."""
        self.cache.expire()
        held = self.cache._memory.contents()
        states = {0: FRESH, 1: FRESH, 2: STALE, 3: FAILURE}  # by queue
        return {int(labels[1][1]): (labels, states[queue]) for labels, queue in zip(held[::4], held[3::4], strict=True)}

    def after_a_newcomer(self, newcomer):
        """Check that each eviction was necessary and in order, and remove the evicted entries from the model."""
        now = self.clock.now_ns
        held = self.held()
        gone = {key: entry for key, entry in self.entries.items() if key not in held}
        assert newcomer not in gone or self.entries[newcomer].failure
        assert not gone or self.over(self.entries)
        fresh = list(self.those(FRESH))
        for key in gone:
            del self.entries[key]
        assert not self.over(self.entries)
        went = [key for key in fresh if key in gone]
        if went:
            assert not self.those(STALE)
            failures = self.those(FAILURE)
            if self.maxsize is not None:
                assert len(failures) <= max(self.maxsize // 16, 1)
            if self.max_bytes is not None and len(failures) > 0:
                assert sum(entry.size for entry in failures.values()) <= max(self.max_bytes // 16, 1)
            if self.eviction == "lru":
                assert went == fresh[: len(went)]
        elif any(entry.state(now) == FAILURE for entry in gone.values()):
            assert not self.those(STALE)

    @rule(key=KEYS, size=st.integers(0, 12), ttl=st.sampled_from([None, 1.0, 5.0, 200.0]), tag=TAGS)
    def put(self, key, size, ttl, tag):
        now = self.clock.now_ns
        self.purge()
        value = object()
        until = now + round((10.0 if ttl is None else ttl) * 1e9)
        kept = self.cache.put(key, value, size=size, ttl_s=ttl, tags=(tag, f"{key}"), subject=f"s{key % 3}")
        assert kept == (self.max_bytes is None or size <= self.max_bytes)
        self.refused += not kept
        self.entries.pop(key, None)
        if kept:
            labels = (f"s{key % 3}", (tag, f"{key}"))
            self.entries[key] = Entry(value, size, until, until + self.stale_ns, labels, False)
        self.after_a_newcomer(key)

    @rule(key=KEYS, size=st.integers(0, 12), ttl=st.sampled_from([None, 1.0]), tag=TAGS)
    def put_negative(self, key, size, ttl, tag):
        now = self.clock.now_ns
        self.purge()
        value = b"e" * size
        kept = self.cache.put_negative(key, value, ttl_s=ttl, tags=(tag, f"{key}"), subject=f"s{key % 3}")
        fits = self.max_bytes is None or size <= self.max_bytes
        self.refused += not fits
        before = self.entries.get(key)
        assert kept == (fits and (before is None or before.failure))
        if kept:
            until = now + round((6.0 if ttl is None else ttl) * 1e9)
            self.entries.pop(key, None)
            self.entries[key] = Entry(value, size, until, until, (f"s{key % 3}", (tag, f"{key}")), True)
        self.after_a_newcomer(key)

    @rule(key=KEYS)
    def get(self, key):
        fresh = self.those(FRESH)
        found = self.cache.get(key, MISSING)
        assert found is (fresh[key].value if key in fresh else MISSING)
        if key in fresh:
            self.entries[key] = self.entries.pop(key)
        self.lookups[0 if key in fresh else 1] += 1

    @rule(key=KEYS)
    def look_up(self, key):
        now = self.clock.now_ns
        self.purge()
        entry = self.entries.get(key)
        expected = (0, None) if entry is None else (entry.state(now), entry.value)
        assert self.cache._memory.lookup(key, now)[:2] == expected
        if expected[0] == FRESH:
            self.entries[key] = self.entries.pop(key)
        self.lookups[(1, 0, 2, 3)[expected[0]]] += 1

    @rule(key=KEYS)
    def peek_and_contains(self, key):
        fresh = self.those(FRESH)
        assert self.cache.peek(key, MISSING) is (fresh[key].value if key in fresh else MISSING)
        assert (key in self.cache) == (key in fresh)

    @rule(key=KEYS)
    def delete(self, key):
        fresh = self.those(FRESH)
        assert self.cache.pop(key, MISSING) is (fresh[key].value if key in fresh else MISSING)
        if key in fresh:
            del self.entries[key]

    @rule()
    def popitem(self):
        fresh = self.those(FRESH)
        if not fresh:
            with pytest.raises(KeyError):
                self.cache.popitem()
            return
        key, value = self.cache.popitem()
        assert fresh[key].value is value
        if self.eviction == "lru":
            assert key == next(iter(fresh))
        del self.entries[key]

    @rule(seconds=st.sampled_from([1e-9, 0.5, 1.0, 4.0, 9.999999999, 30.0, 300.0]))
    def time_passes(self, seconds):
        self.clock.advance(seconds)

    @rule(most=st.integers(0, 3))
    def expire_due(self, most):
        now = self.clock.now_ns
        self.purge()
        due_ns = self.cache._memory.expire_due(now, most)
        assert due_ns >= now
        assert due_ns <= min(
            (entry.until if entry.until > now else entry.gone_at for entry in self.entries.values()), default=2**63 - 1
        )

    @rule(tag=TAGS)
    def erase_a_tag(self, tag):
        self.purge()
        gone = [key for key, entry in self.entries.items() if tag in entry.labels[1]]
        assert self.cache.erase(tag=tag) == len(gone)
        for key in gone:
            del self.entries[key]

    @rule(subject=st.sampled_from(["s0", "s1", "s2"]))
    def erase_a_subject(self, subject):
        self.purge()
        gone = [key for key, entry in self.entries.items() if entry.labels[0] == subject]
        assert self.cache.erase(subject=subject) == len(gone)
        for key in gone:
            del self.entries[key]

    @rule()
    def clear(self):
        self.cache.clear()
        self.entries = {}

    @invariant()
    def the_same(self):
        if not hasattr(self, "cache"):
            return
        now = self.clock.now_ns
        self.purge()
        fresh = self.those(FRESH)
        seen = self.cache.statistics()
        assert len(self.cache) == seen.entries == len(fresh)
        assert self.cache.size == seen.size == sum(entry.size for entry in fresh.values())
        assert seen.stale == len(self.those(STALE))
        assert seen.negative == len(self.those(FAILURE))
        assert seen.held_bytes == sum(entry.size for entry in self.entries.values())
        assert dict(self.cache.items()) == {key: entry.value for key, entry in fresh.items()}
        assert self.held() == {key: (entry.labels, entry.state(now)) for key, entry in self.entries.items()}
        if self.eviction == "lru":
            assert list(self.cache) == list(fresh)
        assert seen.inserted == (
            seen.entries + seen.stale + seen.negative + seen.evicted + seen.expired + seen.erased + seen.removed
        )
        kinds = [event.kind for event in self.events]
        assert (kinds.count("evicted"), kinds.count("expired"), kinds.count("erased")) == (
            seen.evicted,
            seen.expired,
            seen.erased,
        )
        assert [seen.hits, seen.misses, seen.stale_hits, seen.negative_hits] == self.lookups
        assert seen.rejected == self.refused


class S3FifoMachine(Machine):
    eviction = "s3fifo"


Machine.TestCase.settings = S3FifoMachine.TestCase.settings = settings(
    max_examples=50, stateful_step_count=40, deadline=None
)
TestLru = Machine.TestCase
TestS3Fifo = S3FifoMachine.TestCase

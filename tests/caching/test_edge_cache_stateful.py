"""EdgeCache against a model of dictionaries and a clock: LRU exactly, S3-FIFO by what always holds."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streaminfer.caching import EdgeCache
from streaminfer.testing import FakeClock

pytestmark = pytest.mark.uncompiled

KEYS = st.integers(0, 12)
MISSING = object()


class Model:
    """Entries as [value, size, fresh until, gone at, labels, kind]; oldest use first."""

    def __init__(self):
        self.entries = {}

    def fresh(self, now):
        return {k: e for k, e in self.entries.items() if e[2] > now and e[5] == "value"}


class Machine(RuleBasedStateMachine):
    @initialize(
        maxsize=st.one_of(st.none(), st.integers(1, 8)),
        max_bytes=st.one_of(st.none(), st.integers(5, 40)),
        stale_s=st.sampled_from([0.0, 3.0]),
        eviction=st.sampled_from(["lru", "s3fifo"]),
    )
    def start(self, maxsize, max_bytes, stale_s, eviction):
        self.clock = FakeClock(10**9)
        self.maxsize, self.max_bytes, self.eviction = maxsize, max_bytes, eviction
        self.stale_ns = round(stale_s * 1e9)
        self.cache = EdgeCache(
            maxsize=maxsize, max_bytes=max_bytes, ttl_s=10.0, stale_s=stale_s, eviction=eviction, clock=self.clock
        )
        self.model = Model()
        self.events = []
        self.cache.listen(self.events.append)
        self.lookups = [0, 0]

    def purge(self):
        """What is past its stale time has gone; what has just become stale goes before what is fresh."""
        now = self.clock.now_ns
        self.model.entries = {k: e for k, e in self.model.entries.items() if e[3] > now}

    @rule(key=KEYS, size=st.integers(0, 12), ttl=st.sampled_from([None, 1.0, 5.0]), tag=st.sampled_from(["a", "b"]))
    def put(self, key, size, ttl, tag):
        now = self.clock.now_ns
        self.purge()
        value = object()
        until = now + round((10.0 if ttl is None else ttl) * 1e9)
        kept = self.cache.put(key, value, size=size, ttl_s=ttl, tags=(tag,), subject=f"s{key % 3}")
        entries = self.model.entries
        assert kept == (self.max_bytes is None or size <= self.max_bytes)
        entries.pop(key, None)
        if kept:
            entries[key] = [value, size, until, until + self.stale_ns, (f"s{key % 3}", tag), "value"]
        if self.eviction == "lru" and not self.stale_ns:
            while self.over(entries):
                del entries[next(iter(entries))]
        else:  # whoever went, it was necessary, and nothing fresh went before what was stale
            held = {k: self.cache.lookup(k, now) for k in list(entries)}
            states = {k: state for k, (state, _) in held.items()}
            self.lookups = None
            gone = [k for k, state in states.items() if state == 0]
            assert key not in gone or not kept
            if any(entries[k][2] > now for k in gone):
                assert not any(state == 2 for state in states.values())
            for k in gone:
                del entries[k]
            for k, state in states.items():
                if state == 1 and self.eviction == "lru":
                    entries[k] = entries.pop(k)
            assert not self.over(entries)

    def over(self, entries):
        return (self.maxsize is not None and len(entries) > self.maxsize) or (
            self.max_bytes is not None and sum(e[1] for e in entries.values()) > self.max_bytes
        )

    @rule(key=KEYS)
    def get(self, key):
        fresh = self.model.fresh(self.clock.now_ns)
        found = self.cache.get(key, MISSING)
        assert found is (fresh[key][0] if key in fresh else MISSING)
        if key in fresh:
            self.model.entries[key] = self.model.entries.pop(key)
        if self.lookups is not None:
            self.lookups[key not in fresh] += 1

    @rule(key=KEYS)
    def peek_and_contains(self, key):
        fresh = self.model.fresh(self.clock.now_ns)
        assert self.cache.peek(key, MISSING) is (fresh[key][0] if key in fresh else MISSING)
        assert (key in self.cache) == (key in fresh)

    @rule(key=KEYS)
    def delete(self, key):
        fresh = self.model.fresh(self.clock.now_ns)
        assert self.cache.pop(key, MISSING) is (fresh[key][0] if key in fresh else MISSING)
        if key in fresh:
            del self.model.entries[key]

    @rule()
    def popitem(self):
        now = self.clock.now_ns
        fresh = self.model.fresh(now)
        if not fresh:
            with pytest.raises(KeyError):
                self.cache.popitem()
            return
        key, value = self.cache.popitem()
        assert fresh[key][0] is value
        if self.eviction == "lru":
            assert key == next(iter(fresh))
        del self.model.entries[key]

    @rule(seconds=st.sampled_from([1e-9, 0.5, 1.0, 4.0, 9.999999999, 30.0]))
    def time_passes(self, seconds):
        self.clock.advance(seconds)

    @rule(tag=st.sampled_from(["a", "b"]))
    def erase_a_tag(self, tag):
        self.purge()
        gone = [k for k, e in self.model.entries.items() if tag in e[4]]
        assert self.cache.erase(tag=tag) == len(gone)
        for k in gone:
            del self.model.entries[k]

    @rule(subject=st.sampled_from(["s0", "s1", "s2"]))
    def erase_a_subject(self, subject):
        self.purge()
        gone = [k for k, e in self.model.entries.items() if e[4][0] == subject]
        assert self.cache.erase(subject=subject) == len(gone)
        for k in gone:
            del self.model.entries[k]

    @rule()
    def clear(self):
        self.cache.clear()
        self.model.entries = {}

    @invariant()
    def the_same(self):
        if not hasattr(self, "cache"):
            return
        now = self.clock.now_ns
        self.purge()
        fresh = self.model.fresh(now)
        seen = self.cache.statistics()
        assert len(self.cache) == seen.entries == len(fresh)
        assert self.cache.size == seen.size == sum(e[1] for e in fresh.values())
        assert seen.stale == len(self.model.entries) - len(fresh)
        assert seen.held_bytes == sum(e[1] for e in self.model.entries.values())
        assert dict(self.cache.items()) == {k: e[0] for k, e in fresh.items()}
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
        if self.lookups is not None:
            assert [seen.hits, seen.misses] == self.lookups


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestEdgeCache = Machine.TestCase

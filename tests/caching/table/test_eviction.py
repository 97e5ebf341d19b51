"""S3-FIFO in this implementation: entries that it retains, but LRU or the paper's fixed shares would evict."""

import random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.caching import EdgeCache
from streaminfer.caching.table._slots_cy import MAIN, SMALL
from streaminfer.caching.table.eviction import Eviction
from streaminfer.testing import FakeClock

pytestmark = pytest.mark.uncompiled

LIMITS = {"entries": {"maxsize": 100}, "bytes": {"max_bytes": 1_000}, "both": {"maxsize": 100, "max_bytes": 1_000}}


def hits(trace, eviction="s3fifo", **limits):
    cache = EdgeCache(eviction=eviction, **limits)
    for key in trace:
        if cache.get(key) is None:
            cache.put(key, True, size=10)
    return cache.statistics().hits


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_s3fifo_keeps_hits_in_a_loop_beyond_capacity(limits):
    """A loop over more keys than fit has no hits with LRU, but S3-FIFO retains part of the keys."""
    loop = [number % 1_000 for number in range(5_000)]
    assert hits(loop, "lru", **limits) == 0
    assert hits(loop, **limits) >= 4 * 85


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_small_queue_grows_for_keys_that_return_late(limits):
    """The small queue grows if keys return late and only once."""
    rng = random.Random(5)
    trace = [
        rng.randrange(80) if rng.random() < 0.5 else 80 + number // 6 + rng.randrange(40) for number in range(20_000)
    ]
    assert hits(trace, **limits) >= 0.985 * hits(trace, "lru", **limits)


def test_small_queue_shrinks_for_one_time_keys():
    """The small queue shrinks if new keys do not return."""
    rng = random.Random(6)
    trace = [rng.randrange(93) if rng.random() < 0.5 else 1_000 + number for number in range(40_000)]
    assert hits(trace, maxsize=100) >= 18_500


@pytest.mark.parametrize(
    "limits",
    [
        {"maxsize": 100},
        {"max_bytes": 1_000},
        {"maxsize": 100, "max_bytes": 10**9},
        {"maxsize": 10**6, "max_bytes": 1_000},
    ],
    ids=["entries", "bytes", "both, entries count", "both, bytes count"],
)
def test_scan_does_not_evict_frequent_entries(limits):
    cache = EdgeCache(**limits, eviction="s3fifo")
    for _ in range(3):
        for key in range(80):
            if cache.get(key) is None:
                cache.put(key, key, size=10)
    for key in range(1_000, 3_000):
        cache.put(key, key, size=10)
    assert sum(key in cache for key in range(80)) == 80


def test_main_queue_refills_after_it_was_emptied():
    cache = EdgeCache(maxsize=100, eviction="s3fifo")
    for key in range(200):
        cache[key] = key
    for key in list(cache):
        del cache[key]
    loop = [number % 1_000 for number in range(3_000)]
    found = 0
    for key in loop:
        found += cache.get(("again", key)) is not None
        cache.setdefault(("again", key), key)
    assert found >= 2 * 85


def test_stored_failures_take_no_room_from_main():
    cache = EdgeCache(maxsize=100, eviction="s3fifo", negative_ttl_s=60.0)
    for key in range(3):
        cache.put_negative(("failure", key), OSError())
    for _ in range(3):
        for key in range(80):
            cache.setdefault(key, key)
    for key in range(1_000, 1_500):
        cache[key] = key
    for key in range(3):
        cache.put_negative(("another", key), OSError())
    for key in range(2_000, 3_000):
        cache[key] = key
    assert sum(key in cache for key in range(80)) >= 77, "three more failures took the place of three"


@pytest.mark.parametrize("eviction", get_args(Eviction))
@given(steps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=60), room=st.integers(1, 3))
def test_new_entry_is_not_evicted_to_make_its_own_room(eviction, steps, room):
    cache = EdgeCache(maxsize=room, max_bytes=8, eviction=eviction)
    for key, size in steps:
        cache.get(key)
        assert cache.put(key, key, size=size)
        assert cache.peek(key) == key


@pytest.mark.parametrize("eviction", get_args(Eviction))
@pytest.mark.parametrize("limits", [{"maxsize": 80}, {"max_bytes": 800}], ids=["count", "bytes"])
def test_a_full_cache_keeps_the_latest_stale_entries(eviction, limits):
    """Stale entries may fill all the room, but only an eighth of it if fresh entries need room; the latest stay."""
    clock = FakeClock(10**9)
    cache = EdgeCache(ttl_s=10.0, stale_s=60.0, clock=clock, eviction=eviction, **limits)
    for key in range(80):
        cache.put(key, key, size=10)
        clock.advance(0.01)
    clock.advance(10.0)
    assert cache.statistics().stale == 80
    for key in range(100, 300):
        cache.put(key, key, size=10)

    seen = cache.statistics()

    assert (seen.stale, seen.entries) == (10, 70)
    assert {key for key in range(80) if cache._memory.lookup(key, clock())[0]} == set(range(70, 80))


def test_a_stale_entry_that_is_stored_again_is_in_main():
    """S3-FIFO promotes an entry that is stored again after its expiry, as it promotes an entry with a hit."""
    clock = FakeClock(10**9)
    cache = EdgeCache(ttl_s=10.0, stale_s=60.0, clock=clock, eviction="s3fifo")
    cache["a"] = 1
    clock.advance(10.0)
    cache.expire()
    cache["a"] = cache["b"] = 2

    assert cache._memory.contents()[3::4] == [MAIN, SMALL]


def test_stale_entries_do_not_keep_main_from_filling():
    """Frequent entries fill the main queue and survive a scan while an eighth of the room is stale."""
    clock = FakeClock(10**9)
    cache = EdgeCache(maxsize=100, ttl_s=1000.0, stale_s=1000.0, clock=clock, eviction="s3fifo")
    for key in range(12):
        cache.put(("stale", key), key, ttl_s=1.0)
    clock.advance(1.0)
    for _ in range(3):
        for key in range(78):
            cache.setdefault(key, key)
    for key in range(1_000, 3_000):
        cache[key] = key

    assert cache.statistics().stale == 12
    assert sum(key in cache for key in range(78)) >= 77


def test_held_entries_have_labels_and_queues():
    clock = FakeClock(10**9)
    cache = EdgeCache(ttl_s=1.0, stale_s=5.0, negative_ttl_s=100.0, clock=clock)
    told = []
    cache.listen(told.append)
    cache.put("a", 1, subject="s", tags=("x",))
    cache["b"] = 2
    clock.advance(1.0)
    cache.put("c", 3, tags=("y",))
    cache.put_negative("d", "error", subject="z")
    cache.expire()
    held = cache._memory.contents()
    assert sorted(zip(held[::4], held[3::4], strict=True), key=repr) == [
        (("s", ("x",)), 2),
        (("z", ()), 3),
        ((None, ("y",)), 0),
        (None, 2),
    ]
    cache.erase(subject="s")
    clock.advance(300.0)
    cache.expire()
    assert sorted((event.kind, event.key, event.labels) for event in told) == [
        ("erased", "a", ("s", ("x",))),
        ("expired", "b", None),
        ("expired", "c", (None, ("y",))),
        ("expired", "d", ("z", ())),
    ]


def test_eviction_events_have_the_labels():
    cache = EdgeCache(max_bytes=10)
    told = []
    cache.listen(told.append)
    for key in range(3):
        cache.put(key, key, size=3, tags=(f"t{key}",))
    cache.put("large", 0, size=10)  # evicts several at once
    assert [(event.key, event.labels) for event in told] == [(key, (None, (f"t{key}",))) for key in range(3)]

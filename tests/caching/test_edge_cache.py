"""Examples of `EdgeCache`: arguments, states, re-entrancy, threads, listeners, expiry."""

import copy
import gc
import os
import sys
import threading
import weakref

import numpy as np
import pytest

from streaminfer._internal.locking import is_atomic
from streaminfer.caching import EdgeCache, expiry
from streaminfer.caching._locking import guarded, guarded_mapping
from streaminfer.caching.table._mapping_cy import TableMapping
from streaminfer.caching.table._table_cy import EdgeTable
from streaminfer.caching.weigher import payload_bytes
from streaminfer.testing import FakeClock

pytestmark = pytest.mark.uncompiled

ATOMIC = is_atomic(EdgeTable, "peek")


@pytest.fixture
def clock():
    return FakeClock(1_000)


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"maxsize": 0}, ValueError, "maxsize"),
        ({"maxsize": 1.5}, TypeError, "maxsize"),
        ({"max_bytes": -1}, ValueError, "max_bytes"),
        ({"ttl_s": 0}, ValueError, "ttl_s"),
        ({"ttl_s": float("nan")}, ValueError, "ttl_s"),
        ({"stale_s": -1}, ValueError, "stale_s"),
        ({"negative_ttl_s": "1"}, TypeError, "negative_ttl_s"),
        ({"eviction": "lfu"}, ValueError, "eviction"),
        ({"retention": 1}, TypeError, "retention"),
        ({"tiers": 1}, TypeError, "tiers: expected several"),
        ({"tiers": [{}]}, TypeError, "tiers"),
        ({"clock": 1}, TypeError, "clock"),
    ],
)
def test_a_bad_argument_is_named(arguments, error, name):
    with pytest.raises(error, match=name):
        EdgeCache(**arguments)


def test_put_and_erase_check_their_arguments():
    cache = EdgeCache()
    for bad in ({"ttl_s": -1}, {"size": -1}):
        with pytest.raises(ValueError):
            cache.put("k", 1, **bad)
    for bad in ({"subject": 1}, {"tags": "word"}, {"tags": (1,)}):
        with pytest.raises(TypeError):
            cache.put("k", 1, **bad)
    for bad in ({}, {"subject": "a", "tag": "b"}, {"subject": 1}):
        with pytest.raises(TypeError):
            cache.erase(**bad)
    with pytest.raises(TypeError):
        cache[[]] = 1
    with pytest.raises(TypeError):
        copy.copy(cache)
    assert len(cache) == 0


def test_expired_means_now_at_or_past_expiry(clock):
    cache = EdgeCache(ttl_s=1.0, clock=clock)
    cache["k"] = "v"
    clock.now_ns += 10**9 - 1
    assert cache["k"] == "v"
    clock.now_ns += 1
    assert cache.get("k") is None
    assert "k" not in cache
    with pytest.raises(KeyError):
        cache["k"]
    with pytest.raises(KeyError):
        del cache["k"]
    assert list(cache) == []


def test_expired_entry_is_removed_before_a_fresh_one(clock):
    cache = EdgeCache(maxsize=3, clock=clock)
    cache.put("old", 1)
    cache.put("short", 2, ttl_s=1.0)
    cache.put("new", 3)
    clock.advance(1.0)
    cache.put("newer", 4)
    assert sorted(cache) == ["new", "newer", "old"]
    assert cache.statistics().evicted == 0


def test_entry_is_fresh_then_stale_then_gone(clock):
    cache = EdgeCache(ttl_s=1.0, stale_s=2.0, negative_ttl_s=0.5, clock=clock)
    cache["k"] = "v"
    assert cache._memory.lookup("k", clock())[:2] == (1, "v")
    clock.advance(1.0)
    assert cache._memory.lookup("k", clock())[:2] == (2, "v")
    assert len(cache) == 0  # `len` handles due entries: this one becomes stale
    assert cache._memory.lookup("k", clock())[:2] == (2, "v")
    assert not cache.put_negative("k", "error")
    clock.now_ns += 2 * 10**9 - 1
    assert cache._memory.lookup("k", clock())[:2] == (2, "v")
    clock.now_ns += 1
    assert cache._memory.lookup("k", clock())[:2] == (0, None)
    assert cache.expire() == 1
    assert cache.put_negative("k", "error")
    assert cache._memory.lookup("k", clock())[:2] == (3, "error")
    assert ("k" in cache, len(cache), cache.statistics().negative) == (False, 0, 1)
    clock.advance(0.5)
    assert cache._memory.lookup("k", clock())[:2] == (0, None)
    cache.put_negative("k", "error")
    cache["k"] = "again"
    assert cache._memory.lookup("k", clock())[:2] == (1, "again")
    seen = cache.statistics()
    assert (seen.hits, seen.stale_hits, seen.negative_hits, seen.misses) == (2, 3, 1, 2)


def test_array_size_is_that_of_its_base_buffer():
    """The size of a view is the size of the whole buffer that it keeps alive."""
    whole = np.zeros((1000, 10))
    assert payload_bytes(whole[:1]) == payload_bytes(whole) == 80_000
    assert payload_bytes(np.frombuffer(b"12345678")) == 8
    assert payload_bytes(memoryview(b"1234")[:1]) == 4
    assert payload_bytes("aé") == 2
    assert payload_bytes("a€") == 4
    assert payload_bytes([whole, whole[:1]]) == sys.getsizeof([1, 2]) + 80_000
    cache = EdgeCache(max_bytes=160_000)
    for number in range(3):
        cache[number] = np.zeros(10_000)
    assert (list(cache), cache.size) == ([1, 2], 160_000)
    assert not cache.put(1, np.zeros(30_000))
    assert list(cache) == [2]
    assert cache.statistics().rejected == 1


class Meddler:
    """Key that equals every other `Meddler`; its first comparison calls ``act``."""

    def __init__(self, act):
        self.act = act

    def __hash__(self):
        return 7

    def __eq__(self, other):
        act, self.act = self.act, None
        if act is not None:
            act()
        return isinstance(other, Meddler)


@pytest.mark.parametrize("action", ["put many", "delete it", "clear", "get"])
@pytest.mark.parametrize("use", ["get", "set", "delete"])
def test_key_comparison_may_use_the_cache(action, use):
    cache = EdgeCache(maxsize=50)
    held = Meddler(None)
    cache[held] = "held"
    acts = {
        "put many": lambda: [cache.put(number, number) for number in range(100)],
        "delete it": lambda: cache.pop(held, None),
        "clear": cache.clear,
        "get": lambda: cache.get("other"),
    }
    key = Meddler(None)
    held.act = acts[action]  # the lookup calls the stored key's comparison
    gone = action != "get"
    if use == "get":
        assert cache.get(key) == (None if gone else "held")
    elif use == "set":
        cache[key] = "new"
        assert cache[Meddler(None)] == "new"
    elif gone:
        with pytest.raises(KeyError):
            del cache[key]
    else:
        del cache[key]
    seen = cache.statistics()
    assert seen.inserted == seen.entries + seen.evicted + seen.removed
    assert len(list(cache)) == len(cache) == seen.entries <= 50


def test_a_finalizer_may_use_the_cache():
    cache = EdgeCache(maxsize=3)

    class Value:
        def __del__(self):
            if len(cache) < 100:
                cache[object()] = None
                cache.pop("k0", None)

    for number in range(200):
        cache[f"k{number}"] = Value()
    cache.clear()
    seen = cache.statistics()
    assert seen.inserted == seen.entries + seen.evicted + seen.removed
    assert len(cache) <= 3


def test_a_failing_eq_changes_nothing():
    cache = EdgeCache()
    held = Meddler(None)
    cache[held] = 1

    def fail():
        raise OSError

    held.act = fail
    with pytest.raises(OSError):
        cache[Meddler(None)] = 2
    assert list(cache.values()) == [1]


def test_failing_listener_does_not_break_the_cache(caplog):
    cache = EdgeCache(maxsize=2)
    told = []

    def listener(event):
        told.append((event.kind, event.key))
        cache[f"from {event.key}"] = 1  # evicts another
        raise OSError("mine")

    stop = cache.listen(listener)
    for number in range(4):
        cache[number] = number
    assert told[:2] == [("evicted", 0), ("evicted", 1)]
    assert len(cache) == 2
    assert cache.statistics().listener_errors == len(told) > 1
    assert len(caplog.records) == 1
    stop()
    before = len(told)
    cache["x"] = 1
    assert len(told) == before
    with pytest.raises(TypeError):
        cache.listen(1)


def test_concurrent_threads_keep_the_table_consistent():
    cache = EdgeCache(maxsize=64, eviction="s3fifo")
    rounds = 20_000 if ATOMIC else 500
    errors = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def use(seed):
        try:
            for number in range(rounds):
                key = (number * (seed + 3)) % 97
                if cache.get(key) is None:
                    cache[key] = key
                if number % 50 == 0:
                    cache.pop(key, None)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    seen = cache.statistics()
    assert errors == []
    assert seen.hits + seen.misses == 4 * rounds
    assert seen.inserted == seen.entries + seen.evicted + seen.removed
    assert all(key == value for key, value in cache.items())


def test_every_operation_takes_a_lock_where_needed(plain):
    """Where compiled code is not atomic, every method of the table and of the mapping takes a lock."""
    table = plain("caching.table._table_cy").EdgeTable
    mapping = plain("caching.table._mapping_cy").TableMapping
    special = {"__contains__", "__delitem__", "__getitem__", "__len__", "__setitem__"}

    operations = {name for name, it in vars(table).items() if callable(it) and not name.startswith("_")}
    methods = {name for name, it in vars(mapping).items() if callable(it) and not name.startswith("_")}

    assert operations <= set(vars(guarded(table)))
    assert methods | special <= set(vars(guarded_mapping(mapping)))
    assert len(operations) == 21
    assert len(methods) == 5
    assert is_atomic(EdgeTable, "peek") == ATOMIC
    assert not is_atomic(table, "peek")
    assert hasattr(EdgeCache()._memory, "_lock") is not ATOMIC
    assert (TableMapping in EdgeCache.__bases__) == ATOMIC


DOCUMENTED = {
    *(
        "bind_clock",
        "clear",
        "delete",
        "erase",
        "erase_everywhere",
        "erasure_log",
        "expire",
        "fetch",
        "flights",
        "freshness",
        "get",
        "hold",
    ),
    *(
        "items",
        "keys",
        "listen",
        "max_bytes",
        "maxsize",
        "peek",
        "pop",
        "popitem",
        "preserved",
        "put",
    ),
    *("put_negative", "put_through", "release", "retention_report", "setdefault", "size", "statistics"),
    *("tiers", "update", "values", "wrap"),
}


def test_a_cache_shows_its_documented_names_only():
    assert {name for name in dir(EdgeCache()) if not name.startswith("_")} == DOCUMENTED


def test_the_thread_frees_entries_of_an_idle_cache():
    gone = threading.Event()

    class Value:
        pass

    cache = EdgeCache(ttl_s=0.01)
    value = Value()
    weakref.finalize(value, gone.set)
    cache["k"] = value
    del value
    assert gone.wait(timeout=60)
    assert cache.statistics().expired == 1


def test_expiry_thread_that_cannot_start_starts_later(monkeypatch):
    """A cache stores values while no thread can be started, and frees them after a later start of its thread."""
    gone = threading.Event()

    class Value:
        pass

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(expiry, "THREAD", expiry.ExpiryThread())
    cache = EdgeCache(ttl_s=0.01)
    value = Value()
    weakref.finalize(value, gone.set)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        cache["k"] = value
    del value
    cache["later"] = 1
    assert gone.wait(timeout=60)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_process_frees_inherited_entries():
    """A forked process has the entries of its parent, and an expiry thread of its own that frees them."""
    gone = threading.Event()

    class Value:
        pass

    cache = EdgeCache()
    value = Value()
    weakref.finalize(value, gone.set)
    cache.put("k", value, ttl_s=0.2)
    del value
    child = os.fork()
    if child == 0:
        cache.put("later", 1, ttl_s=3600.0)
        os._exit(0 if gone.wait(timeout=20) else 1)
    _, status = os.waitpid(child, 0)

    assert status == 0


def test_the_thread_keeps_no_cache_alive():
    cache = EdgeCache(ttl_s=3600.0)
    cache["k"] = 1
    reference = weakref.ref(cache)
    del cache
    gc.collect()
    assert reference() is None


def test_entries_are_not_traversed_by_the_collector():
    cache = EdgeCache()
    marker = ["held"]
    cache["k"] = marker
    held_by = [type(it) for it in gc.get_referrers(marker) if it is not sys._getframe()]
    assert (list in held_by) is not ATOMIC


def test_hit_rate_is_the_share_of_successful_lookups(clock):
    """The hit rate is the share of lookups that found an entry."""
    cache = EdgeCache(clock=clock)
    assert np.isnan(cache.statistics().hit_rate)
    cache["a"] = 1
    assert [cache.get(key) for key in ("a", "a", "b", "a")] == [1, 1, None, 1]
    assert cache.statistics().hit_rate == 0.75

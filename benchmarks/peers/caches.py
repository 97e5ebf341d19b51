"""Construction and use of each cache, ours and the peers', for benchmarks/run.py cache.

Each cache has a time to live if it supports one; a time per entry is passed with every entry, as users would do.
"""

import importlib.util
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, NamedTuple

TTL_S = 3600.0

Run = Callable[[Iterable[Any], Any], None]


class Contender(NamedTuple):
    """A cache of some size; ``store`` puts one value under many keys, in a loop such as a user writes."""

    cache: Any
    get: Callable[[Any], Any]
    store: Run


def by_item(cache: Any, get: Callable[[Any], Any] | None = None) -> Contender:
    """Return a contender whose cache is used like a mapping."""

    def store(keys: Iterable[Any], value: Any) -> None:
        for key in keys:
            cache[key] = value

    return Contender(cache, get or cache.get, store)


def by_call(cache: Any, put: Callable[[Any, Any], Any]) -> Contender:
    """Return a contender whose cache is filled by a method."""

    def store(keys: Iterable[Any], value: Any) -> None:
        for key in keys:
            put(key, value)

    return Contender(cache, cache.get, store)


def edge_cache(maxsize: int | None, ttl_s: float = TTL_S, eviction: str = "lru") -> Contender:
    from streaminfer.caching import EdgeCache

    return by_item(EdgeCache(maxsize=maxsize, ttl_s=ttl_s, eviction=eviction))


def edge_cache_s3fifo(maxsize: int | None, ttl_s: float = TTL_S) -> Contender:
    return edge_cache(maxsize, ttl_s, "s3fifo")


def cachebox_ttl(maxsize: int | None, ttl_s: float = TTL_S) -> Contender:
    from cachebox import TTLCache

    return by_item(TTLCache(maxsize or 0, ttl_s, sweep_interval=1 if ttl_s < TTL_S else None))


def cachebox_entry_ttl(maxsize: int | None, ttl_s: float = TTL_S) -> Contender:
    from cachebox import VTTLCache

    cache = VTTLCache(maxsize or 0, sweep_interval=1 if ttl_s < TTL_S else None)

    def store(keys: Iterable[Any], value: Any) -> None:
        insert = cache.insert
        for key in keys:
            insert(key, value, ttl_s)

    return Contender(cache, cache.get, store)


def lru_dict(maxsize: int | None, ttl_s: float = TTL_S) -> Contender:  # noqa: ARG001 - LRU has no time to live
    from lru import LRU

    return by_item(LRU(maxsize or 2**30))


def moka(maxsize: int | None, ttl_s: float = TTL_S) -> Contender:
    from moka_py import Moka

    cache = Moka(maxsize or 2**40, ttl=ttl_s)
    return by_call(cache, cache.set)


def cachetools_ttl(maxsize: int | None, ttl_s: float = TTL_S) -> Contender:
    from cachetools import TTLCache

    return by_item(TTLCache(maxsize or 2**40, ttl_s))


def theine(maxsize: int | None, ttl_s: float = TTL_S) -> Contender:
    from theine import Cache

    cache = Cache(maxsize or 2**20)  # theine allocates memory for its whole size at once
    life = timedelta(seconds=ttl_s)
    return by_call(cache, lambda key, value: cache.set(key, value, life))


OURS = {"EdgeCache LRU": edge_cache, "EdgeCache S3-FIFO": edge_cache_s3fifo}
BASELINE = "cachebox TTL"
PEERS = {
    name: make
    for name, package, make in [
        (BASELINE, "cachebox", cachebox_ttl),
        ("cachebox per entry", "cachebox", cachebox_entry_ttl),
        ("lru-dict (no TTL)", "lru", lru_dict),
        ("moka", "moka_py", moka),
        ("cachetools TTL", "cachetools", cachetools_ttl),
        ("theine", "theine", theine),
    ]
    if importlib.util.find_spec(package) is not None
}

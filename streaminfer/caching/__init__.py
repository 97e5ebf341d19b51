"""Answers kept close to who asks: the cache, its keys, single flight, tiers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streaminfer.caching.cache_events import CacheEvent
    from streaminfer.caching.cache_statistics import CacheStatistics
    from streaminfer.caching.edge_cache import EdgeCache
    from streaminfer.caching.flight_shells import FlightStatistics, no_store
    from streaminfer.caching.keys import content_key
    from streaminfer.caching.sweeping import LoopSweep

__all__ = [
    "CacheEvent",
    "CacheStatistics",
    "EdgeCache",
    "FlightStatistics",
    "LoopSweep",
    "content_key",
    "no_store",
]

_HOMES = {
    "CacheEvent": "cache_events",
    "CacheStatistics": "cache_statistics",
    "EdgeCache": "edge_cache",
    "FlightStatistics": "flight_shells",
    "LoopSweep": "sweeping",
    "content_key": "keys",
    "no_store": "flight_shells",
}
"""Who uses one of these does not load the others."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Answers kept close to who asks: the cache, its keys, single flight, tiers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streaminfer.caching.cache_events import CacheEvent
    from streaminfer.caching.cache_statistics import CacheStatistics
    from streaminfer.caching.computing import fresh_for, no_store
    from streaminfer.caching.edge_cache import EdgeCache
    from streaminfer.caching.erasure import Erasure
    from streaminfer.caching.flight_shells import FlightStatistics
    from streaminfer.caching.keys import content_key
    from streaminfer.caching.retention import Holding, Residual, Retention
    from streaminfer.caching.retention_log import (
        RetentionEvent,
        RetentionLog,
        RetentionTotal,
        Verification,
        verify_file,
    )
    from streaminfer.caching.retention_report import ReportedHolding, RetentionReport, build_report

__all__ = [
    "CacheEvent",
    "CacheStatistics",
    "EdgeCache",
    "Erasure",
    "FlightStatistics",
    "Holding",
    "ReportedHolding",
    "Residual",
    "Retention",
    "RetentionEvent",
    "RetentionLog",
    "RetentionReport",
    "RetentionTotal",
    "Verification",
    "build_report",
    "content_key",
    "fresh_for",
    "no_store",
    "verify_file",
]

_HOMES = {
    "CacheEvent": "cache_events",
    "CacheStatistics": "cache_statistics",
    "EdgeCache": "edge_cache",
    "Erasure": "erasure",
    "FlightStatistics": "flight_shells",
    "Holding": "retention",
    "ReportedHolding": "retention_report",
    "Residual": "retention",
    "Retention": "retention",
    "RetentionEvent": "retention_log",
    "RetentionLog": "retention_log",
    "RetentionReport": "retention_report",
    "RetentionTotal": "retention_log",
    "Verification": "retention_log",
    "build_report": "retention_report",
    "content_key": "keys",
    "fresh_for": "computing",
    "no_store": "computing",
    "verify_file": "retention_log",
}
"""Who uses one of these does not load the others."""


if not TYPE_CHECKING:  # type checkers know the names from the block above, and refuse others

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""Caching of responses: the cache, its keys, single flight, tiers."""

from typing import TYPE_CHECKING

from streaminfer._internal.loading.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.caching.edge_cache import EdgeCache
    from streaminfer.caching.erasure.erasure import Erasure
    from streaminfer.caching.keys import content_key
    from streaminfer.caching.memory import CacheEvent, CacheStatistics
    from streaminfer.caching.single_flight.flight_context import fresh_for, no_store
    from streaminfer.caching.single_flight.flights import FlightStatistics
    from streaminfer.compliance.retention import Holding, Residual, Retention
    from streaminfer.compliance.retention_log import RetentionLog, verify_file
    from streaminfer.compliance.retention_report import RetentionReport, build_report

__all__ = [
    "CacheEvent",
    "CacheStatistics",
    "EdgeCache",
    "Erasure",
    "FlightStatistics",
    "Holding",
    "Residual",
    "Retention",
    "RetentionLog",
    "RetentionReport",
    "build_report",
    "content_key",
    "fresh_for",
    "no_store",
    "verify_file",
]

_HOMES = {
    "caching.edge_cache": ["EdgeCache"],
    "caching.erasure.erasure": ["Erasure"],
    "caching.keys": ["content_key"],
    "caching.memory": ["CacheEvent", "CacheStatistics"],
    "caching.single_flight.flight_context": ["fresh_for", "no_store"],
    "caching.single_flight.flights": ["FlightStatistics"],
    "compliance.retention": ["Holding", "Residual", "Retention"],
    "compliance.retention_log": ["RetentionLog", "verify_file"],
    "compliance.retention_report": ["RetentionReport", "build_report"],
}


if not TYPE_CHECKING:  # type checkers take the names from the block above and reject others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)

"""Tiers below memory: a folder on this machine's disk, and a Redis or Valkey server that a site shares."""

import importlib
from typing import TYPE_CHECKING, Any

from streaminfer.caching.tiers.protocol import Entry, RecordCopy, Tier, TierStatistics

if TYPE_CHECKING:
    from streaminfer.caching.tiers.disk import DiskTier
    from streaminfer.caching.tiers.redis import RedisTier

__all__ = ["DiskTier", "Entry", "RecordCopy", "RedisTier", "Tier", "TierStatistics"]

_HOMES = {"DiskTier": "disk", "RedisTier": "redis"}
"""Who uses one tier does not load what the other needs."""


if not TYPE_CHECKING:  # type checkers know the names from the block above, and refuse others

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

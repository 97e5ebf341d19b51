"""Tiers below memory: a folder on this machine's disk, and a Redis or Valkey server that a site shares."""

from typing import TYPE_CHECKING

from streaminfer._internal.loading.lazy import lazy_attributes
from streaminfer.caching.tiers.protocol import Entry, RecordCopy, Tier, TierStatistics

if TYPE_CHECKING:
    from streaminfer.caching.tiers.disk.tier import DiskTier
    from streaminfer.caching.tiers.encryption import StoredKeys
    from streaminfer.caching.tiers.redis.tier import RedisTier
    from streaminfer.caching.tiers.service_keys import ServiceKeys

__all__ = ["DiskTier", "Entry", "RecordCopy", "RedisTier", "ServiceKeys", "StoredKeys", "Tier", "TierStatistics"]

_HOMES = {
    "caching.tiers.disk.tier": ["DiskTier"],
    "caching.tiers.encryption": ["StoredKeys"],
    "caching.tiers.redis.tier": ["RedisTier"],
    "caching.tiers.service_keys": ["ServiceKeys"],
}


if not TYPE_CHECKING:  # type checkers take the names from the block above and reject others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)

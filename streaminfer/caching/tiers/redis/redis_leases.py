"""Leases on a Redis server: for each key a string with its holder's random bytes, which expires, and goes with a put.

A holder that has nothing to put leaves a mark in its place, for as long again: others compute at once, and do not wait
for one another in turn.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from streaminfer.caching.tiers._records import Records

__all__ = ["OPEN", "TAKE", "RedisLeases"]

TAKE = """
local lease = ARGV[1] .. 'l' .. ARGV[2]
local held = redis.call('GET', lease)
if held then return held == '-' and 1 or 0 end
redis.call('SET', lease, ARGV[3], 'PX', ARGV[4])
return 1
"""
OPEN = """
local lease = ARGV[1] .. 'l' .. ARGV[2]
if redis.call('GET', lease) == ARGV[3] then redis.call('SET', lease, '-', 'PX', ARGV[4]) end
return 1
"""


class RedisLeases:
    """The leases of one tier.

    Args:
        lease_s: how long one lasts at most.
        prefix: what keys on the server begin with.
        records: names keys.
        run: runs a script with arguments; where the server fails, gives 1.
    """

    def __init__(self, lease_s: float, prefix: bytes, records: Records, run: Callable[..., Awaitable[Any]]) -> None:
        self.lease_s = lease_s
        self._prefix = prefix
        self._records = records
        self._run = run
        self._lease_ms = max(round(lease_s * 1e3), 1)

    async def take(self, key: str | bytes, token: bytes) -> bool:
        """Take the lease of a key; return whether to compute."""
        return bool(await self._run(TAKE, self._prefix, self._records.name(b"k", key), token, self._lease_ms))

    async def open(self, key: str | bytes, token: bytes) -> None:
        """End a lease without an entry."""
        await self._run(OPEN, self._prefix, self._records.name(b"k", key), token, self._lease_ms)

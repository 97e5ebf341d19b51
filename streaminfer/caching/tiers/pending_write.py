"""A write that waits for its tier."""

import asyncio
from typing import NamedTuple

from streaminfer.caching.tiers.protocol import Entry

__all__ = ["PendingWrite"]


class PendingWrite(NamedTuple):
    """A queued put, or, without an entry, a deletion."""

    key: str | bytes
    entry: Entry | None
    size: int
    done: asyncio.Future[bool]
    token: bytes = b""  # of the lease that ends with it

    def settle(self, stored: bool) -> None:
        """Note whether the tier took it."""
        if not self.done.done():
            self.done.set_result(stored)

"""Write that is queued for its tier."""

import asyncio
from typing import NamedTuple

from streaminfer.caching.tiers.protocol import Entry

__all__ = ["PendingWrite"]


class PendingWrite(NamedTuple):
    """Queued put, or deletion if it has no entry."""

    key: str | bytes
    entry: Entry | None
    size: int
    done: asyncio.Future[bool]
    token: bytes = b""  # of the lease that this write ends

    def settle(self, stored: bool) -> None:
        """Note whether the tier stored it."""
        if not self.done.done():
            self.done.set_result(stored)

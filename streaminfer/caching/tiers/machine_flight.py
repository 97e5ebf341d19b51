"""Single flight across machines: who leads a flight here takes the lease of a shared tier before it computes.

Where another machine has the lease, this one looks into the tiers for its entry, after pauses from 5 to 100 ms, until
the entry is there, the lease is free (its holder died, and it expired), its holder had nothing to share, or the time
to wait is over; but for the first it then computes itself. So a lease only ever saves work: it keeps no machine
from computing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from streaminfer.caching.tiers.protocol import Leases
    from streaminfer.caching.tiers.writer import TierWriter

__all__ = ["MachineFlight"]

_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.1

Hit = TypeVar("Hit")


class MachineFlight:
    """One computation among machines.

    Args:
        worker: of the tier that has the leases.
        leases: of that tier.
        key: what is computed.
    """

    __slots__ = ("_key", "_leases", "_token", "_worker")

    def __init__(self, worker: TierWriter, leases: Leases, key: str | bytes) -> None:
        self._worker = worker
        self._leases = leases
        self._key = key
        self._token = os.urandom(16)

    async def begin(self, longest_s: float, look: Callable[[], Awaitable[Hit | None]]) -> Hit | None:
        """Takes the lease, or waits for the entry of who has it.

        Args:
            longest_s: how long to wait at most; the lease's own time is a bound as well.
            look: looks into the tiers.

        Returns:
            The entry; ``None``: compute it.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + min(longest_s, self._leases.lease_s)
        pause_s = _FIRST_PAUSE_S
        while not await self._leases.take(self._key, self._token):
            left_s = until - loop.time()
            if left_s <= 0:
                break
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            found = await look()
            if found is not None:
                return found
        return None

    async def end(self) -> None:
        """The computation is over: if nothing of it is about to be put, who waits for it need not."""
        if not self._worker.has_queued(self._key):
            await self._leases.open(self._key, self._token)

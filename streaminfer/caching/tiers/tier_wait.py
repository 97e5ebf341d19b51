"""Until when a flight waits for tiers: what its leader grants them, or less for a caller who joins it."""

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["TierWait"]


class TierWait:
    """Bound of all that one attempt of a flight waits for tiers; used on its event loop alone.

    Attributes:
        until_s: by the clock of the event loop; infinite: no caller who joined has asked for less.
        is_over: something took all the time until then.
    """

    def __init__(self) -> None:
        self.until_s = math.inf
        self.is_over = False
        self._limits: list[asyncio.Timeout] = []

    def shorten(self, until_s: float) -> None:
        """End what is waited for now, and what will be, by an instant at the latest."""
        self.until_s = min(self.until_s, until_s)
        for limit in self._limits:
            ends_s = limit.when()
            if ends_s is not None and ends_s > self.until_s and not limit.expired():
                limit.reschedule(self.until_s)

    @contextmanager
    def limit(self, until_s: float) -> Iterator[asyncio.Timeout]:
        """Return a time limit to enter in this block, which `shorten` moves."""
        limit = asyncio.timeout_at(min(until_s, self.until_s))
        self._limits.append(limit)
        try:
            yield limit
        finally:
            self._limits.remove(limit)
            self.is_over = self.is_over or (limit.expired() and limit.when() == self.until_s)

"""Time limit of a flight's wait for tiers: the grant of its leader, shortened by callers that join."""

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["TierWait"]


class TierWait:
    """Time limit for all waits of one flight attempt for tiers; used only on its event loop.

    Attributes:
        until_s: its end, on the clock of the event loop; infinite if no joining caller has shortened it.
        is_over: whether a wait used all the time until then.
    """

    def __init__(self) -> None:
        self.until_s = math.inf
        self.is_over = False
        self._limits: list[asyncio.Timeout] = []

    def shorten(self, until_s: float) -> None:
        """End the current waits and all later ones by this instant at the latest."""
        self.until_s = min(self.until_s, until_s)
        for limit in self._limits:
            ends_s = limit.when()
            if ends_s is not None and ends_s > self.until_s and not limit.expired():
                limit.reschedule(self.until_s)

    @contextmanager
    def limit(self, until_s: float) -> Iterator[asyncio.Timeout]:
        """Yield a time limit to enter in this block; `shorten` can move it."""
        limit = asyncio.timeout_at(min(until_s, self.until_s))
        self._limits.append(limit)
        try:
            yield limit
        finally:
            self._limits.remove(limit)
            self.is_over = self.is_over or (limit.expired() and limit.when() == self.until_s)

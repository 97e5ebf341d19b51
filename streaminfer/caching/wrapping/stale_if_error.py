"""Outdated answers, given where their computation fails: RFC 5861's *stale-if-error*."""

from __future__ import annotations

import logging
from collections.abc import Callable

from streaminfer.errors import InvalidInput

__all__ = ["RecentFailure"]

_LOGGER = logging.getLogger("streaminfer.caching")
_RECENT_NS = 1_000_000_000  # as long as a key is not refreshed after a refresh that failed


class RecentFailure:
    """The latest failure in whose place an outdated answer was given, of one wrapped service or function.

    For a second after it outdated answers are given at once, and computed behind: so callers do not each wait for a
    model that is down.

    Args:
        now: reads the cache's clock.
    """

    __slots__ = ("_now", "_until_ns")

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._until_ns = 0

    def is_recent(self) -> bool:
        """Whether a second has not passed since."""
        return self._now() < self._until_ns

    def note(self, error: Exception) -> None:
        """Takes an error that an outdated answer replaces; the first of a second is logged.

        Raises:
            InvalidInput: it is one, which is the caller's to know.
        """
        if isinstance(error, InvalidInput):
            raise error
        if not self.is_recent():
            _LOGGER.warning(
                "an outdated answer was given in place of an error: %s: %s", type(error).__name__, error, exc_info=error
            )
        self._until_ns = self._now() + _RECENT_NS

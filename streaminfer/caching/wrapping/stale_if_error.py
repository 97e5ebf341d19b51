"""Stale values in place of errors: RFC 5861's *stale-if-error*."""

from __future__ import annotations

import logging
from collections.abc import Callable

from streaminfer.errors import InvalidInput

__all__ = ["RecentFailure"]

_LOGGER = logging.getLogger("streaminfer.caching")
_RECENT_NS = 1_000_000_000  # the pause of a key after a refresh that failed


class RecentFailure:
    """Latest failure of one wrapped service or function that a stale value replaced.

    For a second after it, outdated values are the response at once and are refreshed behind it, so that callers do not
    each wait for a backend that is down.

    Args:
        now: reads the cache's clock.
    """

    __slots__ = ("_now", "_until_ns")

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._until_ns = 0

    def is_recent(self) -> bool:
        """Return whether less than a second has passed since."""
        return self._now() < self._until_ns

    def note(self, error: Exception) -> None:
        """Take an error that a stale value replaces; the first of a second is logged.

        Raises:
            InvalidInput: the error is one, so its caller must get it.
        """
        if isinstance(error, InvalidInput):
            raise error
        if not self.is_recent():
            _LOGGER.warning(
                "an outdated value was used in place of an error: %s: %s", type(error).__name__, error, exc_info=error
            )
        self._until_ns = self._now() + _RECENT_NS

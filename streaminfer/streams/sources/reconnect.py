"""Reconnection of sources: exponential backoff with jitter."""

import random
from collections.abc import Callable

import attrs

from streaminfer._internal.validation import LONGEST_S, check_count, check_duration, field_check

__all__ = ["Backoff", "Reconnect"]


@attrs.frozen
class Reconnect:
    """Reconnection policy of a live source.

    The delay doubles from ``first_s`` to ``max_s``; half of it is random, so that cameras do not all reconnect at once.

    Attributes:
        first_s: delay after the first failure, in seconds.
        max_s: the longest delay.
        attempts: attempts in a row to reconnect; if all fail, the source ends with the last error. ``None``: no limit.
    """

    first_s: float = attrs.field(default=0.25, validator=field_check(check_duration, positive=True))
    max_s: float = attrs.field(default=10.0, validator=field_check(check_duration, positive=True))
    attempts: int | None = attrs.field(default=None, validator=field_check(check_count, optional=True))


class Backoff:
    """Delays of one source.

    A connection counts as a success once it has lasted as long as the delay before it. So a server that drops each
    connection immediately is not tried more often than a server that is down.
    """

    def __init__(self, settings: Reconnect, random_: Callable[[], float] = random.random) -> None:
        self._settings = settings
        self._random = random_
        self._failures = 0
        self._delay_ns = 0
        self._connected_ns: int | None = None

    def connected(self, now_ns: int) -> None:
        """Record that a connection delivers."""
        if self._connected_ns is None:
            self._connected_ns = now_ns

    def failed(self, now_ns: int) -> int | None:
        """Return the delay in nanoseconds before the next attempt; ``None``: there is no next attempt."""
        settings = self._settings
        if self._connected_ns is not None and now_ns - self._connected_ns >= self._delay_ns:
            self._failures = 0
        self._connected_ns = None
        self._failures += 1
        if settings.attempts is not None and self._failures > settings.attempts:
            return None
        # 2.0**64 is already longer than any delay
        delay_s = min(settings.max_s, settings.first_s * 2.0 ** min(self._failures - 1, 64), LONGEST_S)
        self._delay_ns = round(delay_s * (0.5 + 0.5 * self._random()) * 1e9)
        return self._delay_ns

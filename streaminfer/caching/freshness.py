"""How long the answers of a cache are fresh, and how much longer they are kept: its settings of time, checked."""

from __future__ import annotations

from collections.abc import Callable

from streaminfer._validation import check_count, check_instance, check_number
from streaminfer.caching._arguments import duration_ns
from streaminfer.caching._wheel_cy import NEVER

__all__ = ["Freshness"]


class Freshness:
    """The settings of time of one cache; ``EdgeCache`` says what they mean.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Attributes:
        ttl_ns: nanoseconds for which an answer is fresh; ``NEVER``: for good.
        stale_ns: nanoseconds for which it is kept after that.
        negative_ns: nanoseconds for which a failure is remembered.
    """

    __slots__ = ("_draw", "jitter", "negative_ns", "negative_ttl_s", "stale_ns", "stale_s", "ttl_ns", "ttl_s")

    def __init__(
        self, *, ttl_s: float | None, ttl_jitter: float, stale_s: float, negative_ttl_s: float, seed: int | None
    ) -> None:
        self.ttl_ns = NEVER if ttl_s is None else max(duration_ns("ttl_s", ttl_s, positive=True), 1)
        self.stale_ns = duration_ns("stale_s", stale_s)
        self.negative_ns = duration_ns("negative_ttl_s", negative_ttl_s)
        self.ttl_s = ttl_s
        self.stale_s = float(stale_s)
        self.negative_ttl_s = float(negative_ttl_s)
        self.jitter = check_number("ttl_jitter", ttl_jitter, "a share ≥ 0 and < 1", lambda it: 0.0 <= it < 1.0)
        check_instance("seed", seed, lambda it: it is None or not isinstance(it, bool), "a whole number or None")
        own = None if seed is None else check_count("seed", seed, at_least=0)
        self._draw: Callable[[], float] | None = None
        if self.jitter:
            import random  # noqa: PLC0415 - most caches draw nothing

            self._draw = random.Random(own).random  # noqa: S311 - spreads load, keeps no secret

    def spread_ns(self, ttl_ns: int) -> int:
        """A time to live less a random share of it, of at most ``ttl_jitter``."""
        if self._draw is None or ttl_ns == NEVER:
            return ttl_ns
        return round(ttl_ns * (1.0 - self.jitter * self._draw()))

"""How long the answers of a cache are fresh, and how much longer they are kept: its settings of time, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from streaminfer._internal.validation import check_count, check_instance, check_number
from streaminfer.caching.arguments import check_policy, duration_ns, max_age_ns
from streaminfer.caching.table._timer_wheel_cy import NEVER

if TYPE_CHECKING:
    from streaminfer.compliance.retention import Retention

__all__ = ["Freshness"]


class Freshness:
    """The settings of time of one cache; ``EdgeCache`` says what they mean.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Attributes:
        ttl_ns: nanoseconds for which an answer is fresh; ``NEVER``: for good.
        stale_ns: nanoseconds for which it is kept after that, the longer of both windows.
        revalidate_ns: for how many of these it is given while it is refreshed.
        negative_ns: nanoseconds for which a failure without tags is remembered.
    """

    __slots__ = (
        "_draw",
        "_policy",
        "if_error_s",
        "jitter",
        "negative_ns",
        "negative_ttl_s",
        "revalidate_ns",
        "revalidate_s",
        "stale_ns",
        "stale_s",
        "ttl_ns",
        "ttl_s",
    )

    def __init__(
        self,
        *,
        ttl_s: float | None,
        ttl_jitter: float,
        stale_s: float,
        stale_while_revalidate_s: float | None,
        stale_if_error_s: float | None,
        negative_ttl_s: float,
        seed: int | None,
        policy: Retention | None,
    ) -> None:
        self.ttl_ns = NEVER if ttl_s is None else max(duration_ns("ttl_s", ttl_s, positive=True), 1)
        both_ns = duration_ns("stale_s", stale_s)
        self.revalidate_ns = if_error_ns = both_ns
        self.revalidate_s = self.if_error_s = float(stale_s)
        if stale_while_revalidate_s is not None:
            self.revalidate_ns = duration_ns("stale_while_revalidate_s", stale_while_revalidate_s)
            self.revalidate_s = float(stale_while_revalidate_s)
        if stale_if_error_s is not None:
            if_error_ns = duration_ns("stale_if_error_s", stale_if_error_s)
            self.if_error_s = float(stale_if_error_s)
        self.stale_ns = max(self.revalidate_ns, if_error_ns)
        self.negative_ns = duration_ns("negative_ttl_s", negative_ttl_s)
        self._policy = policy
        self.ttl_s = ttl_s
        self.stale_s = max(self.revalidate_s, self.if_error_s)
        self.negative_ttl_s = float(negative_ttl_s)
        self.jitter = check_number("ttl_jitter", ttl_jitter, "a share ≥ 0 and < 1", lambda it: 0.0 <= it < 1.0)
        check_instance("seed", seed, lambda it: it is None or not isinstance(it, bool), "a whole number or None")
        own = None if seed is None else check_count("seed", seed, at_least=0)
        self._draw: Callable[[], float] | None = None
        if self.jitter:
            import random  # noqa: PLC0415 - most caches draw nothing

            self._draw = random.Random(own).random  # noqa: S311 - spreads load, keeps no secret

        if policy is not None:
            check_policy(policy, self.stale_s)
            self.negative_ns = min(self.negative_ns, max_age_ns(policy.rule(())))

    def lasts_ns(self, ttl_s: float | None, tags: Iterable[str]) -> int:
        """How long a value is fresh: as asked, or as the cache says, but never longer than the policy allows."""
        ttl_ns = self.ttl_ns if ttl_s is None else duration_ns("ttl_s", ttl_s)
        if self._policy is None:
            return ttl_ns
        return min(ttl_ns, max_age_ns(self._policy.rule(tags)) - self.stale_ns)

    def answer_ttl_s(self, said_s: float | None, tags: Iterable[str]) -> float | None:
        """How long an answer is fresh, in seconds, less a random share of at most ``ttl_jitter``; ``None``: for good.

        Args:
            said_s: what its computation said with ``fresh_for``; ``None``: nothing.
            tags: of the answer.
        """
        ttl_ns = self.lasts_ns(None, tags)
        if said_s is not None:
            ttl_ns = min(ttl_ns, duration_ns("fresh_for", said_s))
        if ttl_ns == NEVER:
            return None
        return ttl_ns / 1e9 if self._draw is None else ttl_ns / 1e9 * (1.0 - self.jitter * self._draw())

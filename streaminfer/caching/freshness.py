"""Time settings of a cache: how long it stores a value, and with which labels, within the retention policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from streaminfer._internal.validation import LONGEST_S, check_count, check_duration, check_number, expected
from streaminfer.caching.table._entries_cy import Labels
from streaminfer.caching.table._slots_cy import NEVER

if TYPE_CHECKING:
    from streaminfer.compliance.retention import Retention, Rule

__all__ = ["About", "Freshness", "duration_ns", "labels_of"]

About = tuple[str | None, Iterable[str]]
"""Subject and tags, unchecked, from a caller."""


def duration_ns(name: str, seconds: object, *, positive: bool = False) -> int:
    """Return a duration in whole nanoseconds, at most 31 years, so that instants fit 64 bits."""
    if seconds.__class__ is float and 0.0 < seconds < LONGEST_S:  # skips the checks, which take most of a `put`
        return round(seconds * 1e9)
    return round(min(check_duration(name, seconds, positive=positive), LONGEST_S) * 1e9)


def labels_of(subject: object, tags: Any) -> Labels:
    """Return labels as plain ``str``, because comparing a subclass could run a caller's code."""
    if subject is None and not tags:
        return None
    if subject is not None and not isinstance(subject, str):
        raise TypeError(expected("subject", "a string or None", subject))
    if isinstance(tags, str):
        raise TypeError(expected("tags", "several strings, as in a tuple", tags))
    words = tuple(tags)
    for word in words:
        if not isinstance(word, str):
            raise TypeError(expected("tags", "strings", word))
    return None if subject is None else str(subject), tuple(map(str, words))


class Freshness:
    """Time settings of one cache; `EdgeCache` describes them.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Attributes:
        ttl_ns: nanoseconds for which a value is fresh; ``NEVER``: for good.
        stale_ns: nanoseconds for which a value is stored after that: the longer of the two stale windows.
        revalidate_ns: nanoseconds of these for which the value is used while it is refreshed.
        negative_ns: nanoseconds for which a failure is remembered, unless the policy limits it.
        policy: the retention policy; ``None`` if there is none.
    """

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
        duration_ns("stale_s", stale_s)
        revalidate_s = stale_s if stale_while_revalidate_s is None else stale_while_revalidate_s
        if_error_s = stale_s if stale_if_error_s is None else stale_if_error_s
        self.revalidate_ns = duration_ns("stale_while_revalidate_s", revalidate_s)
        self.stale_ns = max(self.revalidate_ns, duration_ns("stale_if_error_s", if_error_s))
        self.negative_ns = duration_ns("negative_ttl_s", negative_ttl_s)
        self.policy = policy
        self.ttl_s = ttl_s
        self.stale_s = float(max(revalidate_s, if_error_s))
        self.negative_ttl_s = float(negative_ttl_s)
        self.jitter = check_number("ttl_jitter", ttl_jitter, "a share ≥ 0 and < 1", lambda it: 0.0 <= it < 1.0)
        own = None if seed is None else check_count("seed", seed, at_least=0)
        self._draw: Callable[[], float] | None = None
        if self.jitter:
            import random  # noqa: PLC0415 - most caches draw nothing

            # system draws differ between forked workers; a seeded generator would repeat the same draws in each
            generator = random.SystemRandom() if own is None else random.Random(own)  # noqa: S311 - spreads load, keeps no secret
            self._draw = generator.random

        if policy is not None:
            window, own_s = "stale_if_error_s", stale_if_error_s
            if revalidate_s > if_error_s:
                window, own_s = "stale_while_revalidate_s", stale_while_revalidate_s
            _check_policy(policy, "stale_s" if own_s is None else window, self.stale_s)

    def lasts_ns(self, ttl_s: float | None, tags: Iterable[str]) -> int:
        """Return how many nanoseconds a value is fresh: ``ttl_s``, else the cache's time, limited by the policy."""
        ttl_ns = self.ttl_ns if ttl_s is None else duration_ns("ttl_s", ttl_s)
        if self.policy is None:
            return ttl_ns
        return min(ttl_ns, _max_age_ns(self.policy.rule(tags)) - self.stale_ns)

    def response_ttl_s(self, fresh_for_s: float | None, tags: Iterable[str]) -> float | None:
        """Return how long a response is fresh, minus its random share (``ttl_jitter``), in seconds; ``None``: for good.

        Args:
            fresh_for_s: seconds that its computation set with ``fresh_for``; ``None``: not set.
            tags: of the response.
        """
        ttl_ns = self.lasts_ns(None, tags)
        if fresh_for_s is not None:
            ttl_ns = min(ttl_ns, duration_ns("fresh_for", fresh_for_s))
        if ttl_ns == NEVER:
            return None
        return ttl_ns / 1e9 if self._draw is None else ttl_ns / 1e9 * (1.0 - self.jitter * self._draw())

    def governed(
        self, ttl_ns: int, labels: Labels, now_ns: int, *, age_ns: int = 0, failed: bool = False
    ) -> tuple[int, Labels]:
        """Return a time to live within the policy, and labels with the data class and the instant of computation.

        Args:
            ttl_ns: how long the value would be fresh; negative: the cache's time.
            labels: subject and tags.
            now_ns: the current instant.
            age_ns: how long ago the value was computed.
            failed: whether it is a failure, which has no stale time.
        """
        policy: Any = self.policy  # callers checked that there is one
        subject, tags = (None, ()) if labels is None else labels[:2]
        rule = policy.rule(tags)
        own_ns, stale_ns = self.ttl_ns, self.stale_ns
        if failed:
            own_ns, stale_ns = self.negative_ns, 0
        longest_ns = max(_max_age_ns(rule) - stale_ns - age_ns, 0)
        return min(own_ns if ttl_ns < 0 else ttl_ns, longest_ns), (subject, tags, rule.data_class, now_ns - age_ns)


def _max_age_ns(rule: Rule) -> int:
    """Return the maximum age of a rule in nanoseconds, at least 1."""
    return max(int(rule.max_age_s * 1e9), 1)


def _check_policy(retention: Any, window: str, stale_s: float) -> None:
    from streaminfer.compliance.retention import Retention  # noqa: PLC0415 - loaded by everyone who has a policy

    if not isinstance(retention, Retention):
        raise TypeError(expected("retention", "a Retention or None", retention))
    if stale_s >= retention.shortest_s:
        expectation = (
            f"less than the shortest maximum age of the policy, {retention.shortest_s:g} s: stale values age as well"
        )
        raise ValueError(expected(window, expectation, stale_s))

"""Arguments of a cache, checked and in the table's units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streaminfer._internal.validation import LONGEST_S, check_duration, check_instance, expected

if TYPE_CHECKING:
    from streaminfer.compliance.retention import Rule

__all__ = ["Labels", "check_policy", "duration_ns", "labels_of", "max_age_ns"]

Labels = tuple[Any, ...] | None
"""Subject and tags; with a policy, the data class, and the instant at which the answer was computed, as well."""


def duration_ns(name: str, seconds: object, *, positive: bool = False) -> int:
    """Whole nanoseconds, at most 31 years, so that instants fit 64 bits."""
    return round(min(check_duration(name, seconds, positive=positive), LONGEST_S) * 1e9)


def max_age_ns(rule: Rule) -> int:
    """Return the maximum age of a rule in nanoseconds, at least one."""
    return max(int(rule.max_age_s * 1e9), 1)


def check_policy(retention: Any, stale_s: float) -> None:
    """Refuse what is no policy, and a stale time that outlasts its shortest maximum age."""
    from streaminfer.compliance.retention import Retention  # noqa: PLC0415 - who has one has loaded it

    check_instance("retention", retention, lambda it: isinstance(it, Retention), "a Retention or None")
    if stale_s >= retention.shortest_s:
        what = (
            f"less than the shortest maximum age of the policy, {retention.shortest_s:g} s: stale answers age as well"
        )
        raise ValueError(expected("stale_s", what, stale_s))


def labels_of(subject: object, tags: Any) -> Labels:
    """Plain strings, whose comparison runs no code of the caller's."""
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

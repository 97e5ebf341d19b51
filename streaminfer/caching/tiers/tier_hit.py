"""An entry that was found in a tier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streaminfer.caching.defensive_copy import freeze

if TYPE_CHECKING:
    from streaminfer.caching.tiers.protocol import Entry

__all__ = ["TierHit"]


class TierHit:
    """What a tier had.

    Attributes:
        value: of which ``copy_out`` gives views.
        source: the tier's name.
        position: of the tier.
        past_ns: how long ago its fresh time passed; negative: it has not.
        is_stale: it has.
        left_ns: how long it is fresh yet, or, if it is stale, may be used, from ``read_ns`` on; ``NEVER``: for good.
        age_ns: how old it was then.
        read_ns: when that was, on the cache's clock.
        tags, subject: to erase it by.
    """

    __slots__ = (
        "age_ns",
        "is_stale",
        "left_ns",
        "past_ns",
        "position",
        "read_ns",
        "source",
        "subject",
        "tags",
        "value",
    )

    def __init__(
        self, entry: Entry, source: str, position: int, past_ns: int, left_ns: int, age_ns: int, read_ns: int
    ) -> None:
        self.value = freeze(entry.value)
        self.tags = tuple(sorted(entry.tags))
        self.subject = entry.subject
        self.source = source
        self.position = position
        self.past_ns = past_ns
        self.is_stale = past_ns >= 0
        self.left_ns = left_ns
        self.age_ns = age_ns
        self.read_ns = read_ns

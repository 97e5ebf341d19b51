"""What a cache holds and did, as a frozen snapshot."""

from collections.abc import Sequence
from typing import Self

import attrs

from streaminfer._internal.html_table import counter_rows, html_table
from streaminfer._internal.snapshot import Snapshot

__all__ = ["CacheStatistics"]


@attrs.frozen(kw_only=True)
class CacheStatistics(Snapshot):
    """Contents and counters of an `EdgeCache`, of one moment. Expired entries are seen to before it is taken.

    Counting rules:

    * Each ``get``, ``[]`` and ``setdefault``, and each lookup of a wrapped service or function, counts in exactly one
      of ``hits``, ``misses``, ``stale_hits`` and ``negative_hits``. ``peek``, ``in``, ``pop``, ``popitem``, ``del``
      and iteration count in none.
    * Each value or failure that is kept counts in ``inserted`` if nothing was held under its key, else in
      ``replaced``; one that is larger than the whole cache in ``refused``.
    * Each entry that goes counts in exactly one of ``evicted`` (no room), ``expired`` (its time, and its stale time,
      had passed), ``erased`` (by subject or tag) and ``removed`` (``del``, ``pop``, ``popitem``, ``clear``, or a value
      that was refused under its key). So ``inserted`` is ``entries + stale + negative`` and these four, added up.

    Counters never fall.

    Attributes:
        entries: fresh entries; what ``len`` says.
        size: the bytes of their values.
        stale: entries past their time that are kept in case the answer cannot be refreshed.
        negative: remembered failures.
        held_bytes: the bytes of all that is held; what ``max_bytes`` bounds.
        hits: lookups that found a fresh value.
        misses: lookups that found nothing.
        stale_hits: lookups of a wrapped call that found a stale value.
        negative_hits: lookups of a wrapped call that found a failure.
        inserted: entries that came.
        replaced: values that took the place of another.
        evicted: entries that went for lack of room.
        expired: entries that went because their time had passed.
        erased: entries that were erased by subject or tag.
        removed: entries that were removed by hand.
        refused: values larger than the whole cache.
        events_lost: evictions, expiries and erasures that no listener heard, because one did not come back.
        listener_errors: how often a listener raised.
    """

    entries: int
    size: int
    stale: int
    negative: int
    held_bytes: int
    hits: int
    misses: int
    stale_hits: int
    negative_hits: int
    inserted: int
    replaced: int
    evicted: int
    expired: int
    erased: int
    removed: int
    refused: int
    events_lost: int
    listener_errors: int

    @classmethod
    def of(cls, counters: Sequence[int], listener_errors: int) -> Self:
        """A snapshot of the numbers that a table counts, in the order of the attributes."""
        names = [field.name for field in attrs.fields(cls) if field.name != "listener_errors"]
        return cls(**dict(zip(names, counters, strict=True)), listener_errors=listener_errors)

    @property
    def evictions(self) -> int:
        """The same as ``evicted``."""
        return self.evicted

    @property
    def hit_rate(self) -> float:
        """Share of lookups that found something: a fresh value, a stale one or a failure; NaN before the first."""
        found = self.hits + self.stale_hits + self.negative_hits
        return found / (found + self.misses) if found + self.misses else float("nan")

    def _repr_html_(self) -> str:
        return html_table(counter_rows(self, (field.name for field in attrs.fields(type(self)))), caption="cache")

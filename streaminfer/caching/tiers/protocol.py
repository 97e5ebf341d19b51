"""Protocol of tiers and the entries that they hold, and the leases and notices of shared tiers.

A tier may lose entries and may fail; both count as misses. It never returns a wrong value, never blocks the event loop,
and always reports an erasure that it could not make.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import attrs

from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.validation import LONGEST_S, check_count, check_duration, check_instance, field_check
from streaminfer.caching.tiers.encryption import KeyProvider
from streaminfer.protocols import Clock

__all__ = [
    "Entry",
    "Held",
    "Notice",
    "RecordCopy",
    "Tier",
    "TierHit",
    "TierStatistics",
    "in_ns",
]

SKEW_NS = 60 * 10**9
"""Largest accepted clock skew. An entry from further in the future was written by a clock that has since been set back;
its age is unknown, so it counts as expired."""


def in_ns(seconds: float) -> int:
    """Return seconds as whole nanoseconds, at most the longest fresh time plus stale time of a cache."""
    return round(min(seconds, 2 * LONGEST_S) * 1e9)


def _tags(tags: Any) -> Any:
    return frozenset(tags) if isinstance(tags, Iterable) and not isinstance(tags, (str, bytes)) else tags


def _are_tags(value: Any) -> bool:
    return isinstance(value, frozenset) and all(isinstance(tag, str) for tag in value)


@attrs.frozen(kw_only=True)
class Entry:
    """Value with the data that must accompany it on every medium.

    Args:
        value: anything that :func:`~streaminfer.caching.codec.encode` can encode.
        stored_ns: when it was computed, nanoseconds of the wall clock (``time.time_ns``), which outlives the process.
        ttl_s: seconds after that for which it may be stored; ``None``: no limit. Expired means now ≥ stored + ttl.
        stale_s: the last seconds of ``ttl_s``, in which it is stale: usable while a fresh response is computed.
        tags: names by which it can be erased.
        subject: the person whose data it is; ``None``: of no person.
        data_class: class of a retention policy; ``""``: the default class.
        min_age_s: the first seconds of ``ttl_s``, in which a tier that can do so loses it neither to a newer value of
            its key nor to a lack of room; ``get`` does not return it.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    value: Any = attrs.field(repr=False)
    stored_ns: int = attrs.field(validator=field_check(check_count, at_least=0, at_most=2**63 - 1))
    ttl_s: float | None = attrs.field(default=None, validator=field_check(check_duration, optional=True))
    stale_s: float = attrs.field(default=0.0, validator=field_check(check_duration))
    tags: frozenset[str] = attrs.field(
        default=frozenset(), converter=_tags, validator=field_check(check_instance, _are_tags, "strings")
    )
    subject: str | None = attrs.field(
        default=None, validator=field_check(check_instance, str, "a string", optional=True)
    )
    data_class: str = attrs.field(default="", validator=field_check(check_instance, str, "a string"))
    min_age_s: float = attrs.field(default=0.0, validator=field_check(check_duration))

    @property
    def expires_ns(self) -> int | None:
        """Instant from which it is expired, on the wall clock; ``None``: never."""
        return None if self.ttl_s is None else self.stored_ns + in_ns(self.ttl_s)

    @property
    def aged_ns(self) -> int:
        """Instant at which it reaches its minimum age, at the latest when it expires; 0: it has none."""
        if not self.min_age_s:
            return 0
        aged_ns = min(self.stored_ns + in_ns(self.min_age_s), 2**63 - 1)
        return aged_ns if self.expires_ns is None else min(aged_ns, self.expires_ns)

    def is_expired(self, now_ns: int) -> bool:
        """Return whether it is expired at an instant of the wall clock."""
        expires_ns = self.expires_ns
        return (expires_ns is not None and now_ns >= expires_ns) or self.stored_ns > now_ns + SKEW_NS


@attrs.frozen(kw_only=True)
class TierStatistics(Snapshot):
    """Counters of a tier since it was made.

    Counting rule: each ``get`` is a hit or a miss. A miss may also be one of ``errors``, ``skipped`` or ``unreadable``.
    Each ``put`` is one of ``stored``, ``errors``, ``skipped`` or ``rejected``.

    Attributes:
        name: of the kind of tier.
        hits: gets that returned an entry.
        misses: gets that returned none.
        stored: puts that reached the medium.
        rejected: puts of entries that the tier cannot store (a type that cannot be encoded, labels of over 1.8 KB, too
            large, or already expired), and puts during an erasure on a shared server.
        skipped: operations that were not tried: the tier does not run, its breaker is open, or too many wait.
        errors: operations that failed on the medium.
        unreadable: records that were removed because they were corrupt or their key was destroyed.
        evicted: entries that were removed to make room.
        erased: entries that were erased by subject or tag, or deleted by key.
        purged: entries that the tier removed because they had expired; removals by a server itself are not counted.
        rebuilds: how often a corrupt medium was replaced by an empty one.
        entries: entries on the medium at the last write or purge; ``None``: not known.
        size_bytes: bytes of these entries on the medium; ``None``: not known.
        last_error: text of the latest failure; ``""`` if there was none.
    """

    name: str
    hits: int
    misses: int
    stored: int
    rejected: int
    skipped: int
    errors: int
    unreadable: int
    evicted: int
    erased: int
    purged: int
    rebuilds: int
    entries: int | None
    size_bytes: int | None
    last_error: str


@attrs.frozen(eq=False)
class TierHit:
    """Value that a tier returned.

    Attributes:
        value: the stored value; callers get its ``copy_out``.
        about: subject and tags, to erase it by.
        source: name of the tier.
        position: position of the tier; 0 is the fastest.
        computed_ns: when it was computed, on the cache's clock.
        fresh_ns: nanoseconds after that for which it is fresh; ``NEVER``: for good.
        stale_ns: nanoseconds after that for which it can be used as stale.
        is_stale: whether its fresh time had passed when it was read.
    """

    value: Any
    about: tuple[str | None, tuple[str, ...]]
    source: str
    position: int
    computed_ns: int
    fresh_ns: int
    stale_ns: int
    is_stale: bool

    @property
    def until_ns(self) -> int:
        """Instant until which it can be used, on the cache's clock; later than any instant if it is fresh for good."""
        return self.computed_ns + self.fresh_ns + self.stale_ns


class Held(NamedTuple):
    """Entries of one data class on a tier.

    Attributes:
        data_class: its name; ``""``: the default class.
        entries: number of entries, including expired ones that are not purged yet.
        oldest_ns: when the oldest was computed, on the wall clock.
        size_bytes: bytes of their records.
    """

    data_class: str
    entries: int
    oldest_ns: int
    size_bytes: int


class RecordCopy(NamedTuple):
    """Copy of a record that can be read from a medium, even if the tier does not know of it.

    Attributes:
        place: where it lies, such as a file's name; contains no personal data.
        identity: first bytes of the record, which no other record has.
        entry: the readable part of the entry; its value is ``None``, because only the beginning is read.
    """

    place: str
    identity: bytes
    entry: Entry


@attrs.frozen(kw_only=True)
class Notice:
    """Notice that another user of the tier deleted or erased something; exactly one attribute is set.

    Attributes:
        key: the entry of this key was deleted.
        subject: the entries of this subject were erased.
        tag: the entries with this tag were erased.
    """

    key: str | bytes | None = None
    subject: str | None = None
    tag: str | None = None


@runtime_checkable
class Tier(Protocol):
    """Holds entries outside the process's memory. Your own tier inherits from it, which gives it the default methods.

    Several coroutines may run at once on one event loop, and each may be cancelled. A put that was cancelled may still
    take effect, but not after a later erasure has ended.

    Attributes:
        name: of the kind of tier, in responses and statistics.
        on_disk: whether it writes to a disk of this machine.
        shared: whether other machines read and write it.
        encrypted: whether the medium cannot be read without a key.
        keys: the key provider; ``None``: it does not encrypt.
        purge_bound_s: longest time for which expired entries stay on the medium while the tier runs; ``None``: not
            known.
        wall_clock: returns nanoseconds since 1970; the tier measures the age of entries by it.
        place: identifies the medium, without secrets, and is the same in every process. An erasure that a process left
            behind is made by the tier with the same name and place.
        lease_s: longest duration of a lease of a shared tier, and of the wait for it; 0: the tier has no leases.
        preserves: whether it preserves an entry below its minimum age when a newer value of its key comes, and a held
            one if that may not be stored.
    """

    name: str
    on_disk: bool
    shared: bool
    encrypted: bool
    keys: KeyProvider | None
    purge_bound_s: float | None
    wall_clock: Clock
    place: str = ""
    lease_s: float = 0.0
    preserves: bool = False

    async def start(self) -> None:
        """Open the medium; do not raise if a medium is unreachable but may become reachable later."""

    async def stop(self) -> None:
        """Close the medium; idempotent. Later operations are misses."""

    async def get(self, key: str | bytes) -> Entry | None:
        """Return the entry of a key; ``None`` if it has none, or it expired or cannot be read; arrays are read-only.

        Does not raise errors of the medium.
        """

    async def put(self, key: str | bytes, entry: Entry) -> bool:
        """Store or replace the entry of a key; return whether it is stored. Does not raise errors of the medium."""

    async def delete(self, key: str | bytes) -> bool:
        """Remove the entry of a key; return whether it has none now. Does not raise errors of the medium.

        A put of this key that ended or was cancelled before has no effect afterwards.
        """

    async def supersede(self, key: str | bytes) -> bool:
        """Remove the entry of a key, like a put of a newer value that the tier may not store; see `delete`.

        A tier that ``preserves`` entries keeps one that it must preserve, but no read returns it.
        """
        return await self.delete(key)

    async def erase(self, *, subject: str | None = None, tag: str | None = None) -> int:
        """Remove all entries of a subject or with a tag; return how many were removed.

        Raises:
            TypeError: not exactly one of the two is given.
            BackendError, CircuitOpen, Closed: the entries may still be there.
        """

    async def inventory(self, classes: Iterable[str] = ()) -> list[Held] | None:
        """Return the entries of the tier by data class; ``None`` if counting them would delay others.

        Args:
            classes: names of data classes; an encrypted tier cannot read other names and reports them as ``"?"``.

        Raises:
            BackendError, CircuitOpen, Closed: the medium failed.
        """

    def scan(self) -> Iterable[RecordCopy]:
        """Yield every copy of a record that can be read from the medium with the available keys, for ``si.prove``.

        Reads the medium itself instead of its indices: the raw bytes of all files, freed pages included, or every key
        of a server. Callable in any thread, whether or not the tier runs; blocks.

        Raises:
            BackendError: the medium cannot be read.
        """

    def statistics(self) -> TierStatistics:
        """Return a frozen snapshot."""

    async def hold(self, *, subject: str | None = None, tag: str | None = None, on: bool) -> bool:
        """Begin or end a legal hold; return whether the tier supports holds.

        While a hold lasts, no purge and no eviction removes the entries that it matches.

        Raises:
            TypeError: not exactly one of subject and tag is given.
            BackendError, Closed: the hold may not have begun or ended.
        """
        del subject, tag, on  # this tier has no holds
        return False

    async def take_lease(self, key: str | bytes, token: bytes) -> bool:
        """Take the lease of a key, unless another caller has it; does not raise errors of the medium.

        Returns:
            Whether to compute: this token now has the lease, the holder had nothing to share, or the tier failed. If
            false, another caller computes.
        """
        del key, token  # this tier has no leases
        return True

    async def open_lease(self, key: str | bytes, token: bytes) -> None:
        """End the lease of this token without an entry, so that its waiters compute at once. A put ends a lease too."""
        del key, token  # this tier has no leases

    def hear(self, listener: Callable[[Notice], object]) -> None:
        """Call ``listener`` on the tier's event loop with each later `Notice` of another user's deletion or erasure."""
        del listener  # this tier has no other users

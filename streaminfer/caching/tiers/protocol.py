"""Protocols of tiers, and the entries that they hold; leases and notices of shared tiers.

A tier may forget, and may fail: both are misses, counted. It never answers wrongly, never blocks the event loop, and
never keeps silent about an erasure that it could not make.
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
"""An entry from further in the future than this was written by a clock that has since been set back: its age is
unknown, so it counts as expired."""


def in_ns(seconds: float) -> int:
    """Return seconds as whole nanoseconds, at most the longest fresh and stale time of a cache together."""
    return round(min(seconds, 2 * LONGEST_S) * 1e9)


def _tags(tags: Any) -> Any:
    return frozenset(tags) if isinstance(tags, Iterable) and not isinstance(tags, (str, bytes)) else tags


def _are_tags(value: Any) -> bool:
    return isinstance(value, frozenset) and all(map(_is_string, value))


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


@attrs.frozen(kw_only=True)
class Entry:
    """A value with what must be known of it wherever it lies.

    Args:
        value: anything that :func:`~streaminfer.caching.codec.encode` holds.
        stored_ns: when it was computed, nanoseconds of the wall clock (``time.time_ns``), which outlives the process.
        ttl_s: seconds that it may be kept from then on; ``None``: no limit. Expired means now ≥ stored + ttl.
        stale_s: how many of these, the last ones, it is stale: good enough while a fresh answer is computed.
        tags: names by which it can be erased.
        subject: whose data it is; ``None``: no person's.
        data_class: of a retention policy; ``""``: the default one.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    value: Any = attrs.field(repr=False)
    stored_ns: int = attrs.field(validator=field_check(check_count, at_least=0, at_most=2**63 - 1))
    ttl_s: float | None = attrs.field(default=None, validator=field_check(check_duration, optional=True))
    stale_s: float = attrs.field(default=0.0, validator=field_check(check_duration))
    tags: frozenset[str] = attrs.field(
        default=frozenset(), converter=_tags, validator=field_check(check_instance, _are_tags, "strings")
    )
    subject: str | None = attrs.field(
        default=None, validator=field_check(check_instance, _is_string, "a string", optional=True)
    )
    data_class: str = attrs.field(default="", validator=field_check(check_instance, _is_string, "a string"))

    @property
    def expires_ns(self) -> int | None:
        """The instant from which it is expired, wall clock; ``None``: never."""
        return None if self.ttl_s is None else self.stored_ns + in_ns(self.ttl_s)

    def is_expired(self, now_ns: int) -> bool:
        """Return whether it may no longer be used, at an instant of the wall clock."""
        expires_ns = self.expires_ns
        return (expires_ns is not None and now_ns >= expires_ns) or self.stored_ns > now_ns + SKEW_NS


@attrs.frozen(kw_only=True)
class TierStatistics(Snapshot):
    """Counters of a tier since it was made.

    Counting rule: each ``get`` is a hit or a miss. A miss may also be one of ``errors``, ``skipped`` or ``unreadable``.
    Each ``put`` is one of ``stored``, ``errors``, ``skipped`` or ``rejected``.

    Attributes:
        name: of the kind of tier.
        hits: gets that gave an entry.
        misses: gets that did not.
        stored: puts that are on the medium.
        rejected: puts of what the tier cannot hold (a type that cannot be encoded, labels of over 1.8 KB, too
            large, or expired already), and puts during which something was erased on a shared server.
        skipped: operations that were not tried: the tier is not running, its breaker is open, or too many wait.
        errors: operations that failed on the medium.
        unreadable: records that were corrupt, or whose key is gone; they were removed.
        evicted: entries that gave way to others.
        erased: entries that were erased by subject or tag, or deleted by key.
        purged: entries that were removed because they had expired; what a server removes by itself is not among them.
        rebuilds: how often a medium that was corrupt was replaced by an empty one.
        entries: entries on the medium as of the last write or purge; ``None``: not known.
        size_bytes: what they take there; ``None``: not known.
        last_error: the latest failure, in words; ``""``: none.
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
    """Value that a tier had.

    Attributes:
        value: of which ``copy_out`` gives views.
        about: subject and tags, to erase it by.
        source: the tier's name.
        position: of the tier.
        computed_ns: when it was computed, on the cache's clock.
        fresh_ns: for how long it is fresh from then on; ``NEVER``: for good.
        stale_ns: for how long after that it can be used, stale.
        is_stale: its fresh time had passed when it was read.
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
        """Until when it can be used, on the cache's clock; of one that is fresh for good, later than any instant."""
        return self.computed_ns + self.fresh_ns + self.stale_ns


class Held(NamedTuple):
    """Entries that a tier has of one data class.

    Attributes:
        data_class: its name; ``""``: the default one.
        entries: how many, expired ones that were not purged yet included.
        oldest_ns: when the oldest was computed, wall clock.
        size_bytes: of their records.
    """

    data_class: str
    entries: int
    oldest_ns: int
    size_bytes: int


class RecordCopy(NamedTuple):
    """A copy of a record that can be read off a medium, whether or not the tier knows that it is there.

    Attributes:
        place: where it lies, such as a file's name; no personal data.
        identity: bytes that no other record begins with.
        entry: what can be read of it; its value is ``None``, because only the beginning is looked at.
    """

    place: str
    identity: bytes
    entry: Entry


@attrs.frozen(kw_only=True)
class Notice:
    """Another user of the tier deleted or erased something there; exactly one of these is given.

    Attributes:
        key: whose entry.
        subject: whose entries.
        tag: with which tag.
    """

    key: str | bytes | None = None
    subject: str | None = None
    tag: str | None = None


@runtime_checkable
class Tier(Protocol):
    """Holds entries outside the process's memory. One of your own inherits from it, and so has what it does not say.

    All coroutines may be called from one event loop, any number at once, and may be cancelled. A put that was
    cancelled may take effect or not, but not after a later erasure has ended.

    Attributes:
        name: of the kind of tier, as answers and statistics call it.
        on_disk: it writes to a disk of this machine.
        shared: other machines read and write it.
        encrypted: what lies on the medium cannot be read without a key.
        keys: the key provider; ``None``: it does not encrypt.
        purge_bound_s: how long the medium may hold what has expired, while the tier runs; ``None``: not known.
        wall_clock: nanoseconds since 1970, by which it judges the age of entries.
        place: which medium it is, without secrets, the same in another process. The tier of the same name and place
            makes an erasure that a process left behind.
        lease_s: how long a lease of a shared tier lasts at most, and how long others wait for it; 0: it has none.
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

    async def start(self) -> None:
        """Open the medium; one that cannot be reached yet is no error if it may come later."""

    async def stop(self) -> None:
        """Close it; idempotent. Operations after this are misses."""

    async def get(self, key: str | bytes) -> Entry | None:
        """Return the entry of a key, unless it expired or cannot be read; arrays are read-only.

        Raises nothing of the medium.
        """

    async def put(self, key: str | bytes, entry: Entry) -> bool:
        """Store an entry in place of any of that key; return whether it is stored. Raises nothing of the medium."""

    async def delete(self, key: str | bytes) -> bool:
        """Remove the entry of a key; return whether there is none now. Raises nothing of the medium.

        A put of this key that ended before, or was cancelled, has no effect after it.
        """

    async def erase(self, *, subject: str | None = None, tag: str | None = None) -> int:
        """Remove all entries of a subject, or with a tag; return how many there were.

        Raises:
            TypeError: not exactly one of both.
            BackendError, CircuitOpen, Closed: they may still be there.
        """

    async def inventory(self, classes: Iterable[str] = ()) -> list[Held] | None:
        """Return what it holds, by data class; ``None``: it cannot say without delaying others.

        Args:
            classes: names of data classes; an encrypted tier cannot read others off its medium, and calls them ``"?"``.

        Raises:
            BackendError, CircuitOpen, Closed: the medium failed.
        """

    def scan(self) -> Iterable[RecordCopy]:
        """Yield every copy of a record that can be read off the medium with the keys that there are, for ``si.prove``.

        Looks at the medium itself and not at indices: raw bytes of all files, freed pages included, every key of a
        server. For any thread, whether or not the tier runs; blocks.

        Raises:
            BackendError: the medium cannot be read.
        """

    def statistics(self) -> TierStatistics:
        """Return a frozen snapshot."""

    async def hold(self, *, subject: str | None = None, tag: str | None = None, on: bool) -> bool:
        """Begin or end a legal hold, and return whether the tier has holds at all.

        While it lasts no purge and no eviction removes what it matches.

        Raises:
            TypeError: not exactly one of subject and tag.
            BackendError, Closed: it may not have begun, or ended.
        """
        del subject, tag, on  # it has none
        return False

    async def take_lease(self, key: str | bytes, token: bytes) -> bool:
        """Take the lease of a key, unless another has it; raises nothing of the medium.

        Returns:
            Whether to compute: the lease is held by this token now, who held it had nothing to share, or the tier
            failed. Otherwise another computes.
        """
        del key, token  # it has no leases
        return True

    async def open_lease(self, key: str | bytes, token: bytes) -> None:
        """End a lease of this token without an entry: its waiters compute at once. A put ends it as well."""
        del key, token  # it has no leases

    def hear(self, listener: Callable[[Notice], object]) -> None:
        """Call ``listener``, on the tier's event loop, with each later notice of what others deleted and erased."""
        del listener  # there are no others

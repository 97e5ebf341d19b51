"""Names and records of entries on a medium, sealed if a tier has keys, and the counters of a tier."""

from __future__ import annotations

import hashlib
import time
from abc import abstractmethod
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from typing import Any, Self, TypeVar

import attrs

from streaminfer._internal.error_log import ErrorLog
from streaminfer._internal.validation import check_clock, check_instance
from streaminfer.caching.codec import HEAD_AT, RECORD_MARK, CorruptRecord, decode, encode, first_value
from streaminfer.caching.erasure.erasure import check_selection
from streaminfer.caching.tiers.encryption import SEALED_HEAD, SEALED_MARK, Cipher, KeyProvider, StoredKeys
from streaminfer.caching.tiers.protocol import Entry, RecordCopy, Tier, TierStatistics
from streaminfer.errors import text_of_error
from streaminfer.protocols import Clock

__all__ = ["PREFIX_BYTES", "Counters", "MediumTier", "Records", "selection"]

PREFIX_BYTES = 2000
"""Bytes that are read from the beginning of a record; SQLite stores at least these in one piece."""

T = TypeVar("T")

_FIELDS = ("stored_ns", "ttl_s", "stale_s", "tags", "subject", "data_class")
_LABEL_END = PREFIX_BYTES - SEALED_HEAD
_LONGEST_NAME = 64  # bytes


class Records:
    """Turns keys into names and entries into records, and back.

    With keys, nothing on the medium can be read without them: records are sealed, and the names of keys, subjects and
    tags are keyed hashes. A record contains its entry's name, or is authenticated with it, so a record in the wrong
    place is detected.

    Args:
        keys: a key provider, or ``None``.
        counters: of the tier.
    """

    def __init__(self, keys: KeyProvider | None, counters: Counters) -> None:
        self.keys = keys
        self._counters = counters
        self._cipher = None if keys is None else Cipher(keys)

    def name(self, kind: bytes, text: str | bytes) -> bytes:
        """Return the name on the medium of a key (``b"k"``), subject (``b"s"``), tag (``b"t"``) or class (``b"c"``)."""
        plain = kind + (b"b" + text if isinstance(text, bytes) else b"s" + text.encode("utf-8", "surrogatepass"))
        return plain if self._cipher is None else self._cipher.blind(plain)

    def hold_keys(self, name: bytes, on: bool) -> None:
        """Keep keys that may be of held entries, or end that; ``name`` is that of the hold, with its medium.

        Raises:
            BackendError: the keys failed, not the medium.
        """
        if self._cipher is not None and isinstance(self.keys, StoredKeys):
            self._cipher.call_provider(self.keys.hold, name, on)

    def pack(self, name: bytes, entry: Entry) -> bytes:
        """Return the record of an entry; empty if a tier cannot store it, with the reason in the counters.

        A tier cannot store a value that cannot be encoded, or labels that are too long for a proof to read.
        """
        label = [sorted(entry.tags) if field == "tags" else getattr(entry, field) for field in _FIELDS]
        try:
            record = encode([_written(name), *label], entry.value)
        except (TypeError, ValueError) as error:
            self._counters.last_error = str(error)
            return b""
        if record.find(b"\n", HEAD_AT, _LABEL_END) < 0:
            self._counters.last_error = "subject and tags are longer than the 1.8 KB that a proof can read of them"
            return b""
        if self._cipher is None:
            return record
        return self._cipher.seal(record, name=name, subject=entry.subject, lasts_s=entry.ttl_s)

    def unpack(self, name: bytes, record: Any) -> Entry:
        """Return the entry of a record. Raises `CorruptRecord` if it is not a record of exactly that name."""
        if not isinstance(record, bytes):
            raise CorruptRecord(f"expected a record, got {type(record).__name__}")
        if self._cipher is not None:
            record = self._cipher.open(record, name=name)
        try:
            (own_name, *label), value = decode(record)
            entry = _entry(label, value)
        except (TypeError, ValueError) as error:
            raise error if isinstance(error, CorruptRecord) else CorruptRecord(f"not an entry: {error}") from error
        if own_name != _written(name):
            raise CorruptRecord("the record of another entry")
        return entry

    def copies(self, raw: bytes, place: str, skipped: Container[bytes] = ()) -> Iterator[RecordCopy]:
        """Yield every record whose beginning lies in the given bytes and can be read with the available keys.

        Args:
            raw: bytes of a medium.
            place: name of the place where they lie.
            skipped: identities of records to skip. Their keys are not requested, which could be slow or fail.
        """
        mark = RECORD_MARK if self._cipher is None else SEALED_MARK
        start = raw.find(mark)
        while start >= 0:
            prefix = raw[start : start + PREFIX_BYTES]
            label = None
            if prefix[:SEALED_HEAD] not in skipped:
                plain = prefix if self._cipher is None else self._cipher.decrypt_prefix(prefix)
                label = None if plain is None else first_value(plain)
            if isinstance(label, list):
                with suppress(TypeError, ValueError):  # the beginning of a record, followed by other bytes
                    yield RecordCopy(place, prefix[:SEALED_HEAD], _entry(label[1:], None))
            start = raw.find(mark, start + 1)


def _written(name: bytes) -> str:
    """Return a name as a record has it; a long one as its digest, so that the labels after it can be read."""
    return name.hex() if len(name) <= _LONGEST_NAME else hashlib.sha256(name).hexdigest()


def _entry(label: list[Any], value: Any) -> Entry:
    return Entry(value=value, **dict(zip(_FIELDS, label, strict=True)))


class Counters:
    """Counters behind a `TierStatistics`. A counter belongs to one thread at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.hits = self.misses = self.stored = self.rejected = self.skipped = self.errors = self.unreadable = 0
        self.evicted = self.erased = self.purged = self.rebuilds = 0
        self.entries: int | None = None
        self.size_bytes: int | None = None
        self.last_error = ""
        self._log = ErrorLog("streaminfer.caching")

    def failed(self, error: BaseException) -> None:
        """Count an operation that failed on the medium; the first error of each class is logged."""
        self.errors += 1
        self.last_error = text_of_error(error)
        self._log.report(f"the tier {self.name}", error)

    def snapshot(self) -> TierStatistics:
        """Return a frozen snapshot of the counters."""
        return TierStatistics(**{field.name: getattr(self, field.name) for field in attrs.fields(TierStatistics)})


class MediumTier(Tier):
    """Common part of tiers on a medium.

    Args:
        keys: encrypts records and names; ``None``: they are plain.
        wall_clock: returns nanoseconds since 1970; ``None``: ``time.time_ns``.
    """

    # operations on the medium, for `_attempt`
    _get: Callable[[str | bytes], Any]
    _put: Callable[[str | bytes, Entry | None], Any]
    _delete: Callable[[str | bytes], Any]

    def __init__(self, keys: KeyProvider | None, wall_clock: Clock | None) -> None:
        self.keys = keys
        self.encrypted = keys is not None
        self.wall_clock = check_clock("wall_clock", wall_clock) or time.time_ns
        self._counters = Counters(self.name)
        self._records = Records(keys, self._counters)

    @abstractmethod
    async def _attempt(self, otherwise: T, operation: Callable[..., Any], *args: Any) -> T:
        """Return the result of an operation; if it fails or cannot be tried, count that and return ``otherwise``."""

    async def get(self, key: str | bytes) -> Entry | None:
        """Return the entry of a key; ``None`` if it has none, or it expired or cannot be read. Arrays are read-only.

        Raises:
            TypeError: the key is neither a string nor bytes.
        """
        _check_key(key)
        entry: Entry | None = await self._attempt(None, self._get, key)
        self._counters.hits += entry is not None
        self._counters.misses += entry is None
        return entry

    async def put(self, key: str | bytes, entry: Entry) -> bool:
        """Store an entry; replace the old entry of its key.

        Returns:
            Whether it is on the medium.

        Raises:
            TypeError: the key is neither a string nor bytes, or ``entry`` is not an `Entry`.
        """
        _check_key(key)
        check_instance("entry", entry, Entry, "an Entry")
        return await self._attempt(False, self._put, key, entry)

    async def delete(self, key: str | bytes) -> bool:
        """Remove the entry of a key. A file's write-ahead log loses its copy at the next purge at the latest.

        Returns:
            Whether the medium has no entry of the key now.

        Raises:
            TypeError: the key is neither a string nor bytes.
        """
        _check_key(key)
        return await self._attempt(False, self._delete, key)

    async def supersede(self, key: str | bytes) -> bool:
        """Remove the entry of a key whose newer value may not be stored; return whether no read returns it now.

        Raises:
            TypeError: the key is neither a string nor bytes.
        """
        _check_key(key)
        return await self._attempt(False, self._put, key, None)

    def statistics(self) -> TierStatistics:
        """Return a frozen snapshot; size and entries are those of the last write or purge, if known."""
        return self._counters.snapshot()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def _check_key(key: Any) -> None:
    """Raise ``TypeError`` unless a key is a string or bytes."""
    check_instance("key", key, str | bytes, "a string or bytes")


def selection(subject: Any, tag: Any) -> tuple[bytes, str]:
    """Return the kind of an erasure (``b"s"``: by subject, ``b"t"``: by tag) and its name. Raises ``TypeError``."""
    subject, tag = check_selection(subject, tag)
    return (b"s", subject) if tag is None else (b"t", tag)

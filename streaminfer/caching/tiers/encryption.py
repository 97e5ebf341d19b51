"""Encryption at rest: AES-256-GCM, and keys that can be destroyed.

A record cannot be deleted with certainty: copies may lie in old blocks of a disk, in a snapshot, or in the memory of a
server that is unreachable. Its key can be deleted. Each subject therefore has its own keys. Destroying them makes
everything that was written about the subject unreadable, on every medium at once (crypto-shredding).

A sealed record::

    bytes 0-5  "si-aes"    6-7  version    8-23  key id    24-35  nonce    36-  ciphertext, and 16 bytes of tag

The first 36 bytes and the entry's name are authenticated too: an attacker who can write to a medium can neither alter a
record nor put one in place of another. (An old record of the same name can be put back, but the age inside still
counts.) Nonces are random; rotate before a key has sealed 2³² records (NIST SP 800-38D). Key ids are random and reveal
nothing.

:class:`StoredKeys` stores its keys in a SQLite file, each wrapped by a master key that lives elsewhere. Old blocks of
that file are useless without the master key. After :meth:`~StoredKeys.rewrap`, they can never be read again once the
old master key is destroyed. Nothing is cached: a key that one process destroys is gone for all at their next read.

That file serves the processes of *one* machine. If several machines share a tier, as with Redis, use `ServiceKeys` of
``service_keys``, which gets the keys from a service that all machines call, such as a key management system.
"""

import hashlib
import hmac
import os
import re
import secrets
import sqlite3
import struct
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, runtime_checkable

import attrs

from streaminfer._internal.forking import new_awaited_lock
from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_clock, check_instance, check_path, check_secret, field_check
from streaminfer.caching.codec import CorruptRecord
from streaminfer.caching.tiers._sqlite import HOLDS, make_file, set_hold, transaction
from streaminfer.errors import BackendError, text_of_error
from streaminfer.protocols import Clock

__all__ = ["SEALED_HEAD", "SEALED_MARK", "Cipher", "Key", "KeyProvider", "KeyUnknown", "StoredKeys", "hashed_subject"]

_MAGIC = b"si-aes"
_VERSION = 1
_HEADER = struct.Struct("<6sH16s12s")
SEALED_MARK = _HEADER.pack(_MAGIC, _VERSION, b"", b"")[:8]
"""First bytes of every sealed record."""
SEALED_HEAD = _HEADER.size
_TAG = 16
_ID_SIZE = 16
_KEY_SIZE = 32
_BUSY_S = 5.0
_WRAPPED_SIZE = 12 + _KEY_SIZE + _TAG
_RETIRE_EVERY = 256
_MAX_SEARCHED_KEYS = 16
"""Most destroyed keys whose copies are searched for in the file; for more, rewriting the file is faster."""
_SPARE_NS = 86_400 * 10**9  # spare time, so that not every later record of a subject costs a flush of the disk
_NO_EXPIRY_NS = 2**63 - 1
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS keys (
    id BLOB PRIMARY KEY, owner BLOB NOT NULL, generation INTEGER NOT NULL, wrapped BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS by_owner ON keys (owner, generation);
CREATE TABLE IF NOT EXISTS ring (
    one INTEGER PRIMARY KEY CHECK (one = 1), generation INTEGER NOT NULL, secret BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS expiries (
    id BLOB PRIMARY KEY REFERENCES keys (id) ON DELETE CASCADE, until_ns INTEGER NOT NULL);
{HOLDS}"""
_CURRENT = f"""
SELECT keys.id, wrapped, coalesce(until_ns, {_NO_EXPIRY_NS}) FROM keys LEFT JOIN expiries USING (id)
WHERE owner = ? AND generation = (SELECT generation FROM ring)
"""  # noqa: S608 - a number
_EXPIRED = "id IN (SELECT id FROM expiries WHERE until_ns < ?) AND NOT EXISTS (SELECT 1 FROM holds)"
_ROW = re.compile(rb"\x06\x2c\x4c([\x01-\x06\x08\x09])\x81\x04")
"""How SQLite begins a row of ``keys``: blobs of 16 and 32 bytes, a number with its size, a blob of 60 bytes."""
_NUMBER_SIZES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 8: 0, 9: 0}


class KeyUnknown(CorruptRecord):
    """Raised when the key of a record was destroyed or is not the provider's; the record cannot be read again."""


@attrs.frozen
class Key:
    """One AES-256 key.

    Attributes:
        id: 16 random bytes that identify it on the medium.
        secret: its 32 bytes; not in the ``repr``.
    """

    id: bytes = attrs.field(validator=field_check(check_secret, at_least=_ID_SIZE, at_most=_ID_SIZE))
    secret: bytes = attrs.field(repr=False, validator=field_check(check_secret, at_least=_KEY_SIZE, at_most=_KEY_SIZE))


@runtime_checkable
class KeyProvider(Protocol):
    """Source of keys: ``StoredKeys``, or ``ServiceKeys`` of ``service_keys``.

    Tiers call it from their threads, several at once; it may block.
    """

    def current(self, subject: str | None, lasts_s: float | None = None) -> Key:
        """Return the current sealing key of a subject, or of entries without one (``None``); make it if there is none.

        It must exist for ``lasts_s`` seconds from now; ``None``: until it is destroyed.
        """

    def find(self, key_id: bytes) -> Key | None:
        """Return the key with this id; ``None`` if it was destroyed or never existed."""

    def destroy(self, subject: str) -> int:
        """Destroy all keys of a subject permanently; return how many there were."""

    def index_secret(self) -> bytes:
        """Return at least 16 secret bytes that stay the same; they hide the names of entries, subjects and tags."""


class Cipher:
    """Seals records with keys of a provider.

    Args:
        keys: the provider.

    Raises:
        TypeError: ``keys`` is not a key provider.
        MissingExtra: ``cryptography`` is not installed.

    Thread-safe.
    """

    def __init__(self, keys: KeyProvider) -> None:
        check_instance("keys", keys, KeyProvider, "a key provider")
        self._keys = keys
        self._aes = _aes_gcm()
        self._index_secret = keys.index_secret()

    def seal(self, data: bytes, *, name: bytes, subject: str | None = None, lasts_s: float | None = None) -> bytes:
        """Encrypt a record.

        Args:
            data: the plain record.
            name: of the entry; opening needs and checks it.
            subject: use the key of this subject; ``None``: the key of entries without a subject.
            lasts_s: seconds for which it must be readable; ``None``: until its key is destroyed.

        Returns:
            The sealed record, 52 bytes longer.
        """
        key: Key = self.call_provider(self._keys.current, subject, lasts_s)
        nonce = os.urandom(12)
        header = _HEADER.pack(_MAGIC, _VERSION, key.id, nonce)
        sealed: bytes = self._aes(key.secret).encrypt(nonce, data, header + name)
        return header + sealed

    def open(self, sealed: bytes, *, name: bytes) -> bytes:
        """Decrypt a record.

        Args:
            sealed: what :meth:`seal` returned.
            name: the name that it was sealed with.

        Returns:
            The data.

        Raises:
            KeyUnknown: its key was destroyed, or is not the provider's.
            CorruptRecord: the record was altered, cut short or moved from another name, or is not a sealed record.
            BackendError: the provider failed; the other methods raise it too.
        """
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - an optional dependency

        if len(sealed) < _HEADER.size + _TAG:
            raise CorruptRecord(f"cut short: {len(sealed)} bytes are no sealed record")
        _, _, key_id, nonce = _HEADER.unpack_from(sealed)
        if not sealed.startswith(SEALED_MARK):
            raise CorruptRecord(f"not a sealed record of version {_VERSION}")
        key: Key | None = self.call_provider(self._keys.find, key_id)
        if key is None:
            raise KeyUnknown("its key was destroyed, or is not the provider's")
        header = bytes(sealed[: _HEADER.size])
        try:
            data: bytes = self._aes(key.secret).decrypt(nonce, memoryview(sealed)[_HEADER.size :], header + name)
        except InvalidTag as error:
            raise CorruptRecord("altered, or sealed for another entry") from error
        return data

    def decrypt_prefix(self, sealed: bytes) -> bytes | None:
        """Decrypt the beginning of a record whose end may be missing, without proof that it was not altered.

        Args:
            sealed: bytes that begin with a sealed record.

        Returns:
            The beginning of the data; ``None`` if its key is destroyed or it is not a record.
        """
        from cryptography.hazmat.primitives.ciphers import Cipher as Stream  # noqa: PLC0415 - an optional dependency
        from cryptography.hazmat.primitives.ciphers import algorithms, modes  # noqa: PLC0415 - the same

        if len(sealed) < _HEADER.size or not sealed.startswith(SEALED_MARK):
            return None
        _, _, key_id, nonce = _HEADER.unpack_from(sealed)
        key: Key | None = self.call_provider(self._keys.find, key_id)
        if key is None:
            return None
        prefix: bytes = Stream(algorithms.AES(key.secret), modes.GCM(nonce)).decryptor().update(sealed[_HEADER.size :])
        return prefix

    @staticmethod
    def call_provider(method: Callable[..., Any], *args: Any) -> Any:
        """Call the provider; report its exceptions as failures of the keys, not of the tier's medium."""
        try:
            return method(*args)
        except Exception as error:
            raise BackendError(f"the keys failed: {text_of_error(error)}") from error

    def blind(self, text: bytes) -> bytes:
        """Return a name that reveals nothing: HMAC-SHA-256 of the text with the index secret, 32 bytes."""
        return hmac.digest(self._index_secret, text, hashlib.sha256)


class StoredKeys:
    """Keys in a SQLite file, wrapped by a master key.

    Args:
        path: of the file, which is made with access for its owner only; ``":memory:"``: keys that end with the
            process, so that the entries become unreadable.
        master: 32 secret bytes from your secret store; :func:`secrets.token_bytes` makes one.
        wall_clock: returns nanoseconds since 1970; ``None``: ``time.time_ns``.

    A key's time ends after all records that it sealed have expired: up to a day later, or up to the time of its records
    if that is longer. Expired keys are removed when the file is opened and with every 256th new key, but not while a
    legal hold is on a `DiskTier`.

    Raises:
        TypeError, ValueError: the master key has another size, or is not the one of this file.
        sqlite3.Error: the file cannot be made, read or written; also from every method.
        MissingExtra: ``cryptography`` is not installed.

    Thread-safe. Any number of processes on one machine may share the file, but not other machines.
    """

    def __init__(self, path: str | os.PathLike[str], *, master: bytes, wall_clock: Clock | None = None) -> None:
        self._aes = _aes_gcm()
        self._now = check_clock("wall_clock", wall_clock) or time.time_ns
        self._new_keys = 0
        self._master = check_secret("master", master, at_least=_KEY_SIZE, at_most=_KEY_SIZE)
        self._lock = new_awaited_lock()  # held at a fork: a child must not continue a transaction
        self._path = check_path("path", path)
        self._needs_scrub = False
        if str(path) != ":memory:":
            self._path.parent.mkdir(parents=True, exist_ok=True)
            make_file(path)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)
        self._finalizer = weakref.finalize(self, self._db.close)  # closes the file of keys freed without `close`
        try:
            self._secret = self._prepare()
            self._destroy(_EXPIRED, self._now())
        except BaseException:
            self._finalizer()
            raise

    def _prepare(self) -> bytes:
        self._db.execute("PRAGMA secure_delete = ON")
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.execute("PRAGMA synchronous = EXTRA")  # a key must be on the disk before records that it seals
        with self._writing():
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            row = self._db.execute("SELECT secret FROM ring").fetchone()
            if row is None:
                secret = secrets.token_bytes(32)
                self._db.execute("INSERT INTO ring VALUES (1, 1, ?)", (self._wrap(secret, b"ring"),))
                return secret
        secret = self._unwrap(row[0], b"ring")
        if self.recoverable():  # an earlier process ended after destroying keys and before overwriting their copies
            self._db.execute("VACUUM")
        return secret

    def current(self, subject: str | None, lasts_s: float | None = None) -> Key:
        """Return a subject's key of the current generation; see `KeyProvider.current`."""
        owner = hashed_subject(self._secret, subject)
        now_ns = self._now()
        lasts_ns = _NO_EXPIRY_NS if lasts_s is None else round(min(lasts_s * 1e9, _NO_EXPIRY_NS))
        with self._lock:
            row, master = self._db.execute(_CURRENT, (owner,)).fetchone(), self._master
        if row is None or row[2] < min(now_ns + lasts_ns, _NO_EXPIRY_NS):
            with self._writing():
                # another process or thread may have made the key first
                row, master = self._db.execute(_CURRENT, (owner,)).fetchone(), self._master
                if row is None:
                    self._check_master()
                    key_id = secrets.token_bytes(_ID_SIZE)
                    row = (key_id, self._wrap(secrets.token_bytes(_KEY_SIZE), key_id), 0)
                    self._db.execute("INSERT INTO keys SELECT ?, ?, generation, ? FROM ring", (key_id, owner, row[1]))
                    self._new_keys += 1
                until_ns = min(now_ns + lasts_ns + max(lasts_ns, _SPARE_NS), _NO_EXPIRY_NS)
                self._db.execute("INSERT OR REPLACE INTO expiries VALUES (?, ?)", (row[0], max(row[2], until_ns)))
            if self._new_keys >= _RETIRE_EVERY:
                self._new_keys = 0
                self._destroy(_EXPIRED, self._now())
        return Key(row[0], self._unwrap(row[1], row[0], master))

    def hold(self, name: bytes, on: bool) -> None:
        """Begin or end a hold; while there is one, no key is removed because its time has passed."""
        with self._writing():
            set_hold(self._db, name, on)

    def find(self, key_id: bytes) -> Key | None:
        """Return the key with this id; ``None`` if it was destroyed or never existed."""
        with self._lock:
            row = self._db.execute("SELECT wrapped FROM keys WHERE id = ?", (bytes(key_id),)).fetchone()
            master = self._master
        return None if row is None else Key(bytes(key_id), self._unwrap(row[0], bytes(key_id), master))

    def destroy(self, subject: str) -> int:
        """Destroy all keys of a subject, so that their records can never be read again.

        Returns:
            The number of keys. Later records of the subject get a new key.
        """
        check_instance("subject", subject, str, "a string")
        return self._destroy("owner = ?", hashed_subject(self._secret, subject))

    def index_secret(self) -> bytes:
        """Return 32 bytes that stay the same for the life of the file."""
        return self._secret

    def rotate(self) -> None:
        """Begin a new generation of keys: new keys seal from now on, old keys only read. Do so before 2³² records."""
        with self._writing():
            self._db.execute("UPDATE ring SET generation = generation + 1")

    def retire(self) -> int:
        """Destroy the keys of all earlier generations; their records can never be read again.

        Returns:
            The number of keys.
        """
        return self._destroy("generation < (SELECT generation FROM ring)")

    def recoverable(self) -> int:
        """Return how many destroyed keys can still be read from the bytes of the file; 0 if the destruction worked.

        Reads every byte, freed pages and the journal included, with the master key; about 0.5 s for 100,000 keys.
        """
        with self._lock:
            live = {key_id for (key_id,) in self._db.execute("SELECT id FROM keys")}
            raw = self._raw()
        recovered = set()
        for row in _ROW.finditer(raw):
            key_id = raw[row.end() : row.end() + _ID_SIZE]
            start = row.end() + _ID_SIZE + 32 + _NUMBER_SIZES[row[1][0]]
            if key_id not in live:
                with suppress(ValueError):  # other bytes, or a part of a key
                    self._unwrap(raw[start : start + _WRAPPED_SIZE], key_id)
                    recovered.add(key_id)
        return len(recovered)

    def _raw(self) -> bytes:
        """Return the bytes of the file, through SQLite, and of its journal; opening the file would lose its locks."""
        journal = self._path.with_name(self._path.name + "-journal")
        return self._db.serialize() + (journal.read_bytes() if journal.exists() else b"")

    def _destroy(self, where: str, *values: bytes | int) -> int:
        """Delete keys, and the copies that SQLite leaves of rows that it has moved."""
        with self._writing():
            wrapped = [row[0] for row in self._db.execute(f"SELECT wrapped FROM keys WHERE {where}", values)]  # noqa: S608 - literals
            destroyed = self._db.execute(f"DELETE FROM keys WHERE {where}", values).rowcount  # noqa: S608 - the same
        with self._lock:
            if len(wrapped) > _MAX_SEARCHED_KEYS:
                self._needs_scrub = True
            elif wrapped and not self._needs_scrub:
                raw = self._raw()
                self._needs_scrub = any(part in raw for row in wrapped for part in (row[12:28], row[28:44]))
            if self._needs_scrub:
                self._db.execute("VACUUM")
                self._needs_scrub = False
        return destroyed

    def rewrap(self, master: bytes) -> None:
        """Change the master key; other processes must then be restarted with it.

        Until then they can neither read nor write sealed records: each operation raises `ValueError`.

        Args:
            master: the new master key, 32 bytes.

        Raises:
            TypeError, ValueError: it has another size, or another process changed the key after the file was opened.
        """
        new = check_secret("master", master, at_least=_KEY_SIZE, at_most=_KEY_SIZE)
        with self._lock:
            with transaction(self._db):
                self._check_master()
                for key_id, wrapped in self._db.execute("SELECT id, wrapped FROM keys").fetchall():
                    again = self._wrap(self._unwrap(wrapped, key_id), key_id, new)
                    self._db.execute("UPDATE keys SET wrapped = ? WHERE id = ?", (again, key_id))
                self._db.execute("UPDATE ring SET secret = ?", (self._wrap(self._secret, b"ring", new),))
            self._master = new

    def close(self) -> None:
        """Close the file; idempotent."""
        with self._lock:
            self._finalizer()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock, transaction(self._db):
            yield

    def _wrap(self, secret: bytes, name: bytes, master: bytes | None = None) -> bytes:
        nonce = os.urandom(12)
        wrapped: bytes = self._aes(master or self._master).encrypt(nonce, secret, name)
        return nonce + wrapped

    def _check_master(self) -> None:
        """Raise if another process has changed the master key, because others could not unwrap new keys of this one."""
        (wrapped,) = self._db.execute("SELECT secret FROM ring").fetchone()
        self._unwrap(wrapped, b"ring")

    def _unwrap(self, wrapped: bytes, name: bytes, master: bytes | None = None) -> bytes:
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - an optional dependency

        try:
            secret: bytes = self._aes(master or self._master).decrypt(wrapped[:12], wrapped[12:], name)
        except InvalidTag as error:
            raise ValueError("master: this is not the master key that the keys were wrapped by") from error
        return secret

    def __repr__(self) -> str:
        return "<StoredKeys>"


def hashed_subject(secret: bytes, subject: str | None) -> bytes:
    """Return the keyed hash of a subject: no key store contains the names, which are personal data themselves."""
    text = b"-" if subject is None else b"s" + subject.encode("utf-8", "surrogatepass")
    return hmac.digest(secret, text, hashlib.sha256)


def _aes_gcm() -> Any:
    return require("cryptography.hazmat.primitives.ciphers.aead", extra="cache", purpose="encryption at rest").AESGCM

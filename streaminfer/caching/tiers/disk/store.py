"""Entries of a `DiskTier` in a SQLite file. Blocking; for one thread at a time.

SQLite in WAL mode survives a kill at any moment: a transaction is either in the write-ahead log as a whole, with
checksums, or not at all. Opening the file reads the log, which is limited to a few megabytes, and one index, to count
entries. Each record has its own checksum and contains its entry's name, so that reading detects altered records.

* *Bounded*: ``max_page_count`` limits the file. Before a record is written, room is made: expired entries are deleted
  first, then those that were computed first. Free pages are reused.
* *Gone is gone*: ``secure_delete`` overwrites deleted data, and the log is emptied after an erasure or a purge. SQLite
  also leaves copies of moved rows between the cells of a page. The store therefore searches the bytes of the file for
  deleted records. If it finds a readable one that has expired or was erased, it rewrites the file. An erasure also
  searches for records that others that share the file have deleted or replaced.
* *Minimum ages*: an entry below its minimum age is not evicted, and a newer value of its key renames it instead of
  deleting it. No read looks for the new name; a purge deletes the entry at its minimum age.
* *Holds*: a held entry is not evicted or purged, and renamed if a newer value of its key may not be stored.
* *No older value*: a put does not replace a value that was computed later. If it fails, as on a full disk, the old
  entry is deleted, or else not returned by this process, which deletes it at the next purge or at its close.
* *Forks*: a fork copies SQLite's list of the locks that a process has on a file, but not the locks themselves. A forked
  process therefore opens no file that its parent had open.
* *Corruption*: a file that SQLite finds malformed is replaced by an empty one, unless another process has it open.
"""

import fcntl
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from streaminfer._internal.forking import call_in_child, unlock_and_close
from streaminfer.caching.codec import CorruptRecord
from streaminfer.caching.tiers._records import PREFIX_BYTES, Counters, Records
from streaminfer.caching.tiers._sqlite import code_of, make_file, set_hold, transaction
from streaminfer.caching.tiers.disk.raw_files import read_raw
from streaminfer.caching.tiers.disk.schema import DELETE, FORMAT, FREE, INSERT, LATER, TAG, is_damage, prepare
from streaminfer.caching.tiers.encryption import SEALED_HEAD
from streaminfer.caching.tiers.protocol import SKEW_NS, Entry, Held, RecordCopy
from streaminfer.compliance.every_file import every_file

__all__ = ["DiskStore"]

T = TypeVar("T")

_PAGE = 16384  # the best size from 4 to 32 KiB for arrays of 600 KB that wastes little on arrays of 4 KB
_LOG_PAGES = 4 * 2**20 // _PAGE
_SPARE_PAGES = 16  # for splits of the indices
_MAX_OUTDATED = 10_000
_BUSY_MS = 2000
_POLL_INTERVAL_S = 0.001


class DiskStore:
    """Entries in a file.

    Args:
        folder: folder of the file; made if missing.
        max_bytes: largest size of the file.
        records: turns entries into records.
        counters: counters of the tier.
        wall_clock: returns nanoseconds since 1970.
    """

    def __init__(
        self, folder: Path, max_bytes: int, records: Records, counters: Counters, wall_clock: Callable[[], int]
    ) -> None:
        self._folder = folder
        self._file = folder / "cache.db"
        self._max_pages = max_bytes // _PAGE
        self._records = records
        self._counters = counters
        self._now = wall_clock
        self._db: sqlite3.Connection | None = None
        self._lock = -1
        self._identity = (0, 0)  # of the file that is open
        self._may_have_leftovers = True  # assumed until a search finds none
        self._outdated: dict[bytes, int] = {}  # by name of an entry: instant of the failed put that would replace it
        self._deleted: Counter[str] = Counter()  # entries that the current transaction deleted, by reason
        self._searched_version = -1  # the version of the file when leftovers were last looked for
        call_in_child(self.leave_to_parent)

    def open(self) -> None:
        """Open or create the file. Raises ``OSError`` or ``sqlite3.Error``."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            self._connect_or_rebuild()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; idempotent."""
        lock, self._lock = self._lock, -1
        try:
            with suppress(sqlite3.Error):
                self._delete_outdated(*self._outdated)
            self._disconnect()
        finally:
            if lock >= 0:
                unlock_and_close(lock)

    def leave_to_parent(self) -> None:
        """Release the file in a forked process without closing it; SQLite allows only the parent to close it."""
        db, self._db = self._db, None
        if db is not None:
            _inherited.setdefault(self._identity, []).append(db)
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def delete(self, key: str | bytes) -> bool:
        """Remove the entry of a key; return true. Raises on failure."""
        self._counters.erased += self._delete("key = ?", self._records.name(b"k", key))
        return True

    def erase(self, kind: bytes, text: str) -> int:
        """Remove some entries of a subject or with a tag, see `DELETE`; return how many. Raises on failure."""
        where = "subject = ?" if kind == b"s" else "id IN (SELECT entry FROM tags WHERE tag = ?)"
        erased = self._delete(where, self._records.name(kind, text))
        self._counters.erased += erased
        return erased

    def purge(self, now_ns: int | None) -> int:
        """Remove some entries that are expired at ``now_ns``, see `DELETE`; return how many. Raises on failure."""
        now_ns = self._now() if now_ns is None else now_ns
        future = f"stored_ns > ? AND aged_ns <= {now_ns}" + FREE
        purged = self._delete("expires_ns <= ?" + FREE, now_ns) or self._delete(future, now_ns + SKEW_NS)
        self._counters.purged += purged
        self._delete_outdated(*self._outdated)
        return purged

    def hold(self, kind: bytes, text: str, on: bool) -> None:
        """Begin or end a hold on a subject or tag. Raises on failure."""
        name = self._records.name(kind, text)
        # first, so that keys outlive held entries
        self._records.hold_keys(os.fsencode(self._folder.absolute()) + name, on)
        with transaction(self._opened()) as db:
            set_hold(db, name, on)

    def inventory(self, classes: tuple[str, ...]) -> list[Held]:
        """Return the entries of each data class, from an index alone. Raises on failure."""
        class_names = {self._records.name(b"c", name): name for name in ("", *classes)}
        grouped = "SELECT data_class, count(*), min(stored_ns), sum(size) FROM entries GROUP BY data_class"
        rows = self._opened().execute(grouped)
        return [Held(class_names.get(name, "?"), *numbers) for name, *numbers in rows]

    def scan(self) -> Iterator[RecordCopy]:
        """Yield every copy of a record in any file of the folder that can be read with the available keys."""
        files: list[Path] = []
        with suppress(FileNotFoundError):  # the tier was never started
            files = every_file(self._folder)
        for path, raw in read_raw(files, PREFIX_BYTES):
            yield from self._records.copies(raw, path.name)

    def flush(self, erased: bool) -> None:
        """Empty the log, and remove copies of deleted records that SQLite left in moved cells.

        Args:
            erased: true if all copies must go; false if only expired ones must.

        Raises:
            sqlite3.Error, OSError: other processes keep the log busy, or the medium failed.
        """
        self._count()
        self._empty_log()
        version = self._pragma("data_version")  # changes with each change by another process or tier
        if not self._may_have_leftovers and not (erased and version != self._searched_version):
            return
        self._searched_version = version
        if self._has_leftovers(erased):
            db = self._opened()
            db.execute("PRAGMA temp_store = FILE")  # the temporary copy is as large as the file
            try:
                db.execute("VACUUM")
            finally:
                db.execute("PRAGMA temp_store = MEMORY")
            self._may_have_leftovers = False
            self._empty_log()
            self._count()

    def _has_leftovers(self, erased: bool) -> bool:
        """Return whether the file has copies of deleted records that must not be there."""
        heads = f"SELECT substr(record, 1, {SEALED_HEAD}) FROM entries"  # noqa: S608 - a number
        live = {row[0] for row in self._opened().execute(heads)}
        self._may_have_leftovers = False
        now_ns = self._now()
        for _, raw in read_raw([self._file], PREFIX_BYTES):
            for copy in self._records.copies(raw, "", live):
                self._may_have_leftovers = True
                if erased or copy.entry.is_expired(now_ns):
                    return True
        return False

    def _empty_log(self) -> None:
        """Empty the log; SQLite waits for readers and writers, but not for another process that empties the log."""
        ends_s = time.monotonic() + _BUSY_MS / 1e3
        while self._opened().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if time.monotonic() >= ends_s:
                raise sqlite3.OperationalError("deleted, but copies stay in the log until other processes release it")
            time.sleep(_POLL_INTERVAL_S)

    def _connect_or_rebuild(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # waits for other processes that open the file, because SQLite does not wait while one sets the log mode
            fcntl.flock(folder, fcntl.LOCK_EX)
            fcntl.flock(self._lock, fcntl.LOCK_SH)  # waits while another process replaces the file
            self._connect()
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            self._disconnect()
            if not is_damage(error):
                raise
            self._counters.failed(error)
            self._rebuild()
        finally:
            unlock_and_close(folder)

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _connect(self) -> None:
        self._identity = make_file(self._file)
        if self._identity in _inherited:
            raise sqlite3.OperationalError(
                "the file was open in the process that forked this one, so its locks do not hold here: "
                "fork before a tier opens it, or start this process by spawn"
            )
        self._db = db = sqlite3.connect(self._file, isolation_level=None, check_same_thread=False)
        db.executescript(f"PRAGMA busy_timeout = {_BUSY_MS}; PRAGMA page_size = {_PAGE}; PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the newest entries, never consistency
        db.executescript("PRAGMA secure_delete = ON; PRAGMA foreign_keys = ON")
        db.execute("PRAGMA temp_store = MEMORY")  # no copies of deleted data in temporary files
        db.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {_LOG_PAGES * _PAGE}")
        version = self._pragma("user_version")
        has_size = self._pragma("page_size") == _PAGE and self._pragma("page_count") <= self._max_pages
        if version not in {0, FORMAT} or not has_size:
            self._rebuild()
            return
        db.execute(f"PRAGMA max_page_count = {self._max_pages}")
        prepare(db, version)
        self._may_have_leftovers, self._searched_version = True, -1  # others may have deleted entries
        self._count()

    def _rebuild(self) -> None:
        """Replace the file by an empty one. Raises if another process has it open."""
        self._disconnect()
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise sqlite3.OperationalError("the file must be replaced, but another process has it open") from error
        try:
            for suffix in ("", "-wal", "-shm"):
                self._file.with_name(self._file.name + suffix).unlink(missing_ok=True)
            self._counters.rebuilds += 1
            self._connect()
        except BaseException:
            self._disconnect()
            raise
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    def attempt(self, otherwise: T, operation: Callable[..., T], *args: Any) -> T:
        """Return the result of an operation; if it fails, count that and return ``otherwise``."""
        try:
            return self.run(operation, *args)
        except Exception as error:  # noqa: BLE001 - of the medium or of the keys: a miss, counted
            self._counters.failed(error)
            return otherwise

    def run(self, operation: Callable[..., T], *args: Any) -> T:
        """Return the result of an operation; if it fails, prepare the file for the next one, and raise."""
        try:
            return operation(*args)
        except Exception as error:
            if is_damage(error, self._db) and self._lock >= 0:
                self._rebuild()
            elif code_of(error) == sqlite3.SQLITE_FULL:  # the log may have taken the last room of the disk
                self._opened().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            raise

    def get(self, key: str | bytes) -> Entry | None:
        """Return the entry of a key, or ``None``. Raises on failure."""
        name = self._records.name(b"k", key)
        row = self._opened().execute("SELECT id, record FROM entries WHERE key = ?", (name,)).fetchone()
        if row is None or (name in self._outdated and not self._has_later(name, self._outdated[name])):
            return None
        try:
            entry = self._records.unpack(name, row[1])
        except CorruptRecord as error:
            self._counters.unreadable += 1
            self._counters.last_error = f"{type(error).__name__}: {error}"
            self._delete("id = ?", row[0])
            return None
        now_ns = self._now()
        if entry.is_expired(now_ns):
            self._counters.purged += self._delete(f"id = ? AND aged_ns <= {now_ns}" + FREE, row[0])
            return None
        return entry

    def put(self, key: str | bytes, entry: Entry | None) -> bool:
        """Store an entry; ``None`` only removes the old one. Return whether it did; if it raises, none is used then."""
        name = self._records.name(b"k", key)
        try:
            is_stored = self._put(name, entry)
        except Exception as error:
            self._outdated[name] = self._now() if entry is None else entry.stored_ns
            if len(self._outdated) > _MAX_OUTDATED:
                del self._outdated[next(iter(self._outdated))]
            if code_of(error) != sqlite3.SQLITE_BUSY:  # that would wait for the same process again
                with suppress(sqlite3.Error, OSError):
                    self._delete_outdated(name)  # needs less room than a put
            raise
        self._outdated.pop(name, None)
        return is_stored

    def _delete_outdated(self, *names: bytes) -> None:
        for name in names:
            try:
                self._delete_replaced(name, self._outdated[name])
            except sqlite3.Error as error:
                if code_of(error) != sqlite3.SQLITE_FULL:
                    raise
            else:  # otherwise no room to rename it: it stays unused, and the next purge tries again
                del self._outdated[name]

    def _put(self, name: bytes, entry: Entry | None) -> bool:
        records = self._records
        record = b"" if entry is None else records.pack(name, entry)
        pages = len(record) // (_PAGE - 4) + 1
        if entry is None or not record or entry.is_expired(self._now()) or pages > self._max_pages // 4:
            self._counters.rejected += entry is not None
            self._delete_replaced(name)  # it is not the latest value any more
            return entry is None
        data_class = records.name(b"c", entry.data_class)
        subject = None if entry.subject is None else records.name(b"s", entry.subject)
        expires_ns = None if entry.expires_ns is None else min(entry.expires_ns, 2**63 - 1)
        with self._changing() as db:
            if self._has_later(name, entry.stored_ns):
                self._counters.rejected += 1
                return False
            self._remove_replaced(db, name)
            self._make_room(db, pages + _SPARE_PAGES)
            row = (name, subject, data_class, entry.stored_ns, expires_ns, entry.aged_ns, len(record), record)
            number = db.execute(INSERT, row).lastrowid
            db.executemany(TAG, [(records.name(b"t", tag), number) for tag in entry.tags])
        self._counters.stored += 1
        self._count(1)
        return True

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """Change entries in a transaction; what it deletes counts at its end, because a failure rolls it back."""
        self._deleted.clear()
        with transaction(self._opened()) as db:
            yield db
        self._counters.purged += self._deleted["purged"]
        self._counters.evicted += self._deleted["evicted"]
        if total := self._deleted.total():
            self._may_have_leftovers = True
            self._count(-total)

    def _make_room(self, db: sqlite3.Connection, pages: int) -> None:
        """Delete entries until ``pages`` are free, if possible: expired ones first, then the oldest ones."""
        while self._max_pages - self._used_pages() < pages:
            expired = f"SELECT id FROM entries WHERE expires_ns <= ? {FREE} LIMIT 16"  # noqa: S608 - literals
            rows = db.execute(expired, (self._now(),)).fetchall()
            self._deleted["purged"] += len(rows)
            if not rows:
                oldest = f"SELECT id FROM entries WHERE aged_ns <= ? {FREE} ORDER BY stored_ns LIMIT 4"  # noqa: S608 - the same
                rows = db.execute(oldest, (self._now(),)).fetchall()
                self._deleted["evicted"] += len(rows)
            if not rows:
                break  # SQLite raises if there is not enough room
            db.executemany("DELETE FROM entries WHERE id = ?", rows)

    def _delete(self, where: str, value: bytes | int) -> int:
        with self._changing() as db:
            deleted = self._deleted["by selection"] = db.execute(DELETE.format(where), (value,)).rowcount
        return deleted

    def _has_later(self, name: bytes, stored_ns: int) -> bool:
        """Return whether another process has stored a value that was computed later."""
        return self._opened().execute(LATER, (name, stored_ns, self._now())).fetchone() is not None

    def _delete_replaced(self, name: bytes, stored_ns: int | None = None) -> None:
        with self._changing() as db:
            if stored_ns is None or not self._has_later(name, stored_ns):
                self._remove_replaced(db, name, FREE)

    def _remove_replaced(self, db: sqlite3.Connection, name: bytes, free: str = "") -> None:
        """Delete an entry that is not the latest value of its key, or rename it if it is young or not ``free``."""
        deleted = db.execute(f"DELETE FROM entries WHERE key = ? AND aged_ns <= ?{free}", (name, self._now())).rowcount  # noqa: S608 - a literal
        self._deleted["replaced"] = deleted
        if not deleted and (row := db.execute("SELECT id, size FROM entries WHERE key = ?", (name,)).fetchone()):
            self._make_room(db, row[1] // (_PAGE - 4) + 1 + _SPARE_PAGES)  # SQLite writes the row again
            # longer than a hashed name, and a plain one begins with k: no key has it
            preserved = b"p%d %b" % (row[0], name)
            db.execute("UPDATE entries SET key = ?, expires_ns = aged_ns WHERE id = ?", (preserved, row[0]))

    def _count(self, change: int | None = None) -> None:
        """Add ``change`` to the number of entries, or count them, which reads a whole index."""
        if change is None:
            self._counters.entries = self._opened().execute("SELECT count(*) FROM entries").fetchone()[0]
        else:
            self._counters.entries = (self._counters.entries or 0) + change
        self._counters.size_bytes = self._used_pages() * _PAGE

    def _used_pages(self) -> int:
        return self._pragma("page_count") - self._pragma("freelist_count")

    def _pragma(self, name: str) -> int:
        return int(self._opened().execute(f"PRAGMA {name}").fetchone()[0])

    def _opened(self) -> sqlite3.Connection:
        if self._db is None and self._lock >= 0:  # an earlier attempt to replace a corrupt file failed
            self._connect_or_rebuild()
        if self._db is None:
            raise sqlite3.OperationalError("the file is not open")
        return self._db


_inherited: dict[tuple[int, int], list[sqlite3.Connection]] = {}

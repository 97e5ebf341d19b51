"""Tables of a disk tier's file, changes that bring an older file up to date, and signs of damage."""

import sqlite3
from contextlib import suppress

from streaminfer.caching.tiers._sqlite import HOLDS, code_of, transaction

__all__ = ["DELETE", "FORMAT", "FREE", "INSERT", "LATER", "TABLES", "TAG", "is_damage", "upgrade"]

FORMAT = 2
"""Version of the file; a file of another version is replaced by an empty one."""
_COLUMNS_WITHOUT_AGE = 8

# an eviction skips entries below their minimum age without reading them
_BY_AGE = "CREATE INDEX IF NOT EXISTS by_age ON entries (stored_ns, aged_ns)"
TABLES = f"""
CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL UNIQUE, subject BLOB,
    data_class BLOB NOT NULL, stored_ns INTEGER NOT NULL, expires_ns INTEGER, size INTEGER NOT NULL,
    aged_ns INTEGER NOT NULL DEFAULT 0, record BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS by_subject ON entries (subject) WHERE subject IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_expiry ON entries (expires_ns) WHERE expires_ns IS NOT NULL;
{_BY_AGE};
CREATE INDEX IF NOT EXISTS by_class ON entries (data_class, stored_ns, size);
CREATE TABLE IF NOT EXISTS tags (tag BLOB, entry INTEGER REFERENCES entries (id) ON DELETE CASCADE,
    PRIMARY KEY (tag, entry)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS of_entry ON tags (entry);
"""
"""Tables of a new file. ``aged_ns`` is when an entry reaches its minimum age; 0: it has none."""

INSERT = """
INSERT INTO entries (key, subject, data_class, stored_ns, expires_ns, aged_ns, size, record)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
TAG = "INSERT INTO tags VALUES (?, ?)"
LATER = "SELECT 1 FROM entries WHERE key = ? AND stored_ns > ? AND stored_ns <= ?"
"""Looks for a value of a key that was computed later. One from the future is not: the clock was set back."""
DELETE = """
DELETE FROM entries WHERE id IN (
    SELECT id FROM (
        SELECT id, sum(size) OVER (ROWS UNBOUNDED PRECEDING) - size AS size_before
        FROM (SELECT id, size FROM entries WHERE {} LIMIT 256))
    WHERE size_before < 1048576)
"""
"""One step of an erasure or a purge: removes at most 256 entries, up to the one that makes them 1 MiB or more.

Other operations run between two steps, and the log takes as many bytes as a step overwrites.
"""
FREE = """
    AND coalesce(subject, x'') NOT IN (SELECT name FROM holds)
    AND NOT EXISTS (SELECT 1 FROM tags JOIN holds ON tag = name WHERE entry = entries.id)
"""
"""Condition of a query: no legal hold matches the entry."""
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_ERROR}


def upgrade(db: sqlite3.Connection) -> None:
    """Add what older files lack: legal holds and minimum ages. The entries stay; older versions can still use them.

    Raises ``sqlite3.Error`` or ``UnicodeDecodeError`` if the file lacks anything else.
    """
    db.execute(HOLDS)
    # a count, because the names and types of a corrupt file may not be valid text
    if db.execute("SELECT count(*) FROM pragma_table_info('entries')").fetchone()[0] == _COLUMNS_WITHOUT_AGE:
        db.execute("ALTER TABLE entries ADD COLUMN aged_ns INTEGER NOT NULL DEFAULT 0")
        with suppress(sqlite3.OperationalError), transaction(db):  # a full file may lack the room, and works without
            db.execute("DROP INDEX by_age")
            db.execute(_BY_AGE)
    _compile(db)


def _compile(db: sqlite3.Connection) -> None:
    """Compile statements that use all tables and columns; one that has lost its name is an error (``SQLITE_ERROR``)."""
    for statement in (INSERT, TAG, DELETE.format("key = ?" + FREE)):
        db.execute(f"EXPLAIN {statement}", (None,) * statement.count("?"))


def is_damage(error: Exception, db: sqlite3.Connection | None = None) -> bool:
    """Return whether an error of a `DiskStore` shows that its file is corrupt.

    SQLite's message may quote a corrupt table name that is not valid text. A constraint fails only if an index
    contradicts its table. A wrong statement is damage, unless ``db`` has all that the tier's statements use: then the
    statement only came at the wrong moment, such as in a transaction.
    """
    if db is not None and code_of(error) == sqlite3.SQLITE_ERROR:
        try:
            _compile(db)
        except (sqlite3.Error, UnicodeDecodeError) as lack:
            return is_damage(lack)
        return False
    return isinstance(error, UnicodeDecodeError) or code_of(error) in _DAMAGE

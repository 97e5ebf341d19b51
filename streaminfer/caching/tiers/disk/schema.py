"""Tables of a disk tier's file, statements that use them, and signs of damage."""

import sqlite3

from streaminfer.caching.tiers._sqlite import HOLDS, code_of

__all__ = ["DELETE", "FORMAT", "FREE", "INSERT", "LATER", "TAG", "is_damage", "prepare"]

FORMAT = 3
"""Version of the file; a file of another version is replaced by an empty one."""
_TABLES = f"""
CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL UNIQUE, subject BLOB,
    data_class BLOB NOT NULL, stored_ns INTEGER NOT NULL, expires_ns INTEGER, size INTEGER NOT NULL,
    aged_ns INTEGER NOT NULL DEFAULT 0, record BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS by_subject ON entries (subject) WHERE subject IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_expiry ON entries (expires_ns) WHERE expires_ns IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_age ON entries (stored_ns, aged_ns);
CREATE INDEX IF NOT EXISTS by_class ON entries (data_class, stored_ns, size);
CREATE TABLE IF NOT EXISTS tags (tag BLOB, entry INTEGER REFERENCES entries (id) ON DELETE CASCADE,
    PRIMARY KEY (tag, entry)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS of_entry ON tags (entry);
{HOLDS};
"""
"""Tables of a new file. ``aged_ns`` is when an entry reaches its minimum age; 0: it has none.

The index ``by_age`` lets an eviction skip entries below their minimum age without reading them.
"""

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


def prepare(db: sqlite3.Connection, version: int) -> None:
    """Make the tables of a new file, whose version is 0; compile statements that use all tables and columns.

    Raises ``sqlite3.Error`` (``SQLITE_ERROR`` for a table or column that has lost its name) or ``UnicodeDecodeError``.
    """
    if version == 0:
        db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {FORMAT}; COMMIT;")
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
            prepare(db, FORMAT)
        except (sqlite3.Error, UnicodeDecodeError) as lack:
            return is_damage(lack)
        return False
    return isinstance(error, UnicodeDecodeError) or code_of(error) in _DAMAGE

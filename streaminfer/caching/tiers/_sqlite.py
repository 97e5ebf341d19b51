"""Write transactions of SQLite, and the names of legal holds in a file."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["HOLDS", "set_hold", "transaction"]

HOLDS = "CREATE TABLE IF NOT EXISTS holds (name BLOB PRIMARY KEY) WITHOUT ROWID"


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Commit what the block does, or roll it back if it raises."""
    with db:
        db.execute("BEGIN IMMEDIATE")
        yield db


def set_hold(db: sqlite3.Connection, name: bytes, on: bool) -> None:
    """Begin or end a hold in a file that has the table `HOLDS`."""
    change = "INSERT OR IGNORE INTO holds VALUES (?)" if on else "DELETE FROM holds WHERE name = ?"
    db.execute(change, (name,))

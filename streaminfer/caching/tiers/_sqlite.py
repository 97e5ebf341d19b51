"""Files, write transactions and error codes of SQLite, and the names of legal holds in a file."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["HOLDS", "code_of", "make_file", "set_hold", "transaction"]

HOLDS = "CREATE TABLE IF NOT EXISTS holds (name BLOB PRIMARY KEY) WITHOUT ROWID"


def make_file(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Make a file with access for its owner only, if it is missing; return its device and number.

    An existing file is not opened, because closing it would release all locks that SQLite has on it in this process.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    status = Path(path).stat()
    return status.st_dev, status.st_ino


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


def code_of(error: Exception) -> int | None:
    """Return the primary code of a SQLite error; ``None`` for other errors."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF

"""Which errors of SQLite are damage of a disk tier's file."""

import re
import sqlite3
from contextlib import closing

import pytest

from streaminfer.caching.tiers.disk.schema import FORMAT, is_damage, prepare


@pytest.fixture
def file():
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("PRAGMA foreign_keys = ON")
    prepare(db, 0)
    with closing(db):
        yield db


def rename(db, pattern, name):
    """Replace text in the schema, as a flipped bit does, and read the file again."""
    db.execute("PRAGMA writable_schema = ON")
    rows = db.execute("SELECT rowid, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    changed = [(re.sub(pattern, name, sql), rowid) for rowid, sql in rows if re.search(pattern, sql)]
    assert changed
    db.executemany("UPDATE sqlite_master SET sql = ? WHERE rowid = ?", changed)
    db.execute("PRAGMA writable_schema = RESET")
    assert db.execute("PRAGMA foreign_keys").fetchone() == (1,)


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "VACUUM", "SELECT lost FROM entries", "ROLLBACK TO cannot"])
def test_wrong_statement_on_a_whole_file_is_no_damage(file, statement):
    """A file with all its tables and columns is not replaced, whatever SQLite says of a statement."""
    file.execute("BEGIN IMMEDIATE")

    with pytest.raises(sqlite3.OperationalError) as caught:
        file.execute(statement)

    assert not is_damage(caught.value, file)


COLUMNS = ["key", "subject", "data_class", "stored_ns", "expires_ns", "size", "aged_ns", "record", "tag", "entry"]


@pytest.mark.parametrize("name", [*COLUMNS, "name", "REFERENCES entries"])
def test_lost_name_is_damage(file, name):
    """A table or column that has lost its name is damage when the file is opened, and while it is used."""
    rename(file, rf"\b{name}\b", "REFERENCES cannot" if "REF" in name else "cannot")
    with pytest.raises(sqlite3.OperationalError) as caught:
        prepare(file, FORMAT)

    assert is_damage(caught.value)
    assert is_damage(caught.value, file)

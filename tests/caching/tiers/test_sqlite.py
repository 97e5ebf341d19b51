"""Which errors of SQLite are damage of a file."""

import sqlite3

import pytest

from streaminfer.caching.tiers._sqlite import is_damage


@pytest.mark.parametrize(
    ("statement", "damage"),
    [
        ("SELECT lost FROM entries", True),
        ("SELECT key FROM lost", True),
        ("INSERT INTO entries (lost) VALUES (1)", True),
        ("BEGIN IMMEDIATE", False),
        ("VACUUM", False),
    ],
)
def test_only_wrong_statements_are_damage(statement, damage):
    """A file is only replaced for what it lacks, not for a statement that comes inside a transaction."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    try:
        db.execute("CREATE TABLE entries (key BLOB)")
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError) as caught:
            db.execute(statement)
        assert is_damage(caught.value) is damage
    finally:
        db.close()

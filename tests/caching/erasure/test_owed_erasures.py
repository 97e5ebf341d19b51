"""Owed erasures after failed writes to the disk and after killed processes."""

import pytest
from small_files import files_limited_to

import streaminfer as si
from streaminfer.caching.erasure.owed_erasures import OwedErasures


@pytest.fixture
def owed(tmp_path):
    return OwedErasures(tmp_path / "retention.log")


def test_failed_write_leaves_no_names(owed, tmp_path):
    """A full disk raises an error, and the partly written file is removed."""
    owed.note("disk", "bert", None, is_owed=True)

    with files_limited_to(30), pytest.raises(si.BackendError, match="File too large"):
        owed.note("disk", "anna", None, is_owed=True)

    assert owed.of("disk") == [("bert", None)]
    owed.note("disk", "bert", None, is_owed=False)
    assert list(tmp_path.iterdir()) == []


def test_names_left_by_a_killed_process_are_removed(owed, tmp_path):
    """A process killed during a write leaves names beside the file, which the next completed erasure removes."""
    (tmp_path / "retention.log.owed.new").write_text('["disk", "anna", null]')

    owed.note("disk", "anna", None, is_owed=False)

    assert list(tmp_path.iterdir()) == []

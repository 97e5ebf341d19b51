"""Erasures that are owed, on disks that fail and after processes that died."""

import pytest
from small_files import files_limited_to

import streaminfer as si
from streaminfer.caching.erasure.owed_erasures import OwedErasures


@pytest.fixture
def owed(tmp_path):
    return OwedErasures(tmp_path / "retention.log")


def test_failed_write_leaves_no_names(owed, tmp_path):
    """A full disk is an error, and the part that it took of the file is removed."""
    owed.note("disk", "bert", None, is_owed=True)

    with files_limited_to(30), pytest.raises(si.BackendError, match="File too large"):
        owed.note("disk", "anna", None, is_owed=True)

    assert owed.of("disk") == [("bert", None)]
    owed.note("disk", "bert", None, is_owed=False)
    assert list(tmp_path.iterdir()) == []


def test_names_left_by_a_killed_process_are_removed(owed, tmp_path):
    """A process that was killed in a write leaves names beside the file; the next erasure that is made removes them."""
    (tmp_path / "retention.log.owed.new").write_text('["disk", "anna", null]')

    owed.note("disk", "anna", None, is_owed=False)

    assert list(tmp_path.iterdir()) == []

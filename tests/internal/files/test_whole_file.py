"""A saved file is whole at every moment and keeps its permissions; it is written in place if no other way is left."""

import errno
import os
import threading
from pathlib import Path

import pytest
from small_files import files_limited_to

import streaminfer as si
from streaminfer._internal.display.html_report import write_page
from streaminfer._internal.files.whole_file import write_whole
from streaminfer.batching.service_time.service_time import ServiceTime

SAVES = {
    "bytes": lambda path: write_whole(path, bytes(100)),
    "page": lambda path: write_page("title", "body", path),
    "service time": lambda path: ServiceTime.affine(0.001, 0.001).save(path),
    "trace": lambda path: si.Trace([0.0, 1.0]).save(path),
}


@pytest.mark.parametrize("kind", SAVES)
def test_full_disk_leaves_the_old_content(kind, tmp_path):
    path = tmp_path / "saved"
    path.write_bytes(b"old")

    with files_limited_to(10), pytest.raises(OSError, match="too large"):
        SAVES[kind](path)

    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o666])
def test_permissions_stay(mode, tmp_path):
    path = tmp_path / "saved"
    path.touch()
    path.chmod(mode)

    write_whole(path, b"new")

    assert path.stat().st_mode & 0o777 == mode


def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()

    write_whole(tmp_path / "saved", b"new")

    assert (tmp_path / "saved").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_still_points_to_the_file(exists, tmp_path):
    path = tmp_path / "folder" / "saved"
    path.parent.mkdir()
    if exists:
        path.touch()
    link = tmp_path / "link"
    link.symlink_to("folder/saved")

    write_whole(link, b"new")

    assert link.is_symlink()
    assert path.read_bytes() == b"new"


def test_every_name_of_a_file_has_the_new_content(tmp_path):
    path = tmp_path / "saved"
    path.touch()
    (tmp_path / "other").hardlink_to(path)

    write_whole(path, b"new")

    assert (tmp_path / "other").read_bytes() == b"new"


def test_pipe_is_written_in_place(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()

    write_whole(path, b"new")
    reader.join()

    assert read == [b"new"]
    assert path.is_fifo()


def test_file_open_in_the_process_is_written_in_place(tmp_path):
    """A path that is an open descriptor of this process is written in place, as for ``--json /dev/stdout``."""
    with (tmp_path / "saved").open("w+b") as file:
        write_whole(f"/dev/fd/{file.fileno()}", b"new")

        assert file.read() == b"new"


def test_file_in_read_only_folder_is_written_in_place(tmp_path, monkeypatch):
    """A file in a folder that accepts no new files is written in place."""
    path = tmp_path / "saved"
    path.touch()
    before = path.stat()
    monkeypatch.setattr(os, "access", lambda where, _: Path(where) != tmp_path)

    write_whole(path, b"new")

    assert path.read_bytes() == b"new"
    assert path.stat().st_ino == before.st_ino


def test_file_of_another_group_is_written_in_place(tmp_path, monkeypatch):
    """A file of a group to which this process does not belong is written in place.

    Otherwise that group could not read the new file, and another group could.
    """
    path = tmp_path / "saved"
    path.touch()
    before = path.stat()

    def fchown(*_):
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "fchown", fchown)

    write_whole(path, b"new")

    assert path.read_bytes() == b"new"
    assert path.stat().st_ino == before.st_ino
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]


def test_a_file_that_is_mounted_is_written_in_place(tmp_path, monkeypatch):
    def replace(*_):
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr("pathlib.Path.replace", replace)

    write_whole(tmp_path / "saved", b"new")

    assert (tmp_path / "saved").read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]


def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    def fsync(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fsync)

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "saved", b"new")

    assert not list(tmp_path.iterdir())


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "none" / "saved", b"new")

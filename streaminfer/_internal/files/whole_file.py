"""Files that are complete at every moment: new content replaces the old only when all of it is on the disk."""

import errno
import os
import stat
from pathlib import Path

from streaminfer._internal.validation import check_path

__all__ = ["write_whole"]

_OPEN_FILES = ("/dev/fd/", "/dev/std", "/proc/")
"""Paths of files that the process has open; after a replacement it would still have the old file."""
_IN_PLACE_ERRNOS = (errno.EBUSY, errno.EPERM)
"""Errors for a file that is itself a mount point, as in containers, or whose group this process does not belong to."""


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, or replace it. After a crash or with a full disk, the old content remains.

    The new file has the permissions of the old one, and a symbolic link still points to it. Some files are written in
    place: devices and pipes, files of another owner or group or with several names, and files in a folder in which the
    process cannot create files.

    Args:
        path: path of the file.
        content: the whole content.

    Raises:
        OSError: the file cannot be written.
    """
    path = check_path("path", path)
    target = Path(os.path.realpath(path))
    try:
        before = path.stat()
    except FileNotFoundError:
        before = None
    if not _is_replaceable(path, target, before):
        path.write_bytes(content)
        return
    temporary = target.with_name(f".{os.urandom(8).hex()}.new")
    try:
        _write(temporary, content, before)
        temporary.replace(target)
    except OSError as error:
        if error.errno not in _IN_PLACE_ERRNOS:
            raise
        path.write_bytes(content)
    finally:
        temporary.unlink(missing_ok=True)


def _is_replaceable(path: Path, target: Path, before: os.stat_result | None) -> bool:
    if not os.access(target.parent, os.W_OK | os.X_OK):
        return False
    if before is None:
        return True
    is_plain = stat.S_ISREG(before.st_mode) and not os.path.abspath(path).startswith(_OPEN_FILES)  # noqa: PTH100 - the same
    return is_plain and before.st_nlink == 1 and before.st_uid == os.geteuid() and os.access(path, os.W_OK)


def _write(temporary: Path, content: bytes, before: os.stat_result | None) -> None:
    mode = 0o666 if before is None else stat.S_IMODE(before.st_mode)
    number = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
    with os.fdopen(number, "wb") as file:
        if before is not None:
            os.fchown(number, -1, before.st_gid)
            os.fchmod(number, mode)  # regardless of the umask
        file.write(content)
        file.flush()
        os.fsync(number)

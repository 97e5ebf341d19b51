"""The folder of a disk tier: its lock, and which file lies in it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from streaminfer._internal.forking import unlock_and_close

__all__ = ["identity_of", "locked_folder"]


def identity_of(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return the device and number of a file; ``None`` if there is none at this path."""
    try:
        status = os.stat(path)  # noqa: PTH116 - twice as fast as that of a Path
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def locked_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Lock a folder for the block; wait while another process or thread has locked it."""
    number = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        unlock_and_close(number)

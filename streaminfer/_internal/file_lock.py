"""The end of a lock between processes (``flock``)."""

import fcntl
import os

__all__ = ["unlock_and_close"]


def unlock_and_close(number: int) -> None:
    """Release the lock of an open file, and close it.

    Closing alone releases it only if no process was forked meanwhile, which has the file open as well.
    """
    try:
        fcntl.flock(number, fcntl.LOCK_UN)
    finally:
        os.close(number)

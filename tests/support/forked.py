"""A forked process that only waits."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["waiting_child"]


@contextmanager
def waiting_child() -> Iterator[None]:
    """Fork a process, which has a copy of each open file until the block ends."""
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

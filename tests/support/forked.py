"""Forked processes: one that only waits, and one that calls a function."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["status_of_child", "waiting_child"]


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


def status_of_child(function: Callable[[], object]) -> int:
    """Return 0 if a function returns something true in a forked process, in time."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)  # ends a child that hangs
        status = 1
        try:
            status = 0 if function() else 1
        finally:
            os._exit(status)  # even after an error, the child must not continue with the tests
    return os.waitpid(child, 0)[1]

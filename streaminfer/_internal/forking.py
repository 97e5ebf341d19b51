"""What happens to the state of this process when it forks."""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["at_fork", "new_awaited_lock", "new_lock", "new_reentrant_lock", "unlock_and_close"]

_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_reentrant_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_awaited_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_forking = threading.Lock()  # threads that fork at once wait for each other
_held: list[Any] = []  # while this process forks


def at_fork(**functions: Callable[[], object]) -> None:
    """Register functions, by the keywords of `os.register_at_fork`; nothing on systems that do not fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(**functions)


def new_lock() -> threading.Lock:
    """Return a lock that is free in a forked process, which lacks the thread that held it.

    For what is consistent at each moment; no code that may fork runs under it.
    """
    lock = threading.Lock()
    _locks.add(lock)
    return lock


def new_reentrant_lock() -> "threading.RLock":
    """Return a lock as :func:`new_lock` does; the thread that holds it can take it again, or fork."""
    lock = threading.RLock()
    _reentrant_locks.add(lock)
    return lock


def new_awaited_lock() -> threading.Lock:
    """Return a lock that a fork waits for, so that no thread is in the middle of what it guards.

    Under it no code takes another lock, waits long or may fork.
    """
    lock = threading.Lock()
    _awaited_locks.add(lock)
    return lock


def unlock_and_close(number: int) -> None:
    """Release the lock (``flock``) of an open file, and close it.

    Closing alone releases it only if no process was forked meanwhile, which has the file open as well.
    """
    import fcntl  # noqa: PLC0415 - not on systems that do not fork

    try:
        fcntl.flock(number, fcntl.LOCK_UN)
    finally:
        os.close(number)


def _before_fork() -> None:
    for lock in [_forking, *_awaited_locks]:
        lock.acquire()
        _held.append(lock)


def _release() -> None:
    while _held:
        _held.pop().release()


def _after_fork() -> None:
    _release()
    others = [lock for lock in list(_reentrant_locks) if not lock._is_owned()]
    for lock in [*_locks, *others]:
        lock._at_fork_reinit()  # as the standard library does with its own


at_fork(before=_before_fork, after_in_parent=_release, after_in_child=_after_fork)

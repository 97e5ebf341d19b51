"""Locks and functions that keep the state of this process consistent when it forks."""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["at_fork", "call_in_child", "new_awaited_lock", "new_lock", "new_reentrant_lock", "unlock_and_close"]

_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_reentrant_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_awaited_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_forking = threading.Lock()  # threads that fork at the same time wait for each other
_called: weakref.WeakKeyDictionary[Any, Callable[[Any], object]] = weakref.WeakKeyDictionary()
_held: list[Any] = []  # locks that are held while this process forks


def at_fork(**functions: Callable[[], object]) -> None:
    """Register functions, by the keywords of `os.register_at_fork`; does nothing on systems without fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(**functions)


def call_in_child(method: Any) -> None:
    """Call a bound method, one for each object, in each forked process; does not keep the object alive."""
    _called[method.__self__] = method.__func__


def new_lock() -> threading.Lock:
    """Return a lock that is free in a forked process, because the thread that held it does not exist there.

    For state that is consistent at each moment; code under the lock must not fork.
    """
    lock = threading.Lock()
    _locks.add(lock)
    return lock


def new_reentrant_lock() -> "threading.RLock":
    """Return a lock like :func:`new_lock` that the thread that holds it may take again; that thread may also fork."""
    lock = threading.RLock()
    _reentrant_locks.add(lock)
    return lock


def new_awaited_lock() -> threading.Lock:
    """Return a lock that a fork waits for, so that no thread is changing the state that it guards.

    Code under this lock must not take another lock, wait long or fork.
    """
    lock = threading.Lock()
    _awaited_locks.add(lock)
    return lock


def unlock_and_close(number: int) -> None:
    """Release the lock (``flock``) of an open file, and close it.

    Closing alone does not release it if the process has forked meanwhile, because the child has the file open too.
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
        lock._at_fork_reinit()  # as the standard library does with its own locks
    for obj, function in list(_called.items()):
        function(obj)


at_fork(before=_before_fork, after_in_parent=_release, after_in_child=_after_fork)

"""Counts of a cache for the log of its retention policy: one record for many entries.

Expiries and evictions are counted by place and class. They are recorded when expired entries are freed, when a report
is made, and otherwise about once a second. Erasures are recorded one by one, at once.

Locking a file and writing it to the disk takes milliseconds, and seconds if the disk or another process stalls. A
separate thread therefore writes a log file, in order. It ends when there is nothing to write, and the process waits for
it at exit. The thread retries a failed write until it succeeds, the cache stops or the process ends. Records that are
then unwritten are lost, and so are records beyond 10,000 that wait. A report, a proof and a hold wait for earlier
records; while the disk fails they fail too, and lose nothing. Lost records are logged as errors
(``streaminfer.caching``); a log that fails affects nothing else.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from streaminfer._internal.error_log import Log
from streaminfer._internal.forking import call_in_child, new_lock, new_reentrant_lock
from streaminfer.caching.erasure.owed_erasures import OwedErasures
from streaminfer.compliance.retention_log import Action, RetentionLog
from streaminfer.errors import BackendError

__all__ = ["DELETED", "REASONS", "RetentionCounts"]

_LOGGER = Log("streaminfer.caching")
_FLUSH_INTERVAL_NS = 1_000_000_000
REASONS = {"expired": "its time had passed", "evicted": "no room"}
_MAX_WAITING = 10_000
_RETRY_S = 1.0
DELETED = "deleted by its key"
_NOT_RECORDED = "the retention log failed; not recorded: %s"


class RetentionCounts:
    """Counts of one cache. Thread-safe.

    Args:
        log: of the policy; ``None``: nothing is counted.
        now: reads the cache's clock.
    """

    def __init__(self, log: RetentionLog | None, now: Callable[[], int]) -> None:
        self._log = log
        self._now = now
        self._lock = new_lock()
        self._counts: dict[tuple[Action, str, str, str], int] = {}
        self._flushed_ns = now()
        path = None if log is None else log.path
        self._owed = None if path is None else OwedErasures(path)
        self._writer = _Writer()  # of the log file and the file beside it
        if path is not None:
            call_in_child(self.leave_to_parent)

    def leave_to_parent(self) -> None:
        """Forget the counts in a forked process, because the parent records them."""
        self._counts = {}

    def is_held(self, subject: str | None, tag: str | None) -> bool:
        """Return whether a legal hold forbids an erasure."""
        return self._log is not None and bool(self._log.holds_against(subject, tag))

    @property
    def has_holds(self) -> bool:
        """True while a legal hold is in force."""
        return self._log is not None and bool(self._log.holds)

    def holds_entry(self, subject: str | None, tags: Iterable[str]) -> bool:
        """Return whether a legal hold applies to an entry."""
        return self._log is not None and self._log.is_held(subject, tags)

    def count(self, action: Action, where: str, data_class: str, reason: str, number: int = 1) -> None:
        """Add to the counts of the next record."""
        key = (action, where, data_class, reason)
        if self._log is None or number <= 0:
            return
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + number
        if self._now() - self._flushed_ns >= _FLUSH_INTERVAL_NS:
            self.flush()

    def flush(self) -> None:
        """Write the counts to the log."""
        if not self._counts:
            return
        with self._lock:
            counts, self._counts = self._counts, {}
            self._flushed_ns = self._now()
        for (action, where, data_class, reason), number in counts.items():
            self.record(action, where=where, data_class=data_class, count=number, reason=reason)

    def record(self, action: Action, *, count: int, where: str, **about: Any) -> None:
        """Record one event: at once in memory, soon in a file. Arguments: see `RetentionLog.record`."""
        if self._log is None:
            return
        label = f"{action} in {where}, {count} entries"
        try:
            at_ns = self._log.now_ns()  # the instant of the event; the write may come much later
        except Exception:  # the user's clock failed; the erasure continues without its record
            _LOGGER.exception(_NOT_RECORDED, label)
            return
        self._put(partial(self._log.record, action, count=count, where=where, at_ns=at_ns, **about), label)

    def owe(self, place: str, *, is_owed: bool, **selection: str | None) -> None:
        """Note in a file beside the log that a tier owes an erasure, or made it; do nothing without a log file."""
        if self._owed is not None:
            label = f"an erasure that {place} {'owes' if is_owed else 'no longer owes'}"
            self._put(partial(self._owed.note, place, is_owed=is_owed, **selection), label)

    def owed_by(self, place: str) -> list[tuple[str | None, str | None]]:
        """Return subject and tag of the erasures that a tier owes from earlier processes.

        Raises:
            BackendError: the file cannot be read.
        """
        return [] if self._owed is None else self._owed.of(place)

    def _put(self, write: Callable[[], None], label: str) -> None:
        if self._owed is not None:
            self._writer.put(write, label)
            return
        try:
            write()
        except Exception:
            _LOGGER.exception(_NOT_RECORDED, label)

    @property
    def failure(self) -> BackendError | None:
        """Latest failure of the log file for which records wait; ``None`` if none waits for that."""
        return self._writer.failure

    def drain(self) -> None:
        """Wait until all records are written, or lost because the disk fails; blocks, for use at the end."""
        self._writer.drain()

    def catch_up(self) -> None:
        """Wait until all earlier records are written; blocks.

        Raises:
            BackendError: the disk fails; the records are written when it works again.
        """
        self._writer.catch_up()

    async def settle(self, *, final: bool = False) -> None:
        """Write the counts to the log, then wait as `catch_up` does, or as `drain` does for the ``final`` call."""
        self.flush()
        if self._writer.is_behind:
            await asyncio.to_thread(self.drain if final else self.catch_up)


class _Writer:
    """Thread that writes records one after another. Thread-safe.

    Attributes:
        failure: the latest, while the disk fails and records wait; else ``None``.
    """

    def __init__(self) -> None:
        self._begin()
        call_in_child(self._begin)  # the parent writes the waiting records

    def _begin(self) -> None:
        self._changed = threading.Condition(new_reentrant_lock())
        self._waiting: deque[tuple[Callable[[], None], str]] = deque()
        self._thread: threading.Thread | None = None
        self._draining = 0
        self.failure: BackendError | None = None
        self._attempts = 0  # failed ones
        self._accepted = 0  # writes, waiting or ended
        self._retry_requested = False  # for another attempt at once

    @property
    def is_behind(self) -> bool:
        """Return whether a thread is writing, or records wait because no thread could start."""
        return self._thread is not None or bool(self._waiting)

    def put(self, write: Callable[[], None], label: str) -> None:
        with self._changed:
            is_full = len(self._waiting) >= _MAX_WAITING
            if not is_full:
                self._waiting.append((write, label))
                self._accepted += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="streaminfer-retention-log", daemon=False)
                try:
                    self._thread.start()
                except RuntimeError:  # no more threads, or the interpreter ends
                    self._run(waits=False)
        if is_full:
            _LOGGER.error("the retention log is %d records behind; not recorded: %s", _MAX_WAITING, label)

    def catch_up(self) -> None:
        with self._changed:
            accepted, failed, self._retry_requested = self._accepted, self._attempts, True
            if self._thread is None:
                self._run(waits=False)
            self._changed.notify_all()

            def are_ended() -> bool:
                return self._accepted - len(self._waiting) >= accepted

            self._changed.wait_for(lambda: self._thread is None or are_ended() or self._attempts != failed)
            if self.failure is not None and not are_ended():
                message = "the retention log fails, and records wait until it no longer does"
                raise BackendError(f"{message}: {self.failure}") from self.failure

    def drain(self) -> None:
        with self._changed:
            thread = self._thread
            self._draining += 1
            if self._thread is None:
                self._run(waits=False)
            self._changed.notify_all()
        if thread is not None:
            thread.join()
        with self._changed:
            self._draining -= 1

    def _run(self, *, waits: bool = True) -> None:
        """Write the waiting records. With ``waits=False``, in the caller's thread, a failure ends this call."""
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread = self.failure = None
                    self._changed.notify_all()
                    return
                write, label = self._waiting[0]
            try:
                write()
            except BackendError as error:
                with self._changed:
                    if not self._is_last():
                        _LOGGER.warning("the retention log failed, and is tried again: %s", error)
                        self.failure = error
                        self._attempts += 1
                        self._changed.notify_all()
                        if not waits:
                            self._thread = None
                            return
                        self._retry_requested = False
                        self._changed.wait_for(lambda: self._retry_requested or self._is_last(), _RETRY_S)
                        continue
                    for _, label in self._waiting:  # trying each could take as long as this failure
                        _LOGGER.exception(_NOT_RECORDED, label)
                    self._waiting.clear()
                    continue
            except Exception:
                _LOGGER.exception(_NOT_RECORDED, label)
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()

    def _is_last(self) -> bool:
        """Return whether a failing write is lost instead of retried."""
        return self._draining > 0 or not threading.main_thread().is_alive()

"""`RetentionLog`: tamper-evident record of what was erased, purged and expired, when and why.

The log contains no data and no names. A subject appears as a keyed hash: with the name and the secret, the records of
that subject can be found, but the file names no person. The chain that makes the log tamper-evident is in
``hash_chain``; the file, which several processes may share, is in ``log_file``.

*Detectable*: any record that was changed, removed, inserted or moved, also at the beginning. *Not detectable*: last
records that were cut off while no log was open, unless the ``head`` was stored elsewhere (print it, mail it, or write
it to another system's log once a day); changes by an owner of the secret; events that were never recorded.

*Bounded*: memory holds the latest 10,000 events, and every failed erasure that has not been made since. A file grows by
about 350 bytes per record.
"""

import copy
import os
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from streaminfer._internal.forking import new_awaited_lock, new_lock
from streaminfer._internal.validation import (
    check_choice,
    check_clock,
    check_count,
    check_instance,
    check_path,
    check_secret,
    check_whole,
)
from streaminfer.compliance.hash_chain import Altered, Chain, RetentionEvent, Verification, verified
from streaminfer.compliance.log_file import RetentionFile, read_events
from streaminfer.protocols import Clock

__all__ = ["ACTIONS", "Action", "RetentionEvent", "RetentionLog", "Verification", "verify_file"]

Action = Literal[
    "expired", "evicted", "erased", "erase_failed", "removed", "purged", "disallowed", "held", "released", "erase_held"
]
"""Names of the actions that a log records."""

ACTIONS: tuple[Action, ...] = get_args(Action)

_DURABLE = frozenset({"erased", "erase_failed", "held", "released", "erase_held"})
_MAX_RECENT = 10_000
_REDACTED = "[the subject]"


class RetentionLog:
    """Append-only log of what left the caches.

    Args:
        path: of a file of JSON lines, made if missing; ``None``: in memory only, and gone with the process.
        secret: at least 16 secret bytes, the same each time the file is opened. The secret hides names and seals the
            chain, so store it where readers of the log cannot get it. A log in memory makes its own.
        wall_clock: returns nanoseconds since 1970; ``None``: ``time.time_ns``.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range, a path has no secret, or the file is
            not whole.
        BackendError: the file cannot be made, read or locked.

    Thread-safe; several processes of one machine may append to one file. Opening reads the whole file, at about 15 µs
    per record.

    Example:
        >>> log = RetentionLog()
        >>> log.record("erased", where="memory", data_class="faces", count=2, reason="asked for", subject="anna")
        >>> [(event.action, event.count) for event in log.events_about("anna")], log.verify().ok
        ([('erased', 2)], True)
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        secret: bytes | None = None,
        wall_clock: Clock | None = None,
    ) -> None:
        file = None if path is None else check_path("path", path)
        if secret is None:
            if path is not None:
                raise ValueError("secret: expected secret bytes that outlive the process, for a log in a file")
            secret = secrets.token_bytes(32)
        self._secret = check_secret("secret", secret)
        self._now = check_clock("wall_clock", wall_clock) or time.time_ns
        self._lock = new_lock()
        self._append_lock = new_awaited_lock()  # held at a fork, so that a child has a whole record or none
        self._chain = Chain(self._secret)
        self._before = Chain(self._secret)  # the chain before the first event in memory
        self._recent: deque[RetentionEvent] = deque()
        self._pending: dict[tuple[str, str | None, str | None], RetentionEvent] = {}
        self._holds: dict[tuple[str | None, str], RetentionEvent] = {}
        self._file = None if file is None else RetentionFile(file, self._chain, self._absorb)

    def now_ns(self) -> int:
        """Return the current instant of the log's clock in nanoseconds."""
        return self._now()

    def record(
        self,
        action: Action,
        *,
        where: str,
        data_class: str = "",
        count: int,
        reason: str,
        subject: str | None = None,
        tag: str | None = None,
        at_ns: int | None = None,
    ) -> None:
        """Add a record; erasures and legal holds are on the disk when it returns, others may be lost in a power cut.

        Args:
            action: one of ``ACTIONS``.
            where: the place, in words that name no person.
            data_class: class of the policy; ``""``: the default class, or all classes.
            count: number of entries, ≥ 0.
            reason: the reason, in words. In the reason and the tag, ``[the subject]`` replaces the subject's name.
            subject: the data subject; the log stores only a keyed hash.
            tag: tag of the erasure. Tags are otherwise stored unchanged, so do not make them of names.
            at_ns: when it happened, in nanoseconds of the log's clock; ``None``: now.

        Raises:
            TypeError, ValueError: an argument has the wrong type or is out of range.
            BackendError: the disk failed, or a stopped process holds the lock; nothing was recorded.
            ValueError: the file was altered after it was last read; nothing was recorded.
        """
        check_choice("action", action, ACTIONS)
        for name, text in (("where", where), ("data_class", data_class), ("reason", reason)):
            check_instance(name, text, str, "a string")
        for name, label in (("subject", subject), ("tag", tag)):
            check_instance(name, label, str | None, "a string or None")
        number = check_count("count", count, at_least=0)
        if subject:
            for written in dict.fromkeys((subject, repr(subject)[1:-1], ascii(subject)[1:-1])):  # as messages quote it
                reason = reason.replace(written, _REDACTED)
                tag = tag and tag.replace(written, _REDACTED)
        with self._lock:
            make = partial(
                self._chain.seal,
                at_ns=self.now_ns() if at_ns is None else check_whole("at_ns", at_ns, "an integer or None"),
                action=action,
                where=where,
                data_class=data_class,
                count=number,
                reason=reason,
                subject=None if subject is None else self._chain.pseudonym(subject),
                tag=tag,
            )
            if self._file is not None:
                self._file.append(make, durable=action in _DURABLE)
            else:
                with self._append_lock:
                    self._absorb(self._chain.open(make()))

    @property
    def path(self) -> Path | None:
        """Path of the file; ``None`` for a log in memory."""
        return None if self._file is None else self._file.path

    @property
    def head(self) -> str:
        """Digest of the latest record that this process knows, which covers all earlier ones. Store it elsewhere."""
        with self._lock:
            return self._chain.head

    @property
    def records(self) -> int:
        """Number of records, including those that memory has dropped."""
        with self._lock:
            return self._chain.number

    @property
    def events(self) -> tuple[RetentionEvent, ...]:
        """The latest events, at most 10,000, oldest first."""
        with self._lock:
            return tuple(self._recent)

    @property
    def pending(self) -> tuple[RetentionEvent, ...]:
        """Latest failure of each erasure that has not succeeded since, at any age, including erasures under a hold."""
        with self._lock:
            return tuple(self._pending.values())

    @property
    def holds(self) -> tuple[RetentionEvent, ...]:
        """Legal holds in force, including those of earlier and other processes."""
        return tuple(self._holds.values())  # never changed in place: evictions need no lock

    def is_held(self, subject: str | None, tags: Iterable[str]) -> bool:
        """Return whether a legal hold applies to an entry."""
        holds = self.holds
        name = None if subject is None or not holds else self._chain.pseudonym(subject)
        return any(hold.data_class in tags if hold.subject is None else hold.subject == name for hold in holds)

    def holds_against(self, subject: str | None, tag: str | None) -> tuple[RetentionEvent, ...]:
        """Return the legal holds that may apply to an erasure, because its entries may belong to any class."""
        holds = self.holds
        name = None if subject is None or not holds else self._chain.pseudonym(subject)
        return tuple(hold for hold in holds if hold.subject in {None, name} or tag is not None)

    def pseudonym(self, subject: str) -> str:
        """Return the keyed hash that the log stores for a subject.

        Raises:
            TypeError: ``subject`` is not a string.
        """
        check_instance("subject", subject, str, "a string")
        return self._chain.pseudonym(subject)

    def events_about(self, subject: str) -> tuple[RetentionEvent, ...]:
        """Return the records of a subject, oldest first: from the whole file, or from memory if there is no file.

        Raises:
            TypeError: ``subject`` is not a string.
            BackendError: the file cannot be read, or it was altered.
        """
        name = self.pseudonym(subject)
        return tuple(event for event in self._all() if event.subject == name)

    def verify(self, *, head: str | None = None) -> Verification:
        """Check every record in the file, or in memory if there is no file.

        Args:
            head: a head that was stored elsewhere, which the log must reach; ``None``: none.

        Returns:
            The outcome. Without a ``head``, the check still detects the loss of records that this process has seen. A
            log in memory can reach the heads of its latest 10,000 records.

        Raises:
            TypeError, ValueError: ``head`` is not a digest.
            BackendError: the file cannot be read.
        """
        with self._lock:
            expected_end = (self._chain.number, self._chain.head)
            if self._file is None:
                chain = copy.copy(self._before)
                return verified(chain, map(chain.check, tuple(self._recent)), expected_end, head)
            size = self._file.size()
        return _verify(self._file.path, self._secret, size, expected_end, head)

    def refresh(self) -> None:
        """Read the records of other processes; :meth:`record` does so too.

        Raises:
            BackendError: the file cannot be read or locked.
            ValueError: the file was altered after it was last read.
        """
        with self._lock:
            if self._file is not None:
                self._file.refresh()

    def _all(self) -> Iterator[RetentionEvent]:
        if self._file is None:
            yield from self.events
            return
        with self._lock:
            size = self._file.size()
        try:
            yield from read_events(self._file.path, Chain(self._secret), size)
        except (Altered, OSError) as error:
            raise self._file.failed(error) from error

    def _absorb(self, event: RetentionEvent) -> None:
        """Process a new event of the log, from this process or another one."""
        selection = (event.where, event.subject, event.tag)
        if event.action in {"erase_failed", "erase_held"}:
            self._pending[selection] = event
        elif event.action == "erased":
            self._pending.pop(selection, None)
        elif event.action == "held":
            self._holds = {**self._holds, (event.subject, event.data_class): event}
        elif event.action == "released":
            ended = (event.subject, event.data_class)
            self._holds = {key: hold for key, hold in self._holds.items() if key != ended}
        self._recent.append(event)
        if len(self._recent) > _MAX_RECENT:
            self._before.advance(self._recent.popleft())

    def __repr__(self) -> str:
        where = "in memory" if self._file is None else repr(str(self._file.path))
        return f"<RetentionLog {where}: {self._chain.number} records>"


def verify_file(path: str | os.PathLike[str], *, secret: bytes, head: str | None = None) -> Verification:
    """Check the file of a log without changing it.

    Args:
        path: of the file.
        secret: the log's secret.
        head: a head that was stored elsewhere, which the log must reach; ``None``: none.

    Raises:
        TypeError, ValueError: ``secret`` is not a secret, or ``head`` is not a digest.
        OSError: the file cannot be read.
    """
    return _verify(check_path("path", path), check_secret("secret", secret), None, (0, ""), head)


def _verify(
    path: Path, secret: bytes, size: int | None, expected_end: tuple[int, str], head: str | None
) -> Verification:
    chain = Chain(secret)
    return verified(chain, read_events(path, chain, size), expected_end, head)

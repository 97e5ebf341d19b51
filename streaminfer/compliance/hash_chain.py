"""Hash chain of records: no record can be changed, removed or moved without a trace.

Each record is one line of JSON. Its last field, ``digest``, is the HMAC-SHA-256 of all fields before it. These include
the record's number and the digest of the previous record (``previous``). One digest therefore covers all earlier
records: to change an old record, all later ones must be made again, which needs the key. The idea comes from secure
audit logs (Schneier and Kelsey, 1999), but with one key that does not evolve: the owner of the key can forge records.

A chain alone cannot show that its *last* records were cut off: a shorter chain is also whole. To detect that, store the
digest of the latest record (the head) in another place.

The check reads the bytes of the file, not their meaning, so that writing the same record in another way also counts as
a change. One record costs two passes of SHA-256 over about 400 bytes.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Iterable
from typing import Any

import attrs

from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.validation import check_instance, expected

__all__ = ["Altered", "Chain", "RetentionEvent", "Verification", "is_torn", "is_whole", "verified"]

_VERSION = b" 1"
_BEGINNING = b'{"number":'
_SEAL = re.compile(rb',"digest":"([0-9a-f]{64})"}')
_DIGEST = re.compile("[0-9a-f]{64}")
_SEAL_SIZE = len(b',"digest":""}') + 64


class Altered(Exception):  # noqa: N818 - never leaves the package
    """Raised for a record that is not the one that was written at its place."""


@attrs.frozen(kw_only=True)
class RetentionEvent(Snapshot):
    """Event of a retention log: entries that were removed, or should have been. Contains none of their data.

    Attributes:
        number: its place in the log, from 0.
        at_ns: when it happened, in nanoseconds of the wall clock.
        action: ``"expired"``, ``"evicted"``, ``"erased"``, ``"erase_failed"``, ``"removed"``, ``"purged"``,
            ``"disallowed"``, ``"held"``, ``"released"`` or ``"erase_held"``.
        where: the memory, tier or key store.
        data_class: class of the retention policy; ``""``: the default class, or all classes.
        count: number of entries, ≥ 0.
        reason: the reason, in words.
        subject: keyed hash of the data subject; ``None``: no subject, or several.
        tag: tag of the erasure; ``None``: not by tag.
        previous: digest of the previous record.
        digest: HMAC-SHA-256 of this record, which covers all earlier ones, in hexadecimal digits.
    """

    number: int
    at_ns: int
    action: str
    where: str
    data_class: str
    count: int
    reason: str
    subject: str | None
    tag: str | None
    previous: str
    digest: str


@attrs.frozen(kw_only=True)
class Verification:
    """Outcome of the check of a log.

    Attributes:
        ok: whether the log is unaltered, as far as can be checked.
        records: number of unaltered records, from the first one on.
        head: digest of the last of these.
        first_bad: number of the first record that is altered or missing; ``None`` if there is none.
        problem: description of what is wrong with it; ``""`` if there is none.
    """

    ok: bool
    records: int
    head: str
    first_bad: int | None = None
    problem: str = ""

    def __str__(self) -> str:
        if self.ok:
            return f"{self.records} records, whole; head {self.head}"
        return f"record {self.first_bad}: {self.problem}"


class Chain:
    """End of a chain: makes or checks the next record. Not thread-safe.

    Args:
        secret: the log's secret.

    Attributes:
        number: number of the next record.
        head: digest of the latest record; in an empty chain, a digest of the secret alone.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"streaminfer retention log: chain" + _VERSION, hashlib.sha256)
        self._subjects = hmac.digest(secret, b"streaminfer retention log: subjects" + _VERSION, hashlib.sha256)
        self.number = 0
        self.head = self._digest(b"nothing yet")

    def pseudonym(self, subject: str) -> str:
        """Return the pseudonym of a subject in the log: 32 hexadecimal digits, fixed by name and secret."""
        name = subject.encode("utf-8", "surrogatepass")
        return hmac.digest(self._subjects, name, hashlib.sha256).hex()[:32]

    def seal(self, **fields: Any) -> bytes:
        """Return the next record as a line; :meth:`open` adds it."""
        body = _body({"number": self.number, **fields, "previous": self.head})
        return body + b',"digest":"' + self._digest(body).encode() + b'"}\n'

    def open(self, line: bytes) -> RetentionEvent:
        """Return the event of the next line, which includes its end of line, and advance past it.

        Raises:
            Altered: the line is not what was written after the previous record.
        """
        body, seal = line[: -_SEAL_SIZE - 1], _SEAL.fullmatch(line[-_SEAL_SIZE - 1 : -1])
        if seal is None or line[-1:] != b"\n":
            raise Altered("it is no record")
        digest = self._digest(body)
        if not hmac.compare_digest(digest.encode(), seal[1]):
            raise Altered("it was changed, or written with another secret")
        return self._follow(RetentionEvent(**json.loads(line)))

    def check(self, event: RetentionEvent) -> RetentionEvent:
        """Check an event in memory in the same way, and advance past it. Raises `Altered`."""
        fields = event.to_dict()
        digest = fields.pop("digest")
        if self._digest(_body(fields)) != digest:
            raise Altered("it was changed")
        return self._follow(event)

    def _follow(self, event: RetentionEvent) -> RetentionEvent:
        if event.previous != self.head:  # the digest covers the number too
            raise Altered(f"records before it were removed or moved: it is record {event.number}")
        self.advance(event)
        return event

    def advance(self, event: RetentionEvent) -> None:
        """Advance past a record."""
        self.number, self.head = event.number + 1, event.digest

    def _digest(self, body: bytes) -> str:
        return hmac.digest(self._key, body, hashlib.sha256).hex()


def verified(
    chain: Chain, events: Iterable[RetentionEvent], expected_end: tuple[int, str], head: str | None
) -> Verification:
    """Check events, and return the outcome.

    Args:
        chain: the chain before the first event; the check advances it.
        events: the events; the iterator raises `Altered` at an altered one.
        expected_end: number of records that must be there, and the digest of the last of them.
        head: a digest that the chain must reach; ``None``: none.

    Raises:
        TypeError, ValueError: ``head`` is not a digest; this says nothing about the events.
    """
    if head is not None:
        expectation = "64 hexadecimal digits, as RetentionLog.head gives, or None"
        check_instance("head", head, str, expectation)
        if not _DIGEST.fullmatch(head):
            raise ValueError(expected("head", expectation, head))
    first = chain.number

    def bad(problem: str, at: int | None = None, before: str = "") -> Verification:
        number, digest = (chain.number, chain.head) if at is None else (at, before)
        return Verification(ok=False, records=number, head=digest, first_bad=number, problem=problem)

    reached = head is None or chain.head == head
    try:
        for event in events:
            reached = reached or event.digest == head
            if event.number + 1 == expected_end[0] and event.digest != expected_end[1]:
                return bad("it is not the record that this process has seen there", event.number, event.previous)
    except Altered as error:
        return bad(str(error))
    if chain.number < expected_end[0]:
        return bad(f"{expected_end[0] - chain.number} records that this process has seen were cut off")
    if not reached and first:
        return bad(
            f"the head that was kept is none of the latest {chain.number - first} records, and memory has no others"
        )
    if not reached:
        return bad("the head that was kept is not reached: the last records were cut off, or it is another log's")
    return Verification(ok=True, records=chain.number, head=chain.head)


def is_torn(rest: bytes) -> bool:
    """Return whether the bytes after the last end of line are an unfinished write, not an altered record.

    An unfinished write begins like a record and lacks at least the end of line. Other bytes do not come from the log
    and must not be removed. A file system may leave zeros of a page that a power cut prevented from reaching the disk.
    """
    if not rest.startswith((_BEGINNING, b"\0")) and not _BEGINNING.startswith(rest):
        return False
    seal = _SEAL.search(rest)
    return seal is None or seal.end() == len(rest)


def is_whole(rest: bytes) -> bool:
    """Return whether an unfinished write has a complete record except its end of line."""
    return _SEAL.fullmatch(rest, max(len(rest) - _SEAL_SIZE, 0)) is not None


def _body(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()[:-1]

"""A chain of records in which no record can be changed, removed or moved without a trace.

Each record is one line of JSON. Its last field, ``digest``, is the HMAC-SHA-256 of all that stands before it, and what
stands before it holds the digest of the record in front (``previous``) and the record's number. So one digest stands
for everything up to it: a change of an old record needs all later ones to be made again, which needs the key. The idea
is that of secure audit logs (Schneier and Kelsey, 1999), with one key that does not evolve: its owner can forge.

What no chain can see by itself is that its *last* records were cut off: what is left is a shorter chain, and whole. The
digest of the latest record (the head), kept in another place, shows that too.

Checking goes over the bytes as they lie there, not over what they mean, so that another way to write the same record is
a change as well. One record costs two passes of SHA-256 over some 400 bytes.
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
    """A record that is not the one that was written in its place."""


@attrs.frozen(kw_only=True)
class RetentionEvent(Snapshot):
    """Something that went, or should have gone; what it was is not in it.

    Attributes:
        number: its place in the log, from 0.
        at_ns: when it happened, nanoseconds of the wall clock.
        action: ``"expired"``, ``"evicted"``, ``"erased"``, ``"erase_failed"``, ``"removed"``, ``"purged"``,
            ``"disallowed"``, ``"held"``, ``"released"`` or ``"erase_held"``.
        where: the memory, tier or key store.
        data_class: of the retention policy; ``""``: the default one, or all of them.
        count: entries, ≥ 0.
        reason: why, in words.
        subject: a keyed hash of whose data it was; ``None``: no person's, or of many.
        tag: by which it was erased; ``None``: by none.
        previous: digest of the record in front.
        digest: HMAC-SHA-256 of this record and so of all in front of it, in hexadecimal digits.
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
    """Outcome of a check whether a log is as it was written.

    Attributes:
        ok: nothing was found.
        records: how many records are whole, from the first one on.
        head: digest of the last of these.
        first_bad: number of the first record that is not what was written there, or is missing; ``None``: none.
        problem: what is wrong with it, in words; ``""``: nothing.
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
    """The end of a chain: makes the next record, or checks it. Not thread-safe.

    Args:
        secret: the log's.

    Attributes:
        number: of the next record.
        head: digest of the latest one; of an empty chain, one that only the secret gives.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"streaminfer retention log: chain" + _VERSION, hashlib.sha256)
        self._subjects = hmac.digest(secret, b"streaminfer retention log: subjects" + _VERSION, hashlib.sha256)
        self.number = 0
        self.head = self._digest(b"nothing yet")

    def pseudonym(self, subject: str) -> str:
        """Return what stands in the log for a subject: 32 hexadecimal digits, the same for the same name and secret."""
        name = subject.encode("utf-8", "surrogatepass")
        return hmac.digest(self._subjects, name, hashlib.sha256).hex()[:32]

    def seal(self, **fields: Any) -> bytes:
        """Return the next record as a line; :meth:`open` adds it."""
        body = _body({"number": self.number, **fields, "previous": self.head})
        return body + b',"digest":"' + self._digest(body).encode() + b'"}\n'

    def open(self, line: bytes) -> RetentionEvent:
        """Return the event of the next line, which has its end of line, and move on behind it.

        Raises:
            Altered: it is not what was written behind the record in front.
        """
        body, seal = line[: -_SEAL_SIZE - 1], _SEAL.fullmatch(line[-_SEAL_SIZE - 1 : -1])
        if seal is None or line[-1:] != b"\n":
            raise Altered("it is no record")
        digest = self._digest(body)
        if not hmac.compare_digest(digest.encode(), seal[1]):
            raise Altered("it was changed, or written with another secret")
        return self._follow(RetentionEvent(**json.loads(line)))

    def check(self, event: RetentionEvent) -> RetentionEvent:
        """Check an event in memory in the same way, and move on behind it. Raises `Altered`."""
        fields = event.to_dict()
        digest = fields.pop("digest")
        if self._digest(_body(fields)) != digest:
            raise Altered("it was changed")
        return self._follow(event)

    def _follow(self, event: RetentionEvent) -> RetentionEvent:
        if event.previous != self.head:  # and with it the number
            raise Altered(f"records before it were removed or moved: it is record {event.number}")
        self.advance(event)
        return event

    def advance(self, event: RetentionEvent) -> None:
        """Move on behind a record."""
        self.number, self.head = event.number + 1, event.digest

    def _digest(self, body: bytes) -> str:
        return hmac.digest(self._key, body, hashlib.sha256).hex()


def verified(chain: Chain, events: Iterable[RetentionEvent], known: tuple[int, str], head: str | None) -> Verification:
    """Return what a check of events finds.

    Args:
        chain: at the place before the events; it moves on as they are taken.
        events: raise `Altered` where they are.
        known: number of records, and the digest of the last, that must be there.
        head: a digest that must be reached; ``None``: none.

    Raises:
        TypeError, ValueError: a head that is no digest, which says nothing about the events.
    """
    if head is not None:
        what = "64 hexadecimal digits, as RetentionLog.head gives, or None"
        check_instance("head", head, lambda it: isinstance(it, str), what)
        if not _DIGEST.fullmatch(head):
            raise ValueError(expected("head", what, head))
    first = chain.number

    def bad(problem: str, at: int | None = None, before: str = "") -> Verification:
        number, digest = (chain.number, chain.head) if at is None else (at, before)
        return Verification(ok=False, records=number, head=digest, first_bad=number, problem=problem)

    reached = head is None or chain.head == head
    try:
        for event in events:
            reached = reached or event.digest == head
            if event.number + 1 == known[0] and event.digest != known[1]:
                return bad("it is not the record that this process has seen there", event.number, event.previous)
    except Altered as error:
        return bad(str(error))
    if chain.number < known[0]:
        return bad(f"{known[0] - chain.number} records that this process has seen were cut off")
    if not reached and first:
        return bad(
            f"the head that was kept is none of the latest {chain.number - first} records, and memory has no others"
        )
    if not reached:
        return bad("the head that was kept is not reached: the last records were cut off, or it is another log's")
    return Verification(ok=True, records=chain.number, head=chain.head)


def is_torn(rest: bytes) -> bool:
    """Return whether the bytes after the last end of line are a write that was cut short, and no altered record.

    A write that was cut short begins as a record does, and has at most all of it but its end of line; other bytes are
    no log's, and must not be removed. Zeros are what a file system may leave of a page that a power cut kept from the
    disk.
    """
    if not rest.startswith((_BEGINNING, b"\0")) and not _BEGINNING.startswith(rest):
        return False
    seal = _SEAL.search(rest)
    return seal is None or seal.end() == len(rest)


def is_whole(rest: bytes) -> bool:
    """Return whether bytes that are torn have all of a record but its end of line."""
    return _SEAL.fullmatch(rest, max(len(rest) - _SEAL_SIZE, 0)) is not None


def _body(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()[:-1]

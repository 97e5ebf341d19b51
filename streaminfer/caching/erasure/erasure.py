"""Erasure in memory and several tiers.

Memory is erased at once, so an :class:`Erasure` is that count, an ``int``, from the start. The tiers begin at once too:
awaiting the `Erasure` returns another, whose number is the total.

A :class:`PendingErasure` is one erasure as the tiers see it. Until a tier has made it, nothing that it matches is read
from that tier or written there. It is registered with every tier before memory is erased, and armed after, so that
nothing is written in between.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Generator, Iterable, Mapping
from concurrent.futures import Future
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from streaminfer._internal.validation import check_instance

if TYPE_CHECKING:
    from streaminfer.caching.tiers.protocol import Entry

__all__ = ["Erasure", "PendingErasure", "check_selection", "is_erased"]


def check_selection(subject: Any, tag: Any) -> tuple[str | None, str | None]:
    """Return exactly one of both, as a plain string.

    Raises:
        TypeError: neither or both, or no string.
    """
    if (subject is None) == (tag is None):
        raise TypeError("erase: expected a subject or a tag, got " + ("neither" if tag is None else "both"))
    for name, word in (("subject", subject), ("tag", tag)):
        check_instance(name, word, lambda it: it is None or isinstance(it, str), "a string")
    return None if subject is None else str(subject), None if tag is None else str(tag)


def is_erased(entry: Entry, pending: Iterable[PendingErasure]) -> bool:
    """Return whether one of these erasures matches an entry."""
    return any(it.matches(entry.subject, entry.tags) for it in pending)


class Erasure(int):
    """Number of entries that were erased; awaited, over all tiers.

    The tiers are erased whether or not it is awaited. Awaiting ends when each tier has been tried once: what failed is
    in ``failed``, and is tried again until it is done.

    Attributes:
        counts: entries by place: ``"memory"`` and the names of the tiers that have finished.
        failed: by place, why it may still hold some; a tier that does not run is tried when it starts.
        complete: every place has finished, and none failed.
    """

    counts: Mapping[str, int]
    failed: Mapping[str, str]
    complete: bool
    _outcome: Future[Erasure] | None

    def __new__(
        cls,
        counts: Mapping[str, int],
        failed: Mapping[str, str],
        complete: bool,
        outcome: Future[Erasure] | None = None,
    ) -> Self:
        """Make the integer."""
        made = super().__new__(cls, sum(counts.values()))
        made.counts = MappingProxyType(dict(counts))
        made.failed = MappingProxyType(dict(failed))
        made.complete = complete
        made._outcome = outcome
        return made

    def __await__(self) -> Generator[Any, None, Erasure]:
        if self._outcome is None:
            return self
        # shielded: a waiter that is cancelled leaves the others alone
        return (yield from asyncio.shield(asyncio.wrap_future(self._outcome)).__await__())

    def __reduce__(self) -> Any:
        return (int, (int(self),))

    def __str__(self) -> str:
        return str(int(self))

    def __repr__(self) -> str:
        failed = f", failed: {', '.join(self.failed)}" if self.failed else ""
        return f"<Erasure {int(self)}: {dict(self.counts)}{failed}{'' if self.complete else ', not complete'}>"


class PendingErasure:
    """Erasure that tiers have still to make. Thread-safe.

    Args:
        subject: whose entries; or
        tag: with which tag.
        places: names of the tiers.

    Attributes:
        armed: memory was erased, and tiers may begin.
        outcome: the `Erasure`, once each tier has been tried.
    """

    __slots__ = ("_counts", "_failed", "_lock", "_open", "armed", "outcome", "subject", "tag")

    def __init__(self, subject: str | None, tag: str | None, places: Collection[str]) -> None:
        self.subject = subject
        self.tag = tag
        self.armed = False
        self.outcome: Future[Erasure] = Future()
        self._lock = threading.Lock()
        self._open = set(places)
        self._counts: dict[str, int] = {}
        self._failed: dict[str, str] = {}

    def matches(self, subject: str | None, tags: Collection[str]) -> bool:
        """Return whether an entry is to be erased."""
        return subject == self.subject if self.tag is None else self.tag in tags

    def is_covered_by(self, other: PendingErasure) -> bool:
        """Return whether making the other, later one makes this one as well."""
        return (self.subject, self.tag) == (other.subject, other.tag)

    def arm(self, in_memory: int) -> None:
        """Note that memory was erased."""
        with self._lock:
            self._counts["memory"] = in_memory
            self.armed = True

    def is_open(self, place: str) -> bool:
        """Return whether a tier has not been tried yet."""
        return place in self._open

    def done(self, place: str, count: int) -> None:
        """Note that a tier has erased so many."""
        with self._lock:
            self._counts[place] = self._counts.get(place, 0) + count
            self._failed.pop(place, None)
        self._close(place)

    def fail(self, place: str, why: str) -> None:
        """Note that a tier failed; it will be tried again."""
        with self._lock:
            self._failed[place] = why
        self._close(place)

    def so_far(self) -> Erasure:
        """Return what is known; awaiting it waits for the rest."""
        with self._lock:
            complete = not self._open and not self._failed
            return Erasure(self._counts, self._failed, complete, self.outcome)

    def _close(self, place: str) -> None:
        with self._lock:
            self._open.discard(place)
            over = not self._open and not self.outcome.done()
            result = Erasure(self._counts, self._failed, not self._failed) if over else None
        if result is not None:
            self.outcome.set_result(result)

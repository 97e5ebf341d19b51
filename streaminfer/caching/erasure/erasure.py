"""Erasure of a subject or a tag in memory and in several tiers.

A `PendingErasure` is one erasure that the tiers still carry out. Until a tier has done so, the cache neither reads from
nor writes to that tier any entry that the erasure matches. It begins *unarmed*: the cache registers it with every tier,
erases memory, then arms it. No entry can slip through between these steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from typing import Any

import attrs

from streaminfer._internal.forking import new_lock
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.validation import check_instance

__all__ = ["MEMORY", "Erasure", "PendingErasure", "check_selection"]

MEMORY = "memory"
"""Name of the process's memory in the list of a cache's places."""


def check_selection(subject: Any, tag: Any) -> tuple[str | None, str | None]:
    """Check that exactly one is given; return both as plain strings.

    Raises:
        TypeError: neither or both are given, or not a string.
    """
    if (subject is None) == (tag is None):
        raise TypeError("erase: expected a subject or a tag, got " + ("neither" if tag is None else "both"))
    for name, word in (("subject", subject), ("tag", tag)):
        check_instance(name, word, str | None, "a string")
    return None if subject is None else str(subject), None if tag is None else str(tag)


@attrs.frozen
class Erasure(Snapshot):
    """Outcome of an erasure, once the cache has tried every tier.

    Attributes:
        counts: entries erased, by place: ``"memory"`` and the names of the tiers that succeeded.
        failed: by tier, why it may still hold some. The cache retries that tier until it succeeds; a tier that does
            not run is retried when it starts.
    """

    counts: Mapping[str, int]
    failed: Mapping[str, str]

    @property
    def count(self) -> int:
        """Total of erased entries."""
        return sum(self.counts.values())

    @property
    def complete(self) -> bool:
        """True if every place was erased."""
        return not self.failed


class PendingErasure:
    """One erasure that tiers have to carry out. Thread-safe.

    Args:
        subject: erase the entries of this subject; ``None``: erase by tag.
        tag: erase the entries with this tag; ``None``: erase by subject.
        places: names of the tiers.

    Attributes:
        in_memory: entries erased from memory.
        outcome: the `Erasure`, once each tier has been tried.
    """

    def __init__(self, subject: str | None, tag: str | None, places: Collection[str] = ()) -> None:
        self.subject = subject
        self.tag = tag
        self.in_memory = 0
        self.outcome: Future[Erasure] = Future()
        self._lock = new_lock()
        # by place: entries erased, or the reason of the failure; ``None``: not tried yet
        self._outcomes: dict[str, int | str | None] = dict.fromkeys((MEMORY, *places))

    def matches(self, subject: str | None, tags: Collection[str]) -> bool:
        """Return whether this erasure applies to an entry with this subject and these tags."""
        return subject == self.subject if self.tag is None else self.tag in tags

    @property
    def selection(self) -> dict[str, str | None]:
        """Subject and tag by name."""
        return {"subject": self.subject, "tag": self.tag}

    def arm(self, in_memory: int) -> None:
        """Note that memory is erased, and the number of erased entries."""
        self.in_memory = in_memory
        self.note(MEMORY, in_memory)

    @property
    def armed(self) -> bool:
        """True if memory has been erased, so that tiers may begin."""
        return self._outcomes[MEMORY] is not None

    def is_untried(self, place: str) -> bool:
        """Return whether a tier has not been tried yet."""
        return self._outcomes.get(place, 0) is None

    def note(self, place: str, outcome: int | str) -> None:
        """Note how many entries a place has erased, or why it failed and will be tried again."""
        with self._lock:
            if not self.outcome.done():  # later attempts change only statistics and the log
                self._outcomes[place] = outcome
                if None not in self._outcomes.values():
                    counts = {where: it for where, it in self._outcomes.items() if isinstance(it, int)}
                    failed = {where: it for where, it in self._outcomes.items() if isinstance(it, str)}
                    self.outcome.set_result(Erasure(counts, failed))

    async def wait(self) -> Erasure:
        """Wait until each tier has been tried; cancelling the waiter does not cancel the erasure."""
        return await asyncio.shield(asyncio.wrap_future(self.outcome))

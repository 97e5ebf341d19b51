"""Queue of the erasures that one tier has not carried out.

*Design.* While a tier fails, its erasures may wait for hours. Untried erasures come first. Failed ones follow in the
order of their last attempt, so that one that always fails does not block the others. A later erasure of the same
selection replaces a failed one.

*Complexity.* O(1), except that each change copies ``pending``, so that a read can keep its copy while erasures are
added and removed. Erasures that a legal hold forbids are checked one by one.
"""

import weakref
from collections import Counter

from streaminfer._internal.forking import new_lock
from streaminfer.caching.erasure.erasure import PendingErasure
from streaminfer.caching.tiers.protocol import Entry

__all__ = ["PendingErasures"]

_Selection = tuple[str | None, str | None]  # subject and tag


class PendingErasures:
    """Erasures of one tier. Thread-safe.

    Attributes:
        pending: all erasures, untried and failed.
    """

    def __init__(self) -> None:
        self.pending: tuple[PendingErasure, ...] = ()
        self._selections: Counter[_Selection] = Counter()
        self._untried: dict[PendingErasure, None] = {}
        self._failed: dict[_Selection, PendingErasure] = {}
        # by erasure that a hold forbids: when to check it again
        self._held_until: weakref.WeakKeyDictionary[PendingErasure, float] = weakref.WeakKeyDictionary()
        self._lock = new_lock()

    def add(self, erasing: PendingErasure) -> None:
        """Add an untried erasure; it replaces a failed one of the same selection."""
        selection = erasing.subject, erasing.tag
        with self._lock:
            failed = self._failed.pop(selection, None)
            if failed is not None:
                self._remove(failed)
            self._untried[erasing] = None
            self._selections[selection] += 1
            self.pending = (*self.pending, erasing)

    def fail(self, erasing: PendingErasure) -> None:
        """Move an erasure that failed behind the others, unless a later one has replaced it."""
        selection = erasing.subject, erasing.tag
        with self._lock:
            if erasing in self._untried:
                del self._untried[erasing]
                failed = self._failed.pop(selection, None)
                if failed is not None:
                    self._remove(failed)
                self._failed[selection] = erasing
            elif self._failed.get(selection) is erasing:
                self._failed[selection] = self._failed.pop(selection)

    def end(self, erasing: PendingErasure) -> None:
        """Remove an erasure that was carried out, unless a later one has replaced it."""
        selection = erasing.subject, erasing.tag
        with self._lock:
            if erasing in self._untried:
                del self._untried[erasing]
            elif self._failed.get(selection) is erasing:
                del self._failed[selection]
            else:
                return
            self._remove(erasing)

    def hold(self, erasing: PendingErasure, until_s: float) -> None:
        """Skip an erasure, which a legal hold forbids, until an instant."""
        self._held_until[erasing] = until_s

    def end_holds(self) -> None:
        """Stop skipping erasures."""
        self._held_until.clear()

    def held_until(self) -> float | None:
        """Return when to check the first skipped erasure again; ``None`` if none is skipped."""
        with self._lock:
            held = [until for it, until in self._held_until.items() if self._failed.get((it.subject, it.tag)) is it]
        return min(held, default=None)

    def next(self, now_s: float, *, may_retry: bool) -> PendingErasure | None:
        """Return the next erasure to carry out; ``None`` if there is none now.

        Args:
            now_s: the current instant, on the clock of `hold`.
            may_retry: whether failed erasures are candidates too.
        """
        with self._lock:
            for erasing in self._untried:
                if erasing.armed:
                    return erasing
            for erasing in self._failed.values() if may_retry else ():
                if now_s >= self._held_until.get(erasing, now_s):
                    return erasing
        return None

    def matches(self, entry: Entry) -> bool:
        """Return whether a pending erasure applies to an entry."""
        if not self._selections:
            return False
        return (entry.subject, None) in self._selections or any((None, tag) in self._selections for tag in entry.tags)

    def matching(self, entry: Entry | None) -> list[PendingErasure]:
        """Return the pending erasures that apply to an entry; none of them to ``None``."""
        if entry is None or not self.matches(entry):
            return []
        return [erasing for erasing in self.pending if erasing.matches(entry.subject, entry.tags)]

    def _remove(self, erasing: PendingErasure) -> None:
        at = self.pending.index(erasing)
        self.pending = self.pending[:at] + self.pending[at + 1 :]
        selection = erasing.subject, erasing.tag
        self._selections[selection] -= 1
        if not self._selections[selection]:
            del self._selections[selection]

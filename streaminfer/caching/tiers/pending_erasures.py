"""Queue of the erasures that one tier has not carried out.

*Design.* While a tier fails, its erasures may wait for hours. Untried erasures come first. Failed ones follow in the
order of their last attempt, so that one that always fails does not block the others. A later erasure of the same
selection replaces a failed one.

*Complexity.* O(1) in the number of erasures, except that each change makes a new ``pending``, and the next `matcher` a
new set of their selections, which a read can keep while erasures are added and removed. Erasures that a legal hold
forbids are checked one by one.
"""

import weakref
from collections.abc import Callable

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
        self._untried: dict[PendingErasure, None] = {}
        self._failed: dict[_Selection, PendingErasure] = {}
        self._selections: frozenset[_Selection] | None = None  # of all erasures; ``None``: they changed since
        # by erasure that a hold forbids: when to check it again
        self._held_until: weakref.WeakKeyDictionary[PendingErasure, float] = weakref.WeakKeyDictionary()
        self._lock = new_lock()

    def add(self, erasing: PendingErasure) -> None:
        """Add an untried erasure; it replaces a failed one of the same selection."""
        with self._lock:
            self._failed.pop((erasing.subject, erasing.tag), None)
            self._untried[erasing] = None
            self._list_pending()

    def fail(self, erasing: PendingErasure) -> None:
        """Move an erasure that failed behind the others, unless a later one has replaced it."""
        selection = erasing.subject, erasing.tag
        with self._lock:
            if self._remove(erasing):
                self._failed.pop(selection, None)
                self._failed[selection] = erasing
                self._list_pending()

    def end(self, erasing: PendingErasure) -> None:
        """Remove an erasure that was carried out, unless a later one has replaced it."""
        with self._lock:
            self._remove(erasing)
            self._list_pending()

    def _remove(self, erasing: PendingErasure) -> bool:
        """Remove an erasure; return false if it is not there."""
        selection = erasing.subject, erasing.tag
        if erasing in self._untried:
            del self._untried[erasing]
        elif self._failed.get(selection) is erasing:
            del self._failed[selection]
        else:
            return False
        return True

    def _list_pending(self) -> None:
        self.pending = (*self._untried, *self._failed.values())
        self._selections = None

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

    def matcher(self) -> Callable[[Entry], bool]:
        """Return a function that tells whether one of the erasures that are pending now applies to an entry."""
        with self._lock:
            if self._selections is None:
                self._selections = frozenset(self._failed).union([(it.subject, it.tag) for it in self._untried])
            selections = self._selections
        return lambda entry: not selections.isdisjoint([(entry.subject, None), *((None, tag) for tag in entry.tags)])

    def matches(self, entry: Entry) -> bool:
        """Return whether a pending erasure applies to an entry."""
        return self.matcher()(entry)

    def matching(self, entry: Entry | None) -> list[PendingErasure]:
        """Return the pending erasures that apply to an entry; none of them to ``None``."""
        if entry is None or not self.matches(entry):
            return []
        return [erasing for erasing in self.pending if erasing.matches(entry.subject, entry.tags)]

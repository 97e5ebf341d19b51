"""Children of a label family by their label values: one look-up per request.

One source, compiled with the C types of ``_label_family_cy.pxd`` or run as it is. A child is never removed but by
:meth:`clear`, so a look-up that finds one needs no lock; between the last look for a value and its insertion the
compiled code calls nothing that gives the interpreter lock up, as long as label values hash in C.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["LabelFamilyState"]


class LabelFamilyState:
    """Children by label values, at most ``max_sets``; the rest share one.

    Args:
        make: returns a new child.
        max_sets: the most sets of values with a child of their own.

    Attributes:
        max_sets: the same.
        overflowed: how many look-ups were given the shared child.
    """

    def __init__(self, make: Callable[[], Any], max_sets: int) -> None:
        self._make = make
        self._children: dict[Any, Any] = {}
        self._other: Any = None
        self.max_sets = max_sets
        self.overflowed = 0

    def child(self, values: Any) -> Any:
        """Return the child of a set of label values, a new one if there is room, else the shared one."""
        found = self._children.get(values)
        return self._added(values) if found is None else found

    def children(self) -> tuple[dict[Any, Any], Any]:
        """Return a copy of the children by their values, and the shared one; ``None``: there is none yet."""
        return self._children.copy(), self._other

    def clear(self) -> None:
        """Forget every child; those that callers keep are no longer part of the family."""
        self._children = {}
        self._other = None
        self.overflowed = 0

    def _added(self, values: Any) -> Any:
        if len(self._children) < self.max_sets:
            made = self._make()
            found = self._children.get(values)  # another thread may have come first
            if found is not None:
                return found
            if len(self._children) < self.max_sets:
                self._children[values] = made
                return made
        if self._other is None:
            made = self._make()
            if self._other is None:
                self._other = made
        self.overflowed += 1
        return self._other

"""Children of a label family by their label values, with one look-up per request.

The same source is compiled with the C types of ``_label_family_cy.pxd`` or runs uncompiled. Only
:meth:`~LabelFamilyState.clear` removes children, so a successful look-up needs no lock. Between the last look-up of a
value and its insertion, the compiled code does not release the interpreter lock, as long as label values hash in C.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["LabelFamilyState"]


class LabelFamilyState:
    """Children by label values, at most ``max_sets``; further sets of values share one child.

    Args:
        make: returns a new child.
        max_sets: most sets of values with their own child.

    Attributes:
        max_sets: as given.
        overflowed: number of look-ups that returned the shared child.
    """

    def __init__(self, make: Callable[[], Any], max_sets: int) -> None:
        self._make = make
        self._children: dict[Any, Any] = {}
        self._other: Any = None
        self.max_sets = max_sets
        self.overflowed = 0

    def child(self, values: Any) -> Any:
        """Return the child of a set of label values: an existing or a new one, or the shared child beyond the bound."""
        child = self._children.get(values)
        return self._added(values) if child is None else child

    def children(self) -> tuple[dict[Any, Any], Any]:
        """Return a copy of the children by their values, and the shared child, or ``None`` if it does not exist."""
        return self._children.copy(), self._other

    def clear(self) -> None:
        """Remove every child; children that callers still hold are not part of the family any more."""
        self._children = {}
        self._other = None
        self.overflowed = 0

    def _added(self, values: Any) -> Any:
        if len(self._children) < self.max_sets:
            child = self._make()
            # another thread may have come first, with these values or with others
            if len(self._children) < self.max_sets or values in self._children:
                return self._children.setdefault(values, child)
        if self._other is None:
            child = self._make()
            if self._other is None:
                self._other = child
        self.overflowed += 1
        return self._other

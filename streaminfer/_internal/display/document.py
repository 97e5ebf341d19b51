"""`Document`: what the reports for a privacy office have in common."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from streaminfer._internal.display.html_report import write_page
from streaminfer._internal.snapshot import Snapshot

__all__ = ["Document"]


class Document(Snapshot, ABC):
    """Report as plain values, as JSON and as a page.

    Attributes:
        schema: name of the layout of `to_dict`.
        version: of that layout.
        title: of the page.
    """

    __slots__ = ()

    schema: ClassVar[str]
    version: ClassVar[int] = 1
    title: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values, in the layout that ``schema`` and ``version`` name."""
        return {"schema": self.schema, "version": self.version, **super().to_dict()}

    def to_json(self) -> str:
        """Return the same as JSON, indented; the same report gives the same text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return a page that loads nothing; with a path, write it to that file too.

        Raises:
            OSError: it cannot be written.
        """
        return write_page(self.title, f"<h1>{self.title}</h1>{self._repr_html_()}", path)

    @abstractmethod
    def _repr_html_(self) -> str:
        """Return what the page has below its title."""

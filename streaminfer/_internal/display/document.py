"""`Document`: the base class of the reports for a privacy office."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from streaminfer._internal.display.html_report import write_page
from streaminfer._internal.snapshot import Snapshot

__all__ = ["Document"]


class Document(Snapshot, ABC):
    """Report as plain values, as JSON and as an HTML page.

    Attributes:
        schema: name of the layout of `to_dict`.
        version: version of that layout.
        title: title of the page.
    """

    __slots__ = ()

    schema: ClassVar[str]
    version: ClassVar[int] = 1
    title: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the whole report as plain values, in the layout that ``schema`` and ``version`` name."""
        return {"schema": self.schema, "version": self.version, **super().to_dict()}

    def to_json(self) -> str:
        """Return the report as indented JSON; equal reports give equal text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return an HTML page that loads no other files; with a path, also write it to that file.

        Raises:
            OSError: the file cannot be written.
        """
        return write_page(self.title, f"<h1>{self.title}</h1>{self._repr_html_()}", path)

    @abstractmethod
    def _repr_html_(self) -> str:
        """Return the content of the page below its title."""

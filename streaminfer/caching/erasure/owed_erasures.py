"""Erasures that a tier could not make, in a file, so that another process makes them after this one has died.

The file lies beside the retention log, as ``<log>.owed``, with one line of JSON for each, readable by its owner only.
It holds the names of subjects in the clear, because a tier finds nothing by their hashes; a name leaves the file when
the erasure is made. Processes of one machine can share the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from streaminfer.compliance.log_file import folder_locked
from streaminfer.errors import BackendError

__all__ = ["Owed", "OwedErasures"]


class Owed(NamedTuple):
    """Erasure that one tier owes.

    Attributes:
        place: the tier and its medium.
        subject: whose entries; or
        tag: with which tag.
    """

    place: str
    subject: str | None
    tag: str | None


class OwedErasures:
    """Erasures in the file. Thread-safe.

    Args:
        log: path of the retention log.
    """

    def __init__(self, log: Path) -> None:
        self.path = log.with_name(log.name + ".owed")

    def add(self, owed: Owed) -> None:
        """Add one; it is on the disk when this returns.

        Raises:
            BackendError: the disk failed.
        """
        self._change(lambda known: [*known, owed] if owed not in known else known)

    def remove(self, owed: Owed) -> None:
        """Remove one that was made. Raises as `add` does."""
        if self.path.exists():
            self._change(lambda known: [one for one in known if one != owed])

    def of(self, place: str) -> list[Owed]:
        """Return those of one tier. Raises as `add` does."""
        with self._failures():
            return [owed for owed in self._read() if owed.place == place]

    def _read(self) -> list[Owed]:
        try:
            text = self.path.read_text(encoding="ascii")
        except FileNotFoundError:
            return []
        return [Owed(*json.loads(line)) for line in text.splitlines()]

    def _change(self, change: Callable[[list[Owed]], list[Owed]]) -> None:
        with self._failures(), folder_locked(self.path.parent):
            before = self._read()
            after = change(before)
            if not after:
                self.path.unlink(missing_ok=True)
            elif after != before:
                fresh = self.path.with_name(self.path.name + ".new")
                number = os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                with os.fdopen(number, "w", encoding="ascii") as file:
                    file.writelines(json.dumps(owed) + "\n" for owed in after)
                    file.flush()
                    os.fsync(number)
                fresh.replace(self.path)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, TypeError) as error:
            what = f"{self.path}, which holds erasures that are owed, failed: {type(error).__name__}: {error}"
            raise BackendError(what) from error

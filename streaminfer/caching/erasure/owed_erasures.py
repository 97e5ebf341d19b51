"""File of erasures that a tier failed to make, so that another process makes them after this one has died.

The file lies beside the retention log, as ``<log>.owed``: one line of JSON for each, readable by its owner only. It
holds the plain names of subjects, because a tier finds nothing by less; a line is removed when its erasure is made.
Processes of one machine may share the file.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

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
    """Contents of the file. Thread-safe.

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
        """Remove one that was made; raises as :meth:`add` does."""
        if self.path.exists():
            self._change(lambda known: [one for one in known if one != owed])

    def of(self, place: str) -> list[Owed]:
        """Return those of one tier.

        Raises:
            BackendError: the file cannot be read.
        """
        with self._reporting():
            return [owed for owed in self._read() if owed.place == place]

    def _read(self) -> list[Owed]:
        try:
            text = self.path.read_text(encoding="ascii")
        except FileNotFoundError:
            return []
        return [Owed(*json.loads(line)) for line in text.splitlines()]

    def _change(self, change: Callable[[list[Owed]], list[Owed]]) -> None:
        with self._reporting(), self._locked():
            before = self._read()
            after = change(before)
            if after == before:
                return
            if not after:
                self.path.unlink()
                return
            fresh = self.path.with_name(self.path.name + ".new")
            number = os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(number, "w", encoding="ascii") as file:
                file.writelines(json.dumps(owed) + "\n" for owed in after)
                file.flush()
                os.fsync(number)
            fresh.replace(self.path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        number = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
            yield
            os.fsync(number)
        finally:
            os.close(number)  # and with it the lock

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, TypeError) as error:
            what = f"{self.path}, which holds erasures that are owed, failed: {type(error).__name__}: {error}"
            raise BackendError(what) from error

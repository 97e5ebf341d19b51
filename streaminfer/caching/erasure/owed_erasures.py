"""File of erasures that a tier could not make, so that another process can make them after this one has died.

The file lies beside the retention log, as ``<log>.owed``, with a line of JSON for each erasure. Only its owner can read
it. It contains the names of subjects in the clear, because a tier cannot find entries by a hash of the name. A name
leaves the file when the erasure is made. Processes of one machine can share the file.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streaminfer.compliance.log_file import folder_locked
from streaminfer.errors import BackendError

__all__ = ["OwedErasures"]


class OwedErasures:
    """Erasures in the file beside a log. Thread-safe.

    Args:
        log: path of the retention log.
    """

    def __init__(self, log: Path) -> None:
        self.path = log.with_name(log.name + ".owed")

    def note(self, place: str, subject: str | None, tag: str | None, *, is_owed: bool) -> None:
        """Add an erasure of a tier, or remove one that was made; the change is on the disk when this returns.

        Args:
            place: the tier and its medium.
            subject: of the erasure; ``None``: it is by tag.
            tag: of the erasure; ``None``: it is by subject.
            is_owed: true adds the erasure, false removes it.

        Raises:
            BackendError: the disk failed.
        """
        temporary = self.path.with_name(self.path.name + ".new")
        if not is_owed and not self.path.exists() and not temporary.exists():
            return
        with self._failures(), folder_locked(self.path.parent):
            try:
                owed = dict.fromkeys(self._read())
                if is_owed:
                    owed[place, subject, tag] = None
                else:
                    owed.pop((place, subject, tag), None)
                if not owed:
                    self.path.unlink(missing_ok=True)
                    return
                number = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                with os.fdopen(number, "w", encoding="ascii") as file:
                    file.writelines(json.dumps(it) + "\n" for it in owed)
                    file.flush()
                    os.fsync(number)
                temporary.replace(self.path)
            finally:  # also if the write failed or an earlier process died, because it contains names
                temporary.unlink(missing_ok=True)

    def of(self, place: str) -> list[tuple[str | None, str | None]]:
        """Return subject and tag of the owed erasures of one tier. Raises as :meth:`note` does."""
        with self._failures():
            return [(subject, tag) for owner, subject, tag in self._read() if owner == place]

    def _read(self) -> list[tuple[str, str | None, str | None]]:
        try:
            text = self.path.read_text(encoding="ascii")
        except FileNotFoundError:
            return []
        return [(place, subject, tag) for place, subject, tag in map(json.loads, text.splitlines())]

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, TypeError) as error:
            message = f"{self.path}, which holds erasures that are owed, failed: {type(error).__name__}: {error}"
            raise BackendError(message) from error

"""File of a `RetentionLog`: several processes of one machine can append to it, and it stays whole if one of them dies.

Each append opens the file and locks it (``flock``). There is nothing to close, and a writer that dies releases the
lock. Under the lock, the writer first reads the records that others have added, so that its record follows theirs.

*Crash*: an unfinished write leaves a line without its end. The next writer removes that line, or completes it if only
the end of line is missing; the crashed writer had not yet reported it as written. *Power cut*: a durable record and all
earlier ones are on the disk before the call returns. Some records after the last durable one may be lost. If the file
system writes out of order and leaves a gap, the gap counts as an alteration.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from streaminfer._internal.forking import new_awaited_lock, unlock_and_close
from streaminfer.compliance.hash_chain import Altered, Chain, RetentionEvent, is_torn, is_whole
from streaminfer.errors import BackendError

__all__ = ["RetentionFile", "folder_locked", "read_events"]

_WAIT_S = 5.0
_POLL_INTERVAL_S = 0.001


class RetentionFile:
    """File of a log. For one thread at a time.

    Args:
        path: of the file; made with access for its owner only, if missing.
        chain: is advanced to the end of the file.
        absorb: is called with each new event, including those of other processes.

    Raises:
        BackendError: the file cannot be made, read or locked.
        ValueError: its content is not whole, or was written with another secret.
    """

    def __init__(self, path: Path, chain: Chain, absorb: Callable[[RetentionEvent], None]) -> None:
        self.path = path
        self._chain = chain
        self._absorb = absorb
        self._end = 0
        self._append_lock = new_awaited_lock()  # held at a fork, so that a child has a whole record or none of it
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with folder_locked(path.parent):  # puts its name on the disk
                    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise self.failed(error) from error
        self.refresh()

    def append(self, make: Callable[[], bytes], *, durable: bool) -> None:
        """Append a record, completely or not at all.

        Args:
            make: returns the record; called when the chain is at the end of the file.
            durable: return only when this record and all earlier ones are on the disk.

        Raises:
            BackendError: the disk failed, or another process holds the lock.
            ValueError: the file does not continue the content that was read before.
        """
        with self._locked() as number:
            self._catch_up(number)
            line = make()
            try:
                _write(number, line, durable=durable)
            except BaseException:
                os.ftruncate(number, self._end)
                raise
            self._process(line)

    def refresh(self) -> None:
        """Read the records that other processes have added. Raises as :meth:`append` does."""
        with self._locked() as number:
            self._catch_up(number)

    def size(self) -> int:
        """Return the number of bytes that are complete and can be read without a lock."""
        with self._locked() as number:
            return os.fstat(number).st_size

    def _catch_up(self, number: int) -> None:
        """Read and check new records, and complete or remove an unfinished write."""
        # this digest covers all earlier records
        last_digest = f'{self._chain.head}"}}\n'.encode() if self._end else b""
        os.lseek(number, self._end - len(last_digest), os.SEEK_SET)
        with open(number, "rb", closefd=False) as file:
            if file.read(len(last_digest)) != last_digest:
                raise ValueError(f"{self.path}: expected the log that was read before, but its end was cut or changed")
            for line in file:
                if line.endswith(b"\n") or not is_torn(line):
                    self._process(line)
                    continue
                if is_whole(line):  # only the end of line is missing: add it
                    self._process(line + b"\n")
                    os.write(number, b"\n")
                else:
                    os.ftruncate(number, self._end)
                break

    def _process(self, line: bytes) -> None:
        with self._append_lock:
            try:
                event = self._chain.open(line)
            except Altered as error:
                raise ValueError(
                    f"{self.path}: expected a whole log, but at record {self._chain.number}: {error}; "
                    "keep the file for the investigation, and begin a new one under another name"
                ) from error
            self._end += len(line)
            self._absorb(event)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Open the file and hold its lock; errors name the log."""
        try:
            with _lock(self.path, os.O_RDWR | os.O_APPEND) as number:
                yield number
        except OSError as error:
            raise self.failed(error) from error

    def failed(self, error: Exception) -> BackendError:
        """Return the exception for an error of the disk."""
        return BackendError(f"the retention log {self.path} failed: {type(error).__name__}: {error}")


def read_events(path: Path, chain: Chain, size: int | None = None) -> Iterator[RetentionEvent]:
    """Yield and check the events of a file; the chain advances with them.

    Args:
        path: of the file, which is only read.
        chain: at its beginning.
        size: number of bytes to read; ``None``: to the end.

    Raises:
        Altered: the record ``chain.number`` is not what was written there.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        remaining = os.fstat(file.fileno()).st_size if size is None else size
        while remaining > 0:
            line = file.readline(remaining)
            if not line:
                raise Altered("the file was cut")
            remaining -= len(line)
            if not line.endswith(b"\n") and is_torn(line):
                raise Altered("the last line is cut short; a log that is opened to write removes it")
            yield chain.open(line)


@contextmanager
def _lock(path: Path, flags: int) -> Iterator[int]:
    """Open a file or folder and hold its lock, which other processes hold for one append.

    After 5 s it raises `BlockingIOError`, because a stopped process holds the lock.
    """
    number = os.open(path, flags | os.O_CLOEXEC)
    until = time.monotonic() + _WAIT_S
    try:
        while True:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(_POLL_INTERVAL_S)
        yield number
    finally:
        unlock_and_close(number)


def _write(number: int, line: bytes, *, durable: bool) -> None:
    remaining = memoryview(line)
    while remaining:  # a full disk may write a part; the next write then raises its error
        remaining = remaining[os.write(number, remaining) :]
    if durable:
        os.fsync(number)


@contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Hold a lock between processes; at the end, the folder's changes are on the disk.

    Raises:
        OSError: the disk failed, or a stopped process holds the lock.
    """
    with _lock(folder, os.O_RDONLY) as number:
        yield
        os.fsync(number)

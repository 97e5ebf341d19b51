"""The file of a `RetentionLog`: appended to by any number of processes of one machine, whole after any of them dies.

The file is opened for each append and locked while that takes (``flock``), so there is nothing to close, and a writer
that dies releases it. Under the lock the writer first reads what others have added since it last
looked, so that its record follows theirs.

*Crash*: a write that was cut short leaves a line without its end. The next writer removes it: its caller was not told
that it had been written. *Power cut*: a record that was asked to be durable was on the disk before the call returned,
and all in front of it. Of those behind the last such record some may be lost, and where a file system writes out of
order and leaves a gap, it shows as an alteration.
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
_LOOK_EVERY_S = 0.001


class RetentionFile:
    """File of a log. One thread at a time.

    Args:
        path: made with access for its owner only, if missing.
        chain: is moved on to the end of what is in the file.
        absorb: is told each event that comes in, those of other processes too.

    Raises:
        BackendError: the file cannot be made, read or locked.
        ValueError: what is in it is not whole, or was written with another secret.
    """

    def __init__(self, path: Path, chain: Chain, absorb: Callable[[RetentionEvent], None]) -> None:
        self.path = path
        self._chain = chain
        self._absorb = absorb
        self._end = 0
        self._taking = new_awaited_lock()  # a child has the whole of a record or nothing of it
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with folder_locked(path.parent):  # its name is on the disk
                    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise self.failed(error) from error
        self.refresh()

    def append(self, make: Callable[[], bytes], *, durable: bool) -> None:
        """Add a record behind all that is there; all of it or nothing.

        Args:
            make: gives the record, once the chain is at the end of the file.
            durable: return only when it is on the disk, and all in front of it.

        Raises:
            BackendError: the disk failed, or another process holds the lock.
            ValueError: the file is not the one that was read before, with more behind it.
        """
        with self._locked() as number:
            self._catch_up(number)
            line = make()
            try:
                _write(number, line, durable=durable)
            except BaseException:
                os.ftruncate(number, self._end)
                raise
            self._take(line)

    def refresh(self) -> None:
        """Read what other processes have added. Raises as `append` does."""
        with self._locked() as number:
            self._catch_up(number)

    def size(self) -> int:
        """Return the number of bytes that can be read without a lock: no process is writing them."""
        with self._locked() as number:
            return os.fstat(number).st_size

    def _catch_up(self, number: int) -> None:
        """Read what came since, check it, and remove a write that was cut short."""
        seen = f'{self._chain.head}"}}\n'.encode() if self._end else b""  # the digest stands for all before it
        os.lseek(number, self._end - len(seen), os.SEEK_SET)
        with open(number, "rb", closefd=False) as file:
            if file.read(len(seen)) != seen:
                raise ValueError(f"{self.path}: expected the log that was read before, but its end was cut or changed")
            for line in file:
                if line.endswith(b"\n") or not is_torn(line):
                    self._take(line)
                    continue
                if is_whole(line):  # all but its last byte, which is added
                    self._take(line + b"\n")
                    os.write(number, b"\n")
                else:
                    os.ftruncate(number, self._end)
                break

    def _take(self, line: bytes) -> None:
        with self._taking:
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
        try:
            number = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            try:
                _lock(number)
                yield number
            finally:
                unlock_and_close(number)
        except OSError as error:
            raise self.failed(error) from error

    def failed(self, error: Exception) -> BackendError:
        """Return what to raise for an error of the disk."""
        return BackendError(f"the retention log {self.path} failed: {type(error).__name__}: {error}")


def read_events(path: Path, chain: Chain, size: int | None = None) -> Iterator[RetentionEvent]:
    """Yield the events of a file, each checked; the chain moves on with them.

    Args:
        path: of the file, which is only read.
        chain: at its beginning.
        size: read so many bytes; ``None``: to the end.

    Raises:
        Altered: the record ``chain.number`` is not what was written there.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size if size is None else size
        while left > 0:
            line = file.readline(left)
            if not line:
                raise Altered("the file was cut")
            left -= len(line)
            if not line.endswith(b"\n") and is_torn(line):
                raise Altered("the last line is cut short; a log that is opened to write removes it")
            yield chain.open(line)


def _lock(number: int) -> None:
    """Wait for other processes, each of which holds the lock for one append; not for one that was stopped."""
    until = time.monotonic() + _WAIT_S
    while True:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(_LOOK_EVERY_S)
        else:
            return


def _write(number: int, line: bytes, *, durable: bool) -> None:
    left = memoryview(line)
    while left:  # what a full disk took a part of is tried again, for the error that says so
        left = left[os.write(number, left) :]
    if durable:
        os.fsync(number)


@contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Hold a lock between processes, and have the folder's changes on the disk at the end.

    Raises:
        OSError: the disk failed, or a process that was stopped holds the lock.
    """
    number = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(number)
        yield
        os.fsync(number)
    finally:
        unlock_and_close(number)

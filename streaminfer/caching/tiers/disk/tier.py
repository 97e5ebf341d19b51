"""`DiskTier`: entries in a folder of this machine, which outlive the process.

One thread of the tier makes all disk operations, with `DiskStore`; the event loop only waits. A slow disk costs misses,
not memory: the tier skips gets and puts beyond ``max_pending`` queued operations.
"""

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from streaminfer._internal.validation import check_count, check_duration, check_path, check_whole
from streaminfer._runtime.lifecycle import end_tasks, keep_running
from streaminfer.caching.tiers._records import MediumTier, selection
from streaminfer.caching.tiers.disk.store import DiskStore
from streaminfer.caching.tiers.encryption import KeyProvider
from streaminfer.caching.tiers.protocol import Held, RecordCopy
from streaminfer.errors import BackendError, Closed
from streaminfer.protocols import Clock

__all__ = ["DiskTier"]

T = TypeVar("T")

MIN_BYTES = 2**20


class DiskTier(MediumTier):
    """Tier in a folder; survives a kill at any moment without ever returning a wrong or torn value.

    Several processes may share a folder; a put or an erasure of one takes effect for all. A corrupt file is replaced by
    the first process that alone has it open; while others have it open, operations are misses. A process that was
    forked while a tier had the file open cannot start a tier on it.

    Args:
        folder: made if missing, for the owner only. It contains the file, its log and a lock.
        max_bytes: largest size of the file, at least 1 MiB. The log beside it takes about 4 MiB, and more for a time if
            a record is larger. Entries that were computed first are evicted first, and none below its minimum age. An
            entry larger than a quarter of the limit is rejected. A file that is too large when it is opened is replaced
            by an empty one. If a purge or erasure leaves readable copies of deleted records, the tier rewrites the
            file. During the rewrite its content also lies in the log and in SQLite's folder for temporary files.
        keys: encrypts records and names with keys of this provider; ``None``: they are plain, with checksums.
        purge_every_s: seconds between purges. While the tier runs, an expired entry leaves the medium after at most
            this time plus the duration of the purge.
        max_pending: most operations that may wait for the disk.
        wall_clock: returns nanoseconds since 1970; ``None``: ``time.time_ns``.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    All coroutines belong to one event loop; any thread may call ``statistics``.
    """

    name = "disk"
    on_disk = True
    shared = False
    preserves = True

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        max_bytes: int,
        keys: KeyProvider | None = None,
        purge_every_s: float = 30.0,
        max_pending: int = 256,
        wall_clock: Clock | None = None,
    ) -> None:
        self.folder = check_path("folder", folder)
        super().__init__(keys, wall_clock)
        self.place = str(self.folder.absolute())
        self.purge_every_s = self.purge_bound_s = check_duration("purge_every_s", purge_every_s, positive=True)
        self._slots = threading.Semaphore(check_count("max_pending", max_pending))
        room = check_count("max_bytes", max_bytes, at_least=MIN_BYTES)
        self._store = DiskStore(self.folder, room, self._records, self._counters, self.wall_clock)
        self._get, self._put, self._delete = self._store.get, self._store.put, self._store.delete
        self._thread: ThreadPoolExecutor | None = None
        self._closing: Future[None] | None = None
        self._purger: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open or create the file, and begin to purge regularly.

        Raises:
            BackendError: the folder cannot be made or written, or the file must be replaced while others use it.
            RuntimeError: the tier runs already.
        """
        if self._thread is not None:
            raise RuntimeError("the disk tier runs already")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="streaminfer-disk")
        try:
            await self._run(self._open)
        except BaseException:
            await self.stop()
            raise
        self._purger = keep_running(self._purge_regularly, "the purge of a disk tier", "streaminfer.caching")

    async def stop(self) -> None:
        """Complete the queued operations and close the file; idempotent."""
        thread, self._thread = self._thread, None
        purger, self._purger = self._purger, None
        try:
            if purger is not None:
                await end_tasks([purger])
        finally:  # closes the file also if the caller is cancelled
            if thread is not None:
                self._closing = thread.submit(self._store.close)
                closing = asyncio.wrap_future(self._closing)
                try:
                    await asyncio.shield(closing)
                finally:
                    thread.shutdown(wait=closing.done())

    def _open(self) -> None:
        if self._closing is not None:  # the thread of a cancelled stop may still close the file
            wait([self._closing])
        self._store.open()

    async def erase(self, *, subject: str | None = None, tag: str | None = None) -> int:
        """Remove all entries of a subject, or with a tag, from the file and its log.

        Returns:
            The number of removed entries, including expired ones that were not purged yet.

        Raises:
            TypeError: not exactly one of the two is given.
            BackendError: the disk failed; some entries may still be there.
            Closed: the tier does not run.
        """
        kind, text = selection(subject, tag)
        return await self._in_chunks(True, self._store.erase, kind, text)

    async def purge(self, now_ns: int | None = None) -> int:
        """Remove the entries that are expired at an instant of the wall clock; ``None``: now.

        Returns:
            The number of removed entries.

        Raises:
            TypeError: ``now_ns`` is not a whole number.
            BackendError: the disk failed; some entries may still be there.
            Closed: the tier does not run.
        """
        if now_ns is not None:
            now_ns = check_whole("now_ns", now_ns, "a whole number of nanoseconds or None")
        return await self._in_chunks(False, self._store.purge, now_ns)

    async def hold(self, *, subject: str | None = None, tag: str | None = None, on: bool) -> bool:
        """Begin or end a legal hold, which binds every process that opens the file. Return ``True``.

        While a hold lasts, the entries that it matches are neither purged nor evicted. They are not returned after
        their time.

        Raises:
            TypeError: not exactly one of subject and tag is given.
            BackendError: the disk failed.
            Closed: the tier does not run.
        """
        kind, text = selection(subject, tag)
        await self._run(self._store.hold, kind, text, on)
        return True

    async def inventory(self, classes: Iterable[str] = ()) -> list[Held] | None:
        """Return the entries in the file by data class.

        Args:
            classes: names of data classes. The medium may have only keyed hashes of them; others appear as ``"?"``.

        Raises:
            BackendError: the disk failed.
            Closed: the tier does not run.
        """
        return await self._run(self._store.inventory, tuple(classes))

    def scan(self) -> Iterator[RecordCopy]:
        """Yield every copy of a record in the bytes of all files of the folder, freed pages and logs included.

        Callable in any thread, whether or not the tier runs; blocks for about a second per GB.

        Raises:
            BackendError: a file cannot be read.
        """
        try:
            yield from self._store.scan()
        except (sqlite3.Error, OSError) as error:
            raise BackendError(f"the disk tier in {self.folder} failed: {error}") from error

    async def _in_chunks(self, erased: bool, step: Callable[..., int], *args: Any) -> int:
        total = 0
        while removed := await self._run(step, *args):
            total += removed
        await self._run(self._store.flush, erased)
        return total

    async def _purge_regularly(self) -> None:
        while True:
            await asyncio.sleep(self.purge_every_s)
            try:
                await self.purge()
            except BackendError as error:  # the next purge tries again
                self._counters.failed(error)

    async def _attempt(self, otherwise: T, operation: Callable[..., T], *args: Any) -> T:
        """Run an operation, unless too many are queued or the tier does not run."""
        if self._thread is None or not self._slots.acquire(blocking=False):
            self._counters.skipped += 1
            return otherwise
        future = self._thread.submit(self._store.attempt, otherwise, operation, *args)
        future.add_done_callback(lambda _: self._slots.release())
        return await asyncio.wrap_future(future)

    async def _run(self, operation: Callable[..., T], *args: Any) -> T:
        if self._thread is None:
            raise Closed("the disk tier does not run")
        try:
            return await asyncio.wrap_future(self._thread.submit(self._store.run, operation, *args))
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # UnicodeDecodeError: SQLite quotes corrupt names
            raise BackendError(f"the disk tier in {self.folder} failed: {error}") from error

    def __repr__(self) -> str:
        return f"<DiskTier({str(self.folder)!r}, {'running' if self._thread else 'stopped'})>"

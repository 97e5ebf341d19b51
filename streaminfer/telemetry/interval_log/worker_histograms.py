"""`WorkerHistograms`: one tail for a server with several processes, through files in a folder.

*Design.* Each worker periodically writes its histograms to its own file. The file is an interval log that a rename
replaces as a whole, so no reader sees a partial file. Any worker can merge the current state of its own histograms with
the files of the others. The processes do not communicate otherwise, and a worker that hangs does not delay others.

*Dead workers.* A worker holds a POSIX lock on a second file as long as it lives, however it dies; its own children do
not inherit the lock. If the lock of a file is free, the worker is dead. The next merge adds the counts of dead workers
to the file ``dead.hlog`` and deletes their files, so that totals do not fall and files do not accumulate. A crash in
between counts nothing twice: ``dead.hlog`` names the files that it contains; merges do not count these files again, and
the next merge deletes them. A lock prevents two merges from adding at once. A worker that finds the lock taken adds
nothing and does not wait, because the other worker may be stopped in its merge. If ``dead.hlog`` is replaced while a
worker reads, the worker reads again.

*Windows of time.* A `RollingHistogram` counts for its window only. Its counts in a worker's file are used until the
file is older than the window, whether the worker is alive or dead.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from streaminfer._internal import IMPORTED_NS
from streaminfer._internal.error_log import ErrorLog
from streaminfer._internal.forking import new_reentrant_lock, unlock_and_close
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.validation import check_duration, check_instance, check_path, expected
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram
from streaminfer.telemetry.histograms.rolling_histogram import RollingHistogram
from streaminfer.telemetry.interval_log.interval_log import Interval, format_interval, read_interval_log

__all__ = ["WorkerHistograms", "WorkerStatistics"]

_DEAD_FILE = "dead.hlog"
_FOLDED_PREFIX = "#[Folded: "
_NAME = re.compile(r"[A-Za-z0-9_.:/-]+")
_own_files: set[str] = set()  # names of this process: it could take their locks a second time
_EXPECTATION = "a mapping of names to LatencyHistogram or RollingHistogram objects"


@attrs.frozen(kw_only=True)
class WorkerStatistics(Snapshot):
    """Merged histograms of all workers of a server.

    Attributes:
        name: name of the service.
        durations: `LatencyHistogram` objects by name; rolling histograms are left out, because exporters expect counts
            that never fall.
        created_ns: start of the first of these workers, in nanoseconds since 1970; the same in every worker.
    """

    name: str
    durations: Mapping[str, LatencyHistogram]
    created_ns: int


class WorkerHistograms:
    """Shared histograms of the workers of one server, or of several hosts with a common folder.

    Make one object in each worker, after the fork, with the same names of histograms. Use a new folder for each run of
    the server, because files of an earlier run are counted too. Durations that the histograms counted before the fork
    count once per worker, unless the worker has reset its histograms.

    Args:
        folder: the folder, created if missing; on a file system with POSIX locks.
        histograms: histograms by name, such as :attr:`Telemetry.histograms`; names have letters, digits and
            ``_.:/-``.
        name: name of the service, for exporters. `metrics_app` accepts this object in place of a stack, and then
            reports all workers.
        clock: returns seconds since the epoch.

    Raises:
        OSError: the folder cannot be written.
        TypeError, ValueError: an argument has the wrong type, or a name has other characters.

    ::

        workers = WorkerHistograms(folder, telemetry.histograms)
        workers.publish()
        print(workers.merge()["latency"].quantile(0.99))
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        histograms: Mapping[str, LatencyHistogram | RollingHistogram],
        *,
        name: str = "workers",
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_instance("name", name, str, "a string")
        check_instance("clock", clock, callable, "a callable")
        check_instance("histograms", histograms, lambda value: isinstance(value, Mapping) and bool(value), _EXPECTATION)
        for key, histogram in histograms.items():
            check_instance("histograms", histogram, LatencyHistogram | RollingHistogram, _EXPECTATION)
            expectation = "names of letters, digits and _.:/-"
            check_instance("histograms", key, str, expectation)
            if not _NAME.fullmatch(key):
                raise ValueError(expected("histograms", expectation, key))
        self.name = name
        self.folder = check_path("folder", folder)
        self._histograms = dict(histograms)
        self._windows_s = {key: it.window_s for key, it in histograms.items() if isinstance(it, RollingHistogram)}
        self._clock = clock
        self._failures = ErrorLog("streaminfer.telemetry")
        self._publishing = new_reentrant_lock()  # an exporter may run in another thread
        self._pid = os.getpid()
        # rounded as in the files; counting begins after the import of the package
        self._started_s = round(min(clock(), IMPORTED_NS / 1e9), 3)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())
        self._file = f"{self._host}.{self._pid}.{secrets.token_hex(4)}"
        _own_files.add(self._file)
        lock = self.folder / f"{self._file}.lock"
        unlocked = lock.with_suffix(".unlocked")  # other workers must not see the file before it is locked
        self._lock = os.open(unlocked, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlocked.rename(lock)

    def publish(self) -> None:
        """Write the counts of this worker for the others; takes about 0.1 ms per histogram.

        Raises:
            OSError: the disk failed.
            RuntimeError: this object was closed, or was made before a fork.
        """
        with self._publishing:
            self._check()
            now_s = self._clock()
            lines = [self._line(name, histogram, now_s) for name, histogram in self._histograms.items()]
            self._replace(f"{self._file}.hlog", lines)

    async def keep_published(self, every_s: float = 1.0) -> None:
        """Publish periodically until the task is cancelled, and then once more, unless :meth:`close` did.

        If the disk fails, the error is logged, once for each class of errors, and the next round tries again.

        Args:
            every_s: seconds between two files.

        Raises:
            OSError: the disk failed at the end.
            RuntimeError: this object was closed meanwhile.
            TypeError, ValueError: ``every_s`` is not a positive number.
        """
        every_s = check_duration("every_s", every_s, positive=True)
        try:
            while True:
                try:
                    self.publish()
                except OSError as error:  # the next round tries again
                    self._failures.report("publishing what this worker has counted", error)
                await asyncio.sleep(every_s)
        finally:
            if self._lock >= 0:
                self.publish()

    def merge(self) -> dict[str, LatencyHistogram]:
        """Return the merged histograms of all workers: this worker up to now, others up to their last file.

        Raises:
            OSError: the disk failed.
            RuntimeError: as for :meth:`publish`.
            ValueError: a file in the folder was not written by a worker.
        """
        return self._merge()[0]

    def _merge(self) -> tuple[dict[str, LatencyHistogram], float]:
        """Return the merged histograms, and the start of counting in seconds since the epoch."""
        self._check()
        now_s, started_s = self._clock(), self._started_s
        merged = {name: _copy(histogram) for name, histogram in self._histograms.items()}
        with suppress(BlockingIOError), self._merge_lock():
            self._fold_dead(now_s)
        for interval in self._others():
            if interval.tag in merged and interval.end_s > now_s - self._windows_s.get(interval.tag, math.inf):
                merged[interval.tag].merge(interval.histogram)
                if interval.tag not in self._windows_s:
                    started_s = min(started_s, interval.start_s)
        return merged, started_s

    def statistics(self) -> WorkerStatistics:
        """Return the merged histograms of all workers, for exporters; raises like :meth:`merge`.

        It also publishes the counts of this worker: the next scrape may reach another worker, and must not see less.
        """
        merged, started_s = self._merge()
        durations = {name: it for name, it in merged.items() if name not in self._windows_s}
        self.publish()
        return WorkerStatistics(name=self.name, durations=durations, created_ns=round(started_s * 1e3) * 10**6)

    def close(self) -> None:
        """Publish a last time and release the lock; the worker then counts as dead. A second call does nothing."""
        with self._publishing:  # a later publish would be counted twice, as a dead worker's too
            if self._lock < 0 or self._pid != os.getpid():
                return
            self.publish()
            os.close(self._lock)
            self._lock = -1
            _own_files.discard(self._file)

    def _check(self) -> None:
        if self._lock < 0:
            raise RuntimeError("these WorkerHistograms are closed")
        if self._pid != os.getpid():
            raise RuntimeError("these WorkerHistograms belong to the process before the fork: make some in each worker")

    def _line(self, name: str, histogram: LatencyHistogram | RollingHistogram, now_s: float) -> str:
        start_s = now_s - self._windows_s[name] if name in self._windows_s else self._started_s
        return format_interval(_copy(histogram), max(min(start_s, now_s), 0.0), now_s, name)

    def _others(self) -> list[Interval]:
        """Return the intervals in the files of other workers, dead ones included, at one moment."""
        dead_file = self.folder / _DEAD_FILE
        while True:
            folded = _folded(dead_file)
            paths = [path for path in self.folder.glob("*.hlog") if path.stem not in {self._file, *folded}]
            intervals = [interval for path in paths for interval in _intervals(path)]
            if _folded(dead_file) == folded:  # otherwise it was replaced meanwhile
                return intervals

    def _fold_dead(self, now_s: float) -> None:
        """Add the counts of dead workers to ``dead.hlog``, and delete their files."""
        for name in _folded(self.folder / _DEAD_FILE):
            self._delete(name)
        dead = [path for path in self.folder.glob(f"{self._host}.*.lock") if self._is_dead(path)]
        dead = [path for path in dead if not self._is_in_window(path.with_suffix(".hlog"), now_s)]
        if not dead:
            return
        totals = {interval.tag: interval for interval in _intervals(self.folder / _DEAD_FILE)}
        for path in dead:
            for interval in _intervals(path.with_suffix(".hlog")):
                if interval.tag in self._windows_s:
                    continue
                total = totals.setdefault(interval.tag, interval)
                if total is not interval:
                    total.histogram.merge(interval.histogram)
                    start_s, end_s = min(total.start_s, interval.start_s), max(total.end_s, interval.end_s)
                    totals[interval.tag] = attrs.evolve(total, start_s=start_s, end_s=end_s)
        names = " ".join(path.stem for path in dead)
        lines = [format_interval(it.histogram, it.start_s, it.end_s, it.tag) for it in totals.values()]
        self._replace(_DEAD_FILE, [f"{_FOLDED_PREFIX}{names}]\n", *lines])
        for path in dead:
            self._delete(path.stem)

    def _is_dead(self, path: Path) -> bool:
        if path.stem in _own_files:
            return False
        try:
            number = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(number)
        return True

    def _is_in_window(self, path: Path, now_s: float) -> bool:
        """Return whether rolling histograms of a dead worker are still within their window.

        If the clock was set back by more than the window since the worker's end, the window counts as over.
        """
        return any(
            abs(now_s - interval.end_s) < self._windows_s.get(interval.tag, 0.0) for interval in _intervals(path)
        )

    def _delete(self, name: str) -> None:
        for path in self.folder.glob(f"*.{name}.new"):  # left by a crash while it wrote
            path.unlink(missing_ok=True)
        for suffix in (".hlog", ".lock"):  # the lock last: it marks the file as still to delete
            (self.folder / f"{name}{suffix}").unlink(missing_ok=True)

    def _replace(self, name: str, lines: list[str]) -> None:
        path = self.folder / f"{name}.{self._file}.new"
        try:
            path.write_text("".join(lines), encoding="utf-8")
            path.rename(self.folder / name)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    @contextmanager
    def _merge_lock(self) -> Iterator[None]:
        """Hold the lock under which dead workers are added up; `BlockingIOError` if another worker has it."""
        number = os.open(self.folder / "merging", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            unlock_and_close(number)

    def __repr__(self) -> str:
        return f"<WorkerHistograms {self._file!r} in {str(self.folder)!r}: {', '.join(self._histograms)}>"


def _copy(histogram: LatencyHistogram | RollingHistogram) -> LatencyHistogram:
    return histogram.snapshot() if isinstance(histogram, RollingHistogram) else histogram.copy()


def _intervals(path: Path) -> list[Interval]:
    """Return the intervals of a worker's file; none if it was deleted meanwhile, or never written."""
    with suppress(FileNotFoundError):
        return list(read_interval_log(path))
    return []


def _folded(path: Path) -> list[str]:
    """Return the names of the workers in ``dead.hlog``, from its first line."""
    with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
        first_line = file.readline().rstrip("]\n")
        return first_line.removeprefix(_FOLDED_PREFIX).split() if first_line.startswith(_FOLDED_PREFIX) else []
    return []

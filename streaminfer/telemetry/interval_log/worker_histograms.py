"""`WorkerHistograms`: one tail of a server that runs in several processes, through files in a folder.

*Design.* Each worker writes what its histograms hold, from time to time, to a file of its own: an interval log,
replaced as a whole by a rename, so that no reader sees half of one. Any worker merges its own histograms, as they are
now, with the files of the others. Nothing runs between the processes, and a worker that hangs delays no other.

*Dead workers.* A worker holds a POSIX lock on a second file for as long as it lives, however it dies; such a lock is
not inherited by its own children. A file whose lock is free is a dead worker's. Whoever merges next adds its counts to
the file ``dead.hlog`` and deletes it, so that totals do not fall and files do not pile up. A crash in between counts
nothing twice: ``dead.hlog`` names the files that it contains, which no merge counts beside it and the next one deletes.
A lock keeps two from adding at once; who finds it taken adds nothing, and waits for no other worker, which may be
stopped in its merge. Who reads while another adds begins again, as ``dead.hlog`` is a new file then.

*Windows of time.* A `RollingHistogram` counts for its window only: the file of a worker that has not written for that
long is left out, and of a dead one until then counted.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from streaminfer._internal import IMPORTED_NS
from streaminfer._internal.error_log import ErrorLog
from streaminfer._internal.forking import unlock_and_close
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.validation import check_duration, check_instance, expected
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram
from streaminfer.telemetry.histograms.rolling_histogram import RollingHistogram
from streaminfer.telemetry.interval_log.interval_log import Interval, format_interval, read_interval_log

__all__ = ["WorkerHistograms", "WorkerStatistics"]

_DEAD = "dead.hlog"
_FOLDED = "#[Folded: "
_NAME = re.compile(r"[A-Za-z0-9_.:/-]+")
_live: set[str] = set()  # names of this process, whose locks it could take again
_What = "a mapping of names to LatencyHistogram or RollingHistogram objects"


@attrs.frozen(kw_only=True)
class WorkerStatistics(Snapshot):
    """What all workers of a server have counted.

    Attributes:
        name: the service.
        durations: by name, those of `LatencyHistogram` objects; rolling ones forget, which no exporter expects.
        created_ns: when the first of these workers began, in nanoseconds since 1970; the same whichever is asked.
    """

    name: str
    durations: Mapping[str, LatencyHistogram]
    created_ns: int


class WorkerHistograms:
    """Histograms that the workers of one server, or of several hosts with a common folder, count into together.

    Make one in each worker, after the fork, over histograms of the same names. The folder belongs to one run of the
    server: what is left of an earlier one is counted too. So is, once per worker, what the histograms counted before
    the fork, unless they were reset in the worker.

    Args:
        folder: made if missing; on a file system with POSIX locks.
        histograms: by a name of letters, digits and ``_.:/-``; :attr:`Telemetry.histograms` is one.
        name: the service, for exporters: `metrics_app` takes this object in the place of a stack, and then answers for
            all workers.
        clock: returns seconds since the epoch.

    Raises:
        OSError: the folder cannot be written.
        TypeError, ValueError: an argument of the wrong type, or such a name.

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
        check_instance("name", name, lambda value: isinstance(value, str), "a string")
        check_instance("clock", clock, callable, "a callable")
        check_instance("histograms", histograms, lambda value: isinstance(value, Mapping) and bool(value), _What)
        for key, histogram in histograms.items():
            check_instance(
                "histograms", histogram, lambda it: isinstance(it, LatencyHistogram | RollingHistogram), _What
            )
            what = "names of letters, digits and _.:/-"
            check_instance("histograms", key, lambda it: isinstance(it, str), what)
            if not _NAME.fullmatch(key):
                raise ValueError(expected("histograms", what, key))
        self.name = name
        self.folder = Path(folder)
        self._histograms = dict(histograms)
        self._clock = clock
        self._failures = ErrorLog("streaminfer.telemetry")
        self._publishing = threading.RLock()  # an exporter may have a thread of its own
        self._pid = os.getpid()
        # as the files have it; the package was imported before anything was counted
        self._started_s = round(min(clock(), IMPORTED_NS / 1e9), 3)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())
        self._file = f"{self._host}.{self._pid}.{secrets.token_hex(4)}"
        _live.add(self._file)
        lock = self.folder / f"{self._file}.lock"
        unlocked = lock.with_suffix(".unlocked")  # another worker must not take it for a dead one's
        self._lock = os.open(unlocked, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlocked.rename(lock)

    def publish(self) -> None:
        """Write what this worker has counted so far, for the others; takes about 0.1 ms a histogram.

        Raises:
            OSError: the disk failed.
            RuntimeError: this object was closed, or comes from before a fork.
        """
        self._check()  # also before the lock, which a fork may leave held
        with self._publishing:
            self._check()
            now_s = self._clock()
            lines = [self._line(name, histogram, now_s) for name, histogram in self._histograms.items()]
            self._replace(f"{self._file}.hlog", lines)

    async def keep_published(self, every_s: float = 1.0) -> None:
        """Publish again and again, until cancelled, and then once more, unless :meth:`close` did.

        A disk that fails meanwhile is logged, once for each class of errors, and tried again.

        Args:
            every_s: seconds between two files.

        Raises:
            OSError: the disk failed at the end.
            RuntimeError: this object was closed meanwhile.
            TypeError, ValueError: not a positive number of seconds.
        """
        check_duration("every_s", every_s, positive=True)
        try:
            while True:
                try:
                    self.publish()
                except OSError as error:  # the next one tries again
                    self._failures.report("publishing what this worker has counted", error)
                await asyncio.sleep(every_s)
        finally:
            if self._lock >= 0:
                self.publish()

    def merge(self) -> dict[str, LatencyHistogram]:
        """Return what all workers have counted: this one up to now, others up to their last file.

        Raises:
            OSError: the disk failed.
            RuntimeError: as :meth:`publish`.
            ValueError: a file in the folder is not a worker's.
        """
        return self._merge()[0]

    def _merge(self) -> tuple[dict[str, LatencyHistogram], float]:
        """Return what all have counted, and since when, in seconds since the epoch."""
        self._check()
        now_s, started_s = self._clock(), self._started_s
        merged = {name: _copy(histogram) for name, histogram in self._histograms.items()}
        with self._lock_if_free() as is_locked:
            if is_locked:
                self._fold_dead(now_s)
        for interval in self._others():
            if not self._is_over(interval, now_s) and interval.tag in merged:
                merged[interval.tag].merge(interval.histogram)
                if not isinstance(self._histograms[interval.tag], RollingHistogram):
                    started_s = min(started_s, interval.start_s)
        return merged, started_s

    def statistics(self) -> WorkerStatistics:
        """Return what all workers have counted, for exporters; raises as :meth:`merge`.

        It publishes what it returns of this worker: the next scrape may reach another one, and must not see less.
        """
        merged, started_s = self._merge()
        kept = {name: it for name, it in merged.items() if not isinstance(self._histograms[name], RollingHistogram)}
        self.publish()
        return WorkerStatistics(name=self.name, durations=kept, created_ns=round(started_s * 1e3) * 10**6)

    def close(self) -> None:
        """Write a last time and let go; from then on this worker's counts are a dead one's. A second call is fine."""
        if self._pid != os.getpid():  # before the lock, which a fork may leave held
            return
        with self._publishing:  # what is published later would be counted beside the dead one's counts
            if self._lock < 0:
                return
            self.publish()
            os.close(self._lock)
            self._lock = -1
            _live.discard(self._file)

    def _check(self) -> None:
        if self._lock < 0:
            raise RuntimeError("these WorkerHistograms are closed")
        if self._pid != os.getpid():
            raise RuntimeError("these WorkerHistograms belong to the process before the fork: make some in each worker")

    def _line(self, name: str, histogram: LatencyHistogram | RollingHistogram, now_s: float) -> str:
        start_s = now_s - histogram.window_s if isinstance(histogram, RollingHistogram) else self._started_s
        return format_interval(_copy(histogram), max(min(start_s, now_s), 0.0), now_s, name)

    def _is_over(self, interval: Interval, now_s: float) -> bool:
        own = self._histograms.get(interval.tag)
        return isinstance(own, RollingHistogram) and interval.end_s <= now_s - own.window_s

    def _others(self) -> list[Interval]:
        """Return what the files of the others hold, the dead one's included, as it was at one moment."""
        dead = self.folder / _DEAD
        while True:
            version, known = _version(dead), {self._file, *_folded(dead)}
            paths = [path for path in self.folder.glob("*.hlog") if path.stem not in known]
            intervals = [interval for path in paths for interval in _intervals(path)]
            if _version(dead) == version:
                return intervals

    def _fold_dead(self, now_s: float) -> None:
        """Add the counts of dead workers to one file, and delete theirs."""
        folded = _folded(self.folder / _DEAD)
        for name in folded:
            self._delete(name)
        dead = [path for path in self.folder.glob(f"{self._host}.*.lock") if self._is_dead(path)]
        dead = [path for path in dead if not self._still_counts(path.with_suffix(".hlog"), now_s)]
        if not dead:
            return
        totals = {interval.tag: interval for interval in _intervals(self.folder / _DEAD)}
        for path in dead:
            for interval in _intervals(path.with_suffix(".hlog")):
                if isinstance(self._histograms.get(interval.tag), RollingHistogram):
                    continue
                before = totals.get(interval.tag)
                if before is None:
                    totals[interval.tag] = interval
                else:
                    before.histogram.merge(interval.histogram)
                    start_s, end_s = min(before.start_s, interval.start_s), max(before.end_s, interval.end_s)
                    totals[interval.tag] = Interval(start_s, end_s, interval.tag, before.histogram)
        names = " ".join(path.stem for path in dead)
        lines = [format_interval(it.histogram, it.start_s, it.end_s, it.tag) for it in totals.values()]
        self._replace(_DEAD, [f"{_FOLDED}{names}]\n", *lines])
        for path in dead:
            self._delete(path.stem)

    def _is_dead(self, path: Path) -> bool:
        if path.stem in _live:
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

    def _still_counts(self, path: Path, now_s: float) -> bool:
        """Return whether the window of a dead worker's rolling histograms is not over."""
        return any(
            isinstance(self._histograms.get(interval.tag), RollingHistogram) and not self._is_over(interval, now_s)
            for interval in _intervals(path)
        )

    def _delete(self, name: str) -> None:
        for path in self.folder.glob(f"*.{name}.new"):  # it was stopped in writing this
            path.unlink(missing_ok=True)
        for suffix in (".hlog", ".lock"):  # the lock last: while it is there, the file is looked for
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
    def _lock_if_free(self) -> Iterator[bool]:
        number = os.open(self.folder / "merging", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_free = True
            except BlockingIOError:
                is_free = False
            yield is_free
        finally:
            unlock_and_close(number)

    def __repr__(self) -> str:
        return f"<WorkerHistograms {self._file!r} in {str(self.folder)!r}: {', '.join(self._histograms)}>"


def _copy(histogram: LatencyHistogram | RollingHistogram) -> LatencyHistogram:
    return histogram.snapshot() if isinstance(histogram, RollingHistogram) else histogram.copy()


def _intervals(path: Path) -> list[Interval]:
    """Return the lines of a worker's file; none of one that was deleted meanwhile, or never written."""
    with suppress(FileNotFoundError):
        return list(read_interval_log(path))
    return []


def _version(path: Path) -> tuple[int, int] | None:
    """Return what is another for each file that is put there."""
    with suppress(FileNotFoundError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def _folded(path: Path) -> list[str]:
    """Return the workers whose counts are in the file of the dead, as its first line says."""
    with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
        first = file.readline().rstrip("]\n")
        return first.removeprefix(_FOLDED).split() if first.startswith(_FOLDED) else []
    return []

"""Counters of a backend: batches by outcome, and the time of its workers.

Counting rules: a batch counts once, when ``infer`` ends: as completed (then its rows count too, also those whose result
is an exception), as an error, or as cancelled. A batch that ends with ``Closed``, because the backend is stopped, does
not count, nor does the warm-up. A batch is busy from the moment a worker takes it, assembly of its inputs included,
until the worker is free again, even if the batch is cancelled.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

import attrs

from streaminfer._internal.forking import new_lock
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.validation import check_clock
from streaminfer.backends.job import Done
from streaminfer.errors import Closed
from streaminfer.protocols import Clock

__all__ = ["BackendRecorder", "BackendStatistics", "Busy", "Counted"]

T = TypeVar("T")


@attrs.frozen
class BackendStatistics(Snapshot):
    """Counters of a backend since its creation; a snapshot.

    Attributes:
        batches: completed batches.
        rows: requests in completed batches, those whose result is an exception included.
        errors: batches that failed as a whole.
        cancelled: batches that were cancelled, because their callers had left.
        busy_s: seconds that workers spent on batches, summed over the workers and over threads that hung and were
            replaced.
        workers: how many batches can run at the same time.
    """

    batches: int
    rows: int
    errors: int
    cancelled: int
    busy_s: float
    workers: int


class BackendRecorder:
    """Counts batches; thread-safe.

    Args:
        workers: how many batches can run at the same time.
        clock: monotonic nanoseconds; ``None``: the system's.
    """

    def __init__(self, workers: int, clock: Clock | None) -> None:
        self._workers = workers
        self.clock = check_clock("clock", clock) or time.monotonic_ns
        self._lock = new_lock()
        self._counts = dict.fromkeys(("batches", "rows", "errors", "cancelled"), 0)
        self._busy_ns = 0

    def begin(self, rows: int, done: Done, begin: Callable[..., T], *arguments: Any) -> T:
        """Begin ``work`` on a batch of ``rows`` requests; count its outcome and pass it to a callback.

        Args:
            rows: the batch size.
            done: called with the outcome.
            begin: called with ``arguments`` and a callback.
            arguments: positional arguments of ``begin``.
        """

        def ended(value: Any, error: BaseException | None) -> None:
            self.end(rows, error)
            done(value, error)

        try:
            return begin(*arguments, ended)
        except BaseException as error:
            self.end(rows, error)
            raise

    def end(self, rows: int, error: BaseException | None) -> None:
        """Count the outcome of a batch of ``rows`` requests."""
        with self._lock:
            if error is None:
                self._counts["batches"] += 1
                self._counts["rows"] += rows
            elif isinstance(error, asyncio.CancelledError):
                self._counts["cancelled"] += 1
            elif isinstance(error, Exception) and not isinstance(error, Closed):
                self._counts["errors"] += 1

    def snapshot(self) -> BackendStatistics:
        """Return all counters at one moment."""
        with self._lock:
            return BackendStatistics(**self._counts, busy_s=self._busy_ns / 1e9, workers=self._workers)


class Counted:
    """Counts a batch of ``rows`` requests, by the outcome of the block ``with Counted(recorder, rows): ...``."""

    __slots__ = ("_recorder", "_rows")

    def __init__(self, recorder: BackendRecorder, rows: int) -> None:
        self._recorder = recorder
        self._rows = rows

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._recorder.end(self._rows, error)


class Busy:
    """Counts the time of the block ``with Busy(recorder): ...``, on any thread."""

    __slots__ = ("_recorder", "_started_ns")

    def __init__(self, recorder: BackendRecorder) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        self._started_ns = self._recorder.clock()

    def __exit__(self, *_: object) -> None:
        busy_ns = self._recorder.clock() - self._started_ns
        with self._recorder._lock:
            self._recorder._busy_ns += busy_ns

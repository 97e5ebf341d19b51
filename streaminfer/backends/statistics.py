"""Counters of a backend: batches by outcome, and the time of its workers.

Counting rules: a batch counts once, when ``infer`` ends: as completed (then its rows count too, also those whose result
is an exception), as an error, or as cancelled. A batch that ends with ``Closed``, because the backend is stopped, does
not count, nor does the warm-up. A batch is busy from the moment a worker takes it, assembly of its inputs included,
until the worker is free again, even if the batch is cancelled.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import attrs

from streaminfer._internal.forking import new_lock
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.validation import check_clock
from streaminfer.backends.job import Done
from streaminfer.errors import Closed
from streaminfer.protocols import Clock

__all__ = ["BackendRecorder", "BackendStatistics"]

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
        self._clock = check_clock("clock", clock) or time.monotonic_ns
        self._lock = new_lock()
        self._batches = self._rows = self._errors = self._cancelled = self._busy_ns = 0

    async def count(self, rows: int, work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Await ``work``, which runs a batch of ``rows`` requests, and count its outcome.

        The coroutine of ``work`` is created here, so that a task that is cancelled before its first step leaves no
        coroutine unawaited.
        """
        try:
            value = await work(*arguments)
        except BaseException as error:
            self._count_error(error)
            raise
        self._count_rows(rows)
        return value

    def begin(self, rows: int, done: Done, begin: Callable[..., T], *arguments: Any) -> T:
        """Begin ``work`` on a batch of ``rows`` requests; count its outcome and pass it to a callback.

        Args:
            rows: the batch size.
            done: called with the outcome.
            begin: called with ``arguments`` and a callback.
            arguments: positional arguments of ``begin``.
        """

        def ended(value: Any, error: BaseException | None) -> None:
            if error is None:
                self._count_rows(rows)
            else:
                self._count_error(error)
            done(value, error)

        try:
            return begin(*arguments, ended)
        except BaseException as error:
            self._count_error(error)
            raise

    def count_now(self, rows: int, work: Callable[..., T], *arguments: Any) -> T:
        """Call ``work``, which runs a batch of ``rows`` requests, and count its outcome."""
        try:
            value = work(*arguments)
        except BaseException as error:
            self._count_error(error)
            raise
        self._count_rows(rows)
        return value

    def _count_rows(self, rows: int) -> None:
        with self._lock:
            self._batches += 1
            self._rows += rows

    def _count_error(self, error: BaseException) -> None:
        with self._lock:
            if isinstance(error, asyncio.CancelledError):
                self._cancelled += 1
            elif isinstance(error, Exception) and not isinstance(error, Closed):
                self._errors += 1

    def busy(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call ``work``, on any thread, and count its duration."""
        started_ns = self._clock()
        try:
            return work(*arguments)
        finally:
            self._add_busy(started_ns)

    async def busy_awaiting(self, work: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """Await ``work``, and count its duration."""
        started_ns = self._clock()
        try:
            return await work(*arguments)
        finally:
            self._add_busy(started_ns)

    def snapshot(self) -> BackendStatistics:
        """Return all counters at one moment."""
        with self._lock:
            return BackendStatistics(
                batches=self._batches,
                rows=self._rows,
                errors=self._errors,
                cancelled=self._cancelled,
                busy_s=self._busy_ns / 1e9,
                workers=self._workers,
            )

    def _add_busy(self, started_ns: int) -> None:
        """Count the time of a worker that started at ``started_ns`` and has become free."""
        busy_ns = self._clock() - started_ns
        with self._lock:
            self._busy_ns += busy_ns

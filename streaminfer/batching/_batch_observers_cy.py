"""Observers of a batcher's batches: their events, and the division of a batch's work among its rows.

One source, compiled with the C types of ``_batch_observers_cy.pxd`` or run uncompiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streaminfer._internal.listeners import LISTENER_ERRORS, ListenerFailures, raise_in_loop
from streaminfer._runtime.batch_observer import BatchObserver, BatchWork
from streaminfer.batching.assembly.assembler import Assembler
from streaminfer.batching.queue._ticket_cy import Execution

__all__ = ["BatchObservers", "batch_work", "setup_share"]

_REFRESH_EVERY = 64
_NEW = 0, BatchWork()


class BatchObservers:
    """Observers of the batches of one dispatcher; an error of an observer affects no request.

    An exception is logged; an interrupt is raised in a separate callback of the event loop.

    Args:
        source: name of the model, for the log.
    """

    def __init__(self, source: str) -> None:
        self._observers: tuple[BatchObserver, ...] = ()
        self._works: dict[tuple[int, int], tuple[int, BatchWork]] = {}  # by size and bucket: uses, latest work
        self._failures = ListenerFailures("streaminfer", f"batcher of {source!r}")

    def add(self, observer: BatchObserver) -> None:
        """Report each batch that begins from now on to an observer."""
        self._observers = (*self._observers, observer)

    def begin(self, execution: Execution, now_ns: int) -> None:
        """Report that a batch begins on a worker."""
        requests: list[Any] = []
        for ticket in execution.tickets:
            requests.append(ticket.request)  # noqa: PERF401 - a comprehension has types of its own
        execution.observed = self.notify_begin(requests, now_ns)

    def notify_begin(self, requests: list[Any], now_ns: int) -> list[Any]:
        """Report the begin of a batch, or of a load, which has no requests; return a list for :meth:`notify_end`."""
        begun: list[Any] = []
        for observer in self._observers:
            try:
                begun.append((observer, observer.begin(requests, now_ns)))
            except LISTENER_ERRORS as failure:
                self._failures.report(observer, "the begin of a batch", failure)
            except BaseException as interrupt:  # noqa: BLE001 - raised when the batch has begun
                raise_in_loop(interrupt)
        return begun

    def end(
        self,
        execution: Execution,
        now_ns: int,
        assembler: Assembler,
        expected_ns: Callable[[int, int], int] | None,
        bucket: int,
    ) -> None:
        """Report that a batch ended, unless its begin was not reported."""
        begun = execution.observed
        if not begun:
            return
        execution.observed = None
        try:
            work = self._work_of(execution, assembler, expected_ns, bucket)
        except LISTENER_ERRORS as failure:  # from a user's policy, or because settings changed while the batch ran
            self._failures.report(self, "how the work of a batch divides", failure)
            work = BatchWork()
        self.notify_end(begun, work, now_ns)

    def notify_end(self, begun: list[Any], work: BatchWork, now_ns: int) -> None:
        """Report that a batch or a load has ended."""
        for observer, token in begun:
            try:
                observer.end(token, work, now_ns)
            except LISTENER_ERRORS as failure:
                self._failures.report(observer, "the end of a batch", failure)
            except BaseException as interrupt:  # noqa: BLE001 - raised when the batch has ended
                raise_in_loop(interrupt)

    def _work_of(
        self, execution: Execution, assembler: Assembler, expected_ns: Callable[[int, int], int] | None, bucket: int
    ) -> BatchWork:
        size = len(execution.tickets)
        uses, work = self._works.get((size, bucket), _NEW)
        if uses % _REFRESH_EVERY == 0:  # durations change slowly
            work = BatchWork(0.0 if expected_ns is None else setup_share(size, assembler, expected_ns, bucket))
        self._works[size, bucket] = uses + 1, work
        return work if assembler.plain else batch_work(execution, assembler, work.setup_share)


def batch_work(execution: Execution, assembler: Assembler, share: float) -> BatchWork:
    """Return how the work of a batch divides among its rows.

    Args:
        execution: the batch.
        assembler: assembles the rows.
        share: part of the batch's duration that does not depend on the rows.
    """
    inputs = execution.inputs
    size = len(inputs)
    filling = float(assembler.padded_size(size) - size)
    if assembler.buckets is None:
        costs = [ticket.cost for ticket in execution.tickets]
        total = sum(costs)
        return BatchWork(share, costs, filling * total / size) if total else BatchWork(share, None, filling)
    lengths, padded = assembler.buckets.lengths_of(inputs)
    return BatchWork(share, lengths, (size + filling) * padded - sum(lengths))


def setup_share(size: int, assembler: Assembler, expected_ns: Callable[[int, int], int], bucket: int) -> float:
    """Return the share of a batch's duration for zero rows, extrapolated by a line through two batch sizes."""
    other = 1 if assembler.padded_size(size) > assembler.padded_size(1) else assembler.caps[bucket]
    rows, other_rows = assembler.padded_size(size), assembler.padded_size(other)
    own_ns, other_ns = expected_ns(size, bucket), expected_ns(other, bucket)
    if rows == other_rows or not own_ns or not other_ns:
        return 0.0
    per_row_ns = (own_ns - other_ns) / (rows - other_rows)
    return min(max(1.0 - per_row_ns * rows / own_ns, 0.0), 1.0)

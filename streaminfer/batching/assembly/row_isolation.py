"""Row isolation: sends a failed batch again in halves, so that a row on which the model fails does so alone.

*Design.* The parts of a failed batch are tried in order, the larger ones first, on the batch's worker. The callers of a
part that succeeds get their results at once. A part of several rows that fails is halved; a single row that fails gets
its error. One bad row among n costs 2·log2(n) runs of at most half the batch.

*Bounds.* A part has only rows whose callers still wait and whose deadline has not passed. After 4·log2(n) parts, or
after six of which none succeeded, the remaining rows fail with their last error: then the model is at fault, not a row.
After such a vain attempt, the next batch that fails is not split; after the second vain attempt in a row the next two
are not, then four, at most sixteen. A batch that succeeds resets this.

*Limits.* Copies that pad a part to a preferred size count as they do in a batch. Rows that shared a batch with cheaper
ones may therefore exceed the limits of a separate batch; they are halved, and one more part may be sent for each.

*Memory.* If the memory was not enough for a batch, later batches and parts of its length bucket have at most half its
rows, until the batcher is reconfigured; the policy gets that limit and plans no larger ones. Such parts do not count
toward the bounds, because each of them halves the limit.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import attrs

from streaminfer.batching.assembly.model_calls import ModelCalls
from streaminfer.batching.assembly.undelivered import close_unread_rows
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import Execution, Ticket
from streaminfer.errors import BackendError, CircuitOpen, Closed, DeadlineExceeded, MissingExtra, Overloaded

__all__ = ["RowIsolator", "is_out_of_memory"]

_BATCH_ERRORS = (CircuitOpen, Closed, DeadlineExceeded, MissingExtra, Overloaded, ConnectionError, TimeoutError)
"""Errors that are not caused by a row."""

_MAX_FAILED_PARTS = 6  # the halves and quarters of a batch
_MAX_UNSPLIT = 16
_MEMORY_TEXTS = ("out of memory", "failed to allocate memory", "bad_alloc", "cannot allocate memory", "outofmemory")
_MAX_CAUSES = 8


@attrs.define(eq=False)
class RowIsolator:
    """Sends failed batches again in parts; belongs to one dispatcher and its event loop.

    Args:
        calls: calls of the model.
        queue: the requests in flight.
        expire: ends requests whose deadline has passed at an instant.
        fail: ends requests with copies of an error that was raised at an instant.

    Attributes:
        split_batches: batches that were sent again in parts.
        unsplit: failed batches that are not split after the latest vain attempt; 0: the latest attempt was not vain.
        on_limit: called with a length bucket and its new limit.
        memory_limits: by length bucket, the most rows that fit into memory, as far as failures have shown.
    """

    _calls: ModelCalls
    _queue: RequestQueue
    _expire: Callable[[int], None] = attrs.field(kw_only=True)
    _fail: Callable[[Sequence[Ticket], BaseException, int], None] = attrs.field(kw_only=True)
    unsplit: int = attrs.field(default=0, init=False)
    _unsplit_left: int = attrs.field(default=0, init=False)
    on_limit: Callable[[int, int], None] | None = attrs.field(default=None, init=False)
    split_batches: int = attrs.field(default=0, init=False)
    memory_limits: dict[int, int] = attrs.field(factory=dict, init=False)

    def succeeded(self) -> None:
        """Note that a whole batch succeeded."""
        self.unsplit = self._unsplit_left = 0

    def may_split(self, execution: Execution, error: BaseException) -> bool:
        """Return whether a part of a failed batch may succeed; sets a limit if the memory was not enough."""
        if not isinstance(error, Exception) or isinstance(error, _BATCH_ERRORS):
            return False
        if is_out_of_memory(error):
            self._learn_limit(execution.tickets)
        elif isinstance(error, BackendError) and isinstance(error.__cause__, _BATCH_ERRORS):
            return False
        elif self._unsplit_left:
            self._unsplit_left -= 1
            return False
        return len(execution.tickets) > 1 and execution.live > 0

    async def isolate(self, execution: Execution, error: Exception) -> None:  # noqa: C901 - one branch for each end of a part
        """Send a failed batch again in parts until each of its requests has ended.

        Args:
            execution: the batch, which still occupies its worker.
            error: the model's error for the whole batch.
        """
        self.split_batches += 1
        size = len(execution.tickets)
        parts: deque[tuple[list[int], Exception]] = deque((half, error) for half in _halves(list(range(size))))
        max_sent = 2 * size if is_out_of_memory(error) else 4 * (size - 1).bit_length()
        sent = succeeded = 0
        failure = error
        part_error: Exception | None = None
        try:
            while parts:
                rows, failure = parts.popleft()
                if sent >= max_sent or (sent >= _MAX_FAILED_PARTS and not succeeded):
                    self._fail([execution.tickets[row] for row in rows], failure, self._calls.clock())
                    continue
                now_ns = self._calls.clock()
                rows = self._awaited_rows(execution, rows, now_ns)
                if not rows:
                    continue
                if not self._fits([execution.tickets[row] for row in rows]):
                    max_sent += 1
                    parts.extendleft((half, failure) for half in reversed(_halves(rows)))
                    continue
                sent += 1
                part_error = await self._try(execution, rows, now_ns)
                if part_error is None:
                    succeeded += 1
                elif len(rows) > 1 and is_out_of_memory(part_error):
                    sent -= 1  # at most log2(n) such parts, then n parts that fit
                    max_sent = 2 * size
                    parts.extendleft((half, part_error) for half in reversed(_halves(rows)))
                elif isinstance(part_error, _BATCH_ERRORS):  # for example an open breaker: all parts would fail
                    self._fail([execution.tickets[row] for row in rows], part_error, self._calls.clock())
                    sent = max_sent
                elif len(rows) > 1:
                    parts.extend((half, part_error) for half in _halves(rows))
                else:
                    self._fail([execution.tickets[rows[0]]], part_error, self._calls.clock())
        finally:
            parts.clear()
            del error, failure, part_error  # from Python 3.12 on, the frames of their tracebacks refer to this one
        if succeeded:
            self.succeeded()
        elif sent:
            self.unsplit = min(max(2 * self.unsplit, 1), _MAX_UNSPLIT)
            self._unsplit_left = self.unsplit

    def _awaited_rows(self, execution: Execution, rows: list[int], now_ns: int) -> list[int]:
        """Return the rows whose callers still wait."""
        if self._queue.next_deadline_ns <= now_ns:
            self._expire(now_ns)
        return [
            row
            for row in rows
            if execution.tickets[row].state == "running" and not execution.tickets[row].future.done()
        ]

    def _fits(self, tickets: list[Ticket]) -> bool:
        """Return whether some requests of a batch may form a separate batch within the limits."""
        calls = self._calls
        selected = calls.assembler.select(tickets, shorter_too=True) if calls.stack else tickets
        return len(calls.assembler.within_cost(self.limit(selected))) == len(tickets)

    async def _try(self, execution: Execution, rows: list[int], now_ns: int) -> Exception | None:
        """Run some rows as a separate batch and deliver their results; return an error of the whole part."""
        part = Execution()
        part.tickets.extend(execution.tickets[row] for row in rows)
        part.inputs.extend(execution.inputs[row] for row in rows)
        part.deadline_ns = max(ticket.deadline_ns for ticket in part.tickets)
        part.effective_start_ns = now_ns
        execution.settled_ns = 0
        if self._calls.infer is None:
            await asyncio.sleep(0)  # the function runs on the event loop: let other tasks run first
        try:
            results, assembled_ns = await self._calls.send(part)
        except Exception as error:  # noqa: BLE001 - it is halved, or handed to the callers of this part
            if is_out_of_memory(error):
                self._learn_limit(part.tickets)
            return error
        if isinstance(results, BackendError):
            return results
        ended_ns, execution.settled_ns = execution.settled_ns or self._calls.clock(), 0
        if self._queue.next_deadline_ns <= ended_ns:
            self._expire(ended_ns)
        close_unread_rows(part.tickets, results, have_ended=True)
        self._queue.deliver(part, results, assembled_ns, ended_ns)
        close_unread_rows(part.tickets, results, have_ended=False)  # of callers that have just cancelled
        return None

    def _learn_limit(self, tickets: Sequence[Ticket]) -> None:
        bucket = max(ticket.bucket for ticket in tickets)
        self.set_limit(bucket, max(len(tickets) // 2, 1))

    def set_limit(self, bucket: int, max_rows: int) -> None:
        """Limit later batches of a length bucket to so many rows; a smaller earlier limit stays."""
        max_rows = self.memory_limits[bucket] = min(self.memory_limits.get(bucket, max_rows), max_rows)
        if self.on_limit is not None:
            self.on_limit(bucket, max_rows)

    def limit(self, chosen: list[Ticket]) -> list[Ticket]:
        """Return the first tickets, as many as fit into memory."""
        for bucket, max_rows in self.memory_limits.items():
            if len(chosen) > max_rows and any(ticket.bucket == bucket for ticket in chosen):
                chosen = chosen[:max_rows]
        return chosen


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, reports a lack of memory."""
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if cause is None:
            return False
        if isinstance(cause, MemoryError):
            return True
        try:
            text = f"{type(cause).__name__}: {cause}".lower()
        except Exception:  # noqa: BLE001 - an error whose message fails says nothing about memory
            text = ""
        if any(words in text for words in _MEMORY_TEXTS):
            return True
        cause = cause.__cause__
    return False


def _halves(rows: list[int]) -> tuple[list[int], list[int]]:
    middle = (len(rows) + 1) // 2
    return rows[:middle], rows[middle:]

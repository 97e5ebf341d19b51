"""Execution of released batches: the call of the model, its task, and the results for the callers."""

import asyncio
import contextvars
import functools
import inspect
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any

import attrs
from numpy import array, ndarray

from streaminfer._internal.own_arrays import own_arrays
from streaminfer.batching.assembly._prepare_cy import SCALARS
from streaminfer.batching.assembly.assembler import AssembledBatch
from streaminfer.batching.assembly.model_calls import ModelCalls
from streaminfer.batching.assembly.row_isolation import RowIsolator
from streaminfer.batching.assembly.unbatch import PLAIN, split_rows
from streaminfer.batching.assembly.undelivered import close_unread_rows, without_copies
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import Execution, Ticket
from streaminfer.batching.queue.request_outcomes import RequestOutcomes
from streaminfer.errors import BackendError
from streaminfer.protocols import adapt

__all__ = ["BatchRunner"]


@attrs.define(eq=False, repr=False, slots=False)
class BatchRunner:
    """Runs the batches of one queue on one backend or function.

    Not thread-safe: it belongs to one event loop at a time.

    Args:
        calls: calls of the backend or function.
        queue: the queued requests.
        outcomes: completes the requests that get no response.
        finish: called with a batch that has ended, the instant at which its inputs were assembled, its results and its
            error.
        settle: called when all requests of a batch have completed, if the batch did not end within the call of
            :attr:`run`.

    Attributes:
        run: starts a batch; bound to the kind of model at creation, which saves a call per batch.
        is_inline: the model runs on the event loop, within the call of :attr:`run`: a batch function, or a backend with
            ``infer_now``.
        in_threads: the model runs in a thread, to which :attr:`run` sends a batch.
        context: context of the tasks of batches.
        loop: the event loop of these tasks; ``None`` before the first.
        batches: the batches that run in a task.
        isolator: sends failed batches again in parts.
        abandoned_batches: number of batches that were cancelled because no caller was left.
    """

    _calls: ModelCalls
    _queue: RequestQueue
    _outcomes: RequestOutcomes
    _finish: Callable[[Execution, int, Any, BaseException | None], None]
    _settle: Callable[[], None]
    batches: dict[Execution, None] = attrs.field(factory=dict, init=False)  # ordered, so that runs can be repeated
    loop: asyncio.AbstractEventLoop | None = attrs.field(default=None, init=False)
    # batches belong to no caller: they must not see the context variables of the caller that started them
    context: contextvars.Context = attrs.field(factory=contextvars.Context, init=False)
    abandoned_batches: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        calls = self._calls
        node = adapt(calls.inner)
        self._infer_now = node.infer_now
        self._begin_infer = node.begin_infer
        self.is_inline = calls.infer is None or self._infer_now is not None
        self.in_threads = self._begin_infer is not None
        self.run: Callable[[Execution], None] = self._call_function if calls.infer is None else self._call_backend
        self._isolates = not node.capabilities().isolates_rows
        self.isolator = RowIsolator(calls, self._queue, expire=self.expire, fail=self._outcomes.fail)

    def bind_loop(self, loop: asyncio.AbstractEventLoop, now_ns: int) -> None:
        """Run batches on another event loop; forget those that a closed loop left behind."""
        for execution in self.batches:
            self._queue.events.finished(execution.record, now_ns, False)
        self.batches.clear()
        self.loop = loop

    def select(self, chosen: list[Ticket], shorter_too: bool, mixed: Callable[[], object] | None) -> Sequence[Ticket]:
        """Return the chosen requests that can be in one batch.

        Args:
            chosen: at least one request.
            shorter_too: requests of shorter buckets may be padded to the longest length.
            mixed: called if not all of them can be stacked.
        """
        assembler = self._calls.assembler
        selected = assembler.select(chosen, shorter_too) if self._calls.stack else chosen
        if len(selected) < len(chosen) and mixed is not None:
            mixed()
        return assembler.within_cost(self.isolator.limit(selected))  # the limit of the batch's bucket, known only now

    def expire(self, now_ns: int) -> None:
        """Complete the requests whose deadline has passed."""
        for execution in self._outcomes.expire(now_ns):
            self.cancel_if_abandoned(execution)

    def cancel_if_abandoned(self, execution: Execution) -> None:
        """Cancel a batch if none of its callers is left."""
        if execution.live == 0 and not execution.abandoned and execution in self.batches:
            execution.abandoned = True
            self.abandoned_batches += 1
            execution.task.cancel()

    def cancel(self) -> None:
        """Cancel the running batches."""
        for execution in self.batches:
            execution.task.cancel()

    def deliver(  # noqa: C901, PLR0912 - a call more costs more
        self, execution: Execution, assembled_ns: int, inferred_ns: int, results: Any, error: BaseException | None
    ) -> BaseException | None:
        """Complete the requests of a batch that has ended.

        Args:
            execution: the batch.
            assembled_ns: instant at which its inputs were assembled.
            inferred_ns: instant at which it ended.
            results: results of the model.
            error: error of the model; ``None``: none.

        Returns:
            The error with which the requests end; ``None``: they end with their rows.
        """
        if self._queue.next_deadline_ns <= inferred_ns:
            self.expire(inferred_ns)  # a busy loop delays the timer; responses after the deadline are not delivered
        size = len(execution.tickets)
        if type(results) is list and len(results) > size:
            results = without_copies(results, size, self._calls.assembler.padded_size(size))
        if execution.live < size and type(results) is list and len(results) == size:
            close_unread_rows(execution.tickets, results, have_ended=True)
        rows: Any = ()
        if execution.live and error is None:
            kind = type(results)
            if kind is list and len(results) == size:
                rows = results
            elif kind is ndarray and results.ndim and len(results) == size:
                rows = [results[0]] if size == 1 else list(results)
            else:
                rows = split_rows(results, size, self._calls.source, self._calls.assembler.padded_size(size))
                if isinstance(rows, BackendError):
                    error = rows
            if error is None:
                if self.isolator.unsplit:
                    self.isolator.succeeded()
                self._queue.deliver(execution, rows, assembled_ns, inferred_ns)
                if execution.live:  # requests whose callers have just cancelled
                    close_unread_rows(execution.tickets, rows, have_ended=False)
        if error is not None or not rows:
            self._queue.events.finished(execution.record, inferred_ns, error is None)
        if error is not None:
            self._outcomes.fail(execution.tickets, error, inferred_ns, assembled_ns)
        return error

    def _call_backend(self, execution: Execution) -> None:
        batch = self._calls.make_batch(execution)
        infer: Any = self._infer_now or self._calls.infer
        results: Any = None
        try:
            if self._begin_infer is not None:
                execution.task = self._begin_infer(batch, functools.partial(self._ended, execution, batch))
            else:
                results = infer(batch)
                if self._infer_now is not None and self._calls.copies:
                    results = own_arrays(results)
        except BaseException as error:  # noqa: BLE001 - it failed before it awaited anything
            self._fail(execution, execution.started_ns, error)
        else:
            if self._begin_infer is not None:
                self.batches[execution] = None
            elif self._infer_now is None:
                self._start_task(execution, self._complete(execution, results, batch, execution.started_ns))
            else:
                self._finish(execution, batch.assembled_ns or execution.started_ns, results, None)

    def _ended(self, execution: Execution, batch: AssembledBatch, results: Any, error: BaseException | None) -> None:
        """Finish a batch that ran without a task, or send it again in parts, in a task."""
        assembled_ns = batch.assembled_ns or execution.started_ns
        if error is None and self._calls.copies:
            try:
                results = own_arrays(results)  # before the worker is free for the next batch
            except Exception as failure:  # noqa: BLE001 - it belongs to this batch's callers
                results, error = None, failure
        if isinstance(error, Exception) and self._isolates and self.isolator.may_split(execution, error):
            self._start_task(execution, self._isolate(execution, error, assembled_ns))
        else:
            self._end(execution, assembled_ns, results, error)

    async def _isolate(self, execution: Execution, error: Exception, assembled_ns: int) -> None:
        try:
            await _first_step()
            if execution.live:
                await self.isolator.isolate(execution, error)
        finally:
            self._end(execution, assembled_ns, None, error)
            del error  # its traceback refers to this frame

    def _call_function(self, execution: Execution) -> None:
        assembled_ns = execution.started_ns
        calls = self._calls
        try:
            rows = execution.inputs  # numbers, the cheapest rows, need no assembler
            plain = calls.stack and calls.assembler.plain and type(rows[0]) in SCALARS
            inputs = array(rows) if plain else calls.assembler.assemble(rows)
            assembled_ns = calls.clock()
            results = calls.inner(inputs)
            awaitable = type(results) not in PLAIN and inspect.isawaitable(results)
            if calls.copies and not awaitable:
                results = own_arrays(results)
        except BaseException as error:  # noqa: BLE001 - it belongs to this batch's callers
            self._fail(execution, assembled_ns, error)
        else:
            if awaitable:
                self._start_task(execution, self._complete(execution, results, None, assembled_ns))
            else:
                self._finish(execution, assembled_ns, results, None)

    def _fail(self, execution: Execution, assembled_ns: int, error: BaseException) -> None:
        """End a batch whose model raised before it awaited anything; then raise an interrupt again, for the loop."""
        if not isinstance(error, (Exception, asyncio.CancelledError)):
            self._end(execution, assembled_ns, None, error)
            raise error
        if isinstance(error, Exception) and self._isolates and self.isolator.may_split(execution, error):
            self._start_task(execution, self._isolate(execution, error, assembled_ns))
        else:
            self._finish(execution, assembled_ns, None, error)

    def _end(self, execution: Execution, assembled_ns: int, results: Any, error: BaseException | None) -> None:
        try:
            self._finish(execution, assembled_ns, results, error)
        finally:  # even if a policy raises, the other requests are served
            execution.task = None  # a cancelled task refers to its error, whose traceback refers to the batch
            self._settle()

    def _start_task(self, execution: Execution, work: Coroutine[Any, Any, None]) -> None:
        self.batches[execution] = None
        work.send(None)  # begin now: a task that is cancelled before its first step would skip the coroutine's cleanup
        # never an eager task: it could end before it is registered
        # a copy of the context, so that concurrent batches do not see each other's variables
        execution.task = asyncio.Task(work, loop=self.loop, context=self.context.copy())

    async def _complete(
        self, execution: Execution, results: Awaitable[Any], batch: AssembledBatch | None, assembled_ns: int
    ) -> None:
        """Await the results of a backend or an async function, and finish the batch in every case."""
        rows: Any = None
        error: BaseException | None = None
        try:
            await _first_step()
            rows = await results
            if self._calls.copies:  # before the worker is free for the next batch
                rows = own_arrays(rows)
        except BaseException as raised:
            error = raised
            if not isinstance(raised, Exception):
                if inspect.iscoroutine(results):
                    results.close()  # not started yet if the batch is cancelled before its first step
                raise
            if self._isolates and self.isolator.may_split(execution, raised):
                await self.isolator.isolate(execution, raised)
        finally:
            if batch is not None and batch.assembled_ns:
                assembled_ns = batch.assembled_ns
            try:
                self._end(execution, assembled_ns, rows, error)
            finally:
                del rows, error  # an error's traceback refers to this frame, which would keep the batch's inputs alive


@types.coroutine
def _first_step() -> Generator[None, None, None]:
    """Wait for the first step of the task around a coroutine."""
    yield

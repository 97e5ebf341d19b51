"""The live batcher: a thin shell that reads the clock, asks the policy, runs batches and hands each caller its row.

It has no task of its own and never polls. Work happens in three callbacks: *submit* puts a ticket into the queue and,
if a worker is free, schedules one dispatch for the end of the present turn of the loop, so that all callers of that turn share
it; *dispatch* asks the policy until no worker is free or nothing is to be sent; *finish* distributes a batch's rows and
schedules the next dispatch. One alarm, a loop timer, stands for the earliest of all deadlines and of the policy's wish to
look again; with nothing in hand there is none.

Every awaited call ends once: with its row, its error, ``DeadlineExceeded`` from the alarm, ``Closed`` at the stop, or its own
cancellation. ``RequestQueue.end`` and ``deliver`` say yes once per ticket, and whoever hears it settles the future.
"""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np

from streaminfer._validation import check_duration
from streaminfer.batching._alike_cy import alike, all_alike
from streaminfer.batching._queue_cy import NEVER, RequestQueue, Run, Ticket
from streaminfer.batching.assembly import AssembledBatch, prepare, stack_rows
from streaminfer.batching.policy import Decision, Greedy, Policy
from streaminfer.batching.statistics import BatcherStatistics
from streaminfer.errors import (
    BackendError,
    Closed,
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    StreamInferError,
    for_caller,
)
from streaminfer.protocols import Admission, Clock
from streaminfer.request import Batch, Request, Response

__all__ = ["BatchedService", "check_timeout"]

_NO_AXES: Mapping[str, int] = {}
_PLAIN = (list, np.ndarray, tuple)
"""Results whose rows can be read without a closer look."""


class BatchedService:
    """A backend or batch function as a service of single requests; made by :meth:`AdaptiveBatcher.wrap`.

    Not thread-safe: it belongs to one event loop at a time, and moves to another only while nothing is in hand.

    Attributes:
        inner: the backend or function that answers batches.
        slo_s: the objective from which a request without a deadline gets one.
        enforces_deadline: every request ends at its deadline, queued or running.
    """

    enforces_deadline = True

    def __init__(
        self,
        inner: Any,
        *,
        policy: Policy,
        max_batch_size: int,
        max_queue_size: int,
        max_in_flight: int,
        slo_s: float | None,
        stack: bool,
        clock: Clock,
    ) -> None:
        self.inner = inner
        self.slo_s = slo_s
        self.clock = clock
        self._configured_policy = policy
        self._policy = policy
        self._max_batch_size = max_batch_size
        self._max_in_flight = max_in_flight
        self._slo_ns = None if slo_s is None else round(slo_s * 1e9)
        self._stack = stack
        self._infer: Callable[[Batch], Any] | None = getattr(inner, "infer", None)
        self._batch_axes: Mapping[str, int] = getattr(inner, "batch_axes", None) or _NO_AXES
        self._source = getattr(inner, "name", None) or getattr(inner, "__name__", None) or type(inner).__name__

        self._queue = RequestQueue(max_queue_size)
        self._free = max_in_flight
        self._runs: set[Run] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dispatching = False
        self._stopping = False
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_ns = NEVER
        self._look_again_ns = NEVER
        self._drained: asyncio.Future[None] | None = None

        self._submitted = 0
        self._failed = 0
        self._expired = 0
        self._cancelled = 0
        self._overloaded = 0
        self._refused = 0
        self._closed = 0
        self._abandoned_batches = 0
        self._batch_sizes: dict[int, int] = {}
        self._released: dict[str, int] = {}

    # -- callers ------------------------------------------------------------------------------------------------

    async def call(self, request: Request) -> Response:
        """Answers one request as a row of a batch.

        Raises:
            DeadlineExceeded: its deadline passed, on arrival, queued or running.
            Overloaded: the queue is full.
            InvalidInput: its inputs cannot be stacked.
            BackendError: the backend failed or answered something impossible.
            Closed: the service stopped.
        """
        ticket = self.submit(request, request.inputs, request.deadline_ns, request.priority)
        try:
            outputs = await ticket.future
        except asyncio.CancelledError:
            self.abandon(ticket)
            raise
        return Response(outputs, False, self._source, ticket.timings)

    def submit(self, request: Request | None, inputs: Any, deadline_ns: int | None, priority: int) -> Ticket:
        """Takes a request in hand; the caller awaits ``ticket.future`` and calls :meth:`abandon` if it gives up.

        Raises:
            Closed, DeadlineExceeded, InvalidInput, Overloaded: as :meth:`call`.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._enter(loop)
        self._submitted += 1
        if self._stopping:
            self._closed += 1
            raise Closed("the batcher has stopped")
        now_ns = self.clock()
        if deadline_ns is None:
            deadline_ns = NEVER if self._slo_ns is None else now_ns + self._slo_ns
        if deadline_ns <= now_ns:
            self._expired += 1
            raise DeadlineExceeded(f"the deadline had passed {(now_ns - deadline_ns) / 1e9:.6f} s before arrival")
        if self._stack:
            try:
                inputs = prepare(inputs)
            except StreamInferError:
                self._failed += 1
                raise
        queue = self._queue
        if queue.full:
            self._make_room(priority)
        ticket = queue.admit(request, inputs, loop.create_future(), now_ns, deadline_ns, priority)
        if self._free:
            if not self._dispatching:
                self._dispatching = True
                loop.call_soon(self._dispatch)
        elif deadline_ns < self._alarm_ns:
            self._arm()
        return ticket

    def abandon(self, ticket: Ticket) -> None:
        """Frees the place of a request whose caller has gone."""
        run = ticket.run
        if self._queue.end(ticket):
            self._cancelled += 1
            if run is not None:
                self._cancel_if_abandoned(run)
        self._settle()

    def admission(self, request: Request, now_ns: int) -> Admission:
        """Whether a request would be accepted now; changes nothing."""
        if self._stopping:
            return Admission(False, "closed")
        if request.deadline_ns is not None and request.deadline_ns <= now_ns:
            return Admission(False, "deadline")
        if self._queue.full:
            last = self._queue.least_urgent()
            if last is None or last.priority <= request.priority:
                return Admission(False, "overloaded", self._retry_after_s(now_ns))
        return Admission(True)

    # -- life ---------------------------------------------------------------------------------------------------

    def bind_clock(self, clock: Clock) -> None:
        """Takes over the clock of a `Stack`."""
        self.clock = clock

    async def start(self) -> None:
        """Accepts requests on the running loop; needed only after a stop."""
        self._enter(asyncio.get_running_loop())
        self._stopping = False
        self._policy = self._configured_policy

    async def stop(self, *, drain: bool) -> None:
        """Accepts nothing more and waits until nothing is in hand.

        Args:
            drain: answer what is in hand first; otherwise it ends with ``Closed`` and running batches are cancelled. When
                a draining stop is itself cancelled, what is left ends with ``Closed``.
        """
        loop = asyncio.get_running_loop()
        self._enter(loop)
        self._stopping = True
        self._policy = Greedy(self._max_batch_size)  # nothing is gained by waiting for company any more
        if drain and (self._queue.waiting or self._runs):
            self._schedule()
            self._drained = loop.create_future()
            try:
                await self._drained
            finally:
                self._drained = None
                self._close()
        self._close()
        tasks = [run.task for run in self._runs if run.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    def statistics(self) -> BatcherStatistics:
        """A snapshot of the counters."""
        return BatcherStatistics(
            submitted=self._submitted,
            waiting=self._queue.waiting,
            running=self._queue.running,
            answered=self._queue.answered,
            failed=self._queue.failed + self._failed,
            expired=self._expired,
            cancelled=self._cancelled,
            overloaded=self._overloaded,
            refused=self._refused,
            closed=self._closed,
            batches=sum(self._released.values()),
            running_batches=len(self._runs),
            abandoned_batches=self._abandoned_batches,
            batch_sizes=dict(sorted(self._batch_sizes.items())),
            released=dict(self._released),
            batch_s=self._queue.batch_s,
        )

    def __repr__(self) -> str:
        return f"BatchedService({self._source}, waiting={self._queue.waiting}, running={self._queue.running})"

    # -- dispatch -----------------------------------------------------------------------------------------------

    def _dispatch(self, now_ns: int | None = None) -> None:
        self._dispatching = False
        self._look_again_ns = NEVER
        queue = self._queue
        while self._free and queue.waiting:
            if now_ns is None:
                now_ns = self.clock()
            if queue.next_deadline_ns <= now_ns:
                self._expire(now_ns)
                continue
            decision = self._policy.decide(queue, now_ns, self._free)
            for ticket in decision.refuse:
                self._refuse(ticket)
            if decision.batch:
                self._launch(decision, now_ns)
                if self._infer is None:
                    # a function ran on the loop: let others have a turn before the next batch
                    self._schedule()
                    break
                now_ns = None
            elif not decision.refuse:
                if decision.look_again_ns is not None:
                    self._look_again_ns = decision.look_again_ns
                break
        self._settle()

    def _launch(self, decision: Decision, now_ns: int) -> None:
        chosen = decision.batch
        if self._stack and len(chosen) > 1:
            first = chosen[0].inputs
            if not all_alike([ticket.inputs for ticket in chosen]):
                chosen = [ticket for ticket in chosen if alike(first, ticket.inputs)]
        run = self._queue.take(chosen, now_ns)
        tickets = run.tickets
        if len(tickets) < len(chosen):
            for ticket in chosen:  # its caller has gone a moment ago: forget it here, or it would be chosen again
                self._drop_cancelled(ticket)
            if not tickets:
                return
        self._free -= 1
        self._runs.add(run)
        _count(self._batch_sizes, len(tickets))
        _count(self._released, decision.reason)
        if self._infer is None:
            self._call_function(run)
            return
        batch = AssembledBatch(
            functools.partial(stack_rows, run.inputs, self._batch_axes) if self._stack else run.inputs.copy,
            [ticket.request for ticket in tickets],
            None if run.deadline_ns == NEVER else run.deadline_ns,
            self.clock,
        )
        run.task = self._loop_now().create_task(self._call_backend(run, self._infer, batch))

    def _call_function(self, run: Run) -> None:
        assembled_ns = run.started_ns
        try:
            if self._stack:
                stacked = stack_rows(run.inputs, self._batch_axes)
                assembled_ns = self.clock()
                results = self.inner(stacked)
            else:
                results = self.inner(run.inputs)
        except Exception as error:  # noqa: BLE001 - whatever the function raises belongs to this batch's callers
            self._finish(run, assembled_ns, None, error)
        except BaseException as error:
            self._finish(run, assembled_ns, None, error)
            raise
        else:
            if type(results) not in _PLAIN and inspect.isawaitable(results):
                run.task = self._loop_now().create_task(self._await_function(run, assembled_ns, results))
            else:
                self._finish(run, assembled_ns, results, None)

    async def _await_function(self, run: Run, assembled_ns: int, results: Awaitable[Any]) -> None:
        rows, error = None, None
        try:
            rows = await results
        except BaseException as raised:
            error = raised
            if not isinstance(raised, Exception):
                raise
        finally:
            self._finish(run, assembled_ns, rows, error)
            self._schedule()
            self._settle()

    async def _call_backend(self, run: Run, infer: Callable[[Batch], Any], batch: AssembledBatch) -> None:
        rows, error = None, None
        try:
            rows = await infer(batch)
        except BaseException as raised:
            error = raised
            if not isinstance(raised, Exception):
                raise
        finally:
            self._finish(run, batch.assembled_ns or run.started_ns, rows, error)
            self._schedule()
            self._settle()

    def _finish(self, run: Run, assembled_ns: int, results: Any, error: BaseException | None) -> None:
        """Hands out what a batch came to, and frees its worker."""
        inferred_ns = self.clock()
        self._runs.discard(run)
        self._free += 1
        if error is None:
            size = len(run.tickets)
            rows = results if type(results) is list and len(results) == size else self._rows(results, size)
            if isinstance(rows, BackendError):
                self._fail(run, rows)
            else:
                self._queue.deliver(run, rows, assembled_ns, inferred_ns)
        else:
            self._fail(run, error)

    def _rows(self, results: Any, count: int) -> list[Any] | BackendError:
        kind = type(results)
        if kind not in _PLAIN and (isinstance(results, (str, bytes, Mapping)) or not hasattr(results, "__len__")):
            return BackendError(
                f"{self._source}: expected a sequence of {count} results, one per row, got {kind.__name__}"
            )
        try:
            rows = results if kind is list else [results[0]] if count == len(results) == 1 else list(results)
        except Exception as error:  # noqa: BLE001 - an array without axes, or a sequence that fails
            failure = BackendError(f"{self._source}: the results cannot be read one by one: {error}")
            failure.__cause__ = error
            return failure
        if len(rows) != count:
            return BackendError(f"{self._source}: expected {count} results, one per row, got {len(rows)}")
        return rows

    def _fail(self, run: Run, error: BaseException) -> None:
        for ticket in run.tickets:
            future = ticket.future
            if self._queue.end(ticket):
                if future.done():
                    self._cancelled += 1
                else:
                    self._failed += 1
                    future.set_exception(for_caller(error, self._source))

    # -- refusing, expiring, closing ----------------------------------------------------------------------------

    def _make_room(self, priority: int) -> None:
        """Displaces the newest of the least urgent waiting requests if the newcomer is more urgent, else refuses it."""
        retry_after_s = self._retry_after_s(self.clock())
        message = f"{self._queue.waiting} requests wait already (max_queue_size={self._queue.max_size})"
        last = self._queue.least_urgent()
        self._overloaded += 1
        if last is None or last.priority <= priority:
            raise Overloaded(message, retry_after_s=retry_after_s)
        future = last.future
        self._queue.end(last)
        if not future.done():
            future.set_exception(
                Overloaded(f"displaced by a more urgent request; {message}", retry_after_s=retry_after_s)
            )

    def _retry_after_s(self, now_ns: int) -> float:
        """When a place is expected: the time to serve what waits, from recent batches; before the first, the age of
        the oldest running one."""  # fmt: skip
        batch_s = self._queue.batch_s
        if not batch_s and self._runs:
            batch_s = (now_ns - min(run.started_ns for run in self._runs)) / 1e9
        batches = -(-self._queue.waiting // self._max_batch_size)
        return batch_s * batches / self._max_in_flight

    def _refuse(self, ticket: Ticket) -> None:
        future = ticket.future
        if self._queue.end(ticket):
            self._refused += 1
            if not future.done():
                future.set_exception(DeadlineExceeded("refused: it cannot be answered by its deadline"))

    def _drop_cancelled(self, ticket: Ticket) -> None:
        if ticket.future is not None and ticket.future.done() and self._queue.end(ticket):
            self._cancelled += 1

    def _expire(self, now_ns: int) -> None:
        for future, run, timings in self._queue.expire(now_ns):
            if future.done():
                self._cancelled += 1
                continue
            self._expired += 1
            where = "waiting" if run is None else "its batch was running"
            waited_s = (now_ns - timings.enqueued_ns) / 1e9
            future.set_exception(DeadlineExceeded(f"the deadline passed after {waited_s:.6f} s, {where}"))
            if run is not None:
                self._cancel_if_abandoned(run)

    def _cancel_if_abandoned(self, run: Run) -> None:
        if run.live == 0 and run.task is not None and run in self._runs:
            self._abandoned_batches += 1
            run.task.cancel()

    def _in_hand(self) -> list[Ticket]:
        return [*self._queue, *(ticket for run in self._runs for ticket in run.tickets)]

    def _close(self) -> None:
        for run in self._runs:
            if run.task is not None:
                run.task.cancel()
        for ticket in self._in_hand():
            future = ticket.future
            if self._queue.end(ticket):
                self._closed += 1
                if not future.done():
                    future.set_exception(Closed("the batcher stopped before it could answer"))
        self._settle()

    # -- the loop and its alarm ---------------------------------------------------------------------------------

    def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed() and (self._queue.waiting or self._runs):
            raise RuntimeError(
                f"{self!r} serves requests of another event loop; a batcher belongs to one loop at a time"
            )
        for ticket in self._in_hand():  # left behind by a closed loop: its callers are gone with it
            if self._queue.end(ticket):
                self._closed += 1
        self._runs.clear()
        self._free = self._max_in_flight
        self._dispatching = False
        self._alarm = None
        self._alarm_ns = NEVER
        self._loop = loop

    def _loop_now(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("the batcher has no event loop yet")
        return self._loop

    def _schedule(self) -> None:
        if self._free and self._queue.waiting and not self._dispatching:
            self._dispatching = True
            self._loop_now().call_soon(self._dispatch)

    def _settle(self) -> None:
        """Brings the alarm in line with what is in hand, and tells a draining stop when nothing is."""
        if self._queue.waiting == 0 and self._queue.running == 0:
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None
                self._alarm_ns = NEVER
            if self._drained is not None and not self._runs and not self._drained.done():
                self._drained.set_result(None)
        elif not self._dispatching:
            self._arm()

    def _arm(self) -> None:
        wanted_ns = min(self._queue.next_deadline_ns, self._look_again_ns)
        if wanted_ns >= self._alarm_ns:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_ns = wanted_ns
        self._alarm = self._loop_now().call_later(max(wanted_ns - self.clock(), 0) / 1e9, self._on_alarm)

    def _on_alarm(self) -> None:
        # loops fire early by their resolution: an alarm for an instant means that the instant has come
        now_ns = max(self.clock(), self._alarm_ns)
        self._alarm = None
        self._alarm_ns = NEVER
        self._expire(now_ns)
        if self._free and self._queue.waiting and not self._dispatching:
            self._dispatch(now_ns)
        else:
            self._settle()


def _count(counts: dict[Any, int], key: Any) -> None:
    counts[key] = counts.get(key, 0) + 1


def check_timeout(timeout_s: Any) -> float:
    """A caller's time limit in seconds, ≥ 0.

    Raises:
        InvalidInput: not such a number.
    """
    try:
        return check_duration("timeout_s", timeout_s)
    except (TypeError, ValueError) as error:
        raise InvalidInput(str(error)) from None

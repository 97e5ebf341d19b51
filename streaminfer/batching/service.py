"""The live batcher as its callers see it: a request is taken in hand, or turned away at once, and ends exactly once.

Every awaited call ends: with its row, its error, ``DeadlineExceeded`` from the alarm, ``Closed`` at the stop, or its
own cancellation. ``RequestQueue.end`` and ``deliver`` say yes once per ticket, and whoever hears it settles the future.
"""

import asyncio
import functools
from asyncio import get_running_loop
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from streaminfer.batching._queue_cy import NEVER, Ticket
from streaminfer.batching.assembly import SCALARS, prepare
from streaminfer.batching.dispatcher import Dispatcher
from streaminfer.batching.policy import Greedy, Policy
from streaminfer.errors import Closed, DeadlineExceeded, InvalidInput, Overloaded
from streaminfer.protocols import Admission, Clock
from streaminfer.request import Request, Response, timeout_ns

if TYPE_CHECKING:
    from streaminfer.batching.statistics import BatcherStatistics

__all__ = ["BatchedService"]


class BatchedService(Dispatcher):
    """A backend or batch function as a service of single requests; made by :meth:`AdaptiveBatcher.wrap`.

    Not thread-safe: it belongs to one event loop at a time, and moves to another only while nothing is in hand.

    Attributes:
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
        super().__init__(
            inner, policy=policy, max_queue_size=max_queue_size, max_in_flight=max_in_flight, stack=stack, clock=clock
        )
        self.slo_s = slo_s
        self._configured_policy = policy
        self._max_batch_size = max_batch_size
        self._max_in_flight = max_in_flight
        self._slo_ns = None if slo_s is None else timeout_ns(slo_s)
        self._new_future: Callable[[], asyncio.Future[Any]] = asyncio.Future
        self._stopping = False
        self._submitted = 0
        self._overloaded = 0
        self._closed = 0

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
        except BaseException:
            self.abandon(ticket)
            raise
        return Response(outputs, False, self._source, ticket.timings)

    def submit(self, request: Request | None, inputs: Any, deadline_ns: int | None, priority: int) -> Ticket:
        """Takes a request in hand; the caller awaits ``ticket.future`` and calls :meth:`abandon` if it gives up.

        Raises:
            Closed, DeadlineExceeded, InvalidInput, Overloaded: as :meth:`call`.
        """
        loop = get_running_loop()
        if loop is not self._loop:
            self._enter(loop)
        self._submitted += 1
        now_ns = self.clock()
        if deadline_ns is None:
            deadline_ns = NEVER if self._slo_ns is None else now_ns + self._slo_ns
        if self._stopping or deadline_ns <= now_ns:
            self._turn_away(now_ns, deadline_ns)
        if self._stack and type(inputs) not in SCALARS:
            try:
                inputs = prepare(inputs)
            except InvalidInput:
                self._failed += 1
                raise
        queue = self._queue
        if queue.full:
            self._make_room(priority)
        ticket = queue.admit(request, inputs, self._new_future(), now_ns, deadline_ns, priority)
        if self._free:
            if not self._dispatching:
                self._dispatching = True
                loop.call_soon(self._dispatch, context=self._context)
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
        if self._queue.full and not self._free:
            last = self._queue.least_urgent()
            if last is None or last.priority <= request.priority:
                return Admission(False, "overloaded", self._retry_after_s(now_ns))
        return Admission(True)

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
            drain: answer what is in hand first; otherwise it ends with ``Closed`` and running batches are cancelled.
                When a draining stop is itself cancelled, what is left ends with ``Closed``.
        """
        loop = asyncio.get_running_loop()
        self._enter(loop)
        self._stopping = True
        self._policy = Greedy(self._max_batch_size)  # nothing is gained by waiting for company any more
        if drain and (self._queue.waiting or self._queue.running or self._runs):
            self._schedule()
            drained = loop.create_future()
            self._drains.append(drained)
            try:
                await drained
            finally:
                self._drains.remove(drained)
                self._close()
        self._close()
        tasks = [run.task for run in self._runs]
        if tasks:
            await asyncio.wait(tasks)

    def statistics(self) -> "BatcherStatistics":
        """A snapshot of the counters."""
        from streaminfer.batching.statistics import BatcherStatistics  # noqa: PLC0415 - who asks for a snapshot loads what it is made of

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

    def _turn_away(self, now_ns: int, deadline_ns: int) -> NoReturn:
        if self._stopping:
            self._closed += 1
            raise Closed("the batcher has stopped")
        self._expired += 1
        raise DeadlineExceeded(f"the deadline had passed {(now_ns - deadline_ns) / 1e9:.6f} s before arrival")

    def _make_room(self, priority: int) -> None:
        """Makes a place in a full queue, or raises.

        A free worker, whose dispatch is due at the end of this turn, takes a batch now. Otherwise the newest of the
        least urgent waiting requests gives way if the newcomer is more urgent.
        """
        if self._free:
            try:
                self._context.copy().run(self._dispatch)
            except BaseException:
                self._failed += 1  # an interrupt out of another batch ends this call too
                raise
            if not self._queue.full:
                return
        last = self._queue.least_urgent()
        if last is not None and last.future.done():
            self._drop_cancelled(last)
            return
        retry_after_s = self._retry_after_s(self.clock())
        message = f"{self._queue.waiting} requests wait already (max_queue_size={self._queue.max_size})"
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
        """When a place is expected: the time to serve what waits, as recent batches took."""
        batch_s = self._queue.batch_s
        if not batch_s and self._runs:  # before the first: the age of the oldest that runs
            batch_s = (now_ns - min(run.started_ns for run in self._runs)) / 1e9
        batches = -(-self._queue.waiting // self._max_batch_size)
        return batch_s * batches / self._max_in_flight

    def _in_hand(self) -> list[Ticket]:
        return [*self._queue, *(ticket for run in self._runs for ticket in run.tickets)]

    def _close(self) -> None:
        for run in self._runs:
            if run.begun:
                run.task.cancel()
        for ticket in self._in_hand():
            future = ticket.future
            if self._queue.end(ticket):
                if future.done():
                    self._cancelled += 1
                else:
                    self._closed += 1
                    future.set_exception(Closed("the batcher stopped before it could answer"))
        self._settle()

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
        if type(loop).create_future is asyncio.BaseEventLoop.create_future:  # which makes just this, one call later
            self._new_future = functools.partial(asyncio.Future, loop=loop)
        else:
            self._new_future = loop.create_future

"""Acceptance of a request by a batcher: all code that runs for each request before its caller waits.

One source, compiled with the C types of ``_submission_cy.pxd`` or run uncompiled. Rare cases (another event loop, a
full queue, a rejection) are left to the batcher's service.
"""

from __future__ import annotations

import asyncio
from asyncio import get_running_loop
from collections.abc import Callable
from typing import Any

from numpy import ndarray

from streaminfer.batching.assembly._prepare_cy import SCALARS, prepare
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER, Ticket
from streaminfer.protocols import Clock

__all__ = ["DispatchState", "Submission"]

# C variables in the compiled module, not visible from Python
_NEVER = NEVER
_NUMBERS = frozenset("biufc")  # kinds of dtypes


class DispatchState:
    """The part of a dispatcher that each request reads.

    Attributes:
        free: how many batches may start now.
        is_scheduled: a dispatch is due at the end of this loop iteration.
        pipelines: a batch may be sent before a worker is free.
        timer_ns: instant of the timer; ``NEVER``: it is not set.
    """

    __slots__ = ("free", "is_scheduled", "pipelines", "timer_ns")  # so that subclasses have slots when uncompiled

    free: int
    is_scheduled: bool
    pipelines: bool
    timer_ns: int


class Submission:
    """Accepts the requests of one batcher.

    Not thread-safe: it belongs to one event loop at a time.

    Args:
        queue: queue of the requests.
        dispatcher: the `Dispatcher` of the batches.
        service: the `BatchedService`, for the rare cases; its ``outcomes`` count inputs that cannot be stacked.
        stack: the model gets stacked arrays, not lists.
        in_order: requests of a stream run one after the other.
        clock: returns monotonic nanoseconds.

    Attributes:
        loop: the event loop of the callers.
        clock: the same clock; it may be replaced.
        new_future: makes the future that a caller awaits.
        stopping: no more requests are accepted.
        submitted: how many requests arrived so far.
    """

    def __init__(
        self, queue: RequestQueue, dispatcher: Any, service: Any, *, stack: bool, in_order: bool, clock: Clock
    ) -> None:
        self._queue = queue
        self._dispatcher = dispatcher
        self._stack = stack
        self._in_order = in_order
        self.clock: Clock = clock
        self._service = service
        self._assembler: Any = None
        self._plain = True
        self._number_dtype: Any = None  # dtype of the latest array that needed no preparation
        self._slo_ns = -1
        self.loop: asyncio.AbstractEventLoop | None = None
        self.new_future: Callable[[], asyncio.Future[Any]] = asyncio.Future
        self.stopping = False
        self.submitted = 0

    def change(self, slo_ns: int | None, assembler: Any) -> None:
        """Change settings for later requests: their objective and the assembler of their inputs.

        Args:
            slo_ns: nanoseconds from arrival to the deadline of a request without one; ``None``: it has no deadline.
            assembler: assembler of the batches.
        """
        self._slo_ns = -1 if slo_ns is None else slo_ns
        self._assembler = assembler
        self._plain = assembler.plain

    def submit(  # noqa: C901, PLR0912 - a call more for each request costs more than the branch
        self,
        request: Any,
        inputs: Any,
        deadline_ns: int | None,
        priority: int,
        loop: asyncio.AbstractEventLoop | None = None,
        now_ns: int = 0,
        future: Any = None,
    ) -> Ticket:
        """Accept a request; the caller awaits ``ticket.future`` and calls `BatchedService.abandon` if that raises.

        Args:
            request: the request of the row; ``None``: a function, which gets only the inputs.
            inputs: inputs of the request.
            deadline_ns: deadline of the request; ``None``: the objective sets it.
            priority: priority of the request.
            loop: the running loop, if the caller knows it, because finding it costs a system call.
            now_ns: the present instant, if the caller has read the same clock; 0: read it here.
            future: object for the ticket of a caller that awaits nothing; ``None``: a new future.

        Raises:
            Closed, DeadlineExceeded, InvalidInput, Overloaded: as `BatchedService.call`.
        """
        if loop is None:
            loop = get_running_loop()
        if loop is not self.loop:
            self._service.enter(loop)
        self.submitted += 1
        present_ns = now_ns or self.clock()
        due_ns = _NEVER
        if deadline_ns is not None:
            due_ns = deadline_ns
        elif self._slo_ns >= 0:
            due_ns = present_ns + self._slo_ns
        if self.stopping or due_ns <= present_ns:
            self._service.reject(present_ns, due_ns)
        bucket = 0
        cost = 0.0
        if not self._plain or (self._stack and type(inputs) not in SCALARS):
            try:
                if type(inputs) is ndarray and self._plain:
                    dtype = inputs.dtype
                    if dtype is not self._number_dtype:
                        inputs = prepare(inputs)
                        self._number_dtype = dtype if dtype.kind in _NUMBERS else None
                elif self._plain:
                    inputs = prepare(inputs)
                else:
                    inputs = self._assembler.prepare(inputs)
                    bucket = self._assembler.bucket_of(inputs)
                    cost = self._assembler.cost_of(inputs)
            except BaseException:  # including an interrupt raised in row_cost
                self._service.outcomes.failed += 1
                raise
        queue = self._queue
        if queue.full:
            self._service.make_room(None if request is None else request.stream_id, priority, due_ns)
        stream_id = request.stream_id if self._in_order and request is not None else None
        if future is None:
            future = self.new_future()
        ticket = queue.admit(request, inputs, future, present_ns, due_ns, priority, bucket, stream_id)
        if cost:
            ticket.cost = cost
        dispatcher = self._dispatcher
        if dispatcher.free:
            if not dispatcher.is_scheduled:
                self._schedule(loop)
        else:
            if due_ns < dispatcher.timer_ns:
                dispatcher.set_timer()
            if dispatcher.pipelines and not dispatcher.is_scheduled and queue.queued == dispatcher.policy.full_size:
                self._schedule(loop)
        return ticket

    def _schedule(self, loop: Any) -> None:
        dispatcher = self._dispatcher
        loop.call_soon(dispatcher.dispatch, context=dispatcher.runner.context)
        dispatcher.is_scheduled = True  # after the call, which raises if a caller's stack is exhausted

"""Request path of the batcher: each request is accepted or rejected on arrival and completes exactly once.

Every awaited call completes: with its row, its error, ``DeadlineExceeded`` by the timer, ``Closed`` by a stop, or its
cancellation. ``RequestQueue.end`` and ``deliver`` return true once per ticket; their caller then settles the future.
"""

import asyncio
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

from streaminfer._internal.validation import expected
from streaminfer._runtime.batch_observer import BatchObserver
from streaminfer._runtime.closing import close_unread
from streaminfer._runtime.loops import is_virtual
from streaminfer.batching._batch_observers_cy import BatchObservers
from streaminfer.batching._submission_cy import Submission
from streaminfer.batching.assembly.assembler import Assembler
from streaminfer.batching.assembly.model_calls import ModelCalls, make_assembler
from streaminfer.batching.dispatcher import Dispatcher
from streaminfer.batching.policy import Greedy, Policy, adapt_policy
from streaminfer.batching.queue._fair_queue_cy import FairQueue
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER, Ticket
from streaminfer.batching.queue.request_outcomes import RequestOutcomes
from streaminfer.errors import Closed, DeadlineExceeded, Overloaded
from streaminfer.protocols import Admission, AdmissionReason, Capabilities, Clock, Node, adapt, name_of
from streaminfer.request import Request, Response, passed_on_arrival, timeout_ns

if TYPE_CHECKING:
    from streaminfer.batching.batcher_statistics import BatcherStatistics
    from streaminfer.batching.device.device import Device
    from streaminfer.batching.service_time.calibration import Calibration, CalibrationStatistics

__all__ = ["BatchedService"]

_LARGEST_LOAD = 4096  # upper bound, because a stack without a batcher has a worker for each request

_admit: Callable[[type[Admission], tuple[bool, str, float, int | None]], Admission] = tuple.__new__


class BatchedService(Node):
    """A backend or batch function as a service of single requests; made by :meth:`AdaptiveBatcher.wrap`.

    Not thread-safe: it belongs to one event loop at a time, and moves to another only while nothing is in flight.

    Attributes:
        inner: the backend or function that gets the batches.
        source: name of the model, for messages and `Response.source`.
        clock: returns monotonic nanoseconds.
        events: record of recent arrivals, releases and drops.
        slo_s: the objective in seconds, for requests without a deadline.
        slo_ns: the same in nanoseconds.
        outcomes: completes the requests that get no response, and counts them.
        submit: accepts a request, as `Submission.submit`.
        calibration: measurements of the latest start; ``None`` before it, or if the backend offers no example.
    """

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
        assembler: Assembler | None = None,
        policy_for: Callable[[int], Policy] | None = None,
        weights: Mapping[Hashable, float] | None = None,
        device: "Device | None" = None,
    ) -> None:
        self.inner = inner
        self.clock = clock
        self.source = name_of(inner)
        assembler = assembler or make_assembler(inner, stack=stack, max_batch_size=max_batch_size)
        self._calls = ModelCalls(inner, stack=stack, assembler=assembler, source=self.source, clock=clock)
        self._queue = RequestQueue(max_queue_size) if weights is None else FairQueue(max_queue_size, weights)
        self._fair_queue = self._queue if isinstance(self._queue, FairQueue) else None
        self.events = self._queue.events
        self.outcomes = RequestOutcomes(self._queue, self.source)
        self._dispatcher = Dispatcher(
            self._calls,
            queue=self._queue,
            outcomes=self.outcomes,
            policy=policy,
            max_in_flight=max_in_flight,
            device=device,
        )
        self._device = device
        offered = adapt(inner).capabilities()
        self._inner_admission = offered.admission
        self._in_order = offered.stream_states is not None
        self._policy_for = policy_for
        self._submission = Submission(
            self._queue, self._dispatcher, self, stack=stack, in_order=self._in_order, clock=clock
        )
        self.submit = self._submission.submit
        self.change(slo_s, max_batch_size, policy, assembler)
        self.validate: Callable[[Request], None] | None = None
        if assembler.buckets is not None and offered.validate is not None:
            self.validate = functools.partial(self._validate_padded, offered.validate)
        self.calibration: CalibrationStatistics | None = None
        self._calibrator: Calibration | None = None
        self._calibrated_model = 0

    @property
    def max_in_flight(self) -> int:
        """Number of batches that may run at once."""
        return self._dispatcher.max_in_flight

    async def call(self, request: Request) -> Response:
        """Serve one request as a row of a batch.

        Raises:
            DeadlineExceeded: its deadline passed on arrival, while queued or while running.
            Overloaded: the queue is full.
            InvalidInput: its inputs cannot be stacked.
            BackendError: the backend failed or returned something impossible.
            Closed: the service stopped.
        """
        ticket = self.submit(request, request.inputs, request.deadline_ns, request.priority)
        future = ticket.future
        try:
            return Response(await future, False, self.source, ticket.timings)
        except BaseException:
            close_unread(future)  # results may have arrived in the iteration of the loop in which it was cancelled
            del future  # it holds the error, whose traceback holds this frame, and thus the inputs
            self.abandon(ticket)
            raise

    def abandon(self, ticket: Ticket) -> None:
        """Complete a request that its caller has cancelled; do nothing if it has completed already."""
        if ticket.future is None:
            return  # it completed, and its consequences were handled
        execution = ticket.execution
        if self._queue.end(ticket):
            self.outcomes.cancelled += 1
            if execution is not None:
                self._dispatcher.runner.cancel_if_abandoned(execution)
        if self._in_order:
            self._dispatcher.schedule()  # the next request of the stream may have become queued
        self._dispatcher.settle()

    @property
    def children(self) -> Mapping[str, Any]:
        """The backend or function."""
        return {"inner": self.inner}

    @property
    def left_to_owner(self) -> Sequence[Any]:
        """The backend, which must be ready before the batcher measures it."""
        return (self.inner,)

    def capabilities(self) -> Capabilities:
        """Return the capabilities of backend and batcher; read after each start, which may change them."""
        offered = adapt(self.inner).capabilities()
        return offered._replace(
            validate=self.validate or offered.validate,
            admission=self.admission,
            slo=self,
            enforces_deadline=True,
            max_in_flight=self.max_in_flight,
            full_load=self.full_load,
            next_batch=self._dispatcher.next_batch,
            shares_device=self._device is not None,
            slow_batch_ns=lambda rows: self._dispatcher.expectations.upper_estimate_ns(min(rows, self._max_batch_size)),
            expected_batch_ns=self._dispatcher.expectations.expected_of_size_ns,
            observe_batches=self.observe_batches,
        )

    def admission(self, request: Request, now_ns: int) -> Admission:
        """Predict without side effects whether a request would be accepted now."""
        if self._submission.stopping:
            return Admission(False, AdmissionReason.CLOSED)
        if request.deadline_ns is not None and request.deadline_ns <= now_ns:
            return Admission(False, AdmissionReason.DEADLINE_EXCEEDED)
        if self._queue.full and not (self._queue.queued and self._dispatcher.can_start):
            last = self._queue.least_urgent()
            if last is None or not self._is_shed_for(last, request.stream_id, request.priority):
                return Admission(False, AdmissionReason.QUEUE_FULL, self._dispatcher.retry_after_s(now_ns))
        if self._inner_admission is not None:
            verdict: Admission = self._inner_admission(request, now_ns)
            if not verdict.ok:
                return verdict
        assembler = self._calls.assembler
        bucket = 0 if assembler.plain else assembler.bucket_of(request.inputs)
        finish_ns = self._dispatcher.predicted_finish_ns(now_ns, bucket, request, self.slo_ns is not None)
        if finish_ns is not None and request.deadline_ns is not None and finish_ns > request.deadline_ns:
            return Admission(False, AdmissionReason.INFEASIBLE, self._dispatcher.retry_after_s(now_ns), finish_ns)
        # a router calls this often, and creating the tuple directly takes half the time
        return _admit(Admission, (True, "", 0.0, finish_ns))

    def check_max_batch_size(self, max_batch_size: int) -> None:
        """Check that batches are no larger than the backend takes, if it states a limit.

        Raises:
            ValueError: ``max_batch_size`` is above the limit.
        """
        limit = adapt(self.inner).capabilities().max_batch_size
        if limit is not None and max_batch_size > limit:
            expectation = f"at most {limit}, the most rows that the model takes"
            raise ValueError(expected("max_batch_size", expectation, max_batch_size))

    def change(self, slo_s: float | None, max_batch_size: int, policy: Policy, assembler: Assembler) -> None:
        """Change the settings; requests in flight keep their deadline and their place."""
        self.slo_s = slo_s
        self.slo_ns = None if slo_s is None else timeout_ns(slo_s)
        self._max_batch_size = max_batch_size
        self._dispatcher.full_at = full_at = min(max_batch_size, self._queue.max_size)  # no more can be queued
        self._calls.assembler = assembler
        self._submission.change(self.slo_ns, assembler)
        self._dispatcher.claim.change(self.slo_ns, full_at)
        self._dispatcher.expectations.plain = assembler.plain
        self._configured_policy = policy
        if self._fair_queue is not None:
            self._fair_queue.horizon = max_batch_size * len(assembler.caps)
        self._dispatcher.runner.isolator.memory_limits.clear()
        if not self._submission.stopping:
            self._dispatcher.set_policy(policy)
            if self._submission.loop is not None:
                self._prepare_policy()
                self._dispatcher.schedule()  # the timer was set for the previous policy

    def observe_batches(self, make: Callable[[str], BatchObserver]) -> None:
        """Create an observer with ``make``, which gets the name of the model, and report each later batch to it."""
        if self._dispatcher.observers is None:
            self._dispatcher.observers = BatchObservers(self.source)
        self._dispatcher.observers.add(make(self.source))

    def full_load(self) -> int:
        """Return how many requests keep every worker busy with full batches, and one more full batch queued."""
        return min(self._dispatcher.full_at * (self.max_in_flight + 1), _LARGEST_LOAD)

    def bind_clock(self, clock: Clock) -> None:
        """Use the clock of a `Stack`."""
        self.clock = self._submission.clock = clock
        self._calls.bind_clock(clock)
        super().bind_clock(clock)

    async def start(self) -> None:
        """Run batches of the backend's example inputs, so that live requests meet a measured model; accept requests.

        The backend must have started. Without this call, live requests pay for the first measurements and may wait for
        kernels; after a stop the call is required. Sizes that an earlier start measured are not measured again.

        Raises:
            ValueError: the batches would be larger than the backend takes, or its example does not fit it.
            BackendError: the model could not be loaded, or failed on an example that the user gave.
        """
        await self.load_kernels()
        self.enter(asyncio.get_running_loop())
        try:
            await self._make_ready()
        except BaseException:
            if self._device is not None and not (self._queue.queued or self._dispatcher.runner.batches):
                self._device.leave(self._dispatcher)  # otherwise other models would make room for it
                self._submission.loop = None  # so that the next start or request enters again
            raise
        self._submission.stopping = False

    async def load_kernels(self) -> None:
        """Load the kernels of the policy; the first call takes seconds if Numba compiles them, later ones no time.

        Raises:
            MissingExtra: no kernels were compiled ahead of time, and Numba is not installed.
        """
        prepare = adapt_policy(self._configured_policy).prepare
        if prepare is not None and not is_virtual(asyncio.get_running_loop()) and prepare(wait=False) is False:
            await asyncio.to_thread(prepare, wait=True)

    @property
    def is_serving(self) -> bool:
        """Whether requests are accepted on an event loop that does not run in virtual time."""
        loop = self._submission.loop
        return not (self._submission.stopping or loop is None or loop.is_closed() or is_virtual(loop))

    @property
    def start_progress(self) -> str:
        """Step of :meth:`start` in progress; empty if no start is."""
        return "" if self._calibrator is None else self._calibrator.progress

    async def stop(self, *, drain: bool = True) -> None:
        """Accept no more requests and wait until none is in flight.

        Args:
            drain: complete the requests in flight first; otherwise they end with ``Closed`` and running batches are
                cancelled. If a draining stop is itself cancelled, the remaining requests end with ``Closed``.
        """
        self.enter(asyncio.get_running_loop())
        self._submission.stopping = True
        self._dispatcher.set_policy(Greedy(self._max_batch_size))  # no later request can fill a batch
        await self._dispatcher.stop(drain=drain)

    def statistics(self) -> "BatcherStatistics":
        """Return a snapshot of the counters."""
        from streaminfer.batching.batcher_statistics import BatcherStatistics  # noqa: PLC0415 - loaded at the first snapshot

        queue, outcomes, dispatcher, runner = self._queue, self.outcomes, self._dispatcher, self._dispatcher.runner
        return BatcherStatistics(
            submitted=self._submission.submitted,
            queued=queue.queued + queue.held_back,
            running=queue.running,
            succeeded=queue.succeeded,
            failed=queue.failed + outcomes.failed,
            deadline_exceeded=outcomes.deadline_exceeded,
            cancelled=outcomes.cancelled,
            rejected=dict(outcomes.rejected),
            closed=outcomes.closed,
            batches=self.events.releases,
            running_batches=len(runner.batches),
            abandoned_batches=runner.abandoned_batches,
            pipelined=dispatcher.pipeline.sent,
            split_batches=runner.isolator.split_batches,
            memory_limits=dict(runner.isolator.memory_limits),
            batch_sizes=dict(sorted(dispatcher.batch_sizes.items())),
            released=self.events.released_by_reason.copy(),
            batch_s=queue.batch_s,
            calibration=self.calibration,
            device=None if self._device is None else self._device.statistics(),
        )

    def __repr__(self) -> str:
        return f"BatchedService({self.source}, queued={self._queue.queued}, running={self._queue.running})"

    def reject(self, now_ns: int, deadline_ns: int) -> NoReturn:
        """Reject a request that came after the stop, or after its deadline."""
        if self._submission.stopping:
            self.outcomes.count_rejected("closed", now_ns)
            raise Closed("the batcher has stopped")
        self.outcomes.deadline_exceeded += 1
        self.events.dropped(now_ns, "deadline_exceeded_on_arrival", 1)
        raise DeadlineExceeded(passed_on_arrival(now_ns, deadline_ns))

    async def _make_ready(self) -> None:
        residence = self._dispatcher.residence
        if self._device is not None:  # which an earlier stop has left
            self._device.enter(asyncio.get_running_loop(), self._dispatcher)
        if residence is not None and residence.load_at_start:  # the backend does not know the model earlier
            async with residence.held():
                pass
        self.check_max_batch_size(self._max_batch_size)
        workers = adapt(self.inner).capabilities().queued_workers or self.max_in_flight
        if self._policy_for is not None and workers != self.max_in_flight and not self._dispatcher.runner.batches:
            self._dispatcher.set_workers(workers)
            self._configured_policy = self._policy_for(workers)
        self._dispatcher.set_policy(self._configured_policy)
        self._prepare_policy()
        await self._calibrate()

    async def _calibrate(self) -> None:
        offered = adapt(self.inner).capabilities()
        example = offered.example()
        if example is None:
            return
        from streaminfer.batching.service_time.calibration import Calibration  # noqa: PLC0415 - who is started loads it
        from streaminfer.batching.service_time.calibration_bench import (  # noqa: PLC0415
            CalibrationBench,
            CalibrationPolicy,
            UncountedBackend,
        )

        model = 0 if offered.fingerprint_changes is None else offered.fingerprint_changes()
        if self._calibrator is None or model != self._calibrated_model:
            self._calibrator, self._calibrated_model = Calibration(self.source), model
        residence = self._dispatcher.residence
        async with nullcontext() if residence is None else residence.held():  # `change` may be called meanwhile
            policy, assembler = CalibrationPolicy(), self._calls.assembler
            service = BatchedService(
                UncountedBackend(example, self.source, offered.returns_new_arrays),
                policy=policy,
                max_batch_size=self._max_batch_size,
                max_queue_size=self._max_batch_size,
                max_in_flight=1,
                slo_s=None,
                stack=self._calls.stack,
                clock=self.clock,
                assembler=assembler,
            )
            learn, limit = self._dispatcher.expectations.offered.observe, self._dispatcher.runner.isolator.set_limit
            validate = self.validate or offered.validate
            bench = CalibrationBench(service, policy, example, assembler, self.slo_ns, learn, limit, validate)
            self.calibration = await self._calibrator.run(bench)

    def _validate_padded(self, validate: Callable[[Request], None], request: Request) -> None:
        """Validate the inputs that the model will get: padded, and with the mask."""
        assembler = self._calls.assembler
        padded = assembler.as_padded(assembler.prepare(request.inputs))
        validate(request.replace(inputs=padded))

    def _is_shed_for(self, ticket: Ticket, stream_id: Hashable, priority: int) -> bool:
        """Return whether a queued request is shed for a new one when the queue is full."""
        if ticket.priority != priority or self._fair_queue is None:
            return ticket.priority > priority
        return self._fair_queue.precedes(stream_id, ticket)

    def make_room(self, stream_id: Hashable, priority: int, deadline_ns: int) -> None:
        """Make a place in a full queue, or raise.

        If a worker is free, its dispatch, due at the end of this loop iteration, happens now. Otherwise the newest of
        the least urgent queued requests is shed if the new request is more urgent, or if its turn comes earlier.
        """
        if self._dispatcher.free:
            try:
                self._dispatcher.runner.context.copy().run(self._dispatcher.dispatch)
            except BaseException:
                self.outcomes.failed += 1  # an interrupt raised by another batch ends this call too
                raise
            if not self._queue.full:
                return
        last = self._queue.least_urgent()
        if last is not None and last.future.done():
            self.outcomes.drop_cancelled(last)
            return
        now_ns = self.clock()
        retry_after_s = self._dispatcher.retry_after_s(now_ns)
        waiting = self._queue.queued + self._queue.held_back
        message = f"{waiting} requests are queued already (max_queue_size={self._queue.max_size})"
        if last is not None and self._is_shed_for(last, stream_id, priority):
            displacer = "a more urgent request" if last.priority > priority else "a stream with a shorter backlog"
            self.outcomes.shed(last, now_ns, f"shed for {displacer}; {message}", retry_after_s)
            return
        self.events.arrived(now_ns, 0 if deadline_ns == NEVER else deadline_ns - now_ns, priority)
        self.outcomes.count_rejected("queue_full", now_ns)
        raise Overloaded(message, retry_after_s=retry_after_s)

    def _prepare_policy(self) -> None:
        """Load the kernels of the policy; blocks if :meth:`load_kernels` has not been awaited."""
        if (prepare := self._dispatcher.expectations.offered.prepare) is not None:
            prepare(wait=True)

    def enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve requests of another event loop, the running one."""
        submission, dispatcher, before = self._submission, self._dispatcher, self._submission.loop
        if before is loop:
            return
        if before is not None and not before.is_closed() and (self._queue.queued or dispatcher.runner.batches):
            raise RuntimeError(
                f"{self!r} serves requests of another event loop; a batcher belongs to one loop at a time"
            )
        self.outcomes.forget(dispatcher.tickets())
        dispatcher.bind_loop(loop)
        submission.loop = loop
        self._prepare_policy()
        plain = type(loop).create_future is asyncio.BaseEventLoop.create_future  # the same future, one call later
        submission.new_future = functools.partial(asyncio.Future, loop=loop) if plain else loop.create_future

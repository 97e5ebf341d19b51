"""Release of batches: consults the policy, counts the free workers and has the one timer of a batcher.

There is no task and no polling. A *dispatch* consults the policy until no worker is free or the policy releases
nothing. The end of a batch frees its worker. The next dispatch follows after the callers have woken, so that their next
requests can join the batch, unless a full batch is queued or few callers return at once. A single worker may wait for
more of them. One loop timer covers the earliest deadline and the instant of the next decision.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from streaminfer._runtime.lifecycle import seconds_left
from streaminfer._runtime.waiters import IdleWaiters
from streaminfer.batching._batch_observers_cy import BatchObservers
from streaminfer.batching._returning_callers_cy import ReturningCallers
from streaminfer.batching._submission_cy import DispatchState
from streaminfer.batching.alarm import Alarm
from streaminfer.batching.assembly.model_calls import ModelCalls
from streaminfer.batching.batch_runner import BatchRunner
from streaminfer.batching.device.claim import Claim
from streaminfer.batching.device.residence import LiveResidence
from streaminfer.batching.expectations import Expectations
from streaminfer.batching.pipeline import Pipeline
from streaminfer.batching.policy import Decision, Policy
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER, Execution, Ticket
from streaminfer.batching.queue.request_outcomes import RequestOutcomes
from streaminfer.capabilities import NextBatch
from streaminfer.errors import BackendError
from streaminfer.protocols import adapt
from streaminfer.request import Request

if TYPE_CHECKING:
    from streaminfer.batching.device.device import Device

__all__ = ["Dispatcher"]


class Dispatcher(DispatchState):
    """Releases the batches of one queue.

    Not thread-safe: it belongs to one event loop at a time.

    Args:
        calls: calls of the backend or function.
        queue: the queued requests.
        outcomes: completes the requests that get no response.
        policy: decides when to release a batch, and which requests are in it.
        max_in_flight: how many batches may run at once.
        device: the device that the model shares with others; ``None``: it shares none.

    Attributes:
        source: name of the model, for messages.
        full_at: number of queued requests that make a full batch.
        returning: callers that send another request at once or soon.
        expectations: predictions of the policy about queue and model, and its learning.
        outlook: returns the policy's knowledge of queue and model, as `Expectations.outlook`.
        expected_ns: returns the expected duration of a batch, as `Expectations.expected_ns`.
        pipeline: the batch that was sent before a worker was free.
        runner: runs the batches.
        batch_sizes: number of batches by size.
        observers: get each batch; ``None``: there are none.
        residence: presence of the model in the device's memory; ``None``: it is always there.
        claim: the device's knowledge of the model, if the device is preemptive.
    """

    # without slots, CPython 3.11 would look each method up again at each call, because the base is compiled
    __slots__ = (
        *("__weakref__", "_inner_admission", "_bucket_models", "_calls", "_device", "_events", "_idle"),
        *("_loop_timer", "_loop", "_outcomes", "_queue", "_recheck_ns", "batch_sizes", "claim"),
        *("expectations", "expected_ns", "full_at", "max_in_flight", "observers", "outlook", "pipeline"),
        *("policy", "residence", "returning", "runner", "source"),
    )

    def __init__(
        self,
        calls: ModelCalls,
        *,
        queue: RequestQueue,
        outcomes: RequestOutcomes,
        policy: Policy,
        max_in_flight: int,
        device: "Device | None" = None,
    ) -> None:
        self._calls = calls
        self._device = device
        self.source = calls.source
        self._queue = queue
        self._events = queue.events
        self._outcomes = outcomes
        self.runner = BatchRunner(calls, queue=queue, outcomes=outcomes, finish=self._finish, settle=self._release_next)
        self.pipeline = Pipeline()
        self.expectations = Expectations(queue, self.pipeline)
        self.outlook, self.expected_ns = self.expectations.outlook, self.expectations.expected_ns
        offered = adapt(calls.inner).capabilities()
        self._inner_admission = offered.admission
        self.max_in_flight = self.free = max_in_flight
        self.full_at = NEVER
        self.returning = ReturningCallers(queue, self.expectations.expected_of_size_ns)
        self.set_policy(policy)
        self._loop: asyncio.AbstractEventLoop  # set by the first request
        self.is_scheduled = False
        self._loop_timer = Alarm(self._on_timer)
        self.timer_ns = self._recheck_ns = NEVER
        self._idle = IdleWaiters()
        self.batch_sizes: dict[int, int] = {}
        self.observers: BatchObservers | None = None
        self.residence: LiveResidence | None = None
        if device is not None and device.memory_bytes is not None and offered.residency is not None:
            self.residence = LiveResidence(offered.residency, self, device, self._now_ns)
        self.claim = Claim(queue, self.expectations.expected_of_size_ns, offered.background_runs)

    def _now_ns(self) -> int:
        return self._calls.clock()  # read at each call, because a stack may replace the clock

    def set_workers(self, workers: int) -> None:
        """Set the number of workers; no batch may be running."""
        self.max_in_flight = self.free = workers

    def set_policy(self, policy: Policy) -> None:
        """Set the policy; read again whether the model has a queue, because it may have started since."""
        # no batch may be queued at the model if outputs must be copied first, because it could overwrite them,
        # nor on a shared device, whose next turn may belong to another model
        keeps_queue = (
            self._device is None
            and not self._calls.copies
            and adapt(self._calls.inner).capabilities().queued_workers == self.max_in_flight
        )
        self.policy = policy
        self.expectations.set_policy(policy, keeps_queue=keeps_queue)
        offered = self.expectations.offered
        self._bucket_models = offered.bucket_models
        self.runner.isolator.on_limit = offered.limit_rows
        self.pipelines = offered.choose_pipelined is not None

    def bind_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Release batches on another event loop; forget those that a closed loop left behind.

        Raises:
            RuntimeError: the device serves batchers of another loop.
            ValueError: its memory is too small for the model, or the model cannot run in the background.
        """
        if self._device is not None:
            self._device.enter(loop, self)
        if self.observers is not None:
            for execution in self.runner.batches:
                self._notify_end(self.observers, execution, self._calls.clock())
        self.runner.bind_loop(loop, self._calls.clock())
        self.free = self.max_in_flight
        self.pipeline.batch = None
        self.is_scheduled = False
        self._loop_timer.bind_loop(loop, self.runner.context)
        self.timer_ns = self._recheck_ns = NEVER
        self._idle.forget()
        self._loop = loop

    def tickets(self) -> list[Ticket]:
        """Return the tickets that are queued, held back, or in running batches."""
        return [*self._queue, *self._queue.held(), *(it for batch in self.runner.batches for it in batch.tickets)]

    def predicted_finish_ns(self, now_ns: int, bucket: int, request: Request, has_slo: bool) -> int | None:
        """Return when the policy expects a request that arrives now to complete; ``None``: unknown."""
        if self._device is not None:
            now_ns = self._device.free_at_ns(now_ns, self)
        running = () if self.free else self.runner.batches
        return self.expectations.predicted_finish_ns(now_ns, bucket, request, has_slo, running)

    def next_batch(self, now_ns: int) -> NextBatch:
        """Return when a worker is expected to be free, and how many more requests its next batch has room for.

        A free worker has room for at least one. A worker counts as free while it waits for its turn on the device.
        """
        self.returning.record_split(now_ns)
        queued, rows = self._queue.queued, self.expectations.rows_of_next_batch(self.full_at)
        at_once = self.max_in_flight if self._device is None else min(self.max_in_flight, self._device.concurrency)
        if self.can_start:
            return NextBatch(now_ns, max(1, rows * self.free - queued), min(self.free, at_once), rows * at_once)
        at_ns = now_ns
        if not self.free:
            early = self.pipeline.batch
            ends_ns = (it.effective_start_ns + self.expected_ns(it) for it in self.runner.batches if it is not early)
            at_ns = max(now_ns, min(ends_ns, default=now_ns))
            if early is not None:
                at_ns += self.expected_ns(early)
        return NextBatch(at_ns, max(0, rows - queued), 1, rows * at_once)

    def dispatch(self, now_ns: int | None = None) -> None:
        """Release batches until no worker is free or the policy wants none."""
        self.is_scheduled = False
        if self._device is not None:
            now_ns = self._calls.clock() if now_ns is None else now_ns
            self._device.join(self, now_ns)
            if self._device.dispatch(now_ns):
                self.schedule()
            self.settle()
            return
        self._recheck_ns = NEVER
        while self.free and self._queue.queued:
            if now_ns is None:
                now_ns = self._calls.clock()
            decision = self.propose(now_ns)
            if decision is None:
                break
            self._release(decision.batch, decision.reason, decision.shorter_too, now_ns)
            if self.runner.is_inline:
                if self._queue.queued:
                    self.schedule()  # the function ran on the loop: let other tasks run before the next batch
                break
            now_ns = None
        if not self.free and self.pipeline.is_open:
            self._send_early(self._calls.clock() if now_ns is None else now_ns)
        self.settle()

    @property
    def can_start(self) -> bool:
        """Whether a worker is free, and the device too."""
        return self.free > 0 and (self._device is None or self._device.is_free_for(self))

    @property
    def is_waiting(self) -> bool:
        """Whether a worker is free and a request is queued."""
        return self.free > 0 and self._queue.queued > 0

    @property
    def runs_inline(self) -> bool:
        """Whether a batch runs within :meth:`grant`."""
        return self.runner.is_inline

    def propose(self, now_ns: int) -> Decision | None:
        """Return the next batch to send, or ``None``; expire and reject requests that cannot be on time."""
        self._recheck_ns = NEVER
        device, queue = self._device, self._queue
        may_wait = self.max_in_flight == 1 and (device is None or not device.others_wait(self))
        if may_wait and self.returning.should_wait(now_ns, self.full_at):
            self._recheck_ns = self.returning.until_ns
            return None
        while queue.queued:
            if queue.next_deadline_ns <= now_ns:
                self.runner.expire(now_ns)
                continue
            workers = 1 if device or self.runner.is_inline else self.returning.sharing_workers(self.free, now_ns)
            decision = self.policy.decide(queue, now_ns, workers)
            if decision.reject:
                self._outcomes.reject(decision.reject, decision.rejection, now_ns)
            if decision.batch:
                return decision
            if not decision.reject:
                self._recheck_ns = NEVER if decision.recheck_ns is None else decision.recheck_ns
                break
        return None

    def grant(self, batch: Sequence[Ticket], decision: Decision, now_ns: int) -> None:
        """Send the batch of the decision, or another one that the device chose."""
        self._release(batch, decision.reason if batch is decision.batch else "planned", decision.shorter_too, now_ns)

    def after_load(self, failure: BackendError | None) -> None:
        """Continue after the model was loaded; after a failed load, the next batch fails with ``failure``."""
        if failure is not None and (decision := self.propose(self._calls.clock())) is not None:
            self._outcomes.fail(self.runner.select(list(decision.batch), decision.shorter_too, None), failure)
        self._release_next()

    def _send_early(self, now_ns: int) -> None:
        """Send the next batch although no worker is free, if the policy wants that now."""
        if self._queue.next_deadline_ns <= now_ns:
            self.runner.expire(now_ns)
        decision = self.pipeline.propose(self._queue, now_ns, self.runner.batches)
        if decision.recheck_ns is not None:
            self._recheck_ns = decision.recheck_ns
        batch = decision.batch
        # a breaker or a limit around the model may reject one more batch
        if not batch or (self._inner_admission is not None and not self._inner_admission(batch[0].request, now_ns).ok):
            return
        if decision.reject:
            self._outcomes.reject(decision.reject, decision.rejection, now_ns)
        self._release(batch, decision.reason, decision.shorter_too, now_ns, is_early=True)

    def _release(
        self, chosen: Sequence[Ticket], reason: str, shorter_too: bool, now_ns: int, *, is_early: bool = False
    ) -> None:
        if self.runner.isolator.memory_limits or not self.expectations.plain or (self._calls.stack and len(chosen) > 1):
            chosen = self.runner.select(list(chosen), shorter_too, self.expectations.offered.mixed)
        has_waited = self.returning.is_waiting
        if has_waited and reason == "idle_worker":
            reason = "returning_callers"
        models = self._bucket_models
        table = None if models is None else models[self.expectations.bucket_of(chosen)].timetable
        execution = self._queue.take(chosen, now_ns, reason, table)
        size = len(execution.tickets)
        if size < len(chosen):
            for ticket in chosen:  # its caller has just cancelled: remove it, or it would be chosen again
                self._outcomes.drop_cancelled(ticket)
            if not size:
                return
        if has_waited:
            self.returning.sent(not self._queue.queued)
        if is_early:
            self.pipeline.take(execution)
        else:
            self.free -= 1
            if self._device is not None:
                self._device.begin(execution, self, now_ns)
            if self.observers is not None:
                self.observers.begin(execution, now_ns)
        self.batch_sizes[size] = self.batch_sizes.get(size, 0) + 1
        self.runner.run(execution)

    def _finish(self, execution: Execution, assembled_ns: int, results: Any, error: BaseException | None) -> None:
        """Free a batch's worker, complete its requests and learn from it."""
        inferred_ns = execution.settled_ns or self._calls.clock()
        in_task = execution.task is not None
        if in_task:
            if execution not in self.runner.batches:
                return  # a closed loop left it behind, and its worker was freed then
            del self.runner.batches[execution]
        self.returning.ended(execution, inferred_ns)
        self._free_worker(execution, inferred_ns, succeeded=error is None and not execution.abandoned)
        some_queued = in_task and self._queue.queued > 0
        # a task begins in the next iteration, so send before delivery; a thread needs the interpreter lock, so after it
        first = last = some_queued and (self._queue.queued >= self.full_at or self.returning.are_few)
        try:
            if first and not self.runner.in_threads:
                last = False
                self.dispatch(inferred_ns)
        finally:
            error = self.runner.deliver(execution, assembled_ns, inferred_ns, results, error)
            learns = error is None or execution.abandoned  # even if all of its callers have left
            if some_queued:  # learn later: the worker with its next batch and the callers come first
                self._loop.call_soon(self._after_waking, execution, inferred_ns, learns, context=self.runner.context)
            elif learns:
                self.expectations.learn_from(execution, inferred_ns)
        if last:
            self.dispatch(inferred_ns)

    def _free_worker(self, execution: Execution, now_ns: int, succeeded: bool) -> None:
        if self._device is not None:
            self._device.end(execution, now_ns, succeeded=succeeded)
        if self.observers is not None:
            self._notify_end(self.observers, execution, now_ns)
        self._events.ended(execution.record, now_ns)
        early = self.pipeline.batch
        if early is None:
            self.free += 1
            return
        self._events.started(early.record, now_ns)
        if self.pipeline.end(execution, now_ns, is_known=succeeded) and self.observers is not None:
            self.observers.begin(early, now_ns)

    def _after_waking(self, execution: Execution, ended_ns: int, learns: bool) -> None:
        self.returning.woken()
        if learns:
            self.expectations.learn_from(execution, ended_ns)

    def _notify_end(self, observers: BatchObservers, execution: Execution, now_ns: int) -> None:
        bucket = self.expectations.bucket_of(execution.tickets)
        observers.end(execution, now_ns, self._calls.assembler, self.expectations.offered.expected_ns, bucket)

    def schedule(self) -> None:
        """Dispatch at the end of this loop iteration if a batch could be released, of any model on the device."""
        if self.is_scheduled:
            return
        if self._device is not None:
            now_ns = self._calls.clock()
            self._recheck_ns = min(self._recheck_ns, self._device.join(self, now_ns))
            if not self._device.may_dispatch(now_ns):
                return
        elif not self._may_release():
            return
        self._loop.call_soon(self.dispatch, context=self.runner.context)
        self.is_scheduled = True  # after the call, which raises if a caller's stack is exhausted

    def _may_release(self) -> bool:
        return self._queue.queued > 0 and (self.free > 0 or self.pipeline.is_open)

    def _release_next(self) -> None:
        self.schedule()
        self.settle()

    def settle(self) -> None:
        """Set the timer if a request is in flight; otherwise end a drain that waits."""
        if self._device is not None:
            self._recheck_ns = min(self._recheck_ns, self._device.join(self, self._calls.clock()))
        if self._queue.queued == 0 and self._queue.running == 0:
            if self.timer_ns < NEVER:
                self._loop_timer.cancel()
                self.timer_ns = NEVER
            if self._idle.future is not None and not self.runner.batches:
                self._idle.wake()
        elif not self.is_scheduled:
            self.set_timer()

    def set_timer(self) -> None:
        """Set the timer for the next deadline or decision, unless it fires by then anyway."""
        wanted_ns = min(self._queue.next_deadline_ns, self._recheck_ns)
        if wanted_ns < self.timer_ns:
            self.timer_ns = NEVER  # stays if setting the timer raises, when a caller's stack is exhausted
            is_exact = self._recheck_ns == wanted_ns and (self._device is not None or self.returning.is_waiting)
            self._loop_timer.set(wanted_ns, self._calls.clock, is_exact=is_exact)
            self.timer_ns = wanted_ns

    def _on_timer(self) -> None:
        # event loops fire early by their resolution: when the timer fires, its instant counts as reached
        now_ns = max(self._calls.clock(), self.timer_ns)
        self.timer_ns = self._recheck_ns = NEVER
        self.runner.expire(now_ns)
        if self._may_release() and not self.is_scheduled:
            self.dispatch(now_ns)
        else:
            self.settle()

    def retry_after_s(self, now_ns: int) -> float | None:
        """Return the seconds until a place is expected, from queue and recent batches; ``None``: no batch has begun."""
        rounds = -(-self._queue.queued // self.full_at)
        return self.expectations.retry_after_s(now_ns, rounds / self.max_in_flight, self.runner.batches)

    async def stop(self, *, drain: bool) -> None:
        """Complete every request, with ``Closed`` unless drained, and wait for the running batches.

        Args:
            drain: wait until no request is queued and no batch runs, within the time for stopping.
        """
        try:
            try:
                if drain:
                    self.schedule()
                    await self._drain()
            finally:
                self.runner.cancel()
                self._outcomes.close(self.tickets())
                self.settle()
            await self._drain()  # wait for the batches; at the time limit, the backend's stop ends them
            if self.residence is not None and self.residence.task is not None:
                await asyncio.wait({self.residence.task}, timeout=seconds_left())
        finally:
            self._loop_timer.close()
            self.timer_ns = NEVER
            if self._device is not None:
                self._device.leave(self)

    async def _drain(self) -> None:
        if self._queue.queued or self._queue.running or self.runner.batches:
            await self._idle.wait(seconds_left())

"""When a batch runs: asks the policy, runs what it chose, hands each caller its row, and keeps the one alarm.

No task of its own, and no polling. A *dispatch* asks the policy until no worker is free or nothing is to be sent; a
*finish* distributes a batch's rows and schedules the next dispatch for the end of the present turn of the loop, so that
callers that were just answered can join it. One alarm, a loop timer, stands for the earliest of all deadlines and of
the policy's wish to look again; with nothing in hand there is none.

To a model that keeps a queue, one batch more than there are workers may be sent *ahead*, when the policy says so. Its
turn comes when another batch ends, whose worker is then not free but goes on with it.
"""

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from numpy import array, ndarray

from streaminfer._internal.own_arrays import own_arrays
from streaminfer.batching.assembly.assembler import AssembledBatch, Assembler
from streaminfer.batching.assembly.model_calls import ModelCalls, Part
from streaminfer.batching.assembly.row_isolation import RowIsolator
from streaminfer.batching.assembly.stacking import SCALARS
from streaminfer.batching.assembly.unbatch import PLAIN, split_rows
from streaminfer.batching.policy import Decision, Policy, adapt_policy
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER, UNKNOWN, Run, Ticket
from streaminfer.errors import BackendError, DeadlineExceeded, for_caller
from streaminfer.protocols import Clock, adapt, name_of
from streaminfer.request import Request

__all__ = ["Dispatcher"]


class Dispatcher:
    """The requests in hand and the batches that run; belongs to one event loop at a time.

    Attributes:
        inner: the backend or function that answers batches.
        clock: returns monotonic nanoseconds.
        max_in_flight: how many batches may run at once.
        journal: what it did lately.
        source: who answers, for messages and `Response.source`.
    """

    # with more than thirty attributes in a dict, CPython 3.11 would look each method up again at each call
    __slots__ = (
        *("__weakref__", "clock", "inner", "journal", "max_in_flight", "source"),
        *("_ask_inward", "_assembler", "_calls", "_copies", "_infer", "_isolates", "_isolator", "_plain", "_stack"),
        *("_absorb", "_choose_ahead", "_learn", "_learn_ahead", "_policy", "_predict", "_tell_mixed", "_turn_ns"),
        *("_ahead", "_free", "_full_at", "_queue", "_runs"),
        *("_alarm", "_alarm_ns", "_context", "_dispatching", "_drains", "_look_again_ns", "_loop"),
        *("_abandoned_batches", "_batch_sizes", "_cancelled", "_expired", "_failed", "_refused", "_sent_ahead"),
    )

    def __init__(
        self,
        inner: Any,
        *,
        policy: Policy,
        max_queue_size: int,
        max_in_flight: int,
        assembler: Assembler,
        stack: bool,
        clock: Clock,
    ) -> None:
        self.inner = inner
        self.clock = clock
        self.max_in_flight = max_in_flight
        self.source = name_of(inner)
        self._calls = ModelCalls(inner, stack=stack, assembler=assembler, source=self.source, clock=self._now)
        self._infer = self._calls.infer
        self._copies = self._calls.copies
        self._stack = stack
        self._set_assembler(assembler)
        offered = adapt(inner).capabilities()
        self._ask_inward = offered.admission

        self._queue = RequestQueue(max_queue_size)
        self._isolator = RowIsolator(
            self._queue, send=self._calls.send, expire=self._expire, fail=self._fail, clock=self._now
        )
        self._set_policy(policy)
        self._isolates = not offered.isolates_rows
        self._full_at = NEVER
        self.journal = self._queue.journal
        self._free = max_in_flight
        self._runs: set[Run] = set()
        self._ahead: Run | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dispatching = False
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_ns = NEVER
        self._look_again_ns = NEVER
        self._drains: list[asyncio.Future[None]] = []
        # batches belong to no caller: they must not see the context variables of the one who happened to start them
        self._context = contextvars.Context()

        self._failed = 0
        self._expired = 0
        self._cancelled = 0
        self._refused = 0
        self._abandoned_batches = 0
        self._sent_ahead = 0
        self._batch_sizes: dict[int, int] = {}

    def _now(self) -> int:
        return self.clock()  # which a stack may replace

    def _set_assembler(self, assembler: Assembler) -> None:
        self._assembler = self._calls.assembler = assembler
        self._plain = assembler.plain

    def _set_policy(self, policy: Policy) -> None:
        """Takes a policy over; asks the model, which may have started since, whether it keeps a queue."""
        self._policy = policy
        offered = adapt_policy(policy)
        self._learn = offered.finished
        self._isolator.tell_limit = offered.limit_rows
        self._predict = offered.predicted_finish_ns
        # behind outputs that have to be copied first no batch may wait at the model: it could overwrite them
        keeps_queue = not self._copies and adapt(self.inner).capabilities().queued_workers == self.max_in_flight
        self._choose_ahead = offered.ahead if keeps_queue else None
        # how a batch went by itself matters to those that are sent ahead, so there the policy hears of each
        self._absorb = offered.absorb if self._choose_ahead is None else None
        self._tell_mixed, self._turn_ns, self._learn_ahead = offered.mixed, offered.turn_ns, offered.finished_ahead

    def _dispatch(self, now_ns: int | None = None) -> None:  # noqa: C901 - calls would cost more than the branches
        self._dispatching = False
        self._look_again_ns = NEVER
        queue = self._queue
        while self._free and queue.waiting:
            if now_ns is None:
                now_ns = self.clock()
            if queue.next_deadline_ns <= now_ns:
                self._expire(now_ns)
                continue
            batch, reason, refuse, look_again_ns, shorter_too, refusal = self._policy.decide(queue, now_ns, self._free)
            if refuse:
                self._refuse(refuse, refusal, now_ns)
            if batch:
                self._launch(batch, reason, shorter_too, now_ns)
                if self._infer is None:
                    if queue.waiting:
                        self._schedule()  # a function ran on the loop: others have a turn before the next batch
                    break
                now_ns = None
            elif not refuse:
                if look_again_ns is not None:
                    self._look_again_ns = look_again_ns
                break
        if self._choose_ahead is not None and not self._free and self._ahead is None:
            self._send_ahead(self._choose_ahead, now_ns)
        self._settle()

    def _send_ahead(self, choose: Callable[..., Decision], now_ns: int | None) -> None:
        """Sends the next batch though no worker is free, if the policy wants that now."""
        if now_ns is None:
            now_ns = self.clock()
        if self._queue.next_deadline_ns <= now_ns:
            self._expire(now_ns)
        if not self._queue.waiting:
            return
        batch, reason, refuse, look_again_ns, shorter_too, refusal = choose(self._queue, now_ns, self._turns())
        if look_again_ns is not None:
            self._look_again_ns = look_again_ns
        if not batch or not self._takes_one_more(batch[0].request, now_ns):
            return
        if refuse:
            self._refuse(refuse, refusal, now_ns)
        self._launch(batch, reason, shorter_too, now_ns, ahead=True)

    def _turns(self) -> list[tuple[int, int]]:
        """The turn of each running batch that has had it, and its size."""
        ahead = self._ahead
        return [(run.turn_ns, len(run.tickets)) for run in self._runs if run is not ahead]

    def _takes_one_more(self, request: Request, now_ns: int) -> bool:
        """Whether what stands before the model, a breaker or a limit, lets one more batch pass."""
        return self._ask_inward is None or self._ask_inward(request, now_ns).ok

    def _launch(
        self, chosen: Sequence[Ticket], reason: str, shorter_too: bool, now_ns: int, *, ahead: bool = False
    ) -> None:
        if self._isolator.memory_limits or not self._plain or (self._stack and len(chosen) > 1):
            chosen = self._select(list(chosen), shorter_too)
        run = self._queue.take(chosen, now_ns, reason)
        tickets = run.tickets
        size = len(tickets)
        if size < len(chosen):
            for ticket in chosen:  # its caller has gone a moment ago: forget it here, or it would be chosen again
                self._drop_cancelled(ticket)
            if not tickets:
                return
        if ahead:
            self._ahead = run
            self._sent_ahead += 1
        else:
            self._free -= 1
        self._batch_sizes[size] = self._batch_sizes.get(size, 0) + 1
        if self._infer is None:
            self._call_function(run)
            return
        deadline_ns = None if run.deadline_ns == NEVER else run.deadline_ns
        batch = self._calls.make_batch(Part(run.inputs, [ticket.request for ticket in tickets], deadline_ns))
        try:
            results = self._infer(batch)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - it failed before it awaited anything
            self._fail_now(run, run.started_ns, error)
        except BaseException as error:
            self._interrupted(run, run.started_ns, error)
            raise
        else:
            self._start_task(run, self._complete(run, results, batch, run.started_ns))

    def _fail_now(self, run: Run, assembled_ns: int, error: BaseException) -> None:
        """For an error that came before anything was awaited."""
        if self._isolates and isinstance(error, Exception) and len(run.tickets) > 1:
            self._start_task(run, self._complete(run, _raise(error), None, assembled_ns))
        else:
            self._finish(run, assembled_ns, None, error)

    def _select(self, chosen: list[Ticket], shorter_too: bool) -> Sequence[Ticket]:
        """Return those that can stand in one batch; the policy hears of it where not all can."""
        chosen = self._isolator.limit(chosen)
        together = self._assembler.select(chosen, shorter_too) if self._stack else chosen
        if len(together) < len(chosen) and self._tell_mixed is not None:
            self._tell_mixed()
        return self._assembler.within_cost(together)

    def _call_function(self, run: Run) -> None:
        assembled_ns = run.started_ns
        try:
            if self._stack:
                rows = run.inputs  # numbers, the cheapest of all rows, need no assembler
                plain = self._plain and type(rows[0]) in SCALARS
                stacked = array(rows) if plain else self._assembler.assemble(rows)
                assembled_ns = self.clock()
                results = self.inner(stacked)
            else:
                results = self.inner(run.inputs.copy())  # which it may write to
            awaitable = type(results) not in PLAIN and inspect.isawaitable(results)
            if self._copies and not awaitable:
                results = own_arrays(results)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - it belongs to this batch's callers
            self._fail_now(run, assembled_ns, error)
        except BaseException as error:
            self._interrupted(run, assembled_ns, error)
            raise
        else:
            if awaitable:
                self._start_task(run, self._complete(run, results, None, assembled_ns))
            else:
                self._finish(run, assembled_ns, results, None)

    def _start_task(self, run: Run, work: Coroutine[Any, Any, None]) -> None:
        self._runs.add(run)
        # never eager: it must not end before it is known
        run.task = asyncio.Task(work, loop=self._loop_now(), context=self._context)

    async def _complete(
        self, run: Run, results: Awaitable[Any], batch: AssembledBatch | None, assembled_ns: int
    ) -> None:
        """Awaits what a backend or an async function makes of a batch; ends in ``_finish`` whatever happens."""
        rows: Any = None
        error: BaseException | None = None
        run.begun = True
        try:
            if run.live:
                rows = await results
                if self._copies:  # before the worker is free for the next batch
                    rows = own_arrays(rows)
            else:  # every caller has gone before the first step
                self._abandoned_batches += 1
                if inspect.iscoroutine(results):
                    results.close()
        except BaseException as raised:
            error = raised
            if not isinstance(raised, Exception):
                raise
            if self._isolates and self._isolator.may_split(run, raised):
                await self._isolator.isolate(run, raised)
        finally:
            if batch is not None and batch.assembled_ns:
                assembled_ns = batch.assembled_ns
            try:
                self._finish(run, assembled_ns, rows, error)
            finally:  # whatever a policy raises, the others are served
                del rows, error  # an error whose traceback holds this frame would keep the batch's inputs alive
                self._schedule()
                self._settle()

    def _interrupted(self, run: Run, assembled_ns: int, error: BaseException) -> None:
        """An interrupt goes on to the loop, but the callers of this batch and of later ones are served first."""
        self._finish(run, assembled_ns, None, error)
        self._schedule()
        self._settle()

    def _finish(self, run: Run, assembled_ns: int, results: Any, error: BaseException | None) -> None:
        """Frees a batch's worker, and hands out what it came to."""
        inferred_ns = self.clock()
        in_task = run.task is not None
        if in_task and not self._is_known(run):
            return
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            self._free += 1
        elif ahead is run:
            run.behind_ns = UNKNOWN  # it ended before its turn
        else:
            self._take_turn(ahead, inferred_ns, run.abandoned or error is not None)
        try:
            # a full batch could not become fuller by what the callers of this one ask next: the worker has it before
            # they wake
            if in_task and self._queue.waiting >= self._full_at:
                self._dispatch(inferred_ns)
        finally:
            self._hand_out(run, assembled_ns, inferred_ns, results, error)
            if ahead is not None:
                self.journal.took_turn(ahead.sequence, inferred_ns)

    def _take_turn(self, run: Run, now_ns: int, before_failed: bool) -> None:
        """The worker of a batch that ended goes on with the one that was sent ahead."""
        if self._turn_ns is None or before_failed:
            # another policy's, or one for which the model is perhaps not free yet
            run.turn_ns, run.behind_ns = now_ns, UNKNOWN
        else:
            run.turn_ns, run.behind_ns = self._turn_ns(run.started_ns, now_ns), now_ns

    def _hand_out(  # noqa: C901 - calls would cost more than the branches
        self, run: Run, assembled_ns: int, inferred_ns: int, results: Any, error: BaseException | None
    ) -> None:
        if self._queue.next_deadline_ns <= inferred_ns:
            self._expire(inferred_ns)  # the loop was held up: an answer past its deadline is none
        size = len(run.tickets)
        rows: Any = ()
        if run.live and error is None:
            kind = type(results)
            if kind is list and len(results) == size:
                rows = results
            elif kind is ndarray and results.ndim and len(results) == size:
                rows = [results[0]] if size == 1 else list(results)
            else:
                padded = 0 if self._plain else self._assembler.padded_size(size)
                rows = split_rows(results, size, self.source, padded)
                if isinstance(rows, BackendError):
                    error = rows
            if error is None:
                if self._isolator.unsplit:
                    self._isolator.succeeded()
                self._queue.deliver(run, rows, assembled_ns, inferred_ns)
        if error is not None or not rows:
            self.journal.finished(run.sequence, inferred_ns, error is None)
        if error is not None:
            self._fail(run.tickets, error)
        # what a batch took is worth knowing even if nobody waited for it any more
        if self._learn is None or (error is not None and not run.abandoned):
            return
        if self._absorb is None or not self._absorb(run, inferred_ns):
            self._learn_from(run, inferred_ns, self._learn)

    def _learn_from(self, run: Run, now_ns: int, learn: Callable[[int, int, int, bool, int], object]) -> None:
        size = len(run.tickets)
        bucket = 0 if self._plain else max(ticket.bucket for ticket in run.tickets)
        behind_ns = run.behind_ns
        if behind_ns > 0 and not run.abandoned and self._learn_ahead is not None:
            early_ns = behind_ns - run.started_ns
            self._learn_ahead(size, now_ns - behind_ns, now_ns, early_ns, bucket)
        elif behind_ns != UNKNOWN:
            learn(size, now_ns - run.turn_ns, now_ns, run.abandoned, bucket)

    def _is_known(self, run: Run) -> bool:
        """Takes a run off the list; false where a loop that has closed left it behind, and its worker is free since."""
        known = run in self._runs
        self._runs.discard(run)
        return known

    def _fail(self, tickets: Sequence[Ticket], error: BaseException) -> None:
        for ticket in tickets:
            future = ticket.future
            if self._queue.end(ticket):
                if future.done():
                    self._cancelled += 1
                else:
                    self._failed += 1
                    future.set_exception(for_caller(error, self.source))

    def _refuse(self, tickets: Sequence[Ticket], refusal: str, now_ns: int) -> None:
        reason, _, told = refusal.partition(":")
        refused = 0
        for ticket in tickets:
            future, left_s = ticket.future, (ticket.deadline_ns - now_ns) / 1e9
            if self._queue.end(ticket):
                refused += 1
                if not future.done():
                    future.set_exception(DeadlineExceeded(f"refused with {left_s:.6f} s left:{told}"))
        self._refused += refused
        self.journal.dropped(now_ns, reason, refused)

    def _drop_cancelled(self, ticket: Ticket) -> None:
        if ticket.future is not None and ticket.future.done() and self._queue.end(ticket):
            self._cancelled += 1

    def _expire(self, now_ns: int) -> None:
        for future, run, timings in self._queue.expire(now_ns):
            if future.done():
                self._cancelled += 1
            else:
                self._expired += 1
                self.journal.dropped(now_ns, "expired_waiting" if run is None else "expired_running", 1)
                where = "waiting" if run is None else "its batch was running"
                waited_s = (now_ns - timings.enqueued_ns) / 1e9
                future.set_exception(
                    DeadlineExceeded(
                        f"the deadline passed {waited_s:.6f} s after {self.source} got the request, {where}"
                    )
                )
            if run is not None:
                self._cancel_if_abandoned(run)

    def _cancel_if_abandoned(self, run: Run) -> None:
        if run.live == 0 and run.begun and not run.abandoned and run in self._runs:
            run.abandoned = True
            self._abandoned_batches += 1
            run.task.cancel()

    def _loop_now(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("the batcher has no event loop yet")
        return self._loop

    def _schedule(self) -> None:
        if self._has_to_decide() and not self._dispatching:
            self._dispatching = True
            self._loop_now().call_soon(self._dispatch, context=self._context)

    def _has_to_decide(self) -> bool:
        return self._queue.waiting > 0 and (self._free > 0 or (self._choose_ahead is not None and self._ahead is None))

    def _settle(self) -> None:
        """Brings the alarm in line with what is in hand, and tells a draining stop when nothing is."""
        if self._queue.waiting == 0 and self._queue.running == 0:
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None
                self._alarm_ns = NEVER
            if self._drains and not self._runs:
                for drain in self._drains:
                    if not drain.done():
                        drain.set_result(None)
        elif not self._dispatching:
            self._arm()

    def _arm(self) -> None:
        wanted_ns = min(self._queue.next_deadline_ns, self._look_again_ns)
        if wanted_ns >= self._alarm_ns:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_ns = wanted_ns
        self._alarm = self._loop_now().call_later(
            max(wanted_ns - self.clock(), 0) / 1e9, self._on_alarm, context=self._context
        )

    def _on_alarm(self) -> None:
        # loops fire early by their resolution: an alarm for an instant means that the instant has come
        now_ns = max(self.clock(), self._alarm_ns)
        self._alarm = None
        self._alarm_ns = self._look_again_ns = NEVER
        self._expire(now_ns)
        if self._has_to_decide() and not self._dispatching:
            self._dispatch(now_ns)
        else:
            self._settle()


async def _raise(error: Exception) -> None:
    raise error

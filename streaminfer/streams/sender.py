"""Sending of the frames of all streams of a session: a few lasting tasks, each with one request at a time.

A task takes the next stream in fair order when it is free, and only then the frame to send, so that what is sent is the
freshest. There are no more tasks than requests that fill the batches that the service runs at once and one more, read
from its capabilities; those without a request wait for one, so that none is made per frame. With the one batch more the
model need not wait for the event loop after each batch; further frames would only grow old in the queue of the service.

Under overload more frames wait than may be sent. If each was sent that can just be answered in time, all would be late
as soon as anything takes longer than expected, and the planner would make small batches to save the oldest ones. So
in a crowd a frame gives way that has less time left than a full batch in front of it, its own and a margin take; of
several workers the next is free sooner.
"""

import asyncio
from asyncio import get_running_loop
from collections.abc import Callable
from typing import Any

from streaminfer._internal.units import NEVER_NS
from streaminfer._request_cy import make_request
from streaminfer.errors import DeadlineExceeded, Overloaded
from streaminfer.protocols import Admission, AdmissionReason, Clock, StreamStates, adapt
from streaminfer.request import Request, Response, time_left_s
from streaminfer.streams._fair_order_cy import FairOrder
from streaminfer.streams._stream_cy import StreamResult
from streaminfer.streams.stream import Stream

__all__ = ["Sender"]

_PASSING = {AdmissionReason.QUEUE_FULL, AdmissionReason.LIMIT, AdmissionReason.RATE_LIMIT}
"""Reasons that end by themselves when other requests complete."""
_MARGIN = 0.5
"""Full batches that a frame of a crowd must have left beyond those that it expects to wait for."""
_SHORTEST_PAUSE_S = 0.001  # where a rejection does not say when to try again


class Sender:
    """Sends the frames of some streams; of one event loop.

    Args:
        service: answers requests.
        clock: returns monotonic nanoseconds.

    Attributes:
        clock: as above.
        states: of the service, where its model is recurrent.
    """

    def __init__(self, service: Any, clock: Clock) -> None:
        offered = adapt(service).capabilities()
        self.clock = clock
        self.states: StreamStates | None = offered.stream_states
        self._admission: Callable[[Request, int], Admission] | None = offered.admission
        self._enforces_deadline = offered.enforces_deadline
        self._call = service.call
        self._service = service
        self._order = FairOrder()
        self._idle: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._most = 1
        self._full_batch_ns: Callable[[], int | None] | None = None
        self._batches_needed = 0.0
        self._in_flight = 0
        self._streams = 0

    def join(self) -> None:
        """Prepare for another stream: the service may offer more or less than before."""
        self._streams += 1
        offered = adapt(self._service).capabilities()
        self._most = NEVER_NS if offered.full_load is None else offered.full_load()
        self._full_batch_ns = offered.full_batch_ns
        self._batches_needed = _MARGIN + 1.0 + 1.0 / (offered.max_in_flight or 1)

    def leave(self, stream: Stream) -> None:
        """Forget a stream; the tasks that are idle end with the last one."""
        self._order.remove(stream.turn)
        self._streams -= 1
        if not self._streams:
            for idle in self._idle:
                idle.cancel()
            self._idle.clear()

    async def join_tasks(self) -> None:
        """Wait for the end of the tasks; no stream is left."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def queue(self, stream: Stream) -> None:
        """Queue a stream whose next frame may be sent."""
        self._order.push(stream.turn)
        self._wake(get_running_loop())

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let one task look at the order."""
        while self._idle:
            idle = self._idle.pop()
            if not idle.done():
                idle.set_result(None)
                return
        if len(self._tasks) < self._most:
            task = loop.create_task(self._run(), name="streaminfer-sender")
            self._tasks.add(task)
            task.add_done_callback(self._on_end)

    def _on_end(self, task: "asyncio.Task[None]") -> None:
        """Give the place of a task that was cancelled with its request to another one."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "a task that sends frames has failed", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)
        if self._order.count:
            self._wake(task.get_loop())

    async def _run(self) -> None:
        order, clock = self._order, self.clock
        loop = get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 - for the type checker
        while True:
            turn = order.pop()
            if turn is None:
                if not self._streams:
                    return  # the last stream left while this one was busy, or before it began
                idle = loop.create_future()
                self._idle.append(idle)
                await idle
                continue
            stream: Stream = turn.owner
            result = stream.next(clock())
            if result is not None:
                stream.sending[task] = result
                try:
                    await self._send(stream, result)
                except asyncio.CancelledError:
                    stream.drop(result, "closed")
                    raise
                except BaseException as error:  # of a user's own admission, say: the stream ends with it
                    stream.drop(result, "closed")
                    stream.crash(error)
                    if not isinstance(error, Exception):
                        raise
                finally:
                    del stream.sending[task]
            if stream.state.can_send():
                order.push(stream.turn)  # for this task, or another one: whose turn it is
            elif task.cancelling():
                return  # the service has swallowed the cancellation; the stream waits for the end of this task
            else:
                stream.end_if_drained()

    async def _send(self, stream: Stream, result: StreamResult) -> None:  # noqa: C901, PLR0912 - a coroutine more costs more
        """Send one frame until it has an outcome."""
        settings = stream.settings
        deadline_ns = stream.state.deadline_ns(result) if settings.max_age_ns else settings.deadline_ns
        request = make_request(
            result._inputs, deadline_ns, settings.priority, stream.stream_id, settings.tenant, None, (), None, True
        )
        if result._discontinuity and self.states is not None:
            self.states.reset_stream(stream.stream_id)
        while True:
            if settings.max_age_ns and stream.state.deadline_ns(result) <= self.clock():  # after a pause
                stream.drop(result, AdmissionReason.DEADLINE_EXCEEDED)
                return
            rejection = self._rejection(request, settings.waits) if settings.asks_first else None
            if rejection is not None:
                if not settings.waits or rejection.reason not in _PASSING:
                    stream.drop(result, rejection.reason)
                    return
                await self._pause(request, rejection.retry_after_s)
                continue
            self._in_flight += 1
            try:
                if self._enforces_deadline or not settings.max_age_ns:
                    response = await self._call(request)
                else:
                    response = await self._call_until_deadline(request)
            except Overloaded as error:
                if settings.waits:
                    retry_after_s = error.retry_after_s
                else:
                    stream.drop(result, self._reason_now(request))
                    return
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                stream.fail(result, error, self.clock())  # the service cancelled the request itself
                return
            except Exception as error:  # noqa: BLE001 - it is the result of this frame
                self._fail(stream, result, error)
                return
            else:
                stream.complete(result, response.outputs, response.degraded, self.clock())
                return
            finally:
                self._in_flight -= 1
            await self._pause(request, retry_after_s)

    def _fail(self, stream: Stream, result: StreamResult, error: Exception) -> None:
        """Give a frame its error, unless it was only too late for its age limit."""
        now_ns = self.clock()
        if isinstance(error, DeadlineExceeded) and stream.settings.max_age_ns:
            is_early = now_ns < stream.state.deadline_ns(result)
            stream.drop(result, AdmissionReason.INFEASIBLE if is_early else AdmissionReason.DEADLINE_EXCEEDED)
            return
        stream.fail(result, error, now_ns)

    def _rejection(self, request: Request, waits: bool) -> Admission | None:
        """Return why a request is not to be sent; ``None``: it is.

        One that only seems infeasible is sent all the same, since the planner rejects what is certain, unless its place
        is worth more to another. A closed service says so itself.
        """
        if self._admission is None:
            return None
        now_ns = self.clock()
        admission = self._admission(request, now_ns)
        if not admission.ok and admission.reason != AdmissionReason.INFEASIBLE:
            return None if admission.reason == AdmissionReason.CLOSED else admission
        if self._order.count + self._in_flight < self._most:
            return None
        takes_ns = None if waits or self._full_batch_ns is None else self._full_batch_ns()
        if takes_ns is None:
            return None if admission.ok else admission
        is_late = request.deadline_ns is not None and request.deadline_ns - now_ns < self._batches_needed * takes_ns
        return Admission(False, AdmissionReason.INFEASIBLE) if is_late else None

    async def _call_until_deadline(self, request: Request) -> Response:
        limit = asyncio.timeout(time_left_s(request.deadline_ns, self.clock()))
        try:
            async with limit:
                response: Response = await self._call(request)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded("the frame was too old before the service had responded") from None
        return response

    async def _pause(self, request: Request, retry_after_s: float | None) -> None:
        """Wait until a place is expected, and no longer than the frame is of use."""
        pause_s = max(retry_after_s or 0.0, _SHORTEST_PAUSE_S)
        left_s = time_left_s(request.deadline_ns, self.clock())
        await asyncio.sleep(pause_s if left_s is None else min(pause_s, max(left_s, 0.0)))

    def _reason_now(self, request: Request) -> str:
        """Return why the service rejected a request a moment ago: what it says now, else that it was shed."""
        if self._admission is None:
            return AdmissionReason.SHED
        return self._admission(request, self.clock()).reason or AdmissionReason.SHED

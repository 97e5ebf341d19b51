"""Sending of the frames of all streams of a session.

The sender sends frames at the end of a turn of the loop, in fair order. When a place is free, it chooses the next
stream, and only then the frame of that stream, so the freshest frame is sent. The capabilities of the service give the
number of places: the requests of all batches that it runs at once, and of one batch more. With that batch the model
need not wait for the event loop; more frames would only grow old in the queue of the service.

If streams may drop frames, even the frames of that batch would grow old there. So the sender keeps the frames until
shortly before it expects a free worker, and newer frames replace them if the policy says so. It sends earlier by the
time that the event loop takes from the end of a batch to the sending of the next frames. The sender wakes the consumers
first, so that the streams that just received results can join the next batch; with fewer streams than rows, two halves
of them would alternate otherwise. It sets no timer for less than five milliseconds: on a busy machine, timers are late.

A router sends a request that would be late at its best route to the next route. So streams with an age limit and a
policy that holds the source get places for the other routes too; their frames do not wait for the best route.

On a shared device, the turns of the models depend on their queues. Streams with a policy that holds the source send all
frames that they may have in flight, or the device would give another model a turn for a backlog of one batch.

A service with ``begin_call`` calls back when a request ends, so a frame costs no task, future or turn of the loop
between sender and stream. For any other service, one task awaits each request.

Which frames give way under overload, and how several free workers share them: see ``turns/_late_frames_cy``.

One source, compiled with the C types of ``_sender_cy.pxd`` or run uncompiled. Not thread-safe: one event loop uses it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any

from streaminfer._internal.units import NEVER_NS
from streaminfer._request_cy import make_request
from streaminfer._runtime.loops import is_virtual
from streaminfer.errors import DeadlineExceeded, Overloaded
from streaminfer.protocols import Admission, AdmissionReason, Clock, adapt
from streaminfer.request import Request, time_left_s
from streaminfer.streams._live_stream_cy import Stream
from streaminfer.streams._outlet_cy import WakeUps
from streaminfer.streams._stream_cy import StreamResult
from streaminfer.streams.awaited_call import await_call
from streaminfer.streams.stream_settings import StreamSettings
from streaminfer.streams.turns._fair_order_cy import FairOrder, Turn
from streaminfer.streams.turns._late_frames_cy import LateFrames

__all__ = ["Sender"]

_TRANSIENT_REASONS = {AdmissionReason.QUEUE_FULL, AdmissionReason.LIMIT, AdmissionReason.RATE_LIMIT}
"""Reasons of rejections that can pass when other requests complete."""
_NEWEST = 0.1
"""Weight of the newest batch in the mean time that the event loop takes to deliver the results of a batch."""
_RESERVE = 2.0
"""Multiple of that mean time by which the next frames are sent before a worker is free."""
_TIMER_NS = 1_000_000
"""Largest delay of a timer of a real event loop: epoll waits for whole milliseconds."""
_LEAST_TIMERS = 5
"""Shortest wait for which a timer is set, as a multiple of the largest timer delay."""
_SHORTEST_TIMER_NS = 1_000
"""Shortest wait, also in virtual time: after one delay, an instant model would cause a timer per nanosecond."""
_SHORTEST_PAUSE_S, _LONGEST_PAUSE = 0.001, 10  # doublings (to a second) if no rejection says when to retry


class Sending:
    """One frame that the service has, or that waits to be sent again after a rejection.

    Args:
        sender: sends the frame.
        stream, result: stream and result of the frame.
        request: request that is sent for the frame.

    Attributes:
        stream, result, request: as above.
        call: cancels the request while the service has it.
        pause: timer until the next attempt to send the frame; ``None``: no pause.
        rejections: number of rejections that did not say when to retry.
        is_yielding: the frame has no place during its pause.
        sent_ns: instant of the last attempt, if the stream has an age limit.
    """

    def __init__(self, sender: Sender, stream: Stream, result: StreamResult, request: Request) -> None:
        self._sender = sender
        self._is_cancelled = False
        self.stream = stream
        self.result = result
        self.request = request
        self.call: Any = None
        self.pause: asyncio.TimerHandle | None = None
        self.rejections = 0
        self.is_yielding = False
        self.sent_ns = 0

    def cancel(self) -> None:
        """Cancel the frame; if the service does not end the request at once, the frame ends later."""
        self._is_cancelled = True
        if self.pause is None:
            self.call.cancel()
            return
        self.pause.cancel()
        self._sender._paused.pop(self, None)
        self.stream.drop(self.result, "closed")
        self._sender.end(self)

    def receive(self, response: Any, error: BaseException | None) -> None:
        """Receive the outcome from the service: a response, or ``None`` and an error.

        An exception from user code ends the stream, and does not reach the batch.
        """
        self.call = None
        sender = self._sender
        sender._in_flight -= 1
        try:
            sender._handle_outcome(self, response, error)
        except BaseException as failure:  # for example from a user's admission check
            sender._crash(self, failure)
            if not isinstance(failure, Exception):
                raise


class Sender:
    """Sends the frames of some streams, on one event loop.

    Args:
        service: receives the requests.
        clock: returns monotonic nanoseconds.
        settings: settings of the streams.

    Attributes:
        clock: as above.
        states: stream states of the service, if its model is recurrent.
        wake_ups: wakes the consumers.
        late_frames: finds frames without time for the next batch.
    """

    def __init__(self, service: Any, clock: Clock, settings: StreamSettings) -> None:
        self.clock: Clock = clock
        self._settings = settings
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()  # requests see no context variables of the source of another stream
        self.wake_ups = WakeUps(self._loop, self._context, self._after_waking)
        self._order = FairOrder()
        self._is_scheduled = False
        self.late_frames = LateFrames(settings)
        self._places_taken = 0  # taken by frames that the service has, and by paused frames that do not give way
        self._in_flight = 0
        self._paused: dict[Sending, None] = {}  # frames with a known time to retry, in order of rejection
        self._freed_places = 0  # places that the service freed in this turn
        self._timer: asyncio.Handle | None = None  # until the next frames are sent
        self._timer_delay_ns = 0 if is_virtual(self._loop) else _TIMER_NS  # largest delay of the timer
        self._starts_ns = 0  # expected start of the next batch
        self._batch_end_ns = 0  # end of a batch; 0: its consumers were woken
        self._lead_ns = 0.0  # mean time from the end of a batch until its consumers were woken

    def join(self) -> None:
        """Prepare for another stream: read the capabilities of the service, which may have changed."""
        service = adapt(self._service)
        capabilities = service.capabilities()
        ends_in_time = capabilities.enforces_deadline
        await_frame = partial(await_call, self._service, ends_in_time=ends_in_time, clock=self.clock)
        self._begin_call = service.begin_call or await_frame
        self.states = capabilities.stream_states
        self._admission = capabilities.admission
        self._full_load, self._spare_load = capabilities.full_load, 0
        self._next_batch = capabilities.next_batch if self._settings.may_drop else None
        if self._settings.waits and self._settings.max_age_ns and capabilities.spare_load is not None:
            spare = capabilities.spare_load()
            self._full_load, self._spare_load = (None, 0) if spare is None else (self._full_load, spare)
            self._next_batch = None
        if self._settings.waits and capabilities.shares_device:
            self._full_load = self._next_batch = None
        self._count_places()
        self._workers = self._max_workers = capabilities.max_in_flight or 1  # assumed free then; in all
        self._free_workers = 1  # as reported; until the next batch is known
        self.late_frames.update(capabilities)

    def _count_places(self) -> None:
        """Read how many requests the service takes at once; its batch size can change while streams are open."""
        self._capacity = NEVER_NS if self._full_load is None else self._full_load() + self._spare_load

    def leave(self, stream: Stream) -> None:
        """Forget a stream."""
        self._order.remove(stream.turn)
        if not self._order.queued:
            self._cancel_timer()

    def queue(self, stream: Stream, continues: bool) -> None:
        """Queue a stream for its next frame; ``continues``: this frame had arrived before it could be sent."""
        self._order.push(stream.turn, continues)
        self._schedule()

    def _handle_outcome(self, sending: Sending, response: Any, error: BaseException | None) -> None:
        stream, result = sending.stream, sending.result
        if error is None:
            stream.turn.denied = 0
            now_ns = self.clock()
            self.late_frames.learn(now_ns - sending.sent_ns, True)
            stream.complete(result, response.outputs, response.degraded, now_ns)
        elif sending._is_cancelled:
            stream.drop(result, "closed")
        elif isinstance(error, Overloaded) and self._settings.waits:
            self._pause(sending, error.retry_after_s, self._current_reason(sending.request))
            return
        elif isinstance(error, Overloaded):
            stream.drop(result, self._current_reason(sending.request))
        elif isinstance(error, (Exception, asyncio.CancelledError)):  # the service itself raised the second
            self._fail(sending, error)
        else:
            self._crash(sending, error)
            return
        self.end(sending)

    def end(self, sending: Sending) -> None:
        """Free the place of a frame that has an outcome, for the next frame."""
        if not sending.is_yielding:
            self._places_taken -= 1
        self._freed_places += 1
        stream = sending.stream
        stream.remove(sending)
        if stream.state.can_send():
            self._order.push(stream.turn, True)
        else:
            stream.end_if_drained()
        if not self._is_scheduled:
            self._batch_end_ns = self.clock()
            self._cancel_timer()
            if self._order.queued or self._paused:
                self._schedule()

    def _schedule(self) -> None:
        """Send at the end of this turn of the loop, so that the frames of one turn are sent in fair order."""
        if not self._is_scheduled and self._timer is None and self._places_taken < self._capacity:
            self._is_scheduled = True
            self._loop.call_soon(self._send_waiting, context=self._context)

    def _available_places(self, now_ns: int) -> int:
        """Return how many frames may be sent now; if none because no worker is free, set the timer."""
        places = self._capacity - self._places_taken
        if self._next_batch is None or places <= 0:
            return places
        batch = self._next_batch(now_ns)
        self._starts_ns, self._free_workers = batch.at_ns, batch.workers
        # without frames in flight, no end of one would bring those for the next worker
        self._workers = batch.workers if self._in_flight else self._max_workers
        if not self._in_flight and (batch.at_ns > now_ns or not batch.room):
            return places  # the workers have requests of other callers: the frames queue behind these
        wait_ns = batch.at_ns - now_ns - _RESERVE * self._lead_ns - self._timer_delay_ns
        if wait_ns <= max(_LEAST_TIMERS * self._timer_delay_ns, _SHORTEST_TIMER_NS):
            # with fewer frames in flight than run at once, others fill the next batch, and frames queue behind them too
            return places if not batch.room and self._in_flight < batch.full_load else min(batch.room, places)
        self._timer = self._loop.call_later(wait_ns / 1e9, self._on_timer, context=self._context)
        return 0

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _after_waking(self) -> None:
        """Send at once the frames for which the woken consumers made room."""
        self._send_waiting()
        if self._batch_end_ns:
            self._lead_ns += _NEWEST * (self.clock() - self._batch_end_ns - self._lead_ns)
            self._batch_end_ns = 0

    def _on_timer(self) -> None:
        self._timer = None
        self._is_scheduled = True
        self._send_waiting()

    def _send_waiting(self) -> None:
        if not self._is_scheduled:
            return  # already done after the consumers were woken
        self._is_scheduled = False
        self._count_places()
        now_ns = self.clock()
        if self._paused and self._admission is not None:
            self._retry(self._admission, now_ns)
        self._freed_places = 0
        room, queued, lead_ns = self._available_places(now_ns), self._order.queued, int(_RESERVE * self._lead_ns)
        room = self.late_frames.estimate(queued, room, now_ns, self._starts_ns, lead_ns, self._workers)
        share = self.late_frames.share_of_worker(queued, room, self._free_workers)
        limit = self._places_taken + share
        late: list[Turn] = []
        while self._places_taken < limit:
            turn = self._order.pop()
            if turn is None:
                if not late:
                    break
                turn = late.pop(0)  # the other streams left a place
            elif self.late_frames.is_late(turn.owner):
                late.append(turn)
                continue
            self._send_next(turn.owner)
        for turn in late:
            self._order.push(turn, True)
        self.late_frames.release_sources(self._order.queued, now_ns)
        if share < room and self._order.queued and not self._is_scheduled:  # for the next worker, after this batch
            self._timer = self._loop.call_soon(self._on_timer, context=self._context)

    def _send_next(self, stream: Stream) -> None:
        """Send the next frame of a stream, if it has one that is young enough."""
        result = stream.next(self.clock())
        if result is None:
            stream.turn.denied += 1
            stream.end_if_drained()
            return
        settings = self._settings
        deadline_ns = stream.state.deadline_ns(result) if settings.max_age_ns else settings.deadline_ns
        request = make_request(
            result._inputs, deadline_ns, settings.priority, stream.stream_id, settings.tenant, None, (), None, True
        )
        sending = Sending(self, stream, result, request)
        stream.sending[sending] = None
        self._places_taken += 1
        self._try(sending, result._discontinuity)
        if stream.state.can_send():  # another one, at the same time
            self._order.push(stream.turn, True)

    def _try(self, sending: Sending, resets: bool) -> None:
        """Send a frame; an error ends its stream."""
        try:
            if resets and self.states is not None:
                self.states.reset_stream(sending.stream.stream_id)
            self._send(sending)
        except BaseException as error:  # for example from a user's admission check
            self._crash(sending, error)
            if not isinstance(error, Exception):
                raise

    def _send(self, sending: Sending) -> None:
        """Give a frame to the service, or drop it, or try again later."""
        stream, result, request = sending.stream, sending.result, sending.request
        settings = self._settings
        if settings.max_age_ns:
            sending.sent_ns = self.clock()
            if stream.state.deadline_ns(result) <= sending.sent_ns:  # after a pause
                stream.drop(result, AdmissionReason.DEADLINE_EXCEEDED)
                self.end(sending)
                return
        rejection = self._rejection(sending) if settings.may_drop else None
        if rejection is not None:
            if not settings.waits or rejection.reason not in _TRANSIENT_REASONS:
                stream.turn.denied += 1
                stream.drop(result, rejection.reason)
                self.end(sending)
            else:
                self._pause(sending, rejection.retry_after_s, rejection.reason)
            return
        self._in_flight += 1
        self._order.charge(stream.turn)
        try:
            call = self._begin_call(request, sending.receive)
        except Exception as error:  # noqa: BLE001 - it is the outcome of this frame
            sending.receive(None, error)
        else:
            sending.call = call

    def _pause(self, sending: Sending, retry_after_s: float | None, reason: str | None) -> None:
        """Send a frame again when a place is expected, at the latest at its deadline.

        A rejection without ``retry_after_s`` may be permanent, as of a stream beyond the maximum number of states, so
        each wait is twice the previous one. Such a frame, or one above a rate limit, frees its place for other streams.
        """
        pause_s = max(retry_after_s or 0.0, _SHORTEST_PAUSE_S)
        if not retry_after_s:
            pause_s *= 2.0 ** min(sending.rejections, _LONGEST_PAUSE)
            sending.rejections += 1
        if retry_after_s and reason != AdmissionReason.RATE_LIMIT:
            self._paused[sending] = None
        else:
            sending.is_yielding = True
            self._places_taken -= 1
            if self._order.queued:
                self._schedule()
        left_s = time_left_s(sending.request.deadline_ns, self.clock())
        pause_s = pause_s if left_s is None else min(pause_s, max(left_s, 0.0))
        sending.pause = self._loop.call_later(pause_s, self._send_again, sending, context=self._context)

    def _retry(self, admission: Callable[[Request, int], Admission], now_ns: int) -> None:
        """Send paused frames into the freed places before new frames, which would always be first otherwise."""
        for sending in list(self._paused)[: self._freed_places]:
            with suppress(Exception):  # a failing user's admission check ends the stream when the frame is sent again
                if sending.pause and sending in self._paused and admission(sending.request, now_ns).ok:
                    sending.pause.cancel()
                    self._send_again(sending)

    def _send_again(self, sending: Sending) -> None:
        sending.pause = None
        self._paused.pop(sending, None)
        if sending.is_yielding:
            sending.is_yielding = False
            self._places_taken += 1
        self._try(sending, False)

    def _crash(self, sending: Sending, error: BaseException) -> None:
        """End a stream with an error that belongs to none of its frames."""
        stream = sending.stream
        stream.drop(sending.result, "closed")
        if sending in stream.sending:  # else it has an outcome already
            self.end(sending)
        stream.crash(error)

    def _fail(self, sending: Sending, error: BaseException) -> None:
        """Deliver the error of a frame, or drop the frame if it only missed its age limit."""
        now_ns, stream, result = self.clock(), sending.stream, sending.result
        if isinstance(error, DeadlineExceeded) and self._settings.max_age_ns:
            stream.turn.denied += 1
            self.late_frames.learn(now_ns - sending.sent_ns, False)
            is_early = now_ns < stream.state.deadline_ns(result)
            stream.drop(result, AdmissionReason.INFEASIBLE if is_early else AdmissionReason.DEADLINE_EXCEEDED)
            return
        stream.fail(result, error, now_ns)

    def _rejection(self, sending: Sending) -> Admission | None:
        """Return the admission that rejects a request; ``None``: send the request.

        A request that seems infeasible is still sent, because the planner rejects it if that is certain. It is not sent
        if other frames need its place, or a younger frame of its stream waits. A closed service raises its own error.
        """
        if self._admission is None:
            return None
        now_ns = self.clock()
        admission = self._admission(sending.request, now_ns)
        if admission.ok or admission.reason == AdmissionReason.CLOSED:
            return None
        others = len(self._order.queued) + self._in_flight
        if admission.reason != AdmissionReason.INFEASIBLE or others >= self._capacity or sending.stream.state.waiting:
            return admission
        return admission if self.late_frames.is_denied(sending.stream, sending.result, now_ns) else None

    def _current_reason(self, request: Request) -> str:
        """Return the reason of a rejection a moment ago: the one that the service gives now, else ``SHED``."""
        reason = None if self._admission is None else self._admission(request, self.clock()).reason
        return reason or AdmissionReason.SHED

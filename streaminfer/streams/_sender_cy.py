"""Sending of the frames of all streams of a session.

Frames are sent at the end of a turn of the loop, in fair order: the next stream is chosen when there is a place, and
only then its frame, so that what is sent is the freshest. There are no more places than requests that fill the batches
that the service runs at once and one more, read from its capabilities. With the one batch more the model need not wait
for the event loop after each batch; further frames would only grow old in the queue of the service.

Of streams that may drop frames even these would grow old there. So the frames keep waiting until a worker is expected
to be free, and newer ones take their place where the policy says so: before by as long as the event loop takes from the
end of a batch to the sending of the next frames, so that the model need not wait for it. Consumers are woken first, so
that the streams that have just been answered are in the next batch too: with fewer streams than rows, two halves would
take turns otherwise. Frames wait for no timer that would be due within five milliseconds: on a busy machine it is late,
and behind short batches the model would wait for it more than frames gain.

A router sends what would be late at its best route to the next one. So streams that wait, and have an age limit, have
places for those too, and their frames do not wait for the best one. Those of others would only grow old in its queue.

On a device that models share, turns depend on what is queued. So streams that wait send all that they may have in
flight there: another model would be given a long turn otherwise, as if their backlog was only one batch.

No task awaits a request whose end the service tells (``begin_call``): its frame costs no task, future or turn of the
loop between its sender and its stream. The requests of other services are awaited in a task each.

Under overload frames without time for the next batch give way: see ``turns/_late_frames_cy``. So does each frame that
the service expects to be too late, if a younger one of its stream waits.

One source, compiled with the C types of ``_sender_cy.pxd`` or run uncompiled. Not thread-safe: of one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from streaminfer._internal.units import NEVER_NS
from streaminfer._request_cy import make_request
from streaminfer._runtime.loops import is_virtual
from streaminfer.errors import DeadlineExceeded, Overloaded
from streaminfer.protocols import Admission, AdmissionReason, Clock, NextBatch, StreamStates, adapt
from streaminfer.request import Request, time_left_s
from streaminfer.streams._live_stream_cy import Stream
from streaminfer.streams._outlet_cy import WakeUps
from streaminfer.streams._stream_cy import StreamResult
from streaminfer.streams.awaited_call import AwaitedCall
from streaminfer.streams.stream_settings import StreamSettings
from streaminfer.streams.turns._fair_order_cy import FairOrder, Turn
from streaminfer.streams.turns._late_frames_cy import LateFrames

__all__ = ["Sender"]

_PASSING = {AdmissionReason.QUEUE_FULL, AdmissionReason.LIMIT, AdmissionReason.RATE_LIMIT}
"""Reasons that end by themselves when other requests complete."""
_NEWEST = 0.1
"""Weight of a batch in the mean time that the event loop takes for its results."""
_RESERVE = 2.0
"""How many times as early as that the next frames are sent."""
_TIMER_NS = 1_000_000
"""By which timers of a real event loop are late at most: epoll waits for whole milliseconds."""
_LEAST_TIMERS = 5
"""Times as long that frames wait at least, or not at all."""
_SHORTEST_TIMER_NS = 1_000
"""In virtual time too: behind an instant model that is late once, a timer would be due at each nanosecond."""
_SHORTEST_PAUSE_S, _LONGEST_PAUSE = 0.001, 10  # doublings where rejections do not say when to try again: a second


class Sending:
    """One frame that is with the service, or waits for it to accept it.

    Args:
        sender: that sends it.
        stream, result: of the frame.
        request: that is sent for it.

    Attributes:
        stream, result, request: as above.
        call: what can be cancelled, while the service has it.
        pause: until the next attempt to send it.
        rejections: that did not say when to try again.
        gives_way: it has no place in its pause.
        sent_ns: the instant of the last attempt, of a stream with an age limit.
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
        self.gives_way = False
        self.sent_ns = 0

    def cancel(self) -> None:
        """End it; what the service does not let go at once ends later."""
        self._is_cancelled = True
        if self.pause is None:
            self.call.cancel()
            return
        self.pause.cancel()
        self._sender._paused.pop(self, None)
        self.stream.drop(self.result, "closed")
        self._sender.end(self)

    def receive(self, response: Any, error: BaseException | None) -> None:
        """Take what the service has made of it: a response, or ``None`` and an error."""
        self.call = None
        self._sender.receive(self, response, error)


class Sender:
    """Sends the frames of some streams; of one event loop.

    Args:
        service: answers requests.
        clock: returns monotonic nanoseconds.
        settings: of the streams.

    Attributes:
        clock: as above.
        states: of the service, where its model is recurrent.
        wake_ups: of the consumers.
        late_frames: which have no time for the next batch.
    """

    def __init__(self, service: Any, clock: Clock, settings: StreamSettings) -> None:
        self.clock: Clock = clock
        self._settings = settings
        self.states: StreamStates | None = None
        self._admission: Callable[[Request, int], Admission] | None = None
        self._enforces_deadline = False
        self._begin_call: Callable[..., Any] | None = None
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()  # what is sent for one stream sees no variables of another one's source
        self.wake_ups = WakeUps(self._loop, self._context, self._after_waking)
        self._order = FairOrder()
        self._is_scheduled = False
        self._most = 1
        self._full_load: Callable[[], int] | None = None
        self._spare = 0
        self._next_batch: Callable[[int], NextBatch] | None = None
        self.late_frames = LateFrames(settings)
        self._places = 0  # taken: by frames that the service has, and by those that wait for it to accept them
        self._in_flight = 0
        self._paused: dict[Sending, None] = {}  # rejected for want of a place that is expected, in this order
        self._freed = 0  # places of the service, in this turn
        self._timer: asyncio.TimerHandle | None = None  # until frames are to be sent
        self._latest_ns = 0 if is_virtual(self._loop) else _TIMER_NS  # by which it is late at most
        self._starts_ns = 0  # the next batch, as far as is known
        self._workers = 1  # that are free then
        self._since_ns = 0  # the end of a batch; 0: its consumers have been woken
        self._lead_ns = 0.0  # from the end of a batch until they have been, a mean over recent batches

    def join(self) -> None:
        """Prepare for another stream: the service may offer more or less than before."""
        service = adapt(self._service)
        offered = service.capabilities()
        self._begin_call = service.begin_call
        self.states = offered.stream_states
        self._admission = offered.admission
        self._enforces_deadline = offered.enforces_deadline
        self._full_load, self._spare = offered.full_load, 0
        self._next_batch = offered.next_batch if self._settings.may_drop else None
        expected_ns = offered.expected_batch_ns
        if self._settings.waits and self._settings.max_age_ns and offered.spare_load is not None:
            spare = offered.spare_load()
            self._full_load, self._spare = (None, 0) if spare is None else (self._full_load, spare)
            self._next_batch = expected_ns = None
        if self._settings.waits and offered.shares_device:
            self._full_load = self._next_batch = None
        self._count_places()
        self._workers = offered.max_in_flight or 1
        self.late_frames.update(offered.slow_batch_ns, expected_ns, self._workers)

    def _count_places(self) -> None:
        """Read how much the service takes at once: its batcher can be told another size while streams are open."""
        self._most = NEVER_NS if self._full_load is None else self._full_load() + self._spare

    def leave(self, stream: Stream) -> None:
        """Forget a stream."""
        self._order.remove(stream.turn)
        if not self._order.count:
            self._cancel_timer()

    def queue(self, stream: Stream, continues: bool) -> None:
        """Queue a stream whose next frame may be sent; it ``continues`` where it had this frame before it could be."""
        self._order.push(stream.turn, continues)
        self._schedule()

    def receive(self, sending: Sending, response: Any, error: BaseException | None) -> None:
        """Take what the service has made of a frame; raises nothing of a user's into the batch that it was part of."""
        self._in_flight -= 1
        try:
            self._take(sending, response, error)
        except BaseException as failure:  # of a user's own admission, say
            self._crash(sending, failure)
            if not isinstance(failure, Exception):
                raise

    def _take(self, sending: Sending, response: Any, error: BaseException | None) -> None:
        stream, result = sending.stream, sending.result
        if error is None:
            stream.turn.denied = 0
            now_ns = self.clock()
            self.late_frames.learn(now_ns - sending.sent_ns, True)
            stream.complete(result, response.outputs, response.degraded, now_ns)
        elif sending._is_cancelled:
            stream.drop(result, "closed")
        elif isinstance(error, Overloaded) and stream.settings.waits:
            self._pause(sending, error.retry_after_s)
            return
        elif isinstance(error, Overloaded):
            stream.drop(result, self._reason_now(sending.request))
        elif isinstance(error, (Exception, asyncio.CancelledError)):  # the second: of the service itself
            self._fail(sending, error)
        else:
            self._crash(sending, error)
            return
        self.end(sending)

    def end(self, sending: Sending) -> None:
        """Give the place of a frame that has an outcome to the next one."""
        if not sending.gives_way:
            self._places -= 1
        self._freed += 1
        stream = sending.stream
        stream.remove(sending)
        if stream.state.can_send():
            self._order.push(stream.turn, True)
        else:
            stream.end_if_drained()
        if not self._is_scheduled:
            self._since_ns = self.clock()
            self._cancel_timer()
            if self._order.count or self._paused:
                self._schedule()

    def _schedule(self) -> None:
        """Send at the end of this turn of the loop, so that what comes in one turn is sent in fair order."""
        if not self._is_scheduled and self._timer is None and self._places < self._most:
            self._is_scheduled = True
            self._loop.call_soon(self._send_waiting, context=self._context)

    def _room(self, now_ns: int) -> int:
        """Return how many frames may be sent now; if none because no worker is free, set the timer."""
        places = self._most - self._places
        if self._next_batch is None or places <= 0:
            return places
        batch = self._next_batch(now_ns)
        self._starts_ns, self._workers = batch.at_ns, batch.workers
        if not self._in_flight and (batch.at_ns > now_ns or not batch.room):
            return places  # the workers have requests of others: these frames take their turn in the queue
        wait_ns = batch.at_ns - now_ns - _RESERVE * self._lead_ns - self._latest_ns
        if wait_ns <= max(_LEAST_TIMERS * self._latest_ns, _SHORTEST_TIMER_NS):
            return min(batch.room, places)
        self._timer = self._loop.call_later(wait_ns / 1e9, self._on_timer, context=self._context)
        return 0

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _after_waking(self) -> None:
        """Send at once what the consumers that have been woken made room for."""
        self._send_waiting()
        if self._since_ns:
            self._lead_ns += _NEWEST * (self.clock() - self._since_ns - self._lead_ns)
            self._since_ns = 0

    def _on_timer(self) -> None:
        self._timer = None
        self._is_scheduled = True
        self._send_waiting()

    def _send_waiting(self) -> None:
        if not self._is_scheduled:
            return  # it was done when the consumers had been woken
        self._is_scheduled = False
        self._count_places()
        now_ns = self.clock()
        if self._paused and self._admission is not None:
            self._retry(self._admission, now_ns)
        self._freed = 0
        room = self._room(now_ns)
        room = self.late_frames.look(self._order.queued, room, now_ns, self._starts_ns, self._workers)
        most = self._places + room
        late: list[Turn] = []
        while self._places < most:
            turn = self._order.pop()
            if turn is None:
                if not late:
                    break
                turn = late.pop(0)  # the others have left a place
            elif self.late_frames.is_late(turn.owner):
                late.append(turn)
                continue
            self._send_next(turn.owner)
        for turn in late:
            self._order.push(turn, True)
        self.late_frames.read_on(self._order.queued, now_ns)

    def _send_next(self, stream: Stream) -> None:
        """Send the next frame of a stream, if it has one that is young enough."""
        result = stream.next(self.clock())
        if result is None:
            stream.turn.denied += 1
            stream.end_if_drained()
            return
        settings = stream.settings
        deadline_ns = stream.state.deadline_ns(result) if settings.max_age_ns else settings.deadline_ns
        request = make_request(
            result._inputs, deadline_ns, settings.priority, stream.stream_id, settings.tenant, None, (), None, True
        )
        sending = Sending(self, stream, result, request)
        stream.sending[sending] = None
        self._places += 1
        self._try(sending, result._discontinuity)
        if stream.state.can_send():  # another one, at the same time
            self._order.push(stream.turn, True)

    def _try(self, sending: Sending, resets: bool) -> None:
        """Send a frame, of which an error ends its stream."""
        try:
            if resets and self.states is not None:
                self.states.reset_stream(sending.stream.stream_id)
            self._send(sending)
        except BaseException as error:  # of a user's own admission, say
            self._crash(sending, error)
            if not isinstance(error, Exception):
                raise

    def _send(self, sending: Sending) -> None:
        """Give a frame to the service, or drop it, or try again later."""
        stream, result, request = sending.stream, sending.result, sending.request
        settings = stream.settings
        if settings.max_age_ns:
            sending.sent_ns = self.clock()
            if stream.state.deadline_ns(result) <= sending.sent_ns:  # after a pause
                stream.drop(result, AdmissionReason.DEADLINE_EXCEEDED)
                self.end(sending)
                return
        rejection = self._rejection(sending) if settings.may_drop else None
        if rejection is not None:
            if not settings.waits or rejection.reason not in _PASSING:
                stream.turn.denied += 1
                stream.drop(result, rejection.reason)
                self.end(sending)
            else:
                self._pause(sending, rejection.retry_after_s)
            return
        self._in_flight += 1
        self._order.charge(stream.turn)
        if self._begin_call is None:
            limit = None if self._enforces_deadline or not settings.max_age_ns else request.deadline_ns
            sending.call = AwaitedCall(self._service, request, sending.receive, limit, self.clock)
            return
        try:
            call = self._begin_call(request, sending.receive)
        except Exception as error:  # noqa: BLE001 - it is the outcome of this frame
            sending.receive(None, error)
        else:
            sending.call = call

    def _pause(self, sending: Sending, retry_after_s: float | None) -> None:
        """Try again when a place is expected, and no later than the frame is of use.

        Where that is not known it may be never, as for a stream beyond the most that a model keeps states of: the frame
        leaves its place to others, which may end, and waits twice as long each time.
        """
        pause_s = max(retry_after_s or 0.0, _SHORTEST_PAUSE_S)
        if retry_after_s:
            self._paused[sending] = None
        else:
            pause_s *= 2.0 ** min(sending.rejections, _LONGEST_PAUSE)
            sending.rejections += 1
            sending.gives_way = True
            self._places -= 1
            if self._order.count:
                self._schedule()
        left_s = time_left_s(sending.request.deadline_ns, self.clock())
        pause_s = pause_s if left_s is None else min(pause_s, max(left_s, 0.0))
        sending.pause = self._loop.call_later(pause_s, self._send_again, sending, context=self._context)

    def _retry(self, admission: Callable[[Request, int], Admission], now_ns: int) -> None:
        """Give what has become free to those that were rejected before others come to it, who would always be first."""
        for sending in list(self._paused)[: self._freed]:
            with suppress(Exception):  # a user's own admission: it ends the stream when the frame is sent again
                if sending.pause and sending in self._paused and admission(sending.request, now_ns).ok:
                    sending.pause.cancel()
                    self._send_again(sending)

    def _send_again(self, sending: Sending) -> None:
        sending.pause = None
        self._paused.pop(sending, None)
        if sending.gives_way:
            sending.gives_way = False
            self._places += 1
        self._try(sending, False)

    def _crash(self, sending: Sending, error: BaseException) -> None:
        """End a stream with an error that is none of its frames'."""
        stream = sending.stream
        stream.drop(sending.result, "closed")
        if sending in stream.sending:  # else it has an outcome already
            self.end(sending)
        stream.crash(error)

    def _fail(self, sending: Sending, error: BaseException) -> None:
        """Give a frame its error, unless it was only too late for its age limit."""
        now_ns, stream, result = self.clock(), sending.stream, sending.result
        if isinstance(error, DeadlineExceeded) and stream.settings.max_age_ns:
            stream.turn.denied += 1
            self.late_frames.learn(now_ns - sending.sent_ns, False)
            is_early = now_ns < stream.state.deadline_ns(result)
            stream.drop(result, AdmissionReason.INFEASIBLE if is_early else AdmissionReason.DEADLINE_EXCEEDED)
            return
        stream.fail(result, error, now_ns)

    def _rejection(self, sending: Sending) -> Admission | None:
        """Return why a request is not to be sent; ``None``: it is.

        One that only seems infeasible is sent all the same, since the planner rejects what is certain, unless its place
        is worth more to another, or to the next frame of its stream. A closed service says so itself.
        """
        if self._admission is None:
            return None
        now_ns = self.clock()
        admission = self._admission(sending.request, now_ns)
        if admission.ok or admission.reason == AdmissionReason.CLOSED:
            return None
        others = self._order.count + self._in_flight
        if admission.reason != AdmissionReason.INFEASIBLE or others >= self._most or sending.stream.state.waiting:
            return admission
        return admission if self.late_frames.is_denied(sending.stream, sending.result, now_ns) else None

    def _reason_now(self, request: Request) -> str:
        """Return why the service rejected a request a moment ago: what it says now, else that it was shed."""
        if self._admission is None:
            return AdmissionReason.SHED
        return self._admission(request, self.clock()).reason or AdmissionReason.SHED

"""One stream of a session: its source, the task that reads the source, and its frames.

One source, compiled with the C types of ``_live_stream_cy.pxd`` or run uncompiled.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Hashable, Iterable
from typing import TYPE_CHECKING, Any, SupportsIndex

from streaminfer._internal.validation import expected
from streaminfer._runtime.closing import AsyncClosable, close_dropped
from streaminfer.errors import Closed
from streaminfer.streams._outlet_cy import Outlet
from streaminfer.streams._stream_cy import StreamResult, StreamState, make_source_failure
from streaminfer.streams.frame import Frame
from streaminfer.streams.statistics import StreamStatistics
from streaminfer.streams.turns._fair_order_cy import Turn

if TYPE_CHECKING:
    from streaminfer.streams._sender_cy import Sender, Sending
    from streaminfer.streams.stream_settings import StreamSettings
    from streaminfer.streams.totals import SessionTotals

__all__ = ["Stream"]


class Stream:
    """Stream that reads one source, sends its frames and delivers their results.

    Args:
        stream_id: id of the stream, which its requests carry.
        source: yields frames or bare inputs.
        settings: settings of the streams of the session.
        weight: share of the turns.
        sender: sends its frames.
        outlet: delivers its results.
        totals: totals of the session; they get the counters of this stream when it has ended and delivered its results.

    Attributes:
        state: state of its frames.
        turn: its place in the order of the sender.
        sending: frames that the service has, or that wait to be sent again.
        is_announced: the stream is queued in the outlet.
    """

    def __init__(
        self,
        stream_id: Hashable,
        source: AsyncIterable[Any] | Iterable[Any],
        settings: StreamSettings,
        weight: float,
        sender: Sender,
        outlet: Outlet,
        totals: SessionTotals,
    ) -> None:
        self.stream_id = stream_id
        one_by_one = settings.resets_after_gap or (settings.waits and sender.states is not None)
        self.state = StreamState(stream_id, settings, one_by_one, totals.ages)
        self.turn = Turn(self, weight, settings.priority)
        self.sending: dict[Sending, None] = {}  # in order, so that a run in virtual time repeats
        self.is_announced = False
        self._source: Any = source  # None: its task has begun
        self._sender = sender
        self._outlet = outlet
        self._totals = totals
        self._error: BaseException | None = None  # of the source, not yet delivered
        self._is_rejected = False  # the service has stopped: the stream ends after the frames that still run
        self._is_stopped = False
        self._is_closing = False  # the source is being closed, which must not be interrupted
        self._has_ended = False
        self._room_waiter: asyncio.Future[None] | None = None  # the task waits for room for another frame
        self._drained: asyncio.Future[None] | None = None  # the task waits until no frame waits or runs
        self._requests_ended: asyncio.Future[None] | None = None  # the task waits until cancelled requests have ended
        outlet.streams[self] = None
        self._task = asyncio.get_running_loop().create_task(self._run(), name="streaminfer-stream")
        self._task.add_done_callback(self._end)  # also runs if the task is cancelled before its first step

    # -- for the sender -----------------------------------------------------------------------------------------

    def next(self, now_ns: int) -> StreamResult | None:
        """Return the next frame to send; ``None``: no frame that waits is young enough."""
        result = self.state.next(now_ns)
        self.release_source(now_ns)
        return result

    def drop_late(self, now_ns: int, ends_ns: int) -> None:
        """Drop waiting frames that are too old at ``ends_ns``, if a younger one waits."""
        self.state.drop_late(now_ns, ends_ns)
        self.release_source(now_ns)

    def release_source(self, now_ns: int) -> None:
        """Release a held source if there is room, or if all waiting frames are too old for the batch after the next."""
        room = self._room_waiter
        if room is not None and not room.done() and (self.state.has_room() or self._lags(now_ns)):
            room.set_result(None)

    def complete(self, result: StreamResult, outputs: Any, degraded: bool, now_ns: int) -> None:
        """Store the outputs of a frame, or drop them if the stream was closed meanwhile."""
        self._announce(self.state.complete(result, outputs, degraded, now_ns))
        if result.outputs is not outputs:
            close_dropped(outputs)

    def fail(self, result: StreamResult, error: BaseException, now_ns: int) -> None:
        """Store the error of a frame."""
        if isinstance(error, Closed):
            self._is_rejected = True
        self._announce(self.state.fail(result, error, now_ns))

    def drop(self, result: StreamResult, reason: str) -> None:
        """Drop a frame that was sent, or was about to be; do nothing if the stream was closed meanwhile."""
        self._announce(self.state.drop(result, str(reason)))

    def remove(self, sending: Sending) -> None:
        """Forget a frame that has an outcome."""
        del self.sending[sending]
        requests_ended = self._requests_ended
        if requests_ended is not None and not self.sending and not requests_ended.done():
            requests_ended.set_result(None)

    def end_if_drained(self) -> None:
        """Let the stream end if its source has ended and no frame waits or runs."""
        drained = self._drained
        if drained is not None and not drained.done() and not self.state.running and not self.state.waiting:
            drained.set_result(None)

    def crash(self, error: BaseException) -> None:
        """End the stream with an error that belongs to none of its frames."""
        self._error = error
        self.stop()

    # -- for the consumer ---------------------------------------------------------------------------------------

    def take(self, now_ns: int) -> StreamResult | None:
        """Deliver the next result, or ``None`` if there is none, and queue the stream for its next frame."""
        state = self.state
        result = state.take(now_ns)
        if result is None and self._error is not None and self._has_ended:
            result, self._error = make_source_failure(self.stream_id, self._error, now_ns), None
        if state.has_ready() or (self._error is not None and self._has_ended):
            self._outlet.announce(self)
        if self._has_ended:
            self._settle_if_delivered()
        elif state.can_send():
            self._sender.queue(self, True)
        return result

    def stop(self) -> None:
        """Stop reading and sending; results that are ready can still be delivered."""
        self._is_stopped = True
        self.state.close(drop_ready=False)
        if self._is_closing:
            self.end_if_drained()
        elif not self._has_ended:
            self._is_closing = True
            if self._source is None:  # else its task has not begun: it reads nothing, and closes the source
                self._task.cancel()

    def abandon(self) -> None:
        """Stop, and deliver nothing more."""
        for result in self.state.close(drop_ready=True):
            close_dropped(result.outputs)
        self._error = None
        if self._has_ended:
            self._settle_if_delivered()
        self.stop()

    def forget(self) -> None:
        """Count all open frames as closed, because the event loop of the stream was closed."""
        self.state.close(drop_ready=True)
        self._outlet.streams.pop(self, None)
        self._totals.settle(self)

    async def close(self, closer: asyncio.Task[Any] | None) -> None:
        """Abandon the stream and wait for the end of its task, unless its source closes it from that task."""
        if self._task.get_loop().is_closed():  # then there is no task to wait for
            self.forget()
            return
        self.abandon()
        if self._task is not closer:
            await asyncio.wait([self._task])

    def statistics(self) -> StreamStatistics:
        """Return a snapshot of the counters."""
        state = self.state
        return StreamStatistics(
            state.received, state.delivered, state.failed, dict(state.dropped), state.waiting, state.in_flight
        )

    # -- inside -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            try:
                await self._read()
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                self._error = RuntimeError(f"the source: {error!r}")  # the source was cancelled, not this task
            except Exception as error:  # noqa: BLE001 - the consumer gets it, behind the results
                if self._is_stopped:
                    self._report("its source failed when it was closed", error)
                else:
                    self._error = error
            self._drained = asyncio.get_running_loop().create_future()
            self.end_if_drained()
            await self._drained
        except asyncio.CancelledError:
            pass  # the stream ends as usual, with fewer results; no caller awaits a result of this task
        finally:
            self.state.close(drop_ready=False)
            self._sender.leave(self)
            await self._end_requests()

    def _lags(self, now_ns: int) -> bool:
        return self.state.lags(now_ns, self._sender.late_frames.next_end_ns)

    def _announce(self, has_ready: bool) -> None:
        """Announce a result to the outlet; if the service has stopped, stop after the last running frame."""
        if has_ready:
            self._outlet.announce(self)
        if self._is_rejected and not self.state.running:
            self.stop()

    async def _end_requests(self) -> None:
        """Cancel the requests of the stream, and wait until they have ended."""
        while self.sending:
            for sending in list(self.sending):
                sending.cancel()
            if self.sending:
                self._requests_ended = asyncio.get_running_loop().create_future()
                with contextlib.suppress(asyncio.CancelledError):  # a second one, from a loop that shuts down
                    await self._requests_ended

    def _end(self, _: object) -> None:
        self._has_ended = True
        if self._sender.states is not None:
            try:
                self._sender.states.end_stream(self.stream_id)
            except Exception as error:  # noqa: BLE001 - only the end of the stream waits for this
                self._report("the model could not end its state", error)
        if self.state.has_ready() or self._error is not None:
            self._outlet.announce(self)
        self._settle_if_delivered()

    def _report(self, message: str, error: Exception) -> None:
        """Report to the event loop an error that no consumer can get."""
        # without the task: this code runs in its context, and CPython 3.13 would enter that again
        context = {"message": f"stream {self.stream_id!r}: {message}", "exception": error}
        self._task.get_loop().call_exception_handler(context)

    def _settle_if_delivered(self) -> None:
        if not self.state.in_flight and self._error is None:
            self._outlet.streams.pop(self, None)
            self._outlet.wake()
            self._totals.settle(self)

    async def _read(self) -> None:
        source, self._source = self._source, None  # a plain generator is closed when nothing holds it
        if not isinstance(source, AsyncIterable):
            for item in () if self._is_stopped else source:
                if self._accept(item):
                    await self._wait_for_room()
                else:
                    await asyncio.sleep(0)
            return
        iterator: AsyncIterator[Any] = aiter(source)
        try:
            if self._is_stopped:
                return
            async for item in iterator:
                if self._is_stopped:  # the source has swallowed the cancellation
                    return
                if self._accept(item):
                    await self._wait_for_room()
        finally:
            self._is_closing = True
            if isinstance(iterator, AsyncClosable):
                await iterator.aclose()

    def _accept(self, item: Any) -> bool:
        """Accept a frame and return whether the source must be held."""
        now_ns = self._sender.clock()
        state = self.state
        if isinstance(item, Frame):
            expectation = "whole nanoseconds on the clock of the Stack"
            if not isinstance(item.captured_ns, (int, SupportsIndex)):
                raise TypeError(expected("captured_ns", expectation, item.captured_ns))
            try:
                is_queued = state.offer(item.inputs, item.captured_ns, item.position_s, item.discontinuity, now_ns)
            except OverflowError:
                raise ValueError(expected("captured_ns", expectation, item.captured_ns)) from None
        else:
            is_queued = state.offer(item, now_ns, None, False, now_ns)
        if is_queued and state.can_send():
            self._sender.queue(self, False)
        is_full = state.is_full()
        if is_full and (state.has_too_many() or self._lags(now_ns)):
            state.drop_late(now_ns, self._sender.late_frames.next_end_ns)
        return is_full

    async def _wait_for_room(self) -> None:
        if not self.state.is_full() or self._lags(self._sender.clock()):
            await asyncio.sleep(0)  # the source lags, so reading continues
            return
        self._room_waiter = asyncio.get_running_loop().create_future()
        try:
            await self._room_waiter
        finally:
            self._room_waiter = None

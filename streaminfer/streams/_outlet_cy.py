"""Delivery of results to consumers: streams with results, waiting consumers, and one wake-up for a whole batch.

A consumer awaits a `NextResult`, which acts as a coroutine and as a future. A future would wake its task with its own
loop callback; here one callback wakes all consumers that have a result in the batch. The same callback sends the frames
for which the consumers made room. One turn later, the next batch would have begun without these frames.

One source, compiled with the C types of ``_outlet_cy.pxd`` or run uncompiled. Not thread-safe: one event loop uses it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streaminfer.protocols import Clock
    from streaminfer.streams._live_stream_cy import Stream
    from streaminfer.streams._stream_cy import StreamResult

__all__ = ["NextResult", "Outlet", "WakeUps"]


class WakeUps:
    """Wakes all consumers that wait for results of a batch in one turn of the loop.

    Args:
        loop: event loop of the consumers.
        context: context of ``after_waking``; each consumer continues in its own context.
        after_waking: called after the consumers were woken.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context, after_waking: Callable[[], None]) -> None:
        self.loop = loop
        self._context = context
        self._after_waking = after_waking
        self._waiters: deque[NextResult] = deque()
        self._is_scheduled = False

    def add(self, waiter: NextResult) -> None:
        """Wake a consumer in the next turn."""
        self._waiters.append(waiter)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self.loop.call_soon(self._wake_all, context=self._context)

    def _wake_all(self) -> None:
        self._is_scheduled = False
        try:
            for _ in range(len(self._waiters)):
                waiter = self._waiters.popleft()
                waiter._wake()
        finally:
            self._after_waking()
            if self._waiters:  # a task has raised an interrupt, or a consumer must be woken again
                self._schedule()


class Outlet:
    """Delivers the results of some streams to one consumer.

    Args:
        clock: returns monotonic nanoseconds.
        wake_ups: wakes the consumers of the loop.
    """

    def __init__(self, clock: Clock, wake_ups: WakeUps) -> None:
        self._clock: Clock = clock
        self._wake_ups = wake_ups
        self._ready: deque[Stream] = deque()
        self._waiter: NextResult | None = None
        self.streams: dict[Stream, None] = {}

    def announce(self, stream: Stream) -> None:
        """Queue a stream that has something to deliver."""
        if not stream.is_announced:
            stream.is_announced = True
            self._ready.append(stream)
            self.wake()

    def wake(self) -> None:
        """Wake the consumer, so that it looks for a result again."""
        waiter = self._waiter
        if waiter is not None and not waiter._is_notified:
            waiter._is_notified = True
            self._wake_ups.add(waiter)

    def abandon(self) -> None:
        """Close every stream: the consumer has left."""
        for stream in list(self.streams):
            stream.abandon()

    def get(self, reader: object, raises: bool) -> NextResult:
        """Return an awaitable for the next result of any stream.

        Args:
            reader: object that the consumer iterates over; it stays alive as long as the consumer waits.
            raises: raise the error of a source instead of returning it in a result.
        """
        return NextResult(self, reader, raises)

    def take(self, raises: bool) -> StreamResult | None:
        """Deliver the next result; ``None``: there is none yet.

        Raises:
            StopAsyncIteration: no stream is left.
            Exception: what a source raised.
        """
        while self._ready:
            stream = self._ready.popleft()
            stream.is_announced = False
            result = stream.take(self._clock())
            if result is not None:
                if raises and result.source_failed and result.error is not None:
                    raise result.error
                return result
        if not self.streams:
            raise StopAsyncIteration
        return None


class NextResult:
    """Awaitable for the next result of an outlet; it completes at once if a result is ready.

    Until it is awaited, asyncio treats it as a coroutine; then the task waits for it as for a future.

    Raises:
        StopAsyncIteration: no stream is left.
        RuntimeError: another consumer waits already, or it was awaited before.
        Exception: what a source raised.
    """

    def __init__(self, outlet: Outlet, reader: object, raises: bool) -> None:
        self._asyncio_future_blocking: bool | None = None  # neither true nor false: not a future yet
        self._outlet: Outlet | None = outlet
        self._reader: object = reader
        self._raises = raises
        self._is_notified = False
        self._error: BaseException | None = None
        self._wakeup: Callable[[Any], object] | None = None
        self._context: Context | None = None

    # -- what is awaited -----------------------------------------------------------------------------------------

    def __await__(self) -> NextResult:
        return self

    def __iter__(self) -> NextResult:
        return self

    def __next__(self) -> NextResult:
        outlet = self._outlet
        if outlet is None:
            raise RuntimeError("this was awaited before")
        if outlet._waiter is not None and outlet._waiter is not self:
            raise RuntimeError(
                f"{self._reader!r} has a consumer already: one task at a time may wait for the next result"
            )
        outlet._waiter = self
        try:
            result = outlet.take(self._raises)
        except BaseException:
            self.close()
            raise
        if result is not None:
            self.close()
            raise StopIteration(result)
        self._is_notified = False
        self._asyncio_future_blocking = True
        return self

    def send(self, _: None) -> NextResult:
        """Take one step, as a coroutine does."""
        return self.__next__()

    def throw(self, kind: Any, value: Any = None, _: Any = None) -> NextResult:
        """End with an error, like a coroutine that does not catch it."""
        self.close()
        error: BaseException = kind if isinstance(kind, BaseException) else kind() if value is None else value
        try:
            raise error
        finally:
            del error, kind, value  # the traceback refers to this frame and to frames of the consumer

    def close(self) -> None:
        """End, as a coroutine does."""
        outlet = self._outlet
        self._outlet = self._reader = None
        self._is_notified = True
        if outlet is not None and outlet._waiter is self:
            outlet._waiter = None

    # -- what its task waits for ----------------------------------------------------------------------------------

    def get_loop(self) -> Any:
        """Return the loop on which it is awaited."""
        return None if self._outlet is None else self._outlet._wake_ups.loop

    def add_done_callback(self, wakeup: Callable[[Any], object], *, context: Context) -> None:
        """Store the callback that wakes the task; asyncio calls this once."""
        self._wakeup = wakeup
        self._context = context

    def result(self) -> None:
        """Let the task continue; raise an error if the task was cancelled."""
        error = self._error
        self._error = None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the task at the next turn of the loop; return false if the task is about to continue."""
        outlet = self._outlet
        if self._is_notified or outlet is None:
            return False
        self._is_notified = True
        self._error = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        outlet._wake_ups.add(self)
        return True

    def _wake(self) -> None:
        wakeup = self._wakeup
        context = self._context
        if wakeup is not None and context is not None:
            self._wakeup = None
            context.run(wakeup, self)

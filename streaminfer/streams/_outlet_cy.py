"""The way of results to their consumer: what is ready, who waits for it, and how a batch wakes all that wait.

A consumer awaits an object that takes the place of a coroutine and of a future. Where a future wakes its task with a
callback of the loop each, one callback wakes all consumers that a batch has results for. What they make room for is
sent in the same callback: a turn later, the next batch would have begun without it.

One source, compiled with the C types of ``_outlet_cy.pxd`` or run uncompiled. Not thread-safe: of one event loop.
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
    """Consumers that are woken in one turn of the loop: a batch wakes all that wait for its results at once.

    Args:
        loop: of the consumers.
        context: of ``then``; each consumer continues in its own.
        then: is called when they have been woken.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context, then: Callable[[], None]) -> None:
        self.loop = loop
        self._context = context
        self._then = then
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
        count = len(self._waiters)
        try:
            while count:
                count -= 1
                waiter = self._waiters.popleft()
                waiter._wake()
        finally:
            self._then()
            if self._waiters:  # an interrupt has come out of a task, or a consumer is to be woken once more
                self._schedule()


class Outlet:
    """Results of some streams on their way to one consumer.

    Args:
        clock: returns monotonic nanoseconds.
        wake_ups: of the loop.
    """

    def __init__(self, clock: Clock, wake_ups: WakeUps) -> None:
        self._clock: Clock = clock
        self._wake_ups = wake_ups
        self._ready: deque[Stream] = deque()
        self._waiter: NextResult | None = None
        self.streams: dict[Stream, None] = {}

    def announce(self, stream: Stream) -> None:
        """Queue a stream with something to deliver, behind the others that have."""
        if not stream.is_announced:
            stream.is_announced = True
            self._ready.append(stream)
            self.wake()

    def wake(self) -> None:
        """Let the consumer look again."""
        waiter = self._waiter
        if waiter is not None and not waiter._is_told:
            waiter._is_told = True
            self._wake_ups.add(waiter)

    def abandon(self) -> None:
        """Close every stream: the consumer has left."""
        for stream in list(self.streams):
            stream.abandon()

    def get(self, reader: object, raises: bool) -> NextResult:
        """Return what a consumer awaits: the next result of any stream.

        Args:
            reader: what the consumer holds, so that it lives as long as the consumer waits.
            raises: the error of a source, instead of returning it.
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
    """Awaitable of a consumer: the next result of an outlet, at once where there is one.

    Until it is awaited asyncio takes it as a coroutine; then it is what its task waits for, in place of a future.

    Raises:
        StopAsyncIteration: no stream is left.
        RuntimeError: another consumer waits already, or it was awaited before.
        Exception: what a source raised.
    """

    def __init__(self, outlet: Outlet, reader: object, raises: bool) -> None:
        self._asyncio_future_blocking: bool | None = None  # neither: no future yet
        self._outlet: Outlet | None = outlet
        self._reader: object = reader
        self._raises = raises
        self._is_told = False
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
        self._is_told = False
        self._asyncio_future_blocking = True
        return self

    def send(self, _: None) -> NextResult:
        """Take one step, as a coroutine does."""
        return self.__next__()

    def throw(self, kind: Any, value: Any = None, _: Any = None) -> NextResult:
        """End with an error, as a coroutine that does not catch it."""
        self.close()
        error: BaseException = kind if isinstance(kind, BaseException) else kind() if value is None else value
        try:
            raise error
        finally:
            del error, kind, value  # whose traceback holds this frame, and those of the consumer

    def close(self) -> None:
        """End, as a coroutine does."""
        outlet = self._outlet
        self._outlet = self._reader = None
        self._is_told = True
        if outlet is not None and outlet._waiter is self:
            outlet._waiter = None

    # -- what its task waits for ----------------------------------------------------------------------------------

    def get_loop(self) -> Any:
        """Return the loop on which it is awaited."""
        return None if self._outlet is None else self._outlet._wake_ups.loop

    def add_done_callback(self, wakeup: Callable[[Any], object], *, context: Context) -> None:
        """Take the callback by which its task is woken; called once."""
        self._wakeup = wakeup
        self._context = context

    def result(self) -> None:
        """Let its task continue, with an error where it was cancelled."""
        error = self._error
        self._error = None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame

    def cancel(self, msg: Any = None) -> bool:
        """Cancel its task at the loop's next turn; return false if it is about to continue."""
        outlet = self._outlet
        if self._is_told or outlet is None:
            return False
        self._is_told = True
        self._error = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        outlet._wake_ups.add(self)
        return True

    def _wake(self) -> None:
        wakeup = self._wakeup
        context = self._context
        if wakeup is not None and context is not None:
            self._wakeup = None
            context.run(wakeup, self)

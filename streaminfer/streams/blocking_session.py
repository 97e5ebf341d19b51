"""`BlockingStreamSession`: streams for synchronous callers, on the event loop of a `BlockingStack`."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Hashable, Iterable, Iterator
from typing import Any, Self

from streaminfer._internal.validation import check_instance
from streaminfer.blocking import BlockingStack
from streaminfer.errors import Closed
from streaminfer.streams._stream_cy import StreamResult
from streaminfer.streams.session import Source, StreamSession, check_source
from streaminfer.streams.sources.handoff import Handoff
from streaminfer.streams.statistics import StreamSessionStatistics

__all__ = ["BlockingStreamSession"]

_END: Any = object()


class BlockingStreamSession:
    """`StreamSession` for synchronous callers.

    ::

        with stack.blocking() as infer, BlockingStreamSession(infer, policy=LatestOnly()) as session:
            for result in session(camera):
                show(result.outputs)

    A plain iterable may block: the session reads each one in a separate thread, at most two items ahead, so a policy
    can drop frames while the caller is busy. After the stream has ended, this thread ends when the iterable yields its
    next item. The session is thread-safe, but only one thread may read the results of a stream.

    Args:
        infer: a blocking stack that is running.
        **options: as for `StreamSession`.
    """

    def __init__(self, infer: BlockingStack, **options: Any) -> None:
        check_instance("infer", infer, BlockingStack, "a BlockingStack")
        self._infer = infer
        self._session = StreamSession(infer.stack, **options)

    def __call__(self, source: Source, *, stream_id: Hashable = None, weight: float = 1.0) -> Iterator[StreamResult]:
        """Read a source and return an iterator over its results; leaving a loop over it closes the stream.

        Args:
            source: an iterable or asynchronous iterable of `Frame` objects or bare inputs.
            stream_id: as for calling a `StreamSession`.
            weight: as for calling a `StreamSession`.

        Raises:
            TypeError, ValueError, Closed: as for calling a `StreamSession`, but raised by the iterator.
            Exception: the error that the source raised.
        """
        return self._results(lambda: self._session(_as_async(source), stream_id=stream_id, weight=weight))

    def add(self, source: Source, *, stream_id: Hashable = None, weight: float = 1.0) -> Hashable:
        """Read a source, as :meth:`StreamSession.add`; iterating over the session returns its results."""
        added: Hashable = self._run(lambda: self._session.add(_as_async(source), stream_id=stream_id, weight=weight))
        return added

    def remove(self, stream_id: Hashable) -> None:
        """Close a stream, as :meth:`StreamSession.remove`."""
        self._run(lambda: self._session.remove(stream_id))

    def __iter__(self) -> Iterator[StreamResult]:
        return self._results(lambda: aiter(self._session))

    def statistics(self) -> StreamSessionStatistics:
        """Return a snapshot of all streams, also when the stack has stopped."""
        try:
            statistics: StreamSessionStatistics = self._run(self._session.statistics)
        except Closed:
            return self._session.statistics()
        return statistics

    def close(self) -> None:
        """Close every stream and accept no further ones."""
        self._session._closed = True  # also if the stack has stopped and is started again later
        self._close(self._session.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<blocking {self._session!r}>"

    def _results(self, begin: Callable[[], AsyncIterator[StreamResult]]) -> Iterator[StreamResult]:
        results, loop = self._run(lambda: (begin(), asyncio.get_running_loop()))
        try:
            while (result := self._run(results.__anext__, loop)) is not _END:
                yield result
        finally:
            if results is not self._session:
                self._close(results.aclose)

    def _run(self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop | None = None) -> Any:
        """Call a function on the event loop, and await what it returns; ``loop``: the only one for it, if any."""

        async def call() -> Any:
            if loop is not None and loop is not asyncio.get_running_loop():
                raise Closed("the stack was stopped, and started again, before this stream had ended")
            try:
                result = function()
                return await result if isinstance(result, Awaitable) else result
            except StopAsyncIteration:
                return _END

        return self._infer._wait_for(call())

    def _close(self, close: Callable[[], Awaitable[None]]) -> None:
        if self._infer._thread is threading.current_thread():
            return  # the garbage collector runs on the event loop; the collected results close their stream
        with contextlib.suppress(Closed):  # the stack has stopped, so its loop has ended the streams
            self._run(close)


def _as_async(source: Source) -> AsyncIterable[Any]:
    check_source(source)
    return source if isinstance(source, AsyncIterable) else _read_in_thread(source)


async def _read_in_thread(source: Iterable[Any]) -> AsyncIterator[Any]:
    """Yield the items of an iterable that a thread reads."""
    handoff = Handoff(1, drops=False, contiguous=False)
    # a daemon, because the iterable may block when the process ends
    threading.Thread(target=_read, args=(source, handoff), name="streaminfer-source", daemon=True).start()
    try:
        while True:
            yield await handoff.get()
    except StopAsyncIteration:
        return
    finally:
        handoff.close()


def _read(source: Iterable[Any], handoff: Handoff) -> None:
    try:
        for item in source:
            if not handoff.put(item):
                break
    except BaseException as raised:  # noqa: BLE001 - it belongs to the consumer
        is_deliverable = isinstance(raised, Exception) and not isinstance(raised, (StopIteration, StopAsyncIteration))
        handoff.finish(raised if is_deliverable else RuntimeError(f"the source: {raised!r}"))
    else:
        handoff.finish()

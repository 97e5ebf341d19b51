"""A `Stack` for synchronous callers: scripts, threads of a WSGI server, notebooks.

The stack runs on an event loop in a separate thread. It therefore works inside a program or notebook that already runs
an event loop, and any number of threads can call it at once; their requests share batches.
"""

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from streaminfer._internal.forking import new_reentrant_lock
from streaminfer._internal.validation import check_duration
from streaminfer._runtime.lifecycle import STOP_LIMIT_S
from streaminfer._stack.served_stack import ServedStack
from streaminfer._stack.statistics import StackStatistics
from streaminfer.errors import Closed
from streaminfer.request import CallSettings, MapOptions, MapSettings, Request, Response

__all__ = ["BlockingStack"]

T = TypeVar("T")


class BlockingStack:
    """Stack for callers in any thread; made by :meth:`Stack.blocking`.

    Use it with ``with``, or with :meth:`start` and :meth:`stop`. Leaving the ``with`` block waits for the requests in
    flight, or, if an exception leaves it, ends them with ``Closed``; then it stops the stack and joins the thread. It
    can be started again. Thread-safe.

    Args:
        stack: a stack that is not running.
    """

    def __init__(self, stack: ServedStack) -> None:
        self.stack = stack
        self._lock = new_reentrant_lock()  # garbage collection in the holder may close a stream of the stack
        self._pending: set[concurrent.futures.Future[Any]] = set()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()  # set when the thread ends
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._drain = True
        self._timeout_s: float | None = STOP_LIMIT_S
        self._closing = False
        self._failure: Exception | None = None  # raised by the stop that ended the thread
        self._pid = os.getpid()

    def __call__(self, inputs: Any, **settings: Unpack[CallSettings]) -> Any:
        """Send one request; keywords, result and errors as calling the :class:`Stack`."""
        return self._wait_for(self.stack(inputs, **settings))

    def map(self, inputs: Iterable[Any], **options: Unpack[MapOptions]) -> list[Any]:
        """Send many requests, with results in their order; keywords and errors as :meth:`Stack.map`."""
        return self._wait_for(self.stack.map(inputs, **options))

    def rows(self, inputs: Any, **settings: Unpack[MapSettings]) -> Any:
        """Send a request of several rows, all or none, as :meth:`Stack.rows`."""
        return self._wait_for(self.stack.rows(inputs, **settings))

    def call(self, request: Request, *, timeout_s: float | None = None) -> Response:
        """Send one request and return the whole response, as :meth:`Stack.call`."""
        return self._wait_for(self.stack.call(request, timeout_s=timeout_s))

    def statistics(self) -> StackStatistics:
        """Return a frozen snapshot of every layer, taken between two turns of the stack's loop."""

        async def take() -> StackStatistics:
            return self.stack.statistics()

        try:
            return self._wait_for(take(), while_closing=True)
        except Closed:  # no loop runs
            return self.stack.statistics()

    def start(self) -> None:
        """Start the stack on an event loop in a separate thread, and return when it accepts requests.

        An interrupt cancels the start.

        Raises:
            RuntimeError: it is running, here or in the process from which this one was forked.
            Closed: another thread stopped it before the start was complete.
            BaseException: the error of a layer.
        """
        self._check_process()
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        ended = threading.Event()
        thread = threading.Thread(target=self._run, args=(started, ended), name="streaminfer-blocking", daemon=True)
        with self._lock:
            if self._thread is not None:
                raise RuntimeError("this blocking stack runs already")
            thread.start()
            self._thread, self._ended = thread, ended
            self._drain = True
        try:
            started.result()
        except BaseException:
            self._leave(drain=False, timeout_s=STOP_LIMIT_S, started=thread)
            raise

    def stop(self, *, drain: bool = True, timeout_s: float | None = STOP_LIMIT_S) -> None:
        """Stop the stack and join the thread, or cancel a start in progress; do nothing if it is not running.

        Args:
            drain: wait for the requests in flight; otherwise they end with ``Closed``.
            timeout_s: seconds after which the remaining requests end with ``Closed``, as in :meth:`Stack.stop`.

        Raises:
            TypeError, ValueError: ``timeout_s`` is not a duration.
            RuntimeError: called on the stack's event loop, or in a process that was forked while it ran.
            Exception: the error of a layer.
        """
        if timeout_s is not None:
            timeout_s = check_duration("timeout_s", timeout_s)
        self._check_process()
        self._leave(drain=drain, timeout_s=timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._check_process()
        if not self._leave(drain=error is None, timeout_s=STOP_LIMIT_S):
            raise RuntimeError("this blocking stack does not run")

    def _leave(self, *, drain: bool, timeout_s: float | None, started: threading.Thread | None = None) -> bool:
        with self._lock:
            thread, ended, loop, stop = self._thread, self._ended, self._loop, self._stop
            if thread is None or started not in (None, thread):  # another stop has returned, and a start followed
                return False
            self._check_thread()
            self._drain = drain
            self._timeout_s = timeout_s
            self._closing = True
            if loop is not None and stop is not None:
                loop.call_soon_threadsafe(stop.set)
        ended.wait()  # before Python 3.13, a join that was interrupted reports a running thread as ended
        thread.join()
        with self._lock:
            if self._thread is thread:  # otherwise another stop has returned, and a start followed
                self._closing = False  # first, because without a thread a start may follow, also in a forked process
                self._thread = None
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return True

    def _check_thread(self) -> None:
        if self._thread is threading.current_thread():
            raise RuntimeError("a blocking call from the stack's own event loop would wait for itself: await the stack")

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            if self._thread is not None:
                raise RuntimeError(
                    "this blocking stack was started in another process: a forked process starts a stack of its own"
                )
            self._pid = os.getpid()

    def _run(self, started: "concurrent.futures.Future[None]", ended: threading.Event) -> None:
        try:
            asyncio.run(self._serve(started))
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            elif isinstance(error, Exception):
                self._failure = error
            else:
                raise
        finally:
            with self._lock:
                self._loop = self._stop = None
                pending = list(self._pending)
            for future in pending:  # calls that arrived after the last callbacks of the loop
                future.cancel()
            ended.set()

    async def _serve(self, started: "concurrent.futures.Future[None]") -> None:
        stop = asyncio.Event()
        with self._lock:
            self._loop, self._stop = asyncio.get_running_loop(), stop
            if self._closing:  # stopped before the start was complete
                stop.set()
        try:
            await self._start_until(stop)
            drain = False
            try:
                started.set_result(None)
                await stop.wait()
                drain = self._drain
            finally:  # also when an error ends the loop
                await self.stack.stop(drain=drain, timeout_s=self._timeout_s)
        finally:
            with self._lock:  # before the loop is closed, so that no call reaches a closed loop
                self._loop = self._stop = None

    async def _start_until(self, stop: asyncio.Event) -> None:
        starting, leaving = asyncio.ensure_future(self.stack.start()), asyncio.ensure_future(stop.wait())
        await asyncio.wait({starting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        starting.cancel()  # no effect if the start is complete
        try:
            await starting
        except asyncio.CancelledError:
            raise Closed("this blocking stack was stopped before it had started") from None

    def _running_loop(self, *, while_closing: bool) -> asyncio.AbstractEventLoop:
        if self._loop is None or self._thread is None or (self._closing and not while_closing):
            raise Closed("this blocking stack does not run: use it inside `with stack.blocking() as infer`")
        self._check_thread()
        return self._loop

    def _wait_for(self, coroutine: Coroutine[Any, Any, T], *, while_closing: bool = False) -> T:
        try:
            self._check_process()
            with self._lock:
                future = asyncio.run_coroutine_threadsafe(coroutine, self._running_loop(while_closing=while_closing))
                self._pending.add(future)
        except BaseException:
            coroutine.close()
            raise
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Closed("the stack stopped before it could answer") from None
        except BaseException:
            future.cancel()  # the calling thread was interrupted and no longer waits
            raise
        finally:
            with self._lock:
                self._pending.discard(future)
            del future  # the traceback of an error refers to this frame, which would keep the request's inputs alive

    def __repr__(self) -> str:
        return f"<blocking {self.stack!r}>"

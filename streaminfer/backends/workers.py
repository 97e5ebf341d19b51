"""Threads that run batches, one hop per batch.

``WorkerThreads`` starts a pool with one thread per worker; a worker is what a thread needs for a batch (a session, a
process, a function). A batch costs one queue entry there and one ``call_soon_threadsafe`` back, with one asyncio future
between; ``loop.run_in_executor`` has a ``concurrent.futures.Future``, its condition and the chaining of the two futures
on top (measured here, CPU per bare hop: 49 to 60 µs against 64 to 73).

Invariants, besides those of the pool:

* A cancelled wait asks the running job to end early (``interrupt``) and waits for the thread, because the worker is
  busy until then, and what counts free workers must not be told otherwise.
* ``stop`` joins the threads within a time limit.
* A forked process has none of the threads and processes, and none of the locks held; it starts its own.
* Neither a thread nor a worker refers to the ``WorkerThreads``; one that is dropped unstopped lets its threads end.

Jobs may come from several event loops; each is told of its end on its own.
"""

import asyncio
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from streaminfer._internal.forking import at_fork
from streaminfer._runtime.lifecycle import KILL_GRACE_S, STOP_LIMIT_S, seconds_left
from streaminfer.backends.job import Done, Job, JobFuture
from streaminfer.backends.worker_pool import Worker, WorkerPool
from streaminfer.errors import Closed

__all__ = ["MAX_WORKERS", "Abandonment", "WorkerThreads", "call_apart"]

MAX_WORKERS = 10_000
"""More than any machine has use for: a mistyped number is an error, and does not fill the memory."""
HANG_GRACE_S = 10.0
"""Seconds after its cancellation from which on a call counts as hung."""

T = TypeVar("T")
W = TypeVar("W", bound=Worker)

_instances: "weakref.WeakSet[WorkerThreads[Any]]" = weakref.WeakSet()


class WorkerThreads(Generic[W]):
    """One thread per worker, made at the first job or at ``start``, joined by ``stop``; can be started again.

    Args:
        workers: one per thread.
        name: of the threads, in debuggers and thread dumps, and of the owner in errors.
        hang_grace_s: seconds after its cancellation from which on a call that still runs counts as hung, and another
            thread takes its place.
    """

    def __init__(self, workers: Sequence[W], name: str, *, hang_grace_s: float = HANG_GRACE_S) -> None:
        self._workers = list(workers)
        self._hang_grace_s = hang_grace_s
        self._name = name
        self._pool: WorkerPool | None = None
        self._dropped: weakref.finalize[[], WorkerThreads[W]]
        self._closed = False
        self._lock = threading.Lock()
        _instances.add(self)

    def forget(self) -> None:
        """In a forked process, which has none of the threads, let the next call start its own."""
        self._lock = threading.Lock()
        if self._pool is not None:
            self._dropped.detach()
            self._pool = None
        for worker in self._workers:
            worker.forget()

    async def start(self) -> None:
        """Start the threads and warm every worker; do nothing if that is done.

        Raises:
            BaseException: what a worker's ``warm`` raised; the threads are joined, and nothing is started.
        """
        while self._pool is not None and self._pool.draining:
            await self._retire(self._pool, STOP_LIMIT_S)
        self._closed = False
        pool = self._open()
        if pool.warm:
            return
        try:
            await self.run_for_each(lambda worker: worker.warm())
        except BaseException:
            await self.stop(drain=False)
            raise
        pool.warm = True

    def check_open(self) -> None:
        """Check that calls may begin.

        Raises:
            Closed: stopped.
        """
        if self._closed:
            raise Closed(f"{self._name} is stopped")

    async def run(self, function: Callable[..., T], *arguments: Any, interrupt: Callable[[], None] | None = None) -> T:
        """Call ``function(worker, *arguments)`` in the thread of the first worker that is free.

        Args:
            function: what to call.
            arguments: further positional arguments.
            interrupt: called, from this loop, when the wait for a running call is cancelled.

        Raises:
            Closed: stopped, or stopped before the call ended.
            BaseException: what the function raised.
        """
        future = JobFuture()
        future.job = self.begin(function, arguments, future.end, interrupt=interrupt)
        try:
            value: T = await future
        finally:
            del future  # an error's traceback holds this frame, and the future the error
        return value

    def begin(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        done: Done,
        *,
        interrupt: Callable[[], None] | None = None,
    ) -> Job:
        """Begin what :meth:`run` awaits, without a coroutine.

        Args:
            function: what to call.
            arguments: further positional arguments.
            done: told of the end, in a later turn of the running loop.
            interrupt: as above.

        Returns:
            What can be cancelled.

        Raises:
            Closed: stopped.
        """
        if not self._closed:
            pool = self._pool
            if pool is None:
                pool = self._open()
            job = Job(function, arguments, interrupt, done, self._hang_grace_s)
            if pool.put(job):
                return job
        raise Closed(f"{self._name} is stopped")

    async def run_for_each(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call ``function(worker, *arguments)`` once for every worker, at the same time, and wait for all of them.

        Any thread may call it for any worker.

        Args:
            function: what to call.
            arguments: further positional arguments.

        Raises:
            Closed: stopped.
            BaseException: what the function raised for the first worker for which it did.
        """
        calls = (self.run(_call_for, worker, function, arguments) for worker in self._workers)
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def stop(self, *, drain: bool) -> None:
        """End and join the threads; until ``start``, further calls raise :class:`Closed`. May be repeated.

        At the time limit of the stack that stops, else after :data:`~streaminfer._runtime.lifecycle.STOP_LIMIT_S`
        seconds, queued and running calls end with :class:`Closed` in any case: processes are killed, and threads
        abandoned.

        Args:
            drain: queued and running calls end first; else queued ones end with :class:`Closed`, and running ones
                are interrupted where that is possible and awaited.
        """
        self._closed = True
        pool = self._pool
        if pool is None:
            return
        pool.drain()
        if not drain:
            for job in tuple(pool.jobs):
                job.abort(Closed(f"{self._name} was stopped"))
        await self._retire(pool, seconds_left(STOP_LIMIT_S))

    def _open(self) -> WorkerPool:
        with self._lock:
            if self._pool is None:
                self._pool = WorkerPool(self._workers, self._name)
                self._dropped = weakref.finalize(self, self._pool.drain)
                self._dropped.atexit = False  # _join_all also waits
            return self._pool

    async def _retire(self, pool: WorkerPool, timeout_s: float | None) -> None:
        """Wait for the end of the threads, up to the limit."""
        ended = asyncio.wrap_future(pool.ended)
        await asyncio.wait({ended}, timeout=timeout_s)
        if not ended.done():
            error = Closed(f"{self._name} was stopped before it could answer")
            pool.interrupt(error)
            await asyncio.wait({ended}, timeout=KILL_GRACE_S)
            if not ended.done():
                pool.abandon(error)
                ended.cancel()
        if pool.ended.done():
            pool.ended.result()
            for thread in pool.threads:
                if thread is not threading.current_thread():
                    thread.join(KILL_GRACE_S)
        with self._lock:
            if self._pool is pool:
                self._pool = None
                self._dropped.detach()


def _after_fork() -> None:
    for threads in tuple(_instances):
        threads.forget()


at_fork(after_in_child=_after_fork)


class Abandonment:
    """Whether the caller of a function in another thread still waits for what it returns; thread-safe."""

    def __init__(self) -> None:
        self._abandoned = False

    def set(self) -> None:
        """Note that the caller no longer waits."""
        self._abandoned = True

    def check(self) -> None:
        """Check that the work is still wanted, between two steps of it.

        Raises:
            CancelledError: the caller no longer waits for it.
        """
        if self._abandoned:
            raise asyncio.CancelledError


async def call_apart(name: str, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a thread of its own, and not in the loop's executor, for which a program's end would wait.

    A cancelled caller does not wait for it either; the end of the interpreter does, for ``EXIT_LIMIT_S`` at most.

    Args:
        name: of the thread.
        function: what to call, with an `Abandonment`.
        arguments: its further positional arguments.

    Raises:
        BaseException: what the function raised.
    """
    pool = WorkerPool([Worker()], name)
    future = JobFuture()
    abandonment = Abandonment()
    job = future.job = Job(lambda _own: function(abandonment, *arguments), (), abandonment.set, future.end)
    pool.put(job)
    job.replace = lambda _job: True  # a cancelled caller does not wait
    pool.drain()
    try:
        value: T = await future
    finally:
        del future, job
    return value


def _call_for(_own: Worker, worker: Worker, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    function(worker, *arguments)

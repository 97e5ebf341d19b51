"""Threads that run batches, one hop per batch.

``WorkerThreads`` starts a pool with one thread per worker. A worker is what a thread needs for a batch: a session, a
process or a function. A batch costs one queue entry, one ``call_soon_threadsafe`` and one asyncio future.
``loop.run_in_executor`` adds a ``concurrent.futures.Future``, its condition, and the chaining of the two futures
(measured here, CPU time of a hop alone: 49 to 60 µs against 64 to 73).

Invariants, besides those of the pool:

* If a wait is cancelled, the running job is interrupted (``interrupt``), and the wait lasts until the thread is free.
  The worker is busy until then, and a batcher that counts free workers must not count it earlier.
* ``stop`` joins the threads within a time limit.
* A forked process has none of the parent's threads and processes, and no lock is held; it starts new ones.
* Neither a thread nor a worker refers to the ``WorkerThreads``; if that is dropped without a stop, its threads end.

Jobs may come from several event loops; the result of a job goes to the loop that it came from.
"""

import asyncio
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from streaminfer._internal.forking import call_in_child, new_lock
from streaminfer._runtime.lifecycle import KILL_GRACE_S, STOP_LIMIT_S, seconds_left
from streaminfer.backends.job import Done, Job, wait_for_job
from streaminfer.backends.worker_pool import Worker, WorkerPool
from streaminfer.errors import Closed

__all__ = ["MAX_WORKERS", "WorkerThreads", "call_apart"]

MAX_WORKERS = 10_000
"""Limit of workers, far above any use: a mistyped number raises an error instead of filling the memory."""
HANG_GRACE_S = 10.0
"""Seconds after its cancellation until a running call counts as hung."""

T = TypeVar("T")
W = TypeVar("W", bound=Worker)


class WorkerThreads(Generic[W]):
    """One thread per worker, started by the first job or by ``start``, joined by ``stop``; can be started again.

    Args:
        workers: one per thread.
        name: name of the threads, in debuggers and thread dumps, and of the owner in errors.
        hang_grace_s: seconds after its cancellation until a running call counts as hung, and another thread replaces
            its thread.
    """

    def __init__(self, workers: Sequence[W], name: str, *, hang_grace_s: float = HANG_GRACE_S) -> None:
        self._workers = list(workers)
        self._hang_grace_s = hang_grace_s
        self._name = name
        self._pool: WorkerPool | None = None
        self._dropped: weakref.finalize[[], WorkerThreads[W]]
        self._closed = False
        self._lock = new_lock()
        call_in_child(self.forget)

    def forget(self) -> None:
        """Drop the parent's threads after a fork; the next call starts new ones."""
        if self._pool is not None:
            self._dropped.detach()
            self._pool = None
        for worker in self._workers:
            worker.forget()

    async def start(self) -> None:
        """Start the threads and warm every worker; do nothing if they are started.

        Raises:
            BaseException: the exception of a worker's ``warm``; the threads are joined, and none is left running.
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
            Closed: the threads are stopped.
        """
        if self._closed:
            raise Closed(f"{self._name} is stopped")

    async def run(self, function: Callable[..., T], *arguments: Any, interrupt: Callable[[], None] | None = None) -> T:
        """Call ``function(worker, *arguments)`` in the thread of the first worker that is free.

        Args:
            function: the function to call.
            arguments: further positional arguments.
            interrupt: called on this event loop when the wait for a running call is cancelled.

        Raises:
            Closed: the threads are stopped, or were stopped before the call ended.
            BaseException: the exception of the function.
        """
        value: T = await wait_for_job(lambda done: self.begin(function, arguments, done, interrupt=interrupt))
        return value

    def begin(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        done: Done,
        *,
        interrupt: Callable[[], None] | None = None,
    ) -> Job:
        """Begin the call of :meth:`run` without a coroutine.

        Args:
            function: the function to call.
            arguments: further positional arguments.
            done: called with the outcome, in a later iteration of the running loop.
            interrupt: as in :meth:`run`.

        Returns:
            The job, which can be cancelled.

        Raises:
            Closed: the threads are stopped.
        """
        self.check_open()
        job = Job(function, arguments, interrupt, done, self._hang_grace_s)
        if not (self._pool or self._open()).put(job):
            raise Closed(f"{self._name} is stopped")
        return job

    async def run_for_each(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call ``function(worker, *arguments)`` once for every worker, at the same time, and wait for all of them.

        Any thread may make the call for any worker.

        Args:
            function: the function to call.
            arguments: further positional arguments.

        Raises:
            Closed: the threads are stopped.
            BaseException: the exception of the first worker whose call failed.
        """
        calls = (self.run(lambda _own, each=worker: function(each, *arguments)) for worker in self._workers)
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def stop(self, *, drain: bool) -> None:
        """End and join the threads; until ``start``, further calls raise :class:`Closed`. May be repeated.

        At the time limit of the stack that stops, else after :data:`~streaminfer._runtime.lifecycle.STOP_LIMIT_S`
        seconds, queued and running calls end with :class:`Closed` in any case: processes are killed, and threads
        abandoned.

        Args:
            drain: wait for queued and running calls; ``False``: queued calls end with :class:`Closed`, and running
                calls are interrupted, if that is possible, and awaited.
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
                self._dropped.atexit = False  # at exit, `_join_all` waits for the threads
            return self._pool

    async def _retire(self, pool: WorkerPool, timeout_s: float | None) -> None:
        """Wait for the threads to end; after the time limit, end their calls with an error."""
        error = Closed(f"{self._name} was stopped before it could answer")
        ended = asyncio.wrap_future(pool.ended)
        try:
            await asyncio.wait({ended}, timeout=timeout_s)
            if not ended.done():
                pool.interrupt(error)
                await asyncio.wait({ended}, timeout=KILL_GRACE_S)
        except asyncio.CancelledError:
            if seconds_left(STOP_LIMIT_S) == 0:  # the loop was blocked, and reached its caller's limit in the same turn
                pool.interrupt(error)
                self._leave(pool, ended, error)
            raise
        self._leave(pool, ended, error)

    def _leave(self, pool: WorkerPool, ended: "asyncio.Future[None]", error: Closed) -> None:
        """Join the threads if they have ended, else abandon them."""
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


async def call_apart(name: str, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a separate thread; in the loop's executor, a program could not end before the call.

    A cancelled caller does not wait either. At exit, the interpreter waits for ``EXIT_LIMIT_S`` at most.

    Args:
        name: name of the thread.
        function: the function to call; its first argument is a function that it calls between two steps, and that
            raises ``CancelledError`` if the caller no longer waits.
        arguments: further positional arguments.

    Raises:
        BaseException: the exception of the function.
    """
    is_abandoned = threading.Event()

    def check() -> None:
        if is_abandoned.is_set():
            raise asyncio.CancelledError

    def begin(done: Done) -> Job:
        pool = WorkerPool([Worker()], name)
        job = Job(lambda _own: function(check, *arguments), (), is_abandoned.set, done)
        pool.put(job)
        job.replace = lambda _job: True  # so that a cancelled caller does not wait
        pool.drain()
        return job

    value: T = await wait_for_job(begin)
    return value

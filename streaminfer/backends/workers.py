"""Threads that answer batches, one hop a batch.

Idea: ``WorkerThreads`` has one thread per worker, all of them fed from one queue; a worker is whatever a thread needs
to answer (a session, a process, a function). A batch costs one queue entry there and one ``call_soon_threadsafe``
back, with one asyncio future between; ``loop.run_in_executor`` has a ``concurrent.futures.Future``, its condition and
the chaining of the two futures on top (measured here, CPU a bare hop: 49 to 60 µs against 64 to 73).

Invariants:

* A job is *claimed* exactly once, by the thread that runs it, or by whoever gives it up while it is queued. So a
  cancelled batch that no thread has begun ends at once.
* A cancelled wait asks the running job to end early (``interrupt``) and waits for the thread, because the worker is
  busy until then, and what counts free workers must not be told otherwise. A job that still runs after a grace is
  *hung*: another thread takes its place, and the hung one ends when its call does, without an effect.
* ``stop`` and the end of the interpreter join the threads within a time limit, so that none is inside native code
  when the interpreter goes. After the limit processes are killed, and threads, which are daemons, left behind.
* A forked process has none of the threads and processes, and none of the locks held; it starts its own.
* Neither a thread nor a worker refers to the ``WorkerThreads``; one that is dropped unstopped lets its threads end.

Jobs may come from several event loops; each is told of its end on its own.
"""

import asyncio
import atexit
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from streaminfer._internal.forking import at_fork
from streaminfer._runtime.stopping import KILL_GRACE_S, STOP_LIMIT_S, seconds_left
from streaminfer.backends.job import Job
from streaminfer.errors import Closed

__all__ = ["Worker", "WorkerThreads", "call_apart"]

T = TypeVar("T")


class Worker(Protocol):
    """What one thread needs to answer batches."""

    def warm(self) -> None:
        """Whatever makes the first batch as fast as the later ones; may come from any thread, also while busy."""
        ...

    def close(self) -> None:
        """Gives back what it holds; the worker can be used again afterwards."""
        ...

    def kill(self) -> bool:
        """Ends at once what a call waits for; from any thread, also while busy. False if nothing can be ended."""
        ...

    def forget(self) -> None:
        """In a forked process: drops what belongs to the parent."""
        ...

    def renew(self) -> "Worker":
        """Returns what takes its place while a call hangs in it; shares nothing that such a call may write to."""
        ...


MAX_HUNG_PER_WORKER = 8
"""So that a model that always hangs does not fill the process with threads."""

HANG_GRACE_S = 10.0
"""Seconds after its cancellation from which on a call counts as hung."""

EXIT_LIMIT_S = 10.0
"""Seconds that the end of the interpreter waits for threads that were not stopped."""

_log = logging.getLogger("streaminfer")


W = TypeVar("W", bound=Worker)


class _Post:
    """One worker, the thread that drives it, and the call that runs in it."""

    __slots__ = ("job", "left_behind", "thread", "worker")

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.job: Job | None = None
        self.left_behind = False
        self.thread: threading.Thread


class WorkerPool:
    """The threads of one start, from their first job to the last one's end."""

    def __init__(self, workers: list[Any], name: str) -> None:
        self.queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.jobs: set[Job] = set()
        self.warm = False
        self.dismissed = False
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()  # so that nobody who waits for it can cancel it
        self._lock = threading.RLock()  # the collector may dismiss a crew from within
        self._workers = workers
        self._name = name
        self._working = len(workers)
        self._hung = 0
        self._started = 0
        self._posts = [self._open_post(worker) for worker in workers]
        _crews.add(self)

    @property
    def threads(self) -> list[threading.Thread]:
        """Those that are expected to end."""
        return [post.thread for post in self._posts]

    def put(self, job: Job) -> bool:
        """Queues a job; false where the crew is going home."""
        with self._lock:
            if self.dismissed:
                return False
            self.jobs.add(job)
            self.queue.put(job)
            return True

    def dismiss(self) -> None:
        """Lets every thread end once the queue is empty."""
        with self._lock:
            if self.dismissed:
                return
            self.dismissed = True
            for _ in self._posts:
                self.queue.put(None)

    def replace(self, job: Job) -> bool:
        """Gives the worker in which a call hangs another thread, so that as many batches run at once as before.

        Returns:
            False if the call has just ended, if it will soon, because its process was killed, or if too many threads
            hang already.
        """
        with self._lock:
            number = next((number for number, post in enumerate(self._posts) if post.job is job), None)
            if number is None:
                return False
            post = self._posts[number]
            if self._hung >= MAX_HUNG_PER_WORKER * len(self._posts):
                _log.warning("%s: a batch hangs, and so do %d others: its thread is not replaced", *self._at(post))
                return False
            if post.worker.kill():
                _log.warning("%s: a batch hangs after its deadline: its worker process was killed", self._name)
                return False
            post.left_behind = True
            self._hung += 1
            self._workers[number] = post.worker.renew()
            self._posts[number] = self._open_post(self._workers[number])
        _log.warning(
            "%s: a batch hangs after its deadline: another thread takes the place of %s, and its answer is dropped",
            self._name,
            post.thread.name,
        )
        return True

    def interrupt(self, error: Closed) -> None:
        """Ends what waits, and asks what runs to end; processes are killed."""
        self.dismiss()
        for job in tuple(self.jobs):  # first, so that no thread begins another batch after its process was killed
            job.abort(error)
        for worker in tuple(self._workers):
            worker.kill()

    def leave_behind(self, error: Closed) -> None:
        """Ends the calls that still run with ``error``; their threads end when the calls do, and nothing waits."""
        with self._lock:
            left = [(post, post.job) for post in self._posts if post.job is not None and not post.left_behind]
            for post, _ in left:
                post.left_behind = True
                self._hung += 1
            self._working -= len(left)
            last = bool(left) and not self._working
        for _, job in left:
            job.give_up(error)
        if left:
            names = ", ".join(post.thread.name for post, _ in left)
            _log.warning("%s: stopped while a batch hangs: left behind %s", self._name, names)
        _crews.discard(self)
        if last:
            self._end()

    def _at(self, post: _Post) -> tuple[str, int]:
        return f"{self._name}, {post.thread.name}", self._hung

    def _open_post(self, worker: Worker) -> _Post:
        post = _Post(worker)
        name = f"{self._name}-{self._started}"
        self._started += 1
        post.thread = threading.Thread(target=self._serve, args=(post,), name=name, daemon=True)
        post.thread.start()
        return post

    def _serve(self, post: _Post) -> None:
        last = False
        try:
            while (job := self.queue.get()) is not None:
                post.job = job
                job.execute(post.worker)
                del job  # an idle thread keeps nothing of the last batch alive
                with self._lock:
                    post.job = None
                    if post.left_behind:
                        return
        finally:
            with self._lock:
                if post.left_behind:
                    self._hung -= 1
                else:
                    self._working -= 1
                    last = not self._working
            if last:
                self._end()

    def _end(self) -> None:
        try:
            for worker in self._workers:
                worker.close()  # only now: until the last thread ends, any of them may warm any worker
        finally:
            self.ended.set_result(None)


_crews: weakref.WeakSet[WorkerPool] = weakref.WeakSet()
_pools: "weakref.WeakSet[WorkerThreads[Any]]" = weakref.WeakSet()


def _after_fork() -> None:
    _crews.clear()
    for pool in tuple(_pools):
        pool.forget()


at_fork(in_child=_after_fork)


@atexit.register
def _join_all() -> None:
    """Ends what a forgotten stop left, within :data:`EXIT_LIMIT_S`; what hangs dies with the interpreter."""
    crews = tuple(_crews)
    ends_at = time.monotonic() + EXIT_LIMIT_S
    for crew in crews:
        crew.dismiss()
    for crew in crews:
        for thread in crew.threads:
            thread.join(max(0.0, ends_at - time.monotonic()))
    error = Closed("the interpreter ends")
    for crew in crews:
        if any(thread.is_alive() for thread in crew.threads):
            crew.interrupt(error)
            ends_at = time.monotonic() + KILL_GRACE_S
            for thread in crew.threads:
                thread.join(max(0.0, ends_at - time.monotonic()))


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
        self._crew: WorkerPool | None = None
        self._dropped: weakref.finalize[[], WorkerThreads[W]]
        self._closed = False
        self._lock = threading.Lock()
        _pools.add(self)

    def forget(self) -> None:
        """In a forked process, which has none of the threads: the next call starts its own."""
        self._lock = threading.Lock()
        if self._crew is not None:
            self._dropped.detach()
            self._crew = None
        for worker in self._workers:
            worker.forget()

    async def start(self) -> None:
        """Starts the threads and warms every worker; does nothing where that is done.

        Raises:
            BaseException: what a worker's ``warm`` raised; the threads are joined, and nothing is started.
        """
        while self._crew is not None and self._crew.dismissed:
            await self._retire(self._crew, STOP_LIMIT_S)
        self._closed = False
        crew = self._open()
        if crew.warm:
            return
        warmings = (self._run(crew, _warm, (worker,), None) for worker in self._workers)
        try:
            outcomes = await asyncio.gather(*warmings, return_exceptions=True)
        except asyncio.CancelledError:
            await self.stop(drain=False)
            raise
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                await self.stop(drain=False)
                raise outcome
        crew.warm = True

    async def run(self, function: Callable[..., T], *arguments: Any, interrupt: Callable[[], None] | None = None) -> T:
        """Calls ``function(worker, *arguments)`` in the thread of a worker that is free, else of the first to be so.

        Args:
            function: what to call.
            arguments: further positional arguments.
            interrupt: called, from this loop, when nobody waits any more for a call that runs.

        Raises:
            Closed: stopped, or stopped before the call ended.
            BaseException: what the function raised.
        """
        if self._closed:
            raise Closed(f"{self._name} is stopped")
        value: T = await self._run(self._open(), function, arguments, interrupt)
        return value

    async def run_for_each(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Calls ``function(worker, *arguments)`` once for every worker, at the same time, and waits for all of them.

        Which thread calls it for which worker is not said.

        Args:
            function: what to call.
            arguments: further positional arguments.

        Raises:
            Closed: stopped.
            BaseException: what the function raised for the first worker for which it did.
        """
        if self._closed:
            raise Closed(f"{self._name} is stopped")
        crew = self._open()
        calls = (self._run(crew, _call_for, (worker, function, arguments), None) for worker in self._workers)
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def stop(self, *, drain: bool) -> None:
        """Ends and joins the threads; until ``start``, further calls raise :class:`Closed`. May be repeated.

        At the time limit of the stack that stops, else after :data:`~streaminfer._runtime.stopping.STOP_LIMIT_S`
        seconds, what waits or runs ends with :class:`Closed` in any case: processes are killed, and threads left
        behind.

        Args:
            drain: calls that wait or run are answered first; else those that wait end with :class:`Closed`, and those
                that run are interrupted where that is possible and awaited.
        """
        self._closed = True
        crew = self._crew
        if crew is None:
            return
        crew.dismiss()
        if not drain:
            for job in tuple(crew.jobs):
                job.abort(Closed(f"{self._name} was stopped"))
        await self._retire(crew, seconds_left(STOP_LIMIT_S))

    def _open(self) -> WorkerPool:
        with self._lock:
            if self._crew is None:
                self._crew = WorkerPool(self._workers, self._name)
                self._dropped = weakref.finalize(self, self._crew.dismiss)
                self._dropped.atexit = False  # _join_all also waits
            return self._crew

    async def _run(
        self,
        crew: WorkerPool,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        interrupt: Callable[[], None] | None,
    ) -> Any:
        job = Job(function, arguments, interrupt)
        if not crew.put(job):
            raise Closed(f"{self._name} is stopped")
        try:
            return await job.wait(self._hang_grace_s, crew.replace)
        finally:
            crew.jobs.discard(job)
            del job

    async def _retire(self, crew: WorkerPool, timeout_s: float | None) -> None:
        """Waits for the end of the threads; after the limit it does without."""
        ended = asyncio.wrap_future(crew.ended)
        await asyncio.wait({ended}, timeout=timeout_s)
        if not ended.done():
            error = Closed(f"{self._name} was stopped before it could answer")
            crew.interrupt(error)
            await asyncio.wait({ended}, timeout=KILL_GRACE_S)
            if not ended.done():
                crew.leave_behind(error)
                ended.cancel()
        if crew.ended.done():
            crew.ended.result()
            for thread in crew.threads:
                if thread is not threading.current_thread():
                    thread.join(KILL_GRACE_S)
        with self._lock:
            if self._crew is crew:
                self._crew = None
                self._dropped.detach()


class _NoWorker:
    """What a call needs that is no batch: nothing."""

    def kill(self) -> bool:
        return False

    def close(self) -> None:
        pass


async def call_apart(name: str, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a thread of its own, and not in the loop's executor, for which a program's end would wait.

    Who is cancelled does not wait for it either; the end of the interpreter does, for :data:`EXIT_LIMIT_S` at most.

    Args:
        name: of the thread.
        function: what to call.
        arguments: its positional arguments.

    Raises:
        BaseException: what the function raised.
    """
    crew = WorkerPool([_NoWorker()], name)
    job = Job(_call_alone, (function, arguments), None)
    crew.put(job)
    crew.dismiss()
    value: T = await job.wait(0.0, _is_left_alone)
    return value


def _call_alone(_own: _NoWorker, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    return function(*arguments)


def _is_left_alone(_job: Job) -> bool:
    return True


def _warm(_own: Worker, worker: Worker) -> None:
    worker.warm()


def _call_for(_own: Worker, worker: Worker, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    function(worker, *arguments)

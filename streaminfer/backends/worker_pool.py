"""Threads of one start, which take jobs from one queue; each thread drives one worker.

Invariants:

* A job is *claimed* exactly once: by the thread that runs it, or by the cancellation of its wait while it is queued. A
  cancelled batch that no thread has begun therefore ends at once.
* If a job still runs at the end of its grace period, it is *hung*: another thread replaces its thread. The hung thread
  ends when its call does, without an effect.
* At exit, the interpreter joins the threads within a time limit, so that none of them is inside native code then. After
  the limit, processes are killed, and threads, which are daemons, are abandoned.
* A thread refers only to its pool and its worker.
"""

import atexit
import queue
import threading
import time
import weakref
from concurrent.futures import Future
from typing import Any, Self

from streaminfer._internal.error_log import Log
from streaminfer._internal.forking import at_fork
from streaminfer._runtime.lifecycle import KILL_GRACE_S
from streaminfer.backends.job import Job
from streaminfer.errors import Closed

__all__ = ["Worker", "WorkerPool"]


class Worker:
    """The resources of one thread, such as a session, a process or a function; the base class has none."""

    def warm(self) -> None:
        """Prepare, so that the first batch is as fast as later ones; called from any thread, also during a call."""

    def close(self) -> None:
        """Free the resources; the worker can be used again afterwards."""

    def kill(self) -> bool:
        """End the running call at once, from any thread; false if that is impossible."""
        return False

    def forget(self) -> None:
        """Drop the parent's resources after a fork."""

    def renew(self) -> Self:
        """Return a replacement while a call hangs; the two share nothing that the hung call may write to."""
        return self


MAX_HUNG_PER_WORKER = 8
"""Abandoned threads per worker, so that a model that always hangs does not fill the process with threads."""

EXIT_LIMIT_S = 10.0
"""Seconds that the interpreter waits at exit for threads that were not stopped."""

_log = Log("streaminfer")


class _WorkerThread:
    """One worker, the thread that drives it, and the call that runs in it."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.job: Job | None = None
        self.abandoned = False
        self.thread: threading.Thread


class WorkerPool:
    """The threads of one start, from the first job to the end of the last one."""

    def __init__(self, workers: list[Any], name: str) -> None:
        self.queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.jobs: set[Job] = set()
        self.warm = False
        self.draining = False
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()  # so that no waiter can cancel it
        self._lock = threading.RLock()  # reentrant: garbage collection inside the lock may call `drain`
        self._workers = workers
        self._name = name
        self._working = len(workers)
        self._hung = 0
        self._started = 0
        self._threads: list[_WorkerThread] = []
        try:
            for worker in workers:
                self._threads.append(self._start_thread(worker))
        except BaseException:  # no more threads can start; those that started must end
            self.drain()
            raise
        _live_pools.add(self)

    @property
    def threads(self) -> list[threading.Thread]:
        """The threads that were not abandoned."""
        return [entry.thread for entry in self._threads if not entry.abandoned]

    def put(self, job: Job) -> bool:
        """Queue a job; return false if the pool is draining."""
        with self._lock:
            if self.draining:
                return False
            job.leave, job.replace = self.jobs.discard, self.replace
            self.jobs.add(job)
            self.queue.put(job)
            return True

    def drain(self) -> None:
        """Make every thread end once the queue is empty."""
        with self._lock:
            if self.draining:
                return
            self.draining = True
            for _ in self._threads:
                self.queue.put(None)

    def replace(self, job: Job) -> bool:
        """Replace the thread of a hung call, so that as many batches run at once as before.

        Returns:
            False if the call has just ended, if it will end soon because its process was killed, or if too many threads
            hang already.
        """
        with self._lock:
            number = next((number for number, entry in enumerate(self._threads) if entry.job is job), None)
            if number is None:
                return False
            entry = self._threads[number]
            if self._hung >= MAX_HUNG_PER_WORKER * len(self._threads):
                text = "%s, %s: a batch hangs, and so do %d others: its thread is not replaced"
                _log.warning(text, self._name, entry.thread.name, self._hung)
                return False
            if entry.worker.kill():
                _log.warning("%s: a batch hangs after its deadline: its worker process was killed", self._name)
                return False
            worker = entry.worker.renew()
            self._threads[number] = self._start_thread(worker)  # first, because the start of a thread can raise
            self._workers[number] = worker
            entry.abandoned = True
            self._hung += 1
        _log.warning(
            "%s: a batch hangs after its deadline: another thread takes the place of %s, and its result is dropped",
            self._name,
            entry.thread.name,
        )
        return True

    def interrupt(self, error: Closed) -> None:
        """End queued jobs, interrupt running ones, and kill processes."""
        self.drain()
        for job in tuple(self.jobs):  # first, so that no thread begins a batch after its process was killed
            job.abort(error)
        for worker in tuple(self._workers):
            worker.kill()

    def abandon(self, error: Closed) -> None:
        """End the calls that still run with ``error``; their threads end when the calls do, and are not joined."""
        with self._lock:
            hung = [(entry, entry.job) for entry in self._threads if entry.job is not None and not entry.abandoned]
            for entry, _ in hung:
                entry.abandoned = True
                self._hung += 1
            self._working -= len(hung)
            last = bool(hung) and not self._working
        for _, job in hung:
            job.abandon(error)
        if hung:
            names = ", ".join(entry.thread.name for entry, _ in hung)
            _log.warning("%s: stopped while a batch hangs: abandoned %s", self._name, names)
        _live_pools.discard(self)
        if last:
            self._end()

    def _start_thread(self, worker: Worker) -> _WorkerThread:
        entry = _WorkerThread(worker)
        name = f"{self._name}-{self._started}"
        self._started += 1
        entry.thread = threading.Thread(target=self._serve, args=(entry,), name=name, daemon=True)
        entry.thread.start()
        return entry

    def _serve(self, entry: _WorkerThread) -> None:
        last = False
        try:
            while (job := self.queue.get()) is not None:
                entry.job = job
                job.execute(entry.worker)
                del job  # so that an idle thread keeps no object of the last batch alive
                with self._lock:
                    entry.job = None
                    if entry.abandoned:
                        return
        finally:
            with self._lock:
                if entry.abandoned:
                    self._hung -= 1
                else:
                    self._working -= 1
                    last = not self._working
            if last:
                self._end()

    def _end(self) -> None:
        try:
            for worker in self._workers:
                worker.close()  # not earlier: until the last thread ends, any of them may warm any worker
        finally:
            self.ended.set_result(None)


_live_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()

at_fork(after_in_child=_live_pools.clear)


@atexit.register
def _join_all() -> None:
    """End the pools that were not stopped, within :data:`EXIT_LIMIT_S`; hung calls end with the interpreter."""
    pools = tuple(_live_pools)
    ends_at = time.monotonic() + EXIT_LIMIT_S
    for pool in pools:
        pool.drain()
    for pool in pools:
        for thread in pool.threads:
            thread.join(max(0.0, ends_at - time.monotonic()))
    error = Closed("the interpreter ends")
    for pool in pools:
        if any(thread.is_alive() for thread in pool.threads):
            pool.interrupt(error)
            ends_at = time.monotonic() + KILL_GRACE_S
            for thread in pool.threads:
                thread.join(max(0.0, ends_at - time.monotonic()))

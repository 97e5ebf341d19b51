"""Priority of a backend's worker threads: while a batch of the background runs, the lowest of the operating system.

Linux runs a thread with the policy ``SCHED_IDLE`` only where no other thread wants the core, and gives the core to
another one as soon as that wakes. A thread is lowered for the call of the model alone, which releases the interpreter
lock, and by a call that has released it too: with the lock in a thread that gets no core, the event loop would wait.
Both ways are a system call each.

Between two calls the thread has a nice value 10 higher than usual, a tenth of the usual weight. At the usual one the
event loop, which used more than its share while both wanted the core, owes the thread time, and the kernel (EEVDF)
keeps that debt when it lowers the thread: then the model holds up the loop all the same. The smallest debt is enough
where the loop and the thread of a foreground model take turns: as one of them goes to sleep, the kernel gives the core
to the thread that is owed time, and looks again at its next tick, after up to 4 ms (traced on Linux 6.18 with 250 ticks
a second).

So the thread yields its core as its call begins, and again as each batch of the foreground begins: whatever it is owed
is spent by then, and the kernel looks again at once. In the middle of a call a signal makes it do so, whose handler is
the system's ``sched_yield`` itself, which holds no lock and touches no memory. The signal is ``SIGURG``, which Go uses
for the same purpose: it is ignored by default, not queued, and no debugger stops at it. Where the process has a handler
of its own for it, none is sent.

Any thread may be lowered, but raised again only with the right to do so: ``CAP_SYS_NICE``, or a limit
``RLIMIT_NICE`` that allows the thread's nice value. So this is tried once, in a thread that ends then.
"""

import contextlib
import ctypes
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from streaminfer.capabilities import BackgroundRuns

__all__ = ["BatchPriority", "low_priority_obstacle"]

NICE = 10
"""Added to the nice value of a thread between its calls."""


class BatchPriority:
    """Priority of the batches of one backend, which its worker threads read.

    Thread-safety: everything may be called from any thread.

    Attributes:
        is_background: batches that begin from now on run at the lowest priority.
    """

    def __init__(self) -> None:
        self._lowered: dict[int, _Call] = {}  # by the system's number of the thread
        self._ended_ns: int | None = None
        self._nice: set[int] = set()  # threads
        self.is_background = False

    def set_background(self, is_background: bool) -> None:
        """Run later batches at the lowest priority, or at the usual one again."""
        self.is_background = is_background
        if not is_background:
            self._raise(tuple(self._nice))

    def raise_running(self) -> None:
        """Let the batches that run, or are about to, go on at the usual priority."""
        self.is_background = False  # until the next batch: a thread that gets no core may not have begun this one
        for thread in tuple(self._lowered):
            if self._lowered.pop(thread, None):  # its call has not ended
                _lowering().restore(thread)
                self._raise([thread])

    def yield_running(self) -> None:
        """Let the batches that run at the lowest priority give up their core once, for whatever else wants it."""
        number = _lowering().yield_signal
        for thread in tuple(self._lowered) if number else ():
            if thread in self._lowered:  # its call has not ended, nor has the thread, as it needs the interpreter lock
                signal.pthread_kill(self._lowered[thread].thread, number)

    def running_ns(self) -> int | None:
        """Return the CPU time that the batch that runs at the lowest priority has used; of several, the least."""
        used_ns = []
        for thread in tuple(self._lowered):
            with contextlib.suppress(OSError):  # the thread ended between the two calls
                if thread in self._lowered:  # as above
                    call = self._lowered[thread]
                    used_ns.append(time.clock_gettime_ns(time.pthread_getcpuclockid(call.thread)) - call.began_ns)
        return min(used_ns, default=None)

    def ended_ns(self) -> int | None:
        """Return the CPU time of the batch that ended last."""
        return self._ended_ns

    def capability(self, obstacle: str = "") -> BackgroundRuns:
        """Return what a `Device` needs of the backend.

        Args:
            obstacle: why its batches cannot be lowered; empty: only the system can stand against it.
        """
        return BackgroundRuns(
            self.set_background,
            self.raise_running,
            lambda: obstacle or low_priority_obstacle(),
            self.yield_running,
            self.running_ns,
            self.ended_ns,
        )

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function at the lowest priority, in a worker thread.

        Raises:
            BaseException: what the function raised; the thread has its usual priority then.
        """
        lowering = _lowering()
        thread = threading.get_native_id()
        if thread not in self._nice:
            self._nice.add(thread)
            lowering.set_nice(thread, True)
        began_ns = time.thread_time_ns()
        self._lowered[thread] = _Call(threading.get_ident(), began_ns)
        lowering.lower()
        if thread in self._lowered:
            lowering.yield_core()
        else:  # it was raised before it was lowered
            lowering.restore(thread)
        try:
            return function(*arguments)
        finally:
            self._lowered.pop(thread, None)
            self._ended_ns = time.thread_time_ns() - began_ns
            lowering.restore(thread)
            if not self.is_background:  # any more
                self._raise([thread])

    def _raise(self, threads: Iterable[int]) -> None:
        """Give threads their usual nice value."""
        for thread in threads:
            self._nice.discard(thread)
            with contextlib.suppress(ProcessLookupError):  # it has ended
                _lowering().set_nice(thread, False)


class _Call(NamedTuple):
    """A call that runs: its thread, as Python numbers it, and the CPU time of that as it began."""

    thread: int
    began_ns: int


def low_priority_obstacle() -> str:
    """Return why this process cannot lower and raise the priority of a thread; empty: it can."""
    return _lowering().obstacle


class _Lowering(NamedTuple):
    """How a thread is lowered and raised, or why not."""

    lower: Callable[[], object]
    restore: Callable[[int], object]
    set_nice: Callable[[int, bool], object]
    yield_core: Callable[[], object]
    yield_signal: int
    """Makes the thread that gets it yield its core; 0: there is none."""
    obstacle: str = ""


@functools.cache
def _lowering() -> _Lowering:
    try:
        policy = os.sched_getscheduler(0)
    except AttributeError:
        obstacle = "only Linux lowers and raises the priority of one thread"
        return _Lowering(_do_nothing, _do_nothing, _do_nothing, _do_nothing, 0, obstacle)
    parameters = os.sched_getparam(0)
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    system = ctypes.CDLL(None, use_errno=True)  # its functions run without the interpreter lock
    no_parameters = ctypes.byref(ctypes.c_int(0))

    def lower() -> None:
        if system.sched_setscheduler(0, os.SCHED_IDLE, no_parameters):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def usual(thread: int) -> None:
        os.sched_setscheduler(thread, policy, parameters)

    def set_nice(thread: int, is_nice: bool) -> None:
        os.setpriority(os.PRIO_PROCESS, thread, min(nice + NICE, 19) if is_nice else nice)

    lowering = functools.partial(_Lowering, lower, usual, set_nice, system.sched_yield, _yield_signal(system))
    if policy == os.SCHED_IDLE:
        return lowering("the whole process has the lowest priority")
    errors: list[OSError] = []

    def lower_and_raise() -> None:
        try:
            set_nice(0, True)
            lower()
            usual(0)
            set_nice(0, False)
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=lower_and_raise, name="streaminfer priority")
    thread.start()
    thread.join()
    if not errors:
        return lowering()
    return lowering(
        f"the priority of a thread cannot be raised again ({errors[0].strerror}): the process needs the capability "
        "CAP_SYS_NICE, or a limit RLIMIT_NICE of 20 (systemd: LimitNICE=+0; Docker: --ulimit nice=20)",
    )


def _yield_signal(system: ctypes.CDLL) -> int:
    """Return the signal that makes the thread that gets it yield its core; 0: it has another handler here."""
    handler = ctypes.cast(system.sched_yield, ctypes.c_void_p)
    known = (ctypes.c_void_p * 64)()  # a struct sigaction and more; it begins with the handler
    system.sigaction(signal.SIGURG, None, known)
    if known[0] not in (None, handler.value):
        return 0
    system.signal(signal.SIGURG, handler)
    return signal.SIGURG


def _do_nothing(*_arguments: object) -> None:
    pass

"""Priority of a backend's worker threads: the lowest of the operating system while a background batch runs.

Linux runs a thread with the policy ``SCHED_IDLE`` only if no other thread wants the core, and gives the core to another
thread as soon as that wakes. The worker is lowered only for the call of the model, which releases the interpreter lock,
and the system call that lowers it has released the lock too: if a thread held the lock but got no core, the event loop
would have to wait. Lowering and restoring cost one system call each.

Between two calls the thread has a nice value 10 higher than usual, which is a tenth of the usual weight. At the usual
nice value, the event loop may use more than its share while both want the core. It then owes the thread time, and the
kernel (EEVDF) keeps that debt when the thread is lowered: the model delays the loop all the same. The smallest debt is
enough if the loop and the thread of a foreground model take turns. When one of them goes to sleep, the kernel gives the
core to the thread that is owed time. It decides again only at its next tick, after up to 4 ms (traced on Linux 6.18
with 250 ticks a second).

The thread therefore yields its core when its call begins, and again when each foreground batch begins: its debt is
spent by then, and the kernel decides again at once. In the middle of a call, a signal makes the thread yield. The
signal's handler is the system's ``sched_yield``, which holds no lock and touches no memory. The signal is ``SIGURG``,
which Go uses for the same purpose: it is ignored by default, not queued, and no debugger stops at it. If the process
already has another handler for ``SIGURG``, no signal is sent.

Any thread may be lowered, but raising it again needs a right: ``CAP_SYS_NICE``, or a limit ``RLIMIT_NICE`` that allows
the thread's nice value. A short-lived thread therefore tries both once.
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
    """Priority of the batches of one backend; its worker threads read it.

    Thread-safety: all methods can be called from any thread.

    Attributes:
        is_background: whether batches that begin from now on run at the lowest priority.
    """

    def __init__(self) -> None:
        self._lowered: dict[int, _Call] = {}  # running calls, by native thread id
        self._ended_ns: int | None = None
        self._nice: set[int] = set()  # native ids of the threads with the higher nice value
        self.is_background = False

    def set_background(self, is_background: bool) -> None:
        """Run later batches at the lowest priority, or at the usual priority again."""
        self.is_background = is_background
        if not is_background:
            self._raise(tuple(self._nice))

    def raise_running(self) -> None:
        """Raise batches that run, or are about to run, to the usual priority."""
        self.is_background = False  # until the next batch: a thread without a core may not have begun this batch
        for thread in tuple(self._lowered):
            if self._lowered.pop(thread, None):  # its call has not ended
                _lowering().restore(thread)
                self._raise([thread])

    def yield_running(self) -> None:
        """Make each batch that runs at the lowest priority yield its core once, to any thread that wants it."""
        number = _lowering().yield_signal
        for thread in tuple(self._lowered) if number else ():
            if thread in self._lowered:  # the call has not ended, and the thread needs the interpreter lock to end
                signal.pthread_kill(self._lowered[thread].thread, number)

    def running_ns(self) -> int | None:
        """Return the CPU time of the batch that runs at the lowest priority, ns; of several, the least."""
        used_ns = []
        for thread in tuple(self._lowered):
            with contextlib.suppress(OSError):  # the thread ended between the two calls
                if thread in self._lowered:  # the call has not ended, and its thread needs the interpreter lock to end
                    call = self._lowered[thread]
                    used_ns.append(time.clock_gettime_ns(time.pthread_getcpuclockid(call.thread)) - call.began_ns)
        return min(used_ns, default=None)

    def ended_ns(self) -> int | None:
        """Return the CPU time of the background batch that ended last, ns."""
        return self._ended_ns

    def capability(self, obstacle: str = "") -> BackgroundRuns:
        """Return the controls with which a `Device` runs the backend in the background.

        Args:
            obstacle: why its batches cannot be lowered; empty: only the operating system can prevent it.
        """
        return BackgroundRuns(
            self.set_background,
            self.raise_running,
            lambda: obstacle or low_priority_obstacle(),
            self.yield_running,
            self.running_ns,
            self.ended_ns,
        )

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of a batch, at the lowest priority if the batch is in the background."""
        return self.run(function, *arguments) if self.is_background else function(*arguments)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function at the lowest priority, in a worker thread.

        Raises:
            BaseException: the exception of the function; the thread has its usual priority again.
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
        else:  # `raise_running` came before `lower`
            lowering.restore(thread)
        try:
            return function(*arguments)
        finally:
            self._lowered.pop(thread, None)
            self._ended_ns = time.thread_time_ns() - began_ns
            lowering.restore(thread)
            if not self.is_background:  # it changed during the call
                self._raise([thread])

    def _raise(self, threads: Iterable[int]) -> None:
        """Give threads their usual nice value."""
        for thread in threads:
            self._nice.discard(thread)
            with contextlib.suppress(ProcessLookupError):  # the thread has ended
                _lowering().set_nice(thread, False)


class _Call(NamedTuple):
    """A running call: Python's identifier of its thread, and the CPU time of the thread when the call began."""

    thread: int
    began_ns: int


def low_priority_obstacle() -> str:
    """Return why this process cannot lower and raise the priority of a thread; empty: it can."""
    return _lowering().obstacle


class _Lowering(NamedTuple):
    """Functions that lower and raise a thread, or the reason why this is not possible."""

    lower: Callable[[], object]
    restore: Callable[[int], object]
    set_nice: Callable[[int, bool], object]
    yield_core: Callable[[], object]
    yield_signal: int
    """Signal that makes the receiving thread yield its core; 0: no such signal."""
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
    system = ctypes.CDLL(None, use_errno=True)  # ctypes releases the interpreter lock for its functions
    no_parameters = ctypes.byref(ctypes.c_int(0))

    def lower() -> None:
        if system.sched_setscheduler(0, os.SCHED_IDLE, no_parameters):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def restore(thread: int) -> None:
        os.sched_setscheduler(thread, policy, parameters)

    def set_nice(thread: int, is_nice: bool) -> None:
        os.setpriority(os.PRIO_PROCESS, thread, min(nice + NICE, 19) if is_nice else nice)

    lowering = functools.partial(_Lowering, lower, restore, set_nice, system.sched_yield, _yield_signal(system))
    if policy == os.SCHED_IDLE:
        return lowering("the whole process has the lowest priority")
    errors: list[OSError] = []

    def lower_and_raise() -> None:
        try:
            set_nice(0, True)
            lower()
            restore(0)
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
    """Return the signal that makes the receiving thread yield its core; 0 if the process has another handler for it."""
    handler = ctypes.cast(system.sched_yield, ctypes.c_void_p)
    action = (ctypes.c_void_p * 64)()  # larger than a struct sigaction, which begins with the handler
    system.sigaction(signal.SIGURG, None, action)
    if action[0] not in (None, handler.value):
        return 0
    system.signal(signal.SIGURG, handler)
    return signal.SIGURG


def _do_nothing(*_arguments: object) -> None:
    pass

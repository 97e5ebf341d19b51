"""Locks of a process that forks while other threads hold them, and of its child."""

import os
import threading
import weakref

import numpy as np
import pytest
from forked import status_of_child

import streaminfer as si
from streaminfer._internal import forking
from streaminfer.backends.statistics import BackendRecorder
from streaminfer.batching.assembly.buffers import BufferPool
from streaminfer.batching.planner import kernel_loader
from streaminfer.caching.erasure.erasure import PendingErasure
from streaminfer.caching.erasure.retention_counts import RetentionCounts
from streaminfer.compliance.retention_log import RetentionLog
from streaminfer.streams.totals import SessionTotals
from streaminfer.telemetry import Outcomes
from streaminfer.telemetry.live_page.feed import Feed
from streaminfer.testing.faults import FaultPlan

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def status_beside_a_holder(lock, function):
    """Return the status of a child that is forked while another thread holds a lock."""
    is_held, go_on = threading.Event(), threading.Event()

    def hold():
        with lock:
            is_held.set()
            go_on.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    is_held.wait()
    status = status_of_child(function)
    go_on.set()
    holder.join()
    return status


def outcomes():
    part = Outcomes()
    return part._lock, lambda: part.report("unknown", "seen") is False


def slo():
    part = si.SLO("faces", threshold_s=0.1)
    return part._alert_lock, lambda: part.alerts() == ()


def recorder():
    part = BackendRecorder(1, None)
    return part._lock, lambda: part.end(1, None) is None


def buffers():
    part = BufferPool(1 << 20)
    return part._lock, lambda: part.take((8,), np.dtype(np.uint8)) is not None and part.held_bytes > 0


def counts():
    part = RetentionCounts(RetentionLog(), lambda: 0)

    def record():
        part.count("expired", "memory", "", "its time had passed")
        part.flush()
        return True

    return part._lock, record


def counts_in_file(tmp_path):
    part = RetentionCounts(RetentionLog(tmp_path / "log", secret=b"s" * 32), lambda: 0)

    def wait():
        part.catch_up()
        part.drain()
        return True

    return part._writer._changed, wait


def erasure():
    part = PendingErasure("anna", None)
    return part._lock, lambda: part.arm(0) is None and part.outcome.done()


def kernels():
    return kernel_loader._preparing, lambda: kernel_loader.prepare() is None


def totals():
    part = SessionTotals()
    return part._lock, lambda: part.snapshot().open_streams == 0


def faults():
    part = FaultPlan()
    return part._lock, lambda: part.draw() is not None


def feed():
    part = Feed([si.SLO("faces", threshold_s=0.1)], 1.0)
    return part._lock, lambda: part.refresh() > 0.0


def blocking():
    part = si.Stack(si.CpuBackend(np.negative)).blocking()

    def serve():
        with part:
            return part(1.0) == -1.0

    return part._lock, serve


MAKERS = [outcomes, slo, recorder, buffers, counts, counts_in_file, erasure, kernels, totals, faults, feed, blocking]


@pytest.mark.parametrize("make", MAKERS, ids=lambda it: it.__name__)
def test_forked_child_uses_what_parent_thread_holds(make, tmp_path):
    """A forked child can use an object whose lock a thread of its parent held at the fork.

    That thread is not in the child to release the lock.
    """
    lock, use = make(tmp_path) if make is counts_in_file else make()

    assert status_beside_a_holder(lock, use) == 0


def test_fork_under_reentrant_lock_keeps_the_lock():
    """A thread that forks while it holds a reentrant lock holds it in the child too."""
    lock = forking.new_reentrant_lock()

    def is_mine():
        return lock._is_owned()

    with lock:
        assert status_of_child(is_mine) == 0


def test_fork_waits_for_a_held_awaited_lock():
    """A fork waits for a thread that holds an awaited lock, so the child never sees a change half made."""
    lock, is_held, is_forking, done = forking.new_awaited_lock(), threading.Event(), threading.Event(), []
    os.register_at_fork(before=is_forking.set)  # the last one that is registered runs first

    def change():
        with lock:
            is_held.set()
            is_forking.wait()
            done.append("changed")

    changing = threading.Thread(target=change)
    changing.start()
    is_held.wait()
    status = status_of_child(lambda: done == ["changed"] and not lock.locked())
    changing.join()

    assert status == 0
    assert not lock.locked()


def test_methods_are_called_in_a_child():
    """A child calls the methods of the objects that it inherits, in the order in which they were added."""
    calls = []

    class Part:
        def __init__(self, name):
            self.name = name
            forking.call_in_child(self.forget)

        def forget(self):
            calls.append(self.name)

    first, dropped, second = Part("first"), Part("dropped"), Part("second")
    dropped_part = weakref.ref(dropped)
    del dropped

    assert dropped_part() is None
    assert status_of_child(lambda: calls == [first.name, second.name]) == 0
    assert calls == []

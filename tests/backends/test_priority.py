"""Priority of worker threads: the lowest while a background batch runs, and normal after it, whatever its outcome."""

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import streaminfer as si
from streaminfer.backends import priority
from streaminfer.backends.priority import BatchPriority, low_priority_obstacle
from streaminfer.errors import BackendError
from streaminfer.protocols import adapt

can_lower = pytest.mark.skipif(bool(low_priority_obstacle()), reason="this process cannot raise a thread's priority")


@pytest.fixture
def fresh(monkeypatch):
    """Return `monkeypatch`, and query the system again in this test and after it."""
    priority._lowering.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    priority._lowering.cache_clear()


def policy(*_arguments):
    return os.sched_getscheduler(0)


def background_runs(backend):
    return adapt(backend).capabilities().background_runs


@can_lower
def test_a_call_runs_at_the_lowest_priority():
    before = policy()

    assert BatchPriority().run(policy) == os.SCHED_IDLE
    assert policy() == before


@can_lower
def test_the_priority_is_back_after_an_error():
    before = policy()

    with pytest.raises(ZeroDivisionError):
        BatchPriority().run(lambda: 1 / 0)

    assert policy() == before


def nice():
    return os.getpriority(os.PRIO_PROCESS, 0)


@can_lower
def test_background_thread_stays_nice_between_calls():
    """A thread keeps its higher nice value between calls while it is in the background."""
    calls, before, seen = BatchPriority(), nice(), []

    def work():
        calls.set_background(True)
        calls.run(policy)
        seen.append(nice())
        calls.run(policy)
        seen.append(nice())
        calls.set_background(False)
        seen.append(nice())
        calls.run(policy)  # a call that begins just after the background has ended
        seen.append(nice())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    calls.set_background(False)  # does not fail although the thread has ended

    assert seen == [min(before + 10, 19), min(before + 10, 19), before, before]


@can_lower
def test_a_raised_call_has_the_normal_nice_value():
    calls, before, seen = BatchPriority(), nice(), []
    calls.set_background(True)

    def call():
        calls.raise_running()
        seen.append(nice())

    thread = threading.Thread(target=calls.run, args=(call,))
    thread.start()
    thread.join()

    assert seen == [before]


@can_lower
def test_call_raised_before_it_is_lowered_stays_raised(fresh):
    """A call whose priority is raised before it is lowered keeps its normal priority."""
    calls, before, seen = BatchPriority(), policy(), []
    known = priority._lowering()

    def lower_late():
        calls.raise_running()
        known.lower()

    fresh.setattr(priority, "_lowering", lambda: known._replace(lower=lower_late))
    seen.append(calls.run(policy))

    assert seen == [before]


def test_batch_raised_before_its_call_is_not_lowered():
    """A batch that is raised before its call begins is not lowered."""
    calls = BatchPriority()
    calls.set_background(True)

    calls.raise_running()

    assert not calls.is_background


def use_cpu(seconds):
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass


@can_lower
def test_cpu_time_is_known_during_and_after_a_call():
    """The CPU time of a call is known while it runs and after its end, and excludes the thread's other work."""
    calls, seen = BatchPriority(), []

    def call():
        use_cpu(0.002)
        seen.append(calls.running_ns())

    before = calls.running_ns(), calls.ended_ns()
    use_cpu(0.005)  # CPU time of the thread, but not of the call
    calls.run(call)

    assert before == (None, None)
    assert 2_000_000 <= seen[0] <= calls.ended_ns()
    assert calls.running_ns() is None


@can_lower
def test_cpu_time_of_several_calls_is_the_minimum():
    calls, is_used, ends = BatchPriority(), threading.Event(), threading.Event()

    def long_call():
        use_cpu(0.02)
        is_used.set()
        ends.wait()

    thread = threading.Thread(target=calls.run, args=(long_call,))
    thread.start()
    is_used.wait()
    both_ns = calls.run(calls.running_ns)
    long_ns = calls.running_ns()
    ends.set()
    thread.join()

    assert both_ns < 20_000_000 <= long_ns


@can_lower
def test_a_thread_that_ends_meanwhile_has_no_cpu_time(monkeypatch):
    calls = BatchPriority()
    calls._lowered = {1: priority._Call(threading.get_ident(), 0)}

    def ended(_clock):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(time, "clock_gettime_ns", ended)

    assert calls.running_ns() is None


def answers(backend, requests):
    """Return a backend's responses in real time, then the scheduling policy of a worker thread at the end.

    A boolean among the requests switches the background of the backend.
    """

    async def ask():
        told = []
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=1, slo_s=30.0), backend) as stack:
            for request in requests:
                if isinstance(request, bool):
                    background_runs(backend).set_background(request)
                else:
                    told += await asyncio.gather(stack(request), return_exceptions=True)
            told.append(await backend._threads.run(policy))
        return told

    return asyncio.run(ask())


@can_lower
def test_a_call_that_runs_is_raised():
    calls, seen = BatchPriority(), []

    def call():
        seen.append(policy())
        calls.raise_running()
        seen.append(policy())

    calls.run(call)
    calls.raise_running()  # nothing runs

    assert seen == [os.SCHED_IDLE, policy()]


@can_lower
def test_a_call_in_another_thread_is_raised():
    calls, began, raised, seen = BatchPriority(), threading.Event(), threading.Event(), []

    def call():
        seen.append(policy())
        began.set()
        raised.wait()
        seen.append(policy())

    thread = threading.Thread(target=calls.run, args=(call,))
    thread.start()
    began.wait()
    calls.raise_running()
    raised.set()
    thread.join()

    assert seen == [os.SCHED_IDLE, policy()]


@pytest.fixture
def yielded(monkeypatch):
    """Return a list to which each thread that is made to yield is added, with its signal."""
    priority._lowering()
    threads = []
    monkeypatch.setattr(signal, "pthread_kill", lambda thread, number: threads.append((thread, number)))
    return threads


@can_lower
def test_a_call_that_runs_yields(yielded):
    calls = BatchPriority()

    calls.yield_running()  # nothing runs
    calls.run(calls.yield_running)
    calls.yield_running()

    assert yielded == [(threading.get_ident(), signal.SIGURG)]


@can_lower
def test_a_call_that_was_raised_keeps_its_core(yielded):
    calls = BatchPriority()

    def call():
        calls.raise_running()
        calls.yield_running()

    calls.run(call)

    assert yielded == []


@can_lower
def test_a_call_that_just_ended_is_not_signalled(monkeypatch):
    calls, seen = BatchPriority(), []
    calls._lowered = {1: priority._Call(10, 0), 2: priority._Call(20, 0)}

    def end_the_other(thread, _number):
        seen.append(thread)
        calls._lowered.pop(2, None)

    monkeypatch.setattr(signal, "pthread_kill", end_the_other)
    calls.yield_running()

    assert seen == [10]


@can_lower
def test_a_call_yields_its_core_as_it_begins(monkeypatch):
    seen = []
    system = priority._lowering()._replace(yield_core=lambda: seen.append(policy()))
    monkeypatch.setattr(priority, "_lowering", lambda: system)

    BatchPriority().run(lambda: seen.append("call"))

    assert seen == [os.SCHED_IDLE, "call"]


@can_lower
def test_a_call_that_blocks_is_not_cut_short_by_yields():
    calls, began, done, seen = BatchPriority(), threading.Event(), threading.Event(), []

    def call():
        began.set()
        seen.append(os.read(reader, 1))
        done.wait()

    reader, writer = os.pipe()
    thread = threading.Thread(target=calls.run, args=(call,))
    thread.start()
    began.wait()
    for _ in range(1000):
        calls.yield_running()
    os.write(writer, b"x")
    done.set()
    thread.join()
    os.close(reader)
    os.close(writer)

    assert seen == [b"x"]


def caught_signals():
    """Return the numbers of the signals for which the system reports a handler of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    mask = int(next(line.split()[1] for line in lines if line.startswith("SigCgt:")), 16)
    return {number for number in signal.valid_signals() if mask >> (number - 1) & 1}


@can_lower
def test_python_does_not_see_the_yield_signal(fresh):
    """The signal that makes a thread yield has a native handler, which Python does not see."""
    assert low_priority_obstacle() == ""
    assert signal.SIGURG in caught_signals()
    assert signal.getsignal(signal.SIGURG) == signal.SIG_DFL


@can_lower
def test_an_application_signal_handler_stays_installed(fresh):
    seen, calls = [], BatchPriority()
    signal.signal(signal.SIGURG, lambda *_arguments: seen.append("urgent"))
    try:
        calls.run(calls.yield_running)
        nothing = seen.copy()
        signal.raise_signal(signal.SIGURG)
    finally:
        signal.signal(signal.SIGURG, signal.SIG_DFL)

    assert (nothing, seen) == ([], ["urgent"])


@can_lower
def test_function_runs_in_background_on_request():
    """A function runs at background priority exactly while it is set to the background."""
    seen = []

    def model(rows):
        seen.append(policy())
        if np.isnan(rows).any():
            raise ValueError("broken")
        return rows

    *_, failure, _last, between = answers(si.CpuBackend(model), [1.0, True, 1.0, np.nan, False, 1.0])

    assert isinstance(failure, BackendError)
    assert seen == [between, os.SCHED_IDLE, os.SCHED_IDLE, between]
    assert between != os.SCHED_IDLE


@can_lower
def test_onnx_model_runs_in_background_on_request(doubling, monkeypatch):
    """An ONNX model runs at background priority exactly while it is set to the background."""
    seen = []
    lowered = BatchPriority.run

    def run(self, function, *arguments):
        def note():
            seen.append(policy())
            return function(*arguments)

        return lowered(self, note)

    monkeypatch.setattr(BatchPriority, "run", run)
    row = np.ones(2, np.float32)

    *rows, after = answers(si.OnnxBackend(doubling), [row, True, row])

    assert [each.tolist() for each in rows] == [[2.0, 2.0]] * 2
    assert seen == [os.SCHED_IDLE]
    assert after != os.SCHED_IDLE


class Held:
    """Call that records its thread's scheduling policy when it begins, and again when the test lets it continue."""

    def __init__(self):
        self.began, self.may_end, self.seen = threading.Event(), threading.Event(), []

    def __call__(self, rows=None):
        self.seen.append(policy())
        self.began.set()
        self.may_end.wait()
        self.seen.append(policy())
        return rows

    async def end_early(self, backend, request, how):
        """Send a request in the background, and cancel it or stop the stack while it runs."""
        stack = si.Stack(si.AdaptiveBatcher(max_batch_size=1, slo_s=30.0), backend)
        await stack.start()
        background_runs(backend).set_background(True)
        asking = asyncio.create_task(stack(request))
        await asyncio.to_thread(self.began.wait)
        stopping = None
        if how == "cancel":
            asking.cancel()
        else:
            stopping = asyncio.create_task(stack.stop(drain=False))
        await asyncio.wait([asking])
        self.may_end.set()
        await (stopping or stack.stop())


@can_lower
@pytest.mark.parametrize("how", ["cancel", "stop"])
def test_an_abandoned_function_is_raised(how):
    call = Held()

    asyncio.run(call.end_early(si.CpuBackend(call), 1.0, how))

    assert call.seen == [os.SCHED_IDLE, policy()]


@can_lower
@pytest.mark.parametrize("how", ["cancel", "stop"])
def test_onnx_model_without_waiting_callers_is_raised(doubling, monkeypatch, how):
    """The priority of a running ONNX model is raised when its caller stops waiting or the stack stops."""
    call, lowered = Held(), BatchPriority.run
    monkeypatch.setattr(BatchPriority, "run", lambda self, run, *rest: lowered(self, lambda: (call(), run(*rest))[1]))

    asyncio.run(call.end_early(si.OnnxBackend(doubling), np.ones(2, np.float32), how))

    assert call.seen == [os.SCHED_IDLE, policy()]


@can_lower
def test_reloaded_model_stays_in_background(doubling, monkeypatch):
    """An ONNX model that was reloaded stays in the background."""
    seen = []
    lowered = BatchPriority.run
    monkeypatch.setattr(BatchPriority, "run", lambda self, *call: (seen.append(1), lowered(self, *call))[1])
    backend = si.OnnxBackend(doubling)
    background_runs(backend).set_background(True)

    asyncio.run(backend.reload(doubling))
    seen.clear()
    answers(backend, [np.ones(2, np.float32)])

    assert seen


@pytest.mark.parametrize(
    ("options", "obstacle"),
    [({"executor": "process"}, "processes of its own"), ({"executor": "inline"}, "on the event loop")],
    ids=["process", "inline"],
)
def test_function_outside_threads_cannot_be_lowered(options, obstacle):
    """A function that runs in processes or on the event loop cannot be lowered, and the obstacle says why."""
    assert obstacle in background_runs(si.CpuBackend(np.sqrt, **options)).obstacle()


@pytest.mark.parametrize(
    ("options", "obstacle"),
    [
        ({"executor": "inline"}, "on the event loop"),
        ({"threads": 2}, "threads=1"),
        ({"binding": "pageable"}, "binding='pageable'"),
    ],
    ids=["inline", "threads", "binding"],
)
def test_onnx_backend_names_the_obstacle_to_lowering(doubling, options, obstacle):

    assert obstacle in background_runs(si.OnnxBackend(doubling, **options)).obstacle()


def test_missing_scheduler_policy_is_an_obstacle(fresh):
    fresh.delattr(os, "sched_getscheduler", raising=False)

    assert low_priority_obstacle() == "only Linux lowers and raises the priority of one thread"
    assert BatchPriority().run(lambda: 3) == 3


@pytest.mark.skipif(not hasattr(os, "sched_setscheduler"), reason="needs Linux")
def test_missing_right_to_raise_names_rlimit_nice(fresh):
    """The obstacle names RLIMIT_NICE if the process has no right to raise a priority again."""

    def refuse(_pid, chosen, _parameters):
        if chosen != os.SCHED_IDLE:
            raise PermissionError(1, "Operation not permitted")

    fresh.setattr(os, "sched_setscheduler", refuse)

    obstacle = low_priority_obstacle()

    assert obstacle.startswith("the priority of a thread cannot be raised again (Operation not permitted)")
    assert "RLIMIT_NICE" in obstacle


@pytest.mark.skipif(not hasattr(os, "sched_setscheduler"), reason="needs Linux")
def test_lowest_process_priority_is_an_obstacle(fresh):
    fresh.setattr(os, "sched_getscheduler", lambda _pid: os.SCHED_IDLE)

    assert low_priority_obstacle() == "the whole process has the lowest priority"

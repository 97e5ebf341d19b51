"""Worker threads: every call ends once, for the right reason, and no thread outlives its owner."""

import asyncio
import gc
import random
import subprocess
import sys
import threading
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaminfer import errors
from streaminfer.backends.worker_pool import Worker
from streaminfer.backends.workers import WorkerThreads

PATIENCE_S = 30  # only ever reached by a test that fails


class Bench(Worker):
    """Worker that counts its warm-ups and closes, and whose warm-up can fail."""

    def __init__(self):
        self.warmed = 0
        self.closed = 0
        self.warm_error = None

    def warm(self):
        self.warmed += 1
        if self.warm_error is not None:
            raise self.warm_error

    def close(self):
        self.closed += 1


class Gate:
    """Job that records when a thread begins it, and ends when the test opens it or the pool interrupts it."""

    def __init__(self, result=None):
        self.result = result
        self.begun = threading.Event()
        self.opened = threading.Event()
        self.interrupted = 0

    def __call__(self, _worker):
        self.begun.set()
        assert self.opened.wait(PATIENCE_S)
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result

    def interrupt(self):
        self.interrupted += 1
        self.opened.set()

    async def until_begun(self):
        assert await asyncio.to_thread(self.begun.wait, PATIENCE_S)


def run(main):
    return asyncio.run(asyncio.wait_for(main, PATIENCE_S))


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


def test_call_runs_in_a_thread_with_its_worker():
    """A call runs in a worker thread and receives that thread's worker and its own arguments."""

    async def main():
        workers = [Bench(), Bench()]
        pool = WorkerThreads(workers, "pool")
        seen = await pool.run(lambda worker, *rest: (worker, rest, threading.current_thread().name), 1, 2)
        assert seen[0] in workers
        assert seen[1:] == ((1, 2), f"pool-{workers.index(seen[0])}")
        assert threading.current_thread().name != seen[2]
        await pool.stop(drain=True)
        assert all(worker.closed >= 1 for worker in workers)
        assert all(worker.warmed == 0 for worker in workers)

    run(main())


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), StopIteration(4)])
def test_exception_of_a_call_reaches_the_caller(error):
    async def main():
        pool = WorkerThreads([Bench()], "pool")

        def fail(_worker):
            raise error

        with pytest.raises((type(error), RuntimeError)) as caught:
            await pool.run(fail)
        assert error in (caught.value, caught.value.__cause__)  # a coroutine cannot raise StopIteration itself
        assert await pool.run(lambda _worker: "still there") == "still there"
        await pool.stop(drain=True)

    run(main())


def test_concurrent_calls_equal_the_number_of_workers():
    """As many calls run at the same time as there are workers."""

    async def main():
        pool = WorkerThreads([Bench(), Bench()], "pool")
        gates = [Gate(number) for number in range(3)]
        tasks = [asyncio.create_task(pool.run(gate)) for gate in gates]
        await gates[0].until_begun()
        await gates[1].until_begun()
        assert not gates[2].begun.is_set()
        gates[1].opened.set()
        await gates[2].until_begun()
        for gate in gates:
            gate.opened.set()
        assert await asyncio.gather(*tasks) == [0, 1, 2]
        await pool.stop(drain=True)

    run(main())


def test_cancelled_queued_call_never_runs():
    """A queued call that is cancelled ends at once and never runs."""

    async def main():
        pool = WorkerThreads([Bench()], "pool")
        running, queued = Gate(), Gate()
        first = asyncio.create_task(pool.run(running))
        await running.until_begun()
        second = asyncio.create_task(pool.run(queued))
        await turns()
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        running.opened.set()
        await first
        await pool.stop(drain=True)
        assert not queued.begun.is_set()

    run(main())


def test_cancelled_running_call_is_interrupted_once():
    """A running call that is cancelled is interrupted once, and awaited until it ends."""

    async def main():
        pool = WorkerThreads([Bench()], "pool")
        gate, interruptions = Gate(), []
        task = asyncio.create_task(pool.run(gate, interrupt=lambda: interruptions.append(1)))
        await gate.until_begun()
        for _ in range(3):
            task.cancel()
            await turns()
            assert not task.done()
        assert interruptions == [1]
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await pool.run(lambda _worker: 1) == 1
        await pool.stop(drain=True)

    run(main())


def test_failure_after_cancellation_is_not_reported():
    """A call that fails after it was cancelled is not reported to the loop's exception handler."""
    complaints = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        pool = WorkerThreads([Bench()], "pool")
        gate = Gate(ValueError("nobody waits for it"))
        task = asyncio.create_task(pool.run(gate, interrupt=gate.interrupt))
        await gate.until_begun()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await pool.stop(drain=True)
        del task, gate
        gc.collect()

    run(main())
    assert complaints == []


def test_stop_with_drain_completes_queued_calls():
    async def main():
        worker = Bench()
        pool = WorkerThreads([worker], "pool")
        gate = Gate("answer")
        tasks = [asyncio.create_task(pool.run(gate)), asyncio.create_task(pool.run(lambda _worker: "queued"))]
        await gate.until_begun()
        stopping = [asyncio.create_task(pool.stop(drain=True)) for _ in range(2)]
        await turns()
        with pytest.raises(errors.Closed, match="pool is stopped"):
            await pool.run(lambda _worker: None)
        assert not any(task.done() for task in stopping)
        gate.opened.set()
        await asyncio.gather(*stopping)
        assert await asyncio.gather(*tasks) == ["answer", "queued"]
        await pool.stop(drain=False)

    run(main())


def test_stop_without_drain_ends_queued_and_running():
    """Without drain, a stop ends queued calls and interrupts running ones; both raise `Closed`."""

    async def main():
        pool = WorkerThreads([Bench()], "pool")
        gate = Gate(RuntimeError("interrupted"))
        running = asyncio.create_task(pool.run(gate, interrupt=gate.interrupt))
        await gate.until_begun()
        queued = asyncio.create_task(pool.run(lambda _worker: "never"))
        await turns()
        await pool.stop(drain=False)
        for task in (running, queued):
            with pytest.raises(errors.Closed, match="pool was stopped"):
                await task
        assert gate.interrupted == 1

    run(main())


def test_stop_awaits_calls_that_cannot_be_interrupted():
    """Without drain, a stop awaits calls that cannot be interrupted, and they end with their own outcomes."""

    async def main():
        pool = WorkerThreads([Bench()], "pool")
        gates = [Gate("answer"), Gate(ValueError("its own"))]
        for gate in gates:
            await pool.start()
            task = asyncio.create_task(pool.run(gate))
            await gate.until_begun()
            stopping = asyncio.create_task(pool.stop(drain=False))
            await turns()
            assert not stopping.done()
            gate.opened.set()
            await stopping
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            assert outcome is gate.result

    run(main())


def test_start_warms_each_worker_once():
    """A start warms each worker once, even if a call came before it; a start after a stop warms them again."""

    async def main():
        workers = [Bench(), Bench()]
        pool = WorkerThreads(workers, "pool")
        await pool.run(lambda _worker: None)
        await pool.start()
        await pool.start()
        assert [worker.warmed for worker in workers] == [1, 1]
        await pool.stop(drain=True)
        with pytest.raises(errors.Closed):
            await pool.run(lambda _worker: None)
        await pool.start()
        assert [worker.warmed for worker in workers] == [2, 2]
        assert await pool.run(lambda _worker: 1) == 1
        await pool.stop(drain=True)

    run(main())


def test_start_waits_for_a_stop_in_flight():
    async def main():
        pool = WorkerThreads([Bench()], "pool")
        gate = Gate()
        task = asyncio.create_task(pool.run(gate))
        await gate.until_begun()
        stopping = asyncio.create_task(pool.stop(drain=True))
        await turns()
        starting = asyncio.create_task(pool.start())
        await turns()
        assert not starting.done()
        gate.opened.set()
        await asyncio.gather(task, stopping, starting)
        assert await pool.run(lambda _worker: 1) == 1
        await pool.stop(drain=True)

    run(main())


def test_worker_that_cannot_be_warmed_fails_start():
    """A worker that cannot be warmed fails the start, which leaves no thread."""

    async def main():
        workers = [Bench(), Bench()]
        workers[1].warm_error = OSError("no memory")
        pool = WorkerThreads(workers, "pool")
        with pytest.raises(OSError, match="no memory"):
            await pool.start()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("pool")]
        with pytest.raises(errors.Closed):
            await pool.run(lambda _worker: None)
        workers[1].warm_error = None
        await pool.start()
        await pool.stop(drain=True)

    run(main())


def test_a_cancelled_start_leaves_no_thread():
    async def main():
        worker = Bench()
        gate = Gate()
        worker.warm = lambda: gate(worker)
        pool = WorkerThreads([worker], "pool")
        starting = asyncio.create_task(pool.start())
        await gate.until_begun()
        starting.cancel()
        await turns()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("pool")]

    run(main())


def test_a_cancelled_stop_still_ends_the_threads():
    async def main():
        pool = WorkerThreads([Bench()], "pool")
        gate = Gate("answer")
        task = asyncio.create_task(pool.run(gate))
        await gate.until_begun()
        stopping = asyncio.create_task(pool.stop(drain=True))
        await turns()
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        gate.opened.set()
        assert await task == "answer"
        await pool.stop(drain=True)

    run(main())


def test_several_loops_share_the_workers():
    pool = WorkerThreads([Bench(), Bench()], "pool")
    answers = []

    async def main(name):
        answers.extend([await pool.run(lambda _worker: name) for _ in range(50)])

    threads = [threading.Thread(target=asyncio.run, args=(main(name),)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(pool.stop(drain=True))
    assert sorted(answers) == sorted([0, 1, 2, 3] * 50)


def test_a_closed_event_loop_does_not_break_the_worker():
    pool = WorkerThreads([Bench()], "pool")
    gate = Gate()

    async def main():
        task = asyncio.create_task(pool.run(gate))
        await gate.until_begun()
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(main())
    loop.close()
    gate.opened.set()
    assert asyncio.run(pool.run(lambda _worker: 1)) == 1
    asyncio.run(pool.stop(drain=True))
    task._log_destroy_pending = False  # abandoned on purpose


def test_a_pool_that_is_dropped_lets_its_threads_end():
    pool = WorkerThreads([Bench(), Bench()], "pool")
    asyncio.run(pool.run(lambda _worker: None))
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("pool")]
    assert len(threads) == 2
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_idle_thread_holds_nothing_of_its_last_job():
    """An idle thread keeps no reference to the arguments of its last job.

    Reference counts alone free them, because the test turns the garbage collector off.
    """

    class Thing:
        pass

    def answer(_worker, given):
        return given

    def fail(_worker, given):
        raise ValueError(given)

    async def main():
        pool = WorkerThreads([Bench()], "pool")
        for function in (answer, fail):
            thing, gone = Thing(), threading.Event()
            reference = weakref.ref(thing, lambda _reference, gone=gone: gone.set())
            await asyncio.gather(pool.run(function, thing), return_exceptions=True)
            del thing
            assert await asyncio.to_thread(gone.wait, PATIENCE_S)
            assert reference() is None
        await pool.stop(drain=True)

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


def test_running_thread_is_joined_at_interpreter_exit():
    """A thread that is running a call is joined when the interpreter exits."""
    program = """
import asyncio, atexit, threading
from streaminfer.backends import CpuBackend
from streaminfer.request import Batch, Request
begun, leaving = threading.Event(), threading.Event()
def function(inputs):
    begun.set()
    leaving.wait()
    sum(range(1_000_000))  # long enough for an interpreter that does not wait to be gone
    print("finished", flush=True)
    return inputs
atexit.register(leaving.set)
backend = CpuBackend(function)
loop = asyncio.new_event_loop()
task = loop.create_task(backend.infer(Batch([1], [Request(None)])))
loop.run_until_complete(loop.run_in_executor(None, begun.wait))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stdout == "finished\n"


def test_forgotten_stop_does_not_hang_the_interpreter():
    """The interpreter exits without a warning even if a backend was never stopped."""
    program = """
import asyncio
from streaminfer.backends import CpuBackend
from streaminfer.request import Batch, Request
backend = CpuBackend(abs, executor="process", workers=2)
print(asyncio.run(backend.infer(Batch(3, [Request(None)]))))
thread = CpuBackend(abs)
print(asyncio.run(thread.infer(Batch(-4, [Request(None)]))))
"""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["3", "4"], "")


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    jobs=st.lists(st.sampled_from(["answer", "raise"]), min_size=1, max_size=8),
    cancelled=st.sets(st.integers(0, 7)),
    stop=st.sampled_from(["drain", "now"]),
)
def test_every_call_ends_once_with_the_right_outcome(seed, jobs, cancelled, stop):
    """Each call ends once, in any order of cancellations, ends of jobs, and a stop.

    It ends with its own outcome only if it has begun, with `CancelledError` only if it was cancelled, and with `Closed`
    only if a stop without drain came before it began.
    """

    async def main():
        shuffle = random.Random(seed).shuffle
        pool = WorkerThreads([Bench(), Bench()], "pool")
        gates = [Gate(number if kind == "answer" else ValueError(number)) for number, kind in enumerate(jobs)]
        tasks = [asyncio.create_task(pool.run(gate)) for gate in gates]
        for gate in gates[:2]:
            await gate.until_begun()
        steps = [tasks[number].cancel for number in cancelled if number < len(jobs)]
        steps += [gate.opened.set for gate in gates]
        shuffle(steps)
        half = len(steps) // 2
        for step in steps[:half]:
            step()
            await turns(1)
        stopping = asyncio.create_task(pool.stop(drain=stop == "drain"))
        await turns(1)
        for step in steps[half:]:
            step()
            await turns(1)
        await stopping
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for number, (gate, outcome) in enumerate(zip(gates, outcomes, strict=True)):
            if isinstance(outcome, asyncio.CancelledError):
                assert number in cancelled
            elif isinstance(outcome, errors.Closed):
                assert stop == "now"
                assert not gate.begun.is_set()
            else:
                assert gate.begun.is_set()
                assert outcome is gate.result

    run(main())


def test_run_for_each_calls_once_for_every_worker():
    async def main():
        workers = [Bench() for _ in range(3)]
        pool = WorkerThreads(workers, "pool")
        seen = []

        await pool.run_for_each(lambda worker, more: seen.append((worker, more)), 5)

        assert sorted(seen, key=lambda one: workers.index(one[0])) == [(worker, 5) for worker in workers]
        await pool.stop(drain=True)
        with pytest.raises(errors.Closed):
            await pool.run_for_each(seen.append)

    run(main())


def test_run_for_each_raises_after_all_have_ended():
    async def main():
        workers = [Bench() for _ in range(3)]
        pool = WorkerThreads(workers, "pool")
        seen = []

        def fail(worker):
            seen.append(worker)
            if worker is workers[0]:
                raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await pool.run_for_each(fail)
        assert len(seen) == 3
        await pool.stop(drain=True)

    run(main())

"""Sender processes, which share one schedule."""

import asyncio
import contextlib
import multiprocessing
import os
import select
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from streaminfer.loadtest import Constant, Measured, Progress, Record, run
from streaminfer.loadtest.sending.sender_processes import _collect


async def say_process(number):
    return Measured(number, values={"process": float(os.getpid()), "number": float(number)})


def make_service():
    return say_process


def make_noting(path):
    async def note(_number):
        with path.open("ab") as file:
            file.write(b".")

    return note


def make_nothing():
    raise LookupError("no server there")


def end_process():
    os._exit(3)


def make_stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return say_process


def sockets():
    """Return the open sockets of this process, which include the pipes to processes."""
    return {path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_socket()}


SETTINGS = {"arrivals": Constant(100.0), "inputs": range(40), "duration_s": 0.4, "slo_s": 5.0}


def test_processes_share_the_schedule():
    """Each request of the schedule is sent once, with its inputs, from one of the processes."""
    report = asyncio.run(run(make_service, senders=2, **SETTINGS))

    assert report.outcomes == {"ok": 40}
    np.testing.assert_array_equal(report.record.values["number"], np.arange(40.0))
    processes = report.record.values["process"]
    assert len(set(processes.tolist())) == 2
    assert os.getpid() not in processes
    np.testing.assert_array_equal(processes[::2], processes[0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (make_nothing, LookupError, "no server there"),
        (end_process, RuntimeError, "a sender process ended before its requests did"),
        (lambda: None, TypeError, "service: expected something importable from its module"),
        (say_process, TypeError, "service: expected a function without arguments that returns the service"),
    ],
    ids=["error", "exit", "lambda", "service"],
)
def test_failing_sender_fails_the_run(make, error, message):
    """The run raises the error of a sender process, or an error that says that the process ended."""
    with pytest.raises(error, match=message):
        asyncio.run(run(make, senders=1, **SETTINGS))


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("make", [make_service, make_stubborn], ids=["service", "ignores SIGTERM"])
def test_cancelled_run_ends_its_processes(make, times):
    """A cancelled run ends its processes and closes their pipes, even if it is cancelled again meanwhile."""

    async def main():
        before, begun = sockets(), asyncio.Event()
        settings = {**SETTINGS, "duration_s": 60.0, "progress": lambda _progress: begun.set()}
        test = asyncio.create_task(run(partial(make), senders=1, **settings))
        await begun.wait()
        children = multiprocessing.active_children()
        for _ in range(times):
            test.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([test])
        return test.cancelled(), [child.exitcode for child in children], sockets() - before

    assert asyncio.run(main()) == (True, [-signal.SIGKILL], set())


def send_for_long(pipe):
    settings = {
        **SETTINGS,
        "duration_s": 3600.0,
        "progress": lambda _progress: pipe.send(multiprocessing.active_children()[0].pid),
    }
    asyncio.run(run(make_service, senders=1, **settings))


def test_senders_end_with_their_parent():
    """Senders end if a signal kills their parent, which then cannot end them, as in a CI job that takes too long."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    parent = context.Process(target=send_for_long, args=(theirs,))
    parent.start()
    sender = os.pidfd_open(ours.recv())
    try:
        parent.kill()
        parent.join()
        ended, _, _ = select.select([sender], [], [], 30.0)
        assert ended == [sender]
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(sender, signal.SIGKILL)
        os.close(sender)
        for pipe in (ours, theirs):
            pipe.close()


def test_more_senders_than_requests():
    """If there are more senders than requests, some send nothing."""
    report = asyncio.run(run(make_service, senders=3, **{**SETTINGS, "duration_s": 0.02}))

    assert report.outcomes == {"ok": 2}


def test_sender_that_is_killed():
    """A process that dies while it sends fails the run, and the others end."""

    async def main():
        killed = []

        def kill(_progress):
            if not killed:
                killed.extend(multiprocessing.active_children())
                killed[1].kill()

        settings = {**SETTINGS, "duration_s": 60.0, "progress": kill}
        with pytest.raises(RuntimeError, match="a sender process ended before its requests did"):
            await run(make_service, senders=2, **settings)
        return [child.is_alive() for child in killed]

    assert asyncio.run(main()) == [False, False]


def test_progress_is_of_all_processes():
    """Progress is reported when each running process has reported its own, and includes processes that have ended."""
    ours, theirs = zip(*(multiprocessing.Pipe() for _ in range(3)), strict=True)
    shares = [(10, 30, 50), (5, 20, 50), ()]
    for pipe, sent in zip(theirs, shares, strict=True):
        pipe.send("ready")
        for number in sent[:2]:
            pipe.send(Progress(1.0, 5.0, number, 50, 2))
        due = np.zeros(sent[-1] if sent else 7)
        pipe.send(Record(due, due, due, np.full(due.size, "ok")))
    told = []

    records = _collect(list(ours), told.append, True)

    assert [len(record) for record in records] == [50, 50, 7]
    assert told == [Progress(1.0, 5.0, 7 + 30 + 5, 107, 4)]
    for pipe in (*ours, *theirs):
        pipe.close()


def test_error_in_progress_is_raised(tmp_path):
    """If ``progress`` raises, all requests are still sent; then the run raises the error of that one call."""
    told, path = [], tmp_path / "requests"

    def fail(progress):
        told.append(progress)
        raise LookupError("no terminal")

    with pytest.raises(LookupError, match="no terminal"):
        asyncio.run(run(partial(make_noting, path), senders=1, **{**SETTINGS, "duration_s": 2.2, "progress": fail}))

    assert len(told) == 1
    assert len(path.read_bytes()) == 220

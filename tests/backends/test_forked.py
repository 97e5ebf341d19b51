"""Backends in a forked process: they wait for no lock or thread of the parent, and leave its workers alone."""

import os
import subprocess
import sys

import pytest

PATIENCE_S = 30

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

PROGRAM = """
import asyncio, os, sys, threading
import numpy as np
from streaminfer.backends import CpuBackend, OnnxBackend
from streaminfer.backends import workers as _workers
from streaminfer.request import Batch, Request

def answer(backend):
    return asyncio.run(asyncio.wait_for(backend.infer(Batch(np.ones((1, 2), np.float32), [Request(None)])), 10))

def in_child(function):
    child = os.fork()
    if not child:
        try:
            print(function(), flush=True)
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
            os._exit(1)
        sys.exit(0)  # an ordinary end, with everything that runs then
    os.waitpid(child, 0)
"""


def outcome_of(program, *arguments):
    # Python 3.12 and later warn about a fork of a process with threads, which is what these tests do
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", PROGRAM + program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_backend_that_was_used_before_the_fork(executor):
    program = f"""
backend = CpuBackend(np.negative, executor={executor!r})
answer(backend)
in_child(lambda: answer(backend).tolist())
print("parent", answer(backend).tolist())
asyncio.run(backend.stop())
"""
    assert outcome_of(program) == ["[[-1.0, -1.0]]", "parent [[-1.0, -1.0]]"]


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_backend_made_in_the_child(executor):
    program = f"""
first = CpuBackend(np.negative, executor={executor!r})
answer(first)
in_child(lambda: answer(CpuBackend(np.abs, executor={executor!r})).tolist())
print("parent", answer(first).tolist())
"""
    assert outcome_of(program) == ["[[1.0, 1.0]]", "parent [[-1.0, -1.0]]"]


def test_fork_server_of_parent_from_another_library():
    """A backend of the child can use processes although another library started a fork server in the parent.

    streaminfer uses processes for the first time in the child, as in gunicorn's forked workers.
    """
    program = """
from multiprocessing import forkserver
forkserver.ensure_running()
in_child(lambda: answer(CpuBackend(np.abs, executor="process")).tolist())
"""
    assert outcome_of(program) == ["[[1.0, 1.0]]"]


def test_model_of_parent_does_not_start_in_child():
    """The start of a parent's ONNX backend fails in the child; otherwise a ready stack would fail each request."""
    program = """
backend = OnnxBackend("examples/assets/blaze_front.onnx")
in_child(lambda: asyncio.run(backend.start()))
"""
    [said] = outcome_of(program)
    assert said.endswith("make the backend in the forked process")


def test_child_ignores_resource_tracker_of_parent():
    """The child neither uses nor waits for the parent's resource tracker.

    Only the parent can wait for the tracker; CPython 3.13 also tries when the child exits, and prints a traceback.
    """
    program = """
from multiprocessing.resource_tracker import _resource_tracker
backend = CpuBackend(np.negative, executor="process")
answer(backend)
print(_resource_tracker._pid is None, flush=True)
in_child(lambda: _resource_tracker._pid is None)
asyncio.run(backend.stop())
"""
    assert outcome_of(program) == ["False", "True"]


def test_locks_held_at_fork_are_free_in_child():
    """Locks that a thread of the parent held at the fork are free in the child."""
    program = """
from streaminfer.backends.cpu import processes as _processes
backend = CpuBackend(np.negative)
answer(backend)
held, go = threading.Event(), threading.Event()
def hold():
    with backend._threads._lock, backend._threads._pool._lock, _processes._lifecycle:
        held.set()
        go.wait()
threading.Thread(target=hold).start()
held.wait()
in_child(lambda: answer(backend).tolist() + answer(CpuBackend(np.abs, executor="process")).tolist())
go.set()
"""
    assert outcome_of(program) == ["[[-1.0, -1.0], [1.0, 1.0]]"]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_does_not_outlive_a_fork(threads, doubling, tmp_path):
    """A backend rejects batches in a forked child before it uses the parent's session.

    If the child uses the session, onnxruntime aborts or hangs when the child exits.
    """
    path = tmp_path / "doubling.onnx"
    path.write_bytes(doubling)
    program = f"""
backend = OnnxBackend({str(path)!r}, threads={threads})
answer(backend)
in_child(lambda: [row.tolist() for row in answer(backend)])
print("parent", [row.tolist() for row in answer(backend)])
asyncio.run(backend.stop())
"""
    child, parent = outcome_of(program)
    assert "make the backend in the forked process" in child
    assert parent == "parent [[2.0, 2.0]]"


def test_another_stack_of_same_backend_works_in_child():
    """While a stack runs in the parent, the child can use another stack of the same backend."""
    program = """
import streaminfer as si
backend = CpuBackend(np.negative)
stack = si.Stack(backend)
async def use(stack):
    async with stack:
        return float(await stack(1.0))
async def main():
    async with stack:
        child = os.fork()
        if not child:
            asyncio._set_running_loop(None)
            print(asyncio.new_event_loop().run_until_complete(use(si.Stack(backend))), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        return float(await stack(2.0))
print(asyncio.run(main()))
"""
    assert outcome_of(program) == ["-1.0", "-2.0"]


def test_part_started_by_parent_is_started_in_child():
    """The child starts a part that the parent has started, even if the lock of the owners was held at the fork."""
    program = """
import streaminfer as si
from streaminfer._runtime import owners as _owners
class Part:
    starts = 0
    async def start(self):
        self.starts += 1
    async def infer(self, batch):
        return batch.inputs
part = Part()
async def use():
    async with si.Stack(part) as stack:
        return float(await stack(2.0)), part.starts
async def main():
    async with si.Stack(part):
        with _owners._lock:
            child = os.fork()
        if not child:
            asyncio._set_running_loop(None)
            print(asyncio.new_event_loop().run_until_complete(use()), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        return part.starts
print(asyncio.run(main()))
"""
    assert outcome_of(program) == ["(2.0, 2)", "1"]

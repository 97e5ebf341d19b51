"""A forked process has no states of its parent and does not wait for the parent's steps."""

import os
import subprocess
import sys

import pytest

PATIENCE_S = 30

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

PROGRAM = """
import asyncio, os, signal, threading
import numpy as np
import streaminfer as si
from streaminfer.protocols import ExampleInputs
from streaminfer.streams import StatefulBackend

class Never:
    def __await__(self):
        yield

class Sum:
    returns_new_arrays = True
    waits = False

    def example_inputs(self):
        return ExampleInputs({"x": np.zeros(()), "sum": np.zeros(())}, self.infer)

    async def infer(self, batch):
        y = batch.inputs["x"] + batch.inputs["sum"]
        if self.waits:
            await Never()
        return {"y": y, "next": y}

inner = Sum()
model = StatefulBackend(inner, state={"sum": "next"})
step = lambda x: model.infer(si.Batch(np.array([x]), [si.Request(x, stream_id="a")]))
ask = lambda x: float(asyncio.run(asyncio.wait_for(step(x), 10))[0])
assert [ask(1.0), ask(2.0)] == [1.0, 3.0]

inner.waits = True
running = step(4.0)
running.send(None)  # it runs, and never ends in the child
inner.waits = False
locked, go_on = threading.Event(), threading.Event()

def hold():
    with model._store.lock:
        locked.set()
        go_on.wait()

thread = threading.Thread(target=hold)
thread.start()
locked.wait()
child = os.fork()
if not child:
    signal.alarm(15)
    print("child", ask(8.0), model.statistics().streams, flush=True)
    running.close()
    print("child", ask(8.0), flush=True)
    os._exit(0)
go_on.set()
thread.join()
os.waitpid(child, 0)
running.close()
print("parent", ask(16.0), flush=True)
"""


def test_forked_child_begins_at_the_initial_state():
    """A child forked with a held lock and a running step begins at the initial state; the parent continues."""
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["child 8.0 1", "child 16.0", "parent 19.0"]

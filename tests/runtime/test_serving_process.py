"""Garbage collection of the process while stacks serve."""

import asyncio
import gc
import os
import subprocess
import sys

import pytest

import streaminfer as si
from streaminfer._runtime import serving_process
from streaminfer.batching.planner.lookahead import Lookahead
from streaminfer.testing import ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


class Node:
    """Object that can be part of a cycle."""


def cycle():
    node = Node()
    node.own = node
    return node


@pytest.fixture(scope="module", autouse=True)
def _thawed():
    """Unfreeze the heap, as in a process that manages no collector; the tests of the next file freeze it again."""
    gc.unfreeze()


@pytest.fixture
def loop():
    """Yield an open loop, and forget stacks of loops that other tests closed without a stop."""
    loop = asyncio.new_event_loop()
    serving_process.leave(serving_process.enter(loop))
    yield loop
    loop.close()


@pytest.fixture
def thresholds():
    """Yield the thresholds of the collector, and restore them after the test."""
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


def test_heap_stays_frozen_until_last_unfreeze(loop):
    """While the second of two stacks runs, the heap stays frozen, even if the first one leaves twice."""
    first = serving_process.enter(loop)
    second = serving_process.enter(loop)
    assert gc.get_freeze_count() > 0

    serving_process.leave(first)
    serving_process.leave(first)
    assert gc.get_freeze_count() > 0

    serving_process.leave(second)
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize(("before", "during"), [(700, 2_000), (50_000, 50_000), (0, 0)])
def test_youngest_generation_is_collected_less_often(loop, thresholds, before, during):
    """A stack raises a low threshold, so that requests in flight are visited less often; a higher one, or 0, stays."""
    gc.set_threshold(before, *thresholds[1:])

    hold = serving_process.enter(loop)
    assert gc.get_threshold() == (during, *thresholds[1:])

    serving_process.leave(hold)
    assert gc.get_threshold() == (before, *thresholds[1:])


def test_a_threshold_that_was_set_meanwhile_stays(loop, thresholds):
    """A threshold that the application sets while a stack runs is not reset at the stop."""
    hold = serving_process.enter(loop)
    gc.set_threshold(900, *thresholds[1:])

    serving_process.leave(hold)

    assert gc.get_threshold()[0] == 900


def test_objects_frozen_by_interpreter_do_not_count():
    """The heap is frozen even if the interpreter has frozen objects, as CPython 3.12 does at its start."""
    code = "import gc; gc.get_freeze_count = lambda: 375\n"
    code += "import asyncio; from streaminfer._runtime import serving_process as process\n"
    code += "frozen = []; gc.freeze = lambda: frozen.append(1)\n"
    code += "process.enter(asyncio.new_event_loop()); print(frozen)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[1]\n"


def test_objects_created_later_are_collected(loop):
    """The collector leaves out only objects that existed at the start."""
    hold = serving_process.enter(loop)
    later = cycle()
    del later

    assert gc.collect() >= 1
    serving_process.leave(hold)


def test_garbage_of_before_is_collected_first(loop):
    """Unreachable cycles are collected before the heap is frozen."""
    gc.disable()
    try:
        before = cycle()
        del before
        hold = serving_process.enter(loop)
        assert not any(type(one) is Node for one in gc.get_objects())
    finally:
        gc.enable()
        serving_process.leave(hold)


def test_a_process_that_froze_objects_is_left_alone(loop):
    """If the application has frozen objects, a stack freezes nothing and unfreezes nothing."""
    gc.freeze()
    frozen = gc.get_freeze_count()

    hold = serving_process.enter(loop)
    assert gc.get_freeze_count() <= frozen
    serving_process.leave(hold)
    assert gc.get_freeze_count() > 0
    gc.unfreeze()


@pytest.mark.usefixtures("loop")
def test_objects_created_by_the_start_are_not_frozen():
    """Objects that the start of a backend creates, such as connections, can be collected while the stack runs."""

    class Connected(ScriptedBackend):
        async def start(self):
            self.connection = cycle()

    async def main():
        backend = Connected()
        async with si.Stack(backend):
            backend.connection = None
            assert gc.collect() >= 1

    asyncio.run(main())


@pytest.mark.parametrize("ends", ["enters", "leaves"])
def test_closed_loop_does_not_count_as_running(loop, ends):
    """When another stack starts or stops, a stack whose loop was closed without a stop does not count as running."""
    lost = asyncio.new_event_loop()
    other = serving_process.enter(loop) if ends == "leaves" else None
    serving_process.enter(lost)
    lost.close()
    if ends == "enters":
        before = cycle()
        del before
        other = serving_process.enter(loop)
        assert not any(type(one) is Node for one in gc.get_objects())  # frozen again, in its current state

    serving_process.leave(other)

    assert gc.get_freeze_count() == 0


def test_stack_starts_again_after_its_loop_was_closed(loop):
    """A stack whose loop was closed without a stop holds the heap only once after its next start."""
    stack = si.Stack(ScriptedBackend())
    asyncio.run(stack.start())

    async def main():
        async with stack:
            assert gc.get_freeze_count() > 0
        assert gc.get_freeze_count() == 0

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_has_no_stacks():
    """In a forked process the stacks of the parent do not run, so its heap is not frozen."""
    code = """
import asyncio, gc, os
import streaminfer as si
from streaminfer.testing import ScriptedBackend

async def main():
    async with si.Stack(ScriptedBackend()):
        pid = os.fork()
        if not pid:
            os._exit(10 + (gc.get_freeze_count() == 0))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "11\n"


def test_kernels_are_loaded_before_the_freeze(loop, monkeypatch):
    """Kernels, also those of a nested stack, are loaded before the freeze, so that the objects of Numba are frozen."""
    counts = []

    def prepare(_self, *, wait):
        if wait:
            counts.append(gc.get_freeze_count())
        return wait

    monkeypatch.setattr(Lookahead, "prepare", prepare)

    async def main():
        inner = si.Stack(si.AdaptiveBatcher(max_batch_size=2), ScriptedBackend())
        async with si.Stack(si.Telemetry(), inner):
            pass

    asyncio.run(main())
    assert counts[0] == 0


@pytest.mark.usefixtures("loop")
def test_a_stack_freezes_while_it_runs():
    """A stack freezes the heap from the end of its start to the end of its stop."""

    async def main():
        async with si.Stack(ScriptedBackend()) as service:
            assert gc.get_freeze_count() > 0
            await service(1.0)
        assert gc.get_freeze_count() == 0

    asyncio.run(main())


@pytest.mark.usefixtures("loop")
def test_a_start_that_fails_freezes_nothing():
    """A stack whose start fails does not freeze the heap."""

    class Broken(ScriptedBackend):
        async def start(self):
            raise ValueError("x")

    async def main():
        with pytest.raises(ValueError, match="x"):
            await si.Stack(Broken()).start()

    asyncio.run(main())
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("loop")
def test_virtual_time_freezes_nothing():
    """In virtual time a stack freezes nothing: no pause matters there, and tests start thousands of stacks."""

    async def main(loop):
        async with si.Stack(ScriptedBackend(), clock=loop.clock):
            assert gc.get_freeze_count() == 0

    run(main)

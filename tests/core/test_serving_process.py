"""Settings of the process while stacks serve: the frozen heap and the switch interval."""

import asyncio
import gc
import sys

import pytest

import streaminfer as si
from streaminfer import _serving_process
from streaminfer.testing import ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


class Node:
    """Something that can be part of a cycle."""


def cycle():
    node = Node()
    node.own = node
    return node


@pytest.fixture(autouse=True)
def _no_stack_serves(monkeypatch):
    """Other tests close loops without stopping their stacks, which then hold the process for ever."""
    interval_s = sys.getswitchinterval()
    monkeypatch.setattr(_serving_process, "_holders", 0)
    gc.unfreeze()
    sys.setswitchinterval(0.005)
    yield
    assert gc.get_freeze_count() == 0
    assert sys.getswitchinterval() == pytest.approx(0.005)
    sys.setswitchinterval(interval_s)


def test_what_exists_is_left_out_until_the_last_unfreeze():
    """Two stacks hold the heap; the second unfreeze puts everything back."""
    _serving_process.enter()
    _serving_process.enter()
    assert gc.get_freeze_count() > 0

    _serving_process.leave()
    assert gc.get_freeze_count() > 0

    _serving_process.leave()
    assert gc.get_freeze_count() == 0


def test_what_comes_later_is_collected():
    """Only what existed at the start is left out."""
    _serving_process.enter()
    later = cycle()
    del later

    assert gc.collect() >= 1
    _serving_process.leave()


def test_garbage_of_before_is_collected_first():
    """A cycle that nothing refers to is freed before the rest is left out."""
    gc.disable()
    try:
        before = cycle()
        del before
        _serving_process.enter()
        assert not any(type(one) is Node for one in gc.get_objects())
    finally:
        gc.enable()
        _serving_process.leave()


def test_a_process_that_froze_objects_is_left_alone():
    """Where the application manages its collector, nothing is frozen and nothing put back."""
    gc.freeze()
    frozen = gc.get_freeze_count()

    _serving_process.enter()
    assert gc.get_freeze_count() <= frozen
    _serving_process.leave()
    assert gc.get_freeze_count() > 0
    gc.unfreeze()


def test_threads_wait_less_for_the_lock():
    """The switch interval is 1 ms while any stack serves, and the default again after the last."""
    _serving_process.enter()
    _serving_process.enter()
    assert sys.getswitchinterval() == pytest.approx(0.001)

    _serving_process.leave()
    assert sys.getswitchinterval() == pytest.approx(0.001)

    _serving_process.leave()
    assert sys.getswitchinterval() == pytest.approx(0.005)


def test_an_interval_of_the_process_is_kept():
    """A process that chose its own switch interval keeps it."""
    sys.setswitchinterval(0.002)
    try:
        _serving_process.enter()
        assert sys.getswitchinterval() == pytest.approx(0.002)
        _serving_process.leave()
        assert sys.getswitchinterval() == pytest.approx(0.002)
    finally:
        sys.setswitchinterval(0.005)


def test_what_the_start_opens_is_not_frozen():
    """Connections of a backend can be collected while the stack runs."""

    class Connected(ScriptedBackend):
        async def start(self):
            self.connection = cycle()

    async def main():
        backend = Connected()
        async with si.Stack(backend):
            backend.connection = None
            assert gc.collect() >= 1

    asyncio.run(main())


def test_a_stack_freezes_while_it_runs():
    """A stack leaves out what exists from the end of its start to the end of its stop."""

    async def main():
        async with si.Stack(ScriptedBackend()) as service:
            assert gc.get_freeze_count() > 0
            await service(1.0)
        assert gc.get_freeze_count() == 0

    asyncio.run(main())


def test_a_start_that_fails_freezes_nothing():
    """Only a stack that runs holds the heap."""

    class Broken(ScriptedBackend):
        async def start(self):
            raise ValueError("x")

    async def main():
        with pytest.raises(ValueError, match="x"):
            await si.Stack(Broken()).start()

    asyncio.run(main())
    assert gc.get_freeze_count() == 0


def test_virtual_time_freezes_nothing():
    """In virtual time nothing takes long, and tests start thousands of stacks."""

    async def main(loop):
        async with si.Stack(ScriptedBackend(), clock=loop.clock):
            assert gc.get_freeze_count() == 0

    run(main)

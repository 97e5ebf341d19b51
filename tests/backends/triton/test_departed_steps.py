"""Steps of sequences whose callers leave while other callers of the batch wait; without a server."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from triton_settings import make_settings

from streaminfer.backends.triton.request_splitter import RequestSplitter
from streaminfer.backends.triton.sequences import SequenceLost, Sequences
from streaminfer.errors import Overloaded
from streaminfer.request import Batch, Request


class WatchedBatch(Batch):
    """Batch of one step for each given stream; the test sets which callers have left."""

    __slots__ = ("departed",)

    def __init__(self, *streams):
        super().__init__({"x": np.zeros((len(streams), 1))}, [Request(0.0, stream_id=stream) for stream in streams])
        self.departed = []

    def left(self, now_ns):
        return self.departed


class Server:
    """Session whose steps wait for the test, and which counts the steps of each sequence."""

    def __init__(self):
        self.model = SimpleNamespace(by_row=True, decoupled=False, max_batch_size=8, priority_levels=0)
        self.signature = SimpleNamespace(batch_by_name=lambda inputs, _name: inputs)
        self.sequences = Sequences("TYPE_UINT64", 5.0, 100)
        self.changes = 0
        self.steps = {}
        self.gates = []

    async def infer(self, arrays, size, parameters, timeout_s):
        gate = asyncio.Event()
        self.gates.append(gate)
        await gate.wait()
        sequence = parameters["sequence_id"]
        self.steps[sequence] = 1 if parameters["sequence_start"] else self.steps[sequence] + 1
        return [self.steps[sequence]]

    async def open_gate(self, number):
        self.gates[number].set()
        await settle()


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


async def step(splitter, server, stream):
    """Run one step of a stream alone, and return its number in the sequence."""
    running = asyncio.create_task(splitter.infer(WatchedBatch(stream)))
    await settle()
    await server.open_gate(-1)
    return (await running)[0]


@pytest.fixture
def scripted():
    """Return a function that runs a scenario with a splitter and its server."""

    def run(scenario):
        async def main():
            server = Server()
            await scenario(RequestSplitter(server, make_settings(timeout_s=5.0, clock=lambda: 0), lambda: None), server)

        asyncio.run(main())

    return run


def test_step_with_cancelled_caller_loses_its_sequence(scripted):
    """If the caller of a step leaves but the step succeeds, its stream begins again; the other streams continue."""

    async def scenario(splitter, server):
        batch = WatchedBatch("a", "b")
        running = asyncio.create_task(splitter.infer(batch))
        await settle()
        batch.departed = [0]
        await server.open_gate(0)
        await server.open_gate(1)
        await running

        assert [await step(splitter, server, stream) for stream in "ab"] == [1, 2]

    scripted(scenario)


def test_steps_queued_behind_a_lost_step_are_lost(scripted):
    """A step that is queued in the backend behind a lost step is lost too, and never reaches the model."""

    async def scenario(splitter, server):
        batch = WatchedBatch("a", "b")
        running = asyncio.create_task(splitter.infer(batch))
        behind = asyncio.create_task(splitter.infer(WatchedBatch("a")))
        await settle()
        batch.departed = [0]
        await server.open_gate(0)
        await server.open_gate(1)
        await running

        assert isinstance((await behind)[0], SequenceLost)
        assert sum(server.steps.values()) == 2

    scripted(scenario)


def test_caller_that_leaves_after_step_loses_sequence(scripted):
    """A caller that leaves after its step has completed loses its sequence.

    Its batch still runs for other callers; a later step of the stream in the batch is lost too.
    """

    async def scenario(splitter, server):
        batch = WatchedBatch("a", "b", "a")
        running = asyncio.create_task(splitter.infer(batch))
        await settle()
        await server.open_gate(0)
        await server.open_gate(2)
        batch.departed = [0]
        await server.open_gate(1)

        first, other, second = await running
        assert (first, other) == (1, 1)
        assert isinstance(second, SequenceLost)
        assert [await step(splitter, server, stream) for stream in "ab"] == [1, 2]

    scripted(scenario)


def test_batch_cancelled_after_a_step_loses_sequence(scripted):
    """A batch that is cancelled after one of its steps has completed loses the sequence of that step.

    Its caller does not know whether the step completed or was interrupted.
    """

    async def scenario(splitter, server):
        running = asyncio.create_task(splitter.infer(WatchedBatch("a", "b")))
        await settle()
        await server.open_gate(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

        assert [await step(splitter, server, stream) for stream in "ab"] == [1, 1]
        assert len(server.sequences) == 2

    scripted(scenario)


def test_stream_with_long_step_is_not_evicted():
    """A stream is not evicted for another stream right after a step that took long.

    Its idle time begins when the step completes, not when the step arrives.
    """

    async def main():
        server, now_ns = Server(), 0
        server.sequences = Sequences("TYPE_UINT64", 5.0, 1)
        settings = make_settings(timeout_s=5.0, clock=lambda: now_ns)
        splitter = RequestSplitter(server, settings, lambda: None)
        running = asyncio.create_task(splitter.infer(WatchedBatch("a")))
        await settle()
        now_ns = 6_000_000_000
        await server.open_gate(0)
        await running

        assert isinstance((await splitter.infer(WatchedBatch("b")))[0], Overloaded)
        assert await step(splitter, server, "a") == 2

    asyncio.run(main())

"""Fixtures for the examples, which are scripts outside the package: their folder is on the path, as when they run."""

import asyncio
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

import streaminfer as si
from streaminfer.testing import ScriptedBackend

EXAMPLES = Path(__file__).parents[2] / "examples"
# environments of the frameworks are shared with the benchmarks, and not part of the package
sys.path.append(str(EXAMPLES.parent / "benchmarks"))


@pytest.fixture(autouse=True)
def _examples_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture
def examples():
    return EXAMPLES


@pytest.fixture
def demo(_examples_can_be_imported):
    """Return a function that imports a module of the examples by name."""
    return importlib.import_module


@pytest.fixture
def clip(demo):
    chunks = [np.full(512, number, np.float32) for number in range(10)]
    return demo("demo.audio").Clip("clip", np.zeros(5120, np.float32), chunks)


@pytest.fixture
def make_voice():
    """Return a function that makes a scripted model and the states of its streams, like the demo's voice detector."""

    def make(*steps, then, **options):
        example = {"input": np.zeros(576, np.float32), "state": np.zeros((2, 128), np.float32)}
        model = ScriptedBackend(*steps, then=then, batch_axes={"state": 1}, example=example, **options)
        states = si.streams.StatefulBackend(model, state={"state": "stateN"}, context={"input": 64}, max_streams=1024)
        return model, states

    return make


class DetectorByHand:
    """Detector with some threads in virtual time, each of which takes 4.5 ms for a chunk."""

    def __init__(self, loop, threads):
        self.clock = loop.clock
        self._threads = asyncio.Semaphore(threads)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def detect(self, stream_id, chunk, deadline_ns, *, discontinuity=False):
        async with self._threads:
            if self.clock() > deadline_ns:
                return None
            await asyncio.sleep(0.0045)
            return 0.0


@pytest.fixture
def make_stage(demo, clip, make_voice):
    """Return a function that makes a stage on a machine of 4 ms per batch and 0.5 ms per chunk.

    The machine holds about 50 microphones batched, and 7 unbatched.
    """

    def detect(batch):
        states = batch.inputs["state"]
        return [{"output": states[0, row, :1], "stateN": states[:, row]} for row in range(states.shape[1])]

    def make(loop, say=lambda _: None):
        def make_service(way):
            _, states = make_voice(then=detect, duration_s=lambda rows: 0.004 + 0.0005 * rows)
            batcher = si.AdaptiveBatcher(max_batch_size=64, max_in_flight=way.sessions, max_queue_size=4096)
            return si.Stack(si.Telemetry(way.name), batcher, states, clock=loop.clock)

        def make_by_hand(way):
            return DetectorByHand(loop, max(way.threads, 1))

        return demo("demo.trials").Stage(clip, None, 0, say, make_service, make_by_hand)

    return make

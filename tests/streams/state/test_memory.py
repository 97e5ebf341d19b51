"""Large states: no memory is allocated per step, and none is left."""

import tracemalloc

import numpy as np
import pytest

import streaminfer as si
from streaminfer.protocols import ExampleInputs
from streaminfer.streams import StatefulBackend

pytestmark = pytest.mark.uncompiled

ROWS, SIZE = 8, 1 << 17  # of float64: 1 MB


class Handing:
    """Model that returns one of six outputs that it allocated when it was made."""

    returns_new_arrays = True

    def __init__(self):
        self.states = [np.zeros((ROWS, SIZE)) for _ in range(6)]
        self.turn = 0

    def example_inputs(self):
        return ExampleInputs({"x": np.zeros(()), "state": np.zeros(SIZE)}, self.infer)

    async def infer(self, batch):
        kept = batch.inputs["state"]
        self.turn = (self.turn + 1) % len(self.states)
        state = self.states[self.turn]
        state[:, 0] = kept[:, 0] + batch.inputs["x"]
        return {"y": state[:, 0].copy(), "next": state}


@pytest.mark.parametrize("streams", [ROWS, 2 * ROWS], ids=["the same", "others"])
async def test_steps_allocate_nothing(loop, streams):
    """Steps with 8 MB of state reuse the memory of earlier steps."""
    model = StatefulBackend(Handing(), state={"state": "next"})
    rng = np.random.default_rng(3)
    totals = np.zeros(streams)

    async def step():
        chosen = rng.permutation(streams)[:ROWS]
        batch = si.Batch(np.arange(ROWS) + 1.0, [si.Request(None, stream_id=int(k)) for k in chosen])
        results = await model.infer(batch)
        totals[chosen] += np.arange(ROWS) + 1.0
        assert results == totals[chosen].tolist()

    for _ in range(12):
        await step()
    tracemalloc.start()
    try:
        await step()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(6):
            await step()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak - before < 200_000
    await model.stop()
    assert model.statistics().bytes == 0

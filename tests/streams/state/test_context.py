"""The model reads the last samples of a stream before those of the next request."""

import numpy as np
import pytest

import streaminfer as si
from streaminfer.protocols import ExampleInputs
from streaminfer.streams import StatefulBackend

pytestmark = pytest.mark.uncompiled


class Total:
    """Model that adds what it reads; its input has two samples of context before three of the request."""

    returns_new_arrays = True

    def __init__(self, shape, dtype):
        self.example = {"x": np.zeros(shape, dtype), "sum": np.zeros((), dtype)}
        self.read = []

    def example_inputs(self):
        return ExampleInputs(self.example, self.infer)

    async def infer(self, batch):
        self.read.append(batch.inputs["x"])
        x, total = batch.inputs["x"], batch.inputs["sum"]
        sums = total + x.reshape(len(x), -1).sum(1, dtype=total.dtype)
        return {"y": sums, "next": sums}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
@pytest.mark.parametrize("axis", [0, 1, 2])
async def test_a_context_precedes_each_chunk(loop, axis, dtype):
    """Along any axis, each stream's chunk comes after the end of its chunk before, and the first one after zeros."""
    shape = [2, 2, 2]
    shape[axis] = 5
    inner = Total(tuple(shape), dtype)
    model = StatefulBackend(inner, state={"sum": "next"}, context={"x": (2, axis)})
    shape[axis] = 9
    whole = np.random.default_rng(1).integers(1, 9, (2, *shape)).astype(dtype)
    chunks = np.split(whole, 3, axis + 1)

    for chunk in chunks:
        await model.infer(si.Batch(chunk, [si.Request(None, stream_id=stream) for stream in range(2)]))

    before = np.zeros_like(np.take(whole, [0, 1], axis + 1))
    padded = np.concatenate((before, whole), axis + 1)
    for number, read in enumerate(inner.read):
        assert read.dtype == dtype
        assert np.array_equal(read, np.take(padded, range(3 * number, 3 * number + 5), axis + 1))

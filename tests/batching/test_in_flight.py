"""`max_in_flight`: by default, as many batches run at once as the backend has workers."""

import asyncio
import contextvars
from pathlib import Path

import numpy as np
import pytest

import streaminfer as si
from streaminfer.testing import ScriptedBackend, run

pytestmark = pytest.mark.uncompiled

ASSETS = Path(__file__).parents[2] / "examples" / "assets"


class Server(ScriptedBackend):
    """Backend that knows its number of workers only after its start, and gets no batch early."""

    returns_new_arrays = False

    def __init__(self, *counts, **options):
        super().__init__(**options)
        self.counts = list(counts)
        self.queued_workers = None
        self.most = 0

    async def start(self):
        self.queued_workers = self.counts.pop(0)

    async def infer(self, batch):
        answer = asyncio.ensure_future(super().infer(batch))
        await asyncio.sleep(0)
        self.most = max(self.most, self.running)
        return await answer


def in_flight(backend, **options):
    batcher = si.AdaptiveBatcher(max_batch_size=4, **options)
    si.Stack(batcher, si.CircuitBreaker(), backend)
    return batcher.max_in_flight


def test_max_in_flight_is_the_backends_worker_count():
    assert in_flight(si.CpuBackend(np.negative, workers=3)) == 3
    assert in_flight(si.CpuBackend(np.negative, executor="inline")) == 1
    assert in_flight(ScriptedBackend()) == 1
    assert in_flight(si.CpuBackend(np.negative, workers=3), max_in_flight=2) == 2
    assert in_flight(si.CpuBackend(np.negative, workers=3), policy="greedy") == 3


def test_each_onnx_session_runs_one_batch():
    pytest.importorskip("onnxruntime")
    model = si.OnnxBackend(ASSETS / "blaze_front.onnx", sessions=2)
    assert in_flight(model) == 2


@pytest.mark.parametrize("policy", ["lookahead", "greedy"])
def test_worker_count_is_read_at_each_start(policy):
    """The batcher reads the backend's number of workers at each start, and runs that many batches at once."""

    async def main(loop):
        backend = Server(3, 5, 2, duration_s=0.01)
        batcher = si.AdaptiveBatcher(max_batch_size=1, policy=policy)
        stack = si.Stack(batcher, backend, clock=loop.clock)
        seen = []
        for _ in range(3):
            backend.most = 0
            async with stack:
                await asyncio.gather(*(stack(float(number)) for number in range(20)))
            seen.append((backend.most, batcher.max_in_flight))
        return seen, batcher.statistics()

    seen, statistics = run(main)
    assert seen == [(3, 3), (5, 5), (2, 2)]
    assert statistics.succeeded == 60


def test_given_max_in_flight_overrides_the_backend():
    async def main(loop):
        backend = Server(5, duration_s=0.01)
        stack = si.Stack(si.AdaptiveBatcher(max_batch_size=1, max_in_flight=2), backend, clock=loop.clock)
        async with stack:
            await asyncio.gather(*(stack(float(number)) for number in range(20)))
        return backend.most

    assert run(main) == 2


def test_service_time_survives_a_new_worker_count():
    """The learned service time is still used when the backend restarts with another number of workers."""

    async def main(loop):
        backend = Server(1, 2, duration_s=0.01)
        batcher = si.AdaptiveBatcher(max_batch_size=1)
        stack = si.Stack(batcher, backend, clock=loop.clock)
        async with stack:
            await asyncio.gather(*(stack(float(number)) for number in range(20)))
        known = batcher.service_time
        async with stack:
            assert batcher.service_time is known
            predicted = stack.admission(si.Request(1.0), loop.now_ns).predicted_finish_ns
        return (predicted - loop.now_ns) / 1e9

    assert run(main) == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2"])
def test_invalid_max_in_flight_is_named(wrong):
    with pytest.raises((TypeError, ValueError), match="max_in_flight: expected a whole number ≥ 1"):
        si.AdaptiveBatcher(max_batch_size=1, max_in_flight=wrong)


async def test_concurrent_batches_share_no_context_variables(loop):
    """A context variable that a model sets in a batch is not seen in a concurrent or a later batch."""
    variable = contextvars.ContextVar("variable", default=0.0)
    seen = []

    async def model(rows):
        before = variable.get()
        variable.set(rows[0])
        await asyncio.sleep(rows[0])
        seen.append((before, variable.get()))
        return rows

    predict = si.AdaptiveBatcher(max_batch_size=1, max_in_flight=2, stack=False, clock=loop.clock).wrap(model)
    await asyncio.gather(predict(1.0), predict(2.0))
    await predict(3.0)

    assert seen == [(0.0, 1.0), (0.0, 2.0), (0.0, 3.0)]

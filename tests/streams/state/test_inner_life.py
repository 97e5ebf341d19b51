"""The backend inside a `StatefulBackend` starts and stops with it."""

import asyncio
import threading

import numpy as np
import pytest
from recurrent import AXIS, EXAMPLE, Recurrent, step

import streaminfer as si
from streaminfer.errors import Closed
from streaminfer.streams import StatefulBackend

pytestmark = pytest.mark.uncompiled


class Living(Recurrent):
    """Recurrent model with a start and a stop, which records their calls and can fail in them."""

    def __init__(self):
        super().__init__(then=step, batch_axes={"x": 0, "h": AXIS}, example=EXAMPLE)
        self.events = []
        self.failure = {}

    async def start(self):
        self.happens("start")

    async def stop(self, *, drain):
        self.happens("stop", f"stop drain={drain}")

    def happens(self, kind, text=None):
        self.events.append(text or kind)
        if kind in self.failure:
            raise self.failure[kind]


def stateful(backend):
    return StatefulBackend(backend, state={"h": "h2"})


def stack(loop, model):
    return si.Stack(si.AdaptiveBatcher(max_batch_size=8), model, clock=loop.clock)


async def test_backend_starts_and_stops_with_the_stack(loop):
    """Each start of the stack starts the backend inside, and each stop stops it, drained or not."""
    inner = Living()
    service = stack(loop, stateful(inner))
    async with service:
        assert inner.events == ["start"]
        await service(np.int64(1), stream_id="a")
    await service.start()
    await service.stop(drain=False)
    assert inner.events == ["start", "stop drain=True", "start", "stop drain=False"]


async def test_failed_backend_start_fails_the_stack_start(loop):
    """If the start of its backend fails, the stack does not start; a later start can succeed."""
    inner = Living()
    inner.failure["start"] = OSError("no device")
    service = stack(loop, stateful(inner))
    with pytest.raises(OSError, match="no device"):
        await service.start()
    assert not service.ready
    inner.failure.clear()
    async with service:
        await service(np.int64(1), stream_id="a")
    assert inner.events == ["start", "start", "stop drain=True"]


async def test_shared_backend_stops_with_its_last_user(loop):
    """A model that two `StatefulBackend` objects share starts once and stops with the last of them."""
    inner = Living()
    first, second = stack(loop, stateful(inner)), stack(loop, stateful(inner))
    async with first:
        async with second:
            assert inner.events == ["start"]
        assert inner.events == ["start"]
        await first(np.int64(1), stream_id="a")
    assert inner.events == ["start", "stop drain=True"]


async def test_states_are_forgotten_if_backend_stop_fails(loop):
    """A backend whose stop fails leaves no state behind."""
    inner = Living()
    inner.failure["stop"] = OSError("lost")
    model = stateful(inner)
    service = stack(loop, model)
    await service.start()
    await service(np.int64(1), stream_id="a")
    with pytest.raises(OSError, match="lost"):
        await service.stop()
    assert model.statistics().streams == model.statistics().bytes == 0


def test_threads_of_the_backend_end():
    """A stack that has stopped leaves no thread of its model, and the model rejects batches as closed."""

    def add(inputs):
        total = inputs["h"] + inputs["x"]
        return {"y": total, "h2": total}

    inner = si.CpuBackend(add, example={"x": np.float64(0), "h": np.float64(0)})
    before = set(threading.enumerate())  # threads that other tests left may end meanwhile
    with si.Stack(si.AdaptiveBatcher(max_batch_size=8), stateful(inner)).blocking() as infer:
        assert [float(infer(np.float64(x), stream_id="a")) for x in (1.0, 2.0)] == [1.0, 3.0]
        assert not set(threading.enumerate()) <= before
    assert set(threading.enumerate()) <= before
    batch = si.Batch({"x": np.zeros(1), "h": np.zeros(1)}, [si.Request(1.0)])
    with pytest.raises(Closed):
        asyncio.run(inner.infer(batch))

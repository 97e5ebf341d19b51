"""Batch observers: each is called once when a batch begins on a worker and once when the batch ends."""

import asyncio

import numpy as np
import pytest

import streaminfer as si
from streaminfer._runtime.batch_observer import BatchWork
from streaminfer.batching import ServiceTime
from streaminfer.batching._batch_observers_cy import BatchObservers, setup_share
from streaminfer.batching.assembly.assembler import Assembler
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER
from streaminfer.testing import ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


class Heard:
    """Observer that records each batch, and how many batches run at the same time."""

    def __init__(self, model):
        self.model = model
        self.running = {}
        self.most_running = 0
        self.batches = []

    def begin(self, requests, now_ns):
        token = object()
        self.running[token] = (requests, now_ns)
        self.most_running = max(self.most_running, len(self.running))
        return token

    def end(self, token, work, now_ns):
        requests, begun_ns = self.running.pop(token)
        self.batches.append(([request.tenant for request in requests], now_ns - begun_ns, work))


def hear(batcher, backend, send):
    """Send requests to a stack and return the observer of its batches."""
    heard = []

    def make(model):
        heard.append(Heard(model))
        return heard[-1]

    async def main(loop):
        async with si.Stack(batcher, backend, clock=loop.clock) as stack:
            batcher.capabilities().observe_batches(make)
            await send(stack)
        return heard[0]

    return run(main)


async def many(stack):
    await asyncio.gather(*(stack(np.float32(n), tenant=str(n)) for n in range(12)), return_exceptions=True)


def test_each_batch_is_observed_once():
    heard = hear(si.AdaptiveBatcher(max_batch_size=4, policy="greedy"), ScriptedBackend(duration_s=0.1), many)
    assert heard.model == "ScriptedBackend"
    assert [tenants for tenants, _, _ in heard.batches] == [list("0123"), list("4567"), ["8", "9", "10", "11"]]
    assert {duration_ns for _, duration_ns, _ in heard.batches} == {10**8}
    assert not heard.running


def test_pipelined_batch_begins_when_previous_one_ends():
    """Observers see a pipelined batch begin when the previous one ends."""

    class Queueing(ScriptedBackend):
        queued_workers = 1

        def __init__(self):
            super().__init__()
            self.free = asyncio.Lock()

        async def infer(self, batch):
            async with self.free:
                await asyncio.sleep(0.1)
            return await super().infer(batch)

    batcher = si.AdaptiveBatcher(max_batch_size=4, service_time=ServiceTime.affine(0.1, 1e-9))

    async def send(stack):
        for _ in range(5):
            await many(stack)
        assert batcher.statistics().pipelined > 0

    heard = hear(batcher, Queueing(), send)
    assert heard.most_running == 1
    assert not heard.running
    assert sum(len(tenants) for tenants, _, _ in heard.batches) == 60


@pytest.mark.parametrize("step", [ValueError("down"), [1.0]], ids=["failed", "succeeded"])
def test_a_failed_batch_is_observed_too(step):
    heard = hear(si.AdaptiveBatcher(max_batch_size=1), ScriptedBackend(step), many)
    assert len(heard.batches) == 12


def test_an_observer_that_raises_harms_no_request(caplog):
    class Broken:
        def begin(self, requests, now_ns):
            raise RuntimeError("begin")

        def end(self, token, work, now_ns):
            raise AssertionError("it was never told of a begin")

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=4)
        async with si.Stack(batcher, ScriptedBackend(), clock=loop.clock) as stack:
            batcher.capabilities().observe_batches(lambda model: Broken())
            return [float(await stack(1.0)) for _ in range(3)]

    assert run(main) == [1.0, 1.0, 1.0]
    assert caplog.text.count("begin") >= 1


@pytest.mark.parametrize("change", ["memory", "settings"])
def test_batch_above_lowered_limit_harms_no_request(change):
    """If the limit of rows falls below the size of a running batch, the batch is observed and its requests succeed."""
    batcher = si.AdaptiveBatcher(max_batch_size=8, max_in_flight=2)

    class Model(ScriptedBackend):
        async def infer(self, batch):
            rows = len(batch.rows)
            await asyncio.sleep(0.1 * len(self.batches))
            if change == "memory" and rows == 7 and len(self.batches) < 6:
                raise MemoryError("too many rows")
            return await super().infer(batch)

    async def send(stack):
        for _ in range(4):
            await stack(np.float32(1), tenant="0")
        running = [asyncio.ensure_future(stack(np.float32(1), tenant="0")) for _ in range(7)]
        await asyncio.sleep(0.05)
        running += [asyncio.ensure_future(stack(np.float32(1), tenant="0")) for _ in range(8)]
        await asyncio.sleep(0.05)
        if change == "settings":
            batcher.reconfigure(max_batch_size=2)
        await asyncio.wait_for(asyncio.gather(*running), 60.0)

    heard = hear(batcher, Model(duration_s=0.1), send)
    assert {7, 8} <= {len(tenants) for tenants, _, _ in heard.batches}
    assert sum(len(tenants) for tenants, _, _ in heard.batches) == 19
    assert not heard.running


def test_policy_that_fails_to_predict_harms_no_request(caplog):
    """If the policy raises when it estimates a batch's duration, the error is logged and observers get the batch."""

    def fail(size, bucket):
        raise RuntimeError("it does not say")

    observers, heard = BatchObservers("model"), Heard("model")
    observers.add(heard)
    queue = RequestQueue(4)
    ticket = queue.admit(si.Request(1.0, tenant="a"), 1.0, None, 0, NEVER, 0, 0, None)
    execution = queue.take([ticket], 0, "full")
    observers.begin(execution, 0)
    observers.end(execution, 5, Assembler(stack=True, batch_axes={}, max_batch_size=4), fail, 0)
    assert heard.batches == [(["a"], 5, BatchWork())]
    assert "it does not say" in caplog.text


@pytest.mark.parametrize(
    ("sizes", "size", "share"),
    [(None, 1, 0.75), (None, 4, 3 / 7), ([1, 8], 1, 0.75), ([1, 8], 3, 3 / 11), ([8], 3, 0.0)],
)
def test_setup_share_is_intercept_of_the_duration_line(sizes, size, share):
    assembler = Assembler(stack=True, batch_axes={}, max_batch_size=8, preferred_sizes=sizes)
    expected = setup_share(size, assembler, lambda rows, bucket: 3 + assembler.padded_size(rows), 0)
    assert expected == pytest.approx(share)


def test_setup_share_is_zero_before_first_measurement():
    assembler = Assembler(stack=True, batch_axes={}, max_batch_size=8)
    assert setup_share(4, assembler, lambda rows, bucket: 0, 0) == 0.0


class Interrupted(BaseException):
    """An error that, like ``KeyboardInterrupt``, is not an ``Exception``."""


@pytest.mark.parametrize("where", ["begin", "end"])
def test_an_interrupt_in_an_observer_loses_no_batch(where):
    """An interrupt in an observer reaches the loop, and the requests of this batch and later ones get responses."""

    class Observer:
        def begin(self, requests, now_ns):
            self.interrupt("begin")

        def end(self, token, work, now_ns):
            self.interrupt("end")

        def interrupt(self, method):
            if method == where:
                raise Interrupted

    async def main(loop):
        told = []
        loop.set_exception_handler(lambda _, context: told.append(type(context["exception"])))
        batcher = si.AdaptiveBatcher(max_batch_size=4)
        async with si.Stack(batcher, ScriptedBackend(duration_s=0.1), clock=loop.clock) as stack:
            batcher.capabilities().observe_batches(lambda model: Observer())
            answers = [float(await stack(number, timeout_s=1.0)) for number in (1.0, 2.0)]
        return answers, told

    assert run(main) == ([1.0, 2.0], [Interrupted, Interrupted])

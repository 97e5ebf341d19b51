"""`next_batch`, which live streams read: the instant at which the next batch can begin, and its room."""

import asyncio

import pytest

import streaminfer as si
from streaminfer.batching.policy import Decision, Greedy
from streaminfer.protocols import NextBatch, adapt
from streaminfer.testing import ScriptedBackend

pytestmark = pytest.mark.uncompiled

MS = 1_000_000


def model(seconds=0.1):
    return ScriptedBackend(duration_s=seconds, example=1.0)


def ask(service, loop):
    return adapt(service).capabilities().next_batch(loop.clock())


async def send(service, count):
    """Send requests, let the batches begin that can, and return the tasks of the requests."""
    tasks = [asyncio.ensure_future(service(1.0)) for _ in range(count)]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_next_batch_starts_now_with_a_free_worker(loop):
    """With free workers the next batch starts now, and its room is a full batch per free worker.

    A batch per worker is the full load, however many are free.
    """
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=4, max_in_flight=3), model(), clock=loop.clock) as service:
        assert ask(service, loop) == NextBatch(loop.clock(), 12, workers=3, full_load=12)
        tasks = await send(service, 1)
        assert ask(service, loop) == NextBatch(loop.clock(), 8, workers=2, full_load=12)
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_free_workers_are_no_more_than_the_device_runs(loop, concurrency):
    batcher = si.AdaptiveBatcher(max_batch_size=4, max_in_flight=3, device=si.Device("gpu", concurrency=concurrency))
    async with si.Stack(batcher, model(), clock=loop.clock) as service:
        assert ask(service, loop) == NextBatch(loop.clock(), 12, concurrency, full_load=4 * concurrency)


async def test_next_batch_is_limited_by_max_queue_size(loop):
    """The room is at most `max_queue_size`, because the queue rejects the requests of a larger batch."""
    batcher = si.AdaptiveBatcher(max_batch_size=8, max_queue_size=3)
    async with si.Stack(batcher, model(), clock=loop.clock) as service:
        assert ask(service, loop) == NextBatch(loop.clock(), 3, full_load=3)
        assert adapt(service).capabilities().full_load() == 6


async def test_busy_worker_is_free_at_expected_batch_end(loop):
    """The next batch begins at the expected end of the running one; each queued request takes one of its places."""
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), model(), clock=loop.clock) as service:
        tasks = await send(service, 1)
        started_ns = loop.clock()
        await asyncio.sleep(0.03)
        told = ask(service, loop)
        assert told.at_ns == pytest.approx(started_ns + 100 * MS, abs=2 * MS)
        assert told.room == 4
        for expected in (1, 0, 0):
            tasks += await send(service, 3)
            assert ask(service, loop) == NextBatch(told.at_ns, expected, full_load=4)
        await asyncio.gather(*tasks)


async def test_next_batch_starts_at_the_first_free_worker(loop):
    """The next batch starts when the first of several busy workers is free."""
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=2, max_in_flight=2), model(), clock=loop.clock) as service:
        started_ns = loop.clock()
        tasks = await send(service, 1)
        await asyncio.sleep(0.04)
        tasks += await send(service, 1)
        assert ask(service, loop).at_ns == pytest.approx(started_ns + 100 * MS, abs=2 * MS)
        await asyncio.gather(*tasks)


async def test_batch_slower_than_expected_can_end_any_time(loop):
    """A batch that takes longer than expected can end at any time, so the next one can begin at once."""
    seconds = [0.5]
    backend = ScriptedBackend(duration_s=lambda size: seconds[0] if loop.time() > 1.0 else 0.1, example=1.0)
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=1), backend, clock=loop.clock) as service:
        await asyncio.sleep(2.0)
        tasks = await send(service, 1)
        await asyncio.sleep(0.3)
        assert ask(service, loop) == NextBatch(loop.clock(), 1, full_load=1)
        await asyncio.gather(*tasks)


async def test_next_batch_is_immediate_before_measurements(loop):
    """Before any batch has completed, the next batch is predicted for now."""
    backend = ScriptedBackend(duration_s=0.1)
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=2, policy="greedy"), backend, clock=loop.clock) as service:
        tasks = await send(service, 2)
        assert ask(service, loop) == NextBatch(loop.clock(), 2, full_load=2)
        await asyncio.gather(*tasks)


async def test_room_is_that_of_the_best_throughput(loop):
    """The room is no larger than the batch that the planner sends, if larger batches bring no throughput."""
    backend = model(lambda rows: 0.01 * rows)
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=8), backend, clock=loop.clock) as service:
        await asyncio.gather(*(service(1.0) for _ in range(40)))
        assert ask(service, loop).room <= 2


class HoldsBack:
    """Greedy policy that releases nothing before an instant, as a planner does that doubts all queued requests."""

    def __init__(self, until_ns):
        self.until_ns = until_ns

    def decide(self, queue, now_ns, free_workers):
        if now_ns < self.until_ns:
            return Decision(recheck_ns=self.until_ns)
        return Greedy(2).decide(queue, now_ns, free_workers)


@pytest.mark.parametrize("queued", [1, 2, 3])
async def test_worker_has_room_while_requests_are_held_back(loop, queued):
    """A free worker has room for one more request although the policy holds a full batch back."""
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=2), model(), clock=loop.clock) as service:
        service.inner._dispatcher.policy = HoldsBack(loop.clock() + 500 * MS)
        tasks = await send(service, queued)
        now_ns, told = loop.clock(), ask(service, loop)
        await asyncio.gather(*tasks)
    assert told == NextBatch(now_ns, 1, full_load=2)


async def test_worker_waiting_for_its_device_counts_as_free(loop):
    """A worker that waits for its device counts as free.

    The batch of the other model may end at any time, and only requests that are queued by then get a turn.
    """
    device = si.Device("gpu:0")
    async with (
        si.Stack(si.AdaptiveBatcher(max_batch_size=2, device=device), model(0.1), clock=loop.clock) as one,
        si.Stack(si.AdaptiveBatcher(max_batch_size=2, device=device), model(0.3), clock=loop.clock) as other,
    ):
        tasks = await send(other, 1)
        assert ask(one, loop) == NextBatch(loop.clock(), 2, full_load=2)
        tasks += await send(one, 1)
        assert ask(one, loop) == NextBatch(loop.clock(), 1, full_load=2)
        await asyncio.gather(*tasks)


async def test_next_batch_follows_a_batch_sent_early(loop):
    """While an early batch is at the model, the next batch begins at the expected end of the early one."""
    backend = model()
    backend.queued_workers = 1
    lock = asyncio.Lock()
    infer = backend.infer

    async def one_by_one(batch):
        async with lock:
            return await infer(batch)

    backend.infer = one_by_one
    batcher = si.AdaptiveBatcher(max_batch_size=1)
    async with si.Stack(batcher, backend, clock=loop.clock) as service:
        await asyncio.gather(*[asyncio.ensure_future(service(1.0)) for _ in range(40)])
        started_ns = loop.clock()
        tasks = await send(service, 2)
        while batcher.statistics().queued:
            await asyncio.sleep(0.001)
        assert loop.clock() < started_ns + 100 * MS
        assert ask(service, loop).at_ns == pytest.approx(started_ns + 200 * MS, abs=5 * MS)
        await asyncio.gather(*tasks)


async def test_router_reports_next_batch_of_its_best_route(loop):
    best = si.Stack(si.AdaptiveBatcher(max_batch_size=4), model(), clock=loop.clock)
    spare = si.Stack(si.AdaptiveBatcher(max_batch_size=8), model(), clock=loop.clock)
    router = si.FallbackRouter(si.Route("best", best), si.Route("spare", spare))
    async with si.Stack(router, clock=loop.clock) as service:
        assert ask(service, loop) == NextBatch(loop.clock(), 4, full_load=4)

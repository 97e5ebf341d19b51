"""Rejected requests: each caller gets its own error with the facts, and a rejection costs no timer or clean-up."""

import asyncio

import pytest

import streaminfer as si
from streaminfer.batching.policy import Decision
from streaminfer.testing import HANG, ScriptedBackend

pytestmark = pytest.mark.uncompiled

MS = 1_000_000
WAVE = 200
WAYS = {
    "expired on arrival": ("deadline_exceeded", -3, {}, r"the deadline had passed 0\.003000 s before arrival"),
    "queue full": ("queue_full", 50, {"max_queue_size": 1}, r"1 requests are queued already \(max_queue_size=1\)"),
    "expired in the queue": (
        "deadline_exceeded",
        2,
        {},
        r"the deadline passed 0\.002000 s after \w+ got the request, queued",
    ),
    "refused by the policy": ("useless", 5, {}, r"rejected with 0\.005000 s left: it is no use"),
}


class RefusesAll:
    """Policy that rejects all queued requests."""

    def decide(self, queue, now_ns, free_workers):
        return Decision(reject=queue.first(queue.queued), rejection="useless: it is no use")


class Rejections:
    """Stack that rejects each request of a wave in one way.

    Unless the policy rejects them, a request that hangs keeps the only worker busy.
    """

    def __init__(self, loop, way):
        self.loop = loop
        self.counter, self.within_ms, settings, self.message = WAYS[way]
        self.busy = self.counter != "useless"  # a policy is consulted when a worker is free
        self.batcher = si.AdaptiveBatcher(max_batch_size=1, policy="greedy", clock=loop.clock, **settings)
        self.stack = si.Stack(self.batcher, ScriptedBackend(HANG), clock=loop.clock)

    async def __aenter__(self):
        await self.stack.start()
        self.occupying = []
        if self.counter == "useless":
            self.stack.inner._dispatcher.policy = RefusesAll()
        if self.busy:
            for _ in range(2):  # one runs, one waits
                self.occupying.append(asyncio.ensure_future(self.stack.call(si.Request(1.0))))
                await asyncio.sleep(0.001)
        return self

    async def __aexit__(self, *exception):
        for call in self.occupying:
            call.cancel()
        await asyncio.gather(*self.occupying, return_exceptions=True)
        await self.stack.stop(drain=False)

    async def wave(self):
        deadline_ns = self.loop.now_ns + self.within_ms * MS
        calls = [self.stack.call(si.Request(1.0, deadline_ns=deadline_ns)) for _ in range(WAVE)]
        return await asyncio.gather(*calls, return_exceptions=True)

    def counted(self):
        statistics = self.batcher.statistics()
        return statistics.rejected.get(self.counter) or getattr(statistics, self.counter)


@pytest.mark.parametrize("way", WAYS)
async def test_each_caller_gets_its_own_error(loop, way):
    """No two callers share an exception, because its traceback and notes belong to one caller."""
    async with Rejections(loop, way) as rejections:
        errors = await rejections.wave()

    assert {type(error) for error in errors} <= {si.DeadlineExceeded, si.Overloaded}
    assert len({id(error) for error in errors}) == WAVE


@pytest.mark.parametrize("way", WAYS)
async def test_error_message_gives_the_reason_and_values(loop, way):
    async with Rejections(loop, way) as rejections:
        errors = await rejections.wave()

    for error in errors:
        with pytest.raises(type(error), match=rejections.message):
            raise error


@pytest.mark.parametrize("way", WAYS)
async def test_a_rejected_request_is_counted_once(loop, way):
    """The clean-up of a rejected request's caller does not count the request as cancelled too."""
    async with Rejections(loop, way) as rejections:
        await rejections.wave()
        seen = rejections.batcher.statistics()

    assert rejections.counted() == WAVE
    assert seen.cancelled == 0
    assert seen.queued == rejections.busy


@pytest.mark.parametrize("way", WAYS)
async def test_rejections_share_one_timer(loop, way, monkeypatch):
    """A wave of 200 rejected requests sets one timer if it expires in the queue, and otherwise none."""
    armed = []
    call_at = loop.call_at
    async with Rejections(loop, way) as rejections:
        monkeypatch.setattr(loop, "call_at", lambda *args, **options: armed.append(args) or call_at(*args, **options))
        await rejections.wave()
        monkeypatch.undo()

    assert rejections.counted() == WAVE
    assert len(armed) == (way == "expired in the queue")


@pytest.mark.parametrize("way", ["expired in the queue", "queue full"])
async def test_a_stop_drains_after_rejections(loop, way):
    """A draining stop does not wait for rejected requests, whichever part of the code rejected them."""
    async with Rejections(loop, way) as rejections:
        await rejections.wave()
        for call in rejections.occupying:
            call.cancel()
        await asyncio.gather(*rejections.occupying, return_exceptions=True)

        await asyncio.wait_for(rejections.stack.stop(), 1.0)

    assert rejections.batcher.statistics().queued == 0


async def test_a_cancelled_caller_still_frees_its_place(loop):
    """A cancelled caller frees its place, because its clean-up skips only requests that have completed."""
    async with Rejections(loop, "queue full") as rejections:
        rejections.occupying[1].cancel()
        await asyncio.gather(rejections.occupying[1], return_exceptions=True)

        queue = rejections.batcher.statistics().queued
        cancelled = rejections.batcher.statistics().cancelled

    assert (queue, cancelled) == (0, 1)


async def test_a_stack_names_the_source_and_the_timings(loop):
    """A stack that passes requests directly to its batcher returns the source and timings of the batcher's response."""
    batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock)
    async with si.Stack(batcher, ScriptedBackend(duration_s=0.25), clock=loop.clock) as stack:
        response = await stack.call(si.Request(1.0))

    assert (response.outputs, response.source, response.degraded) == (1.0, "ScriptedBackend", False)
    assert response.timings.batch_size == 1
    assert response.timings.inferred_s == pytest.approx(0.25)


async def test_delay_rejects_nothing_with_a_free_worker(loop):
    """A batch is held back only while the queue has a place for the next request."""
    batcher = si.AdaptiveBatcher(max_batch_size=8, max_queue_size=3, policy="greedy", max_queue_delay_s=1.0)
    async with si.Stack(batcher, ScriptedBackend(), clock=loop.clock) as service:
        requests = []
        for number in range(7):
            requests.append(asyncio.ensure_future(service(float(number))))
            await asyncio.sleep(0.001)

        assert await asyncio.gather(*requests) == [float(number) for number in range(7)]
    assert batcher.statistics().released == {"full": 2, "max_queue_delay": 1}

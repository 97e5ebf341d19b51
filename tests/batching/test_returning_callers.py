"""A batch waits for the callers of the previous batch only if callers usually send another request at once."""

import asyncio
from collections import Counter
from itertools import pairwise

import pytest

import streaminfer as si
from streaminfer.batching.returning_callers import ReturningCallers
from streaminfer.testing import ScriptedBackend

pytestmark = pytest.mark.uncompiled

MODEL_S = 0.010


class Model(ScriptedBackend):
    """Model that takes 10 ms per batch and notes the begin and end of each."""

    def __init__(self):
        super().__init__(duration_s=MODEL_S)
        self.notes = []

    async def infer(self, batch):
        self.notes.append("begun")
        results = await super().infer(batch)
        self.notes.append("ended")
        return results


class Service:
    """Service with batches of at most four, whose callers note when they wake."""

    def __init__(self, loop):
        self.model = Model()
        self._service = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock, policy="greedy").wrap(self.model)

    @property
    def few_return(self):
        return self._service._dispatcher.returning.are_few

    async def ask(self):
        await self._service.call(si.Request(1.0))
        self.model.notes.append("woken")

    async def ask_in_a_loop(self, times):
        for _ in range(times):
            await self.ask()

    async def serve_open_loop(self, count):
        """Send ``count`` requests, 2.3 per batch duration, without waiting for responses in between."""
        calls = []
        for _ in range(count):
            calls.append(asyncio.ensure_future(self.ask()))
            await asyncio.sleep(MODEL_S / 2.3)
        await asyncio.gather(*calls)

    def after_ends(self):
        """Return the note that follows the end of each batch, in order."""
        return [after for before, after in pairwise(self.model.notes) if before == "ended"]


async def test_batch_does_not_wait_for_one_time_callers(loop):
    """Once the batcher has learned that callers do not return, it begins the next batch before they wake."""
    service = Service(loop)
    await service.serve_open_loop(60)
    after = service.after_ends()
    assert service.few_return
    assert after[:3] == ["woken"] * 3  # at first the batcher assumes that callers return
    assert after[-6:-1] == ["begun"] * 5


async def test_a_batch_waits_for_callers_in_a_loop(loop):
    """A fourth caller's queued request waits for three callers in a loop, and shares their next batch."""
    service = Service(loop)

    async def come_late():
        for _ in range(30):
            await asyncio.sleep(MODEL_S * 0.01)
            await service.ask()

    await asyncio.gather(*(service.ask_in_a_loop(90) for _ in range(3)), come_late())
    assert not service.few_return
    assert set(service.after_ends()) == {"woken"}
    assert Counter(service.model.batch_sizes)[4] == 30


async def test_callers_that_return_are_waited_for_again(loop):
    """The measured share of returning callers rises again when callers begin to return."""
    service = Service(loop)
    await service.serve_open_loop(60)
    assert service.few_return
    await asyncio.gather(*(service.ask_in_a_loop(60) for _ in range(6)))
    assert not service.few_return


def test_share_is_a_mean_of_recent_batches():
    """Few callers count as returning once few of recent batches did, and arrivals of others do not raise it above 1."""
    returning = ReturningCallers()
    for _ in range(14):
        returning.record(0.0)
    assert returning.are_few

    for _ in range(5):
        returning.record(3.0)  # a batch of one, while three others arrived

    assert returning.share == pytest.approx(1 - (1 - 0.9**14) * 0.9**5)
    assert not returning.are_few


@pytest.mark.parametrize(("later_ns", "workers"), [(0, 1), (999_999_999, 1), (1_000_000_000, 4)])
def test_workers_do_not_share_what_a_session_splits(later_ns, workers):
    """For a second after a session read the next batch, the workers share nothing."""
    returning = ReturningCallers()
    returning.record_split(5)
    assert returning.sharing_workers(4, 5 + later_ns) == workers


async def test_independent_bursts_are_not_shared(loop):
    """One worker has a burst that fits into one batch and follows no end of another; the others stay free."""
    model = ScriptedBackend(duration_s=lambda size: 0.002 + 0.002 * size)
    batcher = si.AdaptiveBatcher(max_batch_size=8, max_in_flight=4, clock=loop.clock)
    service = batcher.wrap(model)
    for _ in range(60):
        await asyncio.gather(*(service.call(si.Request(number)) for number in range(8)))
        await asyncio.sleep(0.1)

    assert Counter(len(batch) for batch in model.batches[-10:]) == {8: 10}

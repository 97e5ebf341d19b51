"""A batch waits for the callers of the previous batch only if most of them return soon and the wait saves time."""

import asyncio
import itertools
from collections import Counter

import numpy as np
import pytest

import streaminfer as si
from streaminfer.batching._returning_callers_cy import ReturningCallers
from streaminfer.batching.alarm import Alarm
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER
from streaminfer.simulation import arrivals
from streaminfer.testing import ScriptedBackend

pytestmark = pytest.mark.uncompiled

SETUP_S = 0.010
ROW_S = 0.001


def batch_s(size):
    """A model with a large fixed cost."""
    return SETUP_S + ROW_S * size


class Service:
    """A model behind a batcher, for callers in virtual time."""

    def __init__(self, loop, *, duration_s=batch_s, backend=None, **settings):
        self.model = backend or ScriptedBackend(duration_s=duration_s)
        self.batcher = si.AdaptiveBatcher(**{"max_batch_size": 16, "clock": loop.clock, **settings})
        self._service = self.batcher.wrap(self.model)
        self.latencies_s = []

    async def ask(self, inputs=1.0, **request):
        loop = asyncio.get_running_loop()
        sent = loop.time()
        response = await self._service.call(si.Request(inputs, **request))
        self.latencies_s.append(loop.time() - sent)
        return response

    async def ask_in_a_loop(self, times, *, inputs=1.0, pause_s=0.0, first_s=0.0):
        """Send requests one after the other, each in a task of its own, as a server does."""
        await asyncio.sleep(first_s)
        for _ in range(times):
            await asyncio.create_task(self.ask(inputs))
            if pause_s:
                await asyncio.sleep(pause_s)

    async def serve_trace(self, arrivals_s):
        """Send a request at each instant, whether or not the others have ended."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        calls = []
        for at in arrivals_s:
            await asyncio.sleep(max(start + at - loop.time(), 0.0))
            calls.append(asyncio.ensure_future(self.ask()))
        await asyncio.gather(*calls, return_exceptions=True)

    def waits_s(self):
        """Return for how long the only worker was free before each batch while a request of the batch was queued."""
        log = self.batcher.decision_log()
        first_ns = [log.arrivals_ns[log.arrival_batches == number].min() for number in range(len(log.reasons))]
        free_ns = [first_ns[0], *log.batch_ends_ns[:-1]]
        starts = zip(log.batch_starts_ns, first_ns, free_ns, strict=True)
        return [(start - max(first, free)) / 1e9 for start, first, free in starts]

    def last_sizes(self, count=30):
        """Return how many of the last batches had each size."""
        return Counter(map(int, self.batcher.decision_log().batch_sizes[-count:]))


async def test_callers_in_tasks_share_their_batches(loop):
    """Callers that return after a few iterations of the event loop meet in one batch, wherever they start."""
    service = Service(loop)
    await asyncio.gather(*(service.ask_in_a_loop(100, first_s=0.003 * number) for number in range(6)))
    assert service.last_sizes()[6] >= 25


async def test_clients_with_a_round_trip_share_their_batches(loop):
    """Clients that return after a third of a batch's duration meet in one batch, because its fixed cost is larger."""
    service = Service(loop)
    await asyncio.gather(*(service.ask_in_a_loop(150, pause_s=0.004, first_s=0.003 * number) for number in range(6)))
    assert service.last_sizes()[6] >= 25
    assert np.mean(service.latencies_s[-60:]) < 0.020  # in two batches: two durations, 0.026 s, less the round trip


async def test_the_log_shows_which_batches_waited(loop):
    """A batch at a worker that was free while its requests were queued has a reason of its own."""
    service = Service(loop)
    await asyncio.gather(*(service.ask_in_a_loop(60, pause_s=0.002 + 0.0005 * number) for number in range(6)))
    reasons = service.batcher.decision_log().reasons
    waited = [reason for reason, wait_s in zip(reasons, service.waits_s(), strict=True) if wait_s > 0]
    assert waited.count("returning_callers") >= 25
    assert "idle_worker" not in waited
    assert set(reasons) == {"returning_callers", "idle_worker", "exploration"}


async def test_a_wait_that_saves_nothing_does_not_begin(loop):
    """Batches whose cost is by the row are sent at once, because a common batch takes as long as two."""
    service = Service(loop, duration_s=lambda size: 0.004 * size)
    await asyncio.gather(*(service.ask_in_a_loop(100, pause_s=0.001, first_s=0.003 * number) for number in range(6)))
    assert max(service.waits_s()[5:]) == 0  # the first batches, whose cost is not known yet, may wait


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("load", [0.1, 0.5, 0.9])
async def test_independent_arrivals_hardly_wait(loop, load, seed):
    """In an open loop half of the callers seem to return, by chance sometimes more; then few batches wait."""
    service = Service(loop)
    rate = load * 16 / batch_s(16)
    await service.serve_trace(arrivals.poisson(rate, 2_000, seed))
    assert np.mean(service.waits_s()) < 0.02 * batch_s(1)


async def test_wait_ends_without_the_callers(loop):
    """When callers leave, the requests of the others wait for no more than twice the time in which callers return."""
    service = Service(loop)
    await asyncio.gather(*(service.ask_in_a_loop(60 if number < 3 else 40, pause_s=0.002) for number in range(8)))
    assert 0.003 < max(service.waits_s()) <= 0.002 + batch_s(8) / 8  # from the arrival of the first after 2 ms
    assert service.last_sizes(15)[3] >= 14


async def test_requests_of_two_shapes_wait_rarely(loop):
    """Callers with inputs of two shapes get batches of their own; a wait for the others is in vain and not repeated."""
    service = Service(loop)
    shapes = [np.zeros(2 + number % 2) for number in range(8)]
    await asyncio.gather(*(service.ask_in_a_loop(200, inputs=inputs, pause_s=0.003) for inputs in shapes))
    assert np.mean(np.array(service.waits_s()[20:]) > 0) < 0.05


async def test_callers_of_a_model_on_a_device_share_batches(loop):
    """A model waits for its callers although its device is shared, if no other model has queued requests."""
    device = si.Device("gpu:0")
    service, other = (Service(loop, device=device) for _ in range(2))
    callers = [service.ask_in_a_loop(100, pause_s=0.004, first_s=0.003 * number) for number in range(6)]
    await asyncio.gather(other.ask(), *callers)
    assert service.last_sizes()[6] >= 25


@pytest.mark.parametrize(("queued", "waits"), [(0, True), (8, False)])
async def test_no_model_waits_beside_queued_requests(loop, queued, waits):
    """While another model on the device has queued requests, a model sends what it has."""
    device = si.Device("gpu:0")
    service, other = Service(loop, device=device), Service(loop, device=device, max_batch_size=1)
    await asyncio.gather(*(service.ask_in_a_loop(60, pause_s=0.002) for _ in range(4)))
    callers = [service.ask_in_a_loop(2 - number, pause_s=0.002) for number in range(2)]
    await asyncio.gather(*callers, *(other.ask() for _ in range(queued)))
    assert (service.batcher.decision_log().reasons[-1] == "returning_callers") == waits


@pytest.mark.parametrize(("workers", "waits"), [(1, True), (2, False)])
async def test_only_a_single_worker_waits(loop, workers, waits):
    """Where another worker is free, requests start at once, although a caller is about to return."""
    service = Service(loop)
    await asyncio.gather(*(service.ask_in_a_loop(60, pause_s=0.002) for _ in range(4)))
    dispatcher = service._service._dispatcher
    dispatcher.set_workers(workers)
    last_ns = dispatcher.returning.until_ns
    await asyncio.gather(*(service.ask_in_a_loop(2 - number, pause_s=0.002) for number in range(2)))
    assert (dispatcher.returning.until_ns > last_ns) == waits


class NotingAlarm(Alarm):
    """Alarm that notes what it is set to."""

    notes: tuple = ()

    def set(self, at_ns, clock, *, is_exact):
        self.notes = (*self.notes, (at_ns, is_exact))
        super().set(at_ns, clock, is_exact=is_exact)


async def test_the_end_of_a_wait_is_exact(loop):
    """A wait ends to the microsecond where the system can, because a millisecond is a whole batch of a fast model."""
    service = Service(loop)
    await asyncio.gather(*(service.ask_in_a_loop(60, pause_s=0.002) for _ in range(4)))
    dispatcher = service._service._dispatcher
    alarm = dispatcher._loop_timer = NotingAlarm(dispatcher._on_timer)
    alarm.bind_loop(loop, dispatcher.runner.context)
    await asyncio.gather(*(service.ask_in_a_loop(2 - number, pause_s=0.002) for number in range(2)))
    assert (dispatcher.returning.until_ns, True) in alarm.notes


class NotingModel(ScriptedBackend):
    """Model that takes 10 ms per batch and notes the begin and end of each."""

    def __init__(self):
        super().__init__(duration_s=SETUP_S)
        self.notes = []

    async def infer(self, batch):
        self.notes.append("begun")
        results = await super().infer(batch)
        self.notes.append("ended")
        return results


async def test_a_batch_begins_before_one_time_callers_wake(loop):
    """Once the batcher has learned that callers do not return, the next batch begins before responses are read."""
    model = NotingModel()
    service = Service(loop, backend=model, max_batch_size=4, policy="greedy")

    async def ask():
        await service.ask()
        model.notes.append("woken")

    calls = []
    for _ in range(100):
        calls.append(asyncio.ensure_future(ask()))
        await asyncio.sleep(SETUP_S / 2.3)
    await asyncio.gather(*calls)
    after = [after for before, after in itertools.pairwise(model.notes) if before == "ended"]
    assert after[:3] == ["woken"] * 3  # at first the batcher assumes that callers return at once
    assert after[-6:-1] == ["begun"] * 5


class Ends:
    """Reports of ends of batches of 10 ms to a `ReturningCallers`, with arrivals in between."""

    def __init__(self, *, size, max_size=100):
        self.queue = RequestQueue(max_size)
        self.returning = ReturningCallers(self.queue, lambda rows: 10_000_000 + 10_000 * rows)
        self.now_ns = 0
        self.size = size
        self.stream_id = None

    def end(self, *arrivals_ms, duration_s=0.010):
        """End a batch after the arrivals, at so many milliseconds from the end of the last one."""
        for at in arrivals_ms:
            self.queue.events.arrived(self.now_ns + round(at * 1e6), 0, 0)
        running = RequestQueue(self.size)
        for _ in range(self.size):
            running.admit(si.Request(1.0, stream_id=self.stream_id), 1.0, None, self.now_ns, NEVER, 0)
        execution = running.take(running.first(self.size), self.now_ns, "full")
        self.now_ns += round(duration_s * 1e9)
        self.returning.ended(execution, self.now_ns)

    def admit(self, count, *, deadline_ns=NEVER, priority=0):
        for _ in range(count):
            self.queue.admit(si.Request(1.0), 1.0, None, self.now_ns, deadline_ns, priority)

    def should_wait(self, full_at=100):
        return self.returning.should_wait(self.now_ns, full_at)


def ends_of_returning_callers(size=4):
    """Return reports of batches whose callers have all returned after 1 ms, for long."""
    ends = Ends(size=size)
    for _ in range(200):
        ends.end(*[1] * size)
    return ends


@pytest.mark.parametrize(
    ("arrivals_ms", "share"),
    [
        ((1, 2, 3, 5), 1.0),  # all four return within half the duration
        ((1, 2, 6, 7), 0.5),
        ((1, 2), 0.5),
        ((), 0.0),
        ((1, 2, 3, 4, 7, 8, 9, 9.5), 0.5),  # as many others arrive, so these may be no callers of the batch either
    ],
)
def test_share_is_of_callers_and_of_arrivals(arrivals_ms, share):
    """Requests that arrive in the first half count as returned, of the batch's requests and of all arrivals."""
    ends = Ends(size=4)
    for _ in range(200):
        ends.end(*arrivals_ms)
    assert ends.returning.share == pytest.approx(share, abs=1e-4)
    ends.admit(1)
    assert ends.should_wait() == (share == 1.0)


def test_share_is_a_mean_of_recent_batches():
    """A batch changes the share by a twentieth of the difference."""
    ends = Ends(size=1)
    ends.end()
    assert ends.returning.share == 1.0  # arrivals after the first batch are not known yet
    for _ in range(5):
        ends.end()
    ends.end(1)
    assert ends.returning.share == pytest.approx(0.95**6 + 0.05)


@pytest.mark.parametrize(("share", "waits"), [(0.7, False), (0.9, True)])
def test_batches_wait_if_most_callers_return(share, waits):
    """With seven of ten callers that return no batch waits, with nine of ten it does."""
    ends = Ends(size=10)
    for _ in range(200):
        ends.end(*[1] * round(10 * share))
    ends.admit(1)
    assert ends.should_wait() == waits


def test_the_first_batches_do_not_wait():
    """Until 32 batches have ended, the share of callers that return is not known well enough."""
    ends = Ends(size=4)
    waits = []
    for _ in range(32):
        ends.end(1, 1, 1, 1)
        ends.admit(1)
        waits.append(ends.should_wait())
        ends.queue.take(ends.queue.first(1), ends.now_ns, "full")
    assert waits == [False] * 31 + [True]


def test_as_many_as_usual_are_awaited():
    """The wait ends when as many requests have arrived as callers usually return."""
    ends = Ends(size=10)
    for _ in range(200):
        ends.end(*[1] * 9)
    ends.admit(8)
    assert ends.should_wait()
    ends.admit(1)
    assert not ends.should_wait()


def test_requests_that_exceed_a_full_batch_do_not_wait():
    """Requests that would need two batches anyway are not held back for one."""
    ends = ends_of_returning_callers()
    ends.admit(1)
    assert ends.should_wait(full_at=4)
    assert not ends.should_wait(full_at=3)


def test_requests_of_several_priorities_do_not_wait():
    """An urgent request does not wait, nor do others beside it."""
    ends = ends_of_returning_callers()
    ends.admit(1)
    ends.admit(1, priority=-1)
    assert not ends.should_wait()


@pytest.mark.parametrize(("left_ms", "waits"), [(13, False), (14, True)])
def test_a_queued_deadline_is_kept(left_ms, waits):
    """A wait of 3.3 ms and a batch of 10 ms must end before the deadline of a request that was queued for long."""
    ends = ends_of_returning_callers()
    queued_ns = ends.now_ns - 27_000_000
    ends.queue.admit(si.Request(1.0), 1.0, None, queued_ns, ends.now_ns + round(left_ms * 1e6), 0)
    assert ends.should_wait() == waits


@pytest.mark.parametrize(("limit_ms", "waits"), [(23, False), (24, True)])
def test_a_request_behind_the_batch_can_be_on_time(limit_ms, waits):
    """A request with as little time as recent ones must be able to run after a wait and a batch that it just missed."""
    ends = ends_of_returning_callers()
    ends.admit(1, deadline_ns=ends.now_ns + round(limit_ms * 1e6))
    assert ends.should_wait() == waits


def test_streams_do_not_wait():
    """The source of a live stream sends at its own pace, not because a response has come."""
    ends = ends_of_returning_callers()
    ends.stream_id = "camera"
    ends.end(1, 1, 1, 1)
    ends.admit(1)
    assert not ends.should_wait()


def test_a_wait_is_no_longer_than_a_usual_batch():
    """After a batch that took 200 times as long as usual, the wait is as short as after others."""
    ends = ends_of_returning_callers()
    ends.end(1, 1, 1, 1, duration_s=2.0)
    ends.admit(1)
    assert ends.should_wait()
    assert ends.returning.until_ns - ends.now_ns < 4_000_000


@pytest.mark.parametrize(("later_ns", "workers"), [(0, 1), (999_999_999, 1), (1_000_000_000, 4)])
def test_workers_do_not_share_what_a_session_splits(later_ns, workers):
    """For a second after a session read the next batch, the workers share nothing."""
    returning = Ends(size=1).returning
    assert returning.sharing_workers(4, 5) == 4
    returning.record_split(5)
    assert returning.sharing_workers(4, 5 + later_ns) == workers


async def test_independent_bursts_are_not_shared(loop):
    """One worker has a burst that fits into one batch and follows no end of another; the others stay free."""
    model = ScriptedBackend(duration_s=lambda size: 0.002 + 0.002 * size)
    service = Service(loop, backend=model, max_batch_size=8, max_in_flight=4)
    for _ in range(60):
        await asyncio.gather(*(service.ask() for _ in range(8)))
        await asyncio.sleep(0.1)

    assert service.last_sizes(10) == {8: 10}

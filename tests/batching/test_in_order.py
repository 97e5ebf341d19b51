"""A batcher around a model that keeps state per stream serves the requests of each stream in order, one at a time."""

import asyncio

import pytest

import streaminfer as si
from streaminfer.errors import Closed, DeadlineExceeded, Overloaded
from streaminfer.testing import HANG, ScriptedBackend

pytestmark = pytest.mark.uncompiled


class Recurrent(ScriptedBackend):
    """Backend that only declares that it keeps state per stream."""

    stream_states = object()

    @property
    def served(self):
        return [[row.inputs for row in batch.rows] for batch in self.batches]


def stack(loop, model, **settings):
    return si.Stack(si.AdaptiveBatcher(max_batch_size=4, policy="greedy", **settings), model, clock=loop.clock)


def send(service, x, stream, **settings):
    return asyncio.ensure_future(service(x, stream_id=stream, **settings))


async def test_requests_of_a_stream_run_one_after_another(loop):
    """Each request of a stream is in a separate batch, although workers are free and later ones are more urgent."""
    model = Recurrent(duration_s=1.0)
    async with stack(loop, model, max_in_flight=3) as service:
        calls = [send(service, x, "a", priority=-int(x)) for x in (1.0, 2.0, 3.0)]
        calls += [send(service, x, "b") for x in (10.0, 20.0)]
        calls.append(send(service, 100.0, None))
        await asyncio.gather(*calls)

    assert model.served == [[1.0, 10.0, 100.0], [2.0, 20.0], [3.0]]


async def test_cancelled_request_releases_next_of_its_stream(loop):
    """If a queued or held-back request is cancelled, the later requests of its stream are still served."""
    model = Recurrent(duration_s=1.0)
    async with stack(loop, model, max_in_flight=1) as service:
        blocking = send(service, 0.0, None)
        await asyncio.sleep(0.1)
        first, second, third, fourth = (send(service, x, "a") for x in (1.0, 2.0, 3.0, 4.0))
        await asyncio.sleep(0.1)
        first.cancel()
        third.cancel()
        await asyncio.wait({blocking, first, second, third, fourth})

    assert model.served == [[0.0], [2.0], [4.0]]


async def test_abandoned_batch_releases_held_back_request(loop):
    """A held-back request runs after the batch of the previous request of its stream is abandoned."""
    model = Recurrent(HANG, duration_s=1.0)
    async with stack(loop, model, max_in_flight=2) as service:
        first, second = send(service, 1.0, "a"), send(service, 2.0, "a")
        await asyncio.sleep(3)
        assert not second.done()
        first.cancel()
        assert await second == 2.0


async def test_held_back_request_ends_at_its_deadline(loop):
    """A held-back request ends at its deadline, and the next request of its stream is served."""
    model = Recurrent(duration_s=1.0)
    async with stack(loop, model) as service:
        first = send(service, 1.0, "a")
        late = send(service, 2.0, "a", timeout_s=0.5)
        third = send(service, 3.0, "a")
        with pytest.raises(DeadlineExceeded):
            await late
        assert loop.time() == pytest.approx(0.5)
        assert await asyncio.gather(first, third) == [1.0, 3.0]

    assert model.served == [[1.0], [3.0]]


async def test_held_back_requests_count_as_queued(loop):
    """Held-back requests take places in the queue and count as queued."""
    batcher = si.AdaptiveBatcher(max_batch_size=4, policy="greedy", max_queue_size=3)
    async with si.Stack(batcher, Recurrent(duration_s=1.0), clock=loop.clock) as service:
        first = send(service, 0.0, "a")
        await asyncio.sleep(0.1)
        rest = [send(service, x, "a") for x in (1.0, 2.0, 3.0)]
        await asyncio.sleep(0.1)
        assert batcher.statistics().queued == 3
        with pytest.raises(Overloaded):
            await service(4.0, stream_id="b")
        await asyncio.gather(first, *rest)
        assert batcher.statistics().succeeded == 4


async def test_admission_with_all_requests_held_back(loop):
    """Admission does not count on a free worker if all requests of a full queue are held back."""
    model = Recurrent(duration_s=1.0)
    async with stack(loop, model, max_in_flight=2, max_queue_size=2) as service:
        calls = [send(service, 1.0, "a")]
        await asyncio.sleep(0.1)
        calls += [send(service, x, "a") for x in (2.0, 3.0)]
        await asyncio.sleep(0.1)
        assert service.admission(si.Request(4.0, stream_id="a"), loop.clock()).reason == "queue_full"
        await asyncio.sleep(1.0)
        assert service.admission(si.Request(4.0, stream_id="a"), loop.clock()).ok
        await asyncio.gather(*calls)


async def test_map_of_one_stream_keeps_its_order(loop):
    """Requests of a stream that wait for a place in the queue run in their order, although a worker is free."""
    model = Recurrent(duration_s=1.0)
    async with stack(loop, model, max_in_flight=2, max_queue_size=3) as service:
        await service.map([float(number) for number in range(20)], stream_id="a")

    assert model.served == [[float(number)] for number in range(20)]


async def test_urgent_request_sheds_a_held_back_one(loop):
    """A queue full of held-back requests sheds the newest of them for a more urgent request."""
    batcher = si.AdaptiveBatcher(max_batch_size=4, policy="greedy", max_queue_size=2)
    async with si.Stack(batcher, Recurrent(duration_s=1.0), clock=loop.clock) as service:
        calls = [send(service, x, "a") for x in (0.0, 1.0, 2.0)]
        await asyncio.sleep(0.1)
        calls.append(send(service, 3.0, "b", priority=-1))
        results = await asyncio.gather(*calls, return_exceptions=True)

    assert (results[:2], results[3]) == ([0.0, 1.0], 3.0)
    assert isinstance(results[2], Overloaded)


async def test_greedy_stream_leaves_others_a_place(loop):
    """With `fair=True`, a full queue sheds a held-back request of a greedy stream for the first request of another."""
    batcher = si.AdaptiveBatcher(max_batch_size=4, policy="greedy", max_queue_size=3, fair=True)
    async with si.Stack(batcher, Recurrent(duration_s=1.0), clock=loop.clock) as service:
        greedy = [send(service, float(x), "a") for x in range(4)]
        await asyncio.sleep(0.1)
        other = send(service, 10.0, "b")
        await asyncio.sleep(0.1)
        with pytest.raises(Overloaded):
            await service(5.0, stream_id="a")
        results = await asyncio.gather(*greedy, other, return_exceptions=True)

    assert (results[:3], results[4]) == ([0.0, 1.0, 2.0], 10.0)
    assert isinstance(results[3], Overloaded)


@pytest.mark.parametrize("drain", [True, False])
async def test_stop_serves_or_closes_held_back_requests(loop, drain):
    """A draining stop serves the held-back requests; any other stop ends them with ``Closed``."""
    model = Recurrent(duration_s=1.0)
    service = stack(loop, model)
    await service.start()
    calls = [send(service, x, "a") for x in (1.0, 2.0, 3.0)]
    await asyncio.sleep(0.1)

    await service.stop(drain=drain)

    results = await asyncio.gather(*calls, return_exceptions=True)
    if drain:
        assert results == [1.0, 2.0, 3.0]
    else:
        assert [type(result) for result in results] == [Closed] * 3


async def test_failed_batch_is_retried_before_next_request(loop):
    """The parts of a failed batch run before the next requests of its streams."""

    def fail_on_two(batch):
        if 2.0 in [row.inputs for row in batch.rows]:
            raise ValueError("two")
        return [row.inputs for row in batch.rows]

    model = Recurrent(then=fail_on_two, duration_s=1.0)
    async with stack(loop, model, max_in_flight=4) as service:
        calls = [send(service, 1.0, "a"), send(service, 2.0, "b"), send(service, 10.0, "a"), send(service, 20.0, "b")]
        results = await asyncio.gather(*calls, return_exceptions=True)

    assert [results[at] for at in (0, 2, 3)] == [1.0, 10.0, 20.0]
    flat = [x for batch in model.served for x in batch]
    assert flat.index(10.0) > max(at for at, x in enumerate(flat) if x == 1.0)
    assert flat.index(20.0) > max(at for at, x in enumerate(flat) if x == 2.0)


async def test_stateless_models_batch_streams_together(loop):
    """Streams of a model without state share batches."""
    model = ScriptedBackend(duration_s=1.0)
    async with stack(loop, model) as service:
        await asyncio.gather(*(send(service, x, "a") for x in (1.0, 2.0, 3.0)))

    assert model.batch_sizes == [3]

"""FairQueue, in which streams take turns: alone, and in a batcher."""

import asyncio
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streaminfer as si
from streaminfer.batching.queue._fair_queue_cy import FairQueue
from streaminfer.batching.queue._ticket_cy import NEVER
from streaminfer.testing import ScriptedBackend

pytestmark = pytest.mark.uncompiled


class Future:
    def done(self):
        return False

    def set_exception(self, error):
        self.error = error


def admit(queue, *stream_ids, priority=0, deadline_ns=NEVER):
    return [
        queue.admit(si.Request(None, stream_id=stream_id), (stream_id, number), Future(), 0, deadline_ns, priority)
        for number, stream_id in enumerate(stream_ids)
    ]


def order_of(queue):
    return [ticket.inputs[0] for ticket in queue]


def model_order(queue_weights, arrivals):
    """Return the service order of queued requests of these streams: by start tag, then by arrival."""
    finish, tags = {}, []
    for number, stream_id in enumerate(arrivals):
        start = finish.get(stream_id, 0.0)
        finish[stream_id] = start + 1 / queue_weights.get(stream_id, 1.0)
        tags.append((max(start - 2.0, 0.0), number, stream_id))
    return [stream_id for _, _, stream_id in sorted(tags)]


@given(
    st.lists(st.sampled_from(["a", "b", "c", None]), max_size=40),
    st.sampled_from([{}, {"a": 2.0}, {"a": 0.5, "b": 4.0}]),
)
def test_tickets_are_in_fair_order(arrivals, weights):
    queue = FairQueue(100, weights)
    admit(queue, *arrivals)

    assert order_of(queue) == model_order(weights, arrivals)


@given(st.lists(st.tuples(st.sampled_from(["admit", "take", "end"]), st.integers(0, 5)), max_size=60))
def test_no_ticket_is_lost_in_random_operations(steps):
    """The queue has the tickets that were admitted and neither taken nor ended, in the order of their tags."""
    queue, waiting = FairQueue(100, {}), []
    for step, number in steps:
        if step == "admit":
            waiting += admit(queue, number)
        elif step == "take":
            taken = queue.take(queue.first(number), 0, "").tickets
            waiting = [ticket for ticket in waiting if ticket not in taken]
        elif waiting:
            assert queue.end(waiting.pop(number % len(waiting)))
        tickets = list(queue)
        assert set(tickets) == set(waiting)
        assert len(queue) == len(tickets) == len(waiting)
        tags = [ticket.tag for ticket in tickets]
        assert tags == sorted(tags)


def test_newcomer_waits_for_one_request_per_backlog():
    """A new stream waits for at most one request of each stream with a backlog."""
    queue = FairQueue(100, {})
    admit(queue, *["greedy"] * 20, "other", "other")
    queue.take(queue.first(4), 0, "full")
    admit(queue, "new")

    assert order_of(queue)[:3].index("new") <= 2
    assert queue.ahead_of("newer", 0) <= 3
    assert queue.ahead_of("greedy", 0) == len(queue)
    assert queue.precedes("newer", list(queue)[-1])
    assert not queue.precedes("greedy", list(queue)[-1])


def test_ahead_of_stream_are_more_urgent_priorities():
    """All requests of a more urgent priority come first, and none of a less urgent one."""
    queue = FairQueue(100, {})
    for priority, stream_id in [(0, "a"), (1, "b"), (2, "c")]:
        queue.admit(si.Request(1.0, stream_id=stream_id), 1.0, None, 0, NEVER, priority)
    assert [queue.ahead_of("new", priority) for priority in (-1, 0, 1, 2)] == [0, 1, 2, 3]


@pytest.mark.parametrize("leave", ["end", "expire"])
def test_unserved_request_costs_its_stream_nothing(leave):
    """A request that leaves the queue unserved costs its stream nothing."""
    queue = FairQueue(100, {"a": 0.5})
    admit(queue, *["b"] * 5)
    gone = admit(queue, *["a"] * 20, deadline_ns=10)
    if leave == "end":
        for ticket in gone:
            queue.end(ticket)
    else:
        assert len(queue.expire(10)) == 20
    admit(queue, "a")

    assert order_of(queue).index("a") <= 3


def test_priority_goes_before_fair_order():
    queue = FairQueue(100, {})
    admit(queue, "a", "a", priority=0)
    admit(queue, "b", priority=1)
    admit(queue, "c", priority=-1)

    assert order_of(queue) == ["c", "a", "a", "b"]


def test_a_policy_sees_no_more_than_the_horizon():
    queue = FairQueue(100, {})
    admit(queue, *"abcdef")
    queue.horizon = 4

    assert [ticket.inputs[0] for ticket in queue.first(100)] == list("abcd")
    assert len(list(queue)) == 6


class StreamId:
    """Stream id to which a test can have weak references, to find out if anything else holds it."""


def test_idle_streams_are_forgotten():
    """The queue forgets streams that would not wait for a turn, and remembers a stream with a backlog."""
    queue = FairQueue(1000, {})
    backlog = admit(queue, *["greedy"] * 10)
    held = weakref.WeakSet()
    for _ in range(1000):
        stream_id = StreamId()
        held.add(stream_id)
        queue.take(admit(queue, *[stream_id] * 5), 0, "")

    assert len(held) <= 150
    (late,) = admit(queue, "greedy")
    assert late.tag > backlog[-1].tag


def test_stream_below_its_share_may_send_a_burst():
    """A stream that sends less than its share may send several requests at once.

    Its requests and those of other such streams are in the order of arrival, before the backlog of another stream.
    """
    queue = FairQueue(100, {})
    admit(queue, *["greedy"] * 20)
    queue.take(queue.first(8), 0, "full")
    admit(queue, "a", "b", "a", "c", "a")

    assert order_of(queue)[:6] == ["a", "b", "a", "c", "a", "greedy"]


async def test_a_full_queue_sheds_the_longest_backlog(loop):
    """A full queue rejects the stream that filled it, and sheds one of its requests for a request of another stream."""
    model = ScriptedBackend(duration_s=1.0)
    batcher = si.AdaptiveBatcher(max_batch_size=1, max_queue_size=4, fair=True)
    async with si.Stack(batcher, model, clock=loop.clock) as service:
        greedy = [asyncio.ensure_future(service(float(number), stream_id="greedy")) for number in range(5)]
        await asyncio.sleep(0.1)
        request = si.Request(9.0, stream_id="greedy")
        assert service.admission(request, loop.clock()).reason == "queue_full"
        with pytest.raises(si.Overloaded):
            await service(9.0, stream_id="greedy")
        assert service.admission(si.Request(9.0, stream_id="small"), loop.clock()).reason != "queue_full"

        assert float(await service(7.0, stream_id="small")) == 7.0

        assert loop.time() == pytest.approx(4.0)  # after the requests within the allowance, before the backlog
        outcomes = await asyncio.gather(*greedy, return_exceptions=True)
        assert [isinstance(outcome, si.Overloaded) for outcome in outcomes] == [False] * 4 + [True]
        assert str(outcomes[-1]).startswith("shed for a stream with a shorter backlog; 4 requests are queued already")
    assert batcher.statistics().rejected == {"queue_full": 1, "shed": 1}


@pytest.mark.parametrize("policy", ["lookahead", "greedy"])
@pytest.mark.parametrize("slo_s", [None, 0.5])
async def test_no_stream_waits_behind_the_backlog_of_another(loop, policy, slo_s):
    """Despite the backlog of one stream, requests of others are in one of the next two batches; batches are full."""
    model = ScriptedBackend(duration_s=0.02)
    batcher = si.AdaptiveBatcher(max_batch_size=8, fair=True, policy=policy, slo_s=slo_s)
    latencies_s = []

    async def send(service, stream_id):
        begun_s = loop.time()
        await service(1.0, stream_id=stream_id)
        latencies_s.append(loop.time() - begun_s)

    async with si.Stack(batcher, model, clock=loop.clock) as service:
        for _ in range(40):  # so that the durations of all sizes are known
            await asyncio.gather(*(service(1.0) for _ in range(8)))
        model.batches.clear()
        backlog = [asyncio.ensure_future(service(1.0, stream_id="greedy")) for _ in range(100)]
        for _ in range(5):
            await asyncio.sleep(0.033)
            await asyncio.gather(*(send(service, number) for number in range(4)))
        await asyncio.gather(*backlog, return_exceptions=True)

    assert max(latencies_s) <= 0.041
    assert np.mean(model.batch_sizes[:8]) == 8


async def test_streams_of_a_batch_function_share_fairly(loop):
    """A function that `wrap` returns takes a `stream_id` as a stack does, and no stream waits for another's backlog."""
    served = []

    async def model(batch):
        served.extend(batch.tolist())
        await asyncio.sleep(0.01)
        return batch

    predict = si.AdaptiveBatcher(max_batch_size=1, fair=True, clock=loop.clock).wrap(model)
    backlog = [asyncio.ensure_future(predict(float(number), stream_id="greedy")) for number in range(10)]
    await asyncio.sleep(0.001)
    await predict(99.0, stream_id="small")
    await asyncio.gather(*backlog)
    assert served.index(99.0) <= 3  # after the requests within the allowance
    with pytest.raises(si.InvalidInput, match="stream_id: expected a hashable value"):
        await predict(1.0, stream_id=[])


async def test_weights_are_shares_of_a_backlog(loop):
    model = ScriptedBackend(duration_s=0.01)
    batcher = si.AdaptiveBatcher(max_batch_size=4, fair={"gold": 3.0})
    async with si.Stack(batcher, model, clock=loop.clock) as service:
        calls = [asyncio.ensure_future(service(1.0, stream_id=name)) for _ in range(40) for name in ("gold", "tin")]
        await asyncio.sleep(0.1001)
        done = [sum(call.done() for call in calls[start::2]) for start in (0, 1)]
        await asyncio.gather(*calls)
    assert done[0] == pytest.approx(3 * done[1], abs=3)


async def test_prediction_counts_only_requests_served_before(loop):
    """The admission of a request of a stream without a backlog does not count the backlog of another stream."""
    model = ScriptedBackend(duration_s=0.02, example=1.0)
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=2, fair=True), model, clock=loop.clock) as service:
        backlog = [asyncio.ensure_future(service(1.0, stream_id="greedy")) for _ in range(40)]
        await asyncio.sleep(0.001)
        deadline_ns = loop.clock() + 100_000_000
        small = service.admission(si.Request(1.0, stream_id="small", deadline_ns=deadline_ns), loop.clock())
        greedy = service.admission(si.Request(1.0, stream_id="greedy", deadline_ns=deadline_ns), loop.clock())
        await asyncio.gather(*backlog)
    assert small.ok
    assert greedy.reason == "infeasible"


@pytest.mark.parametrize(
    ("fair", "error"), [("yes", TypeError), ({"a": 0}, ValueError), ({"a": "2"}, TypeError), (1, TypeError)]
)
def test_wrong_weights_are_named(fair, error):
    with pytest.raises(error, match="fair: expected True, False or a mapping of stream id to weight"):
        si.AdaptiveBatcher(max_batch_size=2, fair=fair)


@pytest.mark.parametrize("slo_s", [0.5, None])
async def test_stream_above_its_share_still_gets_its_share(slo_s, loop):
    """A stream that always sends too much still gets its share.

    Most of its requests pass their deadline or are shed; as many are served as of each other busy stream.
    """
    served = dict.fromkeys(["greedy", 1, 2, 3, 4], 0)

    async def play(service, stream_id, rate):
        async def ask():
            try:
                await service(1.0, stream_id=stream_id)
            except (si.DeadlineExceeded, si.Overloaded):
                return
            served[stream_id] += 1

        async with asyncio.TaskGroup() as tasks:
            for _ in range(round(10 * rate)):
                tasks.create_task(ask())
                await asyncio.sleep(1 / rate)

    batcher = si.AdaptiveBatcher(max_batch_size=1, max_queue_size=64, fair=True, slo_s=slo_s)
    async with si.Stack(batcher, ScriptedBackend(duration_s=0.01), clock=loop.clock) as service:
        await asyncio.gather(play(service, "greedy", 400), *(play(service, number, 30) for number in range(1, 5)))

    assert max(served.values()) < 1.1 * min(served.values())

"""Buckets, limits and fixed sizes in a live batcher: inputs of the model, results of callers, and plans."""

import asyncio

import numpy as np
import pytest

import streaminfer as si
from streaminfer.batching import Buckets, ServiceTime
from streaminfer.batching.planner.lookahead import Lookahead
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.service_time.learned_service_time import LearnedServiceTime
from streaminfer.testing import run

pytestmark = pytest.mark.uncompiled

MS = 1_000_000


class Recording:
    """Backend that records its batches and returns the sum of each row."""

    def __init__(self, duration_s=lambda inputs: 0.01, **capabilities):
        self.seen = []
        self.duration_s = duration_s
        vars(self).update(capabilities)

    async def infer(self, batch):
        inputs = batch.inputs
        self.seen.append((len(batch), batch.size, inputs))
        await asyncio.sleep(self.duration_s(inputs))
        ids = inputs["ids"] if isinstance(inputs, dict) else inputs
        return list(ids.sum(axis=1))


def texts(*lengths):
    return [np.arange(1, length + 1, dtype=np.int64) for length in lengths]


def test_rows_are_padded_to_their_bucket_and_masked():
    async def main(loop):
        backend = Recording()
        buckets = Buckets((4, 8), pad_value=-1, mask="mask")
        batcher = si.AdaptiveBatcher(max_batch_size=8, buckets=buckets, clock=loop.clock)
        service = batcher.wrap(backend)
        rows = texts(2, 7, 3, 4, 8)
        answers = await asyncio.gather(*(service.call(si.Request({"ids": row})) for row in rows))
        expected = [row.sum() - (4 if len(row) <= 4 else 8) + len(row) for row in rows]
        assert [answer.outputs for answer in answers] == expected
        shapes = sorted((n, inputs["ids"].shape, inputs["mask"].sum()) for n, _, inputs in backend.seen)
        assert shapes == [(2, (2, 8), 15), (3, (3, 4), 9)]
        with pytest.raises(si.InvalidInput, match="8"):
            await service.call(si.Request({"ids": texts(9)[0]}))
        assert batcher.statistics().failed == 1
        assert set(batcher.service_time) == {4, 8}
        assert [model.observations for model in batcher.service_time.values()] == [1, 1]

    run(main)


def test_backend_validates_the_padded_inputs():
    seen = []

    def validate(request):
        seen.append({name: value.shape for name, value in request.inputs.items()})
        if "mask" not in request.inputs:
            raise si.InvalidInput("no mask")

    async def main(loop):
        backend = Recording(validate=validate)
        batcher = si.AdaptiveBatcher(max_batch_size=8, buckets=Buckets((4, 8), mask="mask", inputs=["ids"]))
        async with si.Stack(batcher, backend, clock=loop.clock) as service:
            assert await service({"ids": texts(3)[0], "other": np.zeros((2, 2))}) == 6
            with pytest.raises(si.InvalidInput, match="8"):
                await service({"ids": texts(9)[0]})

    run(main)
    assert seen == [{"ids": (4,), "other": (2, 2), "mask": (4,)}]


def test_without_buckets_backend_validation_is_kept():
    """Without buckets, the wrapped service adds no validation to that of its backend."""

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=8)
        backend = Recording(validate=lambda request: None)
        assert batcher.wrap(backend).validate is None

    run(main)


def test_fixed_sizes_are_filled_and_extra_rows_dropped():
    """Batches are filled up to a preferred size, and the results of the added rows are dropped."""

    async def main(loop):
        backend = Recording()
        batcher = si.AdaptiveBatcher(max_batch_size=8, preferred_sizes=(4, 8), clock=loop.clock)
        service = batcher.wrap(backend)
        for count in (1, 5):
            rows = [np.full(3, float(i)) for i in range(count)]
            answers = await asyncio.gather(*(service.call(si.Request(row)) for row in rows))
            assert [answer.outputs for answer in answers] == [row.sum() for row in rows]
        assert [(n, size, inputs.shape) for n, size, inputs in backend.seen] == [(1, 4, (4, 3)), (5, 8, (8, 3))]
        assert batcher.statistics().succeeded == 6
        # the learned durations belong to the padded batches, of four and of eight rows
        assert batcher.service_time.fitted().sizes[-2:] == (4, 8)

    run(main)


def test_fixed_sizes_for_functions_on_the_loop():
    shapes = []

    async def main():
        def predict(x):
            shapes.append(x.shape)
            return x.sum(axis=1)

        batched = si.AdaptiveBatcher(max_batch_size=8, preferred_sizes=[2, 8]).wrap(predict)
        answers = await asyncio.gather(*(batched(np.full(2, float(i))) for i in range(3)))
        assert answers == [0.0, 2.0, 4.0]

    asyncio.run(main())
    assert shapes == [(8, 2)]


def test_bytes_bound_a_batch_and_reject_oversized_rows():
    """`max_batch_bytes` bounds a batch, and a row that never fits is rejected as invalid input."""

    async def main(loop):
        backend = Recording()
        batcher = si.AdaptiveBatcher(max_batch_size=8, max_batch_bytes=3 * 800, clock=loop.clock)
        service = batcher.wrap(backend)
        await asyncio.gather(*(service.call(si.Request(np.zeros(100))) for _ in range(7)))
        assert [n for n, _, _ in backend.seen] == [3, 3, 1]
        with pytest.raises(si.InvalidInput, match="max_batch_bytes"):
            await service.call(si.Request(np.zeros(301)))

    run(main)


def test_padded_elements_bound_a_batch():
    async def main(loop):
        backend = Recording()
        buckets = Buckets((4, 8), max_elements=16)
        service = si.AdaptiveBatcher(max_batch_size=8, buckets=buckets, clock=loop.clock).wrap(backend)
        await asyncio.gather(*(service.call(si.Request(row)) for row in texts(*[3] * 5, *[6] * 3)))
        assert sorted(inputs.shape for _, _, inputs in backend.seen) == [(1, 4), (1, 8), (2, 8), (4, 4)]

    run(main)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"buckets": "48"}, TypeError, "buckets"),
        ({"buckets": (8, 4)}, ValueError, "lengths"),
        ({"buckets": (4, 8), "stack": False}, ValueError, "buckets: expected None with stack=False"),
        ({"preferred_sizes": (4, 16)}, ValueError, "preferred_sizes"),
        ({"preferred_sizes": ()}, ValueError, "preferred_sizes"),
        ({"max_batch_bytes": 0}, ValueError, "max_batch_bytes"),
        ({"buckets": (4, 8), "service_time": ServiceTime.affine(0.01, 0.001)}, TypeError, "service_time"),
        ({"buckets": (4, 8), "service_time": {5: ServiceTime.affine(0.01, 0.001)}}, ValueError, "service_time"),
        ({"buckets": (4, 8), "service_time": {4: 1.0}}, TypeError, "service_time"),
    ],
)
def test_bad_settings_are_named(arguments, error, match):
    with pytest.raises(error, match=match):
        si.AdaptiveBatcher(max_batch_size=8, **arguments)


# -- the planner between buckets ------------------------------------------------------------------------------------

SHORT = ServiceTime.affine(0.004, 0.001)  # 5 ms alone, 8 ms for four
LONG = ServiceTime.affine(0.020, 0.010)  # 30 ms alone, 40 ms for two


def queue_of(*requests):
    queue = RequestQueue(1000)
    for number, (bucket, deadline_ms) in enumerate(requests):
        queue.admit(None, number, None, 0, round(deadline_ms * MS), 0, bucket)
    return queue


def decide(policy, queue, now_ms=0):
    decision = policy.decide(queue, round(now_ms * MS), 1)
    return [t.inputs for t in decision.batch], decision.reason, sorted(t.inputs for t in decision.reject)


def between():
    return Lookahead(4, [SHORT, LONG], caps=[4, 2], lengths=[8, 64])


def test_earliest_bucket_goes_first_if_all_are_on_time():
    """If all buckets are on time in any order, the one with the earliest deadline is released first."""
    assert decide(between(), queue_of((0, 100), (1, 60), (0, 90), (1, 80))) == ([1, 3], "full", [])
    assert decide(between(), queue_of((0, 20), (1, 60), (0, 90))) == ([0, 2], "idle_worker", [])


def test_bucket_with_most_requests_on_time_goes_first():
    """The bucket that lets the most requests be on time is released first."""
    # if the long requests are first, in deadline order, all four short ones are late; in reverse order none is late
    batch, reason, refused = decide(between(), queue_of((1, 45), (1, 49), (0, 46), (0, 46), (0, 46), (0, 46)))
    assert (sorted(batch), reason, refused) == ([2, 3, 4, 5], "planned", [])
    # only one bucket can be on time, and the short requests are more
    batch, reason, refused = decide(between(), queue_of((1, 41), (1, 41), (0, 42), (0, 42), (0, 42)))
    assert (sorted(batch), reason) == ([2, 3, 4], "planned")


def test_requests_infeasible_in_a_bucket_are_rejected():
    batch, reason, refused = decide(between(), queue_of((1, 29), (0, 29), (0, 4)))
    assert (batch, reason, refused) == ([1], "planned", [0, 2])
    batch, reason, refused = decide(between(), queue_of((1, 29), (0, 4)))
    assert (batch, reason, refused) == ([], "", [0, 1])


def test_unknown_bucket_borrows_from_nearest_known_one():
    """An unmeasured bucket borrows scaled durations from the nearest measured one."""
    short, long = LearnedServiceTime(), LearnedServiceTime()
    policy = Lookahead(4, [short, long], caps=[4, 2], lengths=[8, 64])
    assert decide(policy, queue_of((1, 50), (1, 50), (1, 50), (0, 50))) == ([0, 1], "exploration", [])
    policy.observe(4, 8 * MS, 8 * MS, bucket=0)
    # eight times the length is expected to be eight times the work: about 40 ms
    assert decide(policy, queue_of((1, 25), (0, 90)))[2] == [0]
    assert decide(policy, queue_of((1, 70), (0, 90)))[0] == [0]
    policy.observe(1, 20 * MS, 30 * MS, bucket=1)
    assert decide(policy, queue_of((1, 30), (0, 90)))[0] == [0]


def mixed_load(policy, rate, n=3000, seed=1):
    """Return the share of requests on time, short and long ones mixed, in a live batcher that learns durations."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, n))
    lengths = np.where(rng.random(n) < 0.2, 60, 6)
    on_time = np.zeros(n, bool)

    async def main(loop):
        backend = Recording(lambda inputs: 0.004 + 0.0002 * inputs.shape[0] * inputs.shape[1] / 8)
        batcher = si.AdaptiveBatcher(
            max_batch_size=32, slo_s=0.1, buckets=(8, 64), policy=policy, max_queue_size=10**5, clock=loop.clock
        )
        service = batcher.wrap(backend)

        async def ask(number):
            try:
                await service.call(si.Request(np.zeros(lengths[number])))
            except si.DeadlineExceeded:
                return
            on_time[number] = True

        asked = []
        for number, at in enumerate(arrivals):
            if at > loop.time():
                await asyncio.sleep(at - loop.time())
            asked.append(asyncio.ensure_future(ask(number)))
        await asyncio.wait(asked)

    run(main)
    return on_time.mean()


def test_lookahead_beats_greedy_for_ragged_overload():
    # 0.8 · 0.2 + 0.2 · 1.6 = 0.48 ms of marginal work per request: 2,600 per second exceed what the device can do
    assert mixed_load("lookahead", 1000) >= 0.99
    lookahead, greedy = mixed_load("lookahead", 2600), mixed_load("greedy", 2600)
    assert lookahead >= 0.6
    assert lookahead > 2 * greedy


def test_two_workers_keep_two_batches_in_flight():
    async def main(loop):
        running = [0, 0]

        class Two:
            async def infer(self, batch):
                running[0] += 1
                running[1] = max(running)
                await asyncio.sleep(0.004 + 0.00025 * len(batch))
                running[0] -= 1
                return list(batch.inputs)

        rng = np.random.default_rng(1)
        arrivals = np.cumsum(rng.exponential(1 / (1.9 * 3200), 6000))
        on_time = 0
        batcher = si.AdaptiveBatcher(
            max_batch_size=64, slo_s=0.05, max_in_flight=2, max_queue_size=10**5, clock=loop.clock
        )
        service = batcher.wrap(Two())

        async def ask():
            nonlocal on_time
            try:
                await service.call(si.Request(1.0))
            except si.DeadlineExceeded:
                return
            on_time += 1

        asked = []
        for at in arrivals:
            if at > loop.time():
                await asyncio.sleep(at - loop.time())
            asked.append(asyncio.ensure_future(ask()))
        await asyncio.wait(asked)
        assert running[1] == 2
        assert on_time >= 0.97 * 6000

    run(main)


def test_masked_short_rows_join_longer_ones_if_as_fast():
    """With a mask, short rows join a batch of a longer bucket if one batch is as fast as two."""
    device = [ServiceTime.affine(0.010, 0.0001), ServiceTime.affine(0.010, 0.0005)]
    for masked, expected in ((True, ([1, 3, 0, 2], True)), (False, ([0, 2], False))):
        policy = Lookahead(8, device, lengths=[8, 64], masked=masked)
        queue = queue_of((0, 50), (1, 60), (0, 60), (1, 90))
        decision = policy.decide(queue, 0, 1)
        assert ([t.inputs for t in decision.batch], decision.shorter_too) == expected
    # not if it takes longer, if the short rows would be late, if there is no room, or if no long row is queued
    masked = {"lengths": [8, 64], "masked": True}
    dear = Lookahead(8, [ServiceTime.affine(0.001, 0.001), ServiceTime.affine(0.001, 0.01)], **masked)
    assert not dear.decide(queue_of((0, 100), (0, 100), (1, 100)), 0, 1).shorter_too
    assert not Lookahead(8, device, **masked).decide(queue_of((0, 10.5), (1, 60)), 0, 1).shorter_too
    assert not Lookahead(2, device, **masked).decide(queue_of((0, 50), (0, 50), (1, 60)), 0, 1).shorter_too
    assert not Lookahead(8, device, **masked).decide(queue_of((0, 50), (0, 50)), 0, 1).shorter_too


def test_joined_rows_are_padded_and_counted_as_longer():
    """Short rows that join a longer bucket are padded to its length, and the batch is observed for that bucket."""

    async def main(loop):
        backend = Recording()
        buckets = Buckets((4, 8), pad_value=0, mask="mask")
        service_time = {4: ServiceTime.affine(0.01, 0.0), 8: ServiceTime.affine(0.01, 0.0)}
        batcher = si.AdaptiveBatcher(max_batch_size=8, buckets=buckets, service_time=service_time, clock=loop.clock)
        service = batcher.wrap(backend)
        rows = texts(2, 7, 3)
        answers = await asyncio.gather(*(service.call(si.Request({"ids": row})) for row in rows))
        assert [answer.outputs for answer in answers] == [row.sum() for row in rows]
        [(n, _, inputs)] = backend.seen
        assert (n, inputs["ids"].shape, inputs["mask"].sum(axis=1).tolist()) == (3, (3, 8), [7, 2, 3])
        assert [model.observations for model in batcher.service_time.values()] == [0, 1]

    run(main)


def test_rest_is_padded_to_longest_remaining_row():
    """If the longest row is cancelled in the loop iteration of the dispatch, the other row keeps its own length."""

    async def main(loop):
        backend = Recording()
        service_time = {4: ServiceTime.affine(0.01, 0.0), 8: ServiceTime.affine(0.01, 0.0)}
        buckets = Buckets((4, 8), mask="mask")
        batcher = si.AdaptiveBatcher(max_batch_size=8, buckets=buckets, service_time=service_time, clock=loop.clock)
        service = batcher.wrap(backend)
        calls = [asyncio.ensure_future(service.call(si.Request({"ids": row}))) for row in texts(7, 2)]
        await asyncio.sleep(0)
        calls[0].cancel()  # the dispatch runs before the task of the call does
        assert (await calls[1]).outputs == 3
        assert calls[0].cancelled()
        [(_, _, inputs)] = backend.seen
        assert (inputs["ids"].tolist(), inputs["mask"].tolist()) == ([[1, 2, 0, 0]], [[1, 1, 0, 0]])
        assert [model.observations for model in batcher.service_time.values()] == [1, 0]

    run(main)

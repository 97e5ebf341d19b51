"""The planning policy: the batches that it releases, the requests that it rejects, and the batches that teach it."""

import asyncio
import contextlib

import numpy as np
import pytest

import streaminfer as si
from streaminfer import _compiled_kernels
from streaminfer.batching.planner import kernel_loader
from streaminfer.batching.planner.lookahead import Lookahead
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER
from streaminfer.batching.service_time.learned_service_time import LearnedServiceTime
from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.simulation.simulator import simulate
from streaminfer.testing import HANG, ScriptedBackend, run

MS = 1_000_000
DEVICE = ServiceTime.affine(0.010, 0.001)  # 11 ms alone, 14 ms for four


def queue_of(*deadlines_ms, enqueued_ms=0, priorities=None):
    queue = RequestQueue(20_000)
    for number, deadline in enumerate(deadlines_ms):
        queue.admit(
            None, number, None, enqueued_ms * MS, NEVER if deadline is None else round(deadline * MS),
            priorities[number] if priorities else 0,
        )  # fmt: skip
    return queue


def decide(policy, queue, now_ms=0):
    decision = policy.decide(queue, round(now_ms * MS), 1)
    return [t.inputs for t in decision.batch], decision.reason, sorted(t.inputs for t in decision.reject)


def test_full_batches_on_time_are_released_in_order():
    """If full batches in deadline order are on time, the policy releases the first of them."""
    policy = Lookahead(4, DEVICE)
    assert decide(policy, queue_of(50, 50, 50)) == ([0, 1, 2], "idle_worker", [])
    assert decide(policy, queue_of(50, 50, 50, 50, 50)) == ([0, 1, 2, 3], "full", [])


def test_batches_are_in_deadline_order():
    assert decide(Lookahead(2, DEVICE), queue_of(90, 25, 40)) == ([1, 2], "full", [])


def test_head_that_would_cut_the_batch_is_passed_over():
    """The policy passes over a first request if serving it would shrink the batch and make the others late."""
    # the first is on time only alone (11 ms); the other three, due at 23.5 ms, would then end at 24 ms
    batch, reason, refused = decide(Lookahead(4, DEVICE), queue_of(11.5, 23.5, 23.5, 23.5))
    assert (batch, reason, refused) == ([1, 2, 3], "planned", [])


def test_infeasible_requests_are_rejected_at_once():
    batch, reason, refused = decide(Lookahead(4, DEVICE), queue_of(5, 10.9, 50, 50))
    assert (batch, reason, refused) == ([2, 3], "planned", [0, 1])


def test_an_idle_worker_probes_if_all_are_infeasible():
    queue = queue_of(5, 6, 7)
    queue.admit(None, "newest", None, 1 * MS, 3 * MS, 0)
    decision = Lookahead(4, DEVICE).decide(queue, 0, 1)
    assert ([ticket.inputs for ticket in decision.batch], decision.reason) == (["newest", 0, 1, 2], "probe")
    assert not decision.reject


def test_nothing_is_sent_if_only_later_requests_fit():
    """Nothing is sent if only requests that arrive later can be on time.

    A probe would delay these requests, which the device can serve.
    """
    queue = queue_of(50)
    queue.end(queue.first(1)[0])
    queue.admit(None, "late", None, 0, 10 * MS, 0)
    assert decide(Lookahead(4, DEVICE), queue) == ([], "", ["late"])


def test_an_old_request_does_not_cause_rejections():
    """A request with enough time prevents a probe for five seconds only.

    If few requests arrive, the last 64 span minutes; a model that has recovered would get no batch for as long.
    """
    queue = queue_of(50)
    queue.end(queue.first(1)[0])
    queue.admit(None, "late", None, 5001 * MS, 5011 * MS, 0)
    assert decide(Lookahead(4, DEVICE), queue, now_ms=5001) == (["late"], "probe", [])


def learned_queue(ended_ms):
    """Return a policy that learned 11 ms from a batch that ended at ``ended_ms``, and a queue of one request.

    The request is due at 1200 ms; the timeout of the one before it was 50 ms.
    """
    policy = Lookahead(4, LearnedServiceTime())
    policy.observe(1, 11 * MS, ended_ms * MS)
    queue = queue_of(50)
    queue.end(queue.first(1)[0])
    record = queue.events.released((ended_ms - 11) * MS, 1, "full", 0)
    queue.events.ended(record, ended_ms * MS)
    queue.admit(None, "late", None, 0, 1200 * MS, 0)
    return policy, queue


def test_model_without_a_batch_for_a_second_is_probed():
    """A model that has had no batch for a second is probed.

    Other models can keep a shared device busy until all requests of this model are late.
    """
    policy, queue = learned_queue(ended_ms=190)
    assert decide(policy, queue, now_ms=1195) == (["late"], "probe", [])
    policy, queue = learned_queue(ended_ms=200)
    assert decide(policy, queue, now_ms=1195) == ([], "", ["late"])


def test_probe_after_cancelled_batch_is_half_as_large():
    """A probe is half as large as the batch cancelled before it, so that a batch too large to end is not repeated."""
    policy = Lookahead(8, LearnedServiceTime())
    policy.observe(8, 100 * MS, 100 * MS, cancelled=True)
    assert len(decide(policy, queue_of(*[20] * 8))[0]) == 4


def test_requests_without_deadline_are_never_rejected():
    """Requests without a deadline are served and never rejected."""
    policy = Lookahead(2, DEVICE)
    assert decide(policy, queue_of(None, None, None), now_ms=10**7) == ([0, 1], "full", [])
    batch, _, refused = decide(policy, queue_of(None, 30, 30, 31), now_ms=10)
    assert batch == [1, 2]
    assert refused == []
    batch, _, refused = decide(policy, queue_of(None, 5, 5), now_ms=4)
    assert (batch, refused) == ([0], [1, 2])


def test_overdue_requests_without_deadline_get_a_share():
    """After two seconds, requests without a deadline get a share of the rows that equals their share of the queue."""
    policy, queue = Lookahead(4, DEVICE), queue_of(*[None] * 10)
    for number in range(10, 40):
        queue.admit(None, number, None, 5000 * MS, 5050 * MS, 0)
    overdue = rows = 0
    for _ in range(40):
        batch = [ticket.inputs for ticket in policy.decide(queue, 5000 * MS, 1).batch]
        overdue += sum(number < 10 for number in batch)
        rows += len(batch)
    assert overdue == pytest.approx(rows * 10 / 40, abs=1)


def test_overdue_requests_are_in_a_batch_once():
    """An overdue request that fills a batch for free is not added to it again as part of the overdue share."""
    arrivals_s = [0.0] + [1.0] * 4 + [1.1] * 45
    deadlines_s = [np.inf] * 9 + [100.0] + [5.0] * 40  # the last 40 would be late even alone
    result = simulate(
        arrivals_s, slo_s=1.0, deadlines_s=deadlines_s, priorities=[0] + [1] * 4 + [0] * 45,
        service_time=ServiceTime.affine(3.0, 1e-6), max_batch_size=8,
    )  # fmt: skip
    assert result.batch_sizes.tolist() == [1, 8, 1]
    assert (result.on_time, result.dropped) == (10, 40)


def test_the_most_urgent_that_fit_fill_the_batch():
    queue = queue_of(30, 30, 30, 30, 30, 30, priorities=[1, 1, 1, 1, 0, 0])
    batch, _, _ = decide(Lookahead(4, DEVICE), queue)
    assert batch[:2] == [4, 5]
    assert len(batch) == 4


def test_urgent_requests_do_not_wait_for_second_batch():
    """Urgent requests are in the first batch, even if they would be on time in the second one."""
    # 900 ms are enough for any order, but urgent requests that stay queued would have less time at the next burst
    queue = queue_of(900, 900, 900, 900, 950, 950, priorities=[1, 1, 1, 1, 0, 0])
    batch, _, _ = decide(Lookahead(4, DEVICE), queue)
    assert batch[:2] == [4, 5]
    assert len(batch) == 4


def test_the_batch_is_small_enough_for_the_most_urgent():
    queue = queue_of(12.5, 16, 16, 16, 16, priorities=[0, 1, 1, 1, 1])
    batch, _, _ = decide(Lookahead(4, DEVICE), queue)
    assert batch[0] == 0
    assert len(batch) <= 2


def test_batches_end_at_the_best_size():
    # a batch of 4 takes 3 ms per row, and each further row takes 4.8 ms: larger batches gain nothing
    device = ServiceTime.table({1: 0.010, 4: 0.012, 64: 0.300})
    policy = Lookahead(64, device)
    batch, _, _ = decide(policy, queue_of(*[10_000] * 50))
    assert len(batch) == device.best_batch_size(64) < 10


def test_unmeasured_batch_gives_least_time_of_next():
    """While no batch is measured, the next one has requests with at least as much time left as the last one has run.

    A batch whose requests all pass their deadlines while it runs is cancelled, and measures nothing.
    """
    policy = Lookahead(2, LearnedServiceTime())
    assert decide(policy, queue_of(1, 2, 3, 4, 5, 6))[0] == [0, 1]
    assert decide(policy, queue_of(4, 5, 6, 7), now_ms=3)[0] == [2, 3]  # the first batch has run for 3 ms
    assert decide(policy, queue_of(14, 15, 16), now_ms=13)[0] == [1, 2]  # none has 10 ms: those with the most time
    assert decide(policy, queue_of(14, 15, 16), now_ms=13)[0] == [0, 1]  # the last batch failed at once


def test_unknown_model_gets_an_exploration_batch():
    policy = Lookahead(4, LearnedServiceTime())
    assert decide(policy, queue_of(*[0.001] * 6)) == ([0, 1, 2, 3], "exploration", [])
    policy.observe(4, 14 * MS, 14 * MS)
    assert policy.service_time.known
    assert decide(policy, queue_of(50, 50))[1] == "idle_worker"


def test_a_model_of_microseconds_is_sampled():
    """Of a model whose batches take microseconds, one batch in about sixteen milliseconds is learned.

    If it becomes much slower, that is known after six batches.
    """
    policy = Lookahead(4, LearnedServiceTime())
    model = policy.service_time
    now = 0
    for _ in range(32017):
        now += 100_000
        policy.observe(4, 1000, now)
    assert model.observations == 17 + 2
    for later in (5, 10, 15, 20, 25, 30):
        policy.observe(4, 5 * MS, now + later * MS)
    assert model.observations == 19 + 3
    assert model.expected_ns(4)[4] == pytest.approx(5 * MS, rel=0.3)


def test_outlook_covers_most_batches():
    """The outlook for a shared device has durations that most batches do not exceed.

    If turns were planned with means, the model that waits for its turn would be late every second time.
    """
    service_time = LearnedServiceTime()
    rng = np.random.default_rng(0)
    for number in range(200):
        size = 1 + number % 4
        service_time.observe(size, round((10 + size) * MS * rng.lognormal(0.0, 0.2)), number * 20 * MS)
    policy = Lookahead(4, service_time)
    queue = queue_of(500, 500)

    outlook = policy.outlook(queue, 0, policy.decide(queue, 0, 1).batch)

    assert (outlook.durations[1:] > 1.15 * service_time.expected_ns(4)[1 : len(outlook.durations)]).all()


def test_outlook_leaves_outliers_out():
    """The outlook for a shared device leaves outliers out.

    If two of the first 20 batches took ten times as long, other models need not wait for batches as long as these.
    """
    service_time = LearnedServiceTime()
    for number in range(20):
        size = 1 + number % 4
        late = 10 if number in {15, 17} else 1
        service_time.observe(size, late * (10 + size) * MS, number * 20 * MS)
    policy = Lookahead(4, service_time)
    queue = queue_of(5000, 5000)

    outlook = policy.outlook(queue, 0, policy.decide(queue, 0, 1).batch)

    mean = service_time.expected_ns(4)[1 : len(outlook.durations)]
    assert (service_time.upper_ns(4)[1 : len(outlook.durations)] > 5 * mean).all()
    assert (outlook.durations[1:] <= 1.3 * mean).all()


def test_ten_thousand_queued_requests_are_planned():
    queue = queue_of(*np.random.default_rng(0).integers(20, 2000, 10_000).tolist())
    batch, reason, _ = decide(Lookahead(32, DEVICE), queue)
    assert len(batch) == 32
    assert reason == "planned"


# -- live, in virtual time ------------------------------------------------------------------------------------------


def live(device, arrivals_s, limits_s, cap=64, priorities=None, **options):
    """Send the requests to a live batcher that learns the device; return which are on time, and the batcher."""
    on_time = np.zeros(len(arrivals_s), bool)

    async def main(loop):
        backend = ScriptedBackend(duration_s=lambda size: device(size, loop.time()))
        batcher = si.AdaptiveBatcher(
            **{"max_batch_size": cap, "max_queue_size": 10**5, "stack": False, "clock": loop.clock, **options}
        )
        service = batcher.wrap(backend)

        async def ask(number):
            deadline_ns = round((arrivals_s[number] + limits_s[number]) * 1e9)
            priority = 0 if priorities is None else int(priorities[number])
            try:
                await service.call(si.Request(number, deadline_ns=deadline_ns, priority=priority))
            except si.DeadlineExceeded:
                return
            on_time[number] = loop.now_ns <= deadline_ns

        asked = []
        for number, at in enumerate(arrivals_s):
            if at > loop.time():
                await asyncio.sleep(at - loop.time())
            asked.append(asyncio.ensure_future(ask(number)))
        await asyncio.wait(asked)
        s = batcher.statistics()
        assert s.submitted == s.succeeded + s.deadline_exceeded + sum(s.rejected.values()) == len(arrivals_s)
        return batcher

    return on_time, run(main)


def poisson(rate, n, seed=1):
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, n))


def accelerator(size, now_s):
    return 0.004 + 0.00025 * size


def test_overload_is_met_with_full_batches_on_time():
    on_time, batcher = live(accelerator, poisson(1.2 * 3200, 4000), np.full(4000, 0.05))
    assert on_time.mean() >= 0.82  # 0.833 is the most that is possible; greedy reaches 0.05
    assert batcher.statistics().released["planned"] > 10


def test_slowdown_and_recovery_of_device_are_followed():
    """The planner follows a device that slows down and recovers."""
    arrivals = poisson(0.6 * 3200, 8000)
    slow = (arrivals >= 1) & (arrivals < 3)
    on_time, _ = live(lambda n, t: accelerator(n, t) * (2 if 1 <= t < 3 else 1), arrivals, np.full(8000, 0.05))
    assert on_time[slow].mean() >= 0.6  # greedy reaches 0.02; 0.83 is the most that the slow device can serve
    assert on_time[arrivals >= 3.5].mean() == 1.0


def test_a_stall_is_unlearned():
    """A device that stalled for seconds gets batches as soon as it responds, because a probe measures it again."""
    arrivals = poisson(500, 4000)
    on_time, _ = live(lambda n, t: 3.0 if 1 <= t < 1.2 else accelerator(n, t), arrivals, np.full(4000, 0.05))
    assert on_time[arrivals < 0.9].mean() == 1.0
    assert on_time[arrivals > 5.5].mean() == 1.0


def test_urgent_requests_cost_no_throughput():
    """Urgent requests are on time and hardly reduce how many requests are on time in total."""
    arrivals, limits = poisson(1.5 * 3200, 4000), np.full(4000, 0.05)
    urgent = np.random.default_rng(5).random(4000) < 0.2
    on_time, _ = live(accelerator, arrivals, limits, priorities=~urgent)
    alone, _ = live(accelerator, arrivals, limits)
    assert on_time[urgent].mean() >= 0.99
    assert on_time.mean() >= 0.97 * alone.mean()


def test_a_failed_batch_teaches_nothing():
    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=4, slo_s=0.05, clock=loop.clock)
        service = batcher.wrap(ScriptedBackend(ValueError("x")))
        with pytest.raises(si.BackendError):
            await service.call(si.Request(1.0))
        assert not batcher.service_time.known
        await service.call(si.Request(1.0))
        assert batcher.service_time.observations == 1

    run(main)


def test_hung_batch_is_learned_and_then_unlearned():
    """A hung batch teaches the least time that it took, and later batches correct that."""

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=4, slo_s=0.05, clock=loop.clock)
        service = batcher.wrap(ScriptedBackend(HANG, duration_s=0.002))
        await asyncio.gather(*(service.call(si.Request(1.0)) for _ in range(4)), return_exceptions=True)
        assert batcher.service_time.expected_ns(4)[4] == pytest.approx(50 * MS, rel=0.02)
        for _ in range(20):
            await asyncio.gather(*(service.call(si.Request(1.0)) for _ in range(4)))
        assert batcher.service_time.expected_ns(4)[4] == pytest.approx(2 * MS, rel=0.1)

    run(main)


def test_abandoned_batch_teaches_a_lower_bound():
    """A batch that runs longer than its callers wait teaches a lower bound of its duration.

    The policy expects 11 ms, the device takes 80: every batch is cancelled at 50 ms, and that bound is learned.
    """

    async def main(loop):
        batcher = si.AdaptiveBatcher(
            max_batch_size=4, slo_s=0.05, policy="lookahead", service_time=DEVICE, clock=loop.clock
        )
        service = batcher.wrap(ScriptedBackend(duration_s=0.08))
        for _ in range(4):
            await asyncio.gather(service.call(si.Request(1.0)), return_exceptions=True)
        assert batcher.statistics().abandoned_batches == 4
        assert batcher.service_time.expected_ns(1)[1] >= 45 * MS

    run(main)


def test_a_given_service_time_is_where_learning_starts():
    batcher = si.AdaptiveBatcher(max_batch_size=4, policy="lookahead", service_time=DEVICE)
    assert batcher.service_time.known
    assert batcher.service_time.expected_ns(4).tolist() == pytest.approx(
        [0, 11 * MS, 12 * MS, 13 * MS, 14 * MS], rel=0.02
    )
    with pytest.raises(ValueError, match="service_time: expected None with policy='greedy'"):
        si.AdaptiveBatcher(max_batch_size=4, policy="greedy", service_time=DEVICE)
    with pytest.raises(TypeError, match="service_time: expected a ServiceTime"):
        si.AdaptiveBatcher(max_batch_size=4, policy="lookahead", service_time=3)


# -- exploration and comparison of sizes ----------------------------------------------------------------------------


def closed_loop(device, callers=64, rounds=100, cap=32, slo_s=None, lengths=(1,), classes=1, may_fail=(), **options):
    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=cap, slo_s=slo_s, clock=loop.clock, **options)
        service = batcher.wrap(ScriptedBackend(duration_s=device))
        inputs = [np.zeros(length) for length in lengths]

        async def caller(number):
            for turn in range(rounds):
                with contextlib.suppress(*may_fail):
                    await service.call(si.Request(inputs[(number + turn) % len(inputs)], priority=number % classes))

        await asyncio.gather(*(caller(number) for number in range(callers)))
        return batcher, callers * rounds / loop.time()

    return run(main)


@pytest.mark.parametrize(
    ("queued", "workers", "later_ms", "rows"),
    [(4, 1, 0, 4), (4, 2, 0, 2), (4, 4, 2.7, 1), (4, 4, 2.8, 4), (6, 4, 0, 2), (8, 2, 0, 4)],
)
def test_free_workers_share_the_queue(queued, workers, later_ms, rows):
    """Shortly after a batch, several free workers share a queue that does not fill the batches of all of them."""
    policy = Lookahead(4, ServiceTime.affine(0.004, 0.010), workers=4)
    queue = queue_of(*[500] * queued)
    assert len(policy.decide(queue, queue.events.last_end_ns + round(later_ms * MS), workers).batch) == rows


@pytest.mark.parametrize("slo_s", [None, 1.0])
@pytest.mark.parametrize(("workers", "callers"), [(2, 12), (4, 24), (8, 24), (4, 6)])
def test_closed_loop_keeps_all_workers_busy(workers, callers, slo_s):
    """Callers that return at once do not meet in one batch beside idle workers."""
    throughput = closed_loop(
        lambda size: 0.002 + 0.002 * size, callers, slo_s=slo_s, max_in_flight=workers, rounds=400
    )[1]
    rows = -(-callers // workers)
    assert throughput >= 0.85 * callers / (0.002 + 0.002 * rows)


def four_workers(loop, device=None):
    return si.AdaptiveBatcher(
        max_batch_size=8,
        max_in_flight=4,
        service_time=ServiceTime.affine(0.004, 0.010),
        device=device,
        clock=loop.clock,
    )


@pytest.mark.parametrize(("device", "sizes"), [(None, [2, 2, 2, 2]), (si.Device("gpu"), [8])])
def test_shared_device_gets_the_whole_queue(device, sizes):
    """Four free workers share the queue, but a shared device starts one batch at a time."""
    model = ScriptedBackend(duration_s=lambda size: 0.004 + 0.010 * size)

    async def main(loop):
        service = four_workers(loop, device).wrap(model)
        await asyncio.gather(*(service.call(si.Request(number)) for number in range(8)))

    run(main)
    assert [len(batch) for batch in model.batches] == sizes


def test_function_on_the_loop_gets_the_whole_queue():
    """A function that runs on the event loop occupies it, so the workers do not share the queue."""
    sizes = []

    async def main(loop):
        @four_workers(loop).wrap
        def model(batch):
            sizes.append(len(batch))
            return batch

        await asyncio.gather(*(model(float(number)) for number in range(8)))

    run(main)
    assert sizes == [8]


BLAZE_FULL = {1: 3.04, 4: 3.56, 8: 3.78, 16: 4.14, 32: 4.93}  # ms per item on a CPU: batching is a loss


def blaze_full(size):
    return size * np.interp(size, list(BLAZE_FULL), list(BLAZE_FULL.values())) / 1e3


@pytest.mark.parametrize("slo_s", [None, 10.0])
def test_batching_loss_is_found_under_full_load(slo_s):
    """A model that is slower with batching is recognized under full load."""
    batcher, throughput = closed_loop(blaze_full, slo_s=slo_s, rounds=300)
    assert batcher.service_time.best_batch_size(32) <= 2
    assert throughput >= 0.95 * 1 / blaze_full(1)
    assert batcher.statistics().released["exploration"] <= 0.02 * batcher.statistics().batches


@pytest.mark.parametrize("slo_s", [None, 1.0])
@pytest.mark.parametrize("deviation", [0.03, 0.08, 0.15])
@pytest.mark.parametrize("seed", range(3))
def test_batching_loss_is_found_despite_noise(slo_s, deviation, seed):
    """A model that is slower with batching is recognized although its durations scatter.

    Half of a size is only a little better, which noise hides; a small size is much better.
    """
    rng = np.random.default_rng(seed)
    batcher, throughput = closed_loop(
        lambda size: blaze_full(size) * rng.lognormal(0.0, deviation), rounds=200, slo_s=slo_s
    )
    assert batcher.service_time.best_batch_size(32) <= 4
    assert throughput >= 0.9 * 1 / (blaze_full(1) * np.exp(deviation**2 / 2))


@pytest.mark.parametrize(
    "options",
    [
        {"callers": 16, "rounds": 400},
        {"callers": 512, "rounds": 20},
        {"callers": 128, "classes": 3},
        {"callers": 128, "lengths": (1, 2, 3)},
        {"callers": 128, "lengths": (1, 2, 3), "classes": 3},
        {"lengths": (1, 2), "buckets": [1, 2]},
        {"preferred_sizes": [1, 8, 32]},
    ],
    ids=["few", "many", "classes", "shapes", "classes of shapes", "buckets", "padded"],
)
def test_a_model_that_loses_from_batching_is_detected(options):
    """A model that loses from batching is detected with few or many callers, classes, shapes, buckets and padding."""
    rng = np.random.default_rng(1)
    _, throughput = closed_loop(lambda size: blaze_full(size) * rng.lognormal(0.0, 0.08), **{"rounds": 100} | options)
    assert throughput >= 0.8 * 1 / blaze_full(1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_middle_best_size_is_found_despite_noise(seed):
    """A best batch size in the middle is found although durations scatter."""
    rng = np.random.default_rng(seed)
    item_ms = {1: 5.0, 2: 4.0, 4: 3.4, 8: 3.0, 16: 3.4, 32: 4.0}
    _, throughput = closed_loop(
        lambda size: size * np.interp(size, list(item_ms), list(item_ms.values())) / 1e3 * rng.lognormal(0.0, 0.08),
        rounds=200,
    )
    assert throughput >= 0.91 / 0.003


def test_batching_loss_is_found_under_overload():
    """A model that is slower with batching is recognized under overload.

    Batches have the best size that the deadlines allow, not a larger size that never ran.
    """
    on_time, batcher = live(lambda n, _: blaze_full(n), poisson(600, 3000), np.full(3000, 0.05), cap=32)
    assert on_time.mean() >= 0.9 * 1 / blaze_full(1) / 600
    assert batcher.service_time.best_batch_size(32) <= 2


@pytest.mark.parametrize(
    ("item_ms", "slo_s"),
    [({1: 5, 2: 4, 4: 3.4, 8: 3, 16: 3.4, 32: 4}, 0.3), (BLAZE_FULL, 0.5)],
    ids=["middle", "one"],
)
def test_batching_loss_is_found_if_batches_fill_time(item_ms, slo_s):
    """The best batch size is found even if large batches take nearly all the time that requests have.

    No request is late, but two batches of 32 take so long that a smaller one would make some requests late.
    """

    def seconds(size):
        return size * np.interp(size, list(item_ms), list(item_ms.values())) / 1e3

    batcher = closed_loop(seconds, rounds=200, slo_s=slo_s, may_fail=[si.DeadlineExceeded])[0]
    assert batcher.service_time.best_batch_size(32) == min(item_ms, key=item_ms.get)


def test_trying_sizes_hardly_costs_throughput():
    """Exploration of other sizes hardly reduces the throughput of a model that gains from batching."""
    batcher, throughput = closed_loop(lambda n: 0.004 + 0.00025 * n, callers=128, cap=64)
    assert batcher.service_time.best_batch_size(64) == 64
    assert throughput >= 0.98 * 64 / accelerator(64, 0)


def test_sizes_beyond_cost_limit_are_not_tried_forever():
    """Sizes that `max_batch_cost` rules out are not tried forever.

    No batch ever has these sizes, so their durations stay unknown.
    """

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=32, row_cost=lambda row: 1.0, max_batch_cost=10.0, clock=loop.clock)
        service = batcher.wrap(ScriptedBackend(duration_s=lambda n: 0.002 + 0.0005 * n))

        async def caller():
            for _ in range(50):
                await service.call(si.Request(1.0))

        await asyncio.gather(*(caller() for _ in range(64)))
        return batcher.statistics()

    statistics = run(main)
    assert statistics.released["exploration"] <= 0.2 * statistics.batches


def test_two_stalls_do_not_rule_a_size_out():
    """Two stalled batches of 32 do not rule that size out.

    A batch of 32 cannot take thirty times as long as one of 16, so the device was slow, not the size.
    """
    policy, now = Lookahead(32, LearnedServiceTime()), 0
    for size, milliseconds in [(size, 1 + 0.1 * size) for size in (8, 4, 16, 8, 4, 8) * 8] + [(32, 100)] * 2:
        now += round(milliseconds * MS)
        policy.observe(size, round(milliseconds * MS), now)
    assert policy.service_time.best_batch_size(32) == 32


def test_sizes_next_to_best_are_compared_at_full_load():
    """At full load, half of the best size runs again after 128 batches without it."""
    policy, now, sizes = Lookahead(32, LearnedServiceTime()), 0, []
    for _ in range(300):
        queue = RequestQueue(100)
        for number in range(64):
            queue.admit(None, number, None, now, now + 60 * MS, 0)
        batch = policy.decide(queue, now, 1).batch
        sizes.append(len(batch))
        now += round((1 + 0.1 * len(batch)) * MS)
        policy.observe(len(batch), round((1 + 0.1 * len(batch)) * MS), now)
    assert sizes[100:].count(16) >= 1
    assert sizes[100:].count(32) >= 195


def test_first_batch_beyond_objective_is_not_the_last():
    """Requests are served after a first batch that takes longer than the objective.

    The first batch is cancelled at 100 ms and would have taken 150 ms; smaller batches take less.
    """

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=32, slo_s=0.1, clock=loop.clock)
        service = batcher.wrap(ScriptedBackend(duration_s=blaze_full))
        for _ in range(5):
            await asyncio.gather(*(service.call(si.Request(1.0)) for _ in range(32)), return_exceptions=True)
        assert batcher.statistics().succeeded >= 40  # none if nothing were learned from the first batch

    run(main)


def test_arrays_met_live_fit_the_compiled_kernels(monkeypatch):
    """The planner passes contiguous arrays of the right dtype to the compiled kernels; others would be an error."""
    monkeypatch.setattr(kernel_loader, "_loaded", None)
    variant = _compiled_kernels.load_variant("baseline")
    monkeypatch.setattr(_compiled_kernels, "load", lambda: variant)
    for limits in (np.full(2000, 0.05), np.where(np.arange(2000) % 3, 0.1, 0.025)):
        live(accelerator, poisson(1.3 * 3200, 2000), limits)
        live(accelerator, poisson(2.6 * 3200, 2000), limits, max_in_flight=2)
        live(accelerator, poisson(1.3 * 3200, 2000), limits, service_time=ServiceTime.affine(0.004, 0.00025))
        live(accelerator, poisson(1.3 * 3200, 2000), limits, preferred_sizes=(8, 64), stack=True)
    assert kernel_loader._loaded is not None


def test_noise_does_not_make_batches_smaller():
    """Noise does not make the planner choose smaller batches if large ones are better.

    Of many sizes, the one with the luckiest measurements looks best.
    If batches became that small, larger sizes would not be measured again.
    """
    device = ServiceTime.affine(0.0046, 0.00025)
    on_time = [
        simulate(
            poisson(1.1 * 64 / 0.0206, 7000, seed), slo_s=0.05, service_time=device, max_batch_size=64,
            policy=Lookahead(64, LearnedServiceTime()), noise=0.15, seed=seed,
        ).on_time
        for seed in (1, 2)
    ]  # fmt: skip
    assert sum(on_time) >= 0.84 * 2 * 7000  # 0.79 if the planner trusted the luckiest size

"""The value at which an adaptive limit settles, in virtual time, with Poisson arrivals at a batcher or a service."""

import asyncio
import collections
import itertools
import math
import random

import attrs
import pytest

import streaminfer as si
from streaminfer.request import Response
from streaminfer.resilience.limit.concurrency_limit import ConcurrencyLimit
from streaminfer.telemetry.objectives.slo import BurnSignal
from streaminfer.testing import HANG, ScriptedBackend, run

LARGEST = 16
SETUP_S, PER_ITEM_S = 0.016, 0.001  # 32 ms for a full batch
CAPACITY = 500.0  # a second


@attrs.define
class Load:
    """Open-loop requests; ``ended`` has the outcome, the start in seconds and the duration of each."""

    service: object
    loop: object
    seed: int = 3
    ended: list = attrs.field(factory=list, repr=False)

    async def offer(self, rate, seconds, watch=None, **request):
        draw = random.Random(self.seed)
        end = self.loop.now_ns / 1e9 + seconds
        due = self.loop.now_ns / 1e9
        tasks = set()
        while True:
            due += draw.expovariate(rate)
            if due >= end:
                break
            await asyncio.sleep(max(due - self.loop.now_ns / 1e9, 0.0))
            task = asyncio.ensure_future(self.ask(request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if watch is not None:
                watch(self.loop.now_ns / 1e9)
        while tasks:
            await asyncio.wait(tasks)

    async def ask(self, request):
        began = self.loop.now_ns
        try:
            await self.service(1.0, **request)
            outcome = "answered"
        except si.StreamInferError as error:
            outcome = type(error).__name__
        self.ended.append((outcome, began / 1e9, (self.loop.now_ns - began) / 1e9))

    def count(self, start=0.0, stop=1e9):
        return collections.Counter(outcome for outcome, began, _ in self.ended if start <= began < stop)

    def latencies(self, start=0.0, stop=1e9):
        return sorted(took for outcome, began, took in self.ended if outcome == "answered" and start <= began < stop)


def batched(loop, limit, slower=lambda _: 1.0, slo_s=0.2, policy="greedy"):
    backend = ScriptedBackend(duration_s=lambda n: (SETUP_S + PER_ITEM_S * n) * slower(loop.now_ns / 1e9))
    batcher = si.AdaptiveBatcher(max_batch_size=LARGEST, slo_s=slo_s, policy=policy)
    return backend, si.Stack(limit, batcher, backend, clock=loop.clock)


def scenario(limit, *phases, **kwargs):
    """Run phases of (rate, seconds); return the load, the backend, and the limit over time."""
    trace = []

    async def main(loop):
        backend, stack = batched(loop, limit, **kwargs)
        async with stack as service:
            load = Load(service, loop)
            for rate, seconds in phases:
                await load.offer(rate, seconds, lambda now: trace.append((now, limit.statistics().limit)))
            return load, backend

    load, backend = run(main)
    assert limit.in_flight == 0
    assert sum(load.count().values()) == len(load.ended)
    return load, backend, trace


def between(trace, start, stop):
    return [limit for now, limit in trace if start <= now < stop]


@pytest.mark.parametrize("policy", ["greedy", "lookahead"])
@pytest.mark.parametrize("initial", [2, 20, 800])
def test_overload_settles_at_seven_tenths_of_objective(initial, policy):
    """Under overload, the limit settles at the value at which queue delay and service take 70 % of the objective."""
    limit = ConcurrencyLimit(initial=initial)
    load, backend, trace = scenario(limit, (2 * CAPACITY, 8.0), policy=policy)
    settled = between(trace, 4.0, 8.0)
    assert 0.7 * 0.2 * CAPACITY * 0.8 < min(settled) <= max(settled) < 0.7 * 0.2 * CAPACITY * 1.35
    answered = load.latencies(4.0, 7.5)
    assert len(answered) / 3.5 > 0.96 * CAPACITY
    assert answered[-1] < 0.2
    assert load.count(4.0, 7.5).keys() == {"answered", "Overloaded"}  # no call waits for nothing
    assert sum(backend.batch_sizes[-100:-10]) / 90 > 0.9 * LARGEST  # the planner may release smaller ones


def test_larger_slower_batches_are_not_congestion():
    """Batches that grow and therefore take longer are not taken for congestion."""
    limit = ConcurrencyLimit(initial=1)  # batches of one, of 17 ms; full ones take nearly twice as long
    _, backend, trace = scenario(limit, (2 * CAPACITY, 6.0), slo_s=None)
    assert min(between(trace, 3.0, 6.0)) > 2 * LARGEST
    assert sum(backend.batch_sizes[-100:-10]) / 90 > 0.95 * LARGEST


def test_call_without_objective_waits_for_two_batches():
    """Without an objective, the limit settles at the value at which a call waits for about two batches."""
    limit = ConcurrencyLimit()
    _, _, trace = scenario(limit, (2 * CAPACITY, 8.0), slo_s=None)
    settled = between(trace, 4.0, 8.0)
    assert 2.5 * LARGEST < min(settled) <= max(settled) < 4 * LARGEST


def test_limit_is_bounded_at_load_that_needs_none():
    """The limit does not grow without bound at a load that needs no limit."""
    limit = ConcurrencyLimit()
    load, _, trace = scenario(limit, (0.7 * CAPACITY, 20.0))
    assert max(limit for _, limit in trace) < 150
    assert load.count(1.0)["Overloaded"] == 0


def test_limit_recovers_from_brown_out_within_seconds():
    limit = ConcurrencyLimit()
    load, _, trace = scenario(limit, (0.8 * CAPACITY, 20.0), slower=lambda now: 6.0 if 5 <= now < 12 else 1.0)
    assert max(between(trace, 7.0, 12.0)) < 60  # from 70 and more
    before, after = load.count(2.0, 4.5), load.count(13.0, 20.0)
    assert before.keys() == {"answered"}
    assert after["answered"] / sum(after.values()) > 0.99


def test_limit_falls_for_hanging_model_and_recovers():
    """A model that hangs brings the limit down, and the limit recovers afterwards."""
    limit = ConcurrencyLimit(initial=100)

    async def main(loop):
        hung = [HANG] * 20

        def answer(batch):
            return list(batch.inputs)

        backend = ScriptedBackend(*hung, then=answer, duration_s=lambda n: SETUP_S + PER_ITEM_S * n)
        async with si.Stack(
            limit, si.AdaptiveBatcher(max_batch_size=LARGEST, slo_s=0.2), backend, clock=loop.clock
        ) as service:
            load = Load(service, loop)
            await load.offer(CAPACITY, 3.0)
            assert load.count(0.0, 3.0)["DeadlineExceeded"] > 0
            assert limit.statistics().limit < 30
            await load.offer(1.5 * CAPACITY, 8.0)
            answered = load.count(8.0, 11.0)["answered"]
            assert answered / 3.0 > 0.95 * CAPACITY

    run(main)
    assert limit.in_flight == 0


def burning(rate, seconds, slower=lambda _: 1.0, tighten=0.5):
    """Offer a load with an SLO that burns when a tenth of the responses are late; return the load and the states."""
    seen = []

    async def main(loop):
        slo = si.SLO(
            "test",
            threshold_s=0.3,
            objective=0.95,
            period_s=600.0,
            signal=BurnSignal(window_s=10.0, short_s=1.0, starts_at=2.0, ends_at=1.0),
            clock=loop.clock,
        )
        limit = ConcurrencyLimit(slo=slo, tighten=tighten, clock=loop.clock)
        _, stack = batched(loop, limit, slower, slo_s=1.0)
        async with si.Stack(si.Telemetry(slo=slo), stack, clock=loop.clock) as service:

            def watch(now):
                state = limit.statistics()
                seen.append((now, state.limit, slo.burning(), state.target_s))

            load = Load(service, loop)
            await load.offer(rate, seconds, watch)
        return load

    return run(main), seen


def test_burning_slo_tightens_limit_and_stays_stable():
    """An SLO that burns tightens the limit, and the limit is stable at the tighter target."""

    def in_every_fourth_second(now):
        return 2.5 if now % 4.0 < 1.0 else 1.0

    tightened, seen = burning(1.5 * CAPACITY, 60.0, in_every_fourth_second)
    untouched, _ = burning(1.5 * CAPACITY, 60.0, in_every_fourth_second, tighten=1.0)

    def on_time(load):
        latencies = load.latencies(20.0, 60.0)
        return sum(took <= 0.3 for took in latencies) / len(latencies)

    assert on_time(untouched) < 0.9
    assert on_time(tightened) > on_time(untouched) + 0.03
    assert tightened.count()["answered"] > 0.98 * untouched.count()["answered"]  # the workers are never idle
    states = [burns for _, _, burns, _ in seen]
    assert any(states)
    assert sum(now and not before for before, now in itertools.pairwise(states)) <= 3
    goals = [goal for now, _, _, goal in seen if now > 5.0]
    assert min(goals) == pytest.approx(0.5 * 0.7 * 0.3, rel=0.02)  # the target falls once, and no further
    assert min(limit for now, limit, _, _ in seen if now > 5.0) > 2 * LARGEST


# -- without a batcher ------------------------------------------------------------------------------------------


class Servers:
    """Service that runs a number of requests at once, while the others wait, and reports no timings."""

    def __init__(self, loop, count, duration_s):
        self._free = asyncio.Semaphore(count)
        self._loop = loop
        self._duration_s = duration_s

    async def call(self, request):
        async with self._free:
            await asyncio.sleep(self._duration_s(self._loop.now_ns / 1e9))
        return Response(request.inputs)


def served(limit, rate, seconds, duration_s, count=8, **request):
    trace = []

    async def main(loop):
        async with si.Stack(limit, Servers(loop, count, duration_s), clock=loop.clock) as service:
            load = Load(service, loop)
            await load.offer(rate, seconds, lambda now: trace.append((now, limit.statistics().limit)), **request)
            return load

    load = run(main)
    assert limit.in_flight == 0
    return load, trace


def test_plain_service_has_twice_its_no_load_latency():
    """The limit holds a service without timings at twice its no-load latency."""
    load, trace = served(ConcurrencyLimit(), 800.0, 10.0, lambda _: 0.02)
    settled = between(trace, 3.0, 10.0)
    assert 12 < min(settled) <= max(settled) < 24  # eight that run, and as many that wait
    assert load.count(3.0, 9.5)["answered"] / 6.5 > 0.96 * 400
    assert load.latencies(3.0)[-1] < 0.1


def test_slight_overload_keeps_the_no_load_latency():
    """The latency of a queue under slight overload is not taken for the no-load latency."""
    load, _ = served(ConcurrencyLimit(), 88.0, 90.0, lambda _: 0.05, count=4)  # the capacity is 80 a second
    took = load.latencies(30.0)
    assert took[len(took) // 2] < 2.6 * 0.05
    assert took[-1] < 8 * 0.05
    assert load.count(30.0, 89.0)["answered"] / 59.0 > 0.93 * 80


def test_calls_that_hang_in_a_probe_block_no_others():
    """Calls that hang during a probe of the no-load latency do not block other calls."""
    hangs = itertools.chain([False] * 1000, [True] * 2, itertools.repeat(False))
    load, _ = served(ConcurrencyLimit(), 400.0, 30.0, lambda _: 60.0 if next(hangs) else 0.02, count=4)
    assert load.count(6.0, 28.0)["answered"] > 0.4 * 2200  # two workers are left, and a probe waits now and then


def test_varying_durations_do_not_lower_the_limit():
    draw = random.Random(5)
    load, trace = served(ConcurrencyLimit(), 800.0, 20.0, lambda _: draw.expovariate(50.0))
    assert min(between(trace, 2.0, 20.0)) > 7
    assert load.count(2.0, 19.5)["answered"] / 17.5 > 0.93 * 400


def drawn(kind, mean_s, seed=5):
    """Return a function that draws service times with a given mean."""
    draw = random.Random(seed)
    if kind == "exponential":
        return lambda _: draw.expovariate(1.0 / mean_s)
    return lambda _: draw.lognormvariate(math.log(mean_s) - 0.5, 1.0)


@pytest.mark.parametrize("kind", ["exponential", "lognormal"])
def test_limit_without_congestion_rejects_nothing(kind):
    """Without congestion, the limit rejects no call, however much service times vary."""
    limit = ConcurrencyLimit()

    load, _ = served(limit, 100.0, 60.0, drawn(kind, 0.05), count=100_000)

    assert load.count().keys() == {"answered"}


@pytest.mark.parametrize("kind", ["exponential", "lognormal"])
def test_ten_busy_workers_match_the_best_fixed_limit(kind):
    """At nine tenths of the capacity of ten workers, at least 97 % of the calls of the best fixed limit succeed.

    A queue that comes and goes does not make the limit reject calls that an ideal limit would admit.
    """

    def answered(limit):
        load, _ = served(limit, 180.0, 60.0, drawn(kind, 0.05), count=10)
        return load.count()["answered"]

    ideal = max(answered(ConcurrencyLimit(limit=limit)) for limit in (20, 40, 1000))

    assert answered(ConcurrencyLimit()) >= 0.97 * ideal


def test_slower_plain_service_is_not_throttled():
    """A service without timings that becomes slower is not throttled for that."""
    load, trace = served(ConcurrencyLimit(), 800.0, 15.0, lambda now: 0.02 if now < 5 else 0.08)
    assert min(between(trace, 6.5, 9.0)) > 7  # detected before the no-load latency is due to be forgotten
    assert 11 < min(between(trace, 9.0, 15.0)) <= max(between(trace, 9.0, 15.0)) < 30
    assert load.count(9.0, 14.0)["answered"] / 5.0 > 0.93 * 100


def test_initial_limit_far_too_high_is_lowered():
    load, trace = served(ConcurrencyLimit(initial=100), 100.0, 30.0, lambda _: 0.02, count=1)
    assert max(between(trace, 14.5, 30.0)) < 10
    assert load.count(20.0, 29.0)["answered"] / 9.0 > 0.9 * 50


def test_timeouts_alone_lower_the_limit():
    load, _ = served(ConcurrencyLimit(initial=300), 800.0, 8.0, lambda _: 0.02, timeout_s=0.1)
    outcomes = load.count(3.0, 7.5)
    assert outcomes["answered"] / 4.5 > 0.93 * 400
    assert outcomes["DeadlineExceeded"] / sum(outcomes.values()) < 0.02


def test_unused_limit_does_not_grow():
    _, trace = served(ConcurrencyLimit(initial=100), 100.0, 10.0, lambda _: 0.02)
    assert {limit for _, limit in trace} == {100.0}


def test_the_drain_time_is_measured():
    limit = ConcurrencyLimit(limit=40)
    waits = []

    async def main(loop):
        async with si.Stack(limit, Servers(loop, 8, lambda _: 0.02), clock=loop.clock) as service:
            load = Load(service, loop)

            def watch(now):
                if now > 1.0 and limit.in_flight == 40:
                    waits.append(limit.retry_after_s)

            await load.offer(800.0, 3.0, watch)

    run(main)
    assert len(waits) > 100
    assert all(0.09 < wait < 0.11 for wait in waits)  # 40 at 400 a second

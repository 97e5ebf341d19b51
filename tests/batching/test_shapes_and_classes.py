"""Priorities under overload, for requests whose shapes cannot share a batch, and with batches that are outliers."""

import asyncio

import numpy as np
import pytest

import streaminfer as si
from streaminfer.testing import ScriptedBackend, run

CAP = 16


def device_s(rows):
    return 0.001 + 0.001 * rows


def slow_to_begin_s(rows):
    return 0.020 + 0.001 * rows


def shares_on_time(load, shapes, workers, seed, device_s=device_s, slo_s=0.05, outliers=0.0):
    """Return the share on time of the urgent requests, which are 0.3 of all, and of all requests."""
    rng = np.random.default_rng(seed)
    count = 2000
    gaps_s = rng.exponential(device_s(CAP) / CAP / workers / load, count)
    urgent = rng.random(count) < 0.3
    rows = [np.zeros(1 + number, np.float32) for number in range(shapes)]

    def takes_s(size):
        return device_s(size) * (3.0 if rng.random() < outliers else 1.0)

    async def main(loop):
        batcher = si.AdaptiveBatcher(
            max_batch_size=CAP, slo_s=slo_s, max_in_flight=workers, max_queue_size=10_000, clock=loop.clock
        )
        async with si.Stack(batcher, ScriptedBackend(duration_s=takes_s), clock=loop.clock) as service:
            calls = []
            for gap_s, shape, first in zip(gaps_s, rng.integers(0, shapes, count), urgent, strict=True):
                await asyncio.sleep(gap_s)
                calls.append(asyncio.ensure_future(service(rows[shape], priority=0 if first else 1)))
            return await asyncio.gather(*calls, return_exceptions=True)

    answered = np.array([not isinstance(answer, si.StreamInferError) for answer in run(main)])
    return answered[urgent].mean(), answered.mean()


@pytest.mark.parametrize(("load", "shapes", "workers"), [(1.2, 2, 1), (1.6, 4, 1), (1.6, 8, 2)])
def test_urgent_requests_of_several_shapes_are_on_time(load, shapes, workers):
    """Urgent requests need at most half of the device and are on time; less urgent requests fill the rest."""
    urgent, everything = shares_on_time(load, shapes, workers, seed=1)

    assert urgent >= 0.99
    assert everything >= 0.56


def test_batches_stay_large_despite_outliers():
    """Less urgent requests fill batches although 5 % of the batches take three times as long.

    An outlier does not endanger the urgent requests, because another worker soon takes the next batch.
    """
    found = [shares_on_time(0.8, 1, 3, seed, slow_to_begin_s, slo_s=0.06, outliers=0.05) for seed in (1, 2, 3)]
    urgent, everything = np.mean(found, axis=0)

    assert urgent >= 0.92
    assert everything >= 0.84


@pytest.mark.parametrize("load", [1.2, 1.5])
@pytest.mark.parametrize("settings", [{}, {"buckets": (2, 8)}], ids=["shapes", "buckets"])
def test_requests_without_deadline_get_own_batches(settings, load):
    """Requests without a deadline that share no batch with others are served in batches of their own.

    Each is served soon after two seconds, and takes no row from the other requests.
    """
    rng = np.random.default_rng(1)
    gaps_s = rng.exponential(slow_to_begin_s(CAP) / CAP / load, 3000)
    queued_s = []

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=CAP, **settings)
        async with si.Stack(batcher, ScriptedBackend(duration_s=slow_to_begin_s), clock=loop.clock) as service:

            async def send_patient():
                sent_s = loop.time()
                await service(np.zeros(8))
                queued_s.append(loop.time() - sent_s)

            calls = []
            for number, gap_s in enumerate(gaps_s):
                await asyncio.sleep(gap_s)
                calls.append(asyncio.ensure_future(service(np.zeros(2), timeout_s=0.1)))
                if number % 200 == 0:
                    calls.append(asyncio.ensure_future(send_patient()))
            answers = await asyncio.gather(*calls, return_exceptions=True)
            return np.mean([not isinstance(answer, si.StreamInferError) for answer in answers])

    on_time = run(main)

    assert len(queued_s) == 15
    assert max(queued_s) < 2.2
    assert on_time > min(0.95, 0.95 / load)


def test_backlog_of_many_shapes_leaves_others_time():
    """A backlog of many shapes without a deadline leaves time for the other requests.

    The backlog has more shapes than the planner compares, and takes turns with the requests that have a deadline.
    """

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=CAP, max_queue_size=10_000)
        async with si.Stack(batcher, ScriptedBackend(duration_s=slow_to_begin_s), clock=loop.clock) as service:
            await service(np.zeros(1), timeout_s=1.0)
            backlog = [asyncio.ensure_future(service(np.zeros(2 + number % 20))) for number in range(3000)]
            await asyncio.sleep(2.5)
            calls = []
            for _ in range(100):
                calls.append(asyncio.ensure_future(service(np.zeros(1), timeout_s=0.2)))
                await asyncio.sleep(0.02)
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert not all(one.done() for one in backlog)
            await asyncio.gather(*backlog)
            return sum(not isinstance(answer, si.StreamInferError) for answer in answers)

    assert run(main) > 90


@pytest.mark.parametrize(
    "settings",
    [{"max_batch_bytes": 64}, {"row_cost": len, "max_batch_cost": 8.0}],
    ids=["bytes", "costs"],
)
def test_batch_limits_keep_rows_without_deadline(settings):
    """If only four rows may share a batch, a request without a deadline still gets one of these rows."""

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=CAP, **settings)
        async with si.Stack(batcher, ScriptedBackend(duration_s=slow_to_begin_s), clock=loop.clock) as service:
            row = np.zeros(2)

            async def send_patient():
                await asyncio.sleep(0.3)
                await service(row)
                return loop.time() - 0.3

            calls = [asyncio.ensure_future(send_patient())]
            for _ in range(2000):
                calls.append(asyncio.ensure_future(service(row, timeout_s=0.1)))
                await asyncio.sleep(0.003)
            return (await asyncio.gather(*calls, return_exceptions=True))[0]

    assert run(main) < 2.5

"""Batches that the policy chooses but that are not sent, for example if another model has the turn."""

import asyncio

import numpy as np
import pytest

import streaminfer as si
from streaminfer.batching.planner.lookahead import Lookahead
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER
from streaminfer.batching.service_time.learned_service_time import LearnedServiceTime
from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.testing import ScriptedBackend

MS = 1_000_000


def test_overdue_requests_keep_their_share():
    """A batch that is not sent does not count towards the share of overdue requests without a deadline."""
    policy, queue = Lookahead(4, ServiceTime.affine(0.010, 0.001)), RequestQueue(100)
    for number in range(40):
        queue.admit(None, number < 5, None, 0, NEVER if number < 5 else 5050 * MS, 0)
    overdue = rows = 0
    for turn in range(80):
        batch = policy.decide(queue, 5000 * MS, 1).batch
        if turn % 2:
            continue
        sent = queue.take(batch, 5000 * MS, "planned").inputs
        overdue += sum(sent)
        rows += len(sent)
        for is_overdue in sent:  # as many requests arrive as are sent
            queue.admit(None, is_overdue, None, 0, NEVER if is_overdue else 5050 * MS, 0)
    assert overdue == pytest.approx(rows * 5 / 40, abs=1)


def test_a_size_is_proposed_until_its_batch_is_sent():
    """The policy proposes a size until its batch is sent, and the device may not replace that batch by another one."""
    policy, queue = Lookahead(32, LearnedServiceTime()), RequestQueue(200)
    for number in range(200):
        policy.observe(32, 4 * MS, number * 4 * MS)
    for number in range(64):
        queue.admit(None, number, None, 0, 500 * MS, 0)

    for _ in range(3):
        decision = policy.decide(queue, 0, 1)
        assert (len(decision.batch), decision.reason) == (16, "exploration")
        assert not policy.outlook(queue, 0, decision.batch).is_free

    queue.take(decision.batch, 0, decision.reason)
    decision = policy.decide(queue, 0, 1)
    assert (len(decision.batch), decision.reason) == (32, "full")
    assert policy.outlook(queue, 0, decision.batch).is_free


@pytest.mark.parametrize("slo_s", [None, 10.0])
async def test_batching_loss_is_found_on_a_shared_device(loop, slo_s):
    """A model that is slower with batching is recognized even on a shared device.

    A comparison is due every eighth batch. If it counted although another model has the turn, it might never be sent.
    """

    def losing(size):
        return size * float(np.interp(size, [1, 8], [1.0, 1.6])) / 1e3

    device = si.Device("gpu:0")
    batchers = [si.AdaptiveBatcher(max_batch_size=8, slo_s=slo_s, clock=loop.clock, device=device) for _ in range(2)]
    services = [batcher.wrap(ScriptedBackend(duration_s=losing)) for batcher in batchers]

    async def caller(service):
        for _ in range(20):
            await service.call(si.Request(1.0))

    await asyncio.gather(*(caller(service) for service in services for _ in range(16)))

    assert [batcher.service_time.best_batch_size(8) for batcher in batchers] == [1, 1]
    for service in services:
        await service.stop()

"""`reconfigure`: settings that change while requests are in flight."""

import asyncio
import random
import sys

import numpy as np
import pytest

import streaminfer as si
from streaminfer.batching.planner import kernel_loader
from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.testing import ScriptedBackend, run


def batcher_of(loop, **options):
    return si.AdaptiveBatcher(**{"max_batch_size": 4, "clock": loop.clock, **options})


def test_new_slo_applies_to_later_requests_only():
    async def main(loop):
        batcher = batcher_of(loop, slo_s=0.05)
        async with si.Stack(batcher, ScriptedBackend(duration_s=0.08), clock=loop.clock) as service:
            early = asyncio.ensure_future(service(1.0))
            await asyncio.sleep(0.01)
            batcher.reconfigure(slo_s=0.2)
            assert batcher.slo_s == 0.2
            late = asyncio.ensure_future(service(2.0))
            with pytest.raises(si.DeadlineExceeded):
                await early
            assert loop.time() == pytest.approx(0.05)
            assert await late == 2.0
            batcher.reconfigure(slo_s=None)
            await asyncio.gather(*(service(float(i)) for i in range(20)))
        assert batcher.statistics().succeeded == 21

    run(main)


def test_next_batch_uses_new_max_batch_size_and_policy():
    async def main(loop):
        batcher = batcher_of(loop, policy="greedy")
        backend = ScriptedBackend(duration_s=0.01)
        service = batcher.wrap(backend)
        waiting = [asyncio.ensure_future(service.call(si.Request(i))) for i in range(12)]
        await asyncio.sleep(0.005)
        batcher.reconfigure(max_batch_size=2)
        await asyncio.sleep(0.01)
        batcher.reconfigure(max_batch_size=6, policy="lookahead")
        assert batcher.service_time is not None
        await asyncio.gather(*waiting)
        assert batcher.statistics().batch_sizes == {2: 1, 4: 1, 6: 1}
        assert batcher.service_time.observations == 2  # the batches that ended under the new policy

    run(main)


def test_policy_change_releases_a_delayed_batch():
    """A batch that waits for the delay of the old policy is released when the new policy has no delay."""

    async def main(loop):
        batcher = batcher_of(loop, policy="greedy", max_queue_delay_s=60.0)
        service = batcher.wrap(ScriptedBackend(duration_s=0.01))
        asked = asyncio.ensure_future(service.call(si.Request(1.0)))
        await asyncio.sleep(1.0)
        assert not asked.done()
        batcher.reconfigure(policy="lookahead")
        assert batcher.max_queue_delay_s == 0.0
        await asked
        assert loop.time() == pytest.approx(1.01)

    run(main)


def test_learned_service_time_survives_reconfigure():
    async def main(loop):
        batcher = batcher_of(loop)
        service = batcher.wrap(ScriptedBackend(duration_s=0.01))
        await service.call(si.Request(1.0))
        learned = batcher.service_time
        batcher.reconfigure(policy="greedy")
        batcher.reconfigure(policy="lookahead", max_batch_size=8)
        assert batcher.service_time is learned
        await service.call(si.Request(1.0))
        assert learned.observations == 2

    run(main)


def test_bad_settings_change_nothing():
    async def main(loop):
        batcher = batcher_of(loop, slo_s=0.05)
        service = batcher.wrap(ScriptedBackend())
        for bad, error, match in (
            ({"slo_s": -1.0}, ValueError, "slo_s"),
            ({"slo_s": 1.0, "max_batch_size": 0}, ValueError, "max_batch_size"),
            ({"slo_s": 1.0, "policy": "guess"}, ValueError, "policy"),
            ({"slo_s": 1.0, "max_queue_delay_s": 1.0}, ValueError, "max_queue_delay_s: expected 0 with"),
            ({"max_batch_size": "8"}, TypeError, "max_batch_size"),
        ):
            with pytest.raises(error, match=match):
                batcher.reconfigure(**bad)
        assert (batcher.slo_s, batcher.max_batch_size, batcher.policy) == (0.05, 4, "lookahead")
        assert service.slo_s == 0.05
        await service.call(si.Request(1.0))

    run(main)


def test_reconfigure_before_wrapping():
    batcher = si.AdaptiveBatcher(max_batch_size=4)
    batcher.reconfigure(max_batch_size=2, slo_s=0.1)
    predict = batcher.wrap(lambda x: x)

    async def main():
        await asyncio.gather(*(predict(float(i)) for i in range(4)))

    asyncio.run(main())
    assert batcher.statistics().batch_sizes == {2: 2}


def test_reconfigure_does_not_interrupt_a_stop():
    """A policy with a long delay that is set during a stop applies only after the next start."""

    async def main(loop):
        batcher = batcher_of(loop)
        service = batcher.wrap(ScriptedBackend(duration_s=0.01))
        asked = [asyncio.ensure_future(service.call(si.Request(i))) for i in range(9)]
        await asyncio.sleep(0)
        stopping = asyncio.ensure_future(batcher.stop())
        await asyncio.sleep(0.001)
        batcher.reconfigure(policy="greedy", max_queue_delay_s=100.0)
        await stopping
        assert all(one.done() for one in asked)
        assert loop.time() < 1.0
        await batcher.start()
        one = asyncio.ensure_future(service.call(si.Request(1)))
        await asyncio.sleep(1.0)
        assert not one.done()  # after the start the delay applies
        await batcher.stop(drain=False)

    run(main)


@pytest.mark.parametrize("seed", range(4))
def test_no_request_is_lost_in_a_storm_of_changes(seed):
    rng = random.Random(seed)

    async def main(loop):
        batcher = batcher_of(loop, slo_s=0.1, max_queue_size=64)
        service = batcher.wrap(ScriptedBackend(duration_s=lambda n: 0.004 + 0.001 * n))

        async def ask(number):
            try:
                answer = await service.call(si.Request(number))
            except (si.DeadlineExceeded, si.Overloaded):
                return "refused"
            assert answer.outputs == number
            return "answered"

        asked = []
        for number in range(400):
            asked.append(asyncio.ensure_future(ask(number)))
            if rng.random() < 0.5:
                await asyncio.sleep(rng.random() * 0.004)
            if rng.random() < 0.2:
                policy = rng.choice(["lookahead", "greedy"])
                batcher.reconfigure(
                    slo_s=rng.choice([0.02, 0.1, None]), max_batch_size=rng.randint(1, 12), policy=policy,
                    max_queue_delay_s=rng.choice([0.0, 0.01]) if policy == "greedy" else 0.0,
                )  # fmt: skip
        batcher.reconfigure(policy="greedy", max_batch_size=64)
        ends = await asyncio.gather(*asked)
        s = batcher.statistics()
        assert s.submitted == 400 == s.succeeded + s.deadline_exceeded + sum(s.rejected.values())
        assert ends.count("answered") == s.succeeded > 100
        assert (s.queued, s.running) == (0, 0)

    run(main)


def test_admission_predicts_when_a_request_finishes():
    """Admission predicts when a request would complete, behind the running and queued requests."""

    async def main(loop):
        device = ServiceTime.affine(0.010, 0.001)
        batcher = batcher_of(loop, service_time=device, stack=False)
        service = batcher.wrap(ScriptedBackend(duration_s=lambda n: 0.010 + 0.001 * n))
        await service.call(si.Request(0))
        takes = batcher.service_time.upper_ns(4).tolist()  # the upper estimate of each batch duration
        now = loop.now_ns
        alone = service.admission(si.Request(0), now)
        assert alone.ok
        assert alone.predicted_finish_ns == now + takes[1]
        asked = [asyncio.ensure_future(service.call(si.Request(i))) for i in range(9)]
        await asyncio.sleep(0.001)
        now = loop.now_ns
        behind = service.admission(si.Request(0), now)
        assert behind.ok
        # four have run for 1 ms, four are in the next batch, and this request would be second in the batch after that
        assert behind.predicted_finish_ns == now - 1_000_000 + takes[4] + takes[4] + takes[2]
        late = service.admission(si.Request(0, deadline_ns=now + 20_000_000), now)
        assert (late.ok, late.reason) == (False, "infeasible")
        assert late.retry_after_s > 0
        # the others have no deadline, so it would be served before the queued ones
        assert late.predicted_finish_ns == now - 1_000_000 + takes[4] + takes[1]
        assert service.admission(si.Request(0, deadline_ns=late.predicted_finish_ns), now).ok
        await asyncio.gather(*asked)

    run(main)


def test_admission_knows_bucket_of_ragged_request():
    """Admission predicts a ragged request by its own length bucket."""

    async def main(loop):
        takes = {8: ServiceTime.affine(0.004, 0.0), 64: ServiceTime.affine(0.040, 0.0)}
        service = batcher_of(loop, buckets=(8, 64), service_time=takes).wrap(ScriptedBackend())
        now = loop.now_ns
        short, long = (
            service.admission(si.Request(np.zeros(length)), now).predicted_finish_ns - now for length in (5, 60)
        )
        assert short == pytest.approx(4e6, rel=0.2)
        assert long == pytest.approx(40e6, rel=0.2)

    run(main)


def test_too_large_batch_size_changes_nothing():
    """A `max_batch_size` larger than the model takes raises `ValueError`, and no setting changes."""

    async def main(loop):
        batcher = batcher_of(loop, slo_s=0.05)
        backend = ScriptedBackend(duration_s=0.01)
        backend.max_batch_size = 8
        async with si.Stack(batcher, backend, clock=loop.clock) as service:
            with pytest.raises(ValueError, match=r"max_batch_size: expected at most 8, .* got 9"):
                batcher.reconfigure(max_batch_size=9, slo_s=1.0, policy="greedy")
            assert (batcher.max_batch_size, batcher.slo_s, batcher.policy) == (4, 0.05, "lookahead")
            batcher.reconfigure(max_batch_size=8)
            assert await service(1.0) == 1.0

    run(main)


@pytest.fixture
def compiling(monkeypatch):
    """Kernels that Numba would have to compile; the list gets an entry for each compilation."""
    compiled = []

    def prepare():
        compiled.append(True)
        monkeypatch.setattr(kernel_loader, "is_ready", lambda: True)

    monkeypatch.setattr(kernel_loader, "is_ready", lambda: False)
    monkeypatch.setattr(kernel_loader, "prepare", prepare)
    return compiled


def test_reconfigure_rejects_a_planner_without_kernels(compiling):
    """`reconfigure` to a planner without loaded kernels changes nothing; its error names the call to await first."""

    async def main():
        batcher = si.AdaptiveBatcher(max_batch_size=4, policy="greedy", slo_s=0.5)
        async with si.Stack(batcher, si.CpuBackend(np.negative, executor="inline")) as stack:
            with pytest.raises(RuntimeError, match=r"await asyncio\.to_thread\(streaminfer\.warmup\) first"):
                batcher.reconfigure(policy="lookahead", slo_s=1.0)
            assert (batcher.policy, batcher.slo_s, await stack(1.0), compiling) == ("greedy", 0.5, -1.0, [])

            kernel_loader.prepare()
            batcher.reconfigure(policy="lookahead")
            await stack(1.0)
            assert batcher.service_time.observations == 1

    asyncio.run(main())


def test_policy_set_after_stop_applies_at_next_start(compiling):
    """The start after a policy change compiles the kernels of the new policy before it accepts requests."""

    async def main():
        batcher = si.AdaptiveBatcher(max_batch_size=4, policy="greedy")
        stack = si.Stack(batcher, si.CpuBackend(np.negative, executor="inline"))
        async with stack:
            await stack(1.0)
        batcher.reconfigure(policy="lookahead")
        assert compiling == []
        async with stack:
            assert compiling
            await stack(1.0)
        assert batcher.service_time.observations == 1

    asyncio.run(main())


def test_a_policy_takes_over_on_the_next_loop(compiling):
    """After its loop has ended, a batcher without a stack accepts any policy, and the next loop uses it."""
    batcher = si.AdaptiveBatcher(max_batch_size=4, policy="greedy")
    negative = batcher.wrap(lambda batch: -np.asarray(batch))

    async def serve():
        return await negative(1.0)

    asyncio.run(serve())
    batcher.reconfigure(policy="lookahead")

    assert (asyncio.run(serve()), batcher.service_time.observations) == (-1.0, 1)
    assert compiling


def test_without_kernels_and_numba_nothing_changes(monkeypatch):
    async def main(loop):
        batcher = batcher_of(loop, policy="greedy", slo_s=0.05)
        service = batcher.wrap(ScriptedBackend())
        await service.call(si.Request(1.0))
        with pytest.raises(si.MissingExtra, match="pip install numba"):
            batcher.reconfigure(policy="lookahead", slo_s=1.0)
        assert (batcher.policy, batcher.slo_s, service.slo_s) == ("greedy", 0.05, 0.05)
        await service.call(si.Request(1.0))

    monkeypatch.setattr(kernel_loader, "is_ready", lambda: False)
    monkeypatch.setitem(sys.modules, "numba", None)
    run(main)

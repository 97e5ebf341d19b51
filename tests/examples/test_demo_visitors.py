"""Visitors of the live demo and error budgets, in virtual time, so that nothing depends on the machine."""

import asyncio
import importlib

import numpy as np
import pytest

import streaminfer as si
from streaminfer.testing import ScriptedBackend, run

SERVICE_S = 0.004
PICTURES = 40


@pytest.fixture
def visitors(_examples_can_be_imported):
    return importlib.import_module("demo.visitors")


@pytest.fixture
def findings(_examples_can_be_imported):
    return importlib.import_module("demo.findings")


@pytest.fixture
def budgets(_examples_can_be_imported):
    return importlib.import_module("demo.budget")


@pytest.fixture
def frames(visitors):
    pixels = np.zeros((PICTURES, 4, 4, 3), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(PICTURES)
    return visitors.Frames("clip", pixels, 24.0)


def look(batch):
    """Return outputs that identify the picture."""
    return [{"boxes": np.full(3, picture[0, 0, 0])} for picture in batch.inputs]


def maker(loop, answer=look):
    def make_service(name, *, cache=None, slo=None):
        layers = [si.Telemetry(name, slo=slo)] + ([cache] if cache is not None else [])
        batcher = si.AdaptiveBatcher(max_batch_size=1, max_queue_size=4096)
        backend = ScriptedBackend(then=answer, duration_s=lambda rows: SERVICE_S * rows)
        return si.Stack(*layers, batcher, backend, clock=loop.clock)

    return make_service


def test_the_same_seed_brings_the_same_visitors(visitors):
    one, again, other = (visitors.draw_uploads(300.0, 20.0, 100, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.due_s, again.due_s)
    assert np.array_equal(one.pictures, again.pictures)
    assert not np.array_equal(one.pictures, other.pictures)
    assert len(one) == 6000
    assert one.seconds == pytest.approx(20.0, rel=0.1)
    assert one.share_repeated == 1 - one.different / 6000
    counts = np.sort(np.bincount(one.pictures, minlength=100))[::-1]
    # Zipf: the first twice as often as the second, ten times as often as the tenth
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.2)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.3)
    assert counts[0] / 6000 == pytest.approx(1 / sum(1 / n for n in range(1, 101)), rel=0.1)
    # the popular pictures are anywhere in the clip, not only at its beginning
    assert not np.array_equal(np.argsort(-np.bincount(one.pictures))[:5], np.arange(5))


def test_cache_sustains_load_that_overloads_detector(visitors, findings, frames):
    """With the cache, the detector sustains a load that it cannot sustain alone."""
    said = []

    async def main(loop):
        return await visitors.visit(frames, 3.0, said.append, maker(loop))

    visited = run(main)
    plain, cached, uploads = visited.plain, visited.cached, visited.uploads
    assert visited.capacity == pytest.approx(1 / SERVICE_S, rel=0.05)
    assert uploads.rate == pytest.approx(1.15 * visited.capacity)
    assert plain.meter.share_on_time < 0.99
    assert plain.meter.share_on_time < 0.9
    assert (plain.cache, plain.flights) == (None, None)
    assert plain.share(findings.COMPUTED) == 1.0
    assert plain.meter.latency.max > 0.2
    assert cached.meter.share_on_time >= 0.99
    for served in (plain, cached):
        assert served.meter.sent == served.meter.ended == len(uploads) == len(served.became)
    # nothing is evicted: each picture is computed once, and callers that come in the meantime share the computation
    assert cached.cache.evicted == 0
    assert (cached.became == findings.COMPUTED).sum() == cached.flights.computations == uploads.different
    assert (cached.became == findings.SHARED).sum() == cached.flights.collapsed > 0
    assert (cached.became == findings.KEPT).sum() == cached.cache.hits
    assert visited.compared == visited.equal == len(uploads) - uploads.different
    assert [line.split(":")[0] for line in said] == ["visitors", "visitors, no cache", "visitors, cached"]


def test_wrong_responses_from_the_cache_are_found(visitors, frames):
    """The comparison finds wrong responses: a model that never repeats its outputs simulates a cache that errs."""
    calls = iter(range(10**6))

    async def main(loop):
        never_the_same = maker(loop, lambda batch: [{"boxes": np.full(3, next(calls))} for _ in batch.rows])
        return await visitors.visit(frames, 1.0, lambda _: None, never_the_same)

    visited = run(main)
    assert visited.compared > 0
    assert visited.equal == 0


def test_latency_counts_from_when_an_upload_was_due(visitors, findings, frames):
    """A stall of the loop counts in the latency of each upload that was due during the stall."""

    async def main(loop):
        uploads = findings.Uploads(10.0, np.array([0.1, 0.2, 0.3, 0.9]), np.array([0, 1, 2, 3]))
        loop.call_later(0.15, lambda: setattr(loop, "now_ns", loop.now_ns + 500_000_000))
        return await visitors.receive("one", uploads, frames, None, maker(loop))

    served, reception = run(main)
    assert served.meter.on_time == 2
    assert served.meter.latency.max == pytest.approx(0.65 - 0.2 + 2 * SERVICE_S, rel=0.05)
    assert set(reception.computed) == {0, 1, 2, 3}


def test_lost_uploads_are_counted_and_not_compared(visitors, findings, frames):
    def refuse_odd_ones(batch):
        if batch.inputs[0, 0, 0, 0] > -1 and round((batch.inputs[0, 0, 0, 0] + 1) * 127.5) % 2:
            raise ValueError("no")
        return look(batch)

    async def main(loop):
        uploads = findings.Uploads(10.0, np.array([0.1, 0.2, 0.3, 0.4]), np.array([0, 1, 0, 1]))
        return await visitors.receive("one", uploads, frames, visitors.make_cache(), maker(loop, refuse_odd_ones))

    served, reception = run(main)
    assert served.became.tolist() == [findings.COMPUTED, findings.LOST, findings.KEPT, findings.LOST]
    assert sum(served.meter.lost.values()) == 2
    assert [picture for picture, _ in reception.repeated] == [0]
    assert served.budget.statistics.bad == 2


def spend(budgets, latencies_s, seconds):
    """Return the budget of a service that is called every 10 ms and has the given latencies."""

    async def main(loop):
        slo = budgets.make_objective("one", threshold_s=0.05, objective=0.99, seconds=seconds)
        slo.bind_clock(loop.clock)
        async with budgets.watching(slo) as watch:
            for latency_s in latencies_s:
                await asyncio.sleep(0.01)
                slo.record(latency_s)
            return watch.read()

    return run(main)


def test_error_budget_without_errors_is_unspent(budgets):
    budget = spend(budgets, [0.01] * 400, 4.0)
    assert budget.statistics.budget_remaining == 1.0
    assert not budget.overspent
    assert (budget.alerts, budget.worst_burn_rate) == ((), 0.0)
    assert budget.noted[-1][1:] == (400, 0)


def test_ended_alert_is_still_reported(budgets):
    """An alert during half a second of late responses is reported after it has ended."""
    budget = spend(budgets, [0.01] * 150 + [0.06] * 50 + [0.01] * 200, 4.0)
    assert budget.statistics.alerts == ()
    # the pair over a fifth of a second sees too few requests to fire at this rate
    assert [alert.severity for alert in budget.alerts] == ["ticket"]
    assert budget.window_s == 0.625
    assert budget.worst_burn_rate == pytest.approx(80, abs=3)
    assert budget.statistics.budget_remaining == pytest.approx(1 - 50 / 4)
    assert budget.overspent
    assert budget.noted[-1][1:] == (400, 50)


def test_failure_of_the_budget_watch_is_raised(budgets, monkeypatch):
    def fail(_):
        raise RuntimeError("broken")

    monkeypatch.setattr(budgets.BudgetWatch, "look", fail)
    with pytest.raises(RuntimeError, match="broken"):
        spend(budgets, [0.01] * 20, 1.0)


def test_shares_of_uploads_include_lost_ones(visitors, frames):
    """Reported shares are of all uploads, lost ones included.

    Of four uploads, one was computed, one came from the cache, and two were lost.
    """

    def refuse_odd_ones(batch):
        if round((batch.inputs[0, 0, 0, 0] + 1) * 127.5) % 2:
            raise ValueError("no")
        return look(batch)

    findings, sentences = importlib.import_module("demo.findings"), importlib.import_module("demo.sentences")
    uploads = findings.Uploads(10.0, np.array([0.1, 0.2, 0.3, 0.4]), np.array([0, 1, 0, 1]))

    async def main(loop):
        return await visitors.receive("one", uploads, frames, visitors.make_cache(), maker(loop, refuse_odd_ones))

    served, _ = run(main)
    said = sentences.describe_cache(findings.Visited(uploads, 2, 100.0, served, served, 0, 0))
    assert "50.0% are on time (50.0% lost)" in said.line
    assert "25.0% of the uploads were answered from it, 0.0% shared a computation" in said.details[1]
    assert "(single flight), 25.0% were computed" in said.details[1]

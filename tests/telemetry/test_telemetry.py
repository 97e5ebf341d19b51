"""Telemetry of a service, in virtual time."""

import asyncio
import gc
import inspect
import math
import random
import sys
import threading

import numpy as np
import pytest

import streaminfer as si
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram
from streaminfer.testing import HANG, FakeClock, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


def test_latency_and_its_parts():
    """Of three requests, one runs at once for 10 ms; two arrive 4 ms later, wait 6 ms and run together for 10 ms."""

    async def main(loop):
        stack = si.Stack(
            si.Telemetry("t"), si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(duration_s=0.01), clock=loop.clock
        )
        async with stack:
            first = asyncio.ensure_future(stack(1.0))
            await asyncio.sleep(0.004)
            await asyncio.gather(first, stack(2.0), stack(3.0))
            return stack.statistics()["Telemetry"]

    s = run(main)
    assert (s.name, s.requests, s.succeeded, s.in_flight) == ("t", 3, 3, 0)
    assert s.outcomes == {"ok": 3}
    assert s.latency.min == pytest.approx(0.010, rel=1e-3)
    assert s.latency.max == pytest.approx(0.016, rel=1e-3)
    assert s.queue.max == pytest.approx(0.006, rel=1e-3)
    assert s.queue.min == 0
    assert s.inference.min == pytest.approx(0.010, rel=1e-3)
    assert s.assembly.max == s.delivery.max == 0
    assert s.batch_sizes == {1: 1, 2: 2}
    assert s.mean_batch_size == 1.5
    assert list(s.parts()) == ["queue", "assembly", "inference", "delivery"]
    assert s.share_on_time(0.012) == pytest.approx(1 / 3)
    assert s.share_on_time(0.020) == 1.0


def test_every_outcome_is_counted_by_its_name():
    async def main(loop):
        backend = ScriptedBackend([ValueError("row")], ZeroDivisionError("batch"), HANG, ["fine"])
        telemetry = si.Telemetry()
        async with si.Stack(telemetry, si.AdaptiveBatcher(max_batch_size=1), backend, clock=loop.clock) as stack:
            for _ in range(2):
                await asyncio.gather(stack(1.0), return_exceptions=True)
            with pytest.raises(si.DeadlineExceeded):
                await stack(1.0, timeout_s=0.01)
            call = asyncio.ensure_future(stack(1.0))
            await asyncio.sleep(0)
            assert telemetry.statistics().in_flight == 1
            call.cancel()
            await asyncio.wait([call])
            await stack(1.0)
        return telemetry.statistics()

    s = run(main)
    assert s.outcomes == {"ok": 1, "ValueError": 1, "BackendError": 1, "DeadlineExceeded": 1, "cancelled": 1}
    assert (s.requests, s.succeeded, s.in_flight) == (5, 1, 0)
    assert s.share_on_time(1.0) == 0.2
    assert "DeadlineExceeded 1" in repr(s)
    assert math.isnan(si.Telemetry().statistics().share_on_time(1.0))


def test_degraded_responses_are_counted_separately():
    class Fallback:
        async def call(self, request):
            return si.Response(request.inputs, request.inputs > 1, "fallback")

    async def main(loop):
        async with si.Stack(si.Telemetry(), Fallback(), clock=loop.clock) as stack:
            await asyncio.gather(*map(stack, [1.0, 2.0, 3.0]))
            return stack.statistics()["Telemetry"]

    s = run(main)
    assert s.outcomes == {"ok": 1, "degraded": 2}
    assert s.succeeded == 3
    assert s.queue.count == 0
    assert s.mean_batch_size == 0.0


def test_around_functions_sync_and_async():
    clock = FakeClock()
    telemetry = si.Telemetry("f", clock=clock)

    def work(seconds, *, fail=False):
        """Works."""
        clock.advance(seconds)
        if fail:
            raise KeyError
        return seconds

    async def work_async(seconds):
        return work(seconds)

    sync, wrapped = telemetry.wrap(work), telemetry.wrap(work_async)
    assert (sync.__name__, sync.__doc__, inspect.iscoroutinefunction(wrapped)) == ("work", "Works.", True)
    assert sync(0.5) == 0.5
    assert asyncio.run(wrapped(0.25)) == 0.25
    with pytest.raises(KeyError):
        sync(0.1, fail=True)
    s = telemetry.statistics()
    assert s.outcomes == {"ok": 2, "KeyError": 1}
    assert (s.latency.min, s.latency.max) == (pytest.approx(0.25), pytest.approx(0.5))
    assert repr(telemetry) == "<Telemetry('f'): 3 requests>"


def test_a_snapshot_does_not_change():
    clock = FakeClock()
    telemetry = si.Telemetry(clock=clock)
    call = telemetry.wrap(lambda: clock.advance(0.1))
    call()
    before = telemetry.statistics()
    call()
    assert (before.succeeded, before.latency.count, telemetry.statistics().succeeded) == (1, 1, 2)
    page = telemetry.statistics()._repr_html_()
    assert "<td>2</td>" in page
    assert "100" in page


def test_nothing_is_lost_when_threads_record_at_once():
    telemetry = si.Telemetry()
    call = telemetry.wrap(lambda: None)

    def hammer():
        for _ in range(5000):
            call()

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    s = telemetry.statistics()
    assert (s.succeeded, s.in_flight, s.outcomes) == (20_000, 0, {"ok": 20_000})


@pytest.mark.parametrize("labels", [(), ("route",)])
def test_a_snapshot_is_of_one_moment(labels, monkeypatch):
    """A degraded response that another thread counts between two reads never counts as ``ok``.

    Otherwise the counter of ``ok`` would fall later. A patched copy of a histogram acts as the other thread: it counts
    one response before the copy, and one after it.
    """
    telemetry = si.Telemetry(labels=labels)
    service = telemetry.wrap(si.Stack(ScriptedBackend()))
    rest = [0] * 6

    def respond():
        if rest:
            rest.pop()
            service.exit(si.Request(1.0), service.enter(si.Request(1.0), 0), si.Response(1.0, True, "small"), 10**6)

    def copy(histogram):
        respond()
        copied = real_copy(histogram)
        respond()
        return copied

    real_copy = LatencyHistogram.copy
    respond()
    monkeypatch.setattr(LatencyHistogram, "copy", copy)
    s = telemetry.statistics()
    assert len(s.labeled) == len(labels)
    for snapshot in (s, *s.labeled):
        assert snapshot.outcomes == {"degraded": snapshot.latency.count}


@pytest.mark.parametrize("inner", [ScriptedBackend(), 3])
def test_wrap_of_an_unsupported_object_is_an_error(inner):
    with pytest.raises(TypeError, match="inner: expected a service"):
        si.Telemetry().wrap(inner)


def _generator():
    yield 1


async def _async_generator():
    yield 1


@pytest.mark.parametrize("inner", [_generator, _async_generator], ids=["sync", "async"])
def test_generator_functions_are_rejected(inner):
    """The call of a generator function ends before its work begins, so there is nothing to measure."""
    with pytest.raises(TypeError, match="inner: expected a function that ends when its work does"):
        si.Telemetry().wrap(inner)


def test_bad_settings_are_named():
    with pytest.raises(TypeError, match="name: expected a string"):
        si.Telemetry(3)
    with pytest.raises(TypeError, match="clock"):
        si.Telemetry(clock=3)


def test_compiled_and_plain_recorders_agree(plain):
    from streaminfer._request_cy import Response, Timings
    from streaminfer.telemetry._recorder_cy import Recorder

    def fill(recorder_class):
        rng = random.Random(3)
        histograms = [LatencyHistogram() for _ in range(5)]
        recorder = recorder_class(*histograms)
        for _ in range(500):
            recorder.begin()
            start = rng.randrange(10**9)
            stamps = [start + step * rng.randrange(10**6) - 1000 for step in range(5)]
            if rng.random() < 0.2:
                recorder.fail(rng.choice(["a", "b"]))
            else:
                timings = Timings(*stamps[:4], rng.randrange(1, 5)) if rng.random() < 0.8 else None
                recorder.answer(Response(None, rng.random() < 0.1, "", timings), start, stamps[4])
        encoded = [histogram.encode() for histogram in histograms]
        return encoded, recorder.started, recorder.degraded, recorder.errors, recorder.batch_sizes

    twin = plain("telemetry._recorder_cy").Recorder
    twin_filled, filled = fill(PlainHistograms(twin)), fill(Recorder)
    assert twin_filled == filled


class PlainHistograms:
    """Factory of uncompiled recorders over compiled histograms.

    The recorders record through ``record_ns``, because a compiled histogram offers its ``count_ns`` to C only.
    """

    def __init__(self, recorder_class):
        self.recorder_class = recorder_class

    def __call__(self, *histograms):
        return self.recorder_class(*(Adapter(histogram) for histogram in histograms))


class Adapter:
    def __init__(self, histogram):
        self.count_ns = histogram.record_ns


def test_server_parts_of_a_remote_backend_are_reported():
    class Remote(ScriptedBackend):
        said = {}  # noqa: RUF012 - read and replaced below

        def server_parts(self):
            return self.said

    async def main(loop):
        telemetry, backend = si.Telemetry("<t>"), Remote()
        async with si.Stack(telemetry, si.AdaptiveBatcher(max_batch_size=4), backend, clock=loop.clock) as stack:
            await stack(1.0)
            assert telemetry.statistics().server_parts == {}
            backend.said = {"server queue, m on <host>": 0.0125}
            said = stack.statistics()["Telemetry"]
            assert said.server_parts == {"server queue, m on <host>": 0.0125}
            assert "server queue, m on &lt;host&gt;" in said._repr_html_()
            assert "mean 12.500, of all its clients" in said._repr_html_()
            assert list(said.parts()) == [
                "queue",
                "assembly",
                "inference",
                "delivery",
            ]  # they add up to the latency
            async with si.Stack(telemetry, ScriptedBackend(), clock=loop.clock):
                assert telemetry.statistics().server_parts == said.server_parts
        assert si.Telemetry().statistics().server_parts == {}

    run(main)


class TestIntervals:
    def make(self):
        clock = FakeClock()
        telemetry = si.Telemetry("t", clock=clock)

        def take(seconds):
            clock.advance(seconds)
            if seconds > 1:
                raise ValueError

        return telemetry, telemetry.wrap(take)

    def test_interval_has_the_records_since_the_last_one(self):
        telemetry, call = self.make()
        call(0.1)
        assert telemetry.interval().latency.count == 1
        call(0.2)
        with pytest.raises(ValueError):
            call(2.0)

        interval = telemetry.interval()

        assert interval.outcomes == {"ok": 1, "ValueError": 1}
        assert interval.latency.quantile(1.0) == pytest.approx(0.2, rel=1e-3)
        assert interval.latency.min == pytest.approx(0.2, rel=1e-3)
        assert telemetry.interval().requests == 0
        assert telemetry.statistics().requests == 3

    def test_reset_starts_counting_from_zero(self):
        telemetry, call = self.make()
        call(0.5)
        telemetry.begin()  # in flight
        telemetry.reset()
        assert (telemetry.statistics().requests, telemetry.statistics().in_flight) == (0, 1)
        call(0.1)
        assert telemetry.statistics().latency.max == pytest.approx(0.1, rel=1e-3)
        assert telemetry.interval().requests == 1
        assert telemetry.histograms["latency"].count == 2

    def test_since_requires_an_earlier_copy(self):
        histogram, other = LatencyHistogram(), LatencyHistogram()
        other.record(1.0)
        for earlier in (other, LatencyHistogram(significant_digits=2)):
            with pytest.raises(ValueError, match="earlier: expected a copy of this histogram"):
                histogram.since(earlier)
        with pytest.raises(TypeError, match="earlier: expected a LatencyHistogram"):
            histogram.since(3)

    def test_since_counts_the_clamped_durations(self):
        histogram = LatencyHistogram(highest_s=1.0)
        histogram.record(5.0)
        before = histogram.copy()
        histogram.record(5.0)
        assert (histogram.since(before).clamped, histogram.since(before).max) == (1, pytest.approx(1.0))


class TestRecent:
    @pytest.mark.parametrize("slo", [False, True])
    def test_recent_latency_of_the_last_minute(self, slo):
        clock = FakeClock()
        objective = si.SLO("t", threshold_s=0.15) if slo else None
        telemetry = si.Telemetry("t", slo=objective, recent=si.RollingHistogram(window_s=60.0), clock=clock)
        call = telemetry.wrap(clock.advance)
        call(0.1)
        clock.advance(30.0)
        call(0.2)
        assert telemetry.statistics().recent.count == 2
        clock.advance(35.0)
        statistics = telemetry.statistics()
        assert (statistics.recent.count, statistics.recent.max, statistics.latency.count) == (1, 0.2, 2)
        assert slo == (objective is not None and objective.statistics().bad == 1)

    def test_recent_of_another_type_is_an_error(self):
        with pytest.raises(TypeError, match="recent: expected a RollingHistogram or None"):
            si.Telemetry(recent=LatencyHistogram())


class TestMemory:
    def left(self, *layers):
        """Return the blocks of memory that remain per request, over 2,400 requests with a tenant and a stream."""

        async def main():
            batcher = si.AdaptiveBatcher(max_batch_size=32, slo_s=1.0)
            async with si.Stack(*layers, batcher, si.CpuBackend(np.copy, executor="inline")) as stack:

                async def send(rounds):
                    for _ in range(rounds):
                        await asyncio.gather(*(stack(1.0, tenant="a", stream_id=number) for number in range(32)))
                    gc.collect()
                    return sys.getallocatedblocks()

                before = await send(25)
                return (await send(75) - before) / (75 * 32)

        return asyncio.run(main())

    def test_nothing_outlives_a_request(self):
        """Telemetry with an objective and a rolling histogram, and a cost meter, keep no memory per request.

        `Outcomes` keeps some for each request, which shows that the test can detect it.
        """
        telemetry = si.Telemetry("t", slo=si.SLO("t", threshold_s=0.05), recent=si.RollingHistogram())
        kept = si.telemetry.Outcomes(id_of=lambda request: object())

        bare, everything = self.left(), self.left(telemetry, si.CostMeter(per_second=1.0))

        assert everything - bare < 0.1
        assert self.left(kept) - bare > 1.0  # memory that is kept is detected

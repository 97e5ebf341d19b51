"""`run`: an open loop from schedule to report."""

import asyncio
import math
import os

import numpy as np
import pytest

import streaminfer as si
from streaminfer.loadtest import Constant, Measured, Poisson, Report, Sample, closed_loop, run
from streaminfer.testing import ScriptedBackend


async def echo(inputs):
    await asyncio.sleep(0.01)
    return inputs


class TestLatency:
    def test_counts_from_the_intended_send_time(self, virtually, device):
        """The latency of requests that are due during a pause of the service includes the rest of the pause."""
        service = device(0.001, pause=(1.0, 2.0))

        report = virtually(lambda: run(service, arrivals=Constant(10.0), inputs=[1.0], duration_s=3.0, slo_s=0.1))

        late = report.latencies_s[(report.record.due_s > 0.98) & (report.record.due_s < 1.95)]
        np.testing.assert_allclose(late[:3], [0.981, 0.882, 0.783], atol=2e-3)

    def test_stall_is_in_the_tail(self, virtually, device):
        """The p99.9 of a run with a pause of 1 s is within 5 % of the truth; a closed loop does not see the pause."""

        async def main():
            rate, seconds = 200.0, 60.0
            report = await run(
                device(0.002, pause=(20.0, 21.0)), arrivals=Constant(rate), inputs=[1.0], duration_s=seconds, slo_s=0.1
            )
            stalled = device(0.002, pause=(20.0 + report.duration_s, 21.0 + report.duration_s))
            return report, await closed_loop(lambda _number: stalled(1.0), 1, 55.0)

        report, closed = virtually(main)
        # of 12,000 arrivals in a minute, 200 come in the pause; they wait from 1 s down to what the backlog needs
        free_s, waits = 0.0, []
        for due in np.arange(12_000) / 200.0:
            start = max(due, free_s)
            start = 21.0 if 20.0 <= start < 21.0 else start
            free_s = start + 0.002
            waits.append(free_s - due)
        truth = float(np.sort(waits)[math.ceil(0.999 * 12_000) - 1])
        assert report.quantile(0.999) / truth == pytest.approx(1.0, abs=0.05)
        assert np.quantile(closed, 0.999) < 0.01 * truth

    def test_failed_requests_count_as_infinite(self, virtually):
        """Percentiles are over all requests, so that fast failures do not improve them."""

        async def failing(number):
            if number % 4 == 0:
                raise si.Overloaded

        inputs = list(range(100))
        report = virtually(lambda: run(failing, arrivals=Constant(100.0), inputs=inputs, duration_s=1.0, slo_s=0.1))

        assert report.outcomes == {"ok": 75, "Overloaded": 25}
        assert report.quantile(0.7) < 0.1
        assert math.isinf(report.quantile(0.8))
        assert report.passed is False

    def test_stack_latency_parts_become_stages(self, virtually):
        """The parts of a response's latency become stages."""
        backend = ScriptedBackend(duration_s=0.02)

        async def main():
            loop = asyncio.get_running_loop()
            stack = si.Stack(si.AdaptiveBatcher(max_batch_size=4), backend, clock=loop.clock)
            report = await run(stack, arrivals=Constant(20.0), inputs=[1.0, 2.0], duration_s=1.0, slo_s=0.1)
            return report, stack.ready

        report, ready = virtually(main)
        assert not ready
        stages = {tail.name: tail.quantiles_s["p50"] for tail in report.by_stage()}
        assert stages == pytest.approx({"queue": 0.0, "assembly": 0.0, "inference": 0.02}, abs=1e-6)

    def test_running_stack_is_left_running(self, virtually):
        """A stack that ran before the test runs after it."""

        async def main():
            loop = asyncio.get_running_loop()
            async with si.Stack(ScriptedBackend(), clock=loop.clock) as stack:
                await run(stack, arrivals=Constant(20.0), inputs=[1.0], duration_s=1.0, slo_s=0.1)
                return stack.ready

        assert virtually(main)


class TestEnds:
    def test_unanswered_requests_are_cancelled(self, virtually):
        """Requests in flight after the drain are cancelled, and count as unanswered."""
        cancelled = []

        async def hanging(number):
            if number < 5:
                return
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(number)

        report = virtually(
            lambda: run(hanging, arrivals=Constant(10.0), inputs=range(10), duration_s=1.0, slo_s=0.1, drain_s=2.0)
        )

        assert report.outcomes == {"ok": 5, "unanswered": 5}
        assert sorted(cancelled) == [5, 6, 7, 8, 9]

    def test_cancelled_run_cancels_its_requests(self, virtually):
        """A cancelled run leaves no task and no request in flight."""
        in_flight = 0

        async def hanging(_inputs):
            nonlocal in_flight
            in_flight += 1
            try:
                await asyncio.Event().wait()
            finally:
                in_flight -= 1

        async def main():
            test = asyncio.create_task(
                run(hanging, arrivals=Constant(10.0), inputs=[1], duration_s=5.0, slo_s=0.1, progress=lambda _: None)
            )
            await asyncio.sleep(2.5)
            before = in_flight
            test.cancel()
            await asyncio.wait([test])
            return before, in_flight, len(asyncio.all_tasks())

        assert virtually(main) == (25, 0, 1)

    def test_progress_every_second(self, virtually):
        """Progress is reported every second, with the number of sent requests."""
        told = []

        virtually(
            lambda: run(echo, arrivals=Constant(100.0), inputs=[1], duration_s=3.5, slo_s=0.1, progress=told.append)
        )

        assert [round(each.elapsed_s) for each in told] == [1, 2, 3]
        assert [each.sent for each in told] == pytest.approx([99, 199, 299], abs=2)
        assert told[0].requests == 350

    def test_error_in_progress_is_raised(self, virtually):
        """The run raises an error of ``progress``."""

        def fail(_progress):
            raise LookupError("no terminal")

        with pytest.raises(LookupError, match="no terminal"):
            virtually(lambda: run(echo, arrivals=Constant(10.0), inputs=[1], duration_s=2.0, slo_s=0.1, progress=fail))


class TestInputs:
    @pytest.mark.parametrize(
        ("inputs", "seen"),
        [
            ([1, 2], [1, 2, 1, 2]),
            (np.array([[1], [2]]), [[1], [2], [1], [2]]),
            (lambda number: 10 * number, [0, 10, 20, 30]),
            ({"x": 1}, [{"x": 1}] * 4),
        ],
        ids=["sequence", "array", "function", "mapping"],
    )
    def test_kinds_of_inputs(self, virtually, inputs, seen):
        """Inputs are a sequence, an array of rows, a function of the number or one mapping."""
        got = []

        async def service(given):
            got.append(given.tolist() if isinstance(given, np.ndarray) else given)

        virtually(lambda: run(service, arrivals=Constant(4.0), inputs=inputs, duration_s=1.0, slo_s=0.1))

        assert got == seen

    def test_inputs_of_several_shapes_take_turns(self, virtually):
        """A sequence of arrays with different shapes is used in turn, like any other."""
        shapes = []

        async def service(x):
            shapes.append(x.shape)

        inputs = [np.zeros(3), np.zeros((2, 5)), np.zeros(7)]
        virtually(lambda: run(service, arrivals=Constant(10.0), inputs=inputs, duration_s=0.5, slo_s=0.1))

        assert shapes == [(3,), (2, 5), (7,), (3,), (2, 5)]

    def test_sample_and_measured_fields_are_reported(self, virtually):
        """Labels, stages and values of `Sample` and `Measured` are in the report."""
        inputs = [
            Sample(1.0, labels={"device": "phone"}, stages_s={"encode": 0.03}),
            Sample(2.0, labels={"device": "studio"}, settings={"scale": 2.0}),
        ]

        async def service(given, *, scale=1.0):
            await asyncio.sleep(0.01 * given * scale)
            return Measured(given, stages_s={"decode": 0.005}, values={"accuracy": 1 / given}, labels={"codec": "vp8"})

        report = virtually(lambda: run(service, arrivals=Constant(10.0), inputs=inputs, duration_s=1.0, slo_s=0.02))

        devices = {
            tail.name: (tail.count, tail.on_time, round(tail.quantiles_s["p50"], 6))
            for tail in report.by_label("device")
        }
        assert devices == {"phone": (5, 1.0, 0.01), "studio": (5, 0.0, 0.04)}
        assert report.means("device") == {"phone": {"accuracy": 1.0}, "studio": {"accuracy": 0.5}}
        stages = {tail.name: (tail.count, tail.quantiles_s["p50"]) for tail in report.by_stage()}
        assert stages["encode"] == (5, 0.03)
        assert stages["decode"] == (10, 0.005)
        assert stages["age"] == (10, pytest.approx(0.04))
        assert [tail.name for tail in report.by_label("codec")] == ["vp8"]

    def test_requests_are_sent_unchanged(self, virtually):
        """A `Request` is sent unchanged, and a `Sample` with its settings."""
        got = []

        class Service:
            async def call(self, request):
                got.append((request.inputs, request.priority))
                return si.Response(1)

        inputs = [si.Request(5, priority=3), Sample(6, settings={"priority": 4})]
        virtually(lambda: run(Service(), arrivals=Constant(2.0), inputs=inputs, duration_s=1.0, slo_s=0.1))

        assert got == [(5, 3), (6, 4)]


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def test_report_of_odd_texts_and_numbers(virtually, tmp_path):
    """A report can be written, whatever labels, numbers and errors the requests have."""
    label = os.fsdecode(b"caf\xe9.png")

    async def service(_given):
        raise Unprintable

    report = virtually(
        lambda: run(
            service, arrivals=Constant(2.0), inputs=Sample(1, labels={label: label}), duration_s=1.0, slo_s=0.1,
            seed=np.int64(3), objective=np.float32(0.5),
        )
    )  # fmt: skip
    report.to_html(tmp_path / "report.html")
    report.save(tmp_path / "report.json")

    assert Report.load(tmp_path / "report.json").outcomes == {"Unprintable": 2}
    assert [tail.name for tail in report.by_label("caf\\udce9.png")] == ["caf\\udce9.png"]
    assert "its message cannot be shown" in report.describe()[-1]


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"service": 5}, TypeError, "service: expected an object with `async call"),
            ({"inputs": []}, ValueError, "inputs: expected at least one"),
            ({"inputs": 5}, TypeError, "inputs: expected a sequence"),
            ({"inputs": lambda: 1.0}, TypeError, "inputs: expected a sequence.*: too many positional arguments"),
            ({"duration_s": 0}, ValueError, "duration_s: expected seconds > 0 and ≤ 1,000,000,000, got 0"),
            ({"duration_s": 1e300}, ValueError, "duration_s: expected seconds > 0 and ≤ 1,000,000,000, got 1e"),
            ({"slo_s": -1}, ValueError, "slo_s"),
            ({"objective": 1.0}, ValueError, "objective: expected a share between 0 and 1"),
            ({"arrivals": [5.0]}, ValueError, "arrivals: expected at least one request within 1 s"),
            ({"seed": -1}, ValueError, "seed"),
            ({"progress": 1}, TypeError, "progress"),
            ({"name": 1}, TypeError, "name: expected a string"),
        ],
    )
    def test_wrong_argument_is_named(self, virtually, changes, error, message):
        """The message names the argument."""
        arguments = {"service": echo, "arrivals": Constant(5.0), "inputs": [1], "duration_s": 1.0, "slo_s": 0.1}

        with pytest.raises(error, match=message):
            virtually(lambda: run(**{**arguments, **changes}))


def test_same_seed_same_report(virtually, device):
    """In virtual time, the same seed gives the same latencies."""

    def once():
        return virtually(
            lambda: run(device(0.004), arrivals=Poisson(200.0), inputs=[1], duration_s=5.0, slo_s=0.1, seed=9)
        )

    np.testing.assert_array_equal(once().latencies_s, once().latencies_s)


def test_real_time():
    """On an ordinary event loop, all requests are sent and get a response."""
    report = asyncio.run(run(echo, arrivals=Poisson(300.0), inputs=[1], duration_s=0.3, slo_s=1.0))

    assert report.outcomes == {"ok": report.requests}
    assert (report.record.late_s >= 0).all()
    assert report.latencies_s.min() >= 0.01


class OwnArrivals:
    def __init__(self, due_s):
        self.due_s = due_s

    def schedule(self, duration_s, seed):
        return self.due_s


def test_custom_arrivals_class(virtually):
    """The schedule of a custom class may be a list; requests that are due after the end are not sent."""
    report = virtually(lambda: run(echo, arrivals=OwnArrivals([0.1, 5.0]), inputs=[1], duration_s=1.0, slo_s=0.1))

    np.testing.assert_array_equal(report.record.due_s, [0.1])


@pytest.mark.parametrize("due_s", [[0.2, 0.1], [0.0, math.nan], [-1.0, 0.5]], ids=str)
def test_arrivals_out_of_order(virtually, due_s):
    """A schedule that no sender can follow is rejected; otherwise the sender would seem too busy."""
    with pytest.raises(ValueError, match="arrivals"):
        virtually(lambda: run(echo, arrivals=OwnArrivals(due_s), inputs=[1], duration_s=1.0, slo_s=0.1))

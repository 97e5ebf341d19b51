"""Start of a stack until it is ready: the report, the log, and `ready`."""

import asyncio
import logging
import os

import numpy as np
import pytest

import streaminfer as si
from streaminfer.testing import HANG, ScriptedBackend, VirtualLoop, run

pytestmark = pytest.mark.uncompiled


class Slow(ScriptedBackend):
    """Backend whose start takes a while."""

    def __init__(self, start_s, **options):
        super().__init__(**options)
        self.start_s = start_s

    async def start(self):
        await asyncio.sleep(self.start_s)

    async def stop(self, *, drain):
        await asyncio.sleep(0.001)


def slow_stack(loop, start_s=1.25, **options):
    backend = Slow(start_s, duration_s=0.010, example=1.0, **options)
    return si.Stack(si.Telemetry("x"), si.AdaptiveBatcher(max_batch_size=2), backend, clock=loop.clock)


def test_report_names_each_part():
    """The report has each part with its time, innermost first, and the batcher's measurements."""

    async def scenario(loop):
        stack = slow_stack(loop)
        assert stack.statistics().start is None
        async with stack:
            pass
        return stack.statistics()

    statistics = run(scenario)

    start = statistics.start
    assert [part.name for part in start.parts] == ["Slow", "AdaptiveBatcher"]
    assert [part.duration_s for part in start.parts] == pytest.approx([1.25, 0.100])
    assert start.duration_s == pytest.approx(1.350)
    assert start.calibration == statistics["AdaptiveBatcher"].calibration
    assert str(start) == (
        "ready after 1.350 s: Slow 1.250 s, AdaptiveBatcher 0.100 s (batches of 1, 2 take 10 ms to 10 ms)"
    )
    assert "<td>Slow</td><td>1.25 s</td>" in statistics._repr_html_()
    assert "<td>10 ms</td>" in statistics._repr_html_()


def test_stack_without_a_batcher_is_named():
    async def scenario(loop):
        stack = si.Stack(Slow(0.5, example=1.0), clock=loop.clock)
        async with stack:
            return [part.name for part in stack.statistics().start.parts]

    assert run(scenario) == ["Slow", "batches of one"]


def test_start_is_one_line_in_the_log(caplog):
    caplog.set_level(logging.INFO, "streaminfer")

    async def scenario(loop):
        async with slow_stack(loop):
            pass

    run(scenario)

    (record,) = caplog.records
    assert (record.name, record.levelname) == ("streaminfer", "INFO")
    assert record.message.startswith("stack Telemetry → AdaptiveBatcher → Slow ready after 1.350 s: Slow 1.250 s, ")
    assert record.msg.startswith("%s ready after ")  # JsonLines keeps the template


def test_long_start_says_how_far_it_is(caplog):
    """Every five seconds of a start, a log line names the part that starts and its current step."""
    caplog.set_level(logging.INFO, "streaminfer")

    async def scenario(loop):
        backend = Slow(6.0, duration_s=0.9, example=1.0)
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=64), backend, clock=loop.clock):
            pass

    run(scenario)

    *progress, ready = [record.message for record in caplog.records]
    assert progress == [
        "stack AdaptiveBatcher → Slow starts, for 5 s now: Slow",
        "stack AdaptiveBatcher → Slow starts, for 10 s now: AdaptiveBatcher, measuring batches of 4",
    ]
    assert "ready after 11.400 s" in ready


def test_start_reports_the_wait_for_kernels(caplog):
    """A start that waits for kernels logs this in the meantime, and its report has the time of the kernels."""
    caplog.set_level(logging.INFO, "streaminfer")

    class Compiling(si.AdaptiveBatcher):
        async def load_kernels(self):
            await asyncio.sleep(6.0)

    async def scenario(loop):
        async with si.Stack(Compiling(max_batch_size=2), Slow(1.0), clock=loop.clock) as stack:
            return stack.statistics().start

    start = run(scenario)

    progress, ready = [record.message for record in caplog.records]
    assert progress == "stack Compiling → Slow starts, for 5 s now: kernels"
    assert ready.endswith("ready after 7.000 s: kernels 6.000 s, Slow 1.000 s, Compiling 0.000 s")
    assert [part.duration_s for part in start.parts] == [6.0, 1.0, 0.0]


def test_ready_from_start_to_stop():
    """`ready` is true only from the end of the start to the beginning of the stop."""

    async def scenario(loop):
        stack = slow_stack(loop)
        seen = [stack.ready]
        starting = asyncio.ensure_future(stack.start())
        await asyncio.sleep(1.0)
        seen.append(stack.ready)
        await asyncio.sleep(0.3)
        seen.append(stack.ready)
        with pytest.raises(si.Closed):
            await stack(1.0)
        await starting
        seen.append(stack.ready)
        stopping = asyncio.ensure_future(stack.stop())
        await asyncio.sleep(0)
        seen.append(stack.ready)
        await stopping
        return [*seen, stack.ready]

    assert run(scenario) == [False, False, False, True, False, False]


def test_failed_start_is_not_ready():
    async def scenario(loop):
        class Broken(ScriptedBackend):
            async def start(self):
                raise OSError("no such device")

        stack = si.Stack(Broken(), clock=loop.clock)
        with pytest.raises(OSError, match="no such device"):
            await stack.start()
        return stack.ready, stack.statistics().start

    assert run(scenario) == (False, None)


def test_closed_loop_is_not_ready():
    """A stack is stopped, not ready, after its loop was closed without a stop."""
    loop = VirtualLoop()
    stack = si.Stack(ScriptedBackend(), clock=loop.clock)
    loop.run_until_complete(stack.start())
    assert stack.ready

    loop.close()

    assert not stack.ready
    assert stack.statistics().state == "stopped"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_process_is_not_ready():
    async def scenario(loop):
        async with si.Stack(ScriptedBackend(), clock=loop.clock) as stack:
            child = os.fork()
            if not child:
                os._exit(3 if stack.ready or stack.stack_state != "stopped" else 4)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert run(scenario) == 4


def test_progress_timer_ends_with_a_cancelled_start(caplog):
    caplog.set_level(logging.INFO, "streaminfer")

    async def scenario(loop):
        stack = slow_stack(loop, start_s=30.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(6.0):
                await stack.start()
        await asyncio.sleep(20.0)
        return stack.ready

    assert run(scenario) is False
    assert len(caplog.records) == 1


@pytest.mark.parametrize("concurrent", [False, True], ids=["router", "replicas"])
def test_routes_are_all_ready(concurrent):
    """A stack around several services is ready only when each of them is ready and measured."""

    async def scenario(loop):
        stacks = [slow_stack(loop, start_s) for start_s in (1.0, 3.0)]
        if concurrent:
            front = si.Replicas(*[si.Replica(str(number), stack) for number, stack in enumerate(stacks)])
        else:
            front = si.FallbackRouter(*[si.Route(str(number), stack) for number, stack in enumerate(stacks)])
        outer = si.Stack(front, clock=loop.clock)
        starting = asyncio.ensure_future(outer.start())
        await asyncio.sleep(2.0)
        assert (outer.ready, stacks[0].ready, stacks[1].ready) == (False, True, False)
        await starting
        assert (outer.ready, stacks[0].ready, stacks[1].ready) == (True, True, True)
        assert all(stack.statistics().start.calibration.durations_s for stack in stacks)
        await outer.stop()
        return outer.ready, stacks[0].ready, stacks[1].ready

    assert run(scenario) == (False, False, False)


def test_stop_right_after_start():
    async def scenario(loop):
        stack = slow_stack(loop)
        await stack.start()
        await stack.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await stack.start()
        call = asyncio.ensure_future(stack(2.0))
        await asyncio.sleep(0)
        await stack.stop(drain=True)
        return await call

    assert run(scenario) == 2.0


def test_hanging_request_does_not_outlive_the_stop():
    async def scenario(loop):
        backend = ScriptedBackend(HANG, example=1.0)
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=2), backend, clock=loop.clock) as stack:
            call = asyncio.ensure_future(stack(1.0))
            await asyncio.sleep(0.01)
            await stack.stop(drain=False)
        with pytest.raises(si.Closed):
            await call
        return backend.running

    assert run(scenario) == 0


def test_threads_and_functions_are_warm():
    """At the start, a function gets batches of its example in its worker threads, and no statistics count them."""
    shapes = []

    def double(inputs):
        shapes.append(inputs.shape)
        return inputs * 2

    async def scenario():
        backend = si.CpuBackend(double, workers=2, example=np.ones(3))
        batcher = si.AdaptiveBatcher(max_batch_size=4, max_in_flight=2)
        async with si.Stack(batcher, backend) as stack:
            assert {shape[0] for shape in shapes} == {1, 2, 4}
            assert (backend.statistics().batches, backend.statistics().busy_s) == (0, 0.0)
            assert list(stack.statistics().start.calibration.durations_s[0]) == [1, 2, 4]
            assert (await stack(np.ones(3))).tolist() == [2.0, 2.0, 2.0]
            assert backend.statistics().batches == 1

    asyncio.run(scenario())


async def test_failed_start_stops_parts_outermost_first(loop):
    """A failed start stops the started parts outermost first, like a stop, so that no layer outlives its inner part."""
    log = []

    class Part:
        def __init__(self, name, inner=None):
            self.name, self.inner = name, inner

        def wrap(self, inner):
            return Part(self.name, inner)

        async def call(self, request):
            return await self.inner.call(request)

        async def start(self):
            if self.name == "outer":
                raise OSError("no")

        async def stop(self, *, drain=True):
            log.append(self.name)

    with pytest.raises(OSError, match="no"):
        await si.Stack(Part("outer"), Part("middle"), Part("inner"), ScriptedBackend(), clock=loop.clock).start()

    assert log == ["middle", "inner"]


async def test_no_start_begins_before_a_failed_one_has_ended(loop):
    """While a failed start stops its parts, another start is an error, and a stop waits for the end."""

    class SlowToStop(ScriptedBackend):
        async def start(self):
            starts.append(loop.time())

        async def stop(self, *, drain=True):
            await asyncio.sleep(1.0)

    class Failing:
        def wrap(self, inner):
            self.call = inner.call
            return self

        async def start(self):
            raise OSError("no")

    starts = []
    stack = si.Stack(Failing(), SlowToStop(), clock=loop.clock)
    failing = asyncio.ensure_future(stack.start())
    await asyncio.sleep(0.5)
    with pytest.raises(RuntimeError, match="this stack is stopping already"):
        await stack.start()
    await stack.stop()
    assert (loop.time(), stack.stack_state, starts) == (1.0, "stopped", [0.0])
    with pytest.raises(OSError, match="no"):
        await failing


def test_layer_with_failing_statistics_still_serves(caplog):
    """A start reads statistics to load their code; it logs the error of a user's `statistics`, and the stack serves."""

    class Untold(ScriptedBackend):
        def statistics(self):
            raise ZeroDivisionError("no requests so far")

    async def scenario(loop):
        async with si.Stack(Untold(), clock=loop.clock) as stack:
            with pytest.raises(ZeroDivisionError):  # its caller gets the error
                stack.statistics()
            return await stack(1.0)

    assert run(scenario) == 1.0
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.name == "streaminfer"
    assert warning.getMessage().startswith(
        "statistics() of the stack Untold failed: ZeroDivisionError: no requests so far"
    )

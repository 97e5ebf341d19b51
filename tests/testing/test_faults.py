"""Fault injection: kinds of faults, their times and rates, and their targets; a seed always gives the same faults."""

import asyncio
import contextlib
import inspect
import math
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from held_time import run_held, until
from hypothesis import given
from hypothesis import strategies as st

import streaminfer as si
from streaminfer.testing import FakeClock, ScriptedBackend, faults, run
from streaminfer.testing.faults import (
    FaultPlan,
    Faulty,
    delay,
    error,
    garbage,
    hang,
    kill,
    kill_workers,
    lognormal,
    partial,
    row_errors,
    slow_start,
    slowdown,
    wrong_shape,
)


def batch(*rows):
    return si.Batch(np.array(rows), [si.Request(row) for row in rows])


async def outcome(faulty, *rows):
    """Return the result or the error of one batch, and the seconds that it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        result = await faulty.infer(batch(*(rows or (1.0,))))
    except Exception as failure:
        result = failure
    return result, loop.time() - began


def outcomes(plan, count, *, duration_s=0.0, pause_s=0.0):
    """Return the outcome of each of ``count`` sequential batches, and the seconds that it took."""

    async def main(loop):
        faulty = Faulty(ScriptedBackend(duration_s=duration_s), plan)
        ends = []
        for _ in range(count):
            ends.append(await outcome(faulty))
            if pause_s:
                await asyncio.sleep(pause_s)
        return ends

    return run(main)


def times(plan, count, **options):
    return np.array([took for _, took in outcomes(plan, count, **options)])


# -- kinds of faults --------------------------------------------------------------------------------------------


def test_empty_plan_injects_nothing():
    plan = FaultPlan()
    assert outcomes(plan, 3) == [([1.0], 0.0)] * 3
    assert plan.calls == 3
    assert plan.injected == {}


def test_a_distribution_has_no_negative_delays():
    """A negative delay from a distribution is an error, because it would shorten the other delays."""
    (failure, _), *_ = outcomes(FaultPlan(delay(0.010), delay(lambda share: -share)), 1)
    assert isinstance(failure, ValueError)
    assert str(failure).startswith("delay(seconds): expected a finite number of seconds ≥ 0, got -0.")


def test_constant_delays_add_up():
    assert times(FaultPlan(delay(0.010), delay(0.005)), 3, duration_s=0.001) == pytest.approx(0.016)


def test_lognormal_delays():
    took = times(FaultPlan(delay(lognormal(median_s=0.010, sigma=0.5)), seed=3), 4_000)
    logs = np.log(took / 0.010)
    assert abs(np.mean(logs)) < 0.04  # five standard errors
    assert 0.47 < np.std(logs) < 0.53
    assert 0.010 * math.exp(0.5 * 2.326) == pytest.approx(np.quantile(took, 0.99), rel=0.15)


def test_distribution_may_read_its_plan():
    waits = []
    plan = FaultPlan(delay(lambda _: float(plan.injected["delay"])), sleep=waits.append)
    function = plan.wrap(lambda: 1)

    assert (function(), function(), waits) == (1, 1, [1.0])


def test_spikes():
    took = times(FaultPlan(delay(0.5, rate=0.02), seed=1), 3_000, duration_s=0.010)
    assert 30 <= np.count_nonzero(took > 0.4) <= 95
    assert set(np.round(took, 6)) == {0.010, 0.510}


def test_errors_at_a_rate():
    plan = FaultPlan(error(OSError("gone"), rate=0.3), seed=1)
    ends = [end for end, _ in outcomes(plan, 2_000)]
    failed = [end for end in ends if isinstance(end, OSError)]
    assert 520 < len(failed) < 680
    assert plan.injected["error"] == len(failed)
    assert len({id(each) for each in failed}) == len(failed)  # each caller gets its own copy
    assert {str(each) for each in failed} == {"gone"}


class Unlike(Exception):
    """Error that cannot be copied, because its constructor takes more than a message."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


def test_uncopyable_error_is_raised():
    ends = [end for end, _ in outcomes(FaultPlan(error(Unlike(7, "gone"))), 2)]
    assert [(type(end), end.code) for end in ends] == [(Unlike, 7)] * 2


def test_error_class_is_raised_and_first_fault_wins():
    plan = FaultPlan(error(si.Overloaded), error(OSError))
    ((end, _),) = outcomes(plan, 1)
    assert type(end) is si.Overloaded
    assert plan.injected == {"error": 1}  # one call failed


def test_faults_of_one_kind_count_once_per_call():
    """A call counts once for several faults of a kind."""
    plan = FaultPlan(delay(0.1), delay(0.2), garbage(), garbage(), partial(), partial(), sleep=lambda _: None)
    assert len(plan.wrap(lambda: [1, 2, 3])()) == 1
    assert plan.injected == {"delay": 1, "garbage": 1, "partial": 1}


def test_error_follows_delay_and_skips_the_backend():
    """An injected error comes after its delay, and the call does not reach the inner backend."""

    async def main(loop):
        backend = ScriptedBackend()
        end, took = await outcome(Faulty(backend, FaultPlan(delay(0.2), error(OSError))))
        assert (type(end), took, backend.batches) == (OSError, 0.2, [])

    run(main)


def test_a_hang_ends_when_it_is_cancelled():
    async def main(loop):
        plan = FaultPlan(hang())
        backend = ScriptedBackend()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Faulty(backend, plan).infer(batch(1.0)), 3.0)
        assert (loop.time(), backend.batches, plan.injected) == (3.0, [], {"hang": 1})

    run(main)


def test_a_hang_for_a_while():
    assert times(FaultPlan(hang(for_s=2.0).on(1)), 3) == pytest.approx([0.0, 2.0, 0.0])


def test_slowdown_multiplies_delays_too():
    """A slowdown multiplies the whole duration by its factor, injected delays included."""
    plan = FaultPlan(delay(0.010), slowdown(2.0).between(1.0, 2.0))
    took = times(plan, 6, duration_s=0.030, pause_s=0.46)
    assert took == pytest.approx([0.04, 0.04, 0.08, 0.08, 0.04, 0.04])
    assert plan.injected == {"delay": 6, "slowdown": 2}


def test_a_slow_start_fades_in_a_straight_line():
    plan = FaultPlan(slow_start(5.0, over_s=8.0))
    took = times(plan, 6, duration_s=0.1, pause_s=1.0)
    assert took[0] == pytest.approx(0.5)
    assert took[1] == pytest.approx(0.1 * (1 + 4 * (1 - 1.5 / 8)))
    assert list(took) == sorted(took, reverse=True)
    assert times(FaultPlan(slow_start(5.0, over_s=0.5)), 3, duration_s=0.1, pause_s=1.0)[1:] == pytest.approx(0.1)


def rows_of(plan, *rows):
    async def main(loop):
        return await Faulty(ScriptedBackend(), plan).infer(batch(*rows))

    return run(main)


def test_partial_batches():
    assert rows_of(FaultPlan(partial()), 1.0, 2.0, 3.0) == [1.0, 2.0]
    assert rows_of(FaultPlan(partial(9)), 1.0, 2.0) == []


def test_partial_batches_are_an_error_of_the_batch():
    async def main(loop):
        plan = FaultPlan(partial().on(0))
        async with si.Stack(
            si.AdaptiveBatcher(max_batch_size=4), Faulty(ScriptedBackend(), plan), clock=loop.clock
        ) as service:
            ends = await asyncio.gather(*(service(float(n)) for n in range(4)), return_exceptions=True)
            assert [type(end) for end in ends] == [si.BackendError] * 4
            assert await service(5.0) == 5.0
        assert plan.injected == {"partial": 1}

    run(main)


def test_wrong_shapes():
    assert [row.shape for row in rows_of(FaultPlan(wrong_shape()), [1.0, 2.0], [3.0, 4.0])] == [(2, 2)] * 2
    plan = FaultPlan(wrong_shape())

    async def main(loop):
        backend = ScriptedBackend(then=lambda it: [{"y": np.zeros(3), "z": 1.0}])
        return await Faulty(backend, plan).infer(batch(1.0))

    (row,) = run(main)
    assert (row["y"].shape, row["z"].shape) == ((2, 3), (2,))


def test_rows_that_are_exceptions():
    async def main(loop):
        plan = FaultPlan(row_errors(OSError("row"), rate=0.25), seed=2)
        faulty = Faulty(ScriptedBackend(), plan)
        rows = [row for _ in range(100) for row in await faulty.infer(batch(*map(float, range(20))))]
        struck = [isinstance(row, OSError) for row in rows]
        assert 420 < sum(struck) < 580
        assert plan.injected["row_errors"] == sum(struck)
        assert [row for row, bad in zip(rows, struck, strict=True) if not bad] == [
            n % 20 for n in range(2000) if not struck[n]
        ]

    run(main)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int64, np.bool_, object, "U3"])
def test_garbage_has_shape_and_dtype(dtype):
    async def main(loop, plan):
        backend = ScriptedBackend(then=lambda it: [np.ones((3, 5)).astype(dtype), np.ones((3, 5)).astype(dtype)])
        return await Faulty(backend, plan).infer(batch(1.0, 2.0))

    rows = run(lambda loop: main(loop, FaultPlan(garbage())))
    again = run(lambda loop: main(loop, FaultPlan(garbage())))
    for row, same in zip(rows, again, strict=True):
        assert (row.shape, row.dtype) == ((3, 5), np.dtype(dtype))
        assert row.tobytes() == same.tobytes() or dtype is object
        assert not np.array_equal(row, np.ones((3, 5)).astype(dtype))
    if dtype is not object:
        assert rows[0].tobytes() != rows[1].tobytes()


# -- times of faults --------------------------------------------------------------------------------------------


def test_windows_are_of_the_plan_s_time():
    async def main(loop):
        plan = FaultPlan(error(OSError).between(2.0, 4.0))
        faulty = Faulty(ScriptedBackend(), plan)
        ends = []
        for _ in range(6):
            ends.append(type((await outcome(faulty))[0]))
            await asyncio.sleep(1.0)
        return ends

    expected = [list, list, OSError, OSError, list, list]
    assert run(main) == expected
    assert run(main, now_ns=77_000_000_000) == expected  # the time of the plan begins with the first call


def test_stack_start_begins_the_time_of_the_plan():
    async def main(loop):
        plan = FaultPlan(error(OSError).between(2.0, 4.0))
        async with si.Stack(Faulty(ScriptedBackend(), plan), clock=loop.clock) as service:
            await asyncio.sleep(2.0)
            with pytest.raises(si.BackendError):
                await service(1.0)

    run(main)


def test_faults_on_given_calls():
    ends = [type(end) for end, _ in outcomes(FaultPlan(error(OSError).on(0, 2)), 4)]
    assert ends == [OSError, list, OSError, list]


def test_restarted_plan_replays_its_faults():
    def made(seed):
        return FaultPlan(
            delay(lognormal(0.010, 1.0)),
            error(OSError, rate=0.2),
            delay(1.0, rate=0.1),
            seed=seed,
        )

    def story(plan):
        return [(type(end).__name__, took) for end, took in outcomes(plan, 200)]

    plan = made(5)
    first = story(plan)
    assert first == story(made(5)) != story(made(6))
    counted = dict(plan.injected)
    plan.restart()
    assert (plan.calls, plan.injected) == (0, {})
    assert story(plan) == first
    assert plan.injected == counted


def test_additional_fault_changes_no_other():
    plan = [error(OSError, rate=0.3), delay(lognormal(0.01, 0.3))]
    first = [type(end) for end, _ in outcomes(FaultPlan(*plan), 200)]
    assert first == [type(end) for end, _ in outcomes(FaultPlan(*plan, delay(0.5, rate=0.5)), 200)]


@given(seed=st.integers(0, 2**70), order=st.permutations(range(8)))
def test_the_order_in_which_calls_end_changes_nothing(seed, order):
    """The number of a call alone decides whether it fails, even if eight calls run at once and end in any order."""

    async def main(loop):
        plan = FaultPlan(error(OSError, rate=0.5), seed=seed)
        faulty = Faulty(ScriptedBackend(duration_s=lambda _: 1.0 + order[plan.calls % 8]), plan)
        ends = await asyncio.gather(*(faulty.infer(batch(1.0)) for _ in range(8)), return_exceptions=True)
        return [isinstance(end, OSError) for end in ends]

    plan = FaultPlan(error(OSError, rate=0.5), seed=seed)
    assert run(main) == [isinstance(end, OSError) for end, _ in outcomes(plan, 8)]


def test_two_backends_share_a_plan():
    async def main(loop):
        plan = FaultPlan(error(OSError).on(1))
        one, other = Faulty(ScriptedBackend(), plan), Faulty(ScriptedBackend(), plan)
        return [type((await outcome(it))[0]) for it in (one, other, one)]

    assert run(main) == [list, OSError, list]


# -- targets: services, backends and functions ------------------------------------------------------------------


def test_faults_of_a_service():
    class Service:
        async def call(self, request):
            return si.Response(np.ones(3), degraded=True, source="inside")

    async def main(loop):
        plan = FaultPlan(delay(0.1), garbage().on(1), slowdown(2.0).on(2), error(OSError).on(3))
        faulty = Faulty(Service(), plan)
        whole, spoilt = [await faulty.call(si.Request(0)) for _ in range(2)]
        assert (whole.outputs == 1.0).all()
        assert not (spoilt.outputs == 1.0).all()
        assert (spoilt.outputs.shape, spoilt.degraded, spoilt.source) == ((3,), True, "inside")
        assert loop.time() == pytest.approx(0.2)
        await faulty.call(si.Request(0))
        assert loop.time() == pytest.approx(0.4)
        with pytest.raises(OSError):
            await faulty.call(si.Request(0))
        assert plan.injected == {"delay": 4, "garbage": 1, "slowdown": 1, "error": 1}

    run(main)


def test_faulty_starts_and_stops_its_backend():
    class Backend(ScriptedBackend):
        started = stopped = 0

        async def start(self):
            self.started += 1

        async def stop(self, *, drain):
            self.stopped += 1

    async def main(loop):
        owned, layered = Backend(), Backend()
        plan = FaultPlan(delay(2.0))
        async with (
            si.Stack(Faulty(owned, plan), clock=loop.clock) as service,
            si.Stack(plan, layered, clock=loop.clock) as other,
        ):
            for each in (service, other):
                with pytest.raises(si.DeadlineExceeded):
                    await each(1.0, timeout_s=0.5)
            assert loop.time() == 1.0
        for backend in (owned, layered):
            assert (backend.started, backend.stopped) == (1, 1)

    run(main)


def test_faults_of_an_async_function():
    async def main(loop):
        class Model:
            @FaultPlan(delay(0.5), wrong_shape().on(1)).wrap
            async def predict(self, x):
                """What it does."""
                return x + 1

        assert inspect.iscoroutinefunction(Model.predict)
        assert Model.predict.__doc__ == "What it does."
        assert await Model().predict(1) == 2
        assert (await Model().predict(1)).tolist() == [2, 2]
        assert loop.time() == 1.0

    run(main)


def test_faults_of_a_sync_function():
    clock = FakeClock()
    plan = FaultPlan(
        delay(0.5),
        slowdown(3.0).on(1),
        error(OSError).between(2.0, 9.0),
        partial().on(0),
        clock=clock,
        sleep=clock.advance,
    )
    double = Faulty(lambda xs: [2 * x for x in xs], plan)
    assert double([1, 2]) == [2]
    assert clock() == 500_000_000
    assert double([1, 2]) == [2, 4]
    assert clock() == 2_000_000_000
    with pytest.raises(OSError):
        double([1])
    assert plan.injected == {"delay": 3, "partial": 1, "slowdown": 1, "error": 1}


def test_function_without_rows_is_unchanged():
    assert Faulty(lambda: 5, FaultPlan(partial(), row_errors(OSError, rate=1.0)))() == 5


def test_an_array_of_rows_stays_an_array():
    whole = np.zeros((3, 4), np.float32)
    for fault, shape in ((garbage(), (3, 4)), (partial(), (2, 4)), (wrong_shape(), (3, 2, 4))):
        response = Faulty(lambda: whole, FaultPlan(fault))()
        assert (type(response), response.shape, response.dtype) == (np.ndarray, shape, whole.dtype)


# -- killed processes -------------------------------------------------------------------------------------------


def slow_double(inputs):
    time.sleep(float(inputs[0]))  # in the worker process, which can be killed only while it is busy
    return [2 * value for value in inputs]


def echo_or_hang(inputs):
    """Return the inputs, or make the file that they name and hang."""
    if inputs[0]:
        Path(str(inputs[0])).touch()
        threading.Event().wait()
    return list(inputs)


def test_killed_process_fails_only_its_batch(tmp_path):
    """A killed process fails its batch, and the next batch has a new process."""
    begun = tmp_path / "begun"

    async def main(loop):
        plan = FaultPlan(kill(after_s=0.05).on(1))
        faulty = Faulty(si.CpuBackend(echo_or_hang, executor="process"), plan)
        await faulty.start()
        try:
            assert list(await faulty.infer(batch(""))) == [""]
            killed = asyncio.create_task(faulty.infer(batch(str(begun))))
            await until(begun.exists)
            await loop.pass_time(0.05)
            with pytest.raises(si.BackendError, match=f"exit code -{signal.SIGKILL.value}"):
                await killed
            assert list(await faulty.infer(batch(""))) == [""]
        finally:
            await faulty.stop()
        assert plan.injected == {"kill": 1}

    run_held(main)


def test_kill_workers_kills_the_processes():
    async def main():
        backend = si.CpuBackend(slow_double, executor="process", workers=2)
        assert kill_workers(backend) == 0  # no worker has started
        await backend.start()
        try:
            before = {worker._process.pid for worker in backend._threads._workers}
            assert kill_workers(Faulty(backend, FaultPlan())) == 2
            for _ in range(4):  # a batch that was sent before the process had died is lost with it
                with contextlib.suppress(si.BackendError):
                    await backend.infer(batch(0.0))
            assert list(await backend.infer(batch(0.0))) == [0.0]
            after = {worker._process.pid for worker in backend._threads._workers if worker._process is not None}
            assert after - before
        finally:
            await backend.stop(drain=False)

    asyncio.run(main())


def test_no_worker_is_killed_after_the_batch_has_ended():
    async def main():
        plan = FaultPlan(kill(after_s=30.0))
        faulty = Faulty(si.CpuBackend(slow_double, executor="process"), plan)
        await faulty.start()
        assert list(await faulty.infer(batch(0.0))) == [0.0]
        await faulty.stop()
        assert plan.injected == {}

    asyncio.run(main())


# -- checks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: delay(-1.0), "seconds: expected"),
        (lambda: delay(0.1, rate=1.5), "rate: expected a share from 0 to 1"),
        (lambda: delay(0.1, rate="1"), "rate: expected a share from 0 to 1"),
        (lambda: lognormal(0.0, 1.0), "median_s: expected"),
        (lambda: slowdown(0.5), "factor: expected a finite number ≥ 1"),
        (lambda: slowdown(True), "factor: expected a finite number ≥ 1"),
        (lambda: slow_start(2.0, over_s=0.0), "over_s: expected"),
        (lambda: error("gone"), "what: expected an exception"),
        (lambda: row_errors(int, rate=1.0), "what: expected an exception"),
        (lambda: hang(for_s=-1.0), "for_s: expected"),
        (lambda: partial(0), "missing: expected"),
        (lambda: kill(after_s=-1.0), "after_s: expected"),
        (lambda: hang().between(2.0, 2.0), "end_s: expected more seconds"),
        (lambda: hang().on(-1), "calls: expected"),
        (lambda: FaultPlan(0.1), "faults: expected faults"),
        (lambda: FaultPlan(seed=-1), "seed: expected"),
        (lambda: FaultPlan(clock=1), "clock: expected"),
        (lambda: FaultPlan(sleep=1), "sleep: expected"),
        (lambda: Faulty(ScriptedBackend(), None), "plan: expected a FaultPlan"),
        (lambda: Faulty(5, FaultPlan()), "inner: expected a service, a backend or a function"),
        (lambda: Faulty(ScriptedBackend(), FaultPlan(kill())), "inner: expected a CpuBackend with executor='process'"),
        (
            lambda: Faulty(
                si.AdaptiveBatcher(max_batch_size=1).wrap(si.CpuBackend(len, executor="process")), FaultPlan(kill())
            ),
            "faults: expected none of partial, row_errors, kill in front of a service",
        ),
        (lambda: Faulty(len, FaultPlan(hang())), "hang\\(for_s=…\\)"),
        (lambda: Faulty(si.Stack(ScriptedBackend()), FaultPlan(partial())), "none of partial, row_errors"),
        (lambda: kill_workers(si.CpuBackend(len)), "inner: expected a CpuBackend with executor='process'"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_exported_names_are_documented():
    for name in faults.__all__:
        assert getattr(faults, name).__doc__

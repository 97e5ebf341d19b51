"""Calibration: the measurements of a batcher before it accepts requests, in virtual time."""

import asyncio
import gc
import weakref

import numpy as np
import pytest

import streaminfer as si
from streaminfer.batching import Buckets, batch_runner
from streaminfer.batching.service_time.calibration import CalibrationStatistics
from streaminfer.protocols import ExampleInputs
from streaminfer.testing import HANG, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


def affine(size):
    return 0.004 + 0.00025 * size


def stack_of(loop, backend, *, layers=(), **options):
    batcher = si.AdaptiveBatcher(**{"max_batch_size": 16, "slo_s": 0.050, **options})
    return si.Stack(batcher, *layers, backend, clock=loop.clock), batcher


def rounds(sizes, repeats=4):
    """Return the sizes in the order in which they run: each twice, then the repeats from the largest."""
    return [size for size in sizes for _ in range(2)] + sizes[::-1] * (repeats - 1)


async def test_every_size_is_measured(loop):
    """Sizes double up to the largest batch, and the first batch of each size is discarded."""
    backend = ScriptedBackend(duration_s=affine, example=1.0)
    stack, batcher = stack_of(loop, backend, max_batch_size=12)

    async with stack:
        calibration = batcher.statistics().calibration

    assert backend.calibration_sizes == rounds([1, 2, 4, 8, 12])
    assert calibration.durations_s == {0: pytest.approx({size: affine(size) for size in (1, 2, 4, 8, 12)})}
    assert (calibration.skipped, calibration.note) == ({}, "")
    assert calibration.duration_s == pytest.approx(sum(affine(size) for size in backend.calibration_sizes))


async def test_first_batch_of_a_size_is_not_learned(loop):
    """A runtime that plans in the first batch of a size does not make that size look slow."""
    seen = set()

    def duration(size):
        first = size not in seen
        seen.add(size)
        return 3.0 if first else affine(size)

    stack, batcher = stack_of(loop, ScriptedBackend(duration_s=duration, example=1.0))

    async with stack:
        fitted = batcher.service_time.fitted()

    assert fitted.table_s(16)[[1, 8, 16]] == pytest.approx([affine(1), affine(8), affine(16)], rel=0.02)


async def test_inline_batches_run_as_live_ones_do(loop, monkeypatch):
    """A batch that an inline backend completes at once needs no task of its own, and new arrays are not copied."""
    tasks, copied = [], []
    monkeypatch.setattr(batch_runner, "own_arrays", copied.append)

    def double(x):
        tasks.append(asyncio.current_task())
        return x * 2

    backend = si.CpuBackend(double, executor="inline", example=np.zeros(1))
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), backend, clock=loop.clock) as stack:
        await stack(np.zeros(1))

    assert len(tasks) == len(rounds([1, 2, 4])) + 1
    assert set(tasks) <= {None, asyncio.current_task()}
    assert copied == []


async def test_without_an_example_nothing_is_measured(loop):
    backend = ScriptedBackend(duration_s=affine)
    stack, batcher = stack_of(loop, backend)

    async with stack:
        assert loop.now_ns == 0
        assert batcher.statistics().calibration is None
        assert not batcher.service_time.known
        await stack(1.0)

    assert batcher.statistics().released == {"exploration": 1}


async def test_first_burst_is_planned(loop):
    """The first decision knows the durations of batches, and rejects no request that can be on time."""
    stack, batcher = stack_of(loop, ScriptedBackend(duration_s=affine, example=1.0))

    async with stack:
        finish_ns = stack.admission(si.Request(1.0), loop.clock()).predicted_finish_ns
        assert finish_ns - loop.clock() == pytest.approx(affine(1) * 1e9, rel=0.1)
        answers = await asyncio.gather(*(stack(1.0) for _ in range(40)))

    assert answers == [1.0] * 40
    assert batcher.statistics().released.keys() <= {"full", "idle_worker", "planned"}
    assert batcher.statistics().released["full"] == 2


@pytest.mark.parametrize("load", [0.6, 1.3], ids=["under", "over"])
async def test_first_half_second_is_as_punctual_as_later(loop, load):
    """The share on time in the first half second is at most 0.02 below the lowest share of the next three."""
    rng = np.random.default_rng(7)
    rate = load * 16 / affine(16)
    stack, _ = stack_of(loop, ScriptedBackend(duration_s=affine, example=1.0))
    on_time = [[] for _ in range(4)]

    async def call(window):
        try:
            await stack(1.0)
        except si.StreamInferError:
            on_time[window].append(False)
        else:
            on_time[window].append(True)

    async with stack:
        start_s = loop.time()
        calls = []
        due_s = 0.0
        while (due_s := due_s + rng.exponential(1 / rate)) < 2.0:
            await asyncio.sleep(max(start_s + due_s - loop.time(), 0))
            calls.append(asyncio.ensure_future(call(int(due_s / 0.5))))
        await asyncio.gather(*calls)

    shares = [np.mean(window) for window in on_time]
    assert shares[0] >= min(shares[1:]) - 0.02


async def test_calibration_batches_are_not_counted(loop):
    """Neither the batcher, nor its decision log, nor a breaker around the backend counts calibration batches."""
    backend = ScriptedBackend(duration_s=affine, example=1.0)
    breaker = si.CircuitBreaker()
    stack, batcher = stack_of(loop, backend, layers=(breaker,))

    async with stack:
        statistics = batcher.statistics()

    assert (statistics.submitted, statistics.batches, statistics.batch_sizes, statistics.released) == (0, 0, {}, {})
    assert backend.batches == []
    assert backend.calibration_sizes
    assert breaker.statistics().calls == 0
    assert batcher.decision_log().released == {}


async def test_no_step_of_a_script_is_used_up(loop):
    backend = ScriptedBackend([41.0], duration_s=affine, example=1.0)
    stack, _ = stack_of(loop, backend)

    async with stack:
        assert await stack(1.0) == 41.0


async def test_sizes_end_at_twice_the_objective(loop):
    """A size that takes more than twice the objective is the last that is measured; larger ones are not tried."""
    backend = ScriptedBackend(duration_s=lambda size: 0.010 * size, example=1.0)
    stack, batcher = stack_of(loop, backend, max_batch_size=64, slo_s=0.030)

    async with stack:
        calibration = batcher.statistics().calibration

    assert list(calibration.durations_s[0]) == [1, 2, 4, 8]
    assert calibration.skipped == {0: (16, 32, 64)}
    assert "take too long" in str(calibration)


async def test_time_of_measured_batches_is_bounded(loop):
    """Without an objective, larger sizes are skipped once batches, except discarded ones, have taken two seconds."""
    backend = ScriptedBackend(duration_s=lambda size: 0.6, example=1.0)
    stack, batcher = stack_of(loop, backend, max_batch_size=64, slo_s=None)

    async with stack:
        calibration = batcher.statistics().calibration

    assert backend.calibration_sizes == [1, 1, 2, 2, 4, 4, 8, 8]
    assert calibration.skipped == {0: (16, 32, 64)}


async def test_only_preferred_sizes_are_measured(loop):
    backend = ScriptedBackend(duration_s=affine, example=1.0)
    stack, batcher = stack_of(loop, backend, preferred_sizes=[4, 16])

    async with stack:
        assert backend.calibration_sizes == rounds([4, 16])
        assert list(batcher.statistics().calibration.durations_s[0]) == [4, 16]


@pytest.mark.parametrize("limits", [{"max_batch_bytes": 4 * 64}, {"row_cost": np.size, "max_batch_cost": 4 * 8}])
async def test_bytes_and_costs_bound_the_sizes(loop, limits):
    """If limits of bytes or costs allow four rows, no larger batch is built, reported as too slow or tried again."""
    backend = ScriptedBackend(duration_s=affine, example=np.zeros(8))
    stack, batcher = stack_of(loop, backend, **limits)

    async with stack:
        calibration = batcher.statistics().calibration

    assert max(backend.calibration_sizes) == 4
    assert list(calibration.durations_s[0]) == [1, 2, 4]
    assert (calibration.skipped, calibration.note) == ({}, "")
    backend.calibration_sizes.clear()

    async with stack:
        assert backend.calibration_sizes == [1]
        assert batcher.statistics().calibration.skipped == {}


async def test_empty_example_does_not_fit_buckets(loop):
    """An empty example is an error, because it cannot be repeated up to the length of a bucket."""
    stack, _ = stack_of(loop, ScriptedBackend(example=np.zeros((0, 2))), buckets=(4, 16))

    with pytest.raises(ValueError, match=r"^example: expected one that is not empty along axis 0.*\(0, 2\)"):
        await stack.start()


async def test_each_bucket_is_measured(loop):
    """The example is repeated or cut to a length of each bucket, and the batcher pads it like a live row."""
    shapes = set()
    backend = ScriptedBackend(example={"tokens": np.arange(1, 6)})
    take = backend._run

    async def spy(batch, step):
        shapes.add((batch.inputs["tokens"].shape[1], batch.inputs["mask"].shape[1], int(batch.inputs["mask"][0].sum())))
        await asyncio.sleep(1e-4 * batch.inputs["tokens"].size)
        return await take(batch, step)

    backend._run = spy
    stack, batcher = stack_of(loop, backend, max_batch_size=4, buckets=Buckets((4, 16), mask="mask"))

    async with stack:
        calibration = batcher.statistics().calibration

    assert shapes == {(4, 4, 3), (16, 16, 15)}
    assert calibration.durations_s[16][4] == pytest.approx(4 * calibration.durations_s[4][4])
    assert batcher.service_time[4].known
    assert batcher.service_time[16].known


async def test_restart_measures_nothing_again(loop):
    """A restart keeps the measured durations, and runs one batch to show that the workers run."""
    backend = ScriptedBackend(duration_s=affine, example=1.0)
    stack, batcher = stack_of(loop, backend)
    async with stack:
        before = batcher.statistics().calibration
    backend.calibration_sizes.clear()

    async with stack:
        assert backend.calibration_sizes == [1]
        assert batcher.statistics().calibration.durations_s == before.durations_s


async def test_restart_skips_sizes_that_took_too_long(loop):
    backend = ScriptedBackend(duration_s=lambda size: 0.010 * size, example=1.0)
    stack, batcher = stack_of(loop, backend, max_batch_size=64, slo_s=0.030)
    async with stack:
        pass
    backend.calibration_sizes.clear()

    async with stack:
        assert backend.calibration_sizes == [1]
        assert batcher.statistics().calibration.skipped == {0: (16, 32, 64)}


async def test_greedy_restart_skips_sizes_that_took_too_long(loop):
    """With the greedy policy, a restart does not try sizes that took too long before."""
    backend = ScriptedBackend(duration_s=lambda size: 0.010 * size, example=1.0)
    stack, batcher = stack_of(loop, backend, max_batch_size=64, slo_s=0.030, policy="greedy")
    async with stack:
        assert backend.calibration_sizes == [1, 2, 4, 8]
    backend.calibration_sizes.clear()

    async with stack:
        assert backend.calibration_sizes == [1]
        assert batcher.statistics().calibration.skipped == {0: (16, 32, 64)}


async def test_restart_measures_sizes_that_are_new(loop):
    """After ``max_batch_size`` was raised, the next start measures the sizes above the old one."""
    backend = ScriptedBackend(duration_s=affine, example=1.0)
    stack, batcher = stack_of(loop, backend, max_batch_size=4)
    async with stack:
        batcher.reconfigure(max_batch_size=16)
        assert await stack(1.0) == 1.0
    backend.calibration_sizes.clear()

    async with stack:
        assert backend.calibration_sizes == rounds([8, 16])
        assert list(batcher.statistics().calibration.durations_s[0]) == [1, 2, 4, 8, 16]


async def test_non_learning_policy_is_warmed(loop):
    """With the greedy policy, a start runs each size once, and a restart runs only the smallest one."""
    backend = ScriptedBackend(duration_s=affine, example=1.0)
    stack, batcher = stack_of(loop, backend, policy="greedy")
    async with stack:
        assert backend.calibration_sizes == [1, 2, 4, 8, 16]
        assert batcher.statistics().calibration.durations_s == {}
    async with stack:
        assert backend.calibration_sizes == [1, 2, 4, 8, 16, 1]


async def test_stack_without_a_batcher_is_warmed(loop):
    backend = ScriptedBackend(duration_s=affine, example=1.0)
    async with si.Stack(backend, clock=loop.clock) as stack:
        assert backend.calibration_sizes == [1]
        assert await stack(1.0) == 1.0


async def fail(batch):
    raise si.BackendError("no such kernel")


async def test_given_example_that_fails_ends_the_start(loop):
    backend = ScriptedBackend(example=1.0)
    backend._calibrate = fail
    stack, _ = stack_of(loop, backend)

    with pytest.raises(
        si.BackendError, match=r"'ScriptedBackend' failed on a calibration batch of its example=: no such"
    ):
        await stack.start()

    assert not stack.ready
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_failed_row_fails_the_calibration(loop):
    backend = ScriptedBackend(then=lambda batch: [ValueError("negative")] * len(batch), example=1.0)
    stack, _ = stack_of(loop, backend)

    with pytest.raises(si.BackendError, match="ValueError: negative"):
        await stack.start()


def failing_from(size, error):
    """Return a batch function that fails for batches of ``size`` rows or more."""

    def answer(batch):
        if len(batch) >= size:
            raise error
        return [1.0] * len(batch)

    return answer


@pytest.mark.parametrize("policy", ["lookahead", "greedy"])
async def test_size_that_fails_ends_the_sizes(loop, policy, caplog):
    """A size that fails is the last one, and its batch is not sent again in parts, which would hide the failure.

    A warning says that live batches of this size are sent again in parts.
    """
    backend = ScriptedBackend(then=failing_from(4, si.BackendError("no kernel")), duration_s=affine, example=1.0)
    stack, batcher = stack_of(loop, backend, policy=policy)

    async with stack:
        calibration = batcher.statistics().calibration
        assert await asyncio.gather(*(stack(1.0) for _ in range(4))) == [1.0] * 4

    assert max(backend.calibration_sizes) == 4
    assert backend.calibration_sizes.count(4) == 1
    assert (calibration.skipped, calibration.note) == ({}, "a batch of 4 failed: no kernel")
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.getMessage() == (
        "backend 'ScriptedBackend': a batch of 4 failed: no kernel; live batches of this size are sent again in parts"
    )


@pytest.mark.parametrize("policy", ["lookahead", "greedy"])
async def test_out_of_memory_limits_live_batches(loop, policy, caplog):
    """A start succeeds although a size needs too much memory; live batches are smaller, also after a restart."""
    backend = ScriptedBackend(then=failing_from(8, MemoryError("arena")), duration_s=affine, example=1.0)
    stack, batcher = stack_of(loop, backend, policy=policy)

    for _ in range(2):
        async with stack:
            statistics = batcher.statistics()
            assert await asyncio.gather(*(stack(1.0) for _ in range(16))) == [1.0] * 16
            assert batcher.statistics().split_batches == 0

    assert statistics.memory_limits == {0: 4}
    assert statistics.calibration.note == "a batch of 8 needs more memory than there is"
    assert statistics.calibration.skipped == {}
    assert max(backend.batch_sizes) == 4
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert set(warnings) == {
        "backend 'ScriptedBackend': a batch of 8 needs more memory than there is; live batches have fewer rows"
    }


@pytest.mark.parametrize("failing", [2, 5], ids=["first repeat", "last repeat"])
async def test_out_of_memory_on_a_repeat_limits_too(loop, failing):
    """Live batches are also limited if only a repeated batch runs out of memory.

    Another process may take the memory between two batches of a size.
    """
    left = [failing]

    def answer(batch):
        if len(batch) >= 8:
            left[0] -= 1
            if left[0] <= 0:
                raise MemoryError("arena")
        return [1.0] * len(batch)

    stack, batcher = stack_of(loop, ScriptedBackend(then=answer, duration_s=affine, example=1.0), max_batch_size=8)

    async with stack:
        assert batcher.statistics().memory_limits == {0: 4}
        assert await asyncio.gather(*(stack(1.0) for _ in range(16))) == [1.0] * 16
        assert batcher.statistics().split_batches == 0


async def test_memory_is_tried_again_at_the_next_start(loop):
    """The next start tries all sizes again, because more memory may be free."""
    backend = ScriptedBackend(then=failing_from(8, MemoryError("arena")), duration_s=affine, example=1.0)
    stack, batcher = stack_of(loop, backend)
    async with stack:
        batcher.reconfigure(max_batch_size=32)
    backend._then = failing_from(64, MemoryError("arena"))

    async with stack:
        assert list(batcher.statistics().calibration.durations_s[0]) == [1, 2, 4, 8, 16, 32]
        assert batcher.statistics().calibration.note == ""
        assert batcher.statistics().memory_limits == {}


class Guessing(ScriptedBackend):
    """Backend that guesses its example inputs, and accepts inputs of at least the length ``shortest``."""

    shortest = 1
    free_axes = {}  # noqa: RUF012 - replaced, never changed

    def __init__(self, **options):
        super().__init__(**options)
        self.shapes = []

    def example_inputs(self):
        return ExampleInputs(np.zeros(1), self._try, False, self.free_axes, np.zeros)

    async def _try(self, batch):
        self.shapes.append(batch.inputs.shape)
        if batch.inputs.shape[1] < self.shortest:
            raise si.BackendError("too short")
        return await self._calibrate(batch)


async def test_guess_without_open_sizes_is_measured(loop):
    backend = Guessing(duration_s=affine)
    stack, batcher = stack_of(loop, backend)

    async with stack:
        assert batcher.service_time.known


async def test_failed_guess_logs_one_warning(loop, caplog):
    """If guessed inputs fail, the start continues with a warning, and the policy learns from live batches."""
    backend = Guessing(duration_s=affine)
    backend.shortest = 2
    stack, batcher = stack_of(loop, backend)

    async with stack:
        assert stack.ready
        assert "example= says" in batcher.statistics().calibration.note
        assert await stack(np.zeros(5)) is not None

    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "'Guessing' failed on a calibration batch of zeros" in warning.message
    assert batcher.statistics().released == {"exploration": 1}


async def test_open_sizes_are_tried_and_not_learned(loop, caplog):
    """Batches of the first open size that the model accepts warm it, but teach nothing about real requests."""
    backend = Guessing(duration_s=affine)
    backend.shortest, backend.free_axes = 100, {"x": (0,)}
    stack, batcher = stack_of(loop, backend)

    async with stack:
        assert not batcher.service_time.known

    assert backend.calibration_sizes == [1, 1, 2, 4, 8, 16]
    assert backend.shapes[-1] == (16, 128)
    assert "leaves sizes open" in batcher.statistics().calibration.note
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


async def test_buckets_name_open_sizes(loop):
    """Durations are learned if the buckets define the lengths of the open axis, because these are no guess."""
    backend = Guessing(duration_s=affine)
    backend.free_axes = {"x": (0,)}
    stack, batcher = stack_of(loop, backend, max_batch_size=2, buckets=(8, 32))

    async with stack:
        assert batcher.service_time[32].known

    assert {shape[1] for shape in backend.shapes} == {8, 32}


async def test_example_is_checked_as_requests_are(loop):
    backend = ScriptedBackend(example=1.0)

    def validate(request):
        raise si.InvalidInput("input 'x': expected float32[3]")

    backend.validate = validate
    stack, _ = stack_of(loop, backend)

    with pytest.raises(ValueError, match=r"^example: input 'x': expected float32\[3\]"):
        await stack.start()


async def test_a_padded_example_names_the_buckets(loop):
    """The size in the message is of the padding, which the user did not write, so the message says who pads."""
    backend = ScriptedBackend(example=np.zeros(3))
    backend.validate = si.CpuBackend(abs, example=np.zeros(3)).validate
    stack, _ = stack_of(loop, backend, buckets=(2, 4))

    with pytest.raises(ValueError, match=r"^example, padded along axis 0 by buckets= \(free_axes=, .*\): input "):
        await stack.start()


async def test_cancelled_start_ends_its_batch(loop):
    """A cancelled start ends the batch that it runs, and can be repeated."""
    backend = ScriptedBackend(then=lambda batch: [1.0] * len(batch), duration_s=0.010, example=1.0)
    stack, _ = stack_of(loop, backend)
    starting = asyncio.ensure_future(stack.start())
    await asyncio.sleep(0.025)
    assert backend.running == 1

    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting

    assert backend.running == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not stack.ready
    async with stack:
        assert await stack(1.0) == 1.0


@pytest.mark.parametrize("turns", range(6))
async def test_start_cancelled_as_its_batch_ends(loop, turns):
    """A start can be cancelled in any turn of the event loop around the end of its batch."""
    stack, _ = stack_of(loop, ScriptedBackend(duration_s=0.010, example=1.0))
    starting = asyncio.ensure_future(stack.start())
    await asyncio.sleep(0.010)
    for _ in range(turns):
        await asyncio.sleep(0)

    starting.cancel()
    await asyncio.wait({starting}, timeout=1.0)

    assert starting.cancelled()
    async with stack:
        assert await stack(1.0) == 1.0


async def test_start_of_a_hanging_backend_can_time_out(loop):
    backend = ScriptedBackend(example=1.0)

    async def hang(batch):
        return await backend._run(batch, HANG)

    backend._calibrate = hang
    stack, _ = stack_of(loop, backend)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3.0):
            await stack.start()

    assert backend.running == 0


async def test_models_are_measured_in_turn(loop):
    """Stacks that start at the same time do not slow each other's batches down."""
    backend = ScriptedBackend(duration_s=lambda size: 0.010 * backend.running, example=1.0)
    stacks = [stack_of(loop, backend, max_batch_size=2) for _ in range(3)]

    await asyncio.gather(*(stack.start() for stack, _ in stacks))

    for stack, batcher in stacks:
        assert batcher.statistics().calibration.durations_s == {0: pytest.approx({1: 0.010, 2: 0.010})}
        await stack.stop()


async def test_requests_do_not_wait_for_another_start(loop):
    """While one stack measures a shared backend, the other stack continues to serve."""
    backend = ScriptedBackend(duration_s=affine, example=1.0)
    first, _ = stack_of(loop, backend)
    second, _ = stack_of(loop, backend)
    async with first:
        starting = asyncio.ensure_future(second.start())
        await asyncio.sleep(0.001)
        assert await first(1.0) == 1.0
        assert not starting.done()
        await starting
    await second.stop()


def test_report_is_readable():
    report = CalibrationStatistics(0.5, {16: {1: 0.001, 8: 0.0042}, 64: {1: 0.002}}, {64: (8,)}, "a <note>")

    assert str(report) == (
        "batches of length 16 of 1, 8 take 1 ms to 4.2 ms; "
        "batches of length 64 of 1 take 2 ms (without 8, which take too long); a <note>"
    )
    assert "<td>16</td><td>8</td><td>4.2 ms</td>" in report._repr_html_()
    assert "a &lt;note&gt;" in report._repr_html_()


def test_concurrent_starts_keep_no_loop_alive():
    """Starts that waited for each other do not keep their event loop alive.

    The lock for which they waited refers to the loop, so the lock must not outlive them.
    """

    async def main(loop):
        stacks = [stack_of(loop, ScriptedBackend(example=1.0, duration_s=0.01))[0] for _ in range(2)]
        await asyncio.gather(*(stack.start() for stack in stacks))
        for stack in stacks:
            await stack.stop()
        return weakref.ref(loop)

    left = run(main)
    gc.collect()

    assert left() is None

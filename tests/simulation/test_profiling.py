"""`profile`: the batches that it runs, the service time that it derives from them, and its errors."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streaminfer as si
from streaminfer.batching.assembly.buckets import Buckets
from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.simulation.profiling import profile
from streaminfer.testing import HANG, ScriptedBackend, run


def line_s(size):
    return 0.004 + 0.00025 * size


def profiled(backend, examples=(1.0,), **options):
    async def main(loop):
        started_ns = loop.now_ns
        options.setdefault("max_batch_size", 64)
        options.setdefault("clock", loop.clock)
        found = await profile(backend, list(examples), **options)
        return found, (loop.now_ns - started_ns) / 1e9

    return run(main)


def test_noiseless_device_is_measured_exactly():
    backend = ScriptedBackend(duration_s=line_s)
    found, _ = profiled(backend, budget_s=5.0)
    assert sorted(set(backend.batch_sizes)) == [1, 2, 4, 8, 16, 32, 64]
    for size in range(1, 65):
        assert found.seconds(size) == pytest.approx(line_s(size), rel=1e-6)
    assert found.best_batch_size(64) == 64


def test_largest_size_is_measured():
    """The largest batch size is measured even if it is no power of two."""
    backend = ScriptedBackend(duration_s=line_s)
    profiled(backend, max_batch_size=48)
    assert sorted(set(backend.batch_sizes)) == [1, 2, 4, 8, 16, 32, 48]


def test_batch_size_can_be_a_number_of_numpy():
    backend = ScriptedBackend(duration_s=line_s)
    profiled(backend, max_batch_size=np.int64(3))
    assert sorted(set(backend.batch_sizes)) == [1, 2, 3]


def test_profile_of_batch_size_one_only():
    backend = ScriptedBackend(duration_s=line_s)
    found, _ = profiled(backend, max_batch_size=1)
    assert set(backend.batch_sizes) == {1}
    assert found.seconds(1) == pytest.approx(line_s(1))


def test_the_first_batch_of_each_size_does_not_count():
    seen = set()

    def duration_s(size):
        first = size not in seen
        seen.add(size)
        return line_s(size) + (3.0 if first else 0.0)  # compiling takes longer than the whole budget

    found, _ = profiled(ScriptedBackend(duration_s=duration_s), budget_s=2.0)
    for size in (1, 2, 4, 8, 16, 32, 64):
        assert found.seconds(size) == pytest.approx(line_s(size), rel=1e-6)


def test_stalls_do_not_move_a_median():
    batches = iter(range(10_000))
    stalling = ScriptedBackend(duration_s=lambda size: line_s(size) * (8 if next(batches) % 5 == 4 else 1))
    found, _ = profiled(stalling, max_batch_size=16, budget_s=10.0)
    for size in (1, 2, 4, 8, 16):
        assert found.seconds(size) == pytest.approx(line_s(size), rel=1e-6)


def test_faster_larger_batch_keeps_curve_monotone():
    """A larger batch that seems faster does not make the curve of the service time fall."""
    times = {1: 0.010, 2: 0.006, 4: 0.012}
    found, _ = profiled(ScriptedBackend(duration_s=times.__getitem__), max_batch_size=4)
    assert list(found.times_s) == sorted(found.times_s)
    assert found.seconds(1) == pytest.approx((0.010 * 0.006) ** 0.5, rel=0.2)
    assert found.seconds(4) == pytest.approx(0.012)


def test_best_batch_size_is_1_if_batching_is_slower():
    """The best batch size is 1 for BlazeFace on a CPU, which takes 3.04 ms per row alone and 4.93 ms at size 32."""
    a_row_s = {1: 0.00304, 2: 0.0033, 4: 0.00356, 8: 0.00378, 16: 0.00414, 32: 0.00493}
    found, took_s = profiled(ScriptedBackend(duration_s=lambda size: size * a_row_s[size]), max_batch_size=32)
    assert found.best_batch_size(32) == 1
    assert took_s <= 3.0


@given(st.floats(1e-4, 0.2), st.floats(1e-5, 0.05), st.floats(0.05, 5.0), st.integers(1, 100))
@settings(max_examples=40, deadline=None)
def test_budget_covers_all_timed_batches(setup_s, per_item_s, budget_s, largest):
    """All timed batches fit into the budget; the first batch of each size is not timed."""

    def duration_s(size):
        return setup_s + per_item_s * size

    backend = ScriptedBackend(duration_s=duration_s)
    found, took_s = profiled(backend, max_batch_size=largest, budget_s=budget_s)
    first_s = sum(duration_s(size) for size in set(backend.batch_sizes))
    assert took_s - first_s <= max(budget_s, duration_s(1)) + 1e-6
    assert first_s <= max(budget_s / 2, duration_s(1)) + 1e-6
    for size in set(backend.batch_sizes):
        assert found.seconds(size) == pytest.approx(duration_s(size), rel=1e-3)
    assert all(backend.batch_sizes.count(size) <= 26 for size in backend.batch_sizes)


def test_small_sizes_run_often_and_none_is_forgotten():
    """Small batch sizes run more often than large ones, and no size is forgotten."""
    backend = ScriptedBackend(duration_s=lambda size: 0.001 * size)
    profiled(backend, max_batch_size=32, budget_s=0.5)
    counts = [backend.batch_sizes.count(size) for size in (1, 2, 4, 8, 16, 32)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= 2
    assert counts[0] == 26


def test_sizes_too_slow_for_the_budget_are_skipped():
    backend = ScriptedBackend(duration_s=lambda size: 0.1 * size)
    found, took_s = profiled(backend, max_batch_size=64, budget_s=2.0)
    assert max(backend.batch_sizes) == 4
    assert took_s <= 2.0 + 0.7
    assert found.seconds(64) == pytest.approx(6.4, rel=0.1)


def test_rows_are_stacked_on_axes_of_backend():
    """Rows are stacked as the batcher would stack them, on the batch axes of the backend."""
    backend = ScriptedBackend(batch_axes={"state": 1})
    examples = [{"input": np.full(3, float(n)), "state": np.zeros((2, 4))} for n in range(2)]
    profiled(backend, examples, max_batch_size=4, budget_s=0.1)
    last = backend.batches[-1].inputs
    assert last["state"].shape == (2, len(backend.batches[-1]), 4)
    four = next(batch for batch in backend.batches if len(batch) == 4)
    assert four.inputs["input"][:, 0].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert [row.inputs["input"][0] for row in four.rows] == [0.0, 1.0, 0.0, 1.0]


def test_profiled_rows_have_callers_that_wait():
    """A backend that skips the rows without a caller skips none of a profile."""
    backend = ScriptedBackend()
    profiled(backend, max_batch_size=4)
    assert not any(batch.left(0) for batch in backend.batches)


def test_each_bucket_with_examples_has_curve():
    """With buckets, there is a curve for each length that has examples."""

    def duration_s(batch_size):
        length = backend.batches[-1].inputs["x"].shape[1]
        return 0.001 * length + 0.0005 * length * batch_size

    backend = ScriptedBackend(duration_s=duration_s, then=lambda batch: [0] * len(batch.rows))
    examples = [{"x": np.ones(length)} for length in (3, 4, 7, 2)]
    found, took_s = profiled(
        backend, examples, max_batch_size=8, budget_s=1.0, buckets=Buckets((4, 8, 16), mask="mask")
    )
    assert list(found) == [4, 8]
    for length, times in found.items():
        assert times.seconds(8) == pytest.approx(length * 0.005)
        assert times.seconds(1) == pytest.approx(length * 0.0015)
    assert took_s <= 1.5
    short = next(batch for batch in backend.batches if len(batch) == 4)
    np.testing.assert_array_equal(short.inputs["mask"], [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    si.AdaptiveBatcher(max_batch_size=8, policy="lookahead", buckets=(4, 8, 16), service_time=found)


def test_elements_that_buckets_allow_bound_sizes():
    """The number of elements that the buckets allow bounds the batch sizes."""
    backend = ScriptedBackend(then=lambda batch: [0] * len(batch.rows))
    profiled(backend, [np.ones(16), np.ones(3)], max_batch_size=8, buckets=Buckets((4, 16), max_elements=32))
    by_length = {}
    for batch in backend.batches:
        by_length.setdefault(batch.inputs.shape[1], set()).add(len(batch))
    assert by_length == {4: {1, 2, 4, 8}, 16: {1, 2}}


def test_compiled_model_sees_only_its_sizes():
    """A model that is compiled for some batch sizes sees no others."""
    backend = ScriptedBackend(duration_s=line_s)
    found, _ = profiled(backend, max_batch_size=24, preferred_sizes=(4, 24))
    assert set(backend.batch_sizes) == {4, 24}
    assert found.seconds(4) == pytest.approx(line_s(4))
    assert found.seconds(24) == pytest.approx(line_s(24))


def test_without_stacking_the_model_gets_lists():
    seen = []

    async def function(rows):
        seen.append(rows)
        await asyncio.sleep(line_s(len(rows)))
        return rows

    found, _ = profiled(function, ["one", [2, 3]], max_batch_size=4, stack=False)
    assert seen[0] == ["one"]
    assert ["one", [2, 3], "one", [2, 3]] in seen
    assert found.seconds(4) == pytest.approx(line_s(4))


def test_sync_function_lets_other_tasks_run():
    """While a synchronous function is profiled, other tasks run between its calls."""

    async def main(loop):
        turns = 0

        async def other():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        calls = []

        def double(x):
            calls.append(len(x))
            loop.now_ns += round(1e9 * line_s(len(x)))
            return 2 * x

        found = await profile(double, [1.0], max_batch_size=8, clock=loop.clock)
        task.cancel()
        return found, turns, len(calls)

    found, turns, calls = run(main)
    assert turns >= calls - 1
    assert found.seconds(8) == pytest.approx(line_s(8))


def test_instant_function_has_positive_time():
    """A function that takes no time at all has a positive service time."""
    found, _ = profiled(lambda x: x, max_batch_size=4)
    assert found.seconds(1) == pytest.approx(1e-9)


def test_learning_starts_from_the_profile():
    """An adaptive batcher that starts from a profile plans its first live batch."""

    async def main(loop):
        backend = ScriptedBackend(duration_s=line_s)
        found = await profile(backend, [1.0], max_batch_size=32, clock=loop.clock)
        batcher = si.AdaptiveBatcher(
            max_batch_size=32, slo_s=0.05, policy="lookahead", service_time=found, clock=loop.clock
        )
        service = batcher.wrap(backend)
        await asyncio.gather(*(service.call(si.Request(1.0)) for _ in range(32)))
        return batcher.service_time.fitted(), backend.batch_sizes[-1]

    fitted, last = run(main)
    assert isinstance(fitted, ServiceTime)
    assert last == 32  # the first live batch is planned, not a first measurement
    assert fitted.seconds(8) == pytest.approx(line_s(8), rel=0.01)


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (ZeroDivisionError("the model"), ZeroDivisionError),
        ([ZeroDivisionError("the row")], ZeroDivisionError),
        ([1.0, 2.0], si.BackendError),
        (None, si.BackendError),
    ],
)
def test_model_errors_are_raised(step, error):
    with pytest.raises(error):
        profiled(ScriptedBackend(step), max_batch_size=4)


def test_cancelling_cancels_the_batch():
    async def main(loop):
        backend = ScriptedBackend(HANG)
        task = asyncio.ensure_future(profile(backend, [1.0], max_batch_size=4, clock=loop.clock))
        await asyncio.sleep(1.0)
        assert backend.running == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend.running == 0

    run(main)


def test_examples_are_checked_against_the_model():
    class Strict(ScriptedBackend):
        def validate(self, request):
            raise si.InvalidInput(f"input: no {request.inputs}")

    backend = Strict()
    with pytest.raises(si.InvalidInput, match=r"no 1\.0"):
        profiled(backend)
    assert backend.batches == []


@pytest.mark.parametrize(
    ("examples", "options", "error", "words"),
    [
        ([], {}, ValueError, "examples: expected"),
        ([1.0, "a"], {}, ValueError, r"examples\[1\]: expected"),
        ([np.zeros(2), np.zeros(3)], {}, ValueError, r"examples\[1\]"),
        ([object()], {}, si.InvalidInput, "cannot stack"),
        ([1.0], {"max_batch_size": 0}, ValueError, "max_batch_size"),
        ([1.0], {"budget_s": 0.0}, ValueError, "budget_s"),
        ([1.0], {"budget_s": "1"}, TypeError, "budget_s"),
        ([1.0], {"stack": 1}, TypeError, "stack"),
        ([1.0], {"clock": 5}, TypeError, "clock"),
        ([np.zeros(2)], {"buckets": (4, 2)}, ValueError, "lengths"),
        ([np.zeros(5)], {"buckets": (2, 4)}, si.InvalidInput, "longest"),
        ([1.0], {"preferred_sizes": (2, 1)}, ValueError, "preferred_sizes"),
    ],
)
def test_arguments_are_checked(examples, options, error, words):
    with pytest.raises(error, match=words):
        profiled(ScriptedBackend(), examples, **options)


def test_examples_and_model_types_are_checked():
    """Examples must be a list, and the model must be callable."""

    async def main(loop):
        with pytest.raises(TypeError, match="examples: expected"):
            await profile(ScriptedBackend(), 1.0, max_batch_size=4)
        with pytest.raises(TypeError, match="inner: expected"):
            await profile("model", [1.0], max_batch_size=4)

    run(main)

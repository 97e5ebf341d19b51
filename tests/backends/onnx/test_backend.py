"""OnnxBackend on small models: checks, results, failures, cancellation, life cycle."""

import asyncio
import gc
import threading

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, helper
from onnx import TensorProto as Tensor

from streaminfer import AdaptiveBatcher, Stack, batching, errors
from streaminfer.backends import OnnxBackend
from streaminfer.backends.onnx.session import SessionWorker
from streaminfer.request import Request

PATIENCE_S = 30
F32 = np.float32


def run(main):
    return asyncio.run(asyncio.wait_for(main, PATIENCE_S))


def infer(backend, *batches):
    """Start the backend, run the batches, stop the backend, and return the results."""

    async def main():
        await backend.start()
        try:
            return [await backend.infer(batch) for batch in batches]
        finally:
            await backend.stop(drain=True)

    return run(main())


# ---------------------------------------------------------------------------------------------- checks and results


def test_requests_are_checked_against_the_model(doubling):
    backend = OnnxBackend(doubling, non_finite="reject")
    backend.validate(Request(np.zeros(5, F32)))
    backend.validate(Request({"x": np.zeros(5, F32)}))
    for inputs, what in (
        (np.zeros(5), r"input 'x': expected float32\[n\], got float64\[5\]"),
        (np.full(5, np.nan, F32), "got 5 NaN or infinite"),
        ({"z": np.zeros(5, F32)}, "no such input"),
    ):
        with pytest.raises(errors.InvalidInput, match=what):
            backend.validate(Request(inputs))


@pytest.mark.parametrize(
    ("element_type", "dtype"),
    [
        (Tensor.FLOAT16, np.float16),
        (Tensor.FLOAT, np.float32),
        (Tensor.DOUBLE, np.float64),
        (Tensor.INT8, np.int8),
        (Tensor.INT16, np.int16),
        (Tensor.INT32, np.int32),
        (Tensor.INT64, np.int64),
        (Tensor.UINT8, np.uint8),
        (Tensor.UINT16, np.uint16),
        (Tensor.UINT32, np.uint32),
        (Tensor.UINT64, np.uint64),
        (Tensor.BOOL, np.bool_),
    ],
)
def test_every_dtype_round_trips(identity, batch, element_type, dtype):
    backend = OnnxBackend(identity(element_type, ["batch"]))
    rows = [dtype(0), dtype(1), dtype(1)]
    for row in rows:
        backend.validate(Request(row))
    (answers,) = infer(backend, batch(np.stack(rows)))
    assert [answer.dtype for answer in answers] == [dtype] * 3
    assert answers == rows


def test_array_layout_does_not_change_the_result(doubling, batch, ramp):
    wanted = ramp(3, 4) * 2
    read_only = ramp(3, 4)
    read_only.flags.writeable = False
    layouts = [np.asfortranarray(ramp(3, 4)), np.repeat(ramp(3, 4), 2, axis=1)[:, ::2], read_only]
    for rows in infer(OnnxBackend(doubling), *map(batch, layouts), batch({"x": ramp(3, 4)}, rows=3)):
        assert np.array_equal(rows, wanted)


def test_rows_are_views_on_the_batch_axis(build_model, batch, ramp):
    """Each row is a view of the outputs, taken along their batch axis."""
    model = build_model(
        [helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]), helper.make_node("Neg", ["x"], ["n"])],
        [("x", Tensor.FLOAT, ["batch", 3])],
        [("t", Tensor.FLOAT, [3, "batch"]), ("n", Tensor.FLOAT, ["batch", 3])],
    )
    backend = OnnxBackend(model, batch_axes={"t": 1})
    assert dict(backend.batch_axes) == {"x": 0}
    assert [spec.batch_axis for spec in backend.outputs] == [1, 0]
    (rows,) = infer(backend, batch(ramp(2, 3)))
    assert [list(row) for row in rows] == [["t", "n"]] * 2
    for number, row in enumerate(rows):
        assert np.array_equal(row["t"], ramp(2, 3)[number])
        assert np.array_equal(row["n"], -ramp(2, 3)[number])
    assert rows[0]["t"].base is rows[1]["t"].base is not None


def test_list_outputs_are_split_by_row(build_model, batch):
    model = build_model(
        [helper.make_node("ZipMap", ["x"], ["z"], domain="ai.onnx.ml", classlabels_strings=["no", "yes"])],
        [("x", Tensor.FLOAT, ["batch", 2])],
        [
            helper.make_value_info(
                "z",
                helper.make_sequence_type_proto(
                    helper.make_map_type_proto(Tensor.STRING, helper.make_tensor_type_proto(Tensor.FLOAT, []))
                ),
            )
        ],
        domains=[("ai.onnx.ml", 3)],
    )
    backend = OnnxBackend(model)
    assert backend.outputs[0].dtype is None
    assert "z sequence[]" in repr(backend)
    (rows,) = infer(backend, batch(np.array([[0.25, 0.75], [1, 0]], F32)))
    assert rows == [{"no": 0.25, "yes": 0.75}, {"no": 1.0, "yes": 0.0}]


def test_shared_inputs_are_fed_to_every_run(build_model, batch, ramp):
    model = build_model(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        [("x", Tensor.FLOAT, ["batch", "n"]), ("factor", Tensor.FLOAT, [])],
        [("y", Tensor.FLOAT, ["batch", "n"])],
    )
    factor = np.array(3, F32)
    backend = OnnxBackend(model, shared_inputs={"factor": factor}, warmup=(2,))
    factor[...] = 0
    backend.validate(Request(np.zeros(4, F32)))
    with pytest.raises(errors.InvalidInput, match=r"'factor'.*the whole batch shares it"):
        backend.validate(Request({"x": np.zeros(4, F32), "factor": factor}))
    for rows in infer(backend, batch(ramp(2, 3)), batch({"x": ramp(2, 3)}, rows=2)):
        assert np.array_equal(rows, ramp(2, 3) * 3)
    with pytest.raises(ValueError, match=r"shared_inputs\['factor'\]: expected float32\[\], got float64\[\]"):
        OnnxBackend(model, shared_inputs={"factor": np.array(3.0)})
    with pytest.raises(ValueError, match="shared_inputs: expected a value for input 'factor', got none"):
        OnnxBackend(model)


def test_fixed_batch_of_one_runs_once_per_row(build_model, batch):
    """A model with a fixed batch size of one runs once per row.

    A row that fails (an index out of the table) fails alone.
    """
    model = build_model(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        [("i", Tensor.INT64, [1, "n"])],
        [("y", Tensor.FLOAT, [1, "n"])],
        initializers=[helper.make_tensor("table", Tensor.FLOAT, [3], [10.0, 20.0, 30.0])],
    )
    backend = OnnxBackend(model, warmup=(1, 8))
    assert "one row a run" in repr(backend)
    (rows,) = infer(backend, batch(np.array([[0, 1], [7, 0], [2, 2]])))
    assert [rows[0].tolist(), rows[2].tolist()] == [[10, 20], [30, 30]]
    assert isinstance(rows[1], errors.BackendError)
    assert "out of data bounds" in str(rows[1].__cause__)
    assert backend.statistics().errors == 0
    assert backend.statistics().rows == 3


def test_onnxruntime_error_names_the_model(build_model, batch, capfd):
    model = build_model(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        [("i", Tensor.INT64, ["batch"])],
        [("y", Tensor.FLOAT, ["batch"])],
        initializers=[helper.make_tensor("table", Tensor.FLOAT, [3], [10.0, 20.0, 30.0])],
    )
    backend = OnnxBackend(model)
    with pytest.raises(errors.BackendError, match=r"bytes failed on a batch of 2: InvalidArgument: .*bounds") as caught:
        infer(backend, batch(np.array([0, 3])))
    assert type(caught.value.__cause__).__name__ == "InvalidArgument"
    assert backend.statistics().errors == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("inputs", "what"),
    [
        ([np.zeros(3, F32)] * 2, r"expected a batch of stacked arrays for 'x', got list .*stack=True"),
        (ValueError("cannot stack"), "failed on a batch of 2: ValueError: cannot stack"),
        (errors.BackendError("its own words"), "^its own words$"),
        (np.zeros((3, 3), F32), r"output 'y': expected 2 rows on axis 0, got float32\[3, 3\]"),
    ],
)
def test_a_batch_that_cannot_be_read_fails(doubling, batch, inputs, what):
    with pytest.raises(errors.BackendError, match=what):
        infer(OnnxBackend(doubling), batch(inputs, rows=2))


def test_inputs_are_read_once_and_off_the_loop(doubling, batch, ramp):
    one = batch(ramp(2, 3))
    infer(OnnxBackend(doubling), one)
    assert len(one.readers) == 1
    assert one.readers[0] is not threading.main_thread()


# ---------------------------------------------------------------------------------------------- life cycle


def test_warm_up_runs_the_sizes_once_for_each_worker(monkeypatch, doubling, ramp):
    shapes = []

    class Recorded(onnxruntime.InferenceSession):
        def run(self, names, feed, options):
            shapes.append(feed["x"].shape)
            return super().run(names, feed, options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    infer(OnnxBackend(doubling, sessions=2, warmup=(1, 4)))
    assert sorted(shapes) == [(1, 1), (1, 1), (4, 1), (4, 1)]
    shapes.clear()
    backend = OnnxBackend(doubling, warmup=(2,), example=ramp(5))
    infer(backend)
    assert shapes == [(2, 5)]
    assert backend.statistics().batches == 0


def test_warm_up_rejected_by_model_fails_start(assets):
    """A warm-up that the model rejects fails the start, and the error recommends `example`."""
    state = np.zeros((2, 128), F32)
    arguments = {
        "batch_axes": {"state": 1, "stateN": 1},
        "shared_inputs": {"sr": np.array(16000)},
        "warmup": (3,),
    }
    model = assets / "silero_vad_16k_op15.onnx"
    with pytest.raises(
        errors.BackendError, match=r"warm-up with input float32\[3, 1\], state float32\[2, 3, 128\] failed.*example="
    ):
        infer(OnnxBackend(model, **arguments))
    assert infer(OnnxBackend(model, **arguments, example={"input": np.zeros(576, F32), "state": state})) == []


def test_the_first_batch_starts_the_backend(doubling, batch, ramp):
    """The first batch starts a backend that never ran; a stopped backend is closed until its next start."""

    async def main():
        backend = OnnxBackend(doubling)
        assert np.array_equal(await backend.infer(batch(ramp(1, 2))), ramp(1, 2) * 2)
        for _ in range(2):
            await backend.stop(drain=True)
            with pytest.raises(errors.Closed, match="OnnxBackend"):
                await backend.infer(batch(ramp(1, 2)))
            await backend.stop(drain=False)
            await backend.start()
            await backend.start()
            assert np.array_equal(await backend.infer(batch(ramp(1, 2))), ramp(1, 2) * 2)
        await backend.stop()

    run(main())


def test_statistics_count_batches_by_outcome(doubling, batch, ramp):
    ticks = iter(range(0, 10**12, 10**9))

    async def main():
        backend = OnnxBackend(doubling, sessions=3, clock=lambda: next(ticks))
        await backend.infer(batch(ramp(2, 3)))
        await backend.infer(batch(ramp(3, 3)))
        with pytest.raises(errors.BackendError):
            await backend.infer(batch(ValueError("no"), rows=1))
        await backend.stop()
        with pytest.raises(errors.Closed):
            await backend.infer(batch(ramp(2, 3)))
        statistics = backend.statistics()
        assert (statistics.batches, statistics.rows, statistics.errors, statistics.cancelled) == (2, 5, 1, 0)
        assert (statistics.busy_s, statistics.workers) == (3.0, 3)
        with pytest.raises(AttributeError):
            statistics.rows = 1

    run(main())


@pytest.mark.parametrize("sizes", [["batch", "n"], [1, "n"]])
def test_a_cancelled_batch_ends_the_run_early(endless, batch, ramp, sizes):
    """A cancelled batch ends its run early; without that, this test would not end, because the model loops forever."""

    async def main():
        backend = OnnxBackend(_with_shape(endless, sizes), batch_axes={"y": 0})
        one = batch(ramp(2, 3))
        task = asyncio.create_task(backend.infer(one))
        assert await asyncio.to_thread(one.read.wait, PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        statistics = backend.statistics()
        assert (statistics.batches, statistics.errors, statistics.cancelled) == (0, 0, 1)
        await backend.stop()

    run(main())


@pytest.mark.parametrize("sizes", [["batch", "n"], [1, "n"]])
def test_stop_without_drain_ends_the_run_early(endless, batch, ramp, sizes):
    async def main():
        backend = OnnxBackend(_with_shape(endless, sizes), batch_axes={"y": 0})
        one = batch(ramp(2, 3))
        tasks = [asyncio.create_task(backend.infer(each)) for each in (one, batch(ramp(1, 3)))]
        assert await asyncio.to_thread(one.read.wait, PATIENCE_S)
        await backend.stop(drain=False)
        for task in tasks:
            with pytest.raises(errors.Closed, match="was stopped"):
                await task
        assert backend.statistics().errors == 0

    run(main())


def test_several_sessions_answer_at_the_same_time(endless, batch, ramp):
    async def main():
        backend = OnnxBackend(endless, sessions=2)
        batches = [batch(ramp(1, 3)) for _ in range(2)]
        tasks = [asyncio.create_task(backend.infer(one)) for one in batches]
        for one in batches:  # both run at once; neither ends before the stop
            assert await asyncio.to_thread(one.read.wait, PATIENCE_S)
        assert batches[0].readers != batches[1].readers
        await backend.stop(drain=False)
        assert all(isinstance(one, errors.Closed) for one in await asyncio.gather(*tasks, return_exceptions=True))

    run(main())


def _with_shape(model_bytes, shape):
    """Return the model with another declared shape of its input."""
    model = ModelProto.FromString(model_bytes)
    del model.graph.input[0].type.tensor_type.shape.dim[:]
    for size in shape:
        dimension = model.graph.input[0].type.tensor_type.shape.dim.add()
        if isinstance(size, int):
            dimension.dim_value = size
        else:
            dimension.dim_param = size
    return model.SerializeToString()


def test_batcher_warms_each_worker_at_each_size(monkeypatch, assets):
    """A batcher's start runs each batch size on each worker, also without ``warmup`` or ``example``.

    The model leaves no size open except the batch size.
    """
    seen = set()
    answer = SessionWorker.infer

    def recorded(self, batch, options, **how):
        seen.add((id(self), batch.size))
        return answer(self, batch, options, **how)

    async def scenario():
        monkeypatch.setattr(SessionWorker, "infer", recorded)
        backend = OnnxBackend(assets / "blaze_front.onnx", sessions=2)
        batcher = AdaptiveBatcher(max_batch_size=4, max_in_flight=2, slo_s=10.0)
        async with Stack(batcher, backend) as stack:
            assert sorted(size for _, size in seen) == [1, 1, 2, 2, 4, 4]
            assert list(stack.statistics().start.calibration.durations_s[0]) == [1, 2, 4]
            assert backend.statistics().batches == 0
            assert backend.statistics().busy_s == 0.0
            await stack(np.zeros((128, 128, 3), F32))
        return batcher.statistics().released

    assert "exploration" not in asyncio.run(scenario())


def test_batcher_measures_with_the_example(assets):
    """A batcher's start measures Silero with the example, because Silero does not accept every length."""
    chunk = {"input": np.zeros(576, F32), "state": np.zeros((2, 128), F32)}

    async def scenario():
        backend = OnnxBackend(
            assets / "silero_vad_16k_op15.onnx",
            batch_axes={"state": 1, "stateN": 1},
            shared_inputs={"sr": np.array(16000)},
            example=chunk,
        )
        batcher = AdaptiveBatcher(max_batch_size=16)
        async with Stack(batcher, backend) as stack:
            assert list(batcher.statistics().calibration.durations_s[0]) == [1, 2, 4, 8, 16]
            assert batcher.service_time.known
            assert len(await asyncio.gather(*(stack(chunk) for _ in range(40)))) == 40

    asyncio.run(scenario())


def test_open_sizes_are_found_without_an_example(assets):
    """Without an example, the first length that Silero accepts, found by doubling, warms the session only.

    The batcher learns no durations from it.
    """

    async def scenario():
        backend = OnnxBackend(
            assets / "silero_vad_16k_op15.onnx",
            batch_axes={"state": 1, "stateN": 1},
            shared_inputs={"sr": np.array(16000)},
        )
        batcher = AdaptiveBatcher(max_batch_size=4)
        async with Stack(batcher, backend):
            return batcher.statistics().calibration, batcher.service_time.known

    calibration, known = asyncio.run(scenario())

    assert not known
    assert calibration.durations_s == {}
    assert "example= says what a request brings" in calibration.note


def test_buckets_name_the_open_sizes_of_a_text_model(assets, clock):
    """A batcher measures a text model at the lengths of its buckets, without an example.

    The guessed request has no mask, because the batcher adds it.
    """

    async def scenario():
        buckets = batching.Buckets((8, 24), mask="attention_mask")
        batcher = AdaptiveBatcher(max_batch_size=4, buckets=buckets)
        # the clock stands still, so that no slow batch takes the time for the others
        async with Stack(batcher, OnnxBackend(assets / "g2p_en.onnx"), clock=clock):
            return batcher.statistics().calibration

    calibration = asyncio.run(scenario())

    assert {length: list(sizes) for length, sizes in calibration.durations_s.items()} == {8: [1, 2, 4], 24: [1, 2, 4]}
    assert calibration.note == ""


def test_cancel_before_first_step_leaves_no_coroutine(doubling, batch):
    """A task that is cancelled before its first step leaves no coroutine that was never awaited."""

    async def main():
        backend = OnnxBackend(doubling)
        task = asyncio.create_task(backend.infer(batch([np.zeros(2, F32)])))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await backend.stop()

    run(main())
    gc.collect()  # a coroutine that was never awaited warns when it is freed, which is an error here


def test_invalid_example_is_rejected_at_construction(doubling):
    """The constructor rejects an invalid example, even if no warm-up would run it."""
    with pytest.raises(ValueError, match=r"^example: input 'x': expected float32\[n\], got float32\[2, 3\]"):
        OnnxBackend(doubling, example=np.zeros((2, 3), F32))

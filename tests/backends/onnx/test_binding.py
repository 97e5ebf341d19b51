"""OnnxBackend with bound memory, on the real CPU and on a scripted GPU, and the options of providers."""

import asyncio
import ctypes
import gc
import re
import subprocess
import sys
import threading
import types
import warnings

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto as Tensor
from onnx import helper

from streaminfer import errors
from streaminfer.backends import OnnxBackend
from streaminfer.backends.onnx import binding as module
from streaminfer.backends.onnx.binding import BoundRuns, choose_binding, load_cuda_runtime
from streaminfer.backends.onnx.providers import cuda_provider, profile_shapes, tensorrt_provider
from streaminfer.backends.signature import Signature, TensorSpec

PATIENCE_S = 30
F32 = np.float32


def infer(backend, *batches):
    """Start the backend, run the batches, stop the backend, and return the results."""

    async def main():
        await backend.start()
        try:
            return [await backend.infer(batch) for batch in batches]
        finally:
            await backend.stop(drain=True)

    return asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def bound(backend):
    return backend._serving.model.workers[0]._bound


# ---------------------------------------------------------------------------------------------- on the CPU


def test_bound_runs_equal_unbound_runs(doubling, batch, ramp):
    """Runs with bound memory return the same as unbound ones, and later runs leave earlier results unchanged."""
    backend = OnnxBackend(doubling, binding="pageable", warmup=(2,), example=ramp(3))
    assert "pageable memory bound" in repr(backend)
    inputs = [ramp(2, 3), ramp(2, 3) + 100, ramp(1, 3), ramp(2, 3)[:, ::-1], ramp(2, 5)]
    answers = infer(backend, *map(batch, inputs))
    for one, rows in zip(inputs, answers, strict=True):
        assert np.array_equal(np.stack(rows), one * 2)
    assert len(bound(backend)._slots) == 3
    assert all(slot._outputs is not None for slot in bound(backend)._slots.values())


def test_memory_is_kept_for_a_shape_and_bound_once(doubling, batch, ramp, monkeypatch):
    backend = OnnxBackend(doubling, binding="pageable")
    infer(backend, batch(ramp(2, 3)))
    (slot,) = bound(backend)._slots.values()
    addresses = [slot._hosts["x"].ctypes.data, slot._outputs[0][0].data_ptr()]
    assert slot._inputs["x"].data_ptr() == addresses[0]
    infer(backend, batch(ramp(2, 3)))
    assert bound(backend)._slots == {((2, 3),): slot}
    assert [slot._hosts["x"].ctypes.data, slot._outputs[0][0].data_ptr()] == addresses
    monkeypatch.setattr(module, "_MAX_SLOTS", 2)
    infer(backend, batch(ramp(1, 4)), batch(ramp(2, 3)), batch(ramp(1, 5)))
    assert list(bound(backend)._slots) == [((2, 3),), ((1, 5),)]  # the least recently used one is evicted


def test_outputs_of_undeclared_size_get_new_memory(build_model):
    """If the size of an output is not declared, each run gets new memory for its outputs.

    The size here is the number of values that are not zero; later runs do not change earlier results.
    """
    model = build_model(
        [
            helper.make_node("NonZero", ["x"], ["where"]),
            helper.make_node("Unsqueeze", ["where", "first"], ["found"]),
            helper.make_node("Identity", ["x"], ["same"]),
        ],
        [("x", Tensor.FLOAT, ["n", 4])],
        [("found", Tensor.INT64, ["n", 2, "any"]), ("same", Tensor.FLOAT, ["n", 4])],
        initializers=[helper.make_tensor("first", Tensor.INT64, [1], [0])],
    )
    runs = bound(OnnxBackend(model, binding="pageable", shared_outputs=["found"]))
    full, half = np.ones((1, 4), F32), np.array([[1, 0, 0, 0]], F32)
    first, second, third = (runs.run({"x": x}, onnxruntime.RunOptions()) for x in (full, half, full * 2))
    assert [one.shape for one in (*first, *second)] == [(1, 2, 4), (1, 4), (1, 2, 1), (1, 4)]
    assert first[0].tolist() == third[0].tolist() == [[[0, 0, 0, 0], [0, 1, 2, 3]]]
    assert first[1].tolist() == full.tolist()
    assert third[1].tolist() == (full * 2).tolist()


def test_a_recurrent_model_with_a_shared_input(assets, batch):
    arguments = {"batch_axes": {"state": 1, "stateN": 1}, "shared_inputs": {"sr": np.array(16000)}}
    rng = np.random.default_rng(0)
    stacked = {"input": rng.random((2, 576), F32), "state": np.zeros((2, 2, 128), F32)}
    plain, kept = (
        infer(
            OnnxBackend(assets / "silero_vad_16k_op15.onnx", binding=binding, **arguments),
            batch(stacked, rows=2),
            batch(stacked, rows=2),
        )
        for binding in ("off", "pageable")
    )
    for expected, got in zip(plain, kept, strict=True):
        for one, other in zip(expected, got, strict=True):
            assert np.array_equal(one["output"], other["output"])
            assert np.array_equal(one["stateN"], other["stateN"])


def test_a_model_of_one_row_per_run(identity, batch, ramp):
    backend = OnnxBackend(identity(Tensor.FLOAT, [1, "n"]), binding="pageable", warmup=(4,))
    (rows,) = infer(backend, batch(ramp(3, 2)))
    assert np.array_equal(np.stack(rows), ramp(3, 2))


@pytest.fixture
def table(build_model):
    """Return a model that computes y = 10, 20 or 30, by index."""
    return build_model(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        [("i", Tensor.INT64, ["batch"])],
        [("y", Tensor.FLOAT, ["batch"])],
        initializers=[helper.make_tensor("table", Tensor.FLOAT, [3], [10.0, 20.0, 30.0])],
    )


def test_failure_names_model_and_next_batch_succeeds(table, batch):
    """A failed run names the model in its error, and the next batch succeeds."""
    backend = OnnxBackend(table, binding="pageable")

    async def main():
        with pytest.raises(errors.BackendError, match=r"bytes failed on a batch of 2.*bounds"):
            await backend.infer(batch(np.array([0, 3])))
        assert [float(row) for row in await backend.infer(batch(np.array([2, 0])))] == [30, 10]
        await backend.stop()

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_memory_is_bound_again_after_a_failed_run(table):
    """After a failed run with an output on the device, the next run binds memory again and returns its own outputs."""
    runs, options = bound(OnnxBackend(table, binding="pageable")), onnxruntime.RunOptions()
    assert runs.run({"i": np.array([0, 1])}, options)[0].tolist() == [10, 20]
    with pytest.raises(Exception, match="bounds"):
        runs.run({"i": np.array([0, 3])}, options, device_outputs=frozenset({"y"}))
    assert runs.run({"i": np.array([2, 2])}, options)[0].tolist() == [30, 30]


def test_a_cancelled_batch_ends_the_run_early(endless, batch, ramp):
    """A cancelled batch ends its run early; without that, this test would not end, because the model loops forever."""

    async def main():
        backend = OnnxBackend(endless, binding="pageable")
        one = batch(ramp(2, 3))
        task = asyncio.create_task(backend.infer(one))
        assert await asyncio.to_thread(one.read.wait, PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await backend.stop()

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_runs_of_several_threads_do_not_mix(doubling):
    """Runs of several threads on the same memory do not mix; a warm-up may run in another thread during a batch."""
    runs = bound(OnnxBackend(doubling, binding="pageable"))
    wrong = []

    def work(value):
        for _ in range(200):
            (y,) = runs.run({"x": np.full((2, 500), value, F32)}, onnxruntime.RunOptions())
            if (y != 2 * value).any():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in (1, 2, 3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []


# ---------------------------------------------------------------------------------------------- choices


def spec(name, dtype=F32, shape=("n", 3), axis=0):
    return TensorSpec(name, None if dtype is None else np.dtype(dtype), shape, axis)


def test_gpu_uses_pinned_memory_by_default():
    """On a GPU, inputs are bound to pinned memory by default; `binding` can choose otherwise."""
    plain = Signature([spec("x")], [spec("y")])
    odd = Signature([spec("x")], [spec("y"), spec("z", dtype=None, shape=())])
    cpu, cuda = ("CPUExecutionProvider", {}), ("CUDAExecutionProvider", {"device_id": "2"})
    assert choose_binding(None, [cpu], plain) == ("off", ("cpu", 0))
    assert choose_binding(None, [cuda, cpu], plain) == ("pinned", ("cuda", 2))
    assert choose_binding(None, [("TensorrtExecutionProvider", {})], plain) == ("pinned", ("cuda", 0))
    assert choose_binding("off", [cuda], plain) == ("off", ("cuda", 2))
    assert choose_binding(None, [cuda], odd) == ("off", ("cuda", 2))
    for asked, providers, signature, error, what in (
        ("pinned", [cpu], plain, ValueError, "binding: expected 'off' or 'pageable' on CPUExecutionProvider"),
        ("pageable", [cuda], odd, ValueError, "binding: expected 'off', since 'z' is no tensor"),
        ("on", [cpu], plain, ValueError, "binding: expected one of 'off', 'pageable', 'pinned'"),
        (True, [cpu], plain, TypeError, "binding"),
    ):
        with pytest.raises(error, match=what):
            choose_binding(asked, providers, signature)


def test_output_sizes_come_from_declared_dimensions():
    """Output sizes come from fixed numbers, the batch size and symbolic dimensions shared with inputs."""
    inputs = [spec("x", shape=("n", 3, "w")), spec("state", shape=(2, "n"), axis=1), spec("sr", shape=(), axis=None)]
    shapes = [(4, 3, 7), (2, 4), ()]
    for outputs, known in (
        ([spec("y", shape=("m", "w"))], [(4, 7)]),
        ([spec("y", shape=(2, "b"), axis=1), spec("z", shape=(None, 5))], [(2, 4), (4, 5)]),
        ([spec("y", shape=("n", "other"))], None),
        ([spec("y", shape=("n", None))], None),
        ([spec("y", shape=("n", 3)), spec("z", shape=())], None),
    ):
        assert module._output_shapes(Signature(inputs, outputs), shapes) == known


def test_missing_provider_says_how_to_install_it(doubling):
    """An unavailable provider is an error that says how to install the provider."""
    for name in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        with pytest.raises(ValueError, match=rf"providers: expected some of .*, got '{name}'.*install onnxruntime-gpu"):
            OnnxBackend(doubling, providers=[name])
    with pytest.raises(ValueError, match=r"got 'NoSuchProvider' \(str\): no device for it here"):
        OnnxBackend(doubling, providers=["NoSuchProvider"])


# ---------------------------------------------------------------------------------------------- a scripted GPU


class Cuda:
    """CUDA runtime with only the calls that the backend uses; it records the pinned memory."""

    def __init__(self):
        self.pinned = {}
        self.error = 0

    def cudaHostRegister(self, address, size, flags):  # noqa: N802 - the library's name
        if not self.error:
            assert flags == 1
            assert address % 4096 == 0
            self.pinned[address] = size
        return self.error

    def cudaHostUnregister(self, address):  # noqa: N802 - the library's name
        del self.pinned[address]

    def cudaGetErrorString(self, error):  # noqa: N802 - the library's name
        return b"out of memory"


class DeviceValue:
    """OrtValue on a device: its content is read and written only by copies."""

    def __init__(self, shape, kind, *device):
        assert device == ("cuda", 1)
        self.memory = np.zeros(shape, kind)

    def update_inplace(self, array):
        self.source = array.ctypes.data
        self.memory[...] = array

    def numpy(self):
        return self.memory.copy()


class DeviceSession:
    """Session that doubles its bound input and writes into the bound output buffer."""

    def __init__(self):
        self.runs = []

    def get_provider_options(self):
        return {"CUDAExecutionProvider": {"enable_cuda_graph": "0"}}

    def io_binding(self):
        class Binding:
            def __init__(self):
                self.values = {}

            def bind_ortvalue_input(self, name, value):
                self.values[name] = value

            bind_ortvalue_output = bind_ortvalue_input

            def bind_output(self, name, *device):
                assert device == ("cuda", 1)
                self.values[name] = DeviceValue(self.values["x"].memory.shape, F32, *device)

            def copy_outputs_to_cpu(self):
                return [self.values["y"].numpy()]

        return Binding()

    def run_with_iobinding(self, binding, options):
        self.runs.append((id(binding), options))
        binding.values["y"].memory[...] = binding.values["x"].memory * 2


@pytest.mark.parametrize("known", [True, False])
def test_gpu_inputs_use_pinned_memory_and_release_it(known):
    """On a GPU, inputs are copied through pinned memory, which is freed together with the session's runs."""
    cuda, session = Cuda(), DeviceSession()
    values = types.SimpleNamespace(ortvalue_from_shape_and_type=DeviceValue)
    signature = Signature([spec("x")], [spec("y", shape=("n", 3 if known else None))])
    runs = BoundRuns(types.SimpleNamespace(OrtValue=values), session, signature, ("cuda", 1), cuda)
    first, second = (runs.run({"x": np.full((2, 3), value, F32)}, "options")[0] for value in (1, 10))
    assert (first == 2).all()
    assert (second == 20).all()
    assert len({binding for binding, _ in session.runs}) == 1
    (slot,) = runs._slots.values()
    assert cuda.pinned == {slot._inputs["x"].source: 24}
    runs.run({"x": np.ones((5, 3), F32)}, "options")
    assert sorted(cuda.pinned.values()) == [24, 60]
    del slot, runs
    gc.collect()
    assert cuda.pinned == {}
    cuda.error = 2
    runs = BoundRuns(types.SimpleNamespace(OrtValue=values), session, signature, ("cuda", 1), cuda)
    with pytest.raises(errors.BackendError, match="cannot pin 24 bytes: out of memory; binding='pageable'"):
        runs.run({"x": np.ones((2, 3), F32)}, "options")


def test_cuda_runtime_is_searched_by_library_name(monkeypatch, doubling):
    asked = []

    def missing(name):
        asked.append(name)
        raise OSError(name)

    monkeypatch.setattr(module.ctypes, "CDLL", missing)
    monkeypatch.setattr(module.sys, "platform", "linux")
    with pytest.raises(ValueError, match=r"binding: expected 'off' or 'pageable', since none of libcudart\.so\.13"):
        load_cuda_runtime()
    assert asked == ["libcudart.so.13", "libcudart.so.12"]
    library = types.SimpleNamespace(
        **{name: types.SimpleNamespace() for name in ("cudaHostRegister", "cudaHostUnregister", "cudaGetErrorString")}
    )
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: library)
    assert load_cuda_runtime() is library
    assert library.cudaHostRegister.argtypes == [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
    assert library.cudaGetErrorString.restype is ctypes.c_char_p


# ---------------------------------------------------------------------------------------------- providers' options


def test_options_of_cuda():
    assert cuda_provider() == (
        "CUDAExecutionProvider",
        {"device_id": "0", "arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"},
    )
    options = cuda_provider(device_id=1, memory_limit_bytes=1 << 30, cuda_graph=True)[1]
    assert {"device_id": "1", "gpu_mem_limit": "1073741824", "enable_cuda_graph": "1"}.items() <= options.items()
    for arguments, error in (
        ({"device_id": -1}, ValueError),
        ({"memory_limit_bytes": 0}, ValueError),
        ({"cuda_graph": 1}, TypeError),
    ):
        with pytest.raises(error, match=next(iter(arguments))):
            cuda_provider(**arguments)


def test_options_of_tensorrt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, options = tensorrt_provider(
        "engines",
        batch_sizes=[8, 1, 32],
        rows={"input": (576,), "state": (2, 128)},
        batch_axes={"state": 1},
        precision="fp16",
        device_id=3,
    )
    assert name == "TensorrtExecutionProvider"
    assert options == {
        "device_id": "3",
        "trt_fp16_enable": "True",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(tmp_path / "engines"),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(tmp_path / "engines"),
        "trt_profile_min_shapes": "input:1x576,state:2x1x128",
        "trt_profile_opt_shapes": "input:32x576,state:2x32x128",
        "trt_profile_max_shapes": "input:32x576,state:2x32x128",
    }
    assert tensorrt_provider(None)[1] == {"device_id": "0"}
    for arguments, error, what in (
        ({"batch_sizes": [1]}, ValueError, "rows: expected the shape"),
        ({"batch_sizes": [0], "rows": {"x": (1,)}}, ValueError, "batch_sizes"),
        ({"batch_sizes": [1], "rows": {"a:b": (1,)}}, ValueError, "rows: expected input names without"),
        ({"batch_sizes": [1], "rows": {"x": (0,)}}, ValueError, r"rows\['x'\]"),
        ({"batch_sizes": [1], "rows": {"x": (1,)}, "batch_axes": {"x": 2}}, ValueError, r"batch_axes\['x'\]"),
        ({"precision": "int8"}, ValueError, "precision"),
    ):
        with pytest.raises(error, match=what):
            tensorrt_provider(None, **arguments)
    with pytest.raises(TypeError, match="cache: expected a path"):
        tensorrt_provider(3)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z/.]{1,5}", fullmatch=True), st.lists(st.integers(1, 999), max_size=4), min_size=1
    ),
    st.lists(st.integers(1, 64), min_size=1, max_size=5),
)
def test_a_profile_spans_all_sizes(rows, sizes):
    for which, size in (("min", min(sizes)), ("opt", max(sizes)), ("max", max(sizes))):
        text = profile_shapes(rows, sizes, {})[f"trt_profile_{which}_shapes"]
        read = {name: [int(one) for one in shape.split("x")] for name, shape in re.findall(r"([^,:]+):([\dx]+)", text)}
        assert read == {name: [size, *row] for name, row in rows.items()}


# -------------------------------------------------------------------------------------- benchmarks/backends/gpu.py


@pytest.fixture
def gpu():
    from backends import gpu

    return gpu


def test_gpu_check_without_gpu_exits_with_2(gpu, capsys):
    """Without a GPU, the check program says so and exits with code 2."""
    assert gpu.main([]) == 2
    assert gpu.main(["--providers", "TensorrtExecutionProvider"]) == 2
    assert capsys.readouterr().out.count("no GPU was checked: this onnxruntime has no") == 2


def test_gpu_check_fails_if_provider_does_not_load(gpu, capsys, monkeypatch):
    """A provider that is listed but does not load counts as not checked, and the exit code is 2."""
    there = gpu.onnxruntime.get_available_providers
    monkeypatch.setattr(gpu.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *there()])
    with warnings.catch_warnings():  # onnxruntime itself falls back to the CPU, with a warning or without
        warnings.simplefilter("ignore", UserWarning)
        assert gpu.main(["--batch-sizes", "1"]) == 2
    printed = capsys.readouterr().out
    assert "NOT CHECKED: providers: expected CUDAExecutionProvider to load" in printed or "path_or_bytes" in printed
    assert "not checked, since they do not load: CUDAExecutionProvider" in printed


def test_gpu_check_reports_wrong_results_on_cpu(gpu, capsys, monkeypatch):
    """Every measurement of the check program runs on the CPU too, and a wrong response makes its exit code 1."""
    arguments = ["--providers", "CPUExecutionProvider", "--batch-sizes", "1", "2", "--batches", "2"]
    assert gpu.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count(" ok\n") == 4
    assert "binding='pageable'" in printed
    assert "all answers right" in printed
    monkeypatch.setattr(gpu, "TOLERANCE", {"fp32": -1.0})
    assert gpu.main(arguments) == 1
    assert "4 wrong" in capsys.readouterr().out


def test_a_model_that_triton_serves_is_checked_too(gpu, capsys, triton):
    model = triton.repository / "mlp" / "1" / "model.onnx"
    command = [sys.executable, gpu.__file__, "--model", str(model), "--providers", "CPUExecutionProvider"]
    command += ["--batch-sizes", "3", "--batches", "2", "--triton", triton.grpc_url, "--triton-model", "mlp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"gRPC +3 rows .* ok\n", done.stdout)


def test_a_difference_is_in_parts_of_the_largest_value(gpu):
    right = [{"y": np.array([0.0, 10.0], F32)}]
    assert gpu._difference(right, right) == 0
    assert gpu._difference([{"y": np.array([0.0, 9.0], F32)}], right) == 0.1
    assert gpu._difference([{"y": np.array([np.nan, 10.0], F32)}], right) == np.inf
    assert gpu._difference([{"y": np.array([10.0], F32)}], right) == np.inf

"""Arguments that the constructor of `OnnxBackend` accepts and rejects, and its error messages."""

import asyncio
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto as Tensor
from onnx import helper

from streaminfer import backends, errors
from streaminfer.backends import OnnxBackend
from streaminfer.backends.onnx.model import choose_providers

PATIENCE_S = 30
F32 = np.float32


def test_the_extra_is_loaded_at_construction_only():
    program = """
import sys
import streaminfer.backends
from streaminfer.backends import OnnxBackend, CpuBackend
for name in ("onnxruntime", "multiprocessing.connection", "numba"):
    assert name not in sys.modules, name
assert {"OnnxBackend", "CpuBackend", "BackendStatistics"} <= set(dir(streaminfer.backends))
"""
    command = [sys.executable, "-W", "error", "-c", program]
    subprocess.run(command, check=True, timeout=PATIENCE_S)


def test_an_unknown_backend_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        backends.Nothing  # noqa: B018 - the access is what is tested


def test_missing_onnxruntime_says_what_to_install(monkeypatch, doubling):
    """Without onnxruntime, the error says which extra to install."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(errors.MissingExtra, match=r"pip install 'streaminfer\[onnx\]'"):
        OnnxBackend(doubling)


def test_a_model_is_a_path_or_bytes(tmp_path, doubling, batch, ramp):
    path = tmp_path / "doubling.onnx"
    path.write_bytes(doubling)
    for source, name in (
        (doubling, f"{len(doubling)} bytes"),
        (path, "'doubling.onnx'"),
        (str(path), "'doubling.onnx'"),
    ):
        backend = OnnxBackend(source)
        assert repr(backend) == (
            f"OnnxBackend({name}: x float32[batch, n] → y float32[batch, n]; 1 session on CPUExecutionProvider)"
        )

        async def main(backend=backend):
            rows = await backend.infer(batch(ramp(2, 3)))
            await backend.stop()
            return rows

        rows = asyncio.run(main())
        assert np.array_equal(rows, ramp(2, 3) * 2)


BAD_SOURCES = [
    (Path("/nowhere/model.onnx"), FileNotFoundError, ["path_or_bytes", "exists", "/nowhere/model.onnx"]),
    ("/nowhere/model.onnx", FileNotFoundError, ["path_or_bytes", "exists", "/nowhere/model.onnx"]),
    (Path(__file__).parents[1], ValueError, ["path_or_bytes", "a file", "backends"]),
    (__file__, ValueError, ["path_or_bytes", "an ONNX model", "'test_construction.py'"]),
    (b"garbage", ValueError, ["path_or_bytes", "an ONNX model", "7 bytes"]),
    (b"", ValueError, ["path_or_bytes", "an ONNX model", "0 bytes"]),
    (3, TypeError, ["path_or_bytes", "a path or bytes", "3 (int)"]),
    (None, TypeError, ["path_or_bytes", "a path or bytes", "None"]),
]


@pytest.mark.parametrize(("source", "error", "parts"), BAD_SOURCES)
def test_an_invalid_model_source_is_rejected(source, error, parts):
    with pytest.raises(error) as caught:
        OnnxBackend(source)
    for part in parts:
        assert part in str(caught.value)


BAD_ARGUMENTS = [
    ({"sessions": 0}, ValueError, ["sessions", "≥ 1", "0"]),
    ({"sessions": 10_001}, ValueError, ["sessions", "≥ 1 and ≤ 10000", "10001"]),
    ({"threads": 0}, ValueError, ["threads", "≥ 1", "0"]),
    ({"threads": 1.5}, TypeError, ["threads", "whole number", "1.5"]),
    ({"warmup": 8}, TypeError, ["warmup", "sequence", "8"]),
    ({"warmup": (0,)}, ValueError, ["warmup", "≥ 1", "0"]),
    ({"non_finite": "warn"}, ValueError, ["non_finite", "'allow', 'reject'", "'warn'"]),
    ({"providers": "CPUExecutionProvider"}, TypeError, ["providers", "a sequence", "CPUExecutionProvider"]),
    ({"providers": 5}, TypeError, ["providers", "a sequence", "5"]),
    ({"providers": []}, TypeError, ["providers", "a sequence", "[]"]),
    ({"providers": [5]}, TypeError, ["providers", "a name, or a pair of a name and a mapping of options", "5"]),
    ({"providers": [("CPUExecutionProvider",)]}, TypeError, ["providers", "a pair of a name", "('CPUExec"]),
    ({"providers": [("CPUExecutionProvider", None)]}, TypeError, ["providers", "a mapping of options", "None"]),
    ({"clock": 5}, TypeError, ["clock", "a callable or None", "5"]),
    ({"providers": ["NoProvider"]}, ValueError, ["providers", "CPUExecutionProvider", "'NoProvider'"]),
    ({"session_options": {}}, TypeError, ["session_options", "onnxruntime.SessionOptions", "{}"]),
    ({"session_options": onnxruntime.SessionOptions(), "threads": 2}, ValueError, ["threads", "session_options", "2"]),
    ({"batch_axes": ["x"]}, TypeError, ["batch_axes", "mapping", "['x']"]),
    ({"batch_axes": {"z": 0}}, ValueError, ["batch_axes", "'x', 'y'", "'z'"]),
    ({"batch_axes": {"x": 2}}, ValueError, ["batch_axes['x']", "-2 to 1", "2"]),
    ({"batch_axes": {"x": -3}}, ValueError, ["batch_axes['x']", "-2 to 1", "-3"]),
    ({"batch_axes": {"y": 2}}, ValueError, ["batch_axes['y']", "-2 to 1", "2"]),
    ({"batch_axes": {"x": "0"}}, TypeError, ["batch_axes['x']", "-2 to 1", "'0'"]),
    ({"batch_axes": {"x": True}}, TypeError, ["batch_axes['x']", "-2 to 1", "True"]),
    ({"shared_inputs": ["x"]}, TypeError, ["shared_inputs", "mapping", "['x']"]),
    ({"shared_inputs": {"z": F32(1)}}, ValueError, ["shared_inputs", "'x'", "'z'"]),
    ({"shared_inputs": {"x": F32(1)}}, ValueError, ["shared_inputs", "at least one input", "['x']"]),
    ({"shared_inputs": {"x": F32(1)}, "batch_axes": {"x": 0}}, ValueError, ["batch_axes", "no axis for 'x'", "0"]),
    ({"warmup": [1], "example": np.zeros(3)}, ValueError, ["example", "'x'", "float32[n]", "float64[3]"]),
]


@pytest.mark.parametrize(("arguments", "error", "parts"), BAD_ARGUMENTS)
def test_invalid_arguments_are_rejected(doubling, arguments, error, parts):
    with pytest.raises(error) as caught:
        OnnxBackend(doubling, **arguments)
    for part in parts:
        assert part in str(caught.value)


def test_inputs_that_cannot_be_batched_are_rejected(identity, build_model):
    assert OnnxBackend(identity(Tensor.FLOAT, [4, "n"]), batch_axes={"x": -1}).batch_axes == {"x": 1}
    for shape in ([], None):
        with pytest.raises(ValueError, match="shared_inputs: expected a value for input 'x', got none"):
            OnnxBackend(identity(Tensor.INT64, shape))
    sequence = helper.make_tensor_sequence_value_info("x", Tensor.FLOAT, None)
    model = build_model([helper.make_node("SequenceLength", ["x"], ["y"])], [sequence], [("y", Tensor.INT64, [])])
    with pytest.raises(ValueError, match=r"numbers, booleans or strings, got seq\(tensor\(float\)\) for input 'x'"):
        OnnxBackend(model)


def test_sessions_use_requested_threads_and_options(monkeypatch, doubling):
    """Sessions are created with the threads, providers and session options that the caller requests."""
    seen = []
    real = onnxruntime.InferenceSession

    def recorded(source, options, providers, enable_fallback):
        seen.append((options, providers))
        assert enable_fallback == 0
        return real(source, options, providers=providers, enable_fallback=enable_fallback)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    OnnxBackend(doubling, sessions=2)
    OnnxBackend(doubling, threads=3, providers=[("CPUExecutionProvider", {})])
    own = onnxruntime.SessionOptions()
    OnnxBackend(doubling, session_options=own)
    OnnxBackend(doubling, threads=3, sessions=2)
    assert [options.intra_op_num_threads for options, _ in seen] == [1, 3, 0, 5]  # workers compute too: 2 * (3 - 1) + 1
    assert all(options.inter_op_num_threads == 1 for options, _ in (*seen[:2], seen[3]))
    for key in ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning"):
        assert seen[0][0].get_session_config_entry(key) == "0"
    assert seen[1][1] == [("CPUExecutionProvider", {})]
    assert seen[2][0] is own


def test_silent_provider_fallback_is_an_error(monkeypatch, doubling):
    """A session that silently falls back to another provider is an error."""

    class FellBack(onnxruntime.InferenceSession):
        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", FellBack)
    with pytest.raises(ValueError, match="providers: expected AzureExecutionProvider to load, got a session on CPU"):
        OnnxBackend(doubling, providers=["AzureExecutionProvider", "CPUExecutionProvider"])


def test_notebook_html_lists_inputs_and_outputs(identity):
    html = OnnxBackend(identity(Tensor.FLOAT, ["<b>", 3]))._repr_html_()
    assert "<td>input</td><td>x</td><td>float32[&lt;b&gt;, 3]</td><td>0</td>" in html
    assert "<td>output</td><td>y</td>" in html


def test_failing_provider_is_an_error_without_output(monkeypatch, doubling, capsys):
    """A provider that fails to load is an error, and nothing is printed."""
    create = onnxruntime.InferenceSession._create_inference_session

    def fail(self, providers, provider_options, disabled_optimizers=None):
        if providers != ["CPUExecutionProvider"]:
            raise RuntimeError("no such device")
        create(self, providers, provider_options, disabled_optimizers)

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    with pytest.raises(ValueError, match="no such device"):
        OnnxBackend(doubling, providers=["AzureExecutionProvider", "CPUExecutionProvider"])
    assert capsys.readouterr().out == ""


def test_cpu_fallback_at_run_time_is_prevented(monkeypatch, doubling):
    """Before 1.23 onnxruntime ignores ``enable_fallback``; the backend still prevents a second run on the CPU."""
    real = onnxruntime.InferenceSession
    made = []

    def older(source, options, *, providers, enable_fallback):
        made.append(real(source, options, providers=providers))
        return made[-1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", older)
    OnnxBackend(doubling)

    assert [session._enable_fallback for session in made] == [False]


def cpu_devices():
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == "CPUExecutionProvider"]


def test_providers_of_the_session_options_are_used(monkeypatch, doubling):
    seen = []
    real = onnxruntime.InferenceSession

    def recorded(*arguments, **settings):
        seen.append(settings["providers"])
        return real(*arguments, **settings)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    options = onnxruntime.SessionOptions()
    options.add_provider_for_devices(cpu_devices(), {})

    backend = OnnxBackend(doubling, session_options=options)

    assert seen == [None]
    assert "on CPUExecutionProvider" in repr(backend)
    with pytest.raises(ValueError, match="providers: expected None beside session_options that have providers"):
        OnnxBackend(doubling, session_options=options, providers=["CPUExecutionProvider"])


def test_a_provider_of_a_plugin_is_used_by_its_name(monkeypatch, doubling):
    """A provider that is not built in, like that of a plugin, is found by its name among the devices.

    The test removes the CPU's provider from the list of built-in providers.
    """
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["AzureExecutionProvider"])

    backend = OnnxBackend(doubling, providers=["CPUExecutionProvider"])

    assert "on CPUExecutionProvider" in repr(backend)
    with pytest.raises(ValueError, match=r"session_options: expected None .*add_provider_for_devices"):
        OnnxBackend(doubling, providers=["CPUExecutionProvider"], session_options=onnxruntime.SessionOptions())


def test_a_plugin_without_a_device_lists_the_devices(doubling):
    with pytest.raises(ValueError, match=r"'OpenVINOExecutionProvider'.*no device for it here.*CPUExecutionProvider"):
        OnnxBackend(doubling, providers=["OpenVINOExecutionProvider"])


def test_a_plugin_that_is_listed_as_available_is_added():
    """The devices of a plugin are added to the session options even if onnxruntime lists its provider as available.

    onnxruntime 1.32 lists the providers of plugins, but a session that only names such a provider runs on the CPU.
    """
    device = SimpleNamespace(ep_name="Plugin", ep_metadata={"library_path": "plugin.so"})
    runtime = SimpleNamespace(
        get_available_providers=lambda: ["Plugin", "CPUExecutionProvider"], get_ep_devices=lambda: [device]
    )
    added = []
    options = SimpleNamespace(add_provider_for_devices=lambda devices, settings: added.append((devices, settings)))

    assert choose_providers(runtime, [("Plugin", {"level": 2})], options, are_user_options=False) == []
    assert added == [([device], {"level": "2"})]


PLUGIN = """
import sys
import onnxruntime, onnxruntime_ep_openvino as plugin
from streaminfer import OnnxBackend
onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
has_device = any(device.ep_name == plugin.get_ep_name() for device in onnxruntime.get_ep_devices())
try:
    found = repr(OnnxBackend(sys.argv[1], providers=[plugin.get_ep_name()]))
except ValueError as error:
    found = str(error)
print(has_device, found)
"""


def test_the_plugin_of_openvino(doubling, tmp_path):
    """The model runs on the OpenVINO plugin if the plugin has a device; otherwise the error says that it has none."""
    pytest.importorskip("onnxruntime_ep_openvino")
    path = tmp_path / "doubling.onnx"
    path.write_bytes(doubling)

    # in another process, because a plugin stays registered
    run = subprocess.run([sys.executable, "-c", PLUGIN, path], capture_output=True, text=True, check=True)

    has_device, _, found = run.stdout.partition(" ")
    expected = "on OpenVINOExecutionProvider"
    if has_device == "False":
        expected = "got 'OpenVINOExecutionProvider' (str): no device for it here; the providers that have one: CPU"
    assert expected in found


def test_one_row_input_beside_batched_ones_is_rejected(build_model):
    """An input of one row beside batched inputs is rejected, unless it is a shared input."""
    model = build_model(
        [helper.make_node("Add", ["x", "rate"], ["y"])],
        [("x", Tensor.FLOAT, ["batch", 2]), ("rate", Tensor.FLOAT, [1])],
        [("y", Tensor.FLOAT, ["batch", 2])],
    )
    with pytest.raises(ValueError, match=r"shared_inputs: expected a value for input 'rate', got none: float32\[1\]"):
        OnnxBackend(model)
    rate = np.ones(1, np.float32)
    backend = OnnxBackend(model, shared_inputs={"rate": rate})
    assert (backend._signature.rows_per_run, backend.max_batch_size) == (None, None)

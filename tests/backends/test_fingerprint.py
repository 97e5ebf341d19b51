"""Fingerprints of backends, which are part of cache keys: equal in every process, different if responses may differ."""

import asyncio
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from streaminfer.backends import CpuBackend, OnnxBackend
from streaminfer.backends.fingerprint import (
    ModelFiles,
    external_files,
    fingerprint_of_function,
    fingerprint_of_model,
)
from streaminfer.batching import AdaptiveBatcher
from streaminfer.caching import EdgeCache
from streaminfer.request import Batch, Request
from streaminfer.resilience import CircuitBreaker
from streaminfer.stack import Stack

ROOT = Path(__file__).parents[2]


def scaling(factor, *, inputs=("x",)):
    """Return a model with weights that computes y = factor * x (+ shift)."""
    weights = numpy_helper.from_array(np.full(64, factor, np.float32), "weights")
    nodes = [helper.make_node("Mul", ["x", "weights"], ["y" if len(inputs) == 1 else "scaled"])]
    if len(inputs) > 1:
        nodes.append(helper.make_node("Add", ["scaled", "shift"], ["y"]))
    shape = ("batch", 64)
    graph = helper.make_graph(
        nodes,
        "scaling",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape if name == "x" else (64,)) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        initializer=[weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def save(model, folder, *, external=False):
    folder.mkdir(parents=True)
    path = folder / "model.onnx"
    if external:
        onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    else:
        onnx.save(model, path)
    return path


@pytest.mark.parametrize("external", [False, True])
def test_fingerprint_depends_on_content_not_on_path(tmp_path, external):
    """The same model in another folder has the same fingerprint, and one changed weight changes it."""
    first = save(scaling(2.0), tmp_path / "a", external=external)
    again = tmp_path / "b"
    shutil.copytree(first.parent, again)
    os.utime(again / "model.onnx", (1, 1))
    mark = OnnxBackend(first).fingerprint
    assert len(mark) == 32
    assert OnnxBackend(again / "model.onnx").fingerprint == mark

    other = scaling(2.0)
    weights = numpy_helper.to_array(other.graph.initializer[0]).copy()
    weights[63] = np.nextafter(np.float32(2.0), np.float32(3.0))
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "weights"))
    changed = save(other, tmp_path / "c", external=external)
    if external:  # only the file of the weights differs
        assert changed.read_bytes() == first.read_bytes()
    assert OnnxBackend(changed).fingerprint != mark


def test_bytes_and_file_have_the_same_fingerprint(tmp_path):
    path = save(scaling(2.0), tmp_path / "a")
    assert OnnxBackend(path.read_bytes()).fingerprint == OnnxBackend(path).fingerprint


def test_bytes_with_external_weights_lack_fingerprint(tmp_path, monkeypatch):
    """A model given as bytes whose weights lie in unknown external files has no fingerprint."""
    path = save(scaling(2.0), tmp_path / "a", external=True)
    assert ModelFiles.of_bytes(path.read_bytes()).digest is None
    monkeypatch.chdir(path.parent)
    assert OnnxBackend(path.read_bytes()).fingerprint is None


def test_fingerprint_includes_shared_inputs():
    """Shared inputs change the fingerprint; threads, sessions and warm-up do not."""
    model = scaling(2.0, inputs=("x", "shift")).SerializeToString()

    def mark(shift, **how):
        return OnnxBackend(model, shared_inputs={"shift": shift}, **how).fingerprint

    ones = np.ones(64, np.float32)
    assert mark(ones) == mark(ones.copy()) == mark(ones, threads=2) == mark(ones, sessions=2, warmup=[1])
    assert mark(ones) != mark(ones * 2)
    plain = scaling(2.0).SerializeToString()
    assert OnnxBackend(plain).fingerprint != mark(ones)


def test_each_part_changes_the_fingerprint():
    base = {"axes": [("x", 0)], "shared": {}, "providers": [("CPUExecutionProvider", {})]}

    def mark(digest="d", **changes):
        return fingerprint_of_model(digest, **{**base, **changes})

    cuda, cpu = "CUDAExecutionProvider", ("CPUExecutionProvider", {})
    marks = [
        mark(),
        mark("e"),
        mark(axes=[("x", 1)]),
        mark(axes=[("x", None)]),
        mark(axes=[("x", 0), ("y", 0)]),
        mark(providers=[(cuda, {}), cpu]),
        mark(providers=[cpu, (cuda, {})]),
        mark(providers=[(cuda, {"use_tf32": "0"})]),
        mark(providers=[(cuda, {"use_tf32": "1"})]),
        mark(shared={"rate": np.array(16000, np.int64)}),
        mark(shared={"rate": np.array(8000, np.int64)}),
        mark(shared={"rate": np.array([16000], np.int64)}),
        mark(shared={"rate": np.array(16000, np.float64).view(np.int64)}),
        mark(shared={"rates": np.array(16000, np.int64)}),
    ]
    assert len(set(marks)) == len(marks)
    where = {"device_id": "3", "gpu_mem_limit": 10**9, "trt_engine_cache_path": "/var/engines"}
    assert mark(providers=[(cuda, where)]) == mark(providers=[(cuda, {})])
    assert mark(providers=[(cuda, {"b": 1, "a": 2})]) == mark(providers=[(cuda, {"a": 2, "b": "1"})])
    both = {"a": np.zeros(2), "b": np.ones(2)}
    assert mark(shared=both) == mark(shared=dict(reversed(both.items())))
    assert mark(shared=both) != mark(shared={"a": np.ones(2), "b": np.zeros(2)})


def test_later_file_changes_keep_the_fingerprint(tmp_path):
    """A fingerprint describes the files that were loaded, even if they are removed or replaced before it is read."""
    path = save(scaling(2.0), tmp_path / "a", external=True)
    mark = OnnxBackend(path).fingerprint
    backend = OnnxBackend(path)
    shutil.rmtree(path.parent)
    assert backend.fingerprint == mark
    save(scaling(3.0), tmp_path / "a", external=True)
    assert backend.fingerprint == mark
    assert OnnxBackend(path).fingerprint != mark


def test_loaded_model_ignores_weights_written_in_place(tmp_path):
    """A loaded model keeps its weights if their file is overwritten in place.

    By default onnxruntime maps the file, so the outputs would change under the same fingerprint.
    """
    path = save(scaling(2.0), tmp_path / "a", external=True)
    backend = OnnxBackend(path, sessions=2)

    (path.parent / "weights.bin").write_bytes(np.full(64, 3, np.float32).tobytes())

    assert answer_of(backend) == 2.0
    assert answer_of(OnnxBackend(path)) == 3.0


def answer_of(backend):
    async def main():
        rows = await backend.infer(Batch(np.ones((1, 64), np.float32), [Request(None)]))
        await backend.stop()
        return float(rows[0][0])

    return asyncio.run(main())


def test_weights_replaced_while_loading_are_an_error(tmp_path, monkeypatch):
    """Weights that are replaced while the model is loaded are an error that names their file."""
    path = save(scaling(2.0), tmp_path / "a", external=True)
    real = onnxruntime.InferenceSession

    def replaced(*arguments, **keywords):
        (path.parent / "weights.bin").write_bytes(np.full(64, 3, np.float32).tobytes())
        return real(*arguments, **keywords)

    monkeypatch.setattr(onnxruntime, "InferenceSession", replaced)
    for how in ({}, {"session_options": onnxruntime.SessionOptions()}):
        with pytest.raises(ValueError, match=r"stay as they are while they are loaded, got '.*weights\.bin'"):
            OnnxBackend(path, **how)


def test_weights_removed_while_loading_are_an_error(tmp_path, monkeypatch):
    """Weights that are removed while the model is loaded are an error."""
    path = save(scaling(2.0), tmp_path / "a", external=True)
    real = onnxruntime.InferenceSession

    def removed(*arguments, **keywords):
        (path.parent / "weights.bin").unlink()
        return real(*arguments, **keywords)

    monkeypatch.setattr(onnxruntime, "InferenceSession", removed)
    with pytest.raises(ValueError, match=r"which changed: put all files of a version in place"):
        OnnxBackend(path)


def test_weights_that_are_missing_are_an_error(tmp_path):
    path = save(scaling(2.0), tmp_path / "a", external=True)
    (path.parent / "weights.bin").unlink()
    with pytest.raises(ValueError, match=r"path_or_bytes: expected to read .*weights\.bin"):
        OnnxBackend(path)


def test_weights_outside_the_model_folder_are_rejected(tmp_path):
    """External weights outside the model's folder are not read, and the model is rejected."""
    path = save(scaling(2.0), tmp_path / "a", external=True)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../weights.bin"
    (path.parent / "weights.bin").rename(tmp_path / "weights.bin")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"external files are in its folder, or below, got '\.\./weights\.bin'"):
        OnnxBackend(path)


def test_own_session_options_hold_no_weights(tmp_path):
    """A load leaves no weights in the caller's session options, because these may outlive the weights' memory."""
    options = onnxruntime.SessionOptions()
    path = save(scaling(2.0), tmp_path / "a", external=True)
    other = save(scaling(3.0), tmp_path / "b", external=True)
    first, second = (OnnxBackend(each, session_options=options) for each in (path, other))
    assert (answer_of(first), answer_of(second)) == (2.0, 3.0)
    assert first.fingerprint == OnnxBackend(path).fingerprint != second.fingerprint


def test_field_numbers_match_the_onnx_schema():
    messages = {
        "model": onnx.ModelProto,
        "graph": onnx.GraphProto,
        "function": onnx.FunctionProto,
        "node": onnx.NodeProto,
        "attribute": onnx.AttributeProto,
        "sparse": onnx.SparseTensorProto,
        "tensor": onnx.TensorProto,
    }
    from streaminfer.backends.fingerprint import _BELOW

    kinds = {message.DESCRIPTOR.name: kind for kind, message in messages.items()}
    kinds["StringStringEntryProto"] = "entry"
    for kind, message in messages.items():
        for field in message.DESCRIPTOR.fields:
            below = kinds.get(field.message_type.name) if field.message_type is not None else None
            if field.name in ("metadata_props", "quant_parameter_tensor_names"):
                below = None  # entries that name no files
            assert _BELOW[kind].get(field.number) == below, (kind, field.name)


def tensor(name, location=None):
    made = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], raw_data=b"\x0a\x03abc")
    if location is not None:
        made.ClearField("raw_data")
        made.data_location = TensorProto.EXTERNAL
        for key, value in (("offset", "0"), ("location", location), ("length", "4")):
            made.external_data.add(key=key, value=value)
    return made


def test_external_weights_are_found_in_every_place():
    """External weights are found in initializers, subgraphs, attributes and functions of a model."""
    model = scaling(1.0)
    model.metadata_props.add(key="location", value="not a file")
    model.graph.initializer.append(tensor("a", "initializer"))
    model.graph.initializer.append(tensor("b"))
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor("c", "values"), dims=[1]))
    inner = helper.make_graph([], "inner", [], [], initializer=[tensor("d", "inner graph"), tensor("e", "initializer")])
    constant = helper.make_node("Constant", [], ["k"], value=tensor("f", "attribute"))
    branch = helper.make_node("If", ["x"], ["z"], then_branch=inner)
    model.graph.node.extend([constant, branch])
    function = onnx.FunctionProto(
        name="f", node=[helper.make_node("Constant", [], ["k"], value=tensor("g", "function"))]
    )
    model.functions.append(function)
    found = external_files(model.SerializeToString(), "m")
    assert found == ["attribute", "function", "initializer", "inner graph", "values"]


def test_model_in_ort_format_has_no_external_files():
    """A model in onnxruntime's own format is a single file without external weights."""
    assert external_files(b"\x18\0\0\0ORTM\xff\xff\xff\xff", "m") == []


@given(st.binary(max_size=60))
@settings(max_examples=200)
def test_arbitrary_bytes_raise_only_value_error(data):
    try:
        names = external_files(data, "m")
    except ValueError:
        return
    assert all(isinstance(name, str) for name in names)


@pytest.mark.parametrize("damage", [b"\x3a\xff", b"\x3a\x05ab", b"\x0b", b"\x80", b"\x09abc"])
def test_a_truncated_or_corrupt_model_is_an_error(damage):
    with pytest.raises(ValueError, match="an ONNX model"):
        external_files(damage, "m")


def test_fields_of_a_fixed_size_are_stepped_over():
    assert external_files(b"\x09" + bytes(8) + b"\x0d" + bytes(4) + b"\x08\xff\x01", "m") == []


class Holder:
    def method(self, batch):
        return batch

    @staticmethod
    def static(batch):
        return batch


def make():
    shift = 1

    def closing(batch):
        return batch + shift

    def within(batch):
        return batch

    return closing, within


def twice(batch):
    return batch * 2


@functools.wraps(twice)
def wrapped(batch):
    return batch


def test_function_fingerprint_has_name_and_digest():
    backend = CpuBackend(twice, executor="inline")
    name, digest = backend.fingerprint.split()
    assert (name, len(digest)) == (f"{__name__}:twice", 32)
    assert CpuBackend(twice, version="2", workers=3).fingerprint == f"{backend.fingerprint} 2"
    assert CpuBackend(Holder.static).fingerprint.startswith(f"{__name__}:Holder.static ")


@pytest.mark.parametrize(
    "function", [lambda batch: batch, *make(), wrapped, Holder().method, functools.partial(twice), len, Holder]
)
def test_function_without_a_unique_name_has_none(function):
    assert CpuBackend(function, executor="inline").fingerprint is None
    assert fingerprint_of_function(function, "1") is None


def test_script_function_fingerprint_has_script_path(monkeypatch):
    """The fingerprint of a function in `__main__` includes the path of the script; without a script it is `None`."""
    monkeypatch.setattr(twice, "__module__", "__main__")
    monkeypatch.setitem(sys.modules, "__main__", sys.modules[__name__])
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "/srv/faces.py")
    assert fingerprint_of_function(twice, "2").startswith("__main__ /srv/faces.py:twice ")
    monkeypatch.delattr(sys.modules["__main__"], "__file__")  # typed in: another of its name may do anything
    assert fingerprint_of_function(twice, "2") is None


def test_numba_function_has_the_source_fingerprint():
    assert fingerprint_of_function(numba.njit(twice), None) == fingerprint_of_function(twice, None)


def test_version_must_be_text():
    with pytest.raises(TypeError, match="version: expected a string"):
        CpuBackend(twice, version=2)


KEY = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from test_fingerprint import key_through_a_stack
print(key_through_a_stack(sys.argv[1]).hex())
"""


def key_through_a_stack(path):
    cache = EdgeCache()
    stack = Stack(cache, AdaptiveBatcher(max_batch_size=4), CircuitBreaker(), OnnxBackend(path))
    return stack.inner.key_of(Request(np.arange(64, dtype=np.float32), tenant="t"))


def test_stack_keys_are_equal_across_processes(tmp_path):
    path = save(scaling(2.0), tmp_path / "a", external=True)
    elsewhere = tmp_path / "b"
    shutil.copytree(path.parent, elsewhere)
    keys = {key_through_a_stack(path).hex()}
    for seed in ("1", "2"):
        command = [sys.executable, "-c", KEY, str(elsewhere / "model.onnx"), str(Path(__file__).parent)]
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        keys.add(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.strip())
    assert len(keys) == 1
    assert key_through_a_stack(save(scaling(3.0), tmp_path / "c", external=True)).hex() not in keys


def test_function_backend_keys_use_name_and_version():
    """Cache keys of a function backend depend on the function's name and version, not on its executor."""

    def key(**how):
        batched = AdaptiveBatcher(max_batch_size=4).wrap(CircuitBreaker().wrap(CpuBackend(twice, **how)))
        return EdgeCache().wrap(batched).key_of(Request(1.0))

    assert key() == key(executor="inline")
    assert key() != key(version="2")

"""Loading of a model: its sessions, and the difference between two loads with the same settings."""

import attrs
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto as Tensor
from onnx import helper

from streaminfer.backends.onnx import loader as module
from streaminfer.backends.onnx.loader import ModelLoader

F32 = np.float32

LOADER = ModelLoader(
    runtime=onnxruntime,
    new_options=onnxruntime.RunOptions,
    providers=None,
    threads=None,
    sessions=1,
    warmup_sizes=(),
    batch_axes={},
    shared_inputs={},
    shared_outputs=(),
    outputs=None,
    session_options=None,
    example=None,
    binding=None,
    non_finite="allow",
)
"""Loader with the defaults of `OnnxBackend`."""


def sessions_of(model):
    return {id(worker._session) for worker in model.workers}


@pytest.fixture
def scaled(build_model):
    """Return a model that computes y = x * factor."""
    return build_model(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        [("x", Tensor.FLOAT, ("batch", 2)), ("factor", Tensor.FLOAT, ())],
        [("y", Tensor.FLOAT, ("batch", 2))],
    )


def test_cpu_workers_share_one_session(doubling, monkeypatch):
    """Workers on the CPU share one session, because each session has its own copy of the weights.

    onnxruntime allows several runs of a session at the same time.
    """
    made, load = [], module.load
    monkeypatch.setattr(module, "load", lambda *arguments: made.append(load(*arguments)) or made[-1])

    model = attrs.evolve(LOADER, sessions=8).load(doubling)

    assert len(model.workers) == 8
    assert sessions_of(model) == {id(session) for session in made}
    assert len(made) == 1


def test_sessions_off_the_cpu_are_not_shared(doubling, monkeypatch):
    """Each worker has a session if the model does not run on the CPU alone."""

    def load_on_the_cpu(runtime, source, name, options, providers):
        return runtime.InferenceSession(source, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(module, "choose_providers", lambda *_, **__: [("CPUExecutionProvider", {}), ("Other", {})])
    monkeypatch.setattr(module, "choose_binding", lambda *_: ("off", ("cpu", 0)))
    monkeypatch.setattr(module, "load", load_on_the_cpu)

    model = attrs.evolve(LOADER, sessions=3).load(doubling)

    assert len(sessions_of(model)) == 3


def test_the_cuda_runtime_is_loaded_once(doubling, monkeypatch):
    """All workers of a model on a GPU bind memory with one CUDA runtime."""
    loaded = []
    monkeypatch.setattr(module, "choose_binding", lambda *_: ("pinned", ("cuda", 0)))
    monkeypatch.setattr(module, "load_cuda_runtime", lambda: loaded.append(1) or "cuda")

    model = attrs.evolve(LOADER, sessions=2).load(doubling)

    assert loaded == [1]
    assert [(worker._bound.cuda, worker._bound.device) for worker in model.workers] == [("cuda", ("cuda", 0))] * 2


def test_each_load_makes_a_model_of_its_own(doubling):
    """Two loads of a model have the same fingerprint and no session in common."""
    first, second = LOADER.load(doubling), LOADER.load(doubling)

    assert first.fingerprint == second.fingerprint
    assert first.file_bytes == len(doubling)
    assert sessions_of(first).isdisjoint(sessions_of(second))


def test_a_model_has_copies_of_the_shared_inputs(scaled):
    """A model does not see changes that the caller makes to a shared input after the load."""
    factor = np.array(3, F32)
    model = attrs.evolve(LOADER, shared_inputs={"factor": factor}).load(scaled)

    factor[...] = 5

    assert model.shared["factor"] == 3

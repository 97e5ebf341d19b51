"""Small ONNX models, batches, real servers, and the check that no test leaves a thread or a process behind."""

import gc
import logging
import multiprocessing
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from streaminfer.request import Batch, Request

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "examples" / "assets"
# the servers are shared with the benchmarks, and not part of the package
sys.path.append(str(ROOT / "benchmarks"))


@pytest.fixture(scope="session")
def assets():
    return ASSETS


@pytest.fixture(autouse=True)
def nothing_left_behind():
    before = set(threading.enumerate())
    yield
    if left := set(threading.enumerate()) - before:
        gc.collect()  # grpc's own thread ends with its last channel, to which a traceback may still refer
        for thread in left:
            thread.join(10.0)
    assert set(threading.enumerate()) <= before
    assert multiprocessing.active_children() == []


def build(nodes, inputs, outputs, *, initializers=(), domains=()):
    """Return the bytes of a model; an input or output is (name, element type, shape) or a value info of ONNX."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(*one) if isinstance(one, tuple) else one for one in inputs],
        [helper.make_tensor_value_info(*one) if isinstance(one, tuple) else one for one in outputs],
        initializer=list(initializers),
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(*domain) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


@pytest.fixture(scope="session")
def build_model():
    return build


@pytest.fixture(scope="session")
def doubling():
    """Return a model that computes y = x + x, for any shape [batch, n]."""
    value = ("batch", "n")
    return build(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [("x", TensorProto.FLOAT, value)],
        [("y", TensorProto.FLOAT, value)],
    )


@pytest.fixture(scope="session")
def identity():
    """Return a factory of models that compute y = x, for a given element type and shape."""

    def make(element_type, shape, output_shape=None):
        return build(
            [helper.make_node("Identity", ["x"], ["y"])],
            [("x", element_type, shape)],
            [("y", element_type, shape if output_shape is None else output_shape)],
        )

    return make


@pytest.fixture(scope="session")
def endless():
    """Return a model that computes y = x after 2**62 iterations of a loop: a run ends only if it is interrupted."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Abs", ["value_in"], ["value_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value_in", TensorProto.FLOAT, ["batch", "n"]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value_out", TensorProto.FLOAT, ["batch", "n"]),
        ],
    )
    return build(
        [helper.make_node("Loop", ["rounds", "go", "x"], ["y"], body=body)],
        [("x", TensorProto.FLOAT, ["batch", "n"])],
        [("y", TensorProto.FLOAT, ["batch", "n"])],
        initializers=[
            helper.make_tensor("rounds", TensorProto.INT64, [], [2**62]),
            helper.make_tensor("go", TensorProto.BOOL, [], [True]),
        ],
    )


class ObservedBatch(Batch):
    """Batch that records each read of its inputs, with the thread that reads them."""

    __slots__ = ("_value", "read", "readers")

    def __init__(self, inputs, rows):
        self.readers = []
        self.read = threading.Event()
        super().__init__(inputs, rows)

    @property
    def inputs(self):
        self.readers.append(threading.current_thread())
        self.read.set()
        if isinstance(self._value, Exception):
            raise self._value
        return self._value

    @inputs.setter
    def inputs(self, value):
        self._value = value


@pytest.fixture(scope="session")
def batch():
    """Return a factory of batches of one stacked array, or of any other inputs of a backend."""

    def make(inputs, rows=None):
        count = len(inputs) if rows is None else rows
        return ObservedBatch(inputs, [Request(None) for _ in range(count)])

    return make


@pytest.fixture
def ramp():
    """Return a factory of float32 arrays of a given shape, with the values 0, 1, 2, …"""

    def make(*shape):
        return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)

    return make


@pytest.fixture(scope="session")
def _servers():
    from servers.environments import supported

    if not supported():
        pytest.skip("the servers' wheels are for Linux on x86-64")


@pytest.fixture(scope="session")
def triton(_servers):
    """Run a real Triton with all models, for tests that leave its state unchanged."""
    from servers.triton_server import TritonServer

    with TritonServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _triton_lives(request):
    """Restart the session's Triton if it has crashed.

    A defect of Triton 2.51 can crash it after the end of the test that caused the crash: see docs/how-to/triton.md.
    """
    if "triton" in request.fixturenames and not (server := request.getfixturevalue("triton")).running:
        logging.getLogger(__name__).warning("the Triton of this session had crashed; it is restarted")
        server.restart()


@pytest.fixture(scope="session")
def _fragile_triton(_servers):
    from servers.triton_server import TritonServer

    with TritonServer(["mlp"]) as server:
        yield server


@pytest.fixture
def fragile_triton(_fragile_triton):
    """Run a real Triton with only the model ``mlp``, for a test that breaks it; the next test gets it repaired."""
    if not _fragile_triton.is_whole():  # a defect of Triton can crash it just after the previous test checked it
        _fragile_triton.restart()
    yield _fragile_triton
    if not _fragile_triton.is_whole():
        _fragile_triton.restart()


@pytest.fixture(scope="session")
def mlserver(_servers):
    """Run a real MLServer, which has the same protocol without Triton's extensions."""
    from servers.mlserver_server import MLServer

    with MLServer() as server:
        yield server


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """Return a certificate authority."""
    from servers.certificates import Authority

    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def kserve(_servers):
    """Run KServe's Python server, which has the same protocol without versions and without Triton's extensions."""
    from servers.kserve_server import KServe

    with KServe() as server:
        yield server

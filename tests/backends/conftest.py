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
        gc.collect()  # grpc's own thread ends with its last channel, which a traceback may still refer to
        for thread in left:
            thread.join(10.0)
    assert set(threading.enumerate()) <= before
    assert multiprocessing.active_children() == []


def build(nodes, inputs, outputs, *, initializers=(), domains=()):
    """The bytes of a model; inputs and outputs are (name, element type, shape)."""
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
    """y = x + x, of any shape [batch, n]."""
    value = ("batch", "n")
    return build(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [("x", TensorProto.FLOAT, value)],
        [("y", TensorProto.FLOAT, value)],
    )


@pytest.fixture(scope="session")
def identity():
    """A factory: y = x of a given element type and shape."""

    def make(element_type, shape, output_shape=None):
        return build(
            [helper.make_node("Identity", ["x"], ["y"])],
            [("x", element_type, shape)],
            [("y", element_type, shape if output_shape is None else output_shape)],
        )

    return make


@pytest.fixture(scope="session")
def endless():
    """y = x after 2**62 rounds of a loop: it ends only when it is told to."""
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
    """Says on which thread, and how often, its inputs are read."""

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
    """A factory of batches of one stacked array, or of what else the backend gets."""

    def make(inputs, rows=None):
        count = len(inputs) if rows is None else rows
        return ObservedBatch(inputs, [Request(None) for _ in range(count)])

    return make


@pytest.fixture
def ramp():
    """A float32 array of a shape, with the values 0, 1, 2, …"""

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
    """A real Triton with all models, for tests that leave it as it was."""
    from servers.triton_server import TritonServer

    with TritonServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _triton_lives(request):
    """Triton 2.51 can crash of a defect of its own, after the test that caused it: see docs/how-to/triton.md."""
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
    """A real Triton with the model ``mlp`` only, for a test that breaks it: the next one gets it whole again."""
    if not _fragile_triton.is_whole():  # it can crash a moment after the last test looked, of a defect of its own
        _fragile_triton.restart()
    yield _fragile_triton
    if not _fragile_triton.is_whole():
        _fragile_triton.restart()


@pytest.fixture(scope="session")
def mlserver(_servers):
    """A real MLServer: the same protocol without Triton's extensions."""
    from servers.mlserver_server import MLServer

    with MLServer() as server:
        yield server


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """A certificate authority."""
    from servers.certificates import Authority

    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def kserve(_servers):
    """KServe's Python server: the same protocol without versions and without Triton's extensions."""
    from servers.kserve_server import KServe

    with KServe() as server:
        yield server

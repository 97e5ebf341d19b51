"""Fixtures: an app without a network, models for it, and servers on loopback."""

import asyncio
import contextlib
import gc
import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import streaminfer as si
from streaminfer.backends.signature import TensorSpec
from streaminfer.testing import ScriptedBackend

# bodies of the protocol's grammar are shared with the benchmark
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(autouse=True)
def nothing_left_behind(caplog):
    before = set(threading.enumerate())
    yield
    if left := set(threading.enumerate()) - before:
        # a logged error holds its frames (in CPython 3.12 and 3.13 also its callers' frames), and one holds the channel
        caplog.get_records("call").clear()
        gc.collect()  # grpc's own thread ends with its last channel
        for thread in left:
            thread.join(10.0)
    assert set(threading.enumerate()) <= before


class Reply:
    """Response that an app sent."""

    def __init__(self, messages):
        start, *parts = messages
        self.status = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.body = b"".join(bytes(part["body"]) for part in parts)

    @property
    def json(self):
        return json.loads(self.body)


async def ask(app, method, path, body=b"", headers=(), *, chunks=None, gone=None, root_path=""):
    """Send one request without a network; the client disconnects when the event ``gone`` is set."""
    parts = [body] if chunks is None else list(chunks)
    incoming = [
        {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
        for number, part in enumerate(parts)
    ]
    sent = []

    async def receive():
        if incoming:
            return incoming.pop(0)
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in dict(headers).items()]
    scope = {"type": "http", "method": method, "path": path, "root_path": root_path, "headers": raw}
    await app(scope, receive, send)
    return Reply(sent) if sent else None


@pytest.fixture
def ask_app():
    return ask


def infer_body(array, name="inputs", datatype="FP32", **more):
    tensor = {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.ravel().tolist()}
    return json.dumps({"inputs": [tensor], **more}).encode()


@pytest.fixture
def body_of():
    return infer_body


@pytest.fixture
def doubling_stack():
    """Return a stack that doubles float32[4]."""
    backend = si.CpuBackend(lambda rows: rows * 2, example=np.zeros(4, np.float32), executor="inline")
    return si.Stack(si.AdaptiveBatcher(max_batch_size=8), backend)


@pytest.fixture
def scripted():
    """Return a function that makes a scripted model without a description, a stack around it and an app."""

    def make(*steps, limits=None, layers=(), batcher=None, **options):
        backend = ScriptedBackend(*steps, **options)
        stack = si.Stack(*layers, batcher or si.AdaptiveBatcher(max_batch_size=8), backend)
        return backend, stack, si.serving.asgi_app({"m": stack}, limits=limits)

    return make


@pytest.fixture(scope="session")
def affine():
    """Return the bytes of an ONNX model: y = x @ w, float32[batch, 3], and z = x + x, float32[batch, 8]."""
    weights = np.random.default_rng(0).random((8, 3), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["x", "x"], ["z"])],
        "affine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 8))],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 3)),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ("batch", 8)),
        ],
        initializer=[helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.ravel())],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


@pytest.fixture
def affine_stack(affine):
    return si.Stack(si.AdaptiveBatcher(max_batch_size=8), si.OnnxBackend(affine))


@contextlib.asynccontextmanager
async def grpc_server(*servicers):
    """Run a server of grpc.aio; yield its address."""
    import grpc

    server = grpc.aio.server()
    server.add_generic_rpc_handlers(servicers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(5.0)


@pytest.fixture
def serve_grpc():
    return grpc_server


class Counting:
    """Service with many responses to one request: the numbers below its input."""

    many_answers = True

    def __init__(self, *, fails_at=None, hangs_at=None, cancelled_at=None):
        self.fails_at, self.hangs_at, self.cancelled_at, self.closed = fails_at, hangs_at, cancelled_at, 0
        self.made = []  # referred to here, so that the garbage collector closes none

    async def call(self, request):
        self.made.append(self.numbers(int(request.inputs[0])))
        return si.Response(self.made[-1])

    def model_tensors(self):
        return si.protocols.ModelTensors((TensorSpec("x", np.dtype(np.int64), (None, 1)),))

    async def numbers(self, below):
        try:
            for number in range(below):
                if number == self.fails_at:
                    raise ValueError("secret")
                if number == self.cancelled_at:
                    raise asyncio.CancelledError
                if number == self.hangs_at:
                    await asyncio.Event().wait()
                yield {"n": np.array([number])}
        finally:
            self.closed += 1


@pytest.fixture
def counting():
    return Counting

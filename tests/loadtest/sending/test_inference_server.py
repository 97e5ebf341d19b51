"""Load on a server of ours, from a separate process, over both protocols."""

import asyncio
from functools import partial

import grpc
import numpy as np
from onnx import TensorProto, helper
from web_server import WebServer

import streaminfer as si
from streaminfer.loadtest import Constant, inference_server, run


def doubling_model():
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubling", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def doubling_stack():
    return si.Stack(si.AdaptiveBatcher(max_batch_size=8), si.OnnxBackend(doubling_model()))


SETTINGS = {
    "senders": 1, "arrivals": Constant(50.0), "inputs": np.ones((3, 4), np.float32), "duration_s": 0.5, "slo_s": 10.0,
}  # fmt: skip


def test_http():
    """Each request from another process over HTTP gets a response with the stages of the server."""
    with WebServer(si.serving.asgi_app({"doubling": doubling_stack()})) as server:
        connect = partial(inference_server, server.url, "doubling", "http")

        report = asyncio.run(run(connect, **SETTINGS))

    assert report.outcomes == {"ok": 25}
    assert {tail.name: tail.count for tail in report.by_stage()} == {"queue": 25, "assembly": 25, "inference": 25}


def test_grpc():
    """Each request from another process over gRPC, through tritonclient, gets a response."""

    async def main():
        async with doubling_stack() as stack:
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((si.serving.grpc_servicer({"doubling": stack}),))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            try:
                return await run(partial(inference_server, f"127.0.0.1:{port}", "doubling", "grpc"), **SETTINGS)
            finally:
                await server.stop(None)

    assert asyncio.run(main()).outcomes == {"ok": 25}

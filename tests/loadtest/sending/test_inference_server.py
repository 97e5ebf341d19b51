"""A server of ours under load, from a process of its own."""

import asyncio
from functools import partial

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


def test_server_is_called_from_a_sender_process():
    """Requests cross process and network, and all are answered."""
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=8), si.OnnxBackend(doubling_model()))
    with WebServer(si.serving.asgi_app({"doubling": stack})) as server:
        connect = partial(inference_server, server.url, "doubling", "http")

        report = asyncio.run(
            run(
                connect,
                senders=1,
                arrivals=Constant(50.0),
                inputs=np.ones((3, 4), np.float32),
                duration_s=0.5,
                slo_s=10.0,
            )
        )

    assert report.outcomes == {"ok": 25}
    assert {tail.count for tail in report.by_stage()} <= {25}

"""Limits on the contents of one request, each in both protocols."""

import asyncio
import json

import grpc
import numpy as np
import pytest
from served_models import INFER
from tritonclient.grpc import service_pb2 as pb

import streaminfer as si
from streaminfer.serving import Limits


def json_request(names, wanted):
    inputs = [{"name": name, "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} for name in names]
    return json.dumps({"inputs": inputs, "outputs": [{"name": name} for name in wanted]}).encode()


def grpc_request(names, wanted):
    message = pb.ModelInferRequest(model_name="m")
    for name in names:
        message.inputs.add(name=name, datatype="FP32", shape=[1, 2])
        message.raw_input_contents.append(np.ones(2, np.float32).tobytes())
    for name in wanted:
        message.outputs.add(name=name)
    return message.SerializeToString()


@pytest.mark.parametrize(("names", "wanted"), [("ab", ""), ("a", "ab")], ids=["inputs", "outputs"])
@pytest.mark.parametrize("most", [1, 2])
def test_tensors_are_counted(scripted, ask_app, serve_grpc, names, wanted, most):
    limits = Limits(max_tensors=most)
    _, stack, app = scripted(limits=limits)

    async def scenario():
        async with (
            app,
            serve_grpc(si.serving.grpc_servicer({"m": stack}, limits=limits)) as url,
            grpc.aio.insecure_channel(url) as channel,
        ):
            reply = await ask_app(app, "POST", INFER, json_request(names, wanted))
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(grpc_request(names, wanted))
            return reply.status, (await call.code()).name

    status, code = asyncio.run(asyncio.wait_for(scenario(), 30))

    assert (status == 413) == (most == 1)
    assert (code == "RESOURCE_EXHAUSTED") == (most == 1)

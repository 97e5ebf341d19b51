"""Requests that a server rejects or does not answer: reference counts alone free their inputs."""

import asyncio
import contextlib
import gc
import json
import time
import weakref

import grpc
import numpy as np
import pytest
from web_server import WebServer

import streaminfer as si
from streaminfer.backends.triton import TritonBackend
from streaminfer.backends.triton.endpoint import find_endpoint
from streaminfer.backends.triton.errors import ServerError
from streaminfer.backends.triton.messages import InferRequest, Tensor
from streaminfer.backends.triton.transport.grpc_transport import GrpcTransport
from streaminfer.backends.triton.transport.headers import Headers


@pytest.fixture
def _no_collector():
    gc.disable()
    yield
    gc.enable()


def failing_server(status, shape):
    """Return an ASGI app that describes a model, and responds to each inference with a status."""
    tensor = {"datatype": "FP32", "shape": shape}
    model = {"name": "m", "versions": ["1"], "platform": "", "inputs": [{"name": "x", **tensor}]}
    descriptions = {"/v2": {"name": "server", "version": "1", "extensions": []}}
    descriptions["/v2/models/m"] = {**model, "outputs": [{"name": "y", **tensor}]}

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        while (await receive()).get("more_body", False):
            pass
        path = scope["path"]
        fails = path.endswith("/infer")
        body = {"error": "out of order"} if fails else descriptions.get(path, {})
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status if fails else 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    return app


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("shape", [[-1, 2], [2]], ids=["rows", "no batch axis"])
@pytest.mark.parametrize("status", [400, 503])
def test_failed_request_frees_its_inputs(status, shape):
    """A request that the server fails leaves its inputs in no cycle with the error."""
    left = []

    async def call(stack):
        inputs = {"x": np.zeros(2, np.float32)}
        left.append(weakref.ref(inputs["x"]))
        await stack(inputs)

    async def main(url):
        backend = TritonBackend(url, "m", protocol="http", statistics_every_s=None)
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), backend) as stack:
            ends = await asyncio.gather(*(call(stack) for _ in range(3)), return_exceptions=True)
            assert all(isinstance(it, si.StreamInferError) for it in ends)
            del ends
        return sum(it() is not None for it in left)

    with WebServer(failing_server(status, shape)) as server:
        assert asyncio.run(main(server.url)) == 0


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("streams", [False, True], ids=["call", "stream"])
def test_failed_grpc_call_frees_its_inputs(streams):
    """A gRPC call that fails leaves its inputs in no cycle with the error."""

    async def call(transport):
        inputs = np.zeros(2, np.float32)
        left = weakref.ref(inputs)
        request = InferRequest("m", "", [Tensor("x", "FP32", (2,), inputs)])
        with contextlib.suppress(ServerError):
            if streams:
                async for _ in transport.stream(request, 5.0):
                    pass
            else:
                await transport.infer(request, 5.0)
            raise AssertionError
        return left

    async def main():
        server = grpc.aio.server()  # which implements no method
        address = find_endpoint(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", "grpc", None, insecure=False)
        await server.start()
        transport = GrpcTransport(address, Headers(None), None, time.monotonic_ns)
        try:
            left = await asyncio.create_task(call(transport))
            return left() is None
        finally:
            await transport.close()
            await server.stop(None)

    assert asyncio.run(main())

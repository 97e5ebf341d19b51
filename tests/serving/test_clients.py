"""Standard clients over real connections: tritonclient, and our own `TritonBackend`."""

import asyncio
import json
import runpy
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc.aio as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException
from waiting import until
from web_server import WebServer

import streaminfer as si
from streaminfer.backends.triton import TritonBackend
from streaminfer.testing import HANG

EXAMPLES = Path(__file__).parents[2] / "examples"
X = np.random.default_rng(1).random((5, 8), np.float32)


@pytest.fixture
def serve_http():
    return lambda **stacks: WebServer(si.serving.asgi_app(stacks))


def local_answers(stack):
    async def scenario():
        async with stack:
            return [await stack(row) for row in X]

    return asyncio.run(scenario())


def wanted(client, x=X, *, binary=True):
    tensor = client.InferInput("x", list(x.shape), "FP32")
    if client is http_client:
        tensor.set_data_from_numpy(x, binary_data=binary)
    else:
        tensor.set_data_from_numpy(x)
    return [tensor]


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_tritonclient_over_http(serve_http, affine_stack, binary):
    with serve_http(affine=affine_stack) as server, http_client.InferenceServerClient(server.url[7:]) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("affine")
        assert not client.is_model_ready("other")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        assert client.get_model_config("affine")["name"] == "affine"
        assert client.get_model_metadata("affine", "1")["versions"] == ["1"]
        outputs = [http_client.InferRequestedOutput("z", binary_data=binary)]
        answer = client.infer(
            "affine", wanted(http_client, binary=binary), outputs=outputs, request_id="r", timeout=10**7
        )
        assert answer.get_response()["id"] == "r"
        assert np.array_equal(answer.as_numpy("z"), X + X)
        assert answer.as_numpy("y") is None
        assert client.get_inference_statistics("affine")["model_stats"][0]["inference_count"] == 5
        with pytest.raises(InferenceServerException, match="'w'"):
            wrong = wanted(http_client)
            wrong[0]._name = "w"
            client.infer("affine", wrong)


def test_tritonclient_over_grpc(serve_grpc, affine_stack):
    async def scenario():
        async with (
            affine_stack,
            serve_grpc(si.serving.grpc_servicer({"affine": affine_stack})) as url,
            grpc_client.InferenceServerClient(url) as client,
        ):
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("affine")
            assert "sequence" in (await client.get_server_metadata()).extensions
            config = (await client.get_model_config("affine")).config
            assert (config.max_batch_size, config.input[0].dims) == (256, [8])
            assert (await client.get_model_metadata("affine")).outputs[0].shape == [-1, 3]
            answer = await client.infer("affine", wanted(grpc_client), request_id="r", client_timeout=30)
            assert np.array_equal(answer.as_numpy("z"), X + X)
            assert answer.get_response().id == "r"
            statistics = await client.get_inference_statistics("affine", as_json=True)
            assert statistics["model_stats"][0]["inference_count"] == "5"
            for model, version in (("other", ""), ("affine", "2")):
                with pytest.raises(InferenceServerException, match="not found"):
                    await client.infer(model, wanted(grpc_client), model_version=version)
                with pytest.raises(InferenceServerException, match="not found"):
                    await client.get_model_config(model, version)

    asyncio.run(scenario())


@pytest.fixture(params=["http", "grpc"])
def ask_remotely(request, serve_http, serve_grpc):
    """Return a function that sends inputs to a stack through our own client; it returns the client and the outputs."""

    async def through(url, name, inputs):
        remote = TritonBackend(url, name, protocol=request.param)
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), remote) as client:
            return remote, await asyncio.gather(*map(client, inputs))

    async def over_grpc(name, stack, inputs):
        async with stack, serve_grpc(si.serving.grpc_servicer({name: stack})) as url:
            return await through(url, name, inputs)

    def ask(name, stack, inputs):
        if request.param == "grpc":
            return asyncio.run(over_grpc(name, stack, inputs))
        with serve_http(**{name: stack}) as server:
            return asyncio.run(through(server.url, name, inputs))

    return ask


def test_our_own_client_gets_the_bits_of_a_local_run(ask_remotely, affine_stack):
    local = local_answers(affine_stack)

    remote, answers = ask_remotely("affine", affine_stack, X)

    assert remote.max_batch_size == 256
    for row, expected in zip(answers, local, strict=True):
        assert row.keys() == expected.keys()
        assert all(np.array_equal(row[name], expected[name]) for name in row)


def test_own_client_accepts_a_cpu_backend(ask_remotely):
    """The server announces the tensors that `CpuBackend` learns from its example, so our client accepts the model."""
    stack = runpy.run_path(str(EXAMPLES / "serve.py"))["stack"]

    remote, answers = ask_remotely("doubles", stack, X[:, :4])

    assert [(spec.name, spec.dtype, spec.row_shape) for spec in remote.outputs] == [("output", "f4", (4,))]
    assert np.array_equal(np.stack(answers), X[:, :4] * 2)


def test_a_connection_that_closes_cancels_the_request(serve_http, scripted, body_of):
    backend, stack, _ = scripted(HANG)

    async def scenario(port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        body = body_of(X[:1])
        writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        await until(lambda: backend.running)
        writer.close()
        await writer.wait_closed()
        await until(lambda: not backend.running)

    with serve_http(m=stack) as server:
        asyncio.run(asyncio.wait_for(scenario(server.port), 30))


def test_an_error_is_json(serve_http, scripted):
    _, stack, _ = scripted()

    with serve_http(m=stack) as server, pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{server.url}/v2/models/other")  # noqa: S310 - loopback

    with caught.value as reply:
        assert reply.code == 404
        assert json.loads(reply.read()).keys() == {"error"}

"""Conformance of our server, checked with standard clients; the benchmark `conformance` checks other servers too."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from servers.conformance import CHECKS, Target
from tritonclient.utils import InferenceServerException
from web_server import WebServer

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "serving"))


@pytest.fixture(scope="module")
def ours():
    from bench_conformance import our_server

    with our_server() as target:
        yield target


@pytest.mark.parametrize("name", CHECKS)
def test_own_server_conforms(ours, name):
    CHECKS[name](ours)


class Careless(grpc.GenericRpcHandler):
    """Handler that returns an empty message for each call, and no message for a stream."""

    def service(self, handler_call_details):
        if "Stream" in handler_call_details.method:
            return grpc.stream_stream_rpc_method_handler(lambda *_: iter(()))
        return grpc.unary_unary_rpc_method_handler(lambda *_: b"")


@pytest.fixture(scope="module")
def careless():
    """Run a server whose responses to all requests are empty and successful."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    executor = ThreadPoolExecutor(1)
    executor.submit(int).result()  # its thread starts before the tests count threads
    server = grpc.server(executor, handlers=(Careless(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with WebServer(app) as web:
        yield Target(f"127.0.0.1:{web.port}", f"127.0.0.1:{port}")
    server.stop(0).wait()
    executor.shutdown()


@pytest.mark.parametrize("name", [name for name in CHECKS if "perf_analyzer" not in name])  # it waits forever
def test_every_check_can_fail(careless, name):
    with pytest.raises((AssertionError, KeyError, IndexError, ValueError, InferenceServerException)):
        CHECKS[name](careless)

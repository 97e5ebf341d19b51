"""Errors that come on a stream of responses as text without a status; without Triton."""

import asyncio
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from triton_settings import make_settings
from tritonclient.grpc import service_pb2 as messages

from streaminfer.backends.signature import Signature
from streaminfer.backends.triton.endpoint import find_endpoint
from streaminfer.backends.triton.errors import ServerError
from streaminfer.backends.triton.messages import InferRequest
from streaminfer.backends.triton.model import read_model
from streaminfer.backends.triton.request_splitter import RequestSplitter
from streaminfer.backends.triton.transport.grpc_transport import GrpcTransport
from streaminfer.backends.triton.transport.headers import Headers
from streaminfer.errors import BackendError, DeadlineExceeded, Overloaded
from streaminfer.testing import FakeClock

CALL = InferRequest("m", "", [])


@asynccontextmanager
async def connected(respond, clock=time.monotonic_ns):
    """Yield a transport to a server whose streams have the responses of an asynchronous generator."""

    class Service(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.stream_stream_rpc_method_handler(
                respond, response_serializer=messages.ModelStreamInferResponse.SerializeToString
            )

    server = grpc.aio.server(handlers=[Service()])
    address = find_endpoint(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", "grpc", None, insecure=False)
    await server.start()
    transport = GrpcTransport(address, Headers(None), None, clock)
    try:
        yield transport
    finally:
        await transport.close()
        await server.stop(None)


@pytest.mark.parametrize(
    ("now_ns", "deadline_ns", "expected"),
    [(1_000, 1_000, DeadlineExceeded), (999, 1_000, BackendError), (1_000, None, BackendError)],
    ids=["late", "in time", "no deadline"],
)
def test_error_of_a_stream_after_its_deadline(now_ns, deadline_ns, expected):
    """An error of a stream is `DeadlineExceeded` at or after its deadline, and `BackendError` before it.

    A server that ends a stream at its deadline can report that before the client's own timer does.
    """
    clock = SimpleNamespace(now_ns=0)

    async def stream(call, timeout_s):
        clock.now_ns = now_ns
        raise ServerError("UNKNOWN", "the time is up")
        yield

    session = SimpleNamespace(
        model=SimpleNamespace(max_batch_size=0),
        changes=0,
        transport=SimpleNamespace(stream=stream),
        call=lambda arrays, parameters: None,
    )
    splitter = RequestSplitter(session, make_settings(clock=lambda: clock.now_ns), lambda: None)

    async def main():
        with pytest.raises(expected, match="the time is up") as caught:
            await anext(splitter.responses({"n": np.ones((1, 1))}, {}, deadline_ns))
        assert type(caught.value) is expected
        assert isinstance(caught.value.__cause__, ServerError)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "expected", "lost"),
    [
        ("Request for unknown model: 'm' is not found", BackendError, 1),
        ("[request id: <id_unknown>] Exceeds maximum queue size", Overloaded, 0),
        ("Request timeout expired", DeadlineExceeded, 0),
        ("failed at 3", BackendError, 0),
    ],
    ids=["model lost", "queue full", "queue timeout", "model"],
)
def test_stream_error_text_maps_to_the_error_type(text, expected, lost):
    """The text of a stream's error determines its type, and whether the backend loads a lost model again.

    A rejection by the server's queue is not a failure of the model.
    """
    losses = []

    async def respond(requests, context):
        yield messages.ModelStreamInferResponse(error_message=text)

    async def main():
        async with connected(respond) as transport:
            session = SimpleNamespace(
                model=SimpleNamespace(max_batch_size=0), changes=0, transport=transport, call=lambda *_: CALL
            )
            splitter = RequestSplitter(session, make_settings(), lambda: losses.append(1))
            with pytest.raises(expected, match=text[-10:]) as caught:
                await anext(splitter.responses({"n": np.ones((1, 1))}, {}, None))
            assert type(caught.value) is expected

    asyncio.run(main())
    assert len(losses) == lost


@pytest.mark.parametrize("width", [1, 2])
def test_replaced_decoupled_model_is_described_again(width):
    """A decoupled model that was replaced is described again.

    It is not described again if the inputs do not match its current description either.
    """
    metadata = {"inputs": [{"name": "n", "datatype": "INT32", "shape": [1]}]}
    model = read_model("m", "1", {**metadata, "outputs": metadata["inputs"]}, {"max_batch_size": 0})
    refreshed = []

    async def respond(requests, context):
        yield messages.ModelStreamInferResponse(error_message="unexpected shape for input 'n' for model 'm'.")

    async def refresh_model(changes):
        refreshed.append(changes)

    async def main():
        async with connected(respond) as transport:
            session = SimpleNamespace(
                model=model, changes=3, transport=transport, call=lambda *_: CALL,
                signature=Signature(model.inputs, model.outputs), refresh_model=refresh_model,
            )  # fmt: skip
            splitter = RequestSplitter(session, make_settings(), lambda: None)
            with pytest.raises(BackendError, match="unexpected shape") as caught:
                await anext(splitter.responses({"n": np.ones((1, width), np.int32)}, {}, None))
            assert ("the model was replaced" in str(caught.value)) is (width == 1)

    asyncio.run(main())
    assert refreshed == ([3] if width == 1 else [])


@pytest.mark.parametrize("ending", ["deadline", "cancelled"])
@pytest.mark.parametrize(("silent_s", "is_replaced"), [(1.9, False), (2.0, True)])
def test_connection_with_a_silent_stream_is_replaced(ending, silent_s, is_replaced):
    """A connection is replaced if a stream on it receives nothing for 2 s, as for other calls.

    The time counts from the moment at which the caller awaits the next response.
    """
    clock = FakeClock()

    async def respond(requests, context):
        yield messages.ModelStreamInferResponse()
        await asyncio.Event().wait()

    async def main():
        async with connected(respond, clock) as transport:
            first = transport._link
            stream = transport.stream(CALL, 0.3 if ending == "deadline" else 600.0)
            await anext(stream)
            clock.advance(3.0)  # in which the caller worked on the response
            reading = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            clock.advance(silent_s)
            if ending == "cancelled":
                reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            assert (transport._link is not first) is is_replaced

    asyncio.run(main())

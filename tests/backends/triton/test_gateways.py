"""TritonBackend as the client of a gateway in front of three real servers, one at a time.

The gateway terminates TLS with certificates of `trustme`, requires a token, and announces limits.
"""

import asyncio
import time
import uuid

import grpc
import numpy as np
import pytest
import trustme
from servers.gateway import Certificates, GrpcGateway, HttpGateway
from servers.mlp import mlp_answers

import streaminfer as si
from streaminfer.backends.triton import Tls, TritonBackend
from streaminfer.backends.triton.endpoint import find_endpoint
from streaminfer.backends.triton.errors import ServerError
from streaminfer.backends.triton.messages import InferRequest
from streaminfer.backends.triton.transport.grpc_transport import GrpcTransport
from streaminfer.backends.triton.transport.headers import Headers
from streaminfer.errors import BackendError, DeadlineExceeded, Overloaded
from streaminfer.testing import FakeClock

TOKEN = uuid.uuid4().hex
GATEWAYS = {"grpc": GrpcGateway, "http": HttpGateway}
REFUSED = (BackendError, DeadlineExceeded)


@pytest.fixture(params=["grpc", "http"])
def protocol(request):
    return request.param


@pytest.fixture(params=["triton", "mlserver", "kserve"])
def target(request, protocol):
    server = request.getfixturevalue(request.param)
    return server.grpc_url if protocol == "grpc" else server.http_url


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    """Return a folder with an authority's certificate and two that it issued: a server's and a client's."""
    folder, authority = tmp_path_factory.mktemp("trustme"), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("localhost", "client"):
        issued = authority.issue_cert(name if name == "localhost" else "client@example.com")
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    return folder


@pytest.fixture
def tls(ca):
    return Certificates(ca / "localhost.pem", ca / "localhost.key")


@pytest.fixture
def mutual(ca):
    return Certificates(ca / "localhost.pem", ca / "localhost.key", ca / "ca.pem")


def rows(count):
    return np.random.default_rng(count).normal(size=(count, 8)).astype(np.float32)


def backend(gateway, protocol, **more):
    options = {"protocol": protocol, "headers": {"authorization": f"Bearer {TOKEN}"}, "timeout_s": 5.0, **more}
    return TritonBackend(gateway.url, "mlp", statistics_every_s=None, **options)


def test_a_service_behind_tls_and_a_token_answers(target, protocol, tls, ca):
    async def main():
        async with GATEWAYS[protocol](target, token=TOKEN, tls=tls) as gateway:
            one = backend(gateway, protocol, tls=Tls(ca=ca / "ca.pem"))
            assert one.encrypted
            async with si.Stack(si.AdaptiveBatcher(max_batch_size=8), one) as service:
                answers = await asyncio.gather(*map(service, rows(20)))
            np.testing.assert_allclose(answers, mlp_answers(rows(20)), 1e-4, 1e-5)
            assert gateway.passed > 0

    asyncio.run(main())


def test_a_wrong_token_is_reported_but_not_shown(target, protocol, tls, ca):
    async def main():
        async with GATEWAYS[protocol](target, token=TOKEN[::-1], tls=tls) as gateway:
            with pytest.raises(BackendError, match=r"UNAUTHENTICATED.*a token, please") as caught:
                await backend(gateway, protocol, tls=Tls(ca=ca / "ca.pem")).start()
            assert TOKEN not in str(caught.value)
            assert caught.value.retryable is False

    asyncio.run(main())


def test_a_stream_of_responses_brings_the_token():
    """A stream of responses sends the token, so that a decoupled model works behind a gateway that requires a token."""
    tokens = []

    class Service(grpc.GenericRpcHandler):
        def service(self, details):
            async def end(requests, context):
                tokens.append(dict(context.invocation_metadata()).get("authorization"))

            return grpc.stream_stream_rpc_method_handler(end)

    async def main():
        server = grpc.aio.server(handlers=[Service()])
        address = find_endpoint(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", "grpc", None, insecure=False)
        await server.start()
        transport = GrpcTransport(address, Headers({"authorization": f"Bearer {TOKEN}"}), None, time.monotonic_ns)
        try:
            assert [one async for one in transport.stream(InferRequest("m", "", []), 5.0)] == []
        finally:
            await transport.close()
            await server.stop(None)

    asyncio.run(main())
    assert tokens == [f"Bearer {TOKEN}"]


def test_close_ends_calls_of_silent_connection():
    """Closing a transport ends the calls of a connection that fell silent.

    A call with much time left does not outlive its transport, even if later calls use a new connection.
    """

    class Service(grpc.GenericRpcHandler):
        def service(self, details):
            async def hang(request, context):
                await asyncio.Event().wait()

            return grpc.unary_unary_rpc_method_handler(hang)

    async def main():
        server = grpc.aio.server(handlers=[Service()])
        address = find_endpoint(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", "grpc", None, insecure=False)
        await server.start()
        clock = FakeClock()
        transport = GrpcTransport(address, Headers({}), None, clock)
        call = InferRequest("m", "", [])
        try:
            waiting = asyncio.ensure_future(transport.infer(call, 600.0))
            await asyncio.sleep(0)
            clock.advance(3.0)
            with pytest.raises(ServerError, match="DEADLINE_EXCEEDED"):
                await transport.infer(call, 0.05)
            async with asyncio.timeout(20):
                await transport.close()
                with pytest.raises(si.errors.Closed):
                    await waiting
        finally:
            await server.stop(None)

    asyncio.run(main())


def test_a_stream_that_ends_at_once_brings_its_status():
    """The status arrives even if the stream ends before the request is read, as when a gateway rejects the head."""

    class Service(grpc.GenericRpcHandler):
        def service(self, details):
            async def refuse(requests, context):
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")

            return grpc.stream_stream_rpc_method_handler(refuse)

    async def main():
        server = grpc.aio.server(handlers=[Service()])
        address = find_endpoint(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", "grpc", None, insecure=False)
        await server.start()
        said = set()
        try:
            for _ in range(1000):  # one connection each; about one in a hundred ends that early
                transport = GrpcTransport(address, Headers({}), None, time.monotonic_ns)
                with pytest.raises(ServerError) as caught:
                    await anext(transport.stream(InferRequest("m", "", []), 5.0))
                said.add(str(caught.value))
                await transport.close()
        finally:
            await server.stop(None)
        return said

    assert asyncio.run(main()) == {"UNAUTHENTICATED: no token"}


def test_mutual_tls_rejects_client_without_certificate(target, protocol, mutual, ca):
    """With mutual TLS, a client without a certificate is rejected at the start."""

    async def main():
        async with GATEWAYS[protocol](target, token=TOKEN, tls=mutual) as gateway:
            own = Tls(ca=ca / "ca.pem", certificate=ca / "client.pem", key=ca / "client.key")
            async with si.Stack(backend(gateway, protocol, tls=own)) as service:
                np.testing.assert_allclose(await service(rows(1)[0]), mlp_answers(rows(1))[0], 1e-4, 1e-5)
            with pytest.raises(REFUSED):
                await backend(gateway, protocol, tls=Tls(ca=ca / "ca.pem"), timeout_s=1.0).start()

    asyncio.run(main())


@pytest.mark.parametrize(("rejection", "after_s"), [("later", 2.5), ("down", 1.5)])
def test_retry_after_reaches_the_caller(target, protocol, rejection, after_s):
    async def main():
        async with GATEWAYS[protocol](target) as gateway, si.Stack(backend(gateway, protocol)) as service:
            gateway.rejections.append(rejection)
            with pytest.raises(Overloaded) as caught:
                await service(rows(1)[0])
            assert caught.value.retry_after_s == after_s
            np.testing.assert_allclose(await service(rows(1)[0]), mlp_answers(rows(1))[0], 1e-4, 1e-5)

    asyncio.run(main())


def test_oversized_batch_is_split(target, protocol):
    """A batch larger than the service accepts is sent in parts; a single row that is too large is an error."""

    async def main():
        async with GATEWAYS[protocol](target) as gateway:
            one = backend(gateway, protocol)
            await one.start()
            try:
                gateway.largest = 2000
                batch = si.Batch(rows(64), [si.Request(None)] * 64)
                np.testing.assert_allclose(await one.infer(batch), mlp_answers(rows(64)), 1e-4, 1e-5)
                assert one.statistics().split_batches > 0
                gateway.largest = 10
                with pytest.raises(BackendError, match="larger than the server takes") as caught:
                    await one.infer(si.Batch(rows(1), [si.Request(None)]))
                assert caught.value.retryable is False
            finally:
                await one.stop()

    asyncio.run(main())

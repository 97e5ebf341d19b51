"""Tokens that a server quotes appear in no error; the scripted server rejects each call and quotes its token."""

import asyncio
import contextlib
import itertools
import traceback

import pytest
from servers.process import free_ports
from triton_settings import make_settings

from streaminfer.backends.triton import TritonBackend
from streaminfer.backends.triton.errors import ServerError
from streaminfer.backends.triton.transport.headers import Headers
from streaminfer.errors import BackendError


@pytest.fixture(params=["grpc", "http"])
def protocol(request):
    return request.param


@contextlib.asynccontextmanager
async def _quoting(protocol, port):
    if protocol == "grpc":
        import grpc

        class Handler(grpc.GenericRpcHandler):
            def service(self, details):
                async def refuse(_, context):
                    sent = dict(context.invocation_metadata())["authorization"]
                    await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"not valid: {sent}")

                return grpc.unary_unary_rpc_method_handler(refuse)

        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Handler(),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)
        return
    from aiohttp import web

    async def refuse(request):
        return web.json_response({"error": f"not valid: {request.headers['authorization']}"}, status=401)

    runner = web.ServerRunner(web.Server(refuse))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield
    finally:
        await runner.cleanup()


def test_token_quoted_by_server_is_not_in_error(protocol):
    """The error of a start has the server's text, without the token that the server quotes."""
    (port,) = free_ports(1)

    async def scenario():
        async with _quoting(protocol, port):
            backend = TritonBackend(
                f"127.0.0.1:{port}", "m", protocol=protocol, headers={"authorization": "Bearer hunter2"}
            )
            with pytest.raises(BackendError, match="not valid: ") as caught:
                await backend.start()
            assert "hunter2" not in "".join(traceback.format_exception(caught.value))
            assert getattr(caught.value, "retryable", None) is False

    asyncio.run(scenario())


def test_each_of_many_calls_has_its_own_token_removed(protocol):
    """If each call has another token, a call's token is removed from its error, however many tokens were sent later."""
    (port,) = free_ports(1)
    numbers = itertools.count()
    headers = Headers(lambda: {"x-key": "hunter2", "authorization": f"Bearer hunter2-{next(numbers)}"})

    async def scenario():
        settings = make_settings(protocol, f"127.0.0.1:{port}", headers=headers)
        async with _quoting(protocol, port):
            transport = settings.connect()
            try:
                return await asyncio.gather(*(transport.server(10.0) for _ in range(20)), return_exceptions=True)
            finally:
                await transport.close()

    failures = asyncio.run(scenario())

    assert [type(failure) for failure in failures] == [ServerError] * 20
    assert {str(failure).partition(": ")[2] for failure in failures} == {"not valid: ***"}

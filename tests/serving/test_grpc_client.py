import asyncio

import grpc
import pytest
from _lib.grpc_client import GrpcClient

METHOD = "/a.Service/Method"


def ask(answer, message, calls=1, **options):
    """Send a message ``calls`` times at once through the benchmarks' client; return the messages that a server gets."""
    received = []

    async def handle(request, context):
        received.append(request)
        return await answer(request, context)

    async def main():
        server = grpc.aio.server(**options)
        handlers = {"Method": grpc.unary_unary_rpc_method_handler(handle)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.Service", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with asyncio.timeout(30), GrpcClient(f"127.0.0.1:{port}", METHOD, message) as client:
                await asyncio.gather(*map(client.call, range(calls)))
        finally:
            await server.stop(None)

    asyncio.run(main())
    return received


async def echo(request, context):
    return request


@pytest.mark.parametrize("size", [0, 100, 1_000_000], ids=["empty", "small", "beyond the window"])
def test_messages_arrive_whole(size):
    """Each message arrives unchanged, however many flow-control windows of the connection it fills."""
    message = bytes(size)

    assert ask(echo, message, calls=3) == [message] * 3


def test_responses_beyond_the_window_are_taken():
    """The client receives all responses, even if together they exceed the flow-control window of the connection."""

    async def answer(request, context):
        return bytes(3_000_000)

    assert len(ask(answer, b"x", calls=12)) == 12


def test_other_status_is_an_error():
    """A call raises `ConnectionError` if the status of its response is not OK."""

    async def answer(request, context):
        await context.abort(grpc.StatusCode.INTERNAL, "no")

    with pytest.raises(ConnectionError, match="expected the status OK"):
        ask(answer, b"x")


def test_server_that_ends_is_an_error():
    """A call raises `ConnectionError` if its connection ends before the response."""

    async def main():
        async def close(reader, writer):
            await reader.read(10)
            writer.close()

        server = await asyncio.start_server(close, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            async with GrpcClient(f"127.0.0.1:{port}", METHOD, b"x") as client:
                with pytest.raises(ConnectionError, match="the connection ended"):
                    await client.call(0)

    asyncio.run(main())


def test_cancelled_call_is_reset():
    """If the caller cancels a call, the handler at the server ends."""

    async def main():
        begun, ended = asyncio.Event(), asyncio.Event()

        async def answer(request, context):
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        server = grpc.aio.server()
        handlers = {"Method": grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.Service", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with asyncio.timeout(30), GrpcClient(f"127.0.0.1:{port}", METHOD, b"x") as client:
                call = asyncio.ensure_future(client.call(0))
                await begun.wait()
                call.cancel()
                await ended.wait()
        finally:
            await server.stop(None)

    asyncio.run(main())

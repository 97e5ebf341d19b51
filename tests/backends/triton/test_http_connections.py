"""Connections over HTTP: a late call closes its own, and a probe makes one for the next call."""

import asyncio
import contextlib

import pytest
from aiohttp import web
from servers.process import free_ports
from triton_settings import make_settings

from streaminfer.backends.triton.endpoint import find_endpoint
from streaminfer.backends.triton.errors import ServerError
from streaminfer.backends.triton.transport.headers import Headers

LIVE = "/v2/health/live"


@contextlib.asynccontextmanager
async def transport_to(respond):
    """Return a transport to a server with this handler."""
    (port,) = free_ports(1)
    runner = web.ServerRunner(web.Server(respond), shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    address = find_endpoint(f"127.0.0.1:{port}", "http", None, False)
    transport = make_settings("http", address=address, headers=Headers({"authorization": "mine"})).connect()
    try:
        yield transport
    finally:
        await transport.close()
        await runner.cleanup()


def test_slow_first_responses_do_not_last():
    """Calls get responses although each new connection is too slow for the call that makes it."""
    used, probes = set(), []

    async def respond(request):
        if request.path == LIVE:
            probes.append(request.headers["authorization"])
        elif request.transport not in used:
            await asyncio.Event().wait()
        used.add(request.transport)
        return web.json_response({"name": "server"})

    async def call():
        async with transport_to(respond) as transport:
            for _ in range(30):
                with contextlib.suppress(ServerError):
                    return await transport.server(0.1)
        return None

    assert asyncio.run(call()) == {"name": "server"}
    assert set(probes) == {"mine"}


def test_error_of_a_closed_connection_names_the_server():
    """The error of a connection that the server closes names the server; one that was not made names it once."""

    async def respond(request):
        request.transport.close()
        return web.Response()

    async def errors():
        async with transport_to(respond) as transport:
            with pytest.raises(ServerError) as disconnected:
                await transport.server(30.0)
        address = find_endpoint(f"127.0.0.1:{free_ports(1)[0]}", "http", None, False)
        transport = make_settings("http", address=address, headers=Headers(None)).connect()
        with pytest.raises(ServerError) as unreachable:
            await transport.server(30.0)
        await transport.close()
        return disconnected.value.text, unreachable.value.text

    assert [text.count("127.0.0.1:") for text in asyncio.run(errors())] == [1, 1]


def test_cancelled_calls_probe_once():
    """Cancelled calls make one probe at a time, which ends when the transport closes."""
    paths = []
    received = asyncio.Semaphore(0)

    async def hang(request):
        paths.append(request.path)
        received.release()
        await asyncio.Event().wait()

    async def cancel_a_call(transport):
        call = asyncio.ensure_future(transport.server(60.0))
        await received.acquire()
        call.cancel()
        await asyncio.wait({call})

    async def cancel_calls():
        async with transport_to(hang) as transport:
            await cancel_a_call(transport)
            await asyncio.wait_for(received.acquire(), 10.0)  # the probe
            await cancel_a_call(transport)
            await cancel_a_call(transport)
        return [task for task in asyncio.all_tasks() if "_call_probe" in repr(task.get_coro())]

    assert asyncio.run(cancel_calls()) == []
    assert paths == ["/v2", LIVE, "/v2", "/v2"]

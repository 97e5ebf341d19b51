"""Environment of an HTTP connection: it sets the proxy of an encrypted connection, and nothing else."""

import asyncio
import base64
import contextlib
import ssl

import pytest
from aiohttp import web
from servers.process import free_ports
from triton_settings import make_settings

from streaminfer.backends.triton import Tls
from streaminfer.backends.triton.endpoint import find_endpoint
from streaminfer.backends.triton.errors import ServerError
from streaminfer.backends.triton.transport.headers import Headers

HOST = "127.0.0.1"


@pytest.fixture
def tls(authority):
    """Return the TLS context of a server, and the settings of a client that trusts the server."""
    issued = authority.issue("server", HOST)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(issued.certificate, issued.key)
    return context, Tls(ca=authority.certificate)


@contextlib.asynccontextmanager
async def server_of(port, context):
    """Run a server that responds with the authorization that it received."""

    async def respond(request):
        return web.json_response({"name": request.headers.get("authorization", "none")})

    runner = web.ServerRunner(web.Server(respond))
    await runner.setup()
    await web.TCPSite(runner, HOST, port, ssl_context=context).start()
    try:
        yield
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def proxy_on(port, heads):
    """Run a proxy that records the heads of requests and rejects them."""

    async def reject(reader, writer):
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(reject, HOST, port):
        yield


async def name_of(url, tls, headers=None):
    """Return the name that the server states in its metadata."""
    address = find_endpoint(url, "http", tls, False)
    transport = make_settings("http", address=address, headers=Headers(headers)).connect()
    try:
        return (await transport.server(10.0))["name"]
    finally:
        await transport.close()


@pytest.mark.parametrize(("headers", "got"), [({"authorization": "Bearer mine"}, "Bearer mine"), (None, "none")])
def test_netrc_file_is_ignored(tls, headers, got, tmp_path, monkeypatch):
    """The credentials come from `headers` only, and not from the netrc file, which other programs use."""
    (tmp_path / "netrc").write_text(f"machine {HOST} login someone password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (port,) = free_ports(1)
    context, trusted = tls

    async def scenario():
        async with server_of(port, context):
            return await name_of(f"{HOST}:{port}", trusted, headers)

    assert asyncio.run(scenario()) == got


@pytest.mark.parametrize(
    ("encrypted", "excepted", "asked"),
    [(True, "", True), (True, HOST, False), (False, "", False)],
    ids=["encrypted", "excepted", "unencrypted"],
)
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_encrypted_connection_uses_environment_proxy(encrypted, excepted, asked, scheme, tls, monkeypatch):
    """An encrypted connection uses the proxy of the environment.

    An unencrypted connection, or one to a host in `no_proxy`, does not. No error shows the proxy's password.
    """
    port, proxy_port = free_ports(2)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"{scheme}me:hunter%32@{HOST}:{proxy_port}")
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", excepted)
    context, trusted = tls if encrypted else (None, None)
    heads = []

    async def scenario():
        async with server_of(port, context), proxy_on(proxy_port, heads):
            return await name_of(f"{HOST}:{port}", trusted)

    if not asked:
        assert asyncio.run(scenario()) == "none"
        assert heads == []
        return
    with pytest.raises(ServerError) as rejected:
        asyncio.run(scenario())
    (head,) = heads
    assert head.startswith(f"CONNECT {HOST}:{port} HTTP/1.1\r\n")
    assert f"Proxy-Authorization: Basic {base64.b64encode(b'me:hunter2').decode()}\r\n" in head
    assert rejected.value.status == "UNAVAILABLE"
    assert "hunter2" not in str(rejected.value)

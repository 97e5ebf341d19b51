"""The connection of a start: its protocol, what it is made with, and that each start has its own."""

import asyncio
import time

import pytest

from streaminfer.backends.triton.endpoint import find_endpoint
from streaminfer.backends.triton.transport.connector import Connector
from streaminfer.backends.triton.transport.grpc_transport import GrpcTransport
from streaminfer.backends.triton.transport.headers import Headers
from streaminfer.backends.triton.transport.http_transport import HttpTransport


def connector(protocol, *, keepalive_s=None):
    headers = Headers({"authorization": "Bearer hunter2"})
    return Connector(find_endpoint("localhost:9", protocol, None, False), protocol, headers, keepalive_s)


def connected(connector, times=1):
    """Its connections, which are closed: nothing is sent."""

    async def main():
        transports = [connector.connect(time.monotonic_ns) for _ in range(times)]
        for transport in transports:
            await transport.close()
        return transports

    return asyncio.run(main())


@pytest.mark.parametrize(("protocol", "kind"), [("grpc", GrpcTransport), ("http", HttpTransport)])
def test_the_protocol_decides_the_transport(protocol, kind):
    """A connection speaks the protocol of the backend, and sends its headers."""
    made = connector(protocol)

    (transport,) = connected(made)

    assert type(transport) is kind
    assert transport._headers is made.headers


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_each_start_has_a_connection_of_its_own(protocol):
    """A connection belongs to one event loop, so that a later start cannot use it."""
    first, second = connected(connector(protocol), times=2)

    assert first is not second


@pytest.mark.parametrize(("keepalive_s", "ping_ms"), [(None, None), (400.0, 400_000)])
def test_pings_are_sent_only_if_asked_for(keepalive_s, ping_ms):
    """The options of a gRPC connection have the time between pings."""
    (transport,) = connected(connector("grpc", keepalive_s=keepalive_s))

    assert dict(transport._options).get("grpc.keepalive_time_ms") == ping_ms


def test_a_connector_does_not_show_headers():
    """A token is in no text about the connector."""
    assert "hunter2" not in repr(connector("http"))

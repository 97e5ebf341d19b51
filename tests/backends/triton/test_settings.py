"""Connections of a backend: their protocol, their options, and a new connection for each start."""

import asyncio

import pytest
from triton_settings import make_settings

from streaminfer.backends.triton.transport.grpc_transport import GrpcTransport
from streaminfer.backends.triton.transport.headers import Headers
from streaminfer.backends.triton.transport.http_transport import HttpTransport


def made_with(protocol, *, keepalive_s=None):
    return make_settings(protocol, headers=Headers({"authorization": "Bearer hunter2"}), keepalive_s=keepalive_s)


def connected(settings, times=1):
    """Return connections that were made with the settings, and closed before anything was sent."""

    async def main():
        transports = [settings.connect() for _ in range(times)]
        for transport in transports:
            await transport.close()
        return transports

    return asyncio.run(main())


@pytest.mark.parametrize(("protocol", "kind"), [("grpc", GrpcTransport), ("http", HttpTransport)])
def test_the_protocol_decides_the_transport(protocol, kind):
    """A connection speaks the protocol of the backend, and sends its headers."""
    made = made_with(protocol)

    (transport,) = connected(made)

    assert type(transport) is kind
    assert transport._headers is made.headers


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_each_start_has_a_connection_of_its_own(protocol):
    """A connection belongs to one event loop, so that a later start cannot use it."""
    first, second = connected(made_with(protocol), times=2)

    assert first is not second


@pytest.mark.parametrize(("keepalive_s", "ping_ms"), [(None, None), (400.0, 400_000)])
def test_keepalive_pings_are_sent_only_if_configured(keepalive_s, ping_ms):
    """The options of a gRPC connection have the time between pings only if it is configured."""
    (transport,) = connected(made_with("grpc", keepalive_s=keepalive_s))

    assert dict(transport._options).get("grpc.keepalive_time_ms") == ping_ms


def test_settings_do_not_show_headers():
    """The `repr` of the settings does not show a token."""
    assert "hunter2" not in repr(made_with("http"))

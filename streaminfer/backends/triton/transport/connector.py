"""Connections of a backend to its server, over the protocol that the backend speaks."""

from collections.abc import Callable

import attrs

from streaminfer.backends.triton.endpoint import Endpoint, Protocol
from streaminfer.backends.triton.messages import Transport
from streaminfer.backends.triton.transport.grpc_transport import GrpcTransport
from streaminfer.backends.triton.transport.headers import Headers
from streaminfer.backends.triton.transport.http_transport import HttpTransport

__all__ = ["Connector"]


@attrs.frozen
class Connector:
    """Makes the connection of each start of a backend.

    Attributes:
        address: where the server is.
        protocol: what is spoken there.
        headers: of every call.
        keepalive_s: seconds between pings of a quiet gRPC connection; ``None``: no pings.
    """

    address: Endpoint
    protocol: Protocol
    headers: Headers
    keepalive_s: float | None

    def connect(self, clock: Callable[[], int]) -> Transport:
        """Return a new connection, which belongs to the running event loop.

        Args:
            clock: monotonic nanoseconds.

        Raises:
            MissingExtra: the extra ``triton`` is not installed.
            OSError: a file of ``tls`` cannot be read.
            ValueError: a file of ``tls`` is not what it should be.
        """
        if self.protocol == "http":
            return HttpTransport(self.address, self.headers)
        return GrpcTransport(self.address, self.headers, self.keepalive_s, clock)

"""Settings of a backend, shared by all its parts."""

import attrs

from streaminfer._internal.validation import check_choice, check_count, check_duration, check_instance, field_check
from streaminfer.backends.signature import NonFinite
from streaminfer.backends.triton.endpoint import Endpoint, Protocol
from streaminfer.backends.triton.transport.grpc_transport import GrpcTransport
from streaminfer.backends.triton.transport.headers import Headers
from streaminfer.backends.triton.transport.http_transport import HttpTransport
from streaminfer.protocols import Clock

__all__ = ["Settings", "Transport"]

Transport = GrpcTransport | HttpTransport
"""A connection to a server; both classes have the same methods."""

_SECONDS = field_check(check_duration, positive=True)
_MAYBE_SECONDS = field_check(check_duration, positive=True, optional=True)


@attrs.define(kw_only=True)
class Settings:
    """Settings of one `TritonBackend`.

    Attributes:
        address: the address of the server.
        protocol: the protocol of the server.
        headers: headers of every call.
        keepalive_s: seconds between pings of a quiet gRPC connection; ``None``: no pings.
        name: the backend, for messages.
        model: the name of the model.
        version: the model's version in calls; empty: the server chooses.
        clock: monotonic nanoseconds; may be replaced before a start.
        non_finite: treatment of NaN and infinite floats in requests.
        max_streams: the most streams to remember.
        shared_memory: whether tensors go through shared memory.
        may_be_unloaded: whether a start accepts a model that is not in memory.
        timeout_s: seconds for a request without a deadline, and for each call that belongs to no request.
        load_timeout_s: seconds for a load, and for an unload.
        statistics_every_s: seconds between readings of the server's statistics; ``None``: no readings.
    """

    address: Endpoint
    protocol: Protocol
    headers: Headers
    keepalive_s: float | None = attrs.field(validator=_MAYBE_SECONDS)
    name: str
    model: str
    version: str = attrs.field(validator=field_check(check_instance, str, "a version as digits, or an empty string"))
    clock: Clock
    non_finite: NonFinite = attrs.field(validator=field_check(check_choice, ("allow", "reject")))
    max_streams: int = attrs.field(validator=field_check(check_count))
    shared_memory: bool = attrs.field(validator=field_check(check_instance, bool, "True or False"))
    may_be_unloaded: bool
    timeout_s: float = attrs.field(validator=_SECONDS)
    load_timeout_s: float = attrs.field(validator=_SECONDS)
    statistics_every_s: float | None = attrs.field(validator=_MAYBE_SECONDS)

    def connect(self) -> Transport:
        """Return a new connection, which belongs to the running event loop.

        Raises:
            MissingExtra: the extra ``triton`` is not installed.
            OSError: a file of ``tls`` cannot be read.
            ValueError: a file of ``tls`` is invalid.
        """
        if self.protocol == "http":
            return HttpTransport(self.address, self.headers)
        return GrpcTransport(self.address, self.headers, self.keepalive_s, self.clock)

"""Stacks behind the Open Inference Protocol: an ASGI app, and a gRPC service."""

from typing import TYPE_CHECKING

from streaminfer._internal.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.serving.asgi import ServingApp, asgi_app
    from streaminfer.serving.deadlines import read_timeout_s
    from streaminfer.serving.errors import Failure, describe_failure
    from streaminfer.serving.grpc_service import GrpcService, grpc_servicer
    from streaminfer.serving.limits import Limits

__all__ = [
    "Failure",
    "GrpcService",
    "Limits",
    "ServingApp",
    "asgi_app",
    "describe_failure",
    "grpc_servicer",
    "read_timeout_s",
]

_HOMES = {
    "Failure": "serving.errors",
    "GrpcService": "serving.grpc_service",
    "Limits": "serving.limits",
    "ServingApp": "serving.asgi",
    "asgi_app": "serving.asgi",
    "describe_failure": "serving.errors",
    "grpc_servicer": "serving.grpc_service",
    "read_timeout_s": "serving.deadlines",
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and reject others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)

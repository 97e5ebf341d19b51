"""Stacks behind the Open Inference Protocol: an ASGI app, and a gRPC service."""

from typing import TYPE_CHECKING

from streaminfer._internal.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.serving.asgi import ServingApp, asgi_app
    from streaminfer.serving.grpc_service import GrpcService, grpc_servicer
    from streaminfer.serving.limits import Limits

__all__ = ["GrpcService", "Limits", "ServingApp", "asgi_app", "grpc_servicer"]

_HOMES = {
    "GrpcService": "serving.grpc_service",
    "Limits": "serving.limits",
    "ServingApp": "serving.asgi",
    "asgi_app": "serving.asgi",
    "grpc_servicer": "serving.grpc_service",
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and reject others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)

"""Stacks as servers of the Open Inference Protocol: an ASGI app, a gRPC service, and Ray Serve."""

from typing import TYPE_CHECKING

from streaminfer._internal.loading.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.serving.asgi import ServingApp, asgi_app
    from streaminfer.serving.deadlines import read_timeout_s
    from streaminfer.serving.errors import Failure, describe_failure
    from streaminfer.serving.grpc_service import GrpcService, grpc_servicer
    from streaminfer.serving.keda import keda_scaled_object
    from streaminfer.serving.limits import Limits
    from streaminfer.serving.ray.autoscaling import Autoscaling
    from streaminfer.serving.ray.deployment import ray_deployment

__all__ = [
    "Autoscaling",
    "Failure",
    "GrpcService",
    "Limits",
    "ServingApp",
    "asgi_app",
    "describe_failure",
    "grpc_servicer",
    "keda_scaled_object",
    "ray_deployment",
    "read_timeout_s",
]

_HOMES = {
    "serving.asgi": ["ServingApp", "asgi_app"],
    "serving.deadlines": ["read_timeout_s"],
    "serving.errors": ["Failure", "describe_failure"],
    "serving.grpc_service": ["GrpcService", "grpc_servicer"],
    "serving.keda": ["keda_scaled_object"],
    "serving.limits": ["Limits"],
    "serving.ray.autoscaling": ["Autoscaling"],
    "serving.ray.deployment": ["ray_deployment"],
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and reject others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)

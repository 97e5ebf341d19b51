"""streaminfer keeps the tail latency of ML inference predictable inside your own server.

A handful of primitives, each useful alone, that compose into one service::

    import streaminfer as si

    batcher = si.AdaptiveBatcher(max_batch_size=32, slo_s=0.050)
    model = si.OnnxBackend("model.onnx")

    async with si.Stack(si.Telemetry("faces"), batcher, model) as service:
        y = await service(x, timeout_s=0.050)

Names are loaded at first use, so that importing the package costs little.
"""

from typing import TYPE_CHECKING

from streaminfer._internal.loading import compiled_modules as _compiled_modules
from streaminfer._internal.loading.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer import (
        backends,
        batching,
        caching,
        errors,
        loadtest,
        notebook,
        placement,
        resilience,
        routing,
        serving,
        simulation,
        streams,
        telemetry,
        testing,
    )
    from streaminfer._warmup import warmup
    from streaminfer.auditing.cache_proof import Proof, prove
    from streaminfer.auditing.checklist import privacy_checklist
    from streaminfer.auditing.processing_record import record_of_processing
    from streaminfer.auditing.stack_audit import audit
    from streaminfer.backends import CpuBackend, OnnxBackend, TritonBackend
    from streaminfer.batching import AdaptiveBatcher, Device
    from streaminfer.blocking import BlockingStack
    from streaminfer.caching import EdgeCache, Retention, content_key
    from streaminfer.errors import (
        BackendError,
        CircuitOpen,
        Closed,
        DeadlineExceeded,
        ErasureHeld,
        InvalidInput,
        MissingExtra,
        Overloaded,
        StreamInferError,
    )
    from streaminfer.request import Batch, Request, Response
    from streaminfer.resilience import CircuitBreaker, ConcurrencyLimit, Hedge, RateLimit, RetryBudget
    from streaminfer.routing import FallbackRouter, Replica, Replicas, Route
    from streaminfer.simulation import DecisionLog, Trace, simulate, what_if
    from streaminfer.stack import Stack
    from streaminfer.telemetry import SLO, CostMeter, LatencyHistogram, RollingHistogram, Telemetry

__all__ = [
    "SLO",
    "AdaptiveBatcher",
    "BackendError",
    "Batch",
    "BlockingStack",
    "CircuitBreaker",
    "CircuitOpen",
    "Closed",
    "ConcurrencyLimit",
    "CostMeter",
    "CpuBackend",
    "DeadlineExceeded",
    "DecisionLog",
    "Device",
    "EdgeCache",
    "ErasureHeld",
    "FallbackRouter",
    "Hedge",
    "InvalidInput",
    "LatencyHistogram",
    "MissingExtra",
    "OnnxBackend",
    "Overloaded",
    "Proof",
    "RateLimit",
    "Replica",
    "Replicas",
    "Request",
    "Response",
    "Retention",
    "RetryBudget",
    "RollingHistogram",
    "Route",
    "Stack",
    "StreamInferError",
    "Telemetry",
    "Trace",
    "TritonBackend",
    "audit",
    "backends",
    "batching",
    "caching",
    "content_key",
    "errors",
    "loadtest",
    "notebook",
    "placement",
    "privacy_checklist",
    "prove",
    "record_of_processing",
    "resilience",
    "routing",
    "serving",
    "simulate",
    "simulation",
    "streams",
    "telemetry",
    "testing",
    "warmup",
    "what_if",
]

__version__ = "0.1.0"

compiled: bool = _compiled_modules.are_used()
"""Whether the compiled state machines are in use; the uncompiled ones cost more CPU time per request."""

_HOMES = {
    "_warmup": ["warmup"],
    "auditing.cache_proof": ["Proof", "prove"],
    "auditing.checklist": ["privacy_checklist"],
    "auditing.processing_record": ["record_of_processing"],
    "auditing.stack_audit": ["audit"],
    "backends": ["CpuBackend", "OnnxBackend", "TritonBackend"],
    "batching": ["AdaptiveBatcher", "Device"],
    "blocking": ["BlockingStack"],
    "caching": ["EdgeCache", "content_key"],
    "compliance.retention": ["Retention"],
    "errors": [
        "BackendError",
        "CircuitOpen",
        "Closed",
        "DeadlineExceeded",
        "ErasureHeld",
        "InvalidInput",
        "MissingExtra",
        "Overloaded",
        "StreamInferError",
    ],
    "request": ["Batch", "Request", "Response"],
    "resilience": ["CircuitBreaker", "ConcurrencyLimit", "Hedge", "RateLimit", "RetryBudget"],
    "routing": ["FallbackRouter", "Replica", "Replicas", "Route"],
    "simulation": ["DecisionLog", "Trace", "simulate", "what_if"],
    "stack": ["Stack"],
    "telemetry": ["SLO", "CostMeter", "LatencyHistogram", "RollingHistogram", "Telemetry"],
}
_MODULES = {name: name for name in __all__ if not any(name in names for names in _HOMES.values())}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and reject others
    __getattr__, _ = lazy_attributes(__name__, _HOMES, _MODULES)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "compiled"])


def load_ipython_extension(shell: object) -> None:
    """Run ``%load_ext streaminfer``."""
    from streaminfer import notebook  # noqa: PLC0415 - only there

    notebook.load(shell)


def unload_ipython_extension(shell: object) -> None:
    """Run ``%unload_ext streaminfer``."""
    from streaminfer import notebook  # noqa: PLC0415 - only there

    notebook.unload(shell)

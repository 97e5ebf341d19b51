"""Requests and responses between the backend and a transport of either protocol."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

__all__ = ["InferRequest", "InferResponse", "SharedMemoryRef", "Tensor", "Transport"]


class SharedMemoryRef(NamedTuple):
    """Part of a shared memory region that is registered with the server."""

    region: str
    offset: int
    byte_size: int


class Tensor(NamedTuple):
    """One tensor of a request or a response.

    Attributes:
        name: the name of the input or output.
        datatype: the protocol's name for its type.
        shape: sizes of all axes.
        content: for an input, a C-contiguous array, or its place in shared memory; for an output, its bytes, a list of
            its elements if the server sends no bytes, or an array.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    content: Any


class InferRequest(NamedTuple):
    """Request to a model.

    Attributes:
        model: the name of the model.
        version: the version of the model; empty: the server chooses.
        inputs: the inputs of the model.
        outputs: the outputs to return, by name, each with its place in shared memory, or ``None`` to return it in the
            response. ``None`` for all outputs, in the response.
        parameters: parameters of the request.
    """

    model: str
    version: str
    inputs: Sequence[Tensor]
    outputs: Mapping[str, SharedMemoryRef | None] | None = None
    parameters: Mapping[str, int | bool | str] = {}


class InferResponse(NamedTuple):
    """Response of a model.

    Attributes:
        outputs: the outputs, by name.
        final: whether nothing follows on a stream.
        version: the version of the model that responded; empty: the server does not say.
    """

    outputs: Mapping[str, Tensor]
    final: bool = False
    version: str = ""


class Transport(Protocol):
    """A connection to a server; belongs to one event loop.

    Every method raises :class:`~streaminfer.backends.triton.errors.ServerError` when the server or the connection
    fails, :class:`~streaminfer.errors.BackendError` for a response that cannot be read, and
    :class:`~streaminfer.errors.Closed` when :meth:`close` ended it.
    """

    binary: bool
    """True if tensors are sent as bytes, false for JSON; gRPC always sends bytes."""

    async def server(self, timeout_s: float) -> Mapping[str, Any]:
        """Return name, version and extensions of the server."""

    async def ready(self, model: str, version: str, timeout_s: float) -> bool:
        """Return whether the model is loaded."""

    async def metadata(self, model: str, version: str, timeout_s: float) -> Mapping[str, Any]:
        """Return the model's inputs, outputs and versions."""

    async def config(self, model: str, version: str, timeout_s: float) -> Mapping[str, Any]:
        """Return the model's configuration."""

    async def index(self, timeout_s: float) -> Sequence[Mapping[str, Any]]:
        """Return the index of the server's model repository."""

    async def load(self, model: str, timeout_s: float) -> None:
        """Make the server load a model; returns when it is loaded."""

    async def unload(self, model: str, timeout_s: float) -> None:
        """Make the server unload a model and the models that only it needs; may return before they are unloaded."""

    async def statistics(self, model: str, version: str, timeout_s: float) -> Sequence[Mapping[str, Any]]:
        """Return the counters of the model, by version."""

    async def register(self, name: str, key: str, byte_size: int, timeout_s: float) -> None:
        """Make the server map shared memory."""

    async def unregister(self, name: str, timeout_s: float) -> None:
        """Make the server forget shared memory."""

    async def registered(self, timeout_s: float) -> Sequence[str]:
        """Return the names of the shared memory that the server knows."""

    async def infer(self, call: InferRequest, timeout_s: float) -> InferResponse:
        """Send a request and return its response."""

    def stream(self, call: InferRequest, timeout_s: float | None) -> AsyncGenerator[InferResponse, None]:
        """Yield each response as it comes, the final one included."""

    async def close(self) -> None:
        """End all running calls, and the connections. May be repeated."""

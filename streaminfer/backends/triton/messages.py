"""Requests and responses between the backend and a transport of either protocol."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

__all__ = ["InferRequest", "InferResponse", "SharedMemoryRef", "Tensor", "Transport"]


class SharedMemoryRef(NamedTuple):
    """A part of a shared memory region that the server knows."""

    region: str
    offset: int
    byte_size: int


class Tensor(NamedTuple):
    """One tensor of a call or a response.

    Attributes:
        name: of the input or output.
        datatype: the protocol's name for it.
        shape: sizes of all axes.
        content: of an input, a C-contiguous array, or where it lies as :class:`SharedMemoryRef`; of an output, its
            bytes, its elements in a list where the server sends no bytes, or the array.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    content: Any


class InferRequest(NamedTuple):
    """Request to a model.

    Attributes:
        model: its name.
        version: its version; empty: the one that the server chooses.
        inputs: of the model.
        outputs: those to return, by name, and where to write them; ``None``: into the response. ``None``: all of them,
            into the response.
        parameters: of the request.
    """

    model: str
    version: str
    inputs: Sequence[Tensor]
    outputs: Mapping[str, SharedMemoryRef | None] | None = None
    parameters: Mapping[str, int | bool | str] = {}


class InferResponse(NamedTuple):
    """Response of a model.

    Attributes:
        outputs: by name.
        final: nothing follows on a stream.
        version: of the model that responded; empty: the server does not say.
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
    """Tensors travel as bytes, not as JSON; gRPC has no other form."""

    async def server(self, timeout_s: float) -> Mapping[str, Any]:
        """Name, version and extensions of the server."""

    async def ready(self, model: str, version: str, timeout_s: float) -> bool:
        """Whether the model is loaded."""

    async def metadata(self, model: str, version: str, timeout_s: float) -> Mapping[str, Any]:
        """What the model reads and gives, and its versions."""

    async def config(self, model: str, version: str, timeout_s: float) -> Mapping[str, Any]:
        """The model's configuration."""

    async def index(self, timeout_s: float) -> Sequence[Mapping[str, Any]]:
        """What the server's repository holds."""

    async def load(self, model: str, timeout_s: float) -> None:
        """Makes the server load a model; returns when it has."""

    async def unload(self, model: str, timeout_s: float) -> None:
        """Makes the server unload a model and the models that only it needs; may return before it has."""

    async def statistics(self, model: str, version: str, timeout_s: float) -> Sequence[Mapping[str, Any]]:
        """Counters of the model, by version."""

    async def register(self, name: str, key: str, byte_size: int, timeout_s: float) -> None:
        """Makes the server map shared memory."""

    async def unregister(self, name: str, timeout_s: float) -> None:
        """Makes it forget shared memory."""

    async def registered(self, timeout_s: float) -> Sequence[str]:
        """Names of the shared memory that it knows."""

    async def infer(self, call: InferRequest, timeout_s: float) -> InferResponse:
        """One response."""

    def stream(self, call: InferRequest, timeout_s: float | None) -> AsyncGenerator[InferResponse, None]:
        """Each response as it comes, the final one included."""

    async def close(self) -> None:
        """Ends every call that runs, and the connections. May be repeated."""

"""Requests and responses between the backend and a transport of either protocol."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["InferRequest", "InferResponse", "SharedMemoryRef", "Tensor"]


class SharedMemoryRef(NamedTuple):
    """Part of a shared memory region that is registered with the server."""

    region: str
    offset: int
    byte_size: int

    def parameters(self) -> dict[str, int | str]:
        """Return the parameters of a tensor that lies there."""
        return {
            "shared_memory_region": self.region,
            "shared_memory_offset": self.offset,
            "shared_memory_byte_size": self.byte_size,
        }


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

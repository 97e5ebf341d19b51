"""Responses over HTTP: JSON, with the outputs that were asked for as bytes behind it."""

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any, NamedTuple

import numpy.typing as npt

from streaminfer.errors import InvalidInput
from streaminfer.protocols import ModelTensors
from streaminfer.serving.infer_request import InferHead
from streaminfer.serving.tensors import datatype_of_spec, encode, encode_list

__all__ = ["InferAnswer", "Outputs", "announced_datatypes", "render_generated", "render_response", "select_outputs"]

_to_json = json.JSONEncoder(separators=(",", ":")).encode
Outputs = Mapping[str, npt.NDArray[Any]]


class InferAnswer(NamedTuple):
    """Answer of a model to all rows of a request.

    Attributes:
        arrays: the outputs by name; the first axis holds the rows.
        time_left_s: seconds that were left until the deadline; ``None``: there was none.
        stream: the answers of a model that has several to one request, in place of ``arrays``.
    """

    arrays: Outputs
    time_left_s: float | None
    stream: AsyncGenerator[Outputs, None] | None = None


def select_outputs(head: InferHead, arrays: Outputs) -> Outputs:
    """Return the outputs that were asked for.

    Raises:
        InvalidInput: the model has no such output.
    """
    if head.outputs is None:
        return arrays
    if missing := head.outputs.keys() - arrays.keys():
        raise InvalidInput(
            f"outputs: expected {', '.join(map(repr, arrays))}, got {', '.join(map(repr, sorted(missing)))} too"
        )
    return {name: arrays[name] for name in head.outputs}


def announced_datatypes(model: ModelTensors | None) -> dict[str, str | None]:
    """Return the protocol's names for the types of a model's outputs, as far as they are known."""
    return {} if model is None else {spec.name: datatype_of_spec(spec) for spec in model.outputs}


def render_response(
    name: str, version: str, head: InferHead, arrays: Outputs, announced: Mapping[str, str | None]
) -> tuple[list[bytes | memoryview], int | None]:
    """Return the parts of the body, and the length of the JSON in front of the bytes; ``None``: all is JSON.

    The JSON is made once for requests that share a head, as long as the outputs have the same types and shapes.

    Args:
        name: of the model.
        version: of the model.
        head: of the request.
        arrays: the model's outputs.
        announced: the types of its outputs, as far as they are known.

    Raises:
        InvalidInput: an output that the model lacks was asked for, or JSON cannot hold one.
        BackendError: the protocol has no type for an output.
    """
    contents: list[bytes | memoryview] = []
    kinds: list[tuple[str, str, tuple[int, ...], int]] = []
    listed: dict[str, list[Any]] = {}
    for output, array in select_outputs(head, arrays).items():
        if head.binary if head.outputs is None else head.outputs[output]:
            datatype, content = encode(output, array, announced.get(output))
            contents.append(content)
            kinds.append((output, datatype, array.shape, len(content)))
        else:
            datatype, listed[output] = encode_list(output, array)
            kinds.append((output, datatype, array.shape, 0))
    if not listed and head.rendered is not None and head.rendered[0] == kinds:
        text = head.rendered[1]
    else:
        text = _render_head(name, version, head.id, kinds, listed)
        head.rendered = None if listed else (kinds, text)
    return [text, *contents], len(text) if contents else None


def _render_head(
    name: str,
    version: str,
    identity: str,
    kinds: list[tuple[str, str, tuple[int, ...], int]],
    listed: Mapping[str, list[Any]],
) -> bytes:
    described: list[dict[str, Any]] = []
    for output, datatype, shape, size in kinds:
        one: dict[str, Any] = {"name": output, "datatype": datatype, "shape": shape}
        one |= {"data": listed[output]} if output in listed else {"parameters": {"binary_data_size": size}}
        described.append(one)
    response: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": described}
    if identity:
        response["id"] = identity
    return _to_json(response).encode()


def render_generated(name: str, version: str, head: InferHead, arrays: Outputs) -> bytes:
    """Return the body of ``generate``: a field per output, one element without a list.

    Raises:
        InvalidInput: JSON cannot hold an output.
        BackendError: the protocol has no type for one.
    """
    fields: dict[str, Any] = {"model_name": name, "model_version": version}
    if head.id:
        fields["id"] = head.id
    for output, array in arrays.items():
        _, elements = encode_list(output, array)
        fields[output] = elements[0] if len(elements) == 1 else elements
    return _to_json(fields).encode()

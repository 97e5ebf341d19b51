"""Responses over HTTP: JSON, with the outputs that were asked for as bytes behind it."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy.typing as npt

from streaminfer.errors import InvalidInput
from streaminfer.protocols import ModelTensors
from streaminfer.serving.infer_request import InferRequest
from streaminfer.serving.tensors import datatype_of_spec, encode, encode_list

__all__ = ["InferAnswer", "announced_datatypes", "render_generated", "render_response", "select_outputs"]

_to_json = json.JSONEncoder(separators=(",", ":")).encode


class InferAnswer(NamedTuple):
    """Answer of a model to all rows of a request.

    Attributes:
        arrays: the outputs by name; the first axis holds the rows.
        time_left_s: seconds that were left until the deadline; ``None``: there was none.
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    time_left_s: float | None


def select_outputs(call: InferRequest, answer: InferAnswer) -> Mapping[str, npt.NDArray[Any]]:
    """Return the outputs that were asked for.

    Raises:
        InvalidInput: the model has no such output.
    """
    if call.outputs is None:
        return answer.arrays
    if missing := call.outputs.keys() - answer.arrays.keys():
        raise InvalidInput(
            f"outputs: expected {', '.join(map(repr, answer.arrays))}, got {', '.join(map(repr, sorted(missing)))} too"
        )
    return {name: answer.arrays[name] for name in call.outputs}


def announced_datatypes(model: ModelTensors | None) -> dict[str, str | None]:
    """Return the protocol's names for the types of a model's outputs, as far as they are known."""
    return {} if model is None else {spec.name: datatype_of_spec(spec) for spec in model.outputs}


def render_response(
    name: str, version: str, call: InferRequest, answer: InferAnswer, model: ModelTensors | None
) -> tuple[list[bytes | memoryview], int | None]:
    """Return the parts of the body, and the length of the JSON in front of the bytes; ``None``: all is JSON.

    Args:
        name: of the model.
        version: of the model.
        call: the request.
        answer: the model's.
        model: its inputs and outputs; ``None``: not known.

    Raises:
        InvalidInput: an output that the model lacks was asked for, or JSON cannot hold one.
        BackendError: the protocol has no type for an output.
    """
    announced = announced_datatypes(model)
    contents: list[bytes | memoryview] = []
    described: list[dict[str, Any]] = []
    for output, array in select_outputs(call, answer).items():
        one: dict[str, Any] = {"name": output, "shape": array.shape}
        described.append(one)
        if call.binary if call.outputs is None else call.outputs[output]:
            one["datatype"], content = encode(output, array, announced.get(output))
            one["parameters"] = {"binary_data_size": len(content)}
            contents.append(content)
        else:
            one["datatype"], one["data"] = encode_list(output, array)
    head: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": described}
    if call.id:
        head["id"] = call.id
    text = _to_json(head).encode()
    return [text, *contents], len(text) if contents else None


def render_generated(name: str, version: str, call: InferRequest, answer: InferAnswer) -> bytes:
    """Return the body of ``generate``: a field per output, one element without a list.

    Raises:
        InvalidInput: JSON cannot hold an output.
        BackendError: the protocol has no type for one.
    """
    fields: dict[str, Any] = {"model_name": name, "model_version": version}
    if call.id:
        fields["id"] = call.id
    for output, array in answer.arrays.items():
        _, elements = encode_list(output, array)
        fields[output] = elements[0] if len(elements) == 1 else elements
    return _to_json(fields).encode()

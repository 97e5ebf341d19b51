"""Responses over HTTP: JSON, followed by the outputs that were requested as bytes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streaminfer.errors import InvalidInput
from streaminfer.protocols import ModelTensors
from streaminfer.serving.requests._infer_head_cy import InferHead
from streaminfer.serving.requests._row_path_cy import RowReply, join_parts
from streaminfer.serving.requests.infer_request import HEAD_LENGTH
from streaminfer.serving.requests.tensors import datatype_of_spec, encode, encode_list

__all__ = [
    "JSON_TYPE",
    "VERSION",
    "Outputs",
    "announced_datatypes",
    "keep_reply",
    "render_generated",
    "render_response",
    "select_outputs",
]

VERSION = "1"
"""The only version of each model."""
JSON_TYPE = (b"content-type", b"application/json")
_BINARY_TYPE = (b"content-type", b"application/octet-stream")
_HEAD_LENGTH = HEAD_LENGTH.encode()

_to_json = json.JSONEncoder(separators=(",", ":")).encode
Outputs = Mapping[str, npt.NDArray[Any]]


def select_outputs(head: InferHead, arrays: Outputs) -> Outputs:
    """Return the requested outputs.

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


def keep_reply(
    head: InferHead,
    row: Any,
    kinds: Sequence[tuple[Any, ...]],
    pieces: list[bytes],
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Store a response for further requests with this head, if its outputs are arrays of numbers.

    Args:
        head: the head of the request.
        row: the outputs, as the stack returned them.
        kinds: name and datatype of each output in the response.
        pieces: pieces of the response, one before each output.
        headers: headers of the response.
    """
    names = [kind[0] for kind in kinds]
    values = [row] if type(row) is np.ndarray else [row.get(name) for name in names] if type(row) is dict else [None]
    is_plain = all(type(value) is np.ndarray and value.dtype.isnative for value in values)
    if head.row_reader is not None and is_plain and not any(kind[1] in {"BF16", "BYTES"} for kind in kinds):
        head.row_reply = RowReply(row, names, pieces, headers)


def announced_datatypes(model: ModelTensors | None) -> dict[str, str | None]:
    """Return the protocol's names for the types of a model's outputs, as far as they are known."""
    return {} if model is None else {spec.name: datatype_of_spec(spec) for spec in model.outputs}


def render_response(
    name: str, head: InferHead, arrays: Outputs, row: Any, announced: Mapping[str, str | None]
) -> tuple[list[Any], Sequence[tuple[bytes, bytes]]]:
    """Return the parts of the body, and its headers.

    Requests that share a head also share the JSON, as long as the outputs have the same types and shapes.

    Args:
        name: the name of the model.
        head: the head of the request.
        arrays: the outputs of all rows.
        row: the outputs of the only row, as the stack returned them; ``None``: there are several rows.
        announced: the types of the outputs, as far as they are known.

    Raises:
        InvalidInput: the model has no such output, or JSON cannot hold an output.
        BackendError: the protocol has no type for an output.
    """
    contents: list[bytes | memoryview] = []
    kinds: list[tuple[str, str, tuple[int, ...], int]] = []
    json_elements: dict[str, list[Any]] = {}
    for output, array in select_outputs(head, arrays).items():
        if head.binary if head.outputs is None else head.outputs[output]:
            datatype, content = encode(output, array, announced.get(output))
            contents.append(content)
            kinds.append((output, datatype, array.shape, len(content)))
        else:
            datatype, json_elements[output] = encode_list(output, array)
            kinds.append((output, datatype, array.shape, 0))
    if not json_elements and head.rendered is not None and head.rendered[0] == kinds:
        text = head.rendered[1]
    else:
        text = _render_head(name, head.id, kinds, json_elements)
        head.rendered = None if json_elements else (kinds, text)
    size = len(text) + sum(map(len, contents))
    length = (b"content-length", b"%d" % size)
    if not contents:
        return [text], (JSON_TYPE, length)
    headers = (_BINARY_TYPE, (_HEAD_LENGTH, b"%d" % len(text)), length)
    if not json_elements:
        keep_reply(head, row, kinds, [text, *[b""] * (len(kinds) - 1)], headers)
    return join_parts([text, *contents], size), headers


def _render_head(
    name: str,
    identity: str,
    kinds: list[tuple[str, str, tuple[int, ...], int]],
    json_elements: Mapping[str, list[Any]],
) -> bytes:
    described: list[dict[str, Any]] = []
    for output, datatype, shape, size in kinds:
        binary = {"parameters": {"binary_data_size": size}}
        content = {"data": json_elements[output]} if output in json_elements else binary
        described.append({"name": output, "datatype": datatype, "shape": shape, **content})
    response: dict[str, Any] = {"model_name": name, "model_version": VERSION, "outputs": described}
    if identity:
        response["id"] = identity
    return _to_json(response).encode()


def render_generated(name: str, head: InferHead, arrays: Outputs) -> bytes:
    """Return the body of ``generate``: a field per output; a single element is not put in a list.

    Raises:
        InvalidInput: JSON cannot hold an output.
        BackendError: the protocol has no type for an output.
    """
    fields: dict[str, Any] = {"model_name": name, "model_version": VERSION}
    if head.id:
        fields["id"] = head.id
    for output, array in arrays.items():
        _, elements = encode_list(output, array)
        fields[output] = elements[0] if len(elements) == 1 else elements
    return _to_json(fields).encode()

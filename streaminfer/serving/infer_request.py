"""Inference requests over HTTP: JSON, with the binary tensors behind it, read into views of the body.

A body is JSON, or, if the header ``Inference-Header-Content-Length`` says how long that is, JSON followed by the bytes
of the inputs that state a ``binary_data_size``, in their order. Each size is checked before anything is allocated, and
every byte of the body must belong to something.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy.typing as npt

from streaminfer._internal.validation import brief
from streaminfer.errors import InvalidInput
from streaminfer.protocols import ModelTensor, ModelTensors
from streaminfer.serving.errors import RequestRejected
from streaminfer.serving.limits import Limits
from streaminfer.serving.tensors import check_shape, datatype_of_spec, decode, decode_list

__all__ = ["HEAD_LENGTH", "InferRequest", "InputReader", "parse_body", "parse_generate", "parse_head_length"]

HEAD_LENGTH = "inference-header-content-length"
_LENGTH = re.compile(r"[0-9]{1,12}", re.ASCII)


class InferRequest(NamedTuple):
    """A request to a model, of one or more rows.

    Attributes:
        id: of the client, which the response repeats.
        arrays: the inputs by name; the first axis holds the rows.
        rows: their number.
        parameters: of the request.
        outputs: those to return, by name, and whether as bytes; ``None``: all.
        binary: whether outputs that are not named are returned as bytes.
    """

    id: str
    arrays: Mapping[str, npt.NDArray[Any]]
    rows: int
    parameters: Mapping[str, Any]
    outputs: Mapping[str, bool] | None = None
    binary: bool = False


class InputReader:
    """Reads the inputs of one request; both protocols use it.

    Args:
        model: the inputs and outputs of the model; ``None``: not known.
        limits: what is accepted.
    """

    __slots__ = ("_keeps_bytes", "_limits", "_specs", "arrays", "rows")

    def __init__(self, model: ModelTensors | None, limits: Limits) -> None:
        self._specs: dict[str, ModelTensor] = {} if model is None else {spec.name: spec for spec in model.inputs}
        self._keeps_bytes = model is not None and model.reads_bytes
        self._limits = limits
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        self.rows = 0

    def add(self, name: Any, datatype: Any, shape: Any, *, content: memoryview | None = None, data: Any = None) -> None:
        """Add an input.

        Args:
            name: as the client says, like the next two.
            datatype: of the protocol.
            shape: with the rows on the first axis.
            content: its bytes, or
            data: its elements.

        Raises:
            InvalidInput: it is not what the protocol has.
            RequestRejected: it is beyond the limits.
        """
        if not isinstance(name, str) or not name or name in self.arrays:
            raise InvalidInput(f"inputs: expected a name for each, each once, got {brief(name)}")
        count = check_shape(name, datatype, shape, self._limits)
        if self.arrays and shape[0] != self.rows:
            raise InvalidInput(f"input {name!r}: expected {self.rows} rows as in the other inputs, got {shape[0]}")
        self.rows = shape[0]
        if content is None:
            array = decode_list(name, datatype, shape, count, data, keeps_bytes=self._keeps_bytes)
        else:
            spec = self._specs.get(name)
            array = decode(name, datatype, shape, count, content, spec, keeps_bytes=self._keeps_bytes)
        self.arrays[name] = array


def parse_head_length(said: str | None) -> int | None:
    """Return the length of the JSON in front of the bytes; ``None``: all is JSON.

    Raises:
        InvalidInput: no length.
    """
    if said is None:
        return None
    if not _LENGTH.fullmatch(said):
        raise InvalidInput(f"Inference-Header-Content-Length: expected a number of bytes, got {brief(said)}")
    return int(said)


def parse_body(body: memoryview, head_length: int | None, model: ModelTensors | None, limits: Limits) -> InferRequest:
    """Return the request in a body; its arrays are views of it.

    Args:
        body: the whole.
        head_length: of the JSON; ``None``: all.
        model: the inputs and outputs of the model; ``None``: not known.
        limits: what is accepted.

    Raises:
        InvalidInput: it is not what the protocol has.
        RequestRejected: it is beyond the limits, or asks for an extension that is not offered.
    """
    if head_length is not None and head_length > len(body):
        raise InvalidInput(f"Inference-Header-Content-Length: expected at most {len(body)}, got {head_length}")
    position = len(body) if head_length is None else head_length
    head = _parse_json(body[:position], limits)
    reader = InputReader(model, limits)
    for described in _objects(head.get("inputs"), "inputs", limits):
        parameters = _parameters(described, "input")
        size = parameters.get("binary_data_size")
        content = None
        if size is not None:
            if type(size) is not int or size < 0 or "data" in described:
                raise InvalidInput(f"binary_data_size: expected a number of bytes in place of data, got {brief(size)}")
            content = body[position : position + size]
            if len(content) < size:
                raise InvalidInput(f"binary_data_size: expected at most {len(content)} bytes more, got {brief(size)}")
            position += size
        reader.add(
            described.get("name"), described.get("datatype"), described.get("shape"),
            content=content, data=described.get("data"),
        )  # fmt: skip
    if not reader.arrays:
        raise InvalidInput("inputs: expected at least one, got none")
    if position != len(body):
        raise InvalidInput(f"body: expected {position} bytes, as the inputs state, got {len(body)}")
    parameters = _parameters(head, "request")
    binary = parameters.get("binary_data_output", False)
    outputs = None
    if (described_outputs := head.get("outputs")) is not None:
        outputs = _parse_outputs(described_outputs, binary, limits)
    return InferRequest(_identity(head), reader.arrays, reader.rows, parameters, outputs or None, binary is True)


def parse_generate(body: memoryview, model: ModelTensors | None, limits: Limits) -> InferRequest:
    """Return the request of one row in the body of ``generate``: a field per input, and ``parameters``.

    Args:
        body: JSON.
        model: the inputs and outputs of the model, whose types and shapes apply.
        limits: what is accepted.

    Raises:
        InvalidInput: the model has no such inputs, or they are not known.
        RequestRejected: it is beyond the limits.
    """
    if model is None:
        raise InvalidInput("generate: expected a model whose inputs are known; use infer")
    head = _parse_json(body, limits)
    parameters = _parameters(head, "request")
    reader = InputReader(model, limits)
    specs = {spec.name: spec for spec in model.inputs}
    for name, value in head.items():
        if name in {"id", "parameters"}:
            continue
        if (spec := specs.get(name)) is None:
            raise InvalidInput(f"input {name!r}: expected only {', '.join(map(repr, specs))}")
        data = value if isinstance(value, list) else [value]
        reader.add(name, datatype_of_spec(spec), [1, *_shape_of(name, data, spec, limits)], data=[data])
    if not reader.arrays:
        raise InvalidInput("inputs: expected at least one, got none")
    return InferRequest(_identity(head), reader.arrays, 1, parameters)


def _parse_json(content: memoryview, limits: Limits) -> dict[str, Any]:
    if len(content) > limits.max_head_bytes:
        raise RequestRejected(413, f"body: expected at most {limits.max_head_bytes} bytes of JSON, got {len(content)}")
    try:
        head = json.loads(str(content, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"body: expected JSON, got something else: {error}") from None
    if not isinstance(head, dict):
        raise InvalidInput(f"body: expected a JSON object, got {brief(head)}")
    return head


def _objects(value: Any, name: str, limits: Limits) -> Sequence[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise InvalidInput(f"{name}: expected a list of objects, got {brief(value)}")
    if len(value) > limits.max_tensors:
        raise RequestRejected(413, f"{name}: expected at most {limits.max_tensors}, got {len(value)}")
    return value


def _parameters(described: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    parameters = described.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidInput(f"parameters of the {what}: expected an object, got {brief(parameters)}")
    if "shared_memory_region" in parameters or parameters.get("classification"):
        raise RequestRejected(501, f"parameters of the {what}: shared memory and classification are not offered")
    return parameters


def _parse_outputs(described: Any, binary: Any, limits: Limits) -> dict[str, bool]:
    outputs: dict[str, bool] = {}
    for one in _objects(described, "outputs", limits):
        name = one.get("name")
        if not isinstance(name, str) or not name:
            raise InvalidInput(f"outputs: expected a name for each, got {brief(name)}")
        outputs[name] = _parameters(one, "output").get("binary_data", binary) is True
    return outputs


def _identity(head: Mapping[str, Any]) -> str:
    identity = head.get("id", "")
    if not isinstance(identity, str) or len(identity) > 256:
        raise InvalidInput(f"id: expected a text of at most 256 characters, got {brief(identity)}")
    return identity


def _shape_of(name: str, data: list[Any], spec: ModelTensor, limits: Limits) -> Sequence[int]:
    """The shape of one row: that of the nested lists, or the model's where a flat list has as many elements."""
    wanted = [size for size in spec.row_shape if isinstance(size, int)]
    if len(wanted) == len(spec.row_shape) and not any(isinstance(one, list) for one in data):
        return wanted
    shape: list[int] = []
    level: Any = data
    while isinstance(level, list) and level:
        shape.append(len(level))
        if len(shape) > limits.max_rank:
            raise RequestRejected(413, f"input {name!r}: expected at most {limits.max_rank} axes")
        level = level[0]
    return shape

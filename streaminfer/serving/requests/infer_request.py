"""Inference requests over HTTP: JSON, followed by binary tensors, which are read as views of the body.

A body is JSON. If the header ``Inference-Header-Content-Length`` gives the length of the JSON, the bytes of the inputs
with a ``binary_data_size`` follow it, in their order. Each size is checked before memory is allocated, and every byte
of the body must belong to the JSON or an input.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from streaminfer._internal.validation import brief
from streaminfer.errors import InvalidInput
from streaminfer.protocols import ModelTensor, ModelTensors
from streaminfer.serving.errors import RequestRejected
from streaminfer.serving.limits import Limits
from streaminfer.serving.requests._infer_head_cy import InferHead
from streaminfer.serving.requests.tensors import Tensor, check_shape, datatype_of_spec

__all__ = ["HEAD_LENGTH", "HeadReader", "parse_generate", "parse_head", "parse_head_length"]

HEAD_LENGTH = "inference-header-content-length"
_LONGEST_LENGTH = 12


class HeadReader:
    """Reads the descriptions of the inputs of one request; both protocols use it.

    Args:
        model: the inputs and outputs of the model; ``None``: not known.
        limits: limits of one request.
    """

    def __init__(self, model: ModelTensors | None, limits: Limits) -> None:
        self._model = model
        self.specs: dict[str, ModelTensor] = {} if model is None else {spec.name: spec for spec in model.inputs}
        self._limits = limits
        self.keeps_bytes = model is not None and model.reads_bytes
        self.tensors: list[Tensor] = []
        self.rows = 0

    def add(self, name: Any, datatype: Any, shape: Any, *, size: int | None = None, data: Any = None) -> None:
        """Add an input.

        Args:
            name: the name that the client gives.
            datatype: the datatype that the client gives, one of the protocol's.
            shape: the shape that the client gives, with the rows on the first axis.
            size: size of its content, if the head states it.
            data: its elements, instead of a content.

        Raises:
            InvalidInput: the description is not valid in the protocol.
            RequestRejected: the input exceeds the limits.
        """
        if not isinstance(name, str) or not name or any(name == tensor.name for tensor in self.tensors):
            raise InvalidInput(f"inputs: expected a name for each, each once, got {brief(name)}")
        count = check_shape(name, datatype, shape, self._limits)
        if self.tensors and shape[0] != self.rows:
            raise InvalidInput(f"input {name!r}: expected {self.rows} rows as in the other inputs, got {shape[0]}")
        self.rows = shape[0]
        self.tensors.append(Tensor(name, datatype, shape, count, self.specs.get(name), size, data))

    def takes_one(self) -> bool:
        """Return whether the model reads the only input as an array."""
        model = self._model
        return len(self.tensors) == 1 and (
            model is None or (model.takes_one_array and [spec.name for spec in model.inputs] == [self.tensors[0].name])
        )


def parse_head_length(value: bytes) -> int:
    """Return the length of the JSON before the bytes.

    Raises:
        RequestRejected: the header is not a length.
    """
    if not value.isdigit() or len(value) > _LONGEST_LENGTH:
        message = f"Inference-Header-Content-Length: expected a number of bytes, got {brief(value.decode('latin-1'))}"
        raise RequestRejected(400, message, closes_connection=True)
    return int(value)


def parse_head(text: memoryview, model: ModelTensors | None, limits: Limits) -> InferHead:
    """Return the head of a request from its JSON.

    Args:
        text: the JSON.
        model: the inputs and outputs of the model; ``None``: not known.
        limits: limits of one request.

    Raises:
        InvalidInput: the JSON is not a valid request of the protocol.
        RequestRejected: the request exceeds the limits, or needs an extension that is not offered.
    """
    head = _parse_json(text, limits)
    reader = HeadReader(model, limits)
    for described in _objects(head.get("inputs"), "inputs", limits):
        size, data = _parameters(described, "input").get("binary_data_size"), described.get("data")
        if size is None:
            data = "nothing" if data is None else data  # a value that is later rejected as elements
        elif type(size) is not int or size < 0 or "data" in described:
            raise InvalidInput(f"binary_data_size: expected a number of bytes in place of data, got {brief(size)}")
        reader.add(described.get("name"), described.get("datatype"), described.get("shape"), size=size, data=data)
    if not reader.tensors:
        raise InvalidInput("inputs: expected at least one, got none")
    parameters = _parameters(head, "request")
    binary = parameters.get("binary_data_output", False)
    described_outputs = head.get("outputs")
    outputs = None if described_outputs is None else _parse_outputs(described_outputs, binary, limits)
    return InferHead(_identity(head), reader, parameters, outputs, binary=binary is True)


def parse_generate(body: memoryview, model: ModelTensors | None, limits: Limits) -> InferHead:
    """Return the head of a ``generate`` request: one row, with a field per input, and ``parameters``.

    Other fields are parameters too, as in Triton.

    Args:
        body: JSON.
        model: the inputs and outputs of the model, which determine types and shapes.
        limits: limits of one request.

    Raises:
        InvalidInput: the model has no such inputs, or they are not known.
        RequestRejected: the request exceeds the limits.
    """
    if model is None or not model.inputs:
        raise InvalidInput("generate: expected a model whose inputs are known; use infer")
    head = _parse_json(body, limits)
    explicit = _parameters(head, "request")
    extra: dict[str, Any] = {}
    reader = HeadReader(model, limits)
    for name, value in head.items():
        if name in {"id", "parameters"}:
            continue
        if (spec := reader.specs.get(name)) is None:
            if not isinstance(value, (bool, int, float, str)):
                expectation = f"an input ({_names(reader.specs)}), or a parameter: a number, a boolean or text"
                raise InvalidInput(f"{name!r}: expected {expectation}, got {brief(value)}")
            extra[name] = value
            continue
        data = value if isinstance(value, list) else [value]
        reader.add(name, datatype_of_spec(spec), [1, *_shape_of(name, data, spec, limits)], data=[data])
    if not reader.tensors:
        raise InvalidInput(f"inputs: expected {_names(reader.specs)}, got none of them")
    parameters = _parameters({"parameters": {**extra, **explicit}}, "request") if extra else explicit
    return InferHead(_identity(head), reader, parameters, None, binary=False)


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


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


def _parameters(described: Mapping[str, Any], owner: str) -> Mapping[str, Any]:
    parameters = described.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidInput(f"parameters of the {owner}: expected an object, got {brief(parameters)}")
    if "shared_memory_region" in parameters or parameters.get("classification"):
        raise RequestRejected(501, f"parameters of the {owner}: shared memory and classification are not offered")
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
    """Return the shape of one row: that of the nested lists, or the model's if it is fixed and the list is flat."""
    fixed_sizes = [size for size in spec.row_shape if isinstance(size, int)]
    if len(fixed_sizes) == len(spec.row_shape) and not any(isinstance(one, list) for one in data):
        return fixed_sizes
    shape: list[int] = []
    level: Any = data
    while isinstance(level, list):
        shape.append(len(level))
        if len(shape) > limits.max_rank:
            raise RequestRejected(413, f"input {name!r}: expected at most {limits.max_rank} axes")
        level = level[0] if level else None
    return shape

"""Description of a stack as a model of the protocol."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from streaminfer._internal.validation import check_instance, expected
from streaminfer.protocols import Capabilities, ModelTensor, ModelTensors, adapt
from streaminfer.serving.errors import RequestRejected
from streaminfer.serving.limits import Limits
from streaminfer.serving.requests._model_requests_cy import ModelRequests
from streaminfer.serving.requests.tensors import datatype_of_spec
from streaminfer.stack import Stack

__all__ = ["EXTENSIONS", "VERSION", "ServedModel", "find_model", "served_models", "server_version"]

VERSION = "1"
"""The only version of each model."""
EXTENSIONS = ("binary_tensor_data", "generate", "model_configuration", "schedule_policy", "sequence", "statistics")


class ServedModel:
    """A stack with the name that clients use.

    Args:
        name: the name of the model.
        stack: the stack that serves the model.
        limits: limits of one request.

    Attributes:
        name: the name of the model.
        stack: the stack that serves the model.
        requests: sends requests to the stack.
    """

    def __init__(self, name: str, stack: Stack, limits: Limits) -> None:
        self.name = name
        self.stack = stack
        self.requests = ModelRequests(name, VERSION, stack)
        self._limits = limits

    @property
    def ready(self) -> bool:
        """True if the stack accepts requests."""
        return self.stack.ready

    def metadata(self) -> dict[str, Any]:
        """Return the protocol's metadata of the model; inputs and outputs are empty if they are not known."""
        inputs, outputs = _tensors_of(adapt(self.stack).capabilities())
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": "streaminfer",
            "inputs": list(map(_described, inputs)),
            "outputs": list(map(_described, outputs)),
        }

    def config(self) -> dict[str, Any]:
        """Return the model's configuration in Triton's terms; shapes are without the batch axis."""
        capabilities = adapt(self.stack).capabilities()
        inputs, outputs = _tensors_of(capabilities)
        config: dict[str, Any] = {
            "name": self.name,
            "platform": "streaminfer",
            "backend": "streaminfer",
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": self._limits.max_rows,
            "input": [{**_configured(spec), "optional": spec.is_optional} for spec in inputs],
            "output": list(map(_configured, outputs)),
            "model_transaction_policy": {"decoupled": capabilities.many_answers},
        }
        if capabilities.stream_states is not None:
            control = {"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_UINT64"}
            config["sequence_batching"] = {"control_input": [{"name": "sequence_id", "control": [control]}]}
        return config

    def statistics(self) -> dict[str, Any]:
        """Return counts and durations of the requests, in Triton's terms."""
        return {"name": self.name, "version": VERSION, **self.requests.counters.statistics()}

    def __repr__(self) -> str:
        return f"ServedModel({self.name!r}, {self.stack!r})"


def served_models(stacks: Mapping[str, Stack], limits: Limits) -> dict[str, ServedModel]:
    """Return a model for each stack.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    check_instance("stacks", stacks, lambda it: isinstance(it, Mapping), "a mapping of model name to Stack")
    if not stacks:
        raise ValueError(expected("stacks", "at least one Stack", stacks))
    name: Any  # checked at run time, whatever the annotation says
    for name, stack in stacks.items():
        check_instance(f"stacks[{name!r}]", stack, lambda it: isinstance(it, Stack), "a Stack")
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(expected("stacks", "names without '/', none empty", name))
    return {name: ServedModel(name, stack, limits) for name, stack in stacks.items()}


def find_model(models: Mapping[str, ServedModel], name: str, requested_version: str) -> ServedModel:
    """Return a model by name.

    Raises:
        RequestRejected: there is no such model, or not in this version.
    """
    model = models.get(name)
    if model is None or requested_version not in {"", VERSION}:
        raise RequestRejected(
            404, f"model {name!r}{f' version {requested_version!r}' if requested_version else ''} is not found"
        )
    return model


def server_version() -> str:
    """Return the version of this package; ``unknown`` in a checkout that is not installed."""
    try:
        return version("streaminfer")
    except PackageNotFoundError:
        return "unknown"


def _tensors_of(capabilities: Capabilities) -> list[list[ModelTensor]]:
    """Return the inputs and outputs for which the protocol has types; empty if they are not known."""
    tensors = None if capabilities.model_tensors is None else capabilities.model_tensors()
    model = tensors or ModelTensors(())
    return [[spec for spec in specs if datatype_of_spec(spec)] for specs in (model.inputs, model.outputs)]


def _described(spec: ModelTensor) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype_of_spec(spec), "shape": [-1, *_sizes(spec)]}


def _configured(spec: ModelTensor) -> dict[str, Any]:
    datatype = datatype_of_spec(spec)
    data_type = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    return {"name": spec.name, "data_type": data_type, "dims": _sizes(spec)}


def _sizes(spec: ModelTensor) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in spec.row_shape]

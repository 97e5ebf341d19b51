"""Description of a stack as a model of the protocol."""

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from streaminfer._internal.validation import check_instance, expected
from streaminfer.protocols import Capabilities, ModelTensor, ModelTensors, adapt
from streaminfer.serving.errors import RequestRejected
from streaminfer.serving.limits import Limits
from streaminfer.serving.requests._model_requests_cy import ModelRequests
from streaminfer.serving.requests.infer_response import VERSION
from streaminfer.serving.requests.tensors import datatype_of_spec
from streaminfer.stack import Stack

__all__ = ["config", "find_model", "is_ready", "metadata", "served_models", "server", "statistics"]

_EXTENSIONS = ["binary_tensor_data", "generate", "model_configuration", "schedule_policy", "sequence", "statistics"]


def metadata(model: ModelRequests) -> dict[str, Any]:
    """Return the protocol's metadata of a model; inputs and outputs are empty if they are not known."""
    inputs, outputs = _tensors_of(adapt(model.stack).capabilities())
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": "streaminfer",
        "inputs": list(map(_described, inputs)),
        "outputs": list(map(_described, outputs)),
    }


def config(model: ModelRequests, limits: Limits) -> dict[str, Any]:
    """Return a model's configuration in Triton's terms; shapes are without the batch axis."""
    capabilities = adapt(model.stack).capabilities()
    inputs, outputs = _tensors_of(capabilities)
    described: dict[str, Any] = {
        "name": model.name,
        "platform": "streaminfer",
        "backend": "streaminfer",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": limits.max_rows,
        "input": [{**_configured(spec), "optional": spec.is_optional} for spec in inputs],
        "output": list(map(_configured, outputs)),
        "model_transaction_policy": {"decoupled": capabilities.many_answers},
    }
    if capabilities.stream_states is not None:
        control = {"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_UINT64"}
        described["sequence_batching"] = {"control_input": [{"name": "sequence_id", "control": [control]}]}
    return described


def statistics(models: Iterable[ModelRequests]) -> dict[str, Any]:
    """Return counts and durations of the requests to some models, in Triton's terms."""
    each = [{"name": model.name, "version": VERSION, **model.counters.statistics()} for model in models]
    return {"model_stats": each}


def is_ready(models: Mapping[str, ModelRequests]) -> bool:
    """Return whether all models accept requests."""
    return all(model.stack.ready for model in models.values())


def served_models(stacks: Mapping[str, Stack]) -> dict[str, ModelRequests]:
    """Return a model for each stack.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    check_instance("stacks", stacks, Mapping, "a mapping of model name to Stack")
    if not stacks:
        raise ValueError(expected("stacks", "at least one Stack", stacks))
    name: Any  # checked at run time, whatever the annotation says
    for name, stack in stacks.items():
        check_instance(f"stacks[{name!r}]", stack, Stack, "a Stack")
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(expected("stacks", "names without '/', none empty", name))
    return {name: ModelRequests(name, stack) for name, stack in stacks.items()}


def find_model(models: Mapping[str, ModelRequests], name: str, requested_version: str) -> ModelRequests:
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


def server() -> dict[str, Any]:
    """Return the protocol's metadata of the server; its version is ``unknown`` in a checkout that is not installed."""
    try:
        installed = version("streaminfer")
    except PackageNotFoundError:
        installed = "unknown"
    return {"name": "streaminfer", "version": installed, "extensions": _EXTENSIONS}


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

"""Descriptions of a server and of a model, with what the backend needs: names, types, shapes and request rules.

The backend reads from the server its extensions, whether the model exists and is ready, its inputs and outputs, and its
configuration. A server that lacks one of Triton's extensions is used without it (:attr:`Server.missing_extensions`),
unless the user requested the feature.

If the user names no version, calls name none either. The server then describes the version that it would choose now,
so no call can name a version that was unloaded meanwhile.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from streaminfer.backends.signature import TensorSpec
from streaminfer.backends.triton.dtypes import dtype_of
from streaminfer.backends.triton.errors import ModelNotReady, ServerError, explained
from streaminfer.backends.triton.settings import Settings, Transport
from streaminfer.backends.triton.shared_memory.region_pool import OLDEST_SERVER
from streaminfer.errors import BackendError

__all__ = ["ModelDescription", "Server", "describe_model", "describe_server", "latest", "latest_version", "read_model"]

EXTENSIONS = (
    "model_configuration",
    "sequence",
    "statistics",
    "system_shared_memory",
    "schedule_policy",
    "binary_tensor_data",
)
"""Triton's extensions that the backend can use."""


@attrs.frozen(kw_only=True)
class ModelDescription:
    """A model as its server describes it.

    Attributes:
        name: the model's name in calls.
        version: the version that is described; empty: the server names none.
        inputs: the inputs, batch axis included.
        outputs: the outputs, batch axis included.
        datatypes: the protocol's name for the type of each input and output.
        max_batch_size: the most rows of one request; 0: requests have no batch axis; ``None``: the server does not say.
        decoupled: whether a request can have any number of responses.
        sequence: whether the model keeps state for each sequence; a request is then one step of a sequence.
        correlation: the protocol's type of a sequence's id.
        sequence_idle_s: idle time after which the server forgets a sequence.
        ensemble: whether the model is a chain of other models.
        priority_levels: number of priority levels; 0: the model has none.
        default_priority: the level of requests without a priority.
        takes_timeout: whether the server's queue drops a request when the request's own timeout has passed.
        instances: number of copies that run, as far as the server says.
    """

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    datatypes: Mapping[str, str]
    max_batch_size: int | None
    decoupled: bool = False
    sequence: bool = False
    correlation: str = "TYPE_UINT64"
    sequence_idle_s: float = 0.0
    ensemble: bool = False
    priority_levels: int = 0
    default_priority: int = 0
    takes_timeout: bool = False
    instances: int = 1

    @property
    def has_batch_axis(self) -> bool:
        """True if requests have a batch axis."""
        return self.max_batch_size != 0

    @property
    def by_row(self) -> bool:
        """True if each row of a batch is sent as a separate request."""
        return self.sequence or self.decoupled or not self.has_batch_axis


def latest(versions: Iterable[str]) -> str:
    """Return the version that a server chooses by default: the highest number; empty if the server names none."""
    ordered = sorted(versions, key=lambda one: (one.isdigit(), int(one) if one.isdigit() else 0, one))
    return ordered[-1] if ordered else ""


def read_model(
    name: str, version: str, metadata: Mapping[str, Any], config: Mapping[str, Any] | None
) -> ModelDescription:
    """Combine the metadata and the configuration of a model.

    Args:
        name: the model's name in calls.
        version: the version in calls.
        metadata: the server's description of inputs and outputs.
        config: the model's configuration; ``None``: the server does not provide it.

    Raises:
        BackendError: the model cannot be used: no inputs, unknown types, or invalid metadata.
    """
    subject = f"model {name!r}"
    try:
        batch = None if config is None else int(config.get("max_batch_size", 0))
        inputs, outputs = metadata.get("inputs") or (), metadata.get("outputs") or ()
        if not inputs or not outputs:
            raise BackendError(
                f"{subject}: expected a server that names inputs and outputs, got {len(inputs)} and {len(outputs)}: "
                "requests could not be checked"
            )
        if batch is None and any(_sizes(one)[:1] != [-1] for one in inputs):
            batch = 0
        optional = {one["name"] for one in (config or {}).get("input") or () if one.get("optional")}
        if len(inputs) == 1:  # a request must have an input
            optional = set()
        return ModelDescription(
            name=name,
            version=version,
            inputs=tuple(_spec(subject, one, batch, is_optional=one["name"] in optional) for one in inputs),
            outputs=tuple(_spec(subject, one, batch) for one in outputs),
            datatypes={one["name"]: one["datatype"] for one in (*inputs, *outputs)},
            max_batch_size=batch,
            **_settings(config or {}),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BackendError(f"{subject}: the server describes it in a way that cannot be read: {error!r}") from error


def _sizes(described: Mapping[str, Any]) -> list[int]:
    return [int(size) for size in described.get("shape") or ()]


def _spec(subject: str, described: Mapping[str, Any], batch: int | None, *, is_optional: bool = False) -> TensorSpec:
    name, datatype = described["name"], described["datatype"]
    dtype = dtype_of(datatype)
    if dtype is None:
        raise BackendError(f"{subject}: expected types that NumPy has, got {datatype} for {name!r}")
    shape: list[int | str | None] = [None if size < 0 else size for size in _sizes(described)]
    if batch == 0:
        shape.insert(0, 1)  # no batch axis: one row per request
    elif shape:
        shape[0] = "batch"
    else:
        raise BackendError(f"{subject}: expected a batch axis, got a scalar {name!r}")
    return TensorSpec(name, dtype, tuple(shape), 0, is_optional)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    dynamic, sequence = config.get("dynamic_batching") or {}, config.get("sequence_batching") or {}
    levels = int(dynamic.get("priority_levels") or 0)
    policies = [dynamic.get("default_queue_policy"), *(dynamic.get("priority_queue_policy") or {}).values()]
    groups: Sequence[Mapping[str, Any]] = config.get("instance_group") or ()
    return {
        "decoupled": bool((config.get("model_transaction_policy") or {}).get("decoupled")),
        "sequence": config.get("sequence_batching") is not None,
        "correlation": _correlation(sequence),
        "sequence_idle_s": int(sequence.get("max_sequence_idle_microseconds") or 0) / 1e6,
        "ensemble": config.get("ensemble_scheduling") is not None,
        "priority_levels": levels,
        "default_priority": int(dynamic.get("default_priority_level") or (levels + 1) // 2),
        "takes_timeout": any((policy or {}).get("allow_timeout_override") for policy in policies),
        "instances": max(
            sum(int(group.get("count") or 1) * max(len(group.get("gpus") or ()), 1) for group in groups), 1
        ),
    }


def _correlation(sequence: Mapping[str, Any]) -> str:
    for one in sequence.get("control_input") or ():
        for control in one.get("control") or ():
            if control.get("kind") == "CONTROL_SEQUENCE_CORRID":
                return str(control.get("data_type") or "TYPE_UINT64")
    return "TYPE_UINT64"


@attrs.frozen
class Server:
    """A server as it describes itself.

    Attributes:
        name: the name of the server.
        version: the version of its software.
        extensions: the protocol extensions that it supports.
    """

    name: str
    version: str
    extensions: frozenset[str]

    @property
    def missing_extensions(self) -> tuple[str, ...]:
        """Extensions that the backend can use and the server lacks."""
        return tuple(name for name in EXTENSIONS if name not in self.extensions)

    def check_shared_memory(self) -> None:
        """Check that tensors can go through shared memory.

        Raises:
            ValueError: the server has no such extension, or is so old that it can crash.
        """
        if "system_shared_memory" not in self.extensions:
            raise ValueError(
                f"shared_memory: expected False, since {self.name} {self.version} has no such extension, got True"
            )
        numbers = self.version.split(".")[:2]
        if len(numbers) == 2 and all(one.isdigit() for one in numbers) and tuple(map(int, numbers)) < OLDEST_SERVER:
            oldest = ".".join(map(str, OLDEST_SERVER))
            raise ValueError(
                f"shared_memory: expected False, since Triton {self.version} is older than {oldest} and can crash "
                "when a region is forgotten while it is used, got True"
            )


async def describe_server(transport: Transport, settings: Settings) -> tuple[Server, ModelDescription]:
    """Return a server's descriptions of itself and of the backend's model.

    Raises:
        ValueError: the server has no such model, or not in this version.
        ModelNotReady: the server has not loaded the model.
        DeadlineExceeded, BackendError: the server does not respond, or the model cannot be used.
    """
    model, version, timeout_s = settings.model, settings.version, settings.timeout_s
    subject = f"model {model!r}" + (f" version {version!r}" if version else "")
    with explained(f"describing {subject}"):
        described = await transport.server(timeout_s)
        extensions = frozenset(described.get("extensions") or ())  # some servers send null for an empty list
        server = Server(str(described.get("name", "")), str(described.get("version", "")), extensions)
        try:
            metadata = await transport.metadata(model, version, timeout_s)
        except ServerError as failure:
            if failure.status in {"NOT_FOUND", "INVALID_ARGUMENT"}:
                raise await _unknown(transport, server, settings, failure) from failure
            raise
        if not await transport.ready(model, version, timeout_s):
            raise ModelNotReady(f"{subject} is not ready: the server loads it, or could not")
        return server, await _read(transport, server, settings, metadata)


async def describe_model(transport: Transport, server: Server, settings: Settings) -> ModelDescription:
    """Return the description of a model that the server already had, like :func:`describe_server`.

    Raises:
        DeadlineExceeded, BackendError: the server does not respond, or the model is missing or cannot be used.
    """
    with explained(f"describing model {settings.model!r}"):
        metadata = await transport.metadata(settings.model, settings.version, settings.timeout_s)
        return await _read(transport, server, settings, metadata)


async def latest_version(transport: Transport, settings: Settings) -> str:
    """Return the version that a server chooses now; empty if it names none.

    Raises:
        ServerError: the server does not respond.
    """
    return latest((await transport.metadata(settings.model, "", settings.timeout_s)).get("versions") or ())


async def _read(
    transport: Transport, server: Server, settings: Settings, metadata: Mapping[str, Any]
) -> ModelDescription:
    model, version, config = settings.model, settings.version, None
    if "model_configuration" in server.extensions:
        config = await _config(transport, model, version, settings.timeout_s)
    return read_model(model, version or latest(metadata.get("versions") or ()), metadata, config)


async def _config(transport: Transport, model: str, version: str, timeout_s: float) -> Mapping[str, Any]:
    """Return the configuration of a model; an ensemble gets the sequence settings of its parts."""
    config = await transport.config(model, version, timeout_s)
    try:
        parts = [
            (str(step["model_name"]), int(step.get("model_version") or -1))
            for step in (config.get("ensemble_scheduling") or {}).get("step") or ()
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BackendError(f"model {model!r}: the parts of the ensemble cannot be read: {error!r}") from error
    for part, number in parts:
        part_config = await _config(transport, part, str(number) if number > 0 else "", timeout_s)
        if part_config.get("sequence_batching") is not None:
            return {**config, "sequence_batching": part_config["sequence_batching"]}
    return config


async def _unknown(
    transport: Transport, server: Server, settings: Settings, failure: ServerError
) -> ValueError | BackendError:
    """Return the error for an unknown model or version, with those that exist."""
    model, version = settings.model, settings.version
    ready_models: list[str] = []
    if "model_repository" in server.extensions:
        try:
            for entry in await transport.index(settings.timeout_s):
                state = str(entry.get("state", ""))
                number = str(entry.get("version", ""))
                if entry.get("name") == model and (not version or number in {version, ""}):
                    reason = f"{state} {entry.get('reason', '')}".rstrip() if state else "the server has not loaded it"
                    if state == "READY":
                        reason = f"it was loaded only after this: {failure.text}"
                    return ModelNotReady(f"model {model!r} is not ready: {reason}")
                if state == "READY":
                    ready_models.append(f"{entry.get('name')!r} {number}")
        except ServerError as unreadable:
            ready_models = [f"(its list cannot be read: {unreadable.text})"]
    if failure.says(["no available versions"]):
        return ModelNotReady(f"model {model!r} is not ready: {failure.text}")
    argument, value = ("version", version) if version else ("model", model)
    hint = f"; it has {', '.join(ready_models)}" if ready_models else ""
    return ValueError(
        f"{argument}: expected {f'a version of model {model!r}' if version else 'a model'} of the server, got {value!r}"
        f"{hint} ({failure.text})"
    )

"""What a server says of itself and of a model, read into what the backend needs: names, types, shapes, how it is asked.

It is asked for its extensions, whether the model is there and ready, what that reads and returns, and its
configuration. A peer of the protocol that lacks one of Triton's extensions is used without it
(:attr:`Server.missing_extensions`), unless what it lacks was asked for.

A question that names no version is resolved by the one that the server would choose now, so no version can be gone
between one question and the next.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from streaminfer.backends.signature import TensorSpec
from streaminfer.backends.triton.dtypes import dtype_of
from streaminfer.backends.triton.errors import ModelNotReady, ServerError, explained
from streaminfer.backends.triton.messages import Transport
from streaminfer.backends.triton.settings import Settings
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
"""Of Triton, those that the backend makes use of."""


@attrs.frozen(kw_only=True)
class ModelDescription:
    """A model as its server describes it.

    Attributes:
        name: as it is asked for.
        version: the one that this describes; empty: the server names none.
        platform: what runs it, in the server's words.
        inputs: what it reads, batch axis included.
        outputs: what it returns.
        datatypes: the protocol's name for the type of each input and output.
        max_batch_size: the most rows of one request; 0: requests have no batch axis; ``None``: the server does not say.
        decoupled: a request has any number of responses.
        sequence: the model keeps state for each sequence, and a request is one step of one.
        correlation: the protocol's type of a sequence's id.
        sequence_idle_s: after which the server forgets a sequence.
        dynamic_batching: the server puts requests together itself.
        ensemble: the model is a chain of others.
        priority_levels: how many there are; 0: the model knows none.
        default_priority: the level of requests that say none.
        takes_timeout: the server's queue drops a request whose own timeout has passed.
        instances: how many copies run, as far as is said.
    """

    name: str
    version: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    datatypes: Mapping[str, str]
    max_batch_size: int | None
    decoupled: bool = False
    sequence: bool = False
    correlation: str = "TYPE_UINT64"
    sequence_idle_s: float = 0.0
    dynamic_batching: bool = False
    ensemble: bool = False
    priority_levels: int = 0
    default_priority: int = 0
    takes_timeout: bool = False
    instances: int = 1

    @property
    def by_row(self) -> bool:
        """Whether each row of a batch is asked in a request of its own."""
        return self.sequence or self.decoupled or self.max_batch_size == 0


def latest(versions: Iterable[str]) -> str:
    """The version that a server means by none: the highest number; empty where the server names none."""
    named = sorted(versions, key=lambda one: (one.isdigit(), int(one) if one.isdigit() else 0, one))
    return named[-1] if named else ""


def read_model(
    name: str, version: str, metadata: Mapping[str, Any], config: Mapping[str, Any] | None
) -> ModelDescription:
    """Puts the metadata and the configuration of a model together.

    Args:
        name: as it is asked for.
        version: the one that is asked.
        metadata: what the server says of inputs and outputs.
        config: the model's configuration; ``None``: the server has no such thing.

    Raises:
        BackendError: it cannot be used: no inputs, unknown types, or nonsense.
    """
    what = f"model {name!r}"
    try:
        batch = None if config is None else int(config.get("max_batch_size", 0))
        inputs, outputs = metadata.get("inputs") or (), metadata.get("outputs") or ()
        if not inputs or not outputs:
            raise BackendError(
                f"{what}: expected a server that names inputs and outputs, got {len(inputs)} and {len(outputs)}: "
                "requests could not be checked"
            )
        if batch is None and any(_sizes(one)[:1] != [-1] for one in inputs):
            batch = 0
        optional = {one["name"] for one in (config or {}).get("input") or () if one.get("optional")}
        return ModelDescription(
            name=name,
            version=version,
            platform=str(metadata.get("platform") or ""),
            inputs=tuple(_spec(what, one, batch, is_optional=one["name"] in optional) for one in inputs),
            outputs=tuple(_spec(what, one, batch) for one in outputs),
            datatypes={one["name"]: one["datatype"] for one in (*inputs, *outputs)},
            max_batch_size=batch,
            **_settings(config or {}),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BackendError(f"{what}: the server describes it in a way that cannot be read: {error!r}") from error


def _sizes(described: Mapping[str, Any]) -> list[int]:
    return [int(size) for size in described.get("shape") or ()]


def _spec(what: str, described: Mapping[str, Any], batch: int | None, *, is_optional: bool = False) -> TensorSpec:
    name, datatype = described["name"], described["datatype"]
    dtype = dtype_of(datatype)
    if dtype is None:
        raise BackendError(f"{what}: expected types that NumPy has, got {datatype} for {name!r}")
    shape: list[int | str | None] = [None if size < 0 else size for size in _sizes(described)]
    if batch == 0:
        shape.insert(0, 1)  # no batch axis: one row a request
    elif shape:
        shape[0] = "batch"
    else:
        raise BackendError(f"{what}: expected a batch axis, got a scalar {name!r}")
    return TensorSpec(name, dtype, tuple(shape), 0, is_optional)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    dynamic, sequence = config.get("dynamic_batching"), config.get("sequence_batching")
    levels = int((dynamic or {}).get("priority_levels") or 0)
    policies = [
        (dynamic or {}).get("default_queue_policy"),
        *((dynamic or {}).get("priority_queue_policy") or {}).values(),
    ]
    groups: Sequence[Mapping[str, Any]] = config.get("instance_group") or ()
    return {
        "decoupled": bool((config.get("model_transaction_policy") or {}).get("decoupled")),
        "sequence": sequence is not None,
        "correlation": _correlation(sequence or {}),
        "sequence_idle_s": int((sequence or {}).get("max_sequence_idle_microseconds") or 0) / 1e6,
        "dynamic_batching": dynamic is not None,
        "ensemble": config.get("ensemble_scheduling") is not None,
        "priority_levels": levels,
        "default_priority": int((dynamic or {}).get("default_priority_level") or (levels + 1) // 2),
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
    """What a server says of itself.

    Attributes:
        name: it has.
        version: of its software.
        extensions: of the protocol that it knows.
    """

    name: str
    version: str
    extensions: frozenset[str]

    @property
    def missing_extensions(self) -> tuple[str, ...]:
        """Those that the backend could make use of and the server does not know."""
        return tuple(name for name in EXTENSIONS if name not in self.extensions)

    def check_shared_memory(self) -> None:
        """Whether tensors may go through shared memory.

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
    """Asks a server about itself and the model of a backend.

    Raises:
        ValueError: the server has no such model, or not in this version.
        ModelNotReady: the server has not loaded it.
        DeadlineExceeded, BackendError: it does not respond, or the model cannot be used.
    """
    model, version, timeout_s = settings.model, settings.version, settings.timeout_s
    what = f"model {model!r}" + (f" version {version!r}" if version else "")
    with explained(f"describing {what}"):
        said = await transport.server(timeout_s)
        extensions = frozenset(said.get("extensions") or ())  # null where a server has an empty list that it never made
        server = Server(str(said.get("name", "")), str(said.get("version", "")), extensions)
        try:
            metadata = await transport.metadata(model, version, timeout_s)
        except ServerError as failure:
            if failure.status in {"NOT_FOUND", "INVALID_ARGUMENT"}:
                raise await _unknown(transport, server, settings, failure) from failure
            raise
        if not await transport.ready(model, version, timeout_s):
            raise ModelNotReady(f"{what} is not ready: the server loads it, or could not")
        return server, await _read(transport, server, settings, metadata)


async def describe_model(transport: Transport, server: Server, settings: Settings) -> ModelDescription:
    """Asks a server about a model that it had, as :func:`describe_server` does.

    Raises:
        DeadlineExceeded, BackendError: it does not respond, or the model is not there, or cannot be used.
    """
    with explained(f"describing model {settings.model!r}"):
        metadata = await transport.metadata(settings.model, settings.version, settings.timeout_s)
        return await _read(transport, server, settings, metadata)


async def latest_version(transport: Transport, settings: Settings) -> str:
    """The version that a server chooses now; empty where it names none.

    Raises:
        ServerError: it does not respond.
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
    """Return the configuration of a model; an ensemble has the sequences of its parts, to which it hands them on."""
    config = await transport.config(model, version, timeout_s)
    try:
        parts = [
            (str(step["model_name"]), int(step.get("model_version") or -1))
            for step in (config.get("ensemble_scheduling") or {}).get("step") or ()
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BackendError(f"model {model!r}: the parts of the ensemble cannot be read: {error!r}") from error
    for part, number in parts:
        of_part = await _config(transport, part, str(number) if number > 0 else "", timeout_s)
        if of_part.get("sequence_batching") is not None:
            return {**config, "sequence_batching": of_part["sequence_batching"]}
    return config


async def _unknown(
    transport: Transport, server: Server, settings: Settings, failure: ServerError
) -> ValueError | BackendError:
    """Says which models and versions there are instead."""
    model, version = settings.model, settings.version
    known: list[str] = []
    if "model_repository" in server.extensions:
        try:
            for one in await transport.index(settings.timeout_s):
                state = str(one.get("state", ""))
                number = str(one.get("version", ""))
                if one.get("name") == model and (not version or number in {version, ""}):
                    said = f"{state} {one.get('reason', '')}".rstrip() if state else "the server has not loaded it"
                    if state == "READY":
                        said = f"it was loaded only after this: {failure.text}"
                    return ModelNotReady(f"model {model!r} is not ready: {said}")
                if state == "READY":
                    known.append(f"{one.get('name')!r} {number}")
        except ServerError as without:
            known = [f"(its list cannot be read: {without.text})"]
    if "no available versions" in failure.text.lower():
        return ModelNotReady(f"model {model!r} is not ready: {failure.text}")
    argument, value = ("version", version) if version else ("model", model)
    there = f"; it has {', '.join(known)}" if known else ""
    return ValueError(
        f"{argument}: expected {f'a version of model {model!r}' if version else 'a model'} of the server, got {value!r}"
        f"{there} ({failure.text})"
    )

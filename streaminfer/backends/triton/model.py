"""What a server says of a model, read into what the backend needs: names, types, shapes, and the manner of asking."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from streaminfer.backends._signature import TensorSpec
from streaminfer.backends.triton.dtypes import dtype_of
from streaminfer.errors import BackendError

__all__ = ["ModelDescription", "latest", "read_model"]


@attrs.frozen(kw_only=True)
class ModelDescription:
    """A model as its server describes it.

    Attributes:
        name: as it is asked for.
        version: the one that is asked.
        platform: what runs it, in the server's words.
        inputs: what it reads, batch axis included.
        outputs: what it answers.
        datatypes: the protocol's name for the type of each input and output.
        max_batch_size: the most rows of one request; 0: requests have no batch axis; ``None``: the server does not say.
        decoupled: a request has any number of answers.
        sequence: the model keeps state for each sequence, and a request is one step of one.
        correlation: the protocol's type of a sequence's id.
        sequence_idle_s: after which the server forgets a sequence.
        dynamic_batching: the server puts requests together itself.
        ensemble: the model is a chain of others.
        priority_levels: how many there are; 0: the model knows none.
        default_priority: the level of requests that say none.
        takes_timeout: the server's queue drops a request whose own timeout has passed.
        instances: how many copies run, as far as is said.
        optional: inputs that a request may leave out.
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
    optional: frozenset[str] = frozenset()

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
        specs = [[_spec(what, one, batch) for one in group] for group in (inputs, outputs)]
        return ModelDescription(
            name=name,
            version=version,
            platform=str(metadata.get("platform") or ""),
            inputs=tuple(specs[0]),
            outputs=tuple(specs[1]),
            datatypes={one["name"]: one["datatype"] for one in (*inputs, *outputs)},
            max_batch_size=batch,
            **_manner(config or {}),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BackendError(f"{what}: the server describes it in a way that cannot be read: {error!r}") from error


def _sizes(described: Mapping[str, Any]) -> list[int]:
    return [int(size) for size in described.get("shape") or ()]


def _spec(what: str, described: Mapping[str, Any], batch: int | None) -> TensorSpec:
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
    return TensorSpec(name, dtype, tuple(shape), 0)


def _manner(config: Mapping[str, Any]) -> dict[str, Any]:
    dynamic, sequence = config.get("dynamic_batching"), config.get("sequence_batching")
    levels = int((dynamic or {}).get("priority_levels") or 0)
    policies = [
        (dynamic or {}).get("default_queue_policy"),
        *((dynamic or {}).get("priority_queue_policy") or {}).values(),
    ]
    groups: Sequence[Mapping[str, Any]] = config.get("instance_group") or ()
    return {
        "optional": frozenset(one["name"] for one in config.get("input") or () if one.get("optional")),
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

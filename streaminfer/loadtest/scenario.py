"""Load test scenarios as validated data, from a TOML file.

::

    name = "detector"
    duration_s = 30
    slo_s = 0.05

    [service]
    make = "my_package.services:make_detector"      # or: url, model, protocol

    [arrivals]
    kind = "poisson"
    rate = 200

    [inputs]
    make = "my_package.services:inputs"             # or: [inputs.random.image] shape, dtype
"""

import importlib
import os
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import attrs
import numpy as np

from streaminfer._internal.validation import (
    check_amount,
    check_choice,
    check_count,
    check_duration,
    check_instance,
    check_path,
    check_share,
    expected,
    field_check,
    make_from_table,
)
from streaminfer.loadtest.arrivals import ARRIVALS, Arrivals, check_run_s
from streaminfer.loadtest.capacity.search import check_rates
from streaminfer.loadtest.path.device_group import DeviceGroup, as_tuple
from streaminfer.loadtest.path.path_service import Score

__all__ = ["CapacitySettings", "EdgeSettings", "RandomInput", "Scenario", "ServiceSettings", "inference_server"]

Protocol = Literal["grpc", "http"]
_RANDOM_ROWS = 64
_MAX_AXIS = 10**9
_TEXT = field_check(check_instance, str, "a string")
_SHARE = field_check(check_share)
_POSITIVE = field_check(check_amount, positive=True)


def inference_server(url: str, model: str, protocol: Protocol = "grpc") -> Any:
    """Return a `Stack` as client of a server with the Open Inference Protocol, such as ours or Triton.

    ``run(..., senders=n)`` can call it in each process as a `functools.partial`. Needs the extra ``triton``.

    Args:
        url: as for `TritonBackend`.
        model: name of the model.
        protocol: ``"grpc"`` or ``"http"``.
    """
    from streaminfer.backends import TritonBackend  # noqa: PLC0415 - not every load test calls a server
    from streaminfer.stack import Stack  # noqa: PLC0415 - likewise

    return Stack(TritonBackend(url, model, protocol=protocol))


@attrs.frozen(kw_only=True)
class ServiceSettings:
    """Service of a scenario.

    Args:
        make: ``"module:function"``, a function without arguments that returns the service.
        url: URL of a server with the Open Inference Protocol, in place of ``make``.
        model: name of the model on that server.
        protocol: ``"grpc"`` or ``"http"``.
    """

    make: str = attrs.field(default="", validator=_TEXT)
    url: str = attrs.field(default="", validator=_TEXT)
    model: str = attrs.field(default="", validator=_TEXT)
    protocol: Protocol = attrs.field(default="grpc", validator=field_check(check_choice, ("grpc", "http")))

    def __attrs_post_init__(self) -> None:
        if bool(self.make) == bool(self.url) or bool(self.url) != bool(self.model):
            raise ValueError(expected("make", "either make, or url and model", attrs.asdict(self)))
        if self.url:
            from streaminfer.backends.triton.endpoint import find_endpoint  # noqa: PLC0415 - as for `inference_server`

            try:
                find_endpoint(self.url, self.protocol, None, False)
            except ValueError as error:
                raise ValueError(f"url: {str(error).removeprefix('url: ')}") from error

    def maker(self) -> Callable[[], Any]:
        """Return a function that makes the service; it works in any process."""
        if self.make:
            return load_function("service.make", self.make)
        return partial(inference_server, self.url, self.model, self.protocol)


def _are_groups(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(it, DeviceGroup) for it in value)


@attrs.frozen(kw_only=True)
class RandomInput:
    """Array of random numbers, drawn with the seed of the scenario.

    Args:
        shape: shape of one request, without a batch axis.
        dtype: NumPy type; integers are drawn from 0 to 127, floats between 0 and 1.
    """

    shape: tuple[int, ...] = attrs.field(converter=as_tuple)
    dtype: str = attrs.field(default="float32", validator=_TEXT)

    def __attrs_post_init__(self) -> None:
        check_instance("shape", self.shape, tuple, "a list of whole numbers ≥ 1")
        for axis in self.shape:
            check_count("shape", axis, at_most=_MAX_AXIS)
        try:
            is_real = np.dtype(self.dtype).kind in {"f", "i", "u"}
        except TypeError:
            is_real = False
        if not is_real:
            raise ValueError(expected("dtype", "a type of real numbers", self.dtype))

    def draw(self, rng: np.random.Generator) -> Any:
        """Return one request's array."""
        kind = np.dtype(self.dtype)
        return (rng.random(self.shape) if kind.kind == "f" else rng.integers(0, 128, self.shape)).astype(kind)


def _are_inputs(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, Mapping) and all(isinstance(it, RandomInput) for it in value.values())
    )


@attrs.frozen(kw_only=True)
class CapacitySettings:
    """Search for the capacity, after the run; see `find_capacity`."""

    low: float = attrs.field(validator=_POSITIVE)
    high: float = attrs.field(validator=_POSITIVE)
    step_s: float = attrs.field(default=10.0, validator=field_check(check_duration, positive=True))
    tolerance: float = attrs.field(default=0.02, validator=_POSITIVE)

    def __attrs_post_init__(self) -> None:
        check_rates(self.low, self.high, self.step_s)  # now, not only after the run


@attrs.frozen(kw_only=True)
class EdgeSettings:
    """Hop of the devices through a CDN; see `CdnEdge`."""

    consumers: int = attrs.field(default=1, validator=field_check(check_count))


@attrs.frozen(kw_only=True)
class Scenario:
    """A load test as data.

    Args:
        name: name of the run, for the report.
        service: the service under test.
        inputs: ``"module:function"``, a function without arguments that returns the ``inputs`` of `run`; or a mapping
            of input names to `RandomInput`, with the name ``""`` for a model with one input.
        arrivals: schedule of the requests.
        duration_s: seconds during which requests are due.
        slo_s: seconds within which a response is on time.
        objective: share of requests that must be on time.
        seed: seed of everything random.
        senders: number of processes that send.
        capacity: settings of a search for the capacity after the run; ``None``: no search.
        devices: cameras and microphones, in place of ``inputs`` and ``arrivals``; see `DeviceGroup`.
        score: returns the quality of a response to a frame, as for `run_devices`; ``None``: no score.
        edge: settings of a CDN hop for the frames; ``None``: no hop.
    """

    name: str = attrs.field(validator=_TEXT)
    service: ServiceSettings = attrs.field(validator=field_check(check_instance, ServiceSettings, "a ServiceSettings"))
    inputs: str | Mapping[str, RandomInput] = attrs.field(
        default="", validator=field_check(check_instance, _are_inputs, "a string, or a mapping of names to RandomInput")
    )
    arrivals: Arrivals | None = None
    duration_s: float = attrs.field(validator=field_check(check_run_s))
    slo_s: float = attrs.field(validator=field_check(check_duration, positive=True))
    objective: float = attrs.field(default=0.99, validator=_SHARE)
    seed: int = attrs.field(default=0, validator=field_check(check_count, at_least=0))
    senders: int = attrs.field(default=0, validator=field_check(check_count, at_least=0))
    capacity: CapacitySettings | None = None
    devices: tuple[DeviceGroup, ...] = attrs.field(
        default=(), validator=field_check(check_instance, _are_groups, "a tuple of DeviceGroup")
    )
    score: Score | None = None
    edge: EdgeSettings | None = None

    def __attrs_post_init__(self) -> None:
        if self.devices and (self.inputs or self.arrivals is not None or self.senders or self.capacity is not None):
            expectation = "no inputs, arrivals, senders and capacity beside it"
            raise ValueError(expected("devices", expectation, f"{len(self.devices)} of them"))
        if not self.devices and (not self.inputs or self.arrivals is None):
            missing = "arrivals" if self.inputs else "inputs"
            raise ValueError(expected(missing, "inputs and arrivals, or devices", None))
        if not self.devices and self.score is not None:
            raise ValueError(expected("score", "devices, whose responses it is of", "none"))
        if self.edge is not None and {group.transport for group in self.devices} != {"simulated"}:
            raise ValueError(
                expected("edge", "devices, all with transport 'simulated'", f"{len(self.devices)} devices")
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a TOML file; paths in it are relative to its folder.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file is not TOML, or a field is missing, unknown or wrong; the message names file and field.
        """
        file = check_path("path", path)
        text = file.read_bytes()
        try:
            return cls.from_dict(tomllib.loads(text.decode()), file.parent)
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any], folder: Path = Path()) -> Self:
        """Return the scenario that parsed TOML describes.

        Args:
            tables: the fields of the class.
            folder: folder that paths are relative to.

        Raises:
            ValueError, TypeError: a field is missing, unknown or wrong.
        """
        check_instance("scenario", tables, Mapping, "a table")
        folder, fields = check_path("folder", folder), dict(tables)
        for name, make in (
            ("service", lambda table: make_from_table(ServiceSettings, table, "service")),
            ("arrivals", partial(_build_arrivals, folder)),
            ("inputs", _build_inputs),
            ("capacity", lambda table: make_from_table(CapacitySettings, table, "capacity")),
            ("edge", lambda table: make_from_table(EdgeSettings, table, "edge")),
        ):
            if name in fields:
                check_instance(name, fields[name], Mapping, "a table")
                fields[name] = make(fields[name])
        if "devices" in fields:
            check_instance("devices", fields["devices"], list, "a list of tables")
            fields["devices"] = tuple(_build_devices(folder, table) for table in fields["devices"])
        if "score" in fields:
            fields["score"] = load_function("score", fields["score"])
        return make_from_table(cls, fields, "", "scenario")

    def make_inputs(self) -> Any:
        """Return the ``inputs`` for `run`."""
        if isinstance(self.inputs, str):
            return load_function("inputs.make", self.inputs)()
        rng = np.random.default_rng(self.seed)
        rows = [{name: generator.draw(rng) for name, generator in self.inputs.items()} for _ in range(_RANDOM_ROWS)]
        return [row[""] for row in rows] if list(self.inputs) == [""] else rows

    def run_settings(self) -> dict[str, Any]:
        """Return the keywords of `run`, except for service and inputs."""
        names = ("name", "arrivals", "duration_s", "slo_s", "objective", "seed", "senders")
        return {name: getattr(self, name) for name in names}


def load_function(argument: str, target: str) -> Callable[..., Any]:
    """Import a function by ``"module:name"``.

    Raises:
        ValueError: the function cannot be imported.
    """
    expectation = '"module:function" that can be imported'
    check_instance(argument, target, str, expectation)
    module, separator, name = target.partition(":")
    if not (separator and module and name):
        raise ValueError(expected(argument, expectation, target))
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{expected(argument, expectation, target)}: {error}") from error
    check_instance(argument, function, callable, expectation)
    return function


def _build_arrivals(folder: Path, table: Mapping[str, Any]) -> Any:
    fields = dict(table)
    kind = check_choice("arrivals.kind", fields.pop("kind", None), tuple(ARRIVALS))
    if "path" in fields:
        fields["path"] = _path_in(folder, "arrivals.path", fields["path"])
    recorded = kind == "replay" or (kind == "rates" and "path" in fields)
    return _make_from_files(ARRIVALS[kind].load if recorded else ARRIVALS[kind], fields, "arrivals")


def _make_from_files(make: Callable[..., Any], table: Mapping[str, Any], path: str) -> Any:
    """Make an object from a table that names files; an unreadable file raises `ValueError`, like a wrong field."""
    try:
        return make_from_table(make, table, path)
    except OSError as error:
        raise ValueError(f"{path}: {error}") from error


def _path_in(folder: Path, argument: str, path: Any) -> Path:
    return folder / os.path.expandvars(check_path(argument, path))


def _build_devices(folder: Path, table: Mapping[str, Any]) -> DeviceGroup:
    check_instance("devices", table, Mapping, "a list of tables")
    fields = dict(table)
    for name in {"source", "device", "network"} & fields.keys():
        if name == "source" or str(fields[name]).endswith((".toml", ".json")):
            fields[name] = _path_in(folder, f"devices.{name}", fields[name])
    if "prepare" in fields:
        fields["prepare"] = load_function("devices.prepare", fields["prepare"])
    group: DeviceGroup = _make_from_files(DeviceGroup, fields, "devices")
    return group


def _build_inputs(table: Mapping[str, Any]) -> str | dict[str, RandomInput]:
    if set(table) == {"make"}:
        check_instance("inputs.make", table["make"], str, "a string")
        return str(table["make"])
    if set(table) != {"random"}:
        raise ValueError(expected("inputs", "either make or random", ", ".join(table)))
    random = table["random"]
    check_instance("inputs.random", random, Mapping, "a table")
    if not isinstance(random.get("shape", {}), Mapping):  # not an input named "shape"
        return {"": make_from_table(RandomInput, random, "inputs.random")}
    return {name: make_from_table(RandomInput, fields, f"inputs.random.{name}") for name, fields in random.items()}

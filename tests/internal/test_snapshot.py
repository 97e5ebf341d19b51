"""`to_dict` of every statistics object: strict JSON, whatever the object has seen."""

import asyncio
import copy
import importlib
import inspect
import json
import pickle
import pkgutil
import typing
from collections.abc import Mapping
from types import UnionType

import attrs
import numpy as np
import pytest

import streaminfer as si
from streaminfer._internal.snapshot import Snapshot

pytestmark = pytest.mark.uncompiled

STATES = ("Statistics", "StartReport", "PartStart", "ServerStatistics")


def statistics_classes():
    found = set()
    for module in pkgutil.walk_packages(si.__path__, "streaminfer."):
        if "_compiled_kernels." in module.name or module.name.endswith("__main__"):
            continue
        members = inspect.getmembers(importlib.import_module(module.name), inspect.isclass)
        found |= {
            cls for _, cls in members if cls.__module__.startswith("streaminfer.") and cls.__name__.endswith(STATES)
        }
    return sorted(found, key=lambda cls: cls.__name__)


def is_plain(kind):
    """Return whether every value of a declared type has its own form in JSON, and not just its text."""
    if kind in (bool, int, float, str, type(None)) or typing.get_origin(kind) is typing.Literal:
        return True
    if typing.get_origin(kind) in (UnionType, typing.Union):
        return all(map(is_plain, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return all(part is Ellipsis or is_plain(part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is Mapping:
        name, value = typing.get_args(kind)
        return name in (int, float, str) and is_plain(value)
    if attrs.has(kind):
        return all(is_plain(part) for part in fields_of(kind).values())
    return hasattr(kind, "to_dict")


def fields_of(cls):
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in attrs.fields(cls)}


OF_ANY_LAYER = {
    ("StackStatistics", "layers"),
    ("StackStatistics", "children"),
    ("PartStatistics", "statistics"),
    ("PartStatistics", "children"),
}
"""Fields with statistics of layers, which can be of any class."""


@pytest.mark.parametrize("cls", statistics_classes(), ids=lambda cls: cls.__name__)
def test_every_statistics_class_has_to_dict(cls):
    """A statistics class is a `Snapshot`, and each of its fields has a plain form."""
    assert issubclass(cls, Snapshot)
    assert cls.to_dict is Snapshot.to_dict
    for name, kind in fields_of(cls).items():
        assert is_plain(kind) or (cls.__name__, name) in OF_ANY_LAYER, (cls, name, kind)


def test_search_finds_the_statistics_classes():
    assert len(statistics_classes()) >= 18


def strict(statistics):
    return json.loads(json.dumps(statistics.to_dict(), allow_nan=False))


def everything():
    batcher = si.AdaptiveBatcher(max_batch_size=2, slo_s=5.0)
    model = si.Stack(si.ConcurrencyLimit(), batcher, si.CircuitBreaker(), si.CpuBackend(np.negative, example=1.0))
    replicas = si.Stack(si.Replicas(si.Replica("b", si.Stack(si.CpuBackend(np.negative)))))
    canary = si.routing.Canary(replicas, si.CpuBackend(np.negative), share=0.5)
    router = si.FallbackRouter(si.Route("a", model), si.Route("b", canary))
    return si.Stack(
        si.Telemetry("t", slo=si.SLO("o", threshold_s=0.5)),
        si.RateLimit(1000.0),
        si.routing.Shadow(si.CpuBackend(np.negative)),
        si.EdgeCache(maxsize=8),
        si.RetryBudget(),
        si.Hedge(),
        router,
    )


def test_statistics_of_custom_layer_use_own_to_dict():
    """The statistics of a user's layer have their own form.

    An object with ``to_dict`` has the form that this method returns; any other object is text.
    """

    class Seen:
        def to_dict(self):
            return {"frames": np.arange(2)}

    @attrs.frozen
    class Both(Snapshot):
        own: object
        other: object

    assert strict(Both(Seen(), 1j)) == {"own": {"frames": [0, 1]}, "other": "1j"}


def test_statistics_of_every_layer_are_strict_json():
    """A stack of every layer has statistics that are strict JSON, before its start and after its stop."""
    stack = everything()
    before = strict(stack.statistics())
    assert before["state"] == "new"
    assert before["start"] is None
    assert before["layers"]["Telemetry"]["latency"] == dict.fromkeys(before["layers"]["Telemetry"]["latency"]) | {
        "count": 0,
        "clamped": 0,
    }

    async def main():
        async with stack:
            await stack(1.0, store=False)
        return stack.statistics()

    statistics = asyncio.run(main())
    assert "Statistics(" not in statistics._repr_html_()  # a table for each, and no repr
    after = strict(statistics)
    assert after["layers"]["Telemetry"]["latency"]["count"] == 1
    assert after["layers"]["FallbackRouter"]["routes"][0]["succeeded"] == 1
    assert after["start"]["duration_s"] > 0


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["deepcopy", "pickle"]
)
def test_snapshots_can_be_copied_and_sent(copied):
    """Snapshots can be copied and pickled, so that a process can send its statistics to another one."""
    stack = everything()

    async def main():
        async with stack:
            await stack(1.0, store=False)
        return stack.statistics(), await stack.children["EdgeCache"].erase_everywhere(tag="a"), si.prove(stack)

    for snapshot in asyncio.run(main()):
        assert strict(copied(snapshot)) == strict(snapshot)


def test_statistics_of_parts_that_have_not_started():
    """A stack that has not started has the statistics of each layer; a blocking stack and a backend have theirs."""
    stack = everything()
    assert set(stack.statistics().layers) == {
        "Telemetry",
        "RateLimit",
        "Shadow",
        "EdgeCache",
        "RetryBudget",
        "Hedge",
        "FallbackRouter",
    }
    assert stack.blocking().statistics().state == "new"
    backend = si.CpuBackend(np.negative)
    assert strict(backend.statistics())["batches"] == 0


def test_to_dict_converts_numbers_keys_and_objects():
    @attrs.frozen
    class Odd(Snapshot):
        value: object

    class Pair(typing.NamedTuple):
        left: int

    values = [float("nan"), float("inf"), np.float64(2.5), np.int64(3), np.arange(2), {1.5: (1,)}, Pair(1), 1 + 2j]
    plain = [None, None, 2.5, 3, [0, 1], {"1.5": [1]}, {"left": 1}, "(1+2j)"]
    assert strict(Odd(values))["value"] == plain

"""The page of scenario files names every field and kind that a file may have."""

import inspect
from pathlib import Path

import attrs
import pytest

from streaminfer.loadtest.arrivals import ARRIVALS, Rates, Replay
from streaminfer.loadtest.path.device_group import DeviceGroup
from streaminfer.loadtest.scenario import CapacitySettings, EdgeSettings, RandomInput, Scenario, ServiceSettings

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "scenario-files.md").read_text(encoding="utf-8")
TABLES = {"service", "arrivals", "inputs", "capacity", "devices", "edge"}


@pytest.mark.parametrize(
    "settings", [Scenario, ServiceSettings, RandomInput, CapacitySettings, DeviceGroup, EdgeSettings]
)
def test_every_field_is_named(settings):
    """The page names each field as code, alone or with its default; tables are exempt, because they have sections."""
    names = {field.name for field in attrs.fields(settings)} - TABLES

    assert not {name for name in names if f"`{name}`" not in PAGE and f"`{name} = " not in PAGE}


@pytest.mark.parametrize("kind", ARRIVALS)
def test_row_of_each_arrival_kind_names_its_fields(kind):
    """The row of an arrival kind names all fields of the kind, with their defaults."""
    [row] = [line for line in PAGE.splitlines() if line.startswith("|") and f'`"{kind}"`' in line]
    make = {"replay": Replay.load, "rates": Rates.load}.get(kind, ARRIVALS[kind])

    for name, parameter in inspect.signature(make).parameters.items():
        value = parameter.default
        has_none = value is inspect.Parameter.empty or value is None
        shown = f"`{name}`" if has_none else f"`{name} = {value!r}`"
        assert shown.replace("'", '"') in row

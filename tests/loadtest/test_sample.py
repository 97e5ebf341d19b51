"""`Sample` and `Measured` take their first field by position, and the others by name."""

import inspect

import pytest

from streaminfer.loadtest import Measured, Sample


@pytest.mark.parametrize("kind", [Sample, Measured])
def test_first_field_is_positional_with_every_attrs(kind):
    """The first field is positional with every attrs; before 25.4, a field cannot undo the ``kw_only`` of its class."""
    kinds = [parameter.kind.name for parameter in inspect.signature(kind).parameters.values()]

    assert kinds == ["POSITIONAL_OR_KEYWORD", *["KEYWORD_ONLY"] * 3]
    assert "kw_only=False" not in inspect.getsource(kind)

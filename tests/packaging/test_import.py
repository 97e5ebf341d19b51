"""`import streaminfer` costs little, and its lazy names are the objects at their homes."""

import ast
import importlib
import json
import sys
from pathlib import Path

import pytest

import streaminfer

ROOT = Path(__file__).parents[2]
HEAVY = ("numba", "llvmlite", "onnxruntime", "matplotlib")

TOUCH_ALL = f"""
import json, sys
import streaminfer
before = [name for name in dir(streaminfer) if name in streaminfer.__all__]
for name in streaminfer.__all__:
    getattr(streaminfer, name)
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps({{"before": before, "loaded": loaded, "names": streaminfer.__all__}}))
"""


def _names_for_type_checkers():
    """Of each name that ``__init__.py`` imports for type checkers: the module that defines it, ``None`` for a module."""
    tree = ast.parse((ROOT / "streaminfer" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {
        alias.name: None if statement.module == "streaminfer" else statement.module
        for statement in block.body
        for alias in statement.names
    }


def test_touching_every_name_loads_nothing_heavy(run_python):
    seen = json.loads(run_python(sys.executable, "-c", TOUCH_ALL, PYTHONPATH=str(ROOT)))
    assert seen["loaded"] == []
    assert seen["before"] == sorted(seen["names"]), "dir() tells the names before they are loaded"


def test_public_names_are_sorted_and_those_that_type_checkers_see():
    assert streaminfer.__all__ == sorted(
        streaminfer.__all__, key=lambda name: (not name.isupper(), name)
    )  # as ruff does
    assert set(streaminfer.__all__) == set(_names_for_type_checkers())
    assert set(streaminfer.__all__) == {*streaminfer._HOMES, *streaminfer._MODULES}


@pytest.mark.parametrize("name", streaminfer.__all__)
def test_public_name_is_the_object_at_its_home(name):
    home = _names_for_type_checkers()[name]
    value = getattr(streaminfer, name)
    if home is None:
        assert value is importlib.import_module(f"streaminfer.{name}")
    else:
        assert value is getattr(importlib.import_module(home), name)
        assert value.__name__ == name


def test_star_import_gives_the_public_names():
    namespace = {}
    exec("from streaminfer import *", namespace)  # noqa: S102 - not allowed inside a function
    assert set(streaminfer.__all__) <= set(namespace)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'streaminfer' has no attribute 'Batcher'"):
        streaminfer.Batcher  # noqa: B018 - the access is what is tested

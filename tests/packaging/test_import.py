"""`import streaminfer` loads little, and each lazy name is the object of the module that defines it."""

import ast
import importlib
import itertools
import json
import re
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

SCRAPE = """
import asyncio, time
import streaminfer as si

telemetry, made_s, sent = si.Telemetry("faces"), time.time(), []

async def scrape():
    async def send(message):
        sent.append(message.get("body", b""))

    headers = [(b"accept", b"application/openmetrics-text;version=1.0.0")]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    await si.telemetry.metrics_app(telemetry)(scope, None, send)

asyncio.run(scrape())
lines = b"".join(sent).decode().splitlines()
print({float(line.split()[-1]) <= made_s for line in lines if "_created{" in line})
"""

PLAIN_ARRAYS = """
import sys
import numpy as np
import streaminfer as si
from streaminfer.backends.signature import describe
from streaminfer.backends.triton.dtypes import is_text

x = np.array(["text"])
si.EdgeCache(maxsize=1).wrap(lambda x: x)(x), describe(x), is_text(x)
print("numpy.ma" in sys.modules)
"""

HELP_WITHOUT_EXTRAS = """
import pydoc, sys, types
for name in ("aiortc", "av", "blake3", "cryptography", "fastapi", "grpc", "highspy", "matplotlib", "onnx", "onnxruntime",
             "opentelemetry", "prometheus_client", "ray", "redis", "tritonclient", "xxhash"):
    sys.modules[name] = None
import streaminfer
for module in vars(streaminfer)["__all__"]:
    if isinstance(value := getattr(streaminfer, module), types.ModuleType):
        assert len(pydoc.render_doc(value)) > 1000
print("Tracing" in dir(streaminfer.telemetry), "TracingStatistics" in dir(streaminfer.telemetry))
try:
    streaminfer.telemetry.Tracing
except streaminfer.MissingExtra as error:
    print(error)
"""


def _names_for_type_checkers():
    """Return the module of each name that ``__init__.py`` imports for type checkers; ``None`` for a module."""
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


def test_exporters_report_the_import_time(run_python):
    """The `_created` time is that of the import, although the first scrape loads the exporters."""
    assert run_python(sys.executable, "-c", SCRAPE, PYTHONPATH=str(ROOT)) == "{True}\n"


def test_saved_files_load_no_modules_for_random_names(run_python):
    """Names of temporary files need neither ``secrets`` nor ``hmac``, which would delay server start by some 4 ms."""
    code = "import sys, streaminfer._internal.files.whole_file; print({'secrets', 'hmac'} & set(sys.modules))"
    assert run_python(sys.executable, "-c", code, PYTHONPATH=str(ROOT)) == "set()\n"


def test_plain_arrays_do_not_load_numpy_ma(run_python):
    """The first response in a cache, and the first invalid request, do not wait for the 8 ms of that import."""
    assert run_python(sys.executable, "-c", PLAIN_ARRAYS, PYTHONPATH=str(ROOT)) == "False\n"


def test_public_names_are_sorted_and_known_to_checkers():
    """The public names are sorted and are exactly those that type checkers see."""
    assert streaminfer.__all__ == sorted(
        streaminfer.__all__, key=lambda name: (not name.isupper(), name)
    )  # as ruff does
    assert set(streaminfer.__all__) == set(_names_for_type_checkers())
    assert set(streaminfer.__all__) == {*itertools.chain(*streaminfer._HOMES.values()), *streaminfer._MODULES}


@pytest.mark.parametrize("name", streaminfer.__all__)
def test_public_name_is_the_object_at_its_home(name):
    home = _names_for_type_checkers()[name]
    value = getattr(streaminfer, name)
    if home is None:
        assert value is importlib.import_module(f"streaminfer.{name}")
    else:
        assert value is getattr(importlib.import_module(home), name)
        assert value.__name__ == name


def test_dir_lists_public_names_only():
    assert dir(streaminfer) == sorted([*streaminfer.__all__, "__version__", "compiled"])
    for name in ("backends", "batching", "caching", "caching.tiers", "resilience", "routing", "telemetry"):
        package = importlib.import_module(f"streaminfer.{name}")
        assert dir(package) == sorted(package.__all__), name


def _lazy_modules():
    """Return the modules that load names at first use."""
    sources = sorted((ROOT / "streaminfer").rglob("*.py"))
    return [
        source
        for source in sources
        if re.search(r"^( {4})?(def )?__getattr__\b", source.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def test_the_package_is_among_the_lazy_modules():
    assert ROOT / "streaminfer" / "__init__.py" in _lazy_modules()


@pytest.mark.parametrize("source", _lazy_modules(), ids=str)
def test_type_checkers_reject_unknown_names(source):
    """A module hides its ``__getattr__`` from type checkers, which would otherwise accept any name as ``Any``."""
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        parts = [] if isinstance(statement, ast.ClassDef) else ast.walk(statement)
        names = {getattr(part, "id", getattr(part, "name", None)) for part in parts}
        if "__getattr__" in names:
            assert isinstance(statement, ast.If)
            assert ast.unparse(statement.test) == "not TYPE_CHECKING"


def test_names_of_the_readme_are_public(run_python):
    code = """
import streaminfer as si
found = si.testing.faults
import streaminfer.testing.faults as imported
print(imported is found, si.what_if, si.DecisionLog)
"""
    assert run_python(sys.executable, "-c", code, PYTHONPATH=str(ROOT)).startswith("True <function what_if")


def test_readme_components_exist(run_python):
    """Each name in the README's table is an attribute of the package; a name with ``streaminfer.`` is a module."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Components")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    names = [name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)]
    assert len(names) > 40

    modules = [name for name in names if name.startswith("streaminfer.")]
    code = "\n".join(
        [
            *(f"import {name}" for name in modules),
            "import streaminfer as si",
            *(f"si.{name}" for name in names if name not in modules),
            "print('all there')",
        ]
    )
    assert run_python(sys.executable, "-c", code, PYTHONPATH=str(ROOT)).startswith("all there")


def test_star_import_gives_the_public_names():
    namespace = {}
    exec("from streaminfer import *", namespace)  # noqa: S102 - a function cannot contain a star import
    assert set(streaminfer.__all__) <= set(namespace)


def test_help_of_every_module_needs_no_extra(run_python):
    """`help` of each module works without extras: ``dir`` omits names that cannot be loaded.

    The use of such a name raises an error that names its extra.
    """
    listed, error = run_python(sys.executable, "-c", HELP_WITHOUT_EXTRAS, PYTHONPATH=str(ROOT)).splitlines()

    assert listed == "False True"
    assert error.endswith("pip install 'streaminfer[otel]'")


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'streaminfer' has no attribute 'Batcher'"):
        streaminfer.Batcher  # noqa: B018 - the access is what is tested


@pytest.mark.parametrize("source", sorted((ROOT / "streaminfer").rglob("__init__.py")), ids=str)
def test_no_module_hides_a_name_of_its_package(source):
    """No submodule has a lazy name of its package, because its import would replace that object."""
    homes = next(
        (
            set(itertools.chain(*ast.literal_eval(node.value).values()))
            for node in ast.parse(source.read_text(encoding="utf-8")).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES"
        ),
        set(),
    )
    assert not homes & {path.stem for path in source.parent.iterdir()}

"""Capabilities are declared: `getattr` and `hasattr` with a name stay out of the package, but for what is listed here."""

import ast
from pathlib import Path

import streaminfer
from streaminfer.batching.policy import PolicyCapabilities
from streaminfer.protocols import Capabilities

ROOT = Path(streaminfer.__file__).parent
ADAPTERS = {"protocols.py": ("_Adapted", "is_service", "is_backend", "is_layer"), "batching/policy.py": ("is_policy",)}
"""Where users' objects are adapted: file → classes and functions."""

NO_CAPABILITIES = {
    "_asdict": "named tuples",
    "_is_gil_enabled": "CPython 3.13 and later",
    "_make": "named tuples",
    "_repr_html_": "IPython",
    "add_external_initializers_from_files_in_memory": "later releases of onnxruntime",
    "base": "arrays",
    "burning": "an argument that is an `SLO`, checked without loading that class",
    "clone": "tensors",
    "columns": "data frames",
    "copy": "arrays",
    "dtype": "arrays",
    "get_ep_devices": "later releases of onnxruntime",
    "has_providers": "later releases of onnxruntime",
    "ipv4_mapped": "IPv6 addresses, not IPv4 ones",
    "is_virtual": "event loops, in `is_virtual`",
    "nbytes": "arrays",
    "py_func": "functions compiled by Numba",
    "register_at_fork": "POSIX",
    "retry_after_s": "errors that say it",
    "retryable": "exceptions of users",
    "sched_getaffinity": "Linux",
    "shape": "arrays",
    "sqlite_errorcode": "errors of SQLite, not those of Python",
    "threshold_s": "as `burning`",
    "timings": "responses of users' services",
    "to_dict": "statistics of users' layers",
    "tolist": "arrays",
    "total": "an `SLO` of a user",
}
"""Names of attributes that are no capabilities: name → whose they are."""

ELSEWHERE = {
    ("caching/_keys_cy.py", "fingerprint"): "values in a cache's key that name themselves",
    ("caching/tiers/writer.py", "place"): "a tier of a user, read in one place",
}


def probes(path):
    """The names that a file looks for, each with the functions and classes around the call."""

    def walk(node, around):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"getattr", "hasattr"}:
            name = node.args[1] if len(node.args) > 1 else None
            if isinstance(name, ast.Constant) and not name.value.startswith("__"):
                yield name.value, around
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            around = (*around, node.name)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, around)

    return walk(ast.parse(path.read_text()), ())


def all_probes():
    for path in sorted(ROOT.rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        for name, around in probes(path):
            yield file, name, around


def test_no_capability_is_probed_for():
    probed = [
        f"{file}: {'.'.join(around)} looks for {name!r}"
        for file, name, around in all_probes()
        if name not in NO_CAPABILITIES
        and (file, name) not in ELSEWHERE
        and not set(around) & set(ADAPTERS.get(file, ()))
    ]
    assert probed == [], "say it in Node.capabilities(), or read it in adapt()"


def test_no_capability_is_excused():
    capabilities = {*Capabilities._fields, *PolicyCapabilities._fields}
    assert not capabilities & set(NO_CAPABILITIES)


def test_excuses_are_needed():
    found = list(all_probes())
    assert set(NO_CAPABILITIES) <= {name for _, name, _ in found}
    assert set(ELSEWHERE) <= {(file, name) for file, name, _ in found}


def test_a_probe_is_found(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("class A:\n    def b(self, inner):\n        return getattr(inner, 'idempotent', None)\n")
    assert list(probes(file)) == [("idempotent", ("A", "b"))]

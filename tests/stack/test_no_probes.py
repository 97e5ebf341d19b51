"""Capabilities are declared: only the adapters listed here use `getattr` or `hasattr` to look one up by name."""

import ast
from pathlib import Path

import streaminfer
from streaminfer.batching.policy import PolicyCapabilities
from streaminfer.protocols import Capabilities

ROOT = Path(streaminfer.__file__).parent
ADAPTERS = {
    "batching/policy.py": ("is_policy",),
    "caching/_keys_cy.py": (
        "_encode_other",
    ),  # a value in a cache's key, which costs nanoseconds; `adapt` would cost microseconds
    "errors.py": ("says_retryable", "says_retry_after_s"),
    "protocols.py": ("_Adapted", "is_service", "has_statistics", "is_backend", "is_layer"),
}
"""Adapters of users' objects, policies, values in keys and errors: file → classes and functions."""

FOREIGN = {
    "_asdict": "named tuples",
    "_is_gil_enabled": "CPython 3.13 and later",
    "_make": "named tuples",
    "_repr_html_": "the display protocol of IPython",
    "add_external_initializers_from_files_in_memory": "later releases of onnxruntime",
    "base": "the owner of a NumPy view",
    "clone": "tensors of PyTorch, which have no `copy`",
    "columns": "data frames",
    "copy": "arrays of any library",
    "dtype": "arrays of any library",
    "get_ep_devices": "later releases of onnxruntime",
    "has_providers": "later releases of onnxruntime",
    "ipv4_mapped": "IPv6 addresses of the standard library, not IPv4 ones",
    "nbytes": "arrays of any library",
    "py_func": "functions compiled by Numba",
    "register_at_fork": "POSIX",
    "sched_getaffinity": "Linux",
    "shape": "arrays of any library",
    "sqlite_errorcode": "errors of SQLite itself, not those of the module",
    "tolist": "arrays of any library",
}
"""Attributes of other libraries and of Python itself, which are no capabilities: name → owner."""


def probes(path):
    """Yield the names that a file looks up, each with the functions and classes around the call.

    Names with two leading underscores are left out: they belong to Python and NumPy.
    """

    def walk(node, around):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"getattr", "hasattr"}:
            name = node.args[1] if len(node.args) > 1 else None
            if isinstance(name, ast.Constant) and not name.value.startswith("__"):
                yield name.value, around
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            around = (*around, node.name)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, around)

    return walk(ast.parse(path.read_text(encoding="utf-8")), ())


def all_probes():
    for path in sorted(ROOT.rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        for name, around in probes(path):
            yield file, name, around


def test_no_capability_is_probed_outside_adapters():
    probed = [
        f"{file}: {'.'.join(around)} looks for {name!r}"
        for file, name, around in all_probes()
        if name not in FOREIGN and not set(around) & set(ADAPTERS.get(file, ()))
    ]
    assert probed == [], "say it in Node.capabilities(), or read it in adapt()"


def test_foreign_names_include_no_capability():
    capabilities = {*Capabilities._fields, *PolicyCapabilities._fields}
    assert not capabilities & set(FOREIGN)


def test_foreign_names_and_adapters_are_all_used():
    found = list(all_probes())
    assert set(FOREIGN) <= {name for _, name, _ in found}
    adapted = {(file, part) for file, _, around in found for part in around}
    assert {(file, part) for file, parts in ADAPTERS.items() for part in parts} <= adapted


def test_getattr_with_a_literal_is_found(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("class A:\n    def b(self, inner):\n        return getattr(inner, 'idempotent', None)\n")
    assert list(probes(file)) == [("idempotent", ("A", "b"))]

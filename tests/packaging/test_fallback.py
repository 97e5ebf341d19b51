"""Building without a C compiler: plain Python that works, or an error where compiled modules are required."""

import importlib.machinery
import json
import sys
import zipfile
from pathlib import Path

import pytest

SMOKE = Path(__file__).with_name("smoke.py")
NO_COMPILER = {"CC": "/nonexistent/cc"}


@pytest.mark.parametrize(
    "variables",
    [NO_COMPILER, {"STREAMINFER_DISABLE_COMPILED": "1"}],
    ids=["without a compiler", "compiling disabled"],
)
def test_build_falls_back_to_plain_python(variables, build_wheel, run_python, compiled_names, tmp_path):
    done, wheel = build_wheel(**variables)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(wheel) as archive:
        extensions = [
            name for name in archive.namelist() if name.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))
        ]
        archive.extractall(tmp_path)
    assert extensions == []
    smoke = json.loads(run_python(sys.executable, SMOKE, *compiled_names, PYTHONPATH=str(tmp_path)))
    assert Path(smoke["package"]).is_relative_to(tmp_path)
    assert all(Path(file).is_relative_to(tmp_path) and file.endswith("_cy.py") for file in smoke["files"].values())
    assert smoke["answers"] == [-float(number) for number in range(8)]
    assert smoke["batch_sizes"] == [[8, 1]]
    assert smoke["recorded"] == 5000
    assert smoke["kernels"] is None


def test_build_without_a_compiler_fails_where_one_is_required(build_wheel):
    done, wheel = build_wheel(**NO_COMPILER, STREAMINFER_REQUIRE_COMPILED="1")
    assert done.returncode != 0
    assert wheel is None
    assert NO_COMPILER["CC"] in done.stdout + done.stderr

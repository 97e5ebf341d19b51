"""A build without a C compiler gives uncompiled modules that work, or fails if compiled modules are required."""

import importlib.machinery
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SMOKE = Path(__file__).with_name("smoke.py")
NO_COMPILER = {"CC": "/nonexistent/cc"}
# a compiler that writes an empty object file for each module but one, and logs each call
FAILS_ONCE = """#!/bin/sh
echo "$@" >> "$0.log"
for argument in "$@"; do
    case "$argument" in *_histogram_cy*) echo "cannot compile this one" >&2; exit 1 ;; esac
done
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then : > "$2"; fi
    shift
done
"""


@pytest.fixture
def compiler_that_fails_once(tmp_path_factory):
    compiler = tmp_path_factory.mktemp("compiler") / "cc"
    compiler.write_text(FAILS_ONCE)
    compiler.chmod(0o755)
    return {"CC": str(compiler)}


def contents(wheel):
    """Return the content of each file of the package, by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def plain_wheel(build_wheel):
    done, wheel = build_wheel(**NO_COMPILER)
    assert done.returncode == 0, done.stdout + done.stderr
    return wheel


def test_build_without_a_compiler_is_plain_python(plain_wheel, run_python, compiled_names, tmp_path):
    with zipfile.ZipFile(plain_wheel) as archive:
        archive.extractall(tmp_path)
    smoke = json.loads(run_python(sys.executable, SMOKE, *compiled_names, PYTHONPATH=str(tmp_path)))
    assert Path(smoke["package"]).is_relative_to(tmp_path)
    assert all(Path(file).is_relative_to(tmp_path) and file.endswith("_cy.py") for file in smoke["files"].values())
    assert smoke["answers"] == [-float(number) for number in range(8)]
    assert smoke["batch_sizes"] == [[8, 1]]
    assert smoke["recorded"] == 5000
    assert smoke["kernels"] is None
    assert smoke["compiled"] is False
    assert [message.partition(",")[0] for message in smoke["warnings"]] == ["streaminfer serves uncompiled"]


def test_build_with_compiling_disabled_is_plain(plain_wheel, build_wheel):
    done, wheel = build_wheel(STREAMINFER_DISABLE_COMPILED="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(wheel) == contents(plain_wheel)


def test_build_is_plain_if_one_module_fails(
    plain_wheel, build_wheel, compiled_names, compiler_that_fails_once, tmp_path
):
    """If one module fails to compile, the wheel equals the uncompiled wheel."""
    done, wheel = build_wheel(**compiler_that_fails_once, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    called = Path(f"{compiler_that_fails_once['CC']}.log").read_text()
    assert sum(f"/{name.rpartition('.')[2]}.c" in called for name in compiled_names) < len(compiled_names) / 2
    assert contents(wheel) == contents(plain_wheel)
    assert list(tmp_path.iterdir()) == []  # the build of the kernels, which was stopped, leaves no files either


def test_build_in_place_falls_back_too(clone, clean_environment):
    """A build in place without a compiler removes earlier extension modules: a checkout is never compiled in part."""
    tree = clone()
    left = tree / "streaminfer" / f"_request_cy{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    left.touch()

    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tree,
        env=clean_environment(**NO_COMPILER),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "building plain Python" in done.stdout + done.stderr
    assert not left.exists()


def test_build_fails_without_required_compiler(build_wheel):
    """A build without a compiler fails if compiled modules are required."""
    done, wheel = build_wheel(**NO_COMPILER, STREAMINFER_REQUIRE_COMPILED="1")
    assert done.returncode != 0
    assert wheel is None
    assert f"the C compiler {NO_COMPILER['CC']!r} was not found" in done.stdout + done.stderr

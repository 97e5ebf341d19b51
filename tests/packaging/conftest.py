"""Wheels built from a copy of the checkout, and interpreters that run outside the checkout."""

import importlib.machinery
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = f"*{importlib.machinery.EXTENSION_SUFFIXES[0]}"


def _clean_environment(**variables):
    """Return the environment, without the variables that change the build of streaminfer or Python's search path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMINFER_", "PYTHON"))}
    return {**kept, **variables}


@pytest.fixture(scope="session")
def clean_environment():
    return _clean_environment


@pytest.fixture(scope="session")
def compiled_names():
    """Return the dotted names of the modules that a build compiles."""
    sources = sorted((ROOT / "streaminfer").rglob("*_cy.py"))
    assert sources
    return [".".join(source.relative_to(ROOT).with_suffix("").parts) for source in sources]


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """Return a function that copies the checkout without build products; ``translated`` includes the C sources."""

    def copy(*, translated=False):
        tree = tmp_path_factory.mktemp("source")
        for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, tree)
        left_out = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", *([] if translated else ["*.c"]))
        for name in ("streaminfer", "tests", "examples"):
            shutil.copytree(ROOT / name, tree / name, ignore=left_out)
        return tree

    return copy


@pytest.fixture(scope="session")
def build_wheel(clone):
    """Return a function that builds a wheel from a copy of the checkout.

    It returns the finished process and the wheel, or ``None`` if no wheel was built. The build uses the C sources of
    the checkout and, with ``compiled``, its extension modules, instead of making both again.
    """

    def build(*, compiled=False, **variables):
        tree = clone(translated=True)
        if compiled:
            built = tree / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
            for module in (ROOT / "streaminfer").rglob(MODULES):
                target = built / module.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(module, target)  # with its time: a module that is older than its source is compiled again
        done = subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tree / "dist", tree],
            cwd=tree,
            env=_clean_environment(**variables),
            capture_output=True,
            text=True,
            check=False,
        )
        return done, next((tree / "dist").glob("*.whl"), None)

    return build


@pytest.fixture(scope="session")
def run_python(tmp_path_factory):
    """Return a function that runs an interpreter outside the checkout, warnings as errors, and returns its stdout."""

    def run(interpreter, *arguments, **variables):
        done = subprocess.run(
            [interpreter, "-P", "-W", "error", *arguments],
            cwd=tmp_path_factory.mktemp("elsewhere"),
            env=_clean_environment(**variables),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run

"""Wheels built from a copy of the checkout as a clone would be, and interpreters that know nothing of the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMOKE = Path(__file__).with_name("smoke.py")
NOT_CLONED = shutil.ignore_patterns("*.so", "*.pyd", "*.c", "__pycache__")


def _clean_environment(**variables):
    """The variables of this process without those that choose how streaminfer is built or where Python looks."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMINFER_", "PYTHON"))}
    return {**kept, **variables}


@pytest.fixture(scope="session")
def clean_environment():
    return _clean_environment


@pytest.fixture(scope="session")
def compiled_names():
    """The dotted names of the modules that a build compiles."""
    sources = sorted((ROOT / "streaminfer").rglob("*_cy.py"))
    assert sources
    return [".".join(source.relative_to(ROOT).with_suffix("").parts) for source in sources]


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """Makes a fresh copy of the checkout, without what was built there."""

    def copy():
        tree = tmp_path_factory.mktemp("source")
        for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, tree)
        for name in ("streaminfer", "tests", "examples"):
            shutil.copytree(ROOT / name, tree / name, ignore=NOT_CLONED)
        return tree

    return copy


@pytest.fixture(scope="session")
def build_wheel(clone, tmp_path_factory):
    """Builds a wheel from a fresh copy; returns the finished process and the wheel, ``None`` where there is none."""
    translated = os.environ.get("CYTHON_CACHE_DIR") or tmp_path_factory.mktemp("translated")

    def build(**variables):
        tree = clone()
        done = subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tree / "dist", tree],
            cwd=tree,
            env=_clean_environment(CYTHON_CACHE_DIR=str(translated), **variables),
            capture_output=True,
            text=True,
            check=False,
        )
        return done, next((tree / "dist").glob("*.whl"), None)

    return build


@pytest.fixture(scope="session")
def run_python(tmp_path_factory):
    """Runs an interpreter outside the checkout, warnings as errors; returns what it wrote to stdout."""

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
